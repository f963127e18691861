"""The monoid table: laws on random data, and reduces and scans against single steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autosched.ir.interp import value_of
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    get,
    input_,
    iota,
    reduce_,
    scan,
)
from autosched.ir.scalar import SCALARS

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def draw(program: Program) -> dict[str, Array]:
    return {n.attr[0]: RNG.standard_normal([e for _, e in n.attr[1]]) for n in program.inputs}


def close(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MONOIDS)
@pytest.mark.parametrize("sizes", [(1, 1), (3, 4), (2, 7)])
def test_reduce_matches_step_by_step(name: str, sizes: tuple[int, int]) -> None:
    spec = MONOIDS[name]
    parts, arrays = _components(name, sizes)
    node = reduce_(name, "k", *parts)
    for n in range(spec.arity):
        got = value_of(Node("get", (node,), (n,)), arrays, ("m",))
        np.testing.assert_allclose(got, _by_steps(name, arrays)[n], rtol=1e-12, atol=1e-12)


def _components(name: str, sizes: tuple[int, int]) -> tuple[list[Node], dict[str, Array]]:
    m, k = sizes
    dtypes = ["bool" if name in ("any", "all") else "float64"] * MONOIDS[name].arity
    if name in ("argmax", "argmin"):
        dtypes[1] = "int64"
    arrays: dict[str, Array] = {}
    for n, dtype in enumerate(dtypes):
        data = np.round(RNG.standard_normal((m, k)) * 2)
        if dtype == "int64":
            data = np.broadcast_to(np.arange(k), (m, k))
        if dtype == "bool":
            data = data > 0
        positive = (name, n) in (("logsumexp", 1), ("moments", 0))
        arrays[f"x{n}"] = np.abs(data) + 1 if positive else data
    return [input_(f"x{n}", {"m": m, "k": k}, t) for n, t in enumerate(dtypes)], arrays


def _by_steps(name: str, arrays: dict[str, Array]) -> tuple[Array, ...]:
    spec = MONOIDS[name]
    data = list(arrays.values())
    total = tuple(
        np.full(x.shape[0], dtype_limit(i, str(x.dtype)), x.dtype)
        for x, i in zip(data, spec.identity)
    )
    for k in range(data[0].shape[1]):
        total = spec.combine(_apply, total, tuple(x[:, k] for x in data))
    return total


def _apply(fn: str, *operands: Any) -> Any:
    return SCALARS[fn].numpy(*operands)


@pytest.mark.parametrize("name", MONOIDS)
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_is_the_reduce_of_every_prefix(name: str, exclusive: bool, reverse: bool) -> None:
    spec = MONOIDS[name]
    parts, arrays = _components(name, (2, 6))
    node = scan(name, "k", *parts, exclusive=exclusive, reverse=reverse)
    for k in range(6):
        cut = slice(k + exclusive, 6) if reverse else slice(0, k + 1 - exclusive)
        part = {n: x[:, cut] for n, x in arrays.items()}
        want = _by_steps(name, part)
        for n in range(spec.arity):
            got = value_of(Node("get", (node,), (n,)), arrays, ("m", "k"))
            np.testing.assert_allclose(got[:, k], want[n], rtol=1e-12, atol=1e-12)


def test_ties_and_nans_of_argmax() -> None:
    data = {"x": np.array([[1.0, 3, 3, 2], [np.nan, 1, np.nan, 9], [-np.inf] * 4])}
    x = input_("x", {"m": 3, "k": 4})
    node = reduce_("argmax", "k", x, iota("k", 4))
    np.testing.assert_array_equal(value_of(get(node, 1), data, ("m",)), [1, 0, 0])


# ---- monoid laws ------------------------------------------------------------------------------


NUMBERS = st.sampled_from([-np.inf, -2.0, -0.5, 0.0, 1.0, 3.0, np.inf])


def _element(name: str) -> st.SearchStrategy[tuple[float, ...]]:
    finite = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0])
    table: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
        "any": st.tuples(st.booleans()),
        "all": st.tuples(st.booleans()),
        "argmax": st.tuples(st.sampled_from([np.nan, -1.0, 2.0]), st.integers(0, 5)),
        "argmin": st.tuples(st.sampled_from([np.nan, -1.0, 2.0]), st.integers(0, 5)),
        "logsumexp": st.tuples(st.sampled_from([-np.inf, -3.0, 0.0, 2.0]), st.floats(0.5, 2)),
        "moments": st.tuples(st.sampled_from([0.0, 1.0, 4.0]), finite, st.floats(0, 3)),
        "sum": st.tuples(finite),
        "prod": st.tuples(finite),
    }
    return table.get(name, st.tuples(NUMBERS))


@pytest.mark.parametrize("name", MONOIDS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_monoid_laws(name: str, data: st.DataObject) -> None:
    spec = MONOIDS[name]

    def some() -> tuple[Any, ...]:
        return tuple(np.asarray(v) for v in data.draw(_element(name)))

    a, b, c = some(), some(), some()

    def combine(p: tuple[Any, ...], q: tuple[Any, ...]) -> tuple[Any, ...]:
        return spec.combine(_apply, p, q)

    def same(p: tuple[Any, ...], q: tuple[Any, ...]) -> None:
        p, q = _meaning(name, p), _meaning(name, q)
        for x, y in zip(p, q):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)

    same(combine(combine(a, b), c), combine(a, combine(b, c)))
    kinds = ["bool" if x.dtype == bool else str(x.dtype) for x in a]
    unit = tuple(np.asarray(dtype_limit(i, k)) for i, k in zip(spec.identity, kinds))
    same(combine(unit, a), a)
    same(combine(a, unit), a)
    if spec.idempotent:
        same(combine(a, a), a)


def _meaning(name: str, x: tuple[Any, ...]) -> tuple[Any, ...]:
    """What an element stands for, where several elements stand for the same."""
    if name == "logsumexp":
        with np.errstate(divide="ignore"):
            return (x[0] + np.log(x[1]),)
    if name == "moments" and x[0] == 0:
        return (x[0],)
    return x
