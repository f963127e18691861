"""Sizes in, softmax attention out: the dense family, every static mask, caches and packings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from autosched.datasets.workloads.define import Sizes, workload
from autosched.datasets.workloads.masks import DRAWS, MASKS, area, cuts, flops
from autosched.datasets.workloads.softmax import (
    grouped,
    hidden,
    queries_keys_values,
    scores,
    softmax_over,
    tensor,
    ungrouped,
)
from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.ops import cast, eq, exp, input_, iota, reaxis, rename, sum_, take, tanh, where

# ---- A1, A2, A4, A6: dense attention and its masks ---------------------------------------------

SMALL = {"b": 2, "h": 4, "g": 2, "i": 9, "j": 13, "d": 5, "e": 7, "dtype": "float32"}


def heads(b: int, h: int, g: int, t: int, d: int, **more: Any) -> dict[str, Any]:
    """Sizes of self-attention over t tokens, values as wide as keys."""
    return {"b": b, "h": h, "g": g, "i": t, "j": t, "d": d, "e": d, **more}


def _longca(t: int, mask: str, **numbers: int) -> dict[str, Any]:
    return heads(1, 64, 8, t, 128, mask=mask, **numbers)


DENSE = {
    "causal 4k": heads(4, 32, 32, 4096, 128, mask="causal"),
    "full 1k d64": heads(8, 16, 16, 1024, 64),
    "causal 4k d256": heads(2, 16, 16, 4096, 256, mask="causal"),
    "gqa 16k": heads(1, 64, 8, 16384, 128, mask="causal"),
    "gqa 32k": heads(1, 64, 8, 32768, 128, mask="causal"),
}
DECODE = {
    "decode 8k": heads(16, 32, 8, 8192, 128, i=1),
    "decode 128k": heads(1, 32, 8, 131072, 128, i=1),
}
LONGCA = {
    f"{mask} {t}k": _longca(t * 1024, mask, **numbers)
    for t in (8, 16, 32)
    for mask, numbers in {
        "full": {}, "causal": {}, "full_document": {"docs": 12}, "causal_document": {"docs": 12},
        "share_question": {"docs": 12}, "causal_blockwise": {"docs": 12},
        "prefix_lm_causal": {"prefix": 1024}, "prefix_lm_document": {"docs": 12, "prefix": 1024},
        "sliding_window": {"window": 1024}, "sliding_window_causal": {"window": 1024},
        "global_sliding_window": {"window": 1024},
        "block_causal_document": {"docs": 12, "block": 1024},
    }.items()
}  # fmt: skip
LONGCA["full_document_long 32k"] = _longca(32768, "full_document", docs=3)
LONGCA["causal_document_long 32k"] = _longca(32768, "causal_document", docs=3)
SPARSE = {
    f"blocks {size} {density} 48k": heads(
        1, 4, 4, 49152, 128, mask="blocks", block=size, density=density
    )
    for size in (64, 128)
    for density in (0.1, 0.2, 0.5)
} | {
    f"variable blocks {mean} 16k": heads(
        1, 4, 4, 16384, 128, mask="variable_blocks", blocks=16384 // mean, density=0.2
    )
    for mean in (256, 1024)
}
SPARSE["head mix 48k"] = heads(
    1, 4, 4, 49152, 128, mask="per_head", block=128, slots=64, sinks=128, window=1024
)
SHAPES = {
    **DENSE, **DECODE, **LONGCA, **SPARSE,
    **{f"sqa {h}/{g} 128k": heads(1, h, g, 131072, 128, mask="causal")
       for h, g in ((16, 16), (16, 4), (8, 4), (8, 8), (4, 4), (4, 1))},
    "mla prefill 8k": heads(1, 32, 32, 8192, 192, e=128, mask="causal"),
    "cross 77": heads(2, 16, 16, 4096, 64, j=77),
    "window 64k": heads(1, 16, 16, 65536, 128, mask="sliding_window_causal", window=1024),
    "own block 8k": heads(1, 16, 16, 8192, 128, mask="segment_causal", block=1024),
    "sink local 16k": heads(1, 32, 8, 16384, 128, mask="sink_local", sinks=128, window=1024),
}  # fmt: skip


@workload("A1 A2 A4 A5 A6", "C R M I", small=SMALL, shapes=SHAPES, draws=DRAWS)
def attention(
    *, b: int, h: int, g: int, i: int, j: int, d: int, e: int, mask: str = "full",
    dtype: str = "bfloat16", **numbers: Any,
) -> Program:  # fmt: skip
    """softmax(q k / sqrt d + mask) v with grouped heads, and the log-sum-exp of each row."""
    q, k, v = queries_keys_values(b, h, g, i, j, d, e, dtype)
    o, lse = softmax_over((scores(q, k, mask, **numbers), v, "j"))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


def attention_flops(sizes: Sizes, arrays: Mapping[str, Any], backward: bool = False) -> float:
    """FLOPs of `attention` on the pairs that its mask lets through, for the arrays of a mask."""
    mask = sizes.get("mask", "full")
    numbers = {"heads": sizes["h"], **{n: sizes[n] for n in MASKS[mask].parameters if n in sizes}}
    seen = area(mask, sizes["i"], sizes["j"], arrays, **numbers)
    return flops(seen, sizes["b"], sizes["h"], sizes["d"], sizes["e"], backward)


@workload("A1 A4 A5 A6", "C R M I", small=SMALL, shapes={**DENSE, **LONGCA, **SPARSE}, draws=DRAWS)
def attention_backward(
    *, b: int, h: int, g: int, i: int, j: int, d: int, e: int, mask: str = "full",
    dtype: str = "bfloat16", **numbers: Any,
) -> Program:  # fmt: skip
    """Gradients of attention by q, k and v, given that of its output."""
    q, k, v = queries_keys_values(b, h, g, i, j, d, e, dtype)
    do = tensor("do", dtype, b=b, h=h, i=i, e=e)
    s = scores(q, k, mask, **numbers)
    o, lse = softmax_over((s, v, "j"))
    p = exp(s - lse)
    ds = p * (sum_("e", do * v) - sum_("e", do * o)) * d**-0.5
    dk, dv = ungrouped(sum_("i", ds * q), g), ungrouped(sum_("i", p * do), g)
    return algebra(dq=("b h i d", cast(sum_("j", ds * k), dtype)),
                   dk=("b g j d", cast(dk, dtype)), dv=("b g j e", cast(dv, dtype)))  # fmt: skip


@workload(
    "A2", "C R M", small={"b": 2, "t": 9, "c": 10, "h": 4, "g": 2, "d": 3, "dtype": "float32"},
    shapes={
        f"{name} {t}": {"b": 1, "t": t, "c": 256, "h": h, "g": g, "d": 16}
        for name, h, g in (("mha", 16, 16), ("gqa", 16, 4), ("sqa", 8, 4), ("ssqa", 8, 8),
                           ("xsqa", 4, 4), ("xsmqa", 4, 1))
        for t in (1024, 32768)
    },
)  # fmt: skip
def sparse_query_attention(
    *, b: int, t: int, c: int, h: int, g: int, d: int, dtype: str = "bfloat16"
) -> Program:
    """A causal layer whose query heads are fewer than c/d: projections c to h d and back."""
    x = tensor("x", dtype, b=b, i=t, c=c)
    q = sum_("c", x * tensor("wq", dtype, "weight", c=c, h=h, d=d))
    k = rename(sum_("c", x * tensor("wk", dtype, "weight", c=c, g=g, d=d)), {"i": "j"})
    v = rename(sum_("c", x * tensor("wv", dtype, "weight", c=c, g=g, d=d)), {"i": "j", "d": "e"})
    o, _ = softmax_over((scores(q, grouped(k, h), "causal"), grouped(v, h), "j"))
    y = sum_(("h", "e"), o * tensor("wo", dtype, "weight", h=h, e=d, n=c))
    return algebra(y=("b i n", cast(y, dtype)))


# ---- A3: latent keys and values ----------------------------------------------------------------

LATENT = {"b": 2, "h": 3, "i": 5, "j": 9, "n": 4, "u": 3, "r": 7, "e": 5, "dtype": "float32"}
_MLA = {"n": 128, "u": 64, "r": 512, "e": 128}


def _latent(
    b: int, h: int, i: int, j: int, n: int, u: int, r: int, e: int, dtype: str
) -> tuple[Node, ...]:
    """Queries without and with position, the latent c and the shared rotary key, projections."""
    return (
        tensor("qn", dtype, b=b, h=h, i=i, n=n), tensor("qr", dtype, b=b, h=h, i=i, u=u),
        tensor("c", dtype, b=b, j=j, r=r), tensor("kr", dtype, b=b, j=j, u=u),
        tensor("wk", dtype, "weight", h=h, n=n, r=r), tensor("wv", dtype, "weight", h=h, e=e, r=r),
    )  # fmt: skip


@workload(
    "A3", "C R M", small=LATENT,
    shapes={"prefill 8k": {"b": 1, "h": 32, "i": 8192, "j": 8192, **_MLA},
            "prefill 8k h128": {"b": 1, "h": 128, "i": 8192, "j": 8192, **_MLA}},
)  # fmt: skip
def mla_prefill(
    *, b: int, h: int, i: int, j: int, n: int, u: int, r: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """Causal attention over keys [W_uk c ; k_rope] and values W_uv c."""
    qn, qr, c, kr, wk, wv = _latent(b, h, i, j, n, u, r, e, dtype)
    s = (sum_("n", qn * sum_("r", wk * c)) + sum_("u", qr * kr)) * (n + u) ** -0.5
    o, lse = softmax_over((hidden(s, "causal"), sum_("r", wv * c), "j"))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


@workload(
    "A3", "C R M", small=LATENT,
    shapes={"absorbed 32k": {"b": 32, "h": 32, "i": 1, "j": 32768, **_MLA},
            "absorbed 1m": {"b": 1, "h": 32, "i": 1, "j": 1 << 20, **_MLA}},
)  # fmt: skip
def mla_absorbed(
    *, b: int, h: int, i: int, j: int, n: int, u: int, r: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """The same from the latent cache alone: W_uk goes to the query, W_uv behind the softmax."""
    qn, qr, c, kr, wk, wv = _latent(b, h, i, j, n, u, r, e, dtype)
    s = (sum_("r", sum_("n", qn * wk) * c) + sum_("u", qr * kr)) * (n + u) ** -0.5
    o, lse = softmax_over((hidden(s, "causal"), c, "j"))
    return algebra(o=("b h i e", cast(sum_("r", o * wv), dtype)), lse=("b h i", lse))


@workload(
    "A3", "C R", small={"b": 2, "h": 3, "i": 1, "j": 11, "d": 9, "e": 7, "dtype": "float32"},
    shapes={f"decode {name}": {"b": b, "h": h, "i": 1, "j": j, "d": 576, "e": 512}
            for name, b, h, j in (("32k", 32, 32, 32768), ("32k h128", 32, 128, 32768),
                                  ("1m", 1, 32, 1 << 20))},
)  # fmt: skip
def mla_decode(
    *, b: int, h: int, i: int, j: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """One shared key head whose first e channels are the value; 192 = 128 + 64 sets the scale."""
    q, cache = tensor("q", dtype, b=b, h=h, i=i, d=d), tensor("cache", dtype, b=b, j=j, d=d)
    s = sum_("d", q * cache) * (128 + 64) ** -0.5
    o, lse = softmax_over((s, reaxis(cache, {"d": iota("e", e)}), "j"))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


# ---- terms on the scores -----------------------------------------------------------------------


@workload("A1", "C R M", small={**SMALL, "cap": 1.5},
          shapes={"causal 4k": heads(1, 32, 16, 4096, 128, cap=50.0)})  # fmt: skip
def softcap_attention(
    *, b: int, h: int, g: int, i: int, j: int, d: int, e: int, cap: float, dtype: str = "bfloat16"
) -> Program:
    """Causal attention with scores bent into (-cap, cap)."""
    q, k, v = queries_keys_values(b, h, g, i, j, d, e, dtype)
    s = cap * tanh(scores(q, k) / cap)
    o, lse = softmax_over((hidden(s, "causal"), v, "j"))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


@workload("A1", "C R M", small=SMALL, shapes=DENSE)
def alibi_attention(
    *, b: int, h: int, g: int, i: int, j: int, d: int, e: int, dtype: str = "bfloat16",
    mask: str = "causal",
) -> Program:  # fmt: skip
    """Scores less a slope per head times the distance of query and key."""
    q, k, v = queries_keys_values(b, h, g, i, j, d, e, dtype)
    ahead = cast(iota("j", j) - iota("i", i) - (j - i), "float32")
    s = scores(q, k) + input_("slope", {"h": h}) * ahead
    o, lse = softmax_over((hidden(s, mask), v, "j"))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


@workload("A1", "C R", small=SMALL, shapes={"full 1k": heads(8, 16, 16, 1024, 64)})
def bias_attention(
    *, b: int, h: int, g: int, i: int, j: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """Scores plus a tensor."""
    q, k, v = queries_keys_values(b, h, g, i, j, d, e, dtype)
    o, lse = softmax_over((scores(q, k) + tensor("bias", dtype, h=h, i=i, j=j), v, "j"))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


@workload(
    "A1 A6", "C R M", small={**SMALL, "mask": "sliding_window_causal", "window": 3}, draws=DRAWS,
    shapes={"window 8k": heads(1, 64, 8, 8192, 64, mask="sliding_window_causal", window=128)},
)  # fmt: skip
def sink_attention(
    *, b: int, h: int, g: int, i: int, j: int, d: int, e: int, mask: str = "causal",
    dtype: str = "bfloat16", **numbers: Any,
) -> Program:  # fmt: skip
    """A learned logit per head takes part in the softmax and has no value."""
    q, k, v = queries_keys_values(b, h, g, i, j, d, e, dtype)
    sink = tensor("sink", "float32", "weight", h=h)
    o, lse = softmax_over((scores(q, k, mask, **numbers), v, "j"), (sink, None, ""))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


# ---- caches and packings -----------------------------------------------------------------------


def _pages(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Pages that no two entries share, in no order."""
    return rng.permutation(sizes["pages"])[: math.prod(shape)].reshape(shape)


