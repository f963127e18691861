"""Elementary functions in fp32 from vector arithmetic: operators in, a function of vectors out.

LLVM turns exp, erf and the like of a vector into one libm call a lane. Here they are formulas over
`Ops`, so that an emitter instantiates them on TIR vectors and a test on NumPy arrays. Relative
errors are at most about 3e-7 where the result is a normal number (sin and cos near a zero: 1e-7
absolute, of arguments below 1e6); infinities, NaN and signed zeros come out as the definition has
them. Coefficients come from tools/fit_vecmath.py.

The order of operands of `minimum` and `maximum` decides what becomes of a NaN, see `Ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

V = Any

# Each with the largest relative error of the fit; rounding adds one or two units in the last place.
EXP = (1.0, 0.999999702, 0.499991477, 0.166676491, 0.0418982804, 0.00828971434)  # 9.3e-08
EXP2 = (1.0, 0.693147004, 0.240222469, 0.0555071086, 0.00967129134, 0.00132695213)  # 9.3e-08
LOG1P_TAIL = (
    0.333339095, -0.250013351, 0.199631006, -0.165776566, 0.149144977, -0.142668843, 0.0870041475,
)  # fmt: skip  # 3.2e-08
LOG2_ATANH = (
    2.8853900817779268, 0.96179669416523672, 0.57707792436640715, 0.41221107656997646,
    0.31983208504941507, 0.28393218786451041,
)  # fmt: skip  # 6.9e-14
ERF_P = (
    1.12837911, 0.193061337, 0.0496781915, 0.0034299274, 0.000137073439, -1.98290854e-06,
    2.08738573e-08,
)  # fmt: skip  # 5.4e-08, of the quotient
ERF_Q = (1.0, 0.504428148, 0.112176083, 0.0137831736, 0.000895823876)
TANH_P = (
    1.0, 0.130840808, 0.00310403411, 1.11550889e-05, -2.02281782e-08, 5.27924163e-11,
    -8.49167741e-14,
)  # fmt: skip  # 1.7e-08, of the quotient
TANH_Q = (1.0, 0.464174092, 0.0244954918, 0.000254625658)
SIN_TAIL = (-0.166666552, 0.0083321901, -0.000195184519)  # 4.0e-09
COS_TAIL = (0.0416666418, -0.0013887129, 2.44116363e-05)  # 1.9e-10

INF, NAN = math.inf, math.nan
SMALLEST_NORMAL = 2.0**-126


def split_constant(value: float, bits: int) -> tuple[float, float]:
    """value = high + low, where high has at most `bits` significant bits."""
    scale = 2.0 ** (bits - math.frexp(value)[1])
    high = round(value * scale) / scale
    return high, value - high


LN2_HIGH, LN2_LOW = split_constant(math.log(2.0), 15)  # n * LN2_HIGH is exact for |n| < 2**9
HALF_PI_HIGH, HALF_PI_LOW = split_constant(math.pi / 2, 30)
HALF_PI_LOW += 6.123233995736766e-17  # pi/2 minus its double


class Ops(Protocol):
    """Elementwise operators on float32, float64, int32 and int64 values; conditions are bool.

    minimum(a, b) is a < b ? a : b, and maximum(a, b) a > b ? a : b: a NaN in b stays, in a does
    not. rint rounds half to even. cast of a float to an integer truncates. scale(x, n) is
    x * 2**n for a float32 n that is integral and in [-400, 400], rounded once or twice.
    """

    def const(self, value: float, dtype: str = "float32") -> V: ...
    def add(self, a: V, b: V) -> V: ...
    def sub(self, a: V, b: V) -> V: ...
    def mul(self, a: V, b: V) -> V: ...
    def div(self, a: V, b: V) -> V: ...
    def fma(self, a: V, b: V, c: V) -> V: ...
    def minimum(self, a: V, b: V) -> V: ...
    def maximum(self, a: V, b: V) -> V: ...
    def rint(self, x: V) -> V: ...
    def floor(self, x: V) -> V: ...
    def sqrt(self, x: V) -> V: ...
    def abs(self, x: V) -> V: ...
    def lt(self, a: V, b: V) -> V: ...
    def eq(self, a: V, b: V) -> V: ...
    def select(self, condition: V, a: V, b: V) -> V: ...
    def cast(self, x: V, dtype: str) -> V: ...
    def bitcast(self, x: V, dtype: str) -> V: ...
    def bit_and(self, a: V, b: V) -> V: ...
    def bit_or(self, a: V, b: V) -> V: ...
    def shl(self, a: V, b: V) -> V: ...
    def shr(self, a: V, b: V) -> V: ...
    def scale(self, x: V, n: V) -> V: ...


# ---------------------------------------------------------------- shared pieces


def horner(o: Ops, table: Sequence[float], x: V, dtype: str = "float32") -> V:
    """table[0] + table[1]*x + ..., from the last coefficient down."""
    value = o.const(table[-1], dtype)
    for c in table[-2::-1]:
        value = o.fma(value, x, o.const(c, dtype))
    return value


def scale_by_shifts(o: Ops, x: V, n: V) -> V:
    """`Ops.scale` for machines without an instruction for it: two powers of two from bits."""
    whole = o.cast(n, "int32")
    half = o.shr(whole, o.const(1, "int32"))
    for part in (half, o.sub(whole, half)):
        biased = o.shl(o.add(part, o.const(127, "int32")), o.const(23, "int32"))
        x = o.mul(x, o.bitcast(biased, "float32"))
    return x


def _clamp(o: Ops, x: V, low: float, high: float) -> V:
    return o.maximum(o.const(low), o.minimum(o.const(high), x))


def _copysign(o: Ops, magnitude: V, sign: V) -> V:
    bit = o.bit_and(o.bitcast(sign, "int32"), o.const(-(2**31), "int32"))
    return o.bitcast(o.bit_or(o.bitcast(magnitude, "int32"), bit), "float32")


def _where(o: Ops, condition: V, value: float, otherwise: V) -> V:
    return o.select(condition, o.const(value), otherwise)


# ---------------------------------------------------------------- exponentials


def exp(o: Ops, x: V) -> V:
    """e**x = 2**n * e**r with |r| <= ln(2)/2; 0 below about -104, inf above 88.7."""
    x = _clamp(o, x, -104.0, 89.0)
    n = o.rint(o.mul(x, o.const(math.log2(math.e))))
    r = o.fma(n, o.const(-LN2_LOW), o.fma(n, o.const(-LN2_HIGH), x))
    return o.scale(horner(o, EXP, r), n)


def exp2(o: Ops, x: V) -> V:
    x = _clamp(o, x, -151.0, 129.0)
    n = o.rint(x)
    return o.scale(horner(o, EXP2, o.sub(x, n)), n)


def sigmoid(o: Ops, x: V) -> V:
    """1 / (1 + e**-x)."""
    one = o.const(1.0)
    return o.div(one, o.add(one, exp(o, o.sub(o.const(0.0), x))))


# ---------------------------------------------------------------- logarithms


def _split_log(o: Ops, x: V) -> tuple[V, V]:
    """x = 2**e * m with m in [sqrt(1/2), sqrt(2)): (e, log m). For positive finite x."""
    tiny = o.lt(x, o.const(SMALLEST_NORMAL))
    x = o.select(tiny, o.mul(x, o.const(2.0**23)), x)
    bits = o.bitcast(x, "int32")
    # Adding the distance of sqrt(1/2) to 1 in bits carries into the exponent above sqrt(2).
    shifted = o.sub(bits, o.const(0x3F3504F3, "int32"))
    exponent = o.shr(shifted, o.const(23, "int32"))
    mantissa = o.bitcast(o.sub(bits, o.shl(exponent, o.const(23, "int32"))), "float32")
    e = o.sub(o.cast(exponent, "float32"), o.select(tiny, o.const(23.0), o.const(0.0)))
    f = o.sub(mantissa, o.const(1.0))
    square = o.mul(f, f)
    tail = o.mul(o.mul(square, f), horner(o, LOG1P_TAIL, f))
    return e, o.add(f, o.fma(square, o.const(-0.5), tail))


def _log_edges(o: Ops, x: V, value: V) -> V:
    value = o.select(o.lt(x, o.const(INF)), value, x)  # inf and NaN
    value = _where(o, o.eq(x, o.const(0.0)), -INF, value)
    return _where(o, o.lt(x, o.const(0.0)), NAN, value)


def log(o: Ops, x: V) -> V:
    e, small = _split_log(o, x)
    value = o.fma(e, o.const(LN2_HIGH), o.fma(e, o.const(LN2_LOW), small))
    return _log_edges(o, x, value)


def log2(o: Ops, x: V) -> V:
    e, small = _split_log(o, x)
    high, low = split_constant(math.log2(math.e), 24)
    value = o.add(e, o.fma(small, o.const(high), o.mul(small, o.const(low))))
    return _log_edges(o, x, value)


# ---------------------------------------------------------------- sigmoids


def _odd_quotient(o: Ops, x: V, top: Sequence[float], bottom: Sequence[float], limit: float) -> V:
    """x*P(x^2)/Q(x^2), x clamped to the limit and the result to [-1, 1]."""
    x = _clamp(o, x, -limit, limit)
    square = o.mul(x, x)
    value = o.div(o.mul(x, horner(o, top, square)), horner(o, bottom, square))
    return _clamp(o, value, -1.0, 1.0)


def erf(o: Ops, x: V) -> V:
    return _odd_quotient(o, x, ERF_P, ERF_Q, 3.84)


def tanh(o: Ops, x: V) -> V:
    return _odd_quotient(o, x, TANH_P, TANH_Q, 9.0)


# ---------------------------------------------------------------- roots, circle, powers


def sqrt(o: Ops, x: V) -> V:
    return o.sqrt(x)


def rsqrt(o: Ops, x: V) -> V:
    return o.div(o.const(1.0), o.sqrt(x))


def _quadrant(o: Ops, x: V) -> tuple[V, V]:
    """x = n*pi/2 + r with |r| <= pi/4: (n mod 4 as int32, r), reduced in float64."""

    def c(value: float) -> V:
        return o.const(value, "float64")

    wide = o.cast(x, "float64")
    n = o.rint(o.mul(wide, c(2 / math.pi)))
    r = o.fma(n, c(-HALF_PI_LOW), o.fma(n, c(-HALF_PI_HIGH), wide))
    turn = o.sub(n, o.mul(c(4.0), o.floor(o.mul(n, c(0.25)))))
    finite = o.lt(o.abs(x), o.const(INF))
    return o.cast(o.select(finite, turn, c(0.0)), "int32"), o.cast(r, "float32")


def _circle(o: Ops, x: V, ahead: int) -> V:
    """sin(x + ahead * pi/2)."""
    turn, r = _quadrant(o, x)
    turn = o.add(turn, o.const(ahead, "int32"))
    square = o.mul(r, r)
    sine = o.fma(o.mul(r, square), horner(o, SIN_TAIL, square), r)
    tail = o.mul(o.mul(square, square), horner(o, COS_TAIL, square))
    cosine = o.add(o.const(1.0), o.fma(square, o.const(-0.5), tail))
    zero, one, two = (o.const(k, "int32") for k in (0, 1, 2))
    value = o.select(o.eq(o.bit_and(turn, one), zero), sine, cosine)
    flipped = o.sub(o.const(-0.0), value)
    return o.select(o.eq(o.bit_and(turn, two), zero), value, flipped)


def sin(o: Ops, x: V) -> V:
    return o.select(o.eq(x, o.const(0.0)), x, _circle(o, x, 0))  # keeps -0


def cos(o: Ops, x: V) -> V:
    return _circle(o, x, 1)


def _log2_wide(o: Ops, x: V) -> V:
    """log2 of a positive finite float32 in float64, to about 1e-13."""

    def k(value: int) -> V:
        return o.const(value, "int64")

    one = o.const(1.0, "float64")
    bits = o.bitcast(o.cast(x, "float64"), "int64")
    exponent = o.shr(o.sub(bits, k(0x3FE6A09E667F3BCD)), k(52))
    m = o.bitcast(o.sub(bits, o.shl(exponent, k(52))), "float64")
    t = o.div(o.sub(m, one), o.add(m, one))
    series = horner(o, LOG2_ATANH, o.mul(t, t), "float64")
    return o.fma(t, series, o.cast(exponent, "float64"))


def pow(o: Ops, x: V, y: V) -> V:
    """x**y = 2**(y * log2|x|), in float64 up to the last step; edges as C99 has them."""
    zero, one, inf = o.const(0.0), o.const(1.0), o.const(INF)
    size = o.abs(x)
    z = o.mul(o.cast(_clamp(o, y, -1e30, 1e30), "float64"), _log2_wide(o, size))
    z = o.maximum(o.const(-200.0, "float64"), o.minimum(o.const(200.0, "float64"), z))
    n = o.rint(z)
    fraction = o.cast(o.sub(z, n), "float32")
    value = o.scale(horner(o, EXP2, fraction), o.cast(n, "float32"))
    rising = o.lt(zero, y)
    value = o.select(o.eq(size, inf), o.select(rising, inf, zero), value)
    value = o.select(o.eq(size, zero), o.select(rising, zero, inf), value)
    half = o.mul(y, o.const(0.5))
    whole = o.eq(o.floor(y), y)
    # An odd y takes the sign of x; one that is no integer has no power of a negative number.
    signed = o.select(o.eq(o.floor(half), half), value, _copysign(o, value, x))
    value = o.select(whole, signed, value)
    negative = o.lt(x, zero)
    rootless = o.select(o.lt(size, inf), o.const(NAN), value)
    value = o.select(negative, o.select(whole, value, rootless), value)
    value = o.select(o.eq(x, x), o.select(o.eq(y, y), value, y), x)
    return o.select(o.eq(y, zero), one, o.select(o.eq(x, one), one, value))


FUNCTIONS: dict[str, Callable[..., V]] = {
    "exp": exp, "exp2": exp2, "log": log, "log2": log2, "erf": erf, "tanh": tanh,
    "sigmoid": sigmoid, "sqrt": sqrt, "rsqrt": rsqrt, "sin": sin, "cos": cos, "pow": pow,
}  # fmt: skip
