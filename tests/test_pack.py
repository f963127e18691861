"""Packing: PackSpecs against a plain loop over packed coordinates; constants kept once."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosched.codegen.runtime import pack as packing
from autosched.codegen.runtime.arrays import ALIGNMENT, address, from_bfloat16, to_bfloat16
from autosched.codegen.runtime.errors import InputError
from autosched.codegen.runtime.pack import pack
from autosched.codegen.runtime.spec import KernelArg, PackSpec, arg_from_json, arg_to_json


def axis(n: int) -> tuple[Any, ...]:
    return ("axis", n)


def const(n: int) -> tuple[Any, ...]:
    return ("const", n)


def value(index: tuple[Any, ...], at: tuple[int, ...]) -> int:
    """The meaning of an index expression, one coordinate at a time."""
    if index[0] == "axis":
        return at[index[1]]
    if index[0] == "const":
        return int(index[1])
    a, b = value(index[1], at), value(index[2], at)
    return {"add": a + b, "mul": a * b, "min": min(a, b), "max": max(a, b),
            "floordiv": a // b if b else 0, "mod": a % b if b else 0}[index[0]]  # fmt: skip


def by_hand(source: np.ndarray, spec: PackSpec) -> np.ndarray:
    out = np.empty(spec.dims, source.dtype)
    for at in itertools.product(*map(range, spec.dims)):
        out[at] = source[tuple(value(index, at) for index in spec.index)]
    return out


def panels(k: int, n: int, width: int) -> PackSpec:
    """w[k, n] as [n / width, k, width], the last panel's tail repeating the last column."""
    column = ("min", ("add", ("mul", axis(0), const(width)), axis(2)), const(n - 1))
    return PackSpec("w", "float32", (k, n), (-(-n // width), k, width), (axis(1), column))


SPECS = {
    "transpose": PackSpec("w", "float32", (3, 5), (5, 3), (axis(1), axis(0))),
    "panels": PackSpec(
        "w", "float32", (4, 6), (3, 4, 2),
        (axis(1), ("add", ("mul", axis(0), const(2)), axis(2))),
    ),
    "reversed": PackSpec(
        "w", "float32", (7,), (7,), (("add", const(6), ("mul", const(-1), axis(0))),)
    ),
    "repeated": PackSpec("w", "float32", (4,), (3, 4), (axis(1),)),
    "split": PackSpec(
        "w", "float32", (6, 2), (12,),
        (("floordiv", axis(0), const(2)), ("mod", axis(0), const(2))),
    ),
    "clamped": panels(5, 7, 4),
    "no axes": PackSpec("w", "float32", (3,), (), (const(2),)),
    "empty": PackSpec("w", "float32", (3,), (0, 3), (axis(1),)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_pack_is_its_index_expressions(name: str) -> None:
    spec = SPECS[name]
    source = np.random.default_rng(0).standard_normal(spec.source_shape, dtype=np.float32)
    packed = pack(source, spec, "float32")
    assert np.array_equal(packed, by_hand(source, spec))
    assert packed.flags.c_contiguous
    assert packed.size == 0 or address(packed) % ALIGNMENT == 0


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 8), st.integers(1, 40))
def test_panels_of_any_size_in_chunks(k: int, n: int, width: int, chunk: int) -> None:
    source = np.arange(k * n, dtype=np.float32).reshape(k, n)
    spec = panels(k, n, width)
    before, packing._CHUNK = packing._CHUNK, chunk
    try:
        assert np.array_equal(pack(source, spec, "float32"), by_hand(source, spec))
    finally:
        packing._CHUNK = before


@pytest.mark.parametrize(
    "index", [("add", axis(0), const(1)), ("add", axis(0), const(-1)),
              ("max", ("add", axis(0), const(1)), const(0)), ("add", ("mod", axis(0), const(4)),
               const(-1))],
)  # fmt: skip
def test_an_index_that_leaves_the_source_is_refused(index: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match=r"reads .* of an extent of 4"):
        pack(np.zeros(4, np.float32), PackSpec("w", "float32", (4,), (4,), (index,)), "float32")


def test_another_source_is_refused() -> None:
    with pytest.raises(InputError, match=r"w is float64\[3, 5\], but float32\[3, 5\]"):
        pack(np.zeros((3, 5)), SPECS["transpose"], "float32")


def test_packing_may_round_to_bfloat16() -> None:
    source = np.random.default_rng(1).standard_normal((3, 5), dtype=np.float32)
    packed = pack(source, SPECS["transpose"], "bfloat16")
    assert packed.dtype == np.uint16
    assert np.abs(from_bfloat16(packed) - source.T).max() <= np.abs(source).max() * 2.0**-8


def test_bfloat16_rounds_to_even_and_keeps_nan_and_infinity() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(2).integers(0, 2**32, 100_000, dtype=np.uint32)
    values = values.view(np.float32)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1.00390625, 1.01171875], np.float32)
    values = np.concatenate([special, values])
    with np.errstate(invalid="ignore"):
        want = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(from_bfloat16(to_bfloat16(values)), want, equal_nan=True)


def test_a_signature_survives_json() -> None:
    arg = KernelArg("w", "packed", "float32", SPECS["panels"].dims, SPECS["panels"])
    assert arg_from_json(arg_to_json(arg)) == arg
