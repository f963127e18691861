"""Sizes in, sparse attention out: listed blocks, blocks chosen by score, permuted and sampled keys.

What is chosen is computed where the paper computes it: a rank is a count of larger elements, a
list of kept blocks is a prefix sum and its inverse, so that no sort is needed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autosched.datasets.workloads.blocks import (
    block_mean,
    block_sum,
    compacted,
    in_blocks,
    inside,
    larger,
    listed_at,
    listed_attention,
    out_of_blocks,
    rank,
)
from autosched.datasets.workloads.define import Draw, Sizes, workload
from autosched.datasets.workloads.masks import DRAWS
from autosched.datasets.workloads.softmax import (
    queries_keys_values,
    scores,
    size,
    softmax_over,
    tensor,
)
from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    abs_,
    cast,
    eq,
    exp,
    input_,
    iota,
    map_,
    max_,
    maximum,
    minimum,
    reaxis,
    rename,
    sum_,
    take,
    where,
)

SMALL = {"b": 2, "h": 2, "t": 19, "d": 5, "dtype": "float32"}


def _qkv(b: int, h: int, t: int, d: int, dtype: str) -> tuple[Node, Node, Node]:
    """Self-attention, every head with its own keys."""
    return queries_keys_values(b, h, h, t, t, d, d, dtype)


# ---- A5: lists of blocks -----------------------------------------------------------------------


@workload(
    "A5", "C R I", draws=DRAWS,
    small={"b": 2, "h": 4, "g": 2, "i": 13, "j": 17, "d": 5, "block": 4, "block_k": 3, "slots": 4,
           "dtype": "float32"},
    shapes={f"{block} {density} {t // 1024}k": {
                "b": 1, "h": 4, "g": g, "i": t, "j": t, "d": 128, "block": block,
                "block_k": block, "slots": int(t // block * density)}
            for block in (64, 128) for density in (0.1, 0.2, 0.5, 0.8, 1)
            for t, g in ((16384, 1), (49152, 4))},
)  # fmt: skip
def block_sparse_attention(
    *, b: int, h: int, g: int, i: int, j: int, d: int, block: int, block_k: int, slots: int,
    mask: str = "full", dtype: str = "bfloat16", **numbers: Any,
) -> Program:  # fmt: skip
    """Attention over the key blocks that a list per head and query block names."""
    q, k, v = queries_keys_values(b, h, g, i, j, d, d, dtype)
    dims = {"h": h, "m": -(-i // block)}
    listed = input_("listed", {**dims, "n": slots}, "int32")
    counts = input_("counts", dims, "int32")
    o, lse = listed_attention(q, k, v, listed, counts, block, block_k, mask, **numbers)
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


def _edges(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Edges of blocks none of which is empty or larger than `largest`."""
    even = np.linspace(0, sizes["t"], sizes["blocks"] + 1)
    play = min(sizes["largest"] - even[1], even[1] - 1) / 2
    moved = even + rng.uniform(-play, play, shape)
    return np.asarray([0, *np.round(moved[1:-1]), sizes["t"]], np.int32)


