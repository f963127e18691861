"""The scalar functions of the IR as TIR: one row a function, for scalars and vectors alike.

`Scalars.apply(fn, operands, dtypes)` widens scalars to the lanes of the widest operand and builds
the expression. Half-precision types compute in float32 and round the result. Special functions of
float32 are the polynomials of `vecmath`, since LLVM has no vector form of them; those of float64
are calls of the C library, one a lane. Integers are in `tvm_int`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autosched.codegen import tvm_api as tir
from autosched.codegen import tvm_int
from autosched.codegen.tvm_math import TirOps
from autosched.codegen.vecmath import FUNCTIONS
from autosched.ir.scalar import SCALARS, split_name

Expr = Any
_HALF = ("float16", "bfloat16")
# Floats beyond a type become what they are in a wider one, cut: LLVM leaves them undefined.
_NARROW = {"int8": "int32", "uint8": "int32", "int16": "int32", "uint16": "int32",
           "uint32": "int64"}  # fmt: skip


@dataclass(frozen=True)
class Scalars:
    """Builds scalar functions; what they bind goes to `block`. scalef: the target has AVX-512;
    positions: integers are coordinates in buffers, which neither overflow nor divide by zero."""

    block: tir.Block
    scalef: bool = False
    positions: bool = False

    def apply(self, fn: str, operands: Sequence[Expr], dtypes: Sequence[str]) -> Expr:
        """`fn` of operands whose element types are `dtypes`; the result has the widest lanes."""
        name, param = split_name(fn)
        lanes = max(tir.lanes_of(x) for x in operands)
        wide = [x if tir.lanes_of(x) == lanes else tir.splat(x, lanes) for x in operands]
        if name == "cast":
            return _cast(wide[0], dtypes[0], param)
        if SCALARS[name].result == "bits":
            return _bits(wide[0], dtypes[0], param)
        kind = dtypes[-1]
        if kind in _HALF and name != "where":
            single = [tir.cast(x, "float32") if d in _HALF else x for x, d in zip(wide, dtypes)]
            result = self._build(name, single, "float32")
            return result if SCALARS[name].result == "bool" else tir.cast(result, kind)
        return self._build(name, wide, kind)

    def _build(self, name: str, x: Sequence[Expr], dtype: str) -> Expr:
        is_float = dtype.startswith("float")
        if is_float and name in _FLOAT:
            return _FLOAT[name](*x)
        if is_float and name in _COMPOSED:
            fn = lambda f, *xs: self.block.let(self.apply(f, xs, [dtype] * len(xs)))  # noqa: E731
            return _COMPOSED[name](fn, _like, *(self.block.let(v) for v in x))
        if is_float and SCALARS[name].cost == "special" and name not in _ANY:
            return self._special(name, x, dtype)
        if dtype == "bool":
            return _BOOL[name](*x)
        if not is_float:
            if name == "pow":
                return tvm_int.power(*(self.block.let(v) for v in x), self.block.let)
            table = tvm_int.POSITIONS if self.positions else tvm_int.FUNCTIONS
            if name in table:
                return table[name](*x)
        return _ANY[name](*x)

    def _special(self, name: str, x: Sequence[Expr], dtype: str) -> Expr:
        if dtype == "float32" and name in FUNCTIONS:
            return TirOps(self.block, tir.lanes_of(x[0]), self.scalef).call(name, *x)
        if name in _LIBM:
            return tir.libm(_LIBM[name], *x)
        return tir.llvm(f"llvm.{name}", tir.dtype_of(x[0]), *x)


def _like(x: Expr, value: float) -> Expr:
    return tir.const(value, tir.dtype_of(x))


def _cast(x: Expr, source: str, target: str) -> Expr:
    if source == target:
        return x
    if target == "bool":
        return tir.binary("ne", x, _like(x, 0))
    if source == "bool":
        lanes = tir.lanes_of(x)
        kind = tir.with_lanes(target if target not in _HALF else "float32", lanes)
        value = tir.select(x, tir.const(1, kind), tir.const(0, kind))
        return tir.cast(value, target)
    if source.startswith(("float", "bfloat")) and target in _NARROW:
        x = tir.cast(x, _NARROW[target])
    return tir.cast(x, target)


def _bits(x: Expr, source: str, target: str) -> Expr:
    """Bits read as another type; TVM computes bfloat16 in float32, whose upper half it is."""
    if source == "bfloat16":
        whole = tir.bitcast(tir.cast(x, "float32"), "uint32")
        upper = tir.cast(tir.binary("shr", whole, _like(whole, 16)), "uint16")
        return _bits(upper, "uint16", target)
    if target == "bfloat16":
        whole = tir.cast(tir.bitcast(x, "uint16"), "uint32")
        single = tir.bitcast(tir.binary("shl", whole, _like(whole, 16)), "float32")
        return tir.cast(single, "bfloat16")
    return x if source == target else tir.bitcast(x, target)


def _b(name: str) -> Callable[[Expr, Expr], Expr]:
    return lambda a, b: tir.binary(name, a, b)


def _nan(x: Expr) -> Expr:
    return tir.logical_not(tir.binary("eq", x, x))


def _extreme(name: str) -> Callable[[Expr, Expr], Expr]:
    """max or min of floats that yields NaN where either is NaN; the bare one yields b then."""
    return lambda a, b: tir.select(_nan(a), a, tir.binary(name, a, b))


def _sign(x: Expr) -> Expr:
    one, zero, minus = _like(x, 1), _like(x, 0), _like(x, -1)
    # NaN and signed zeros stay what they are.
    return tir.select(
        tir.binary("gt", x, zero), one, tir.select(tir.binary("lt", x, zero), minus, x)
    )


def _of_bools(name: str) -> Callable[[Expr, Expr], Expr]:
    """A comparison of bools as numbers; TVM's own takes them for floats."""
    return lambda a, b: tir.binary(name, tir.cast(a, "int8"), tir.cast(b, "int8"))


