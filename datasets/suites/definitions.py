"""Sizes of a suite's row in, the algebra of what it computes out.

Values are stored in their dtype and computed in float32. Weights lie as frameworks store them:
"nk" is a torch Linear's (output features first), "kn" a GPT-2 Conv1D's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from autosched.datasets.workloads.dense import EPILOGUES
from autosched.datasets.workloads.masks import allows
from autosched.datasets.workloads.terms import F32, inputs, silu, weights
from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.ops import cast, exp, iota, max_, reaxis, sum_, where

LAYOUTS: Mapping[str, str] = {"nk": "n k", "kn": "k n"}  # axes of a weight as it lies in memory
FP8, FP8_BLOCK = "float8_e4m3", 128


def _product(s: Mapping[str, int], x: Node, dtype: str, layout: str, name: str = "w") -> Node:
    (w,) = weights(s, dtype, **{name: LAYOUTS[layout]})
    return sum_("k", x * w)


def gemm(*, m: int, n: int, k: int, layout: str, dtype: str = "bfloat16") -> Program:
    """y[m, n] = sum(k, x[m, k] w)."""
    s = {"m": m, "n": n, "k": k}
    (x,) = inputs(s, dtype, x="m k")
    return algebra(y=("m n", cast(_product(s, x, dtype, layout), dtype)))


def fused_gemm(
    *, m: int, n: int, k: int, layout: str, epilogue: str = "none", bias: bool = False,
    residual: bool = False, dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """y = f(x w + bias) + residual; f by its name in EPILOGUES, both terms where asked for."""
    s = {"m": m, "n": n, "k": k}
    (x,) = inputs(s, dtype, x="m k")
    y = _product(s, x, dtype, layout)
    if bias:
        (b,) = weights(s, dtype, bias="n")
        y = y + b
    y = EPILOGUES[epilogue](y)
    if residual:
        (r,) = inputs(s, dtype, residual="m n")
        y = y + r
    return algebra(y=("m n", cast(y, dtype)))


def gated_pair(*, m: int, n: int, k: int, layout: str, dtype: str = "bfloat16") -> Program:
    """y = silu(x gate) (x up): two products that share x."""
    s = {"m": m, "n": n, "k": k}
    (x,) = inputs(s, dtype, x="m k")
    gate, up = (_product(s, x, dtype, layout, name) for name in ("gate", "up"))
    return algebra(y=("m n", cast(silu(gate) * up, dtype)))


def scaled_gemm(
    *, m: int, n: int, k: int, scales: str, layout: str = "nk", dtype: str = "bfloat16"
) -> Program:
    """y = sx sw x w of fp8 operands: one scale a tensor, a row, or a block of 1 x 128 (x) and
    128 x 128 (w) elements."""
    s = {"m": m, "n": n, "k": k}
    (x,) = inputs(s, FP8, x="m k")
    if scales == "block":
        return algebra(y=("m n", cast(_blockwise(s, x, layout), dtype)))
    axes = {"tensor": ("", ""), "row": ("m", "n")}[scales]
    (sx,), (sw,) = inputs(s, F32, sx=axes[0]), weights(s, F32, sw=axes[1])
    return algebra(y=("m n", cast(_product(s, x, FP8, layout) * (sx * sw), dtype)))


def _blockwise(s: Mapping[str, int], x: Node, layout: str) -> Node:
    (w,) = weights(s, FP8, w=LAYOUTS[layout])
    blocks = {"m": s["m"], "nb": -(-s["n"] // FP8_BLOCK), "kb": s["k"] // FP8_BLOCK}
    (sx,), (sw,) = inputs(blocks, F32, sx="m kb"), weights(blocks, F32, sw="nb kb")
    at = {"k": iota("kb", blocks["kb"]) * FP8_BLOCK + iota("kj", FP8_BLOCK)}
    part = sum_("kj", reaxis(x, at) * reaxis(w, at))
    return sum_("kb", part * sx * reaxis(sw, {"nb": iota("n", s["n"]) // FP8_BLOCK}))


def attention(
    *, b: int, h: int, g: int, i: int, j: int, d: int, mask: str = "full",
    dtype: str = "bfloat16", **numbers: Any,
) -> Program:  # fmt: skip
    """softmax(q k / sqrt d + mask) v over q[b,h,i,d], k[b,g,j,d] and v[b,g,j,e]; `numbers` are
    the mask's."""
    s = {"b": b, "h": h, "g": g, "i": i, "j": j, "d": d, "e": d}
    q, k, v = inputs(s, dtype, q="b h i d", k="b g j d", v="b g j e")
    head = {"g": iota("h", h) // (h // g)}
    p = sum_("d", q * reaxis(k, head)) * (1 / math.sqrt(d))
    if mask != "full":
        row = iota("i", i) if i == j else iota("i", i) + (j - i)  # queries are the last keys
        p = where(allows(mask, row, iota("j", j), j, **numbers), p, -math.inf)
    p = exp(p - max_("j", p))
    o = sum_("j", p * reaxis(v, head)) / sum_("j", p)
    return algebra(o=("b h i e", cast(o, dtype)))


DEFINITIONS: Mapping[str, Callable[..., Program]] = {
    f.__name__: f for f in (gemm, fused_gemm, gated_pair, scaled_gemm, attention)
}
