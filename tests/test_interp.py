"""The interpreter against NumPy, op by op, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import (
    algebra,
    attention,
    gemm,
    layernorm,
    narrow,
    rmsnorm,
    rotary,
    softmax,
    swiglu,
)
from scipy.special import erf

from autosched.ir import evaluator, stream
from autosched.ir.interp import InterpError, evaluate, value_of
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    carry,
    cast,
    const,
    dot,
    exp,
    fold,
    get,
    input_,
    iota,
    map_,
    max_,
    maximum,
    minimum,
    reaxis,
    reduce_,
    rename,
    slice_,
    sum_,
    take,
    trisolve,
    where,
)
from autosched.ir.scalar import round_to_grid

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def draw(program: Program) -> dict[str, Array]:
    return {n.attr[0]: RNG.standard_normal([e for _, e in n.attr[1]]) for n in program.inputs}


def close(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


# ---- whole programs ---------------------------------------------------------------------------


def softmax_of(x: Array) -> Array:
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def _gemm(x: dict[str, Array]) -> Array:
    y = x["x"] @ x["w"] + x["bias"]
    return 0.5 * y * (1 + erf(y / math.sqrt(2)))


def _layernorm(x: dict[str, Array]) -> Array:
    v = x["x"]
    scale = np.sqrt(v.var(-1, keepdims=True) + 1e-5)
    return (v - v.mean(-1, keepdims=True)) / scale * x["gamma"] + x["beta"]


def _rmsnorm(x: dict[str, Array]) -> Array:
    scale = np.sqrt((x["x"] ** 2).mean(-1, keepdims=True) + 1e-6)
    return x["x"] / scale * x["gamma"]


def _swiglu(x: dict[str, Array]) -> Array:
    gate, up = x["x"] @ x["wg"], x["x"] @ x["wu"]
    return gate / (1 + np.exp(-gate)) * up


def _rotary(x: dict[str, Array]) -> Array:
    first, second = np.split(x["x"], 2, -1)
    return x["x"] * x["cos"] + np.concatenate([-second, first], -1) * x["sin"]


def _attention(x: dict[str, Array]) -> Array:
    k, v = (np.repeat(x[n], 2, axis=1) for n in ("k", "v"))
    s = np.einsum("bhid,bhjd->bhij", x["q"], k) / math.sqrt(k.shape[-1])
    i, j = np.indices(s.shape[-2:])
    return softmax_of(np.where(i >= j, s, -np.inf)) @ v


@pytest.mark.parametrize(
    ("program", "reference"),
    [
        (gemm(5, 7, 3), _gemm),
        (layernorm(3, 8), _layernorm),
        (rmsnorm(3, 8), _rmsnorm),
        (softmax(3, 5), lambda x: softmax_of(x["x"])),
        (swiglu(3, 4, 5), _swiglu),
        (rotary(2, 3, 4, 6), _rotary),
        (attention(2, 4, 7, 3, groups=2, e=5), _attention),
    ],
)
def test_programs(program: Program, reference: Callable[[dict[str, Array]], Array]) -> None:
    x = draw(program)
    (got,) = evaluate(program, x).values()
    close(got, reference(x))


def test_large_operands_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = attention(2, 4, 9, 3, groups=2)
    whole = algebra({"m": (), "s": ()}, m=max_(("i", "j"), _table()), s=sum_(("i", "j"), _table()))
    x = draw(program)
    want, want_whole = evaluate(program, x)["o"], evaluate(whole, {})
    sizes: list[int] = []
    apply = evaluator._METHODS["map"]

    def counted(self: Any, node: Node, env: Any) -> Any:
        got = apply(self, node, env)
        sizes.append(got[0].data.size)
        return got

    monkeypatch.setattr(stream, "BLOCK_ELEMENTS", 50)
    monkeypatch.setitem(evaluator._METHODS, "map", counted)
    got, got_whole = evaluate(program, x)["o"], evaluate(whole, {})
    assert max(sizes) <= got.size, "more than the output was made as a whole"
    close(got, want)
    for name in want_whole:
        close(got_whole[name], want_whole[name])


def _table() -> Node:
    return exp(cast(iota("i", 30) * 7 % 11 - iota("j", 20), "float32"))


# ---- op by op ---------------------------------------------------------------------------------


X = RNG.standard_normal((3, 4, 5))
x_ = input_("x", {"a": 3, "b": 4, "c": 5})


def at(node: Node, *dims: str, **more: Array) -> Array:
    return value_of(node, {"x": X, **more}, dims)


def test_reaxis_moves() -> None:
    a, b, ab = iota("a", 3), iota("b", 4), iota("ab", 12)
    close(at(x_, "c", "a", "b"), X.transpose(2, 0, 1))
    close(at(rename(x_, {"b": "z"}), "a", "z", "c"), X)
    merged = reaxis(x_, {"a": ab // 4, "b": ab % 4})
    close(at(merged, "ab", "c"), X.reshape(12, 5))
    close(at(reaxis(merged, {"ab": a * 4 + b}), "a", "b", "c"), X)
    close(at(reaxis(x_, {"b": 3 - b}), "a", "b", "c"), X[:, ::-1])
    close(at(reaxis(x_, {"b": iota("p", 2) * 2 + iota("q", 2)}), "a", "p", "q", "c"),
          X.reshape(3, 2, 2, 5))  # fmt: skip
    close(at(reaxis(x_, {"b": iota("w", 2) + iota("q", 3)}), "w", "q", "a", "c"),
          np.lib.stride_tricks.sliding_window_view(X, 2, 1).transpose(3, 1, 0, 2))  # fmt: skip
    close(at(reaxis(x_, {"b": a}), "a", "c"), X[np.arange(3), np.arange(3)])
    close(at(reaxis(x_, {"c": const(2, "int32")}), "a", "b"), X[:, :, 2])
    close(at(reaxis(x_, {"a": iota("h", 6) // 2}), "h", "b", "c"), np.repeat(X, 2, axis=0))


def test_reaxis_swaps_and_renames_into_a_name_that_is_bound_inside() -> None:
    total = sum_("c", x_)
    swapped = rename(rename(total, {"a": "t", "b": "a"}), {"t": "b"})
    close(at(swapped, "b", "a"), X.sum(-1))
    close(at(rename(total, {"a": "c"}), "c", "b"), X.sum(-1))
    outer = total * rename(total, {"b": "c"})
    close(at(outer, "a", "b", "c"), X.sum(-1)[:, :, None] * X.sum(-1)[:, None, :])
    close(at(sum_("c", outer), "a", "b"), X.sum(-1) * X.sum(-1).sum(-1, keepdims=True))


def test_take() -> None:
    index = np.array([[3, 0], [1, 1]])
    where_ = input_("index", {"p": 2, "c": 2}, "int64")
    y = input_("y", {"a": 3, "b": 4})
    got = value_of(take(y, "b", where_), {"y": X[:, :, 0], "index": index}, ("a", "p", "c"))
    close(got, X[:, :, 0][:, index])
    heavy = take(sum_("c", x_), "b", where_)
    close(at(heavy, "a", "p", "c", index=index), X.sum(-1)[:, index])


def test_reduce_over_nothing_is_the_identity() -> None:
    empty = input_("e", {"a": 2, "k": 0})
    data = {"e": np.zeros((2, 0))}
    close(value_of(sum_("k", empty), data, ("a",)), np.zeros(2))
    close(value_of(max_("k", empty), data, ("a",)), np.full(2, -np.inf))
    both = reduce_("argmin", "k", empty, iota("k", 0))
    close(value_of(get(both, 0), data, ("a",)), np.full(2, np.inf))


def test_reduce_counts_axes_that_the_value_does_not_vary_along() -> None:
    ones = iota("k", 7) * 0 + 2
    assert value_of(sum_("k", ones), {}, ()) == 14
    got = at(sum_(("a", "b"), x_ * cast(iota("k", 2), "float32")), "c", "k")
    close(got, X.sum((0, 1))[:, None] * np.arange(2))


def test_contractions_of_several_factors() -> None:
    y, z = input_("y", {"b": 4, "d": 2}), input_("z", {"b": 4})
    arrays = {"y": RNG.standard_normal((4, 2)), "z": RNG.standard_normal(4)}
    node = sum_(("b", "c"), x_ * y * z * 3.0)
    want = 3 * np.einsum("abc,bd,b->ad", X, arrays["y"], arrays["z"])
    close(at(node, "a", "d", **arrays), want)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_integer_sums_are_exact_and_wrap(dtype: str) -> None:
    info = np.iinfo(dtype)
    a = RNG.integers(info.min, info.max, (5, 40), dtype, endpoint=True)
    b = RNG.integers(info.min, info.max, (40, 3), dtype, endpoint=True)
    x, y = input_("x", {"m": 5, "k": 40}, dtype), input_("y", {"k": 40, "n": 3}, dtype)
    got = value_of(sum_("k", x * y), {"x": a, "y": b}, ("m", "n"))
    exact = a.astype(object) @ b.astype(object)
    wrap = 1 << info.bits
    want = [[(v - info.min) % wrap + info.min for v in row] for row in exact.tolist()]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.array(want, object).astype(dtype))


def test_small_integers_accumulate_wide_in_dot() -> None:
    a, b = np.full((2, 300), 100, np.int8), np.full((300, 2), 100, np.int8)
    x, y = input_("x", {"m": 2, "k": 300}, "int8"), input_("y", {"k": 300, "n": 2}, "int8")
    got = value_of(dot(x, y, "k", "int32"), {"x": a, "y": b}, ("m", "n"))
    np.testing.assert_array_equal(got, np.full((2, 2), 3_000_000))


def test_integer_division_and_casts() -> None:
    a = np.array([7, -7, 7, -7, 0], np.int32)
    x = input_("x", {"m": 5}, "int32")
    y = input_("y", {"m": 5}, "int32")
    data = {"x": a, "y": np.array([2, 2, -2, -2, 3], np.int32)}
    for fn, want in (("floordiv", [3, -4, -4, 3, 0]), ("truncdiv", [3, -3, -3, 3, 0]),
                     ("mod", [1, 1, -1, -1, 0]), ("fmod", [1, -1, 1, -1, 0])):  # fmt: skip
        np.testing.assert_array_equal(value_of(map_(fn, x, y), data, ("m",)), want)
    f = input_("f", {"m": 5})
    values = {"f": np.array([1.9, -1.9, 0.0, 300.7, 2.5])}
    np.testing.assert_array_equal(value_of(cast(f, "int32"), values, ("m",)), [1, -1, 0, 300, 2])
    np.testing.assert_array_equal(value_of(cast(f, "bool"), values, ("m",)), [1, 1, 0, 1, 1])
    np.testing.assert_array_equal(value_of(cast(x, "uint8"), data, ("m",)), [7, 249, 7, 249, 0])


GRIDS = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(GRIDS)), st.floats(width=32))
def test_rounding_is_that_of_the_type(dtype: str, value: float) -> None:
    largest = float(ml_dtypes.finfo(GRIDS[dtype]).max)
    got = round_to_grid(np.array([value]), dtype)
    if abs(value) > largest and dtype.startswith("float8"):
        np.testing.assert_array_equal(got, [math.copysign(largest, value)])
        return
    with np.errstate(over="ignore"):
        want = np.array([value], np.float32).astype(GRIDS[dtype]).astype(np.float64)
    np.testing.assert_array_equal(got, want)


def test_casts_round_and_rounding_rounds_the_rest() -> None:
    program = narrow(3, 6)
    x = draw(program)
    short = x["x"].astype(ml_dtypes.bfloat16).astype(np.float64)
    close(evaluate(program, x)["z"], short @ x["y"])
    stored = evaluate(program, x, rounding=True)["z"]
    want = short @ x["y"].astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(stored, want.astype(np.float32))


def test_trisolve() -> None:
    matrix, rhs = RNG.standard_normal((2, 5, 5)), RNG.standard_normal((2, 5, 3))
    m = input_("m", {"b": 2, "r": 5, "c": 5})
    x = input_("y", {"b": 2, "r": 5, "n": 3})
    got = value_of(trisolve(m, x, "r", "c"), {"m": matrix, "y": rhs}, ("b", "r", "n"))
    close(got, np.linalg.solve(np.eye(5) + np.tril(matrix, -1), rhs))


def test_slice() -> None:
    piece = slice_(sum_("a", x_), "c", iota("p", 2) * 2, "c.i", 3)
    want = np.stack([X.sum(0)[:, 0:3], X.sum(0)[:, 2:5]])
    close(at(piece, "p", "b", "c.i"), want)


# ---- folds ------------------------------------------------------------------------------------


def zero() -> Node:
    return const(0.0, "float32")


def test_fold_with_two_states_and_stacked_outputs() -> None:
    total = carry("total", "float32", {"a": 3, "c": 5})
    top = carry("top", "float32", {"a": 3, "c": 5})
    loop = fold(
        "b", [(0, 4)],
        {"total": (zero(), total * 0.5 + x_), "top": (zero(), maximum(top, total))},
        [total + x_, top],
    )  # fmt: skip
    run, best = np.zeros((3, 5)), np.zeros((3, 5))
    for b in range(4):
        close(at(get(loop, 2), "a", "b", "c")[:, b], run + X[:, b])
        close(at(get(loop, 3), "a", "b", "c")[:, b], best)
        run, best = run * 0.5 + X[:, b], np.maximum(best, run)
    close(at(get(loop, 0), "a", "c"), run)
    close(at(get(loop, 1), "c", "a"), best.T)


def test_fold_over_intervals_with_bounds_that_vary() -> None:
    s = carry("s", "float32", {"a": 3, "c": 5})
    a = iota("a", 3)
    for step in (s + x_, s * 0.5 + x_):
        node = get(fold("b", [(a, a + 1), (3, minimum(a + 3, 4))], {"s": (zero(), step)}))
        got = at(node, "a", "c")
        for n in range(3):
            want = np.zeros(5)
            for b in [n, *range(3, min(n + 3, 4))]:
                want = want * (1.0 if step is s + x_ else 0.5) + X[n, b]
            close(got[n], want)


def test_fold_state_read_at_other_coordinates() -> None:
    s = carry("s", "float32", {"c": 5})
    turned = reaxis(s, {"c": (iota("c", 5) + 1) % 5})
    row = reaxis(x_, {"a": const(0, "int32")})
    loop = get(fold("b", [(0, 4)], {"s": (zero(), turned + row - sum_("c", s))}))
    want = np.zeros(5)
    for b in range(4):
        want = np.roll(want, -1) + X[0, b] - want.sum()
    close(at(loop, "c"), want)
    close(at(reaxis(loop, {"c": iota("d", 2) * 3}), "d"), want[[0, 3]])


def test_nested_folds() -> None:
    outer = carry("outer", "float32", {"a": 3})
    inner = carry("inner", "float32", {"a": 3})
    row = get(fold("c", [(0, 5)], {"inner": (outer, inner * 0.9 + x_)}))
    node = get(fold("b", [(0, 4)], {"outer": (zero(), row * 0.5)}))
    want = np.zeros(3)
    for b in range(4):
        for c in range(5):
            want = want * 0.9 + X[:, b, c]
        want = want * 0.5
    close(at(node, "a"), want)


def test_fold_without_steps_gives_its_start() -> None:
    s = carry("s", "float32", {"c": 5})
    row = reaxis(x_, {"a": const(0, "int32")})
    node = get(fold("b", [(2, 2)], {"s": (const(7.0, "float32"), s + row)}))
    close(at(node, "c"), np.full(5, 7.0))


# ---- what has no value ------------------------------------------------------------------------


def test_reading_out_of_range_is_an_error_unless_a_condition_excludes_it() -> None:
    x = input_("x", {"t": 4})
    data = {"x": np.arange(4.0)}
    before = reaxis(x, {"t": iota("t", 4) - 1})
    with pytest.raises(InterpError, match="out of range"):
        value_of(before, data, ("t",))
    guarded = where(iota("t", 4) >= 1, before, 0.0)
    close(value_of(guarded, data, ("t",)), np.array([0.0, 0, 1, 2]))
    whole = input_("n", {"t": 4}, "int32")
    ints = reaxis(whole, {"t": iota("t", 4) + 1})
    close(value_of(where(iota("t", 4) < 3, ints, 9), {"n": np.arange(4)}, ("t",)),
          np.array([1, 2, 3, 9]))  # fmt: skip
    with pytest.raises(InterpError, match="1 elements"):
        value_of(sum_("t", ints), {"n": np.arange(4)}, ())


def test_inputs_are_checked() -> None:
    program = gemm(3, 4, 5)
    x = draw(program)
    with pytest.raises(InterpError, match="'bias' is missing"):
        evaluate(program, {k: v for k, v in x.items() if k != "bias"})
    with pytest.raises(InterpError, match=r"shape \(3, 4\), wants \(5, 4\)"):
        evaluate(program, {**x, "w": x["w"][:3]})