def _floordiv(a: Expr, b: Expr) -> Expr:
    return tir.unary("floor", tir.binary("div", a, b))


def _truncdiv(a: Expr, b: Expr) -> Expr:
    return tir.unary("trunc", tir.binary("div", a, b))


_ANY: dict[str, Callable[..., Expr]] = {
    **{n: _b(n) for n in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")},
    "max": _b("max"),
    "min": _b("min"),
    "where": tir.select,
    "sign": _sign,
}  # fmt: skip

_BOOL: dict[str, Callable[..., Expr]] = {
    **{n: _of_bools(n) for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    "and": _b("and"),
    "or": _b("or"),
    "not": tir.logical_not,
    "xor": _of_bools("ne"),
    "max": _b("or"),
    "min": _b("and"),
    "where": tir.select,
}

_FLOAT: dict[str, Callable[..., Expr]] = {
    "max": _extreme("max"),
    "min": _extreme("min"),
    "neg": lambda x: tir.binary("mul", x, _like(x, -1)),
    "abs": lambda x: tir.unary("abs", x),
    "floor": lambda x: tir.unary("floor", x),
    "ceil": lambda x: tir.unary("ceil", x),
    "round": lambda x: tir.unary("round_even", x),
    "sqrt": lambda x: tir.unary("sqrt", x),
    "rsqrt": lambda x: tir.binary("div", _like(x, 1), tir.unary("sqrt", x)),
    "floordiv": _floordiv,
    "truncdiv": _truncdiv,
    "fmod": lambda a, b: tir.libm("fmod", a, b),
    "isnan": _nan,
    "isinf": lambda x: tir.binary("eq", tir.unary("abs", x), _like(x, float("inf"))),
}

# Functions that neither vecmath nor LLVM has: formulas over those that they have. `f` applies a
# scalar function, `c(x, v)` is the constant v in the type of x.


def _log1p(f: Any, c: Any, x: Expr) -> Expr:
    """log(1 + x) with the rounding of 1 + x taken back (Kahan's identity)."""
    u = f("add", c(x, 1), x)
    kept = f("sub", u, c(x, 1))
    exact = f("div", f("mul", f("log", u), x), kept)
    done = f("where", tir.binary("eq", kept, c(x, 0)), x, exact)
    return f("where", tir.binary("eq", u, c(x, math.inf)), u, done)


def _beyond(f: Any, c: Any, x: Expr, near: Expr) -> Expr:
    """`near`, or log(2 x) where x is so large that its square may overflow."""
    far = f("add", f("log", x), c(x, math.log(2)))
    return f("where", tir.binary("gt", x, c(x, 1e9)), far, near)


def _asinh(f: Any, c: Any, x: Expr) -> Expr:
    a = f("abs", x)
    root = f("sqrt", f("add", f("mul", a, a), c(x, 1)))
    small = f("add", a, f("div", f("mul", a, a), f("add", c(x, 1), root)))
    value = _beyond(f, c, a, f("log1p", small))
    return f("where", tir.binary("lt", x, c(x, 0)), f("neg", value), value)


def _acosh(f: Any, c: Any, x: Expr) -> Expr:
    t = f("sub", x, c(x, 1))
    near = f("log1p", f("add", t, f("sqrt", f("add", f("mul", t, t), f("mul", c(x, 2), t)))))
    return _beyond(f, c, x, near)


def _atanh(f: Any, c: Any, x: Expr) -> Expr:
    two = f("mul", c(x, 2), x)
    return f("mul", c(x, 0.5), f("log1p", f("div", two, f("sub", c(x, 1), x))))


def _mod(f: Any, c: Any, a: Expr, b: Expr) -> Expr:
    """The remainder with the sign of b, a zero's too; exact, as the C library's is."""
    rest = f("fmod", a, b)
    below = tir.binary("lt", b, c(b, 0))
    other = tir.binary("ne", f("sign", rest), f("sign", b))
    nothing = f("where", below, c(b, -0.0), c(b, 0))
    moved = f("where", other, f("add", rest, b), rest)
    return f("where", tir.binary("eq", rest, c(rest, 0)), nothing, moved)


_COMPOSED: dict[str, Callable[..., Expr]] = {
    "log1p": _log1p,
    "asinh": _asinh,
    "acosh": _acosh,
    "atanh": _atanh,
    "mod": _mod,
}
# Special functions that LLVM has no name for; the C library has.
_LIBM = {"erf": "erf"}