@workload(
    "A5", "C R I",
    small={"b": 2, "h": 2, "t": 21, "d": 5, "blocks": 4, "largest": 8, "slots": 3,
           "dtype": "float32"},
    shapes={f"mean {mean} 16k": {"b": 1, "h": 4, "t": 16384, "d": 128, "blocks": 16384 // mean,
                                 "largest": 2 * mean, "slots": 16384 // mean // 5}
            for mean in (128, 256, 512, 1024)},
    draws={"edges": _edges,
           "counts": DRAWS["counts"],
           "listed": lambda rng, shape, s: np.argsort(rng.random((*shape[:2], s["blocks"])),
                                                      axis=-1)[..., : s["slots"]]},
)  # fmt: skip
def variable_block_attention(
    *, b: int, h: int, t: int, d: int, blocks: int, largest: int, slots: int,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """The same where blocks differ in size: `edges` has their starts and the end."""
    q, k, v = _qkv(b, h, t, d, dtype)
    edges = input_("edges", {"z": blocks + 1}, "int32")
    listed = input_("listed", {"h": h, "m": blocks, "n": slots}, "int32")
    first = take(edges, "z", listed)
    at = first + iota("u", largest)
    seen = (at < take(edges, "z", listed + 1)) & (
        iota("n", slots) < input_("counts", {"h": h, "m": blocks}, "int32")
    )
    start = take(edges, "z", iota("m", blocks))
    rows, keys = minimum(start + iota("w", largest), t - 1), minimum(at, t - 1)
    s = sum_("d", take(q, "i", rows) * take(k, "j", keys)) * d**-0.5
    o, _ = softmax_over((where(seen, s, -math.inf), take(v, "j", keys), ("n", "u")))
    own = sum_("z", cast(edges <= iota("i", t), "int32")) - 1
    o = take(take(o, "m", own), "w", iota("i", t) - take(edges, "z", own))
    return algebra(o=("b h i e", cast(o, dtype)))


# ---- B1: blocks chosen by antidiagonal scores --------------------------------------------------


@workload(
    "B1", "C R M I P",
    small={"b": 2, "h": 2, "t": 30, "d": 5, "stride": 2, "block": 4, "tau": 0.6,
           "dtype": "float32"},
    shapes={f"{t}k s{s}": {"b": 1, "h": 32, "t": t * 1024, "d": 128, "stride": s, "block": 128,
                           "tau": 0.9} for t in (8, 32, 128, 256) for s in (8, 16)},
)  # fmt: skip
def xattention(
    *, b: int, h: int, t: int, d: int, stride: int, block: int, tau: float,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """Block scores by one strided product; per row the fewest blocks that hold a share tau of
    them, the first and the diagonal one; causal attention over these. `stride` divides t, block."""
    q, k, v = _qkv(b, h, t, d, dtype)
    x, y, u = iota("x", t // stride), iota("y", t // stride), iota("u", stride)
    qx = reaxis(q, {"i": x * stride + (stride - 1 - u)})
    s = sum_(("u", "d"), qx * reaxis(k, {"j": y * stride + u})) / (math.sqrt(d) * stride)
    s = where(x >= y, s, -math.inf)
    p = exp(s - max_("y", s))
    p = p / sum_("y", p)
    a = block_sum(block_sum(p, "x", block // stride, "m"), "y", block // stride, "y")
    above = sum_("z", where(larger(a, "y", "z"), rename(a, {"y": "z"}), 0.0))
    m, n = iota("m", -(-t // block)), iota("y", -(-t // block))
    keep = (above < tau * sum_("y", a)) | eq(n, 0) | eq(n, m)
    listed, counts = compacted(keep, "y", "n")
    o, lse = listed_attention(q, k, v, listed, counts, block, block, "causal")
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse), keep=("b h m y", keep))


# ---- B2: sparse and linear branches ------------------------------------------------------------


def feature(x: Node, kind: str = "softmax") -> Node:
    """The positive features of the linear branch."""
    if kind == "softmax":
        p = exp(x - max_("d", x))
        return p / sum_("d", p)
    return maximum(x, 0.0) if kind == "relu" else where(x > 0.0, x + 1.0, exp(x))  # elu + 1


def _block_ranks(q: Node, k: Node, block: int, block_k: int) -> Node:
    """The rank of key block y for query block m by the product of their means, keys centred."""
    centred = k - sum_("j", k) / float(size(k, "j"))
    pooled = sum_("d", block_mean(q, "i", block, "m") * block_mean(centred, "j", block_k, "y"))
    return rank(pooled, "y")


def kept_blocks(q: Node, k: Node, block: int, block_k: int, top: int) -> Node:
    """Whether key block y is among the `top` best of query block m."""
    return _block_ranks(q, k, block, block_k) < top


def _linear(q: Node, state: Node, total: Node) -> Node:
    return sum_("d", q * state) / (1e-5 + sum_("d", q * total))


SLA_SMALL = {**SMALL, "block": 4, "block_k": 3, "top": 2}
SLA_SHAPE = {"b": 2, "h": 16, "t": 32760, "d": 128, "block": 128, "block_k": 64, "top": 26}


@workload("B2", "C R I P", small=SLA_SMALL, shapes={"wan 95%": SLA_SHAPE})
def sparse_linear_attention(
    *, b: int, h: int, t: int, d: int, block: int, block_k: int, top: int, kind: str = "softmax",
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """Softmax over the `top` best key blocks, plus a projection of linear attention over all."""
    q, k, v = _qkv(b, h, t, d, dtype)
    place = _block_ranks(q, k, block, block_k)
    listed = listed_at(place, place < top, "y", "n", top)
    sparse, _ = listed_attention(q, k, v, listed, None, block, block_k)
    fq, fk = feature(q, kind), feature(k, kind)
    linear = _linear(fq, sum_("j", fk * v), sum_("j", fk))
    proj = tensor("proj", dtype, "weight", e=d, f=d)
    o = sparse + rename(sum_("e", linear * proj), {"f": "e"})
    return algebra(o=("b h i e", cast(o, dtype)), listed=("b h m n", listed))


@workload("B2", "C R I P", small={**SLA_SMALL, "skip": 2},
          shapes={"wan 95%": {**SLA_SHAPE, "skip": 51}})  # fmt: skip
def sparse_linear_marginal(
    *, b: int, h: int, t: int, d: int, block: int, block_k: int, top: int, skip: int,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """The same with a linear branch over the blocks between the `top` best and the `skip` worst."""
    q, k, v = _qkv(b, h, t, d, dtype)
    place = _block_ranks(q, k, block, block_k)
    listed = listed_at(place, place < top, "y", "n", top)
    sparse, _ = listed_attention(q, k, v, listed, None, block, block_k)
    fk, blocks = feature(k), -(-t // block_k)
    middle = cast((place >= top) & (place < blocks - skip), "float32")
    state = sum_("y", middle * block_sum(fk * v, "j", block_k, "y"))
    total = sum_("y", middle * block_sum(fk, "j", block_k, "y"))
    fq = in_blocks(feature(q), "i", block, "m", "w")
    linear = out_of_blocks(_linear(fq, state, total), "m", "w", "i", t)
    proj = tensor("proj", dtype, "weight", e=d, f=d)
    o = sparse + rename(sum_("e", linear * proj), {"f": "e"})
    return algebra(o=("b h i e", cast(o, dtype)))


# ---- B3: a permutation of the token grid per head ----------------------------------------------

ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def _grid_order(heads: int, sizes: Sizes) -> np.ndarray:
    """Per head the tokens of the (frame, height, width) grid in one of its six axis orders."""
    grid = np.arange(sizes["f"] * sizes["y"] * sizes["x"]).reshape(
        sizes["f"], sizes["y"], sizes["x"]
    )
    return np.array([grid.transpose(ORDERS[n % 6]).ravel() for n in range(heads)])


PARO: dict[str, Draw] = {
    "order": lambda _, shape, s: _grid_order(shape[0], s),
    "place": lambda _, shape, s: np.argsort(_grid_order(shape[0], s), axis=-1),
    "allowed": lambda rng, shape, _: DRAWS["allowed"](rng, shape, {"density": 0.25}),
}
PARO_SMALL = {"b": 1, "h": 6, "f": 2, "y": 3, "x": 4, "d": 5, "block": 5, "dtype": "float32"}
PARO_SHAPES = {
    "cogvideox": {"b": 1, "h": 48, "f": 13, "y": 30, "x": 45, "d": 64, "block": 64},
    "wan": {"b": 1, "h": 12, "f": 21, "y": 30, "x": 52, "d": 128, "block": 64},
}


def _reordered(
    b: int, h: int, t: int, d: int, block: int, dtype: str
) -> tuple[Node, Node, Node, Node]:
    """q, k, v in the order of their head, and which blocks may meet there."""
    q, k, v = _qkv(b, h, t, d, dtype)
    order = input_("order", {"h": h, "i": t}, "int32")
    rows = -(-t // block)
    allowed = input_("allowed", {"h": h, "m": rows, "n": rows}, "bool")
    seen = reaxis(allowed, {"m": iota("i", t) // block, "n": iota("j", t) // block})
    by_key = rename(order, {"i": "j"})
    return take(q, "i", order), take(k, "j", by_key), take(v, "j", by_key), seen


@workload("B3", "C R I P", small=PARO_SMALL, shapes=PARO_SHAPES, draws=PARO)
def permuted_attention(
    *, b: int, h: int, f: int, y: int, x: int, d: int, block: int, dtype: str = "bfloat16"
) -> Program:
    """Block-masked attention in an order of the token grid that each head has for itself."""
    q, k, v, seen = _reordered(b, h, f * y * x, d, block, dtype)
    o, _ = softmax_over((where(seen, scores(q, k), -math.inf), v, "j"))
    o = take(o, "i", input_("place", {"h": h, "i": f * y * x}, "int32"))
    return algebra(o=("b h i e", cast(o, dtype)))


def _int8(x: Node, axis: str, block: int, channels: str) -> tuple[Node, Node]:
    """Codes of a tensor and the scale of each of its blocks: the greatest element is 127."""
    greatest = max_(channels, abs_(x))
    scale = max_("at", in_blocks(greatest, axis, block, "blk", "at")) / 127.0
    at = reaxis(scale, {"blk": iota(axis, size(x, axis)) // block})
    return cast(map_("round", x / at), "int8"), at


@workload("B3", "C R I P Q", small=PARO_SMALL, shapes=PARO_SHAPES, draws=PARO)
def permuted_attention_int8(
    *, b: int, h: int, f: int, y: int, x: int, d: int, block: int, dtype: str = "bfloat16"
) -> Program:
    """The same with both products in int8: a scale per block of q, k and v, and 1/127 of p."""
    t = f * y * x
    q, k, v, seen = _reordered(b, h, t, d, block, dtype)
    (q8, sq), (k8, sk), (v8, sv) = (
        _int8(x, a, block, c) for x, a, c in ((q, "i", "d"), (k, "j", "d"), (v, "j", "e"))
    )
    s = cast(sum_("d", cast(q8, "int32") * cast(k8, "int32")), "float32") * sq * sk * d**-0.5
    s = where(seen, s, -math.inf)
    p = exp(s - max_("j", s))
    p8 = cast(map_("round", p * 127.0), "int8")
    pn, vn = (cast(in_blocks(z, "j", block, "n", "u"), "int32") for z in (p8, v8))
    products = sum_("u", where(inside(t, block, "n", "u"), pn, 0) * vn)
    scale = reaxis(sv, {"j": iota("n", -(-t // block)) * block}) / 127.0
    o = sum_("n", cast(products, "float32") * scale) / sum_("j", p)
    o = take(o, "i", input_("place", {"h": h, "i": t}, "int32"))
    return algebra(o=("b h i e", cast(o, dtype)))
