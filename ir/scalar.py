"""The table of scalar functions that `map` applies: arity, result type, cost class, meaning.

The meaning is a NumPy function; it is evaluated in float64 for floating types (see interp) and
in the stored type for integers and booleans. Parameters of a function (`cast` has the target
type) follow the name after a colon: "cast:float16".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2")
INTS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
DTYPES = (*FLOATS, *INTS, "bool")
ITEMSIZE = {
    **{t: int(t.strip("uint")) // 8 for t in INTS},
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3": 1, "float8_e5m2": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class ScalarFn:
    """arity; result: "same" | "bool" | "second" (type of operand 1) | "param" | "bits" (as
    "param", and of the operand's width); cost class."""

    arity: int
    result: str
    cost: str  # "arith" | "special" | "int" | "move"
    numpy: Callable[..., Any]


def _erf(x: Any) -> Any:
    from scipy.special import erf

    return erf(x)


def _quiet(fn: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            return fn(*args)

    return call


def _floordiv(a: Any, b: Any) -> Any:
    return np.floor(a / b) if np.asarray(a).dtype.kind == "f" else np.floor_divide(a, b)


def _truncdiv(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind == "f":
        return np.trunc(a / b)
    down = np.floor_divide(a, b)
    return down + ((np.remainder(a, b) != 0) & ((a < 0) != (b < 0)))


def _popcount(x: Any) -> Any:
    """Set bits, of negative numbers in two's complement."""
    octets = np.ascontiguousarray(x)[..., None].view(np.uint8)
    return np.unpackbits(octets, axis=-1).sum(-1).reshape(np.shape(x)).astype(np.asarray(x).dtype)


def _fn(arity: int, result: str, cost: str, meaning: Callable[..., Any]) -> ScalarFn:
    return ScalarFn(arity, result, cost, _quiet(meaning))


SCALARS: dict[str, ScalarFn] = {
    "add": _fn(2, "same", "arith", np.add),
    "sub": _fn(2, "same", "arith", np.subtract),
    "mul": _fn(2, "same", "arith", np.multiply),
    "div": _fn(2, "same", "special", np.divide),  # floats; integers use floordiv or truncdiv
    "floordiv": _fn(2, "same", "int", _floordiv),
    "truncdiv": _fn(2, "same", "int", _truncdiv),
    "mod": _fn(2, "same", "int", np.mod),  # sign of the divisor
    "fmod": _fn(2, "same", "int", np.fmod),  # sign of the dividend
    "max": _fn(2, "same", "arith", np.maximum),  # NaN if either is
    "min": _fn(2, "same", "arith", np.minimum),
    "pow": _fn(2, "same", "special", np.power),
    "neg": _fn(1, "same", "arith", np.negative),
    "abs": _fn(1, "same", "arith", np.abs),
    "sign": _fn(1, "same", "arith", np.sign),
    "floor": _fn(1, "same", "arith", np.floor),
    "ceil": _fn(1, "same", "arith", np.ceil),
    "round": _fn(1, "same", "arith", np.round),  # half to even
    "exp": _fn(1, "same", "special", np.exp),
    "exp2": _fn(1, "same", "special", np.exp2),
    "log": _fn(1, "same", "special", np.log),
    "log2": _fn(1, "same", "special", np.log2),
    "log1p": _fn(1, "same", "special", np.log1p),
    "sqrt": _fn(1, "same", "special", np.sqrt),
    "rsqrt": _fn(1, "same", "special", lambda x: 1.0 / np.sqrt(x)),
    "erf": _fn(1, "same", "special", _erf),
    "tanh": _fn(1, "same", "special", np.tanh),
    "sin": _fn(1, "same", "special", np.sin),
    "cos": _fn(1, "same", "special", np.cos),
    "tan": _fn(1, "same", "special", np.tan),
    "asin": _fn(1, "same", "special", np.arcsin),
    "acos": _fn(1, "same", "special", np.arccos),
    "atan": _fn(1, "same", "special", np.arctan),
    "sinh": _fn(1, "same", "special", np.sinh),
    "cosh": _fn(1, "same", "special", np.cosh),
    "asinh": _fn(1, "same", "special", np.arcsinh),
    "acosh": _fn(1, "same", "special", np.arccosh),
    "atanh": _fn(1, "same", "special", np.arctanh),
    "isnan": _fn(1, "bool", "arith", np.isnan),
    "isinf": _fn(1, "bool", "arith", np.isinf),
    "lt": _fn(2, "bool", "arith", np.less),
    "le": _fn(2, "bool", "arith", np.less_equal),
    "gt": _fn(2, "bool", "arith", np.greater),
    "ge": _fn(2, "bool", "arith", np.greater_equal),
    "eq": _fn(2, "bool", "arith", np.equal),
    "ne": _fn(2, "bool", "arith", np.not_equal),
    "and": _fn(2, "same", "int", np.logical_and),
    "or": _fn(2, "same", "int", np.logical_or),
    "xor": _fn(2, "same", "int", np.logical_xor),
    "not": _fn(1, "same", "int", np.logical_not),
    "bitand": _fn(2, "same", "int", np.bitwise_and),
    "bitor": _fn(2, "same", "int", np.bitwise_or),
    "bitxor": _fn(2, "same", "int", np.bitwise_xor),
    "bitnot": _fn(1, "same", "int", np.invert),
    "shl": _fn(2, "same", "int", np.left_shift),
    "shr": _fn(2, "same", "int", np.right_shift),
    "popcount": _fn(1, "same", "int", _popcount),
    "where": _fn(3, "second", "arith", np.where),
    "cast": _fn(1, "param", "move", lambda x: x),  # rounding is the interpreter's business
    "bitcast": _fn(1, "bits", "move", lambda x: x),  # and so are bits: see `reinterpret`
}

COMMUTATIVE = frozenset(("add", "mul", "max", "min", "and", "or", "xor", "eq", "ne"))


# Significant bits, least normal exponent, greatest finite value, what lies beyond it.
_GRIDS: dict[str, tuple[int, int, float, float]] = {
    "bfloat16": (8, -126, (2 - 2**-7) * 2.0**127, math.inf),
    "float8_e4m3": (4, -6, 448.0, 448.0),  # casts to fp8 saturate, as ONNX's do by default
    "float8_e5m2": (3, -14, 57344.0, 57344.0),
}


def round_to_grid(x: Any, dtype: str) -> Any:
    """The float64 array with every element on the grid of `dtype`, ties to even."""
    if dtype not in _GRIDS:
        with np.errstate(over="ignore"):
            return x.astype(dtype).astype(np.float64)
    bits, least, greatest, beyond = _GRIDS[dtype]
    _, exponent = np.frexp(x)
    unit = np.maximum(exponent - 1, least) - (bits - 1)
    y = np.ldexp(np.rint(np.ldexp(x, -unit)), unit)
    return np.where(np.abs(y) > greatest, np.copysign(beyond, y), y)


def reinterpret(x: Any, source: str, target: str) -> Any:
    """The array with the bits of its elements, as `source` stores them, read as `target`. Floats
    come and go in float64, and are first rounded to the grid of `source`."""
    with np.errstate(all="ignore"):
        bits = _to_bits(round_to_grid(x, source), source) if source in FLOATS else np.asarray(x)
        unsigned = bits.view(f"uint{8 * ITEMSIZE[source]}")
        return _from_bits(unsigned, target) if target in FLOATS else unsigned.view(target)


def _to_bits(x: Any, dtype: str) -> Any:
    if dtype not in _GRIDS:
        return np.asarray(x, dtype)
    if dtype == "bfloat16":
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    table = _from_bits(np.arange(128, dtype=np.uint8), dtype)  # ascending, NaN last
    return (np.searchsorted(table, np.abs(x)) | np.signbit(x) * 128).astype(np.uint8)


def _from_bits(bits: Any, dtype: str) -> Any:
    if dtype not in _GRIDS:
        return bits.view(dtype).astype(np.float64)
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype == "float8_e5m2":  # the upper half of a float16
        return (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
    magnitude = (bits & 127).astype(np.int64)
    exponent, rest = magnitude >> 3, magnitude & 7
    value = np.ldexp(np.where(exponent, 8.0 + rest, 2.0 * rest), exponent - 10)
    value = np.where(magnitude == 127, np.nan, value)  # e4m3 has no infinity
    return np.where(bits > 127, -value, value)


def split_name(fn: str) -> tuple[str, str]:
    """("cast", "float16") of "cast:float16"; ("add", "") of "add"."""
    name, _, param = fn.partition(":")
    return name, param