@workload(
    "A1 A5", "C R M I",
    small={"b": 3, "h": 4, "g": 2, "j": 10, "d": 5, "e": 7, "page": 4, "pages": 11,
           "dtype": "float32"},
    shapes={"decode 8k": {"b": 16, "h": 32, "g": 8, "j": 8192, "d": 128, "e": 128, "page": 64,
                          "pages": 2560}},
    draws={"table": _pages, "length": lambda rng, shape, s: rng.integers(1, s["j"] + 1, shape)},
)  # fmt: skip
def paged_attention(
    *, b: int, h: int, g: int, j: int, d: int, e: int, page: int, pages: int,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """One new query per sequence over keys in pages that a table lists; lengths differ."""
    at, table = iota("j", j), input_("table", {"b": b, "m": -(-j // page)}, "int32")
    listed = reaxis(table, {"m": at // page})
    q = tensor("q", dtype, b=b, h=h, d=d)
    k = take(tensor("k", dtype, x=pages, u=page, g=g, d=d), "x", listed)
    v = take(tensor("v", dtype, x=pages, u=page, g=g, e=e), "x", listed)
    k, v = (grouped(reaxis(x, {"u": at % page}), h) for x in (k, v))
    s = where(at < input_("length", {"b": b}, "int32"), scores(q, k), -math.inf)
    o, lse = softmax_over((s, v, "j"))
    return algebra(o=("b h e", cast(o, dtype)), lse=("b h", lse))


@workload(
    "A1 A4", "C R M I",
    small={"t": 17, "h": 4, "g": 2, "d": 5, "e": 7, "docs": 3, "dtype": "float32"},
    shapes={"pile 12k": {"t": 12288, "h": 64, "g": 8, "d": 128, "e": 128, "docs": 12},
            "prolong 64k": {"t": 65536, "h": 64, "g": 8, "d": 128, "e": 128, "docs": 8}},
    draws={"starts": lambda _, shape, s: cuts(s["t"], s["docs"])},
)  # fmt: skip
def packed_attention(
    *, t: int, h: int, g: int, d: int, e: int, docs: int, causal: bool = True,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """Sequences of different lengths behind each other; `starts` has their edges (cu_seqlens)."""
    q = tensor("q", dtype, i=t, h=h, d=d)
    k, v = tensor("k", dtype, j=t, g=g, d=d), tensor("v", dtype, j=t, g=g, e=e)
    edges = input_("starts", {"n": docs + 1}, "int32")
    i, j = iota("i", t), iota("j", t)
    of_i, of_j = (sum_("n", cast(edges <= at, "int32")) for at in (i, j))
    seen = eq(of_i, of_j) & (i >= j) if causal else eq(of_i, of_j)
    s = where(seen, scores(q, grouped(k, h)), -math.inf)
    o, lse = softmax_over((s, grouped(v, h), "j"))
    return algebra(o=("i h e", cast(o, dtype)), lse=("h i", lse))


@workload(
    "A1", "C R M", small={**SMALL, "i": 9, "j": 9, "x": 6},
    shapes={"prefix 4k": heads(2, 16, 16, 1024, 128, x=4096)},
)  # fmt: skip
def two_key_sets(
    *, b: int, h: int, g: int, i: int, j: int, d: int, e: int, x: int, dtype: str = "bfloat16"
) -> Program:
    """One softmax over a prefix that all see and the queries' own keys, causal."""
    q, k, v = queries_keys_values(b, h, g, i, j, d, e, dtype)
    early, worth = tensor("k0", dtype, g=g, x=x, d=d), tensor("v0", dtype, g=g, x=x, e=e)
    prefix = (scores(q, grouped(early, h)), grouped(worth, h), "x")
    o, lse = softmax_over(prefix, (scores(q, k, "causal"), v, "j"))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


# ---- A7: factorised window attention -----------------------------------------------------------


@workload(
    "A7", "C R I",
    small={"b": 2, "n": 12, "h": 2, "d": 3, "window": 3, "dilation": 2, "stride": 4, "c": 5,
           "dtype": "float32"},
    shapes={f"stage {n}": {"b": 64, "n": n, "h": h, "d": 32, "window": 7, "dilation": n // 7,
                           "stride": n // 7, "c": 32 * (h + 1)}
            for n, h in ((56, 1), (28, 3), (14, 7), (7, 15))},
)  # fmt: skip
def factorised_window_attention(
    *, b: int, n: int, h: int, d: int, window: int, dilation: int, stride: int, c: int,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """Head 0 of an n x n image sees keys that a strided convolution has reduced, the h others
    their own dilated window; then the projection of all heads."""
    q0, x0 = (tensor(name, dtype, b=b, y=n, x=n, d=d) for name in ("q0", "x0"))
    small, u, w = n // stride, iota("u", stride), iota("w", stride)
    patch = reaxis(x0, {"y": iota("ky", small) * stride + u, "x": iota("kx", small) * stride + w,
                        "d": iota("f", d)})  # fmt: skip
    k0, v0 = (sum_(("u", "w", "f"), patch * tensor(name, dtype, "weight", u=stride, w=stride, f=d,
                                                   d=d)) for name in ("wk", "wv"))  # fmt: skip
    far, _ = softmax_over((scores(q0, k0), rename(v0, {"d": "e"}), ("ky", "kx")))

    span = window * dilation
    q, k, v = (tensor(name, dtype, b=b, h=h, y=n, x=n, d=d) for name in ("q", "k", "v"))
    q, k, v = (
        reaxis(x, {a: w // dilation * span + w % dilation + iota(side + a, window) * dilation
                   for a in ("y", "x") for w in (iota("w" + a, n // window),)})
        for x, side in ((q, "q"), (k, "k"), (v, "k"))
    )  # fmt: skip
    near, _ = softmax_over((scores(q, k), rename(v, {"d": "e"}), ("ky", "kx")))
    at = {a: iota(a, n) for a in ("y", "x")}
    back = {"w" + a: at[a] // span * dilation + at[a] % dilation for a in at}
    back |= {"q" + a: at[a] % span // dilation for a in at}
    out = sum_("e", far * tensor("w0", dtype, "weight", e=d, c=c)) + sum_(
        ("h", "e"), reaxis(near, back) * tensor("w1", dtype, "weight", h=h, e=d, c=c)
    )
    return algebra(o=("b y x c", cast(out, dtype)))
