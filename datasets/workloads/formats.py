"""Number formats of few bits: what a code stands for, as expressions and as a NumPy table.

`decode` takes int32 codes to values, `encode` float32 values to int32 codes: the nearest one,
ties to even, and the last one for what lies beyond. The table is made from the definition of the
format in NumPy alone, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from autosched.datasets.workloads.packing import integers_of, minifloats, powers
from autosched.ir.node import Node
from autosched.ir.ops import abs_, bitcast, cast, const, map_, maximum, minimum, where

F32, I32 = "float32", "int32"
Code = Callable[[Node], Node]
Encode = Callable[[Node, Code], Node]  # values, and how a float32 becomes whole


@dataclass(frozen=True)
class Format:
    """bits of a code; value: the type that codes decode to; table: the value of each code."""

    bits: int
    value: str
    table: np.ndarray = field(repr=False, compare=False)
    decode: Code = field(repr=False)
    encode: Encode = field(repr=False)

    @property
    def top(self) -> float:
        """The largest finite value."""
        return float(self.table[np.isfinite(self.table)].max())


def half_even(x: Node) -> Node:
    return map_("round", x)


def up_by_chance(noise: Node) -> Code:
    """Stochastic rounding: up with the chance that `noise`, drawn from [0, 1), gives."""
    return lambda x: map_("floor", x + noise)


# ---- integers ----------------------------------------------------------------------------------


def clamp(x: Node, low: float, high: float) -> Node:
    return minimum(maximum(x, low), high)


def whole(bits: int, zero: int | None, value: str = "int8") -> Format:
    """Integers: code - zero, or two's complement without a zero."""
    half = 2 ** (bits - 1)
    origin = half if zero is None else zero

    def decode(code: Node) -> Node:
        plain = map_("bitxor", code, half) - half if zero is None else code - zero
        return cast(plain, value)

    def encode(x: Node, rounded: Code) -> Node:
        code = cast(clamp(rounded(x), -origin, 2**bits - 1 - origin), I32)
        return map_("bitand", code, 2**bits - 1) if zero is None else code + zero

    return Format(bits, value, integers_of(bits, zero), decode, encode)


def bipolar(bits: int) -> Format:
    """Sums of +-2**i: the odd integers 2 code - (2**bits - 1); a sign where there is one bit."""
    most = 2**bits - 1

    def decode(code: Node) -> Node:
        return cast(code * 2 - most, "int8")

    def encode(x: Node, rounded: Code) -> Node:  # zero, a tie of a sign, is positive
        return cast(clamp(map_("floor", x * 0.5 + 0.5 * (most + 1)), 0, most), I32)

    return Format(bits, "int8", 2 * np.arange(2**bits) - most, decode, encode)


# ---- floats of few bits ------------------------------------------------------------------------

_MANTISSA, _BIAS = 23, 127  # of float32


def power_of_two(exponent: Node) -> Node:
    """2**exponent, for int32 exponents of normal float32 numbers."""
    return bitcast(map_("shl", exponent + _BIAS, _MANTISSA), F32)


def exponent_of(x: Node) -> Node:
    """floor(log2(x)) of positive normal float32 numbers, as int32."""
    return map_("shr", bitcast(x, I32), _MANTISSA) - _BIAS


def minifloat(exponent: int, mantissa: int, special: str = "", signed: bool = True) -> Format:
    """Floats of so many bits of exponent and mantissa: see `packing.minifloats`."""
    bias, width = 2 ** (exponent - 1) - 1, exponent + mantissa
    table = minifloats(exponent, mantissa, special, signed)
    top = float(np.max(table[np.isfinite(table)]))
    last, infinite = 2**width - 1, (2**exponent - 1) << mantissa  # as magnitudes

    def decode(code: Node) -> Node:
        # The bits of a float32 whose exponent is too small by the difference of the biases: one
        # product sets it right, for subnormal numbers too.
        magnitude = map_("bitand", code, last)
        small = bitcast(map_("shl", magnitude, _MANTISSA - mantissa), F32)
        value = small * 2.0 ** (_BIAS - bias)
        if special == "nan":
            value = where(magnitude >= last, float("nan"), value)
        if special == "ieee":
            odd = where(magnitude > infinite, const(float("nan"), F32), float("inf"))
            value = where(magnitude >= infinite, odd, value)
        return where(code > last, -value, value) if signed else value

    def encode(x: Node, rounded: Code) -> Node:
        size = minimum(abs_(x), top)
        binade = maximum(exponent_of(size), 1 - bias)
        code = cast(rounded(size * power_of_two(mantissa - binade)), I32)
        code = minimum(code + map_("shl", binade + (bias - 1), mantissa), highest)
        negative = cast(map_("shr", bitcast(x, "uint32"), 31), I32)
        return code + map_("shl", negative, width) if signed else code

    highest = int(np.flatnonzero(table == top)[0])
    return Format(width + signed, F32, table, decode, encode)


def exponent_only() -> Format:
    """Powers of two from 2**-127 to 2**127, and NaN; encoding rounds down."""

    def decode(code: Node) -> Node:
        normal = where(code < 1, const(2.0**-127, F32), power_of_two(code - _BIAS))
        return where(code > 254, float("nan"), normal)

    def encode(x: Node, rounded: Code) -> Node:
        return clamp(exponent_of(x) + _BIAS, 0, 254)

    return Format(8, F32, powers(), decode, encode)
