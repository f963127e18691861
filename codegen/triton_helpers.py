"""Triton functions that a module carries where it needs them: what `tl` lacks or means otherwise.

Each is plain `tl`, so that Triton's interpreter runs it as well; names map to (text, needs).
"""

from __future__ import annotations

from collections.abc import Iterable


def _jit(signature: str, doc: str, *lines: str) -> str:
    body = "\n".join(f"    {line}" for line in (f'"""{doc}"""', *lines))
    return f"@triton.jit\ndef {signature}:\n{body}"


HELPERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nan_max": (
        _jit("nan_max(a, b)", "The greater one, NaN if either is.",
             "return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)"), ()),
    "nan_min": (
        _jit("nan_min(a, b)", "The lesser one, NaN if either is.",
             "return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)"), ()),
    # The compiler turns tl.sum of a product of broadcast operands into a product of matrices with
    # 10 bits of mantissa (Triton 3.6), and of fewer than 16 terms into a wrong one.
    "plus": (
        _jit("plus(a, b)", "a + b, to reduce with; exact where tl.sum may use tensor cores.",
             "return a + (b + 0.0)"), ()),
    # The compiler puts a product's operand into shared memory where it sees a state of a loop.
    "in_registers": (
        _jit("in_registers(x)", "A state of 16 bits, as an operand that stays where it is.",
             "return x.to(tl.int16, bitcast=True).to(x.dtype, bitcast=True)"), ()),
    "product": (
        _jit("product(a, b)", "a b, to reduce with.", "return a * b"), ()),
    "floor_div": (
        _jit("floor_div(a, b)", "Integer quotient, rounded down.",
             "rest = a % b",
             "return a // b - ((rest != 0) & ((rest < 0) != (b < 0))).to(a.dtype)"), ()),
    "floor_mod": (
        _jit("floor_mod(a, b)", "Rest with the sign of the divisor, of integers or floats.",
             "rest = a % b",
             "return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)"), ()),
    "truncate": (
        _jit("truncate(x)", "Rounded towards zero.",
             "return tl.where(x < 0, tl.ceil(x), tl.floor(x))"), ()),
    "round_even": (
        _jit("round_even(x)", "Rounded, ties to even.",
             "low = tl.floor(x)",
             "part = x - low",
             "odd = low - 2 * tl.floor(low * 0.5) == 1",
             "return tl.where((part > 0.5) | ((part == 0.5) & odd), low + 1, low)"), ()),
    "popcount": (
        _jit("popcount(x)", "Set bits of a uint32, summed in pairs, fours and bytes.",
             "x = x - ((x >> 1) & 0x55555555)",
             "x = (x & 0x33333333) + ((x >> 2) & 0x33333333)",
             "x = (x + (x >> 4)) & 0x0F0F0F0F",
             "x = x + (x >> 8)",
             "return (x + (x >> 16)) & 0x3F"), ()),
    "sign": (
        _jit("sign(x)", "-1, 0 or 1 of a float, NaN of NaN.",
             "return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x)).to(x.dtype)"), ()),
    "log1p": (
        _jit("log1p(x)", "log(1 + x), exact also near 0 (Kahan's quotient).",
             "u = 1 + x",
             "near = tl.log(u) * (x / (u - 1))",
             'return tl.where(u == 1, x, tl.where(u == float("inf"), u, near))'), ()),
    "expm1": (
        _jit("expm1(x)", "exp(x) - 1, exact also near 0 (Kahan's quotient).",
             "u = tl.exp(x)",
             "near = (u - 1) * (x / tl.log(u))",
             'far = (u == 0) | (u == float("inf"))',
             "return tl.where(u == 1, x, tl.where(far, u - 1, near))"), ()),
    "tanh": (
        _jit("tanh(x)", "Hyperbolic tangent; 1 to the last bit beyond 20.",
             "size = tl.abs(x)",
             "rise = expm1(2 * tl.where(size > 20, 20.0, size).to(x.dtype))",
             "half = rise / (rise + 2)",
             "return tl.where(x < 0, -half, half)"), ("expm1",)),
    "sinh": (
        _jit("sinh(x)", "Hyperbolic sine.",
             "rise = expm1(tl.abs(x).to(tl.float64))",
             "half = tl.where(rise > 1e30, rise, rise + rise / (rise + 1)) * 0.5",
             "return tl.where(x < 0, -half, half).to(x.dtype)"), ("expm1",)),
    "cosh": (
        _jit("cosh(x)", "Hyperbolic cosine.",
             "high = tl.exp(tl.abs(x).to(tl.float64))",
             "return (0.5 * (high + 1 / high)).to(x.dtype)"), ()),
    "arctan": (
        _jit("arctan(x)", "Inverse tangent in float64: four half angles, then the odd series.",
             "x = x.to(tl.float64)",
             "size = tl.abs(x)",
             "t = tl.where(size > 1, 1 / size, size)",
             *["t = t / (1 + tl.sqrt(1 + t * t))"] * 4,
             "s = t * t",
             "series = 1 - s * (1 / 3 - s * (1 / 5 - s * (1 / 7 - s * (1 / 9 - s / 11))))",
             "angle = 16 * t * series",
             "angle = tl.where(size > 1, 1.5707963267948966 - angle, angle)",
             "return tl.where(x < 0, -angle, angle)"), ()),
    "asin": (
        _jit("asin(x)", "Inverse sine; NaN outside [-1, 1].",
             "wide = x.to(tl.float64)",
             "return arctan(wide / tl.sqrt((1 - wide) * (1 + wide))).to(x.dtype)"),
        ("arctan",)),
    "acos": (
        _jit("acos(x)", "Inverse cosine; NaN outside [-1, 1].",
             "wide = x.to(tl.float64)",
             "return (2 * arctan(tl.sqrt((1 - wide) / (1 + wide)))).to(x.dtype)"),
        ("arctan",)),
    "asinh": (
        _jit("asinh(x)", "Inverse hyperbolic sine.",
             "size = tl.abs(x).to(tl.float64)",
             "near = log1p(size + size * size / (1 + tl.sqrt(1 + size * size)))",
             "far = tl.log(size) + 0.6931471805599453",
             "out = tl.where(size > 1e9, far, near)",
             "return tl.where(x < 0, -out, out).to(x.dtype)"), ("log1p",)),
    "acosh": (
        _jit("acosh(x)", "Inverse hyperbolic cosine; NaN below 1.",
             "past = x.to(tl.float64) - 1",
             "near = log1p(past + tl.sqrt(2 * past + past * past))",
             "far = tl.log(past) + 0.6931471805599453",
             "return tl.where(past > 1e9, far, near).to(x.dtype)"), ("log1p",)),
    "atanh": (
        _jit("atanh(x)", "Inverse hyperbolic tangent; NaN outside [-1, 1].",
             "size = tl.abs(x).to(tl.float64)",
             "half = 0.5 * log1p(2 * size / (1 - size))",
             "return tl.where(x < 0, -half, half).to(x.dtype)"), ("log1p",)),
    "power": (
        _jit("power(x, y)", "x to the power y, in float64; NaN for a root of a negative number.",
             "base = x.to(tl.float64)",
             "exponent = y.to(tl.float64)",
             "size = tl.exp2(exponent * tl.log2(tl.abs(base)))",
             "size = tl.where((exponent == 0) | (base == 1), 1.0, size)",
             "whole = tl.floor(exponent) == exponent",
             "odd = whole & (exponent - 2 * tl.floor(exponent * 0.5) == 1)",
             "bad = (base < 0) & ~whole & (tl.abs(base) < float(\"inf\"))",
             "size = tl.where(bad, float(\"nan\"), size)",
             "return tl.where((base < 0) & odd, -size, size).to(x.dtype)"), ()),
}  # fmt: skip


def helper_texts(wanted: Iterable[str]) -> list[str]:
    """The texts of these helpers and of those that they call, callees first."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for need in HELPERS[name][1]:
                visit(need)
            order.append(name)

    for name in sorted(wanted):
        visit(name)
    return [HELPERS[name][0] for name in order]
