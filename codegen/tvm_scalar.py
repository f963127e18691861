"""The scalar functions of the IR as TIR: one row a function, for scalars and vectors alike.

`Scalars.apply(fn, operands, dtypes)` widens scalars to the lanes of the widest operand and builds
the expression. Half-precision types compute in float32 and round the result. Special functions of
float32 are the polynomials of `vecmath`, since LLVM has no vector form of them; those of float64
are calls of the C library, one a lane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autosched.codegen import tvm_api as tir
from autosched.codegen.tvm_math import TirOps
from autosched.codegen.vecmath import FUNCTIONS
from autosched.ir.scalar import SCALARS, split_name

Expr = Any
_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Scalars:
    """Builds scalar functions; what they bind goes to `block`. scalef: the target has AVX-512."""

    block: tir.Block
    scalef: bool = False

    def apply(self, fn: str, operands: Sequence[Expr], dtypes: Sequence[str]) -> Expr:
        """`fn` of operands whose element types are `dtypes`; the result has the widest lanes."""
        name, param = split_name(fn)
        lanes = max(tir.lanes_of(x) for x in operands)
        wide = [x if tir.lanes_of(x) == lanes else tir.splat(x, lanes) for x in operands]
        if name == "cast":
            return _cast(wide[0], dtypes[0], param)
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
            fn = lambda f, *xs: self.apply(f, xs, [dtype] * len(xs))  # noqa: E731
            return _COMPOSED[name](fn, _like, *(self.block.let(v) for v in x))
        if is_float and SCALARS[name].cost == "special" and name not in _ANY:
            return self._special(name, x, dtype)
        if not is_float and name in _INT:
            return _INT[name](*x)
        return _ANY[name](*x)

    def _special(self, name: str, x: Sequence[Expr], dtype: str) -> Expr:
        if dtype == "float32" and name in FUNCTIONS:
            return TirOps(self.block, tir.lanes_of(x[0]), self.scalef).call(name, *x)
        if name in _LIBM_ONLY:
            return tir.libm(name, *x)
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
    return tir.cast(x, target)


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


def _int_abs(x: Expr) -> Expr:
    return tir.binary("max", x, tir.binary("sub", _like(x, 0), x))


def _xor(a: Expr, b: Expr) -> Expr:
    return tir.logical_not(tir.binary("eq", tir.cast(a, "int32"), tir.cast(b, "int32")))


def _float_floordiv(a: Expr, b: Expr) -> Expr:
    return tir.unary("floor", tir.binary("div", a, b))


def _float_mod(a: Expr, b: Expr) -> Expr:
    return tir.binary("sub", a, tir.binary("mul", _float_floordiv(a, b), b))


def _fmod(a: Expr, b: Expr) -> Expr:
    quotient = tir.unary("trunc", tir.binary("div", a, b))
    return tir.binary("sub", a, tir.binary("mul", quotient, b))


def _int_fmod(a: Expr, b: Expr) -> Expr:
    return tir.binary("sub", a, tir.binary("mul", tir.binary("div", a, b), b))


_ANY: dict[str, Callable[..., Expr]] = {
    **{n: _b(n) for n in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge",
                          "and", "or")},
    "max": _b("max"),
    "min": _b("min"),
    "not": tir.logical_not,
    "xor": _xor,
    "where": tir.select,
    "sign": _sign,
}  # fmt: skip

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
    "floordiv": _float_floordiv,
    "mod": _float_mod,
    "fmod": _fmod,
    "isnan": _nan,
    "isinf": lambda x: tir.binary("eq", tir.unary("abs", x), _like(x, float("inf"))),
}

_INT: dict[str, Callable[..., Expr]] = {
    "neg": lambda x: tir.binary("sub", _like(x, 0), x),
    "abs": _int_abs,
    "floordiv": _b("floordiv"),
    "truncdiv": _b("div"),
    "mod": _b("floormod"),
    "fmod": _int_fmod,
    "bitand": _b("bit_and"),
    "bitor": _b("bit_or"),
    "bitxor": _b("bit_xor"),
    "bitnot": lambda x: tir.binary("bit_xor", x, _like(x, -1)),
    "shl": _b("shl"),
    "shr": _b("shr"),
    "floor": lambda x: x,
    "ceil": lambda x: x,
    "round": lambda x: x,
    "isnan": lambda x: tir.binary("ne", x, x),
    "isinf": lambda x: tir.binary("ne", x, x),
}


# Functions that neither vecmath nor LLVM has: formulas over those that they have. `f` applies a
# scalar function, `c(x, v)` is the constant v in the type of x.


def _log1p(f: Any, c: Any, x: Expr) -> Expr:
    """log(1 + x) with the rounding of 1 + x taken back (Kahan's identity)."""
    u = f("add", c(x, 1), x)
    kept = f("sub", u, c(x, 1))
    exact = f("div", f("mul", f("log", u), x), kept)
    done = f("where", tir.binary("eq", kept, c(x, 0)), x, exact)
    return f("where", f("isinf", u), u, done)


def _asinh(f: Any, c: Any, x: Expr) -> Expr:
    a = f("abs", x)
    root = f("sqrt", f("add", f("mul", a, a), c(x, 1)))
    small = f("add", a, f("div", f("mul", a, a), f("add", c(x, 1), root)))
    value = f("log1p", small)
    return f("where", tir.binary("lt", x, c(x, 0)), f("neg", value), value)


def _acosh(f: Any, c: Any, x: Expr) -> Expr:
    t = f("sub", x, c(x, 1))
    return f("log1p", f("add", t, f("sqrt", f("add", f("mul", t, t), f("mul", c(x, 2), t)))))


def _atanh(f: Any, c: Any, x: Expr) -> Expr:
    two = f("mul", c(x, 2), x)
    return f("mul", c(x, 0.5), f("log1p", f("div", two, f("sub", c(x, 1), x))))


_COMPOSED: dict[str, Callable[..., Expr]] = {
    "log1p": _log1p,
    "asinh": _asinh,
    "acosh": _acosh,
    "atanh": _atanh,
}
_LIBM_ONLY = ("erf",)
