"""Sizes in, attention over fewer keys out: hashed and sampled ones, checkpoints and summaries."""

from __future__ import annotations

import math

import numpy as np

from autosched.datasets.workloads.blocks import in_blocks, inside, out_of_blocks
from autosched.datasets.workloads.define import Draw, Sizes, workload
from autosched.datasets.workloads.softmax import (
    hidden,
    queries_keys_values,
    scores,
    size,
    softmax_over,
    tensor,
)
from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    carry,
    cast,
    const,
    eq,
    exp,
    fold,
    get,
    input_,
    iota,
    map_,
    maximum,
    minimum,
    reaxis,
    rename,
    scan,
    sum_,
    take,
    where,
)

SMALL = {"b": 2, "h": 2, "t": 19, "d": 5, "dtype": "float32"}

# ---- B4: HyperAttention ------------------------------------------------------------------------


def gray_place(code: Node) -> Node:
    """The place of a code of up to 8 bits in the sequence of Gray."""
    for shift in (1, 2, 4):
        code = map_("bitxor", code, map_("shr", code, shift))
    return code


@workload(
    "B4", "C P", small={**SMALL, "bits": 3},
    shapes={f"{t}k": {"b": 1, "h": 32, "t": t * 1024, "d": 64, "bits": 7} for t in (16, 128)},
)  # fmt: skip
def hash_order(
    *, b: int, h: int, t: int, d: int, bits: int, dtype: str = "bfloat16"
) -> Program:
    """The Gray-ordered sign code of random projections of each row, and the stable order by it:
    a counting sort, its inverse found by bisection of the counts, as nothing here scatters."""
    x = tensor("x", dtype, b=b, h=h, i=t, d=d)
    above = sum_("d", x * tensor("proj", dtype, "weight", d=d, r=bits)) > 0.0
    bucket = gray_place(sum_("r", where(above, map_("shl", const(1, "int32"), iota("r", bits)), 0)))
    mine = eq(bucket, iota("c", 1 << bits))
    before = scan("sum", "i", cast(mine, "int32"), exclusive=True)
    count = sum_("i", cast(mine, "int32"))
    base = scan("sum", "c", count, exclusive=True)
    place = sum_("c", where(mine, base + before, 0))

    p = iota("p", t)
    at = sum_("c", cast(base + count <= p, "int32"))  # the bucket that place p falls into
    nth, steps = p - take(base, "c", at), max(1, (t - 1).bit_length())
    found = carry("found", "int32", {"b": b, "h": h, "p": t})
    half = map_("shl", const(1, "int32"), steps - 1 - iota("step", steps))
    further = take(take(before, "c", at), "i", minimum(found + half, t - 1)) <= nth
    step = where((found + half < t) & further, found + half, found)
    order = get(fold("step", [(0, steps)], {"found": (const(0, "int32"), step)}))
    return algebra(bucket=("b h i", bucket), place=("b h i", place), order=("b h p", order))


