"""Sizes in, gradients of block-sparse attention out, along lists of both sides.

Queries gather what the lists of their block name; keys what the transposed lists do: both come
from one table of kept blocks, so that no product visits a block which is not kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autosched.datasets.workloads.blocks import (
    compacted,
    in_blocks,
    listed_attention,
    out_of_blocks,
)
from autosched.datasets.workloads.define import workload
from autosched.datasets.workloads.masks import DRAWS
from autosched.datasets.workloads.softmax import queries_keys_values, size, tensor, ungrouped
from autosched.datasets.workloads.sparse import SLA_SHAPE, SLA_SMALL, feature, kept_blocks
from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.ops import cast, exp, input_, iota, rename, sum_, take, where


@dataclass(frozen=True)
class Gradients:
    q: Node  # [..., i, d]
    k: Node  # [..., j, d], of query heads
    v: Node  # [..., j, e]


def listed_gradients(
    q: Node, k: Node, v: Node, do: Node, keep: Node, rows: int, columns: int
) -> Gradients:
    """Gradients of softmax over the kept blocks keep[..., m, y], given do[..., i, e]."""
    i, j, scale = size(q, "i"), size(k, "j"), size(q, "d") ** -0.5
    listed, counts = compacted(keep, "y", "n")
    o, lse = listed_attention(q, k, v, listed, counts, rows, columns)
    delta = sum_("e", do * o)

    def pair(
        qb: Node, kb: Node, vb: Node, dob: Node, total: Node, change: Node, seen: Node
    ) -> tuple[Node, Node]:
        """Weights and gradients of scores of blocks that meet."""
        p = exp(where(seen, sum_("d", qb * kb) * scale - total, -math.inf))
        return p, p * (sum_("e", dob * vb) - change) * scale

    def blocks_of_rows(outer: str) -> tuple[Node, ...]:
        return tuple(in_blocks(x, "i", rows, outer, "w") for x in (q, do, lse, delta))

    def blocks_of_keys(outer: str) -> tuple[Node, ...]:
        return tuple(in_blocks(x, "j", columns, outer, "u") for x in (k, v))

    qm, dom, total, change = blocks_of_rows("m")
    kn, vn = (take(x, "y", listed) for x in blocks_of_keys("y"))
    seen = (iota("n", size(keep, "y")) < counts) & (listed * columns + iota("u", columns) < j)
    _, ds = pair(qm, kn, vn, dom, total, change, seen)
    dq = out_of_blocks(sum_(("n", "u"), ds * kn), "m", "w", "i", i)

    listed, counts = compacted(keep, "m", "n")
    ky, vy = blocks_of_keys("y")
    qn, don, total, change = (take(x, "m", listed) for x in blocks_of_rows("m"))
    seen = (iota("n", size(keep, "m")) < counts) & (listed * rows + iota("w", rows) < i)
    p, ds = pair(qn, ky, vy, don, total, change, seen)
    dk, dv = (
        out_of_blocks(sum_(("n", "w"), x), "y", "u", "j", j) for x in (ds * qn, p * don)
    )
    return Gradients(dq, dk, dv)


@workload(
    "A5", "C R I", draws=DRAWS,
    small={"b": 2, "h": 4, "g": 2, "t": 14, "d": 5, "block": 4, "dtype": "float32"},
    shapes={f"{block} {density} 48k": {"b": 1, "h": 4, "g": 4, "t": 49152, "d": 128,
                                       "block": block, "density": density}
            for block in (64, 128) for density in (0.1, 0.2, 0.5)},
)  # fmt: skip
def block_sparse_backward(
    *, b: int, h: int, g: int, t: int, d: int, block: int, density: float = 0.4,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """Gradients of attention over the blocks that a table per head allows; `density` is that of
    the drawn table, the definition holds for any."""
    q, k, v = queries_keys_values(b, h, g, t, t, d, d, dtype)
    do, rows = tensor("do", dtype, b=b, h=h, i=t, e=d), -(-t // block)
    keep = input_("allowed", {"h": h, "m": rows, "y": rows}, "bool")
    grad = listed_gradients(q, k, v, do, keep, block, block)
    return algebra(dq=("b h i d", cast(grad.q, dtype)),
                   dk=("b g j d", cast(ungrouped(grad.k, g), dtype)),
                   dv=("b g j e", cast(ungrouped(grad.v, g), dtype)))  # fmt: skip


def feature_gradient(f: Node, df: Node) -> Node:
    """The gradient by x of f = softmax of x over channels, given that by f."""
    return f * (df - sum_("d", f * df))


@workload("B2", "C R I P", small=SLA_SMALL, shapes={"wan 95%": SLA_SHAPE})
def sparse_linear_backward(
    *, b: int, h: int, t: int, d: int, block: int, block_k: int, top: int,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """Gradients of both branches of `sparse_linear_attention`; the choice of blocks has none."""
    q, k, v = queries_keys_values(b, h, h, t, t, d, d, dtype)
    do, proj = tensor("do", dtype, b=b, h=h, i=t, e=d), tensor("proj", dtype, "weight", e=d, f=d)
    sparse = listed_gradients(q, k, v, do, kept_blocks(q, k, block, block_k, top), block, block_k)
    fq, fk = feature(q), feature(k)
    state, mass = sum_("j", fk * v), sum_("j", fk)
    weight = 1e-5 + sum_("d", fq * mass)
    linear = sum_("d", fq * state) / weight
    turned = rename(do, {"e": "f"})
    dproj = sum_(("b", "h", "i"), linear * turned)
    top_grad = sum_("f", turned * proj) / weight  # of the linear branch's numerator
    low_grad = -sum_("e", top_grad * linear)  # and of its denominator
    dstate, dmass = sum_("i", fq * top_grad), sum_("i", fq * low_grad)
    dfq = sum_("e", top_grad * state) + low_grad * mass
    dfk = sum_("e", v * dstate) + dmass
    return algebra(
        dq=("b h i d", cast(sparse.q + feature_gradient(fq, dfq), dtype)),
        dk=("b h j d", cast(sparse.k + feature_gradient(fk, dfk), dtype)),
        dv=("b h j e", cast(sparse.v + sum_("d", fk * dstate), dtype)),
        dproj=("e f", cast(dproj, dtype)),
    )
