"""The interpreter on torch against the interpreter on NumPy: same programs, same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import algebra, attention, gemm, layernorm, narrow, rmsnorm, rotary, softmax, swiglu
from tile_programs import attention_tile, delta_algebra, delta_tile

from autosched.codegen.draw import draw_inputs
from autosched.codegen.torch_arrays import TorchArrays, supports
from autosched.ir.interp import InterpError, evaluate
from autosched.ir.monoid import MONOIDS
from autosched.ir.ops import (
    bitcast,
    cast,
    const,
    get,
    input_,
    iota,
    map_,
    reaxis,
    reduce_,
    scan,
    sum_,
    take,
    where,
)
from autosched.ir.scalar import round_to_grid

CPU = TorchArrays("cpu")


def agree(program, inputs=None, rounding=False):
    inputs = draw_inputs(program, 0) if inputs is None else inputs
    want = evaluate(program, inputs, rounding=rounding)
    got = evaluate(program, inputs, CPU, rounding)
    assert want.keys() == got.keys()
    for name, array in want.items():
        found = got[name]
        assert isinstance(found, torch.Tensor)
        assert str(found.dtype).removeprefix("torch.") == array.dtype.name
        np.testing.assert_allclose(found.numpy(), array, rtol=1e-13, atol=1e-13)


ALGEBRA = {
    "gemm": gemm(5, 7, 9),
    "grouped": attention(2, 4, 5, 3, j=7, groups=2, mask=None),
    "causal": attention(1, 2, 6, 4),
    "layernorm": layernorm(4, 10),
    "rmsnorm": rmsnorm(3, 8),
    "softmax": softmax(4, 9),
    "gated": swiglu(3, 4, 5),
    "rotary": rotary(1, 2, 3, 8),
    "narrow": narrow(3, 7),
    "delta": delta_algebra(1, 2, 6, 3, 4),
}


@pytest.mark.parametrize("name", ALGEBRA)
@pytest.mark.parametrize("rounding", [False, True])
def test_algebra_means_the_same(name, rounding):
    assert supports(ALGEBRA[name])
    agree(ALGEBRA[name], rounding=rounding)


@pytest.mark.parametrize("program", [attention_tile(1, 2, 9, 4), delta_tile(1, 1, 10, 3, 4)])
def test_tiles_mean_the_same(program):
    from autosched.ir.extent import subst

    knobs = dict.fromkeys(("BM", "BN", "C", "BT"), 4)
    agree(subst(program, knobs))


def x_over(dtype="float32", **axes):
    return input_("x", axes, dtype)


@pytest.mark.parametrize("monoid", MONOIDS)
@pytest.mark.parametrize("extents", [(3, 7), (3, 1), (2, 0)])
def test_monoids(monoid, extents):
    dtype = "bool" if monoid in ("any", "all") else "float32"
    x = x_over(dtype, t=extents[0], c=extents[1])
    parts = {"argmax": (x, iota("c", extents[1])), "argmin": (x, iota("c", extents[1])),
             "logsumexp": (x, x * 0.0 + 1.0),
             "moments": (x * 0.0 + 1.0, x, x * 0.0)}.get(monoid, (x,))  # fmt: skip
    made = reduce_(monoid, "c", *parts)
    values = [get(made, n) for n in range(len(parts))] if len(parts) > 1 else [made]
    names = {f"y{n}": v for n, v in enumerate(values)}
    program = algebra(dict.fromkeys(names, ("t",)), **names)
    agree(program)
    if dtype != "bool" and 0 not in extents:
        data = draw_inputs(program, 1)["x"]
        data[0, 0] = np.nan
        agree(program, {"x": data})


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("monoid", ["sum", "max"])
def test_scans(monoid, exclusive, reverse):
    x = x_over(t=3, c=7)
    y = scan(monoid, "c", x, exclusive=exclusive, reverse=reverse)
    agree(algebra({"y": ("t", "c")}, y=y))


UNARY = ("neg", "abs", "sign", "floor", "ceil", "round", "exp", "exp2", "log", "log2", "log1p",
         "sqrt", "rsqrt", "erf", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
         "cosh", "asinh", "acosh", "atanh", "isnan", "isinf")  # fmt: skip


@pytest.mark.parametrize("fn", UNARY)
def test_functions_of_one_number(fn):
    y = map_(fn, x_over(c=9))
    odd = np.array([-np.inf, -2.5, -0.5, -0.0, 0.0, 0.5, 1.5, np.inf, np.nan], np.float32)
    agree(algebra({"y": ("c",)}, y=y), {"x": odd})


BINARY = ("add", "sub", "mul", "div", "floordiv", "truncdiv", "mod", "fmod", "max", "min", "lt",
          "le", "gt", "ge", "eq", "ne")  # fmt: skip


@pytest.mark.parametrize("fn", BINARY)
@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "int8"])
def test_functions_of_two_numbers(fn, dtype):
    if fn == "div" and dtype != "float32":
        return
    x, y = input_("x", {"a": 6}, dtype), input_("y", {"b": 4}, dtype)
    data = {"x": np.array([0, 1, 3, 5, 100, 7]).astype(dtype),
            "y": np.array([2, 1, 3, 120]).astype(dtype)}  # fmt: skip
    if dtype != "uint8":
        data = {"x": data["x"] * np.array([1, -1, 1, -1, 1, -1], dtype), "y": data["y"]}
    agree(algebra({"z": ("a", "b")}, z=map_(fn, x, y)), data)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3", "float8_e5m2"])
def test_casts_round_once_and_to_even(dtype):
    rng = np.random.default_rng(0)
    values = np.concatenate([
        rng.standard_normal(4000) * 10.0 ** rng.integers(-12, 12, 4000),
        1.0 + 2.0**-8 + rng.standard_normal(2000) * 2.0**-40,  # near ties: two steps would err
        1.0 + 2.0**-11 + rng.standard_normal(2000) * 2.0**-40,
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1e300, -1e300, 1e-300],
    ])  # fmt: skip
    x = input_("x", {"c": len(values)}, "float64")
    program = algebra({"y": ("c",)}, y=cast(cast(x, dtype), "float64"))
    got = evaluate(program, {"x": values}, CPU)["y"].numpy()
    np.testing.assert_array_equal(got, round_to_grid(values, dtype))


def test_bits():
    x = input_("x", {"c": 300})
    y = bitcast(bitcast(cast(x, "bfloat16"), "int16"), "bfloat16")
    low = map_("bitand", bitcast(x, "int32"), const(255, "int32"))
    agree(algebra({"y": ("c",), "low": ("c",)}, y=cast(y, "float32"), low=low))


def test_reads_split_reverse_and_gather():
    x, at = input_("x", {"t": 12, "c": 6}), input_("at", {"s": 5}, "int32")
    i, j, c = iota("i", 3), iota("j", 4), iota("c", 6)
    agree(algebra({"y": ("i", "j", "c")}, y=reaxis(x, {"t": i * 4 + j, "c": 5 - c})))
    agree(algebra({"y": ("s", "c")}, y=take(x, "t", at)))
    agree(algebra({"y": ("i", "j", "c")}, y=reaxis(x, {"t": (i * 5 + j * j) % 12})))
    agree(algebra({"y": ("c",)}, y=reaxis(x, {"t": c * 2, "c": c})))


def test_a_read_out_of_range_has_no_value():
    x, at = input_("x", {"t": 4}), input_("at", {"s": 3}, "int32")
    data = {"x": np.ones(4, np.float32), "at": np.array([0, 9, 1], np.int32)}
    with pytest.raises(InterpError, match="1 elements have no value"):
        evaluate(algebra({"y": ("s",)}, y=take(x, "t", at)), data, CPU)
    guarded = where(map_("lt", at, const(4, "int32")), take(x, "t", at), 0.0)
    agree(algebra({"y": ("s",)}, y=guarded), data)


@pytest.mark.parametrize("scale", [1, 1 << 20])
def test_sums_of_integers_are_exact(scale):
    a, b = input_("a", {"m": 3, "k": 5}, "int32"), input_("b", {"k": 5, "n": 4}, "int32")
    rng = np.random.default_rng(0)
    data = {"a": (rng.integers(-100, 100, (3, 5)) * scale).astype(np.int32),
            "b": (rng.integers(-100, 100, (5, 4)) * scale).astype(np.int32)}  # fmt: skip
    product = sum_("k", cast(a, "int64") * cast(b, "int64"))
    agree(algebra({"c": ("m", "n")}, c=product), data)


def test_four_factors_contract_in_pairs():
    parts = [input_(f"x{n}", {a: 3, b: 4}) for n, (a, b) in enumerate(("ab", "cb", "cd", "ae"))]
    product = parts[0] * parts[1] * parts[2] * parts[3]
    agree(algebra({"y": ("a", "d", "e")}, y=sum_(("b", "c"), product)))


def test_large_operands_are_streamed(monkeypatch):
    monkeypatch.setattr("autosched.ir.stream.BLOCK_ELEMENTS", 64)
    agree(attention(1, 2, 12, 4))


def test_wide_unsigned_types_are_declined():
    x = input_("x", {"c": 3}, "uint32")
    assert not supports(algebra({"y": ("c",)}, y=x + const(1, "uint32")))