def _hashed(
    q: Node, k: Node, v: Node, block: int, samples: int, tag: str = ""
) -> tuple[Node, Node]:
    """Keys of the query's own block in sorted order, and sampled ones that stand for all others.

    order_q, order_k: tokens by hash; place_q, place_k: their inverses; sample: token numbers.
    """
    b, h, i, j = (size(x, a) for x, a in ((q, "b"), (q, "h"), (q, "i"), (k, "j")))
    order_q, place_q = (input_(n + tag, {"b": b, "h": h, "i": i}, "int32")
                        for n in ("order_q", "place_q"))  # fmt: skip
    order_k, place_k = (input_(n + tag, {"b": b, "h": h, "j": j}, "int32")
                        for n in ("order_k", "place_k"))  # fmt: skip
    sample = input_("sample" + tag, {"b": b, "h": h, "s": samples}, "int32")
    qm = in_blocks(take(q, "i", order_q), "i", block, "m", "w")
    km, vm = (in_blocks(take(x, "j", order_k), "j", block, "m", "u") for x in (k, v))
    near = where(inside(j, block, "m", "u"), scores(qm, km), -math.inf)
    far = scores(qm, take(k, "j", sample)) + math.log(j / samples)
    met = eq(take(place_k, "j", sample) // block, iota("m", -(-i // block)))
    o, lse = softmax_over(
        (near, vm, "u"), (where(met, -math.inf, far), take(v, "j", sample), "s")
    )
    o, lse = (take(out_of_blocks(x, "m", "w", "i", i), "i", place_q) for x in (o, lse))
    return o, lse


def _order(side: int, node: int, tokens: int, rows: tuple[int, ...]) -> np.ndarray:
    """A permutation per row, the same whenever it is asked for."""
    rng = np.random.default_rng((side, node))
    return np.argsort(rng.random((*rows, tokens)), axis=-1)


def _order_draws(node: int, tag: str) -> dict[str, Draw]:
    def order(side: int, invert: bool) -> Draw:
        def draw(_: np.random.Generator, shape: tuple[int, ...], __: Sizes) -> np.ndarray:
            found = _order(side, node, shape[-1], shape[:-1])
            return np.argsort(found, axis=-1) if invert else found

        return draw

    return {
        "order_q" + tag: order(0, False), "place_q" + tag: order(0, True),
        "order_k" + tag: order(1, False), "place_k" + tag: order(1, True),
        "sample" + tag: lambda rng, shape, s: rng.integers(
            0, s["t"] // (1 << node.bit_length()), shape),
    }  # fmt: skip


@workload(
    "B4", "C R M P", small={**SMALL, "block": 4, "samples": 3},
    shapes={f"{t}k": {"b": 1, "h": 32, "t": t * 1024, "d": 64, "block": 256, "samples": 256}
            for t in (16, 128)},
    draws=_order_draws(0, ""),
)  # fmt: skip
def hyper_attention(
    *, b: int, h: int, t: int, d: int, block: int, samples: int, dtype: str = "bfloat16"
) -> Program:
    """Attention within blocks of hashed order plus sampled keys; orders come from `hash_order`."""
    q, k, v = queries_keys_values(b, h, h, t, t, d, d, dtype)
    o, lse = _hashed(q, k, v, block, samples)
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


def _half(x: Node, axis: str, n: int) -> Node:
    size_ = size(x, axis) // 2
    return reaxis(x, {axis: iota(axis, size_) + n * size_})


def _joined(a: Node, b: Node, axis: str) -> Node:
    """a, then b behind it."""
    n = size(a, axis)
    at = iota(axis, 2 * n)
    return where(at < n, reaxis(a, {axis: minimum(at, n - 1)}),
                 reaxis(b, {axis: maximum(at - n, 0)}))  # fmt: skip


@workload(
    "B4", "C R M P", small={**SMALL, "t": 20, "block": 3, "samples": 2, "exact": 5},
    shapes={"128k": {"b": 1, "h": 32, "t": 131072, "d": 64, "block": 256, "samples": 256,
                     "exact": 4096}},
    draws={k: v for n in range(1, 32) for k, v in _order_draws(n, f"_{n}").items()},
)  # fmt: skip
def hyper_attention_causal(
    *, b: int, h: int, t: int, d: int, block: int, samples: int, exact: int,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """Causal: each half by itself, the later queries over the earlier keys by hash, and so on down
    to `exact` tokens; the power of two of t / exact divides t."""

    def part(q: Node, k: Node, v: Node, node: int) -> tuple[Node, Node]:
        if size(q, "i") <= exact:
            return softmax_over((scores(q, k, "causal"), v, "j"))
        (q0, q1), (k0, k1), (v0, v1) = (
            (_half(x, a, 0), _half(x, a, 1)) for x, a in ((q, "i"), (k, "j"), (v, "j"))
        )
        early, own = part(q0, k0, v0, 2 * node), part(q1, k1, v1, 2 * node + 1)
        back, total = _hashed(q1, k0, v0, block, samples, f"_{node}")
        m = maximum(own[1], total)
        mine, theirs = exp(own[1] - m), exp(total - m)
        late = (own[0] * mine + back * theirs) / (mine + theirs)
        return _joined(early[0], late, "i"), _joined(early[1], m + map_("log", mine + theirs), "i")

    q, k, v = queries_keys_values(b, h, h, t, t, d, d, dtype)
    o, lse = part(q, k, v, 1)
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


# ---- B6, B7: checkpoints and summaries ---------------------------------------------------------


@workload(
    "B6", "C R M", small={**SMALL, "stride": 4},
    shapes={f"{t}k s{s}": {"b": 8, "h": 32, "t": t * 1024, "d": 64, "stride": s}
            for t in (2, 16) for s in (10, 50)},
)  # fmt: skip
def scout_attention(
    *, b: int, h: int, t: int, d: int, stride: int, dtype: str = "bfloat16"
) -> Program:
    """One softmax over the token itself and every stride-th token before it."""
    q, k, v = queries_keys_values(b, h, h, t, t, d, d, dtype)
    at = iota("c", t // stride) * stride + (stride - 1)
    kc, vc = (reaxis(x, {"j": at}) for x in (k, v))
    before = where(at < iota("i", t), scores(q, kc), -math.inf)
    own = scores(q, rename(k, {"j": "i"}))
    o, lse = softmax_over((before, vc, "c"), (own, rename(v, {"j": "i"}), ""))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


@workload(
    "B7", "C R M", small={**SMALL, "segment": 4},
    shapes={"image 12k": {"b": 1, "h": 8, "t": 12288, "d": 64, "segment": 128},
            "text 4k": {"b": 4, "h": 16, "t": 4096, "d": 64, "segment": 64}},
)  # fmt: skip
def combiner_attention(
    *, b: int, h: int, t: int, d: int, segment: int, dtype: str = "bfloat16"
) -> Program:
    """Causal within the segment, and a mean key with an attended value for each earlier one."""
    q, k, v = queries_keys_values(b, h, h, t, t, d, d, dtype)
    full = t // segment  # a segment cut short at the end is nobody's past
    inner = iota("r", full) * segment + iota("u", segment)
    kr, vr = (reaxis(x, {"j": inner}) for x in (k, v))
    k_mean = sum_("u", kr) / float(segment)
    q_mean = sum_("u", reaxis(q, {"i": inner})) / float(segment)
    v_mean, _ = softmax_over((scores(q_mean, kr), vr, "u"))
    far = where(iota("r", full) < iota("i", t) // segment, scores(q, k_mean), -math.inf)
    near = hidden(scores(q, k), "segment_causal", block=segment)
    o, lse = softmax_over((near, v, "j"), (far, v_mean, "r"))
    return algebra(o=("b h i e", cast(o, dtype)), lse=("b h i", lse))


# ---- B8: pairs of keys -------------------------------------------------------------------------


@workload(
    "B8", "C R T", small={"n": 7, "j": 6, "x": 5, "d": 4, "e": 3, "dtype": "float32"},
    shapes={"256": {"n": 256, "j": 256, "x": 256, "d": 32, "e": 32}},
)  # fmt: skip
def tensor_attention(
    *, n: int, j: int, x: int, d: int, e: int, dtype: str = "float32"
) -> Program:
    """One softmax over all pairs (j, x) of keys: logits are sums of triple products."""
    a1, a2, a3 = (tensor(f"a{at}", dtype, **{axis: extent}, d=d)
                  for at, axis, extent in ((1, "i", n), (2, "j", j), (3, "x", x)))  # fmt: skip
    v1, v2 = tensor("v1", dtype, j=j, e=e), tensor("v2", dtype, x=x, e=e)
    o, lse = softmax_over((sum_("d", a1 * a2 * a3) / float(d), v1 * v2, ("j", "x")))
    return algebra(o=("i e", cast(o, dtype)), lse=("i", lse))
