"""The scalar functions of integers as TIR: they wrap as their types do, and never trap.

LLVM may assume that TVM's sums and products of 32 bits and more do not overflow, and the CPU traps
on a division by zero; here neither holds. Sums are formed in twice the width and cut, which LLVM
narrows to the plain instruction; a quotient by zero is 0, as NumPy has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autosched.codegen import tvm_api as tir
from autosched.ir.scalar import ITEMSIZE

Expr = Any


def bits_of(x: Expr) -> int:
    return 8 * ITEMSIZE[tir.scalar_of(x)]


def is_unsigned(x: Expr) -> bool:
    return tir.scalar_of(x).startswith("u")


def _like(x: Expr, value: int) -> Expr:
    return tir.const(value, tir.dtype_of(x))


def _ones(x: Expr) -> Expr:
    """All bits set; a literal of 64 unsigned bits can't be written."""
    minus = tir.const(-1, tir.with_lanes(f"int{bits_of(x)}", tir.lanes_of(x)))
    return tir.cast(minus, tir.scalar_of(x))


def _wrapping(name: str, signed: bool) -> Callable[[Expr, Expr], Expr]:
    """`name` in twice the width; signed: in a signed type, which holds any difference."""

    def apply(a: Expr, b: Expr) -> Expr:
        bits, own = bits_of(a), tir.scalar_of(a)
        if bits < 32:
            return tir.binary(name, a, b)
        kind = "int" if signed or not is_unsigned(a) else "uint"
        wide = (tir.cast(x, f"{kind}{2 * bits}") for x in (a, b))
        return tir.cast(tir.binary(name, *wide), own)

    return apply


add = _wrapping("add", signed=True)
sub = _wrapping("sub", signed=True)
mul = _wrapping("mul", signed=False)


def neg(x: Expr) -> Expr:
    return sub(_like(x, 0), x)


def absolute(x: Expr) -> Expr:
    return x if is_unsigned(x) else tir.select(tir.binary("lt", x, _like(x, 0)), neg(x), x)


def sign(x: Expr) -> Expr:
    zero, one = _like(x, 0), _like(x, 1)
    below = zero if is_unsigned(x) else tir.select(tir.binary("lt", x, zero), _like(x, -1), zero)
    return tir.select(tir.binary("gt", x, zero), one, below)


def _known(x: Expr) -> int | None:
    """The number, where the operand is a literal."""
    inner = getattr(x, "value", x)  # of a literal in all lanes, the literal
    value = getattr(inner, "value", inner)
    return value if isinstance(value, int) else None


def _division(
    name: str, by_minus_one: Callable[[Expr], Expr]
) -> Callable[[Expr, Expr], Expr]:
    """`name` without the two divisions that trap: by zero, and of the least number by -1."""

    def apply(a: Expr, b: Expr) -> Expr:
        divisor = _known(b)
        if divisor == -1:
            return by_minus_one(a)
        if divisor:
            return tir.binary(name, a, b)
        zero, one = _like(b, 0), _like(b, 1)
        by_zero = tir.binary("eq", b, zero)
        safe = tir.select(by_zero, one, b)
        if is_unsigned(a):
            return tir.select(by_zero, zero, tir.binary(name, a, safe))
        negative = tir.binary("eq", b, _like(b, -1))
        safe = tir.select(negative, one, safe)
        rest = tir.select(negative, by_minus_one(a), tir.binary(name, a, safe))
        return tir.select(by_zero, zero, rest)

    return apply


def _nothing(a: Expr) -> Expr:
    return _like(a, 0)


def _shift(name: str) -> Callable[[Expr, Expr], Expr]:
    """A shift by any count: by the width or more nothing but the sign is left."""

    def apply(a: Expr, b: Expr) -> Expr:
        bits = bits_of(a)
        least = _like(a, 0)
        if name == "shr" and not is_unsigned(a):
            least = tir.binary("shr", a, _like(a, bits - 1))
        kept = tir.binary("bit_and", b, _like(b, bits - 1))
        inside = tir.binary("eq", b, kept)
        return tir.select(inside, tir.binary(name, a, kept), least)

    return apply


def power(a: Expr, b: Expr, let: Callable[[Expr], Expr]) -> Expr:
    """a**b for b >= 0 by repeated squares; a literal exponent takes as many as it has bits."""
    known = _known(b)
    steps = bits_of(b) if known is None else max(known.bit_length(), 1)
    result = _like(a, 1)
    for n in range(steps):
        bit = tir.binary("bit_and", tir.binary("shr", b, _like(b, n)), _like(b, 1))
        odd = tir.binary("ne", bit, _like(b, 0))
        result = let(tir.select(odd, mul(result, a), result))
        if n < steps - 1:
            a = let(mul(a, a))
    return result


FUNCTIONS: dict[str, Callable[..., Expr]] = {
    "add": add, "sub": sub, "mul": mul, "neg": neg, "abs": absolute, "sign": sign,
    "floordiv": _division("floordiv", neg), "truncdiv": _division("div", neg),
    "mod": _division("floormod", _nothing), "fmod": _division("truncmod", _nothing),
    "bitand": lambda a, b: tir.binary("bit_and", a, b),
    "bitor": lambda a, b: tir.binary("bit_or", a, b),
    "bitxor": lambda a, b: tir.binary("bit_xor", a, b),
    "bitnot": lambda x: tir.binary("bit_xor", x, _ones(x)),
    "shl": _shift("shl"), "shr": _shift("shr"),
    "popcount": lambda x: tir.llvm("llvm.ctpop", tir.dtype_of(x), x),
    "floor": lambda x: x, "ceil": lambda x: x, "round": lambda x: x,
    "isnan": lambda x: tir.binary("ne", x, x), "isinf": lambda x: tir.binary("ne", x, x),
}  # fmt: skip

# Positions in buffers: these never overflow and never divide by zero, and LLVM may know it.
POSITIONS: dict[str, Callable[..., Expr]] = {
    **FUNCTIONS,
    **{n: (lambda a, b, n=n: tir.binary(n, a, b)) for n in ("add", "sub", "mul", "floordiv")},
    "truncdiv": lambda a, b: tir.binary("div", a, b),
    "mod": lambda a, b: tir.binary("floormod", a, b),
}
