"""Sizes of a suite's row in, the algebra of what else models do out: batches and transposes of
products, statistics and reductions of rows [m, k] and of columns.

Values are stored in their dtype and computed in float32, as in `definitions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autosched.datasets.workloads import terms
from autosched.datasets.workloads.terms import F32, inputs, mean, weights
from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.ops import abs_, cast, exp, log, max_, rsqrt, sum_

_STORED: Mapping[str, tuple[str, str]] = {  # axes of both operands as they lie in memory
    "nn": ("m k", "k n"), "nt": ("m k", "n k"), "tn": ("k m", "k n"), "tt": ("k m", "n k"),
}  # fmt: skip


def transposed_gemm(
    *, m: int, n: int, k: int, stored: str, dtype: str = "bfloat16"
) -> Program:
    """y[m, n] = sum(k, x w), both operands as `stored` says: t for the transpose."""
    axes = _STORED[stored]
    x, w = inputs({"m": m, "n": n, "k": k}, dtype, x=axes[0], w=axes[1])
    return algebra(y=("m n", cast(sum_("k", x * w), dtype)))


def batched_gemm(
    *, b: int, m: int, n: int, k: int, stored: str = "nn", dtype: str = "bfloat16"
) -> Program:
    """y[b, m, n] = sum(k, x[b] w[b]), both operands as `stored` says."""
    axes = _STORED[stored]
    s = {"b": b, "m": m, "n": n, "k": k}
    x, w = inputs(s, dtype, x=f"b {axes[0]}", w=f"b {axes[1]}")
    return algebra(y=("b m n", cast(sum_("k", x * w), dtype)))


def _rows(m: int, k: int, dtype: str) -> Node:
    return inputs({"m": m, "k": k}, dtype, x="m k")[0]


def rmsnorm(
    *, m: int, k: int, residual: bool = False, dtype: str = "bfloat16"
) -> Program:
    """y = rmsnorm(x) gamma, of x + r where a residual is asked for; then x + r comes out too."""
    x, (gamma,) = _rows(m, k, dtype), weights({"k": k}, dtype, gamma="k")
    if not residual:
        return algebra(y=("m k", cast(terms.rmsnorm("k", x) * gamma, dtype)))
    (r,) = inputs({"m": m, "k": k}, dtype, r="m k")
    h = x + r
    y = terms.rmsnorm("k", h) * gamma
    return algebra(y=("m k", cast(y, dtype)), h=("m k", cast(h, dtype)))


def layernorm(*, m: int, k: int, dtype: str = "bfloat16") -> Program:
    """y = (x - mean) / deviation * gamma + beta."""
    x, (gamma, beta) = _rows(m, k, dtype), weights({"k": k}, dtype, gamma="k", beta="k")
    centred = x - mean("k", x)
    y = centred * rsqrt(mean("k", centred * centred) + 1e-5) * gamma + beta
    return algebra(y=("m k", cast(y, dtype)))


def softmax(*, m: int, k: int, dtype: str = "bfloat16") -> Program:
    """exp(x - max) over its sum."""
    return algebra(y=("m k", cast(terms.softmax("k", _rows(m, k, dtype)), dtype)))


def unit_rows(*, m: int, k: int, dtype: str = "bfloat16") -> Program:
    """Rows of length 1, as keys and queries are normalised."""
    return algebra(y=("m k", cast(terms.unit_length("k", _rows(m, k, dtype)), dtype)))


def logsumexp(*, m: int, k: int, dtype: str = "bfloat16") -> Program:
    """log(sum(exp x)) of each row, as a loss reads it."""
    x = _rows(m, k, dtype)
    top = max_("k", x)
    return algebra(y=("m", log(sum_("k", exp(x - top))) + top))


_REDUCES: Mapping[str, Callable[[str, Node], Node]] = {
    "sum": sum_,
    "mean square": lambda axis, x: mean(axis, x * x),
    "largest": lambda axis, x: max_(axis, abs_(x)),
}


def reduction(
    *, m: int, k: int, along: str = "rows", reduce: str = "sum", dtype: str = "bfloat16"
) -> Program:
    """One float32 number of each row or column."""
    axis, left = {"rows": ("k", "m"), "columns": ("m", "k")}[along]
    return algebra(y=(left, cast(_REDUCES[reduce](axis, _rows(m, k, dtype)), F32)))


ROWWISE: Mapping[str, Callable[..., Program]] = {
    f.__name__: f
    for f in (transposed_gemm, batched_gemm, rmsnorm, layernorm, softmax, unit_rows, logsumexp,
              reduction)
}  # fmt: skip
