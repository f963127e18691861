"""`vecmath.Ops` on TIR: lanes of a block in, bound nodes out.

Every result is bound by the block, so that a formula may use it twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from autosched.codegen import tvm_api as t
from autosched.codegen.vecmath import FUNCTIONS, scale_by_shifts

# One instruction for x * 2**n, by lanes; needs avx512f (the narrower one avx512vl).
_SCALE = {16: "llvm.x86.avx512.mask.scalef.ps.512", 8: "llvm.x86.avx512.mask.scalef.ps.256"}
_ROUND_AS_SET = 4  # the rounding operand of the 512-bit form


@dataclass(frozen=True)
class TirOps:
    """Vectors (or scalars) of `lanes`; scalef says that the target has AVX-512."""

    block: t.Block
    lanes: int
    scalef: bool = False

    def _unary(self, name: str, x: t.Expr) -> t.Expr:
        return self.block.let(t.unary(name, x), name)

    def _binary(self, name: str, a: t.Expr, b: t.Expr) -> t.Expr:
        return self.block.let(t.binary(name, a, b), name)

    def const(self, value: float, dtype: str = "float32") -> t.Expr:
        return t.const(value, t.with_lanes(dtype, self.lanes))

    def add(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("add", a, b)

    def sub(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("sub", a, b)

    def mul(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("mul", a, b)

    def div(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("div", a, b)

    def fma(self, a: t.Expr, b: t.Expr, c: t.Expr) -> t.Expr:
        return self.block.let(t.fma(a, b, c), "fma")

    def minimum(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("min", a, b)

    def maximum(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("max", a, b)

    def rint(self, x: t.Expr) -> t.Expr:
        return self._unary("rint", x)

    def floor(self, x: t.Expr) -> t.Expr:
        return self._unary("floor", x)

    def sqrt(self, x: t.Expr) -> t.Expr:
        return self._unary("sqrt", x)

    def abs(self, x: t.Expr) -> t.Expr:
        return self._unary("abs", x)

    def lt(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("lt", a, b)

    def eq(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("eq", a, b)

    def select(self, condition: t.Expr, a: t.Expr, b: t.Expr) -> t.Expr:
        return self.block.let(t.select(condition, a, b), "select")

    def cast(self, x: t.Expr, dtype: str) -> t.Expr:
        return self.block.let(t.cast(x, dtype), "cast")

    def bitcast(self, x: t.Expr, dtype: str) -> t.Expr:
        return self.block.let(t.bitcast(x, dtype), "bits")

    def bit_and(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("bit_and", a, b)

    def bit_or(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("bit_or", a, b)

    def shl(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("shl", a, b)

    def shr(self, a: t.Expr, b: t.Expr) -> t.Expr:
        return self._binary("shr", a, b)

    def scale(self, x: t.Expr, n: t.Expr) -> t.Expr:
        name = _SCALE.get(self.lanes) if self.scalef else None
        if name is None:
            return scale_by_shifts(self, x, n)
        every = t.const(-1, "int16" if self.lanes == 16 else "int8")
        rounding = (t.const(_ROUND_AS_SET),) if self.lanes == 16 else ()
        dtype = t.with_lanes("float32", self.lanes)
        return self.block.let(t.llvm(name, dtype, x, n, x, every, *rounding), "scaled")

    def call(self, name: str, *args: t.Expr) -> t.Expr:
        """The function of `vecmath` by that name."""
        return FUNCTIONS[name](self, *args)
