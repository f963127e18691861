"""Attention on coded keys and values: int8 and int4 scores, sign sketches, paged 4-bit caches,
pruned channels, binary hashes.

Query heads h share key heads g; queries are i, keys j, channels d and e.
"""

from __future__ import annotations

import math

import numpy as np

from autosched.datasets.workloads.codecs import (
    CODECS,
    I32,
    Codec,
    absmax,
    coded,
    encoded,
    grouped,
    largest,
    packed,
    product,
    spread,
    total,
    ungrouped,
)
from autosched.datasets.workloads.define import Draw, Sizes, integers, normal, uniform, workload
from autosched.datasets.workloads.terms import F32, inputs, mean, norm, number, results
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    cast,
    eq,
    exp,
    iota,
    map_,
    max_,
    maximum,
    minimum,
    reaxis,
    reduce_,
    rename,
    scan,
    sum_,
    take,
    where,
)

E4M3, E4M3_TOP = "float8_e4m3", 448.0
BYTES, WORDS = integers(0, 256), integers(0, 2**32)
SCALES, SMALL_SCALES = uniform(0.5, 2.0), uniform(0.05, 0.2)


def by_head(x: Node, h: int) -> Node:
    """Values of key heads g at the query heads h that share them."""
    return reaxis(x, {"g": iota("h", h) // (h // int(x.extent("g")))})


def fp8(x: Node) -> Node:
    """x on the grid of E4M3; beyond 448 it saturates."""
    return cast(cast(x, E4M3), F32)


def causal(s: Node) -> Node:
    """Scores of keys that are not later than the query, the last ones of both aligned."""
    i, j = (int(s.extent(axis)) for axis in "ij")
    return where(iota("j", j) <= iota("i", i) + (j - i), s, -math.inf)


def attend(*parts: tuple[str, Node, Node]) -> Node:
    """Softmax attention over several sets of keys at once: (axis, scores, values) of each."""
    top = max_(parts[0][0], parts[0][1])
    for axis, s, _ in parts[1:]:
        top = maximum(top, max_(axis, s))
    weights = [(axis, exp(s - top), v) for axis, s, v in parts]
    return total([sum_(axis, p * v) for axis, p, v in weights]) / total(
        [sum_(axis, p) for axis, p, _ in weights]
    )


# ---- int8 and int4 scores ----------------------------------------------------------------------


def block_mean(x: Node, axis: str, size: int) -> Node:
    """Each row's mean over its block of `size` rows, of fewer in the last one."""
    n = int(x.extent(axis))
    sums = sum_("mu", grouped(x, axis, size, "mb", "mu"))
    count = minimum(n - iota("mb", -(-n // size)) * size, size)
    return spread(sums / cast(count, F32), "mb", axis, n, size)


def by_rows(codec: Codec, x: Node, axis: str, size: int) -> tuple[Node, Node]:
    """(values of codes, scale) of x with one scale for `size` rows."""
    n, group, row = int(x.extent(axis)), f"{axis}g", f"{axis}u"
    value, scale = absmax(codec, grouped(x, axis, size, group, row), f"{row} d")
    return ungrouped(value, group, row, axis, n), spread(scale, group, axis, n, size)


SAGE = {"b": 2, "h": 2, "i": 37, "j": 45, "d": 16, "bits": 8, "gq": 8, "gk": 16, "block": 16,
        "dtype": "float32"}  # fmt: skip
SAGE_SHAPES: dict[str, Sizes] = {
    f"T{t} D{d} int{bits}": {"b": 4, "h": 32, "i": t, "j": t, "d": d, "bits": bits}
    for t in (1024, 4096, 8192, 32768) for d in (64, 128) for bits in (4, 8)
}  # fmt: skip


@workload("C1", "C R M Q", SAGE, SAGE_SHAPES, {"k": normal(1.0, 3.0), "v": normal(1.0, 1.0)})
def sage_attention2(
    *, b: int, h: int, i: int, j: int, d: int, bits: int = 8, gq: int = 32, gk: int = 64,
    block: int = 128, smooth_q: bool = True, smooth_v: bool = False, is_causal: bool = False,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """Keys without their mean and queries without their block's, as int8 or int4 with a scale per
    group of rows; probabilities and values as E4M3, values by channel."""
    s, codec = {"b": b, "h": h, "i": i, "j": j, "d": d, "e": d}, CODECS[f"s{bits}"]
    q, k, v = inputs(s, dtype, q="b h i d", k="b h j d", v="b h j e")
    k, centre = k - mean("j", k), block_mean(q, "i", block) if smooth_q else number(0.0)
    (qc, qs), (kc, ks) = by_rows(codec, q - centre, "i", gq), by_rows(codec, k, "j", gk)
    scores = cast(sum_("d", product(qc, kc)), F32) * (qs * ks) + sum_("d", centre * k)
    scores = causal(scores * d**-0.5) if is_causal else scores * d**-0.5
    p, shift = exp(scores - max_("j", scores)), mean("j", v) if smooth_v else number(0.0)
    vs = largest(v - shift, "j") / E4M3_TOP
    o = sum_("j", fp8(p * E4M3_TOP) * fp8((v - shift) / vs)) * (vs / E4M3_TOP)
    return results(dtype, o=("b h i e", o / sum_("j", p) + shift))


@workload("C2", "C R M Q", {"b": 2, "h": 4, "g": 2, "i": 7, "j": 13, "d": 16, "dtype": "float32"},
          {f"Llama3-8B b{b}": {"b": b, "h": 32, "g": 8, "i": 1024, "j": 1024, "d": 128}
           for b in (1, 4, 16)},
          {"k": BYTES, "v": BYTES, **dict.fromkeys(("qs", "ks", "vs"), SMALL_SCALES)})  # fmt: skip
def fireq_attention(
    *, b: int, h: int, g: int, i: int, j: int, d: int, dtype: str = "bfloat16"
) -> Program:
    """E4M3 queries times int4 keys, E4M3 probabilities times int4 values; scales per token of
    queries and keys and per channel of values. Scales of channels before and after the rotary
    embedding are folded into what is stored."""
    s = {"b": b, "h": h, "g": g, "i": i, "j": j, "d": d, "e": d}
    (q,), (qs, ks, vs) = inputs(s, E4M3, q="b h i d"), inputs(
        s, F32, qs="b h i", ks="b g j", vs="b g e")  # fmt: skip
    k, v = (coded(CODECS["s4"], name, s, f"b g j {axis}", axis, "arg")
            for name, axis in (("k", "d"), ("v", "e")))  # fmt: skip
    k, v, ks, vs = (by_head(x, h) for x in (k, v, ks, vs))
    scores = causal(sum_("d", product(q, k)) * (qs * ks) * d**-0.5)
    p = exp(scores - max_("j", scores))
    o = sum_("j", product(fp8(p * E4M3_TOP), v)) * (vs / E4M3_TOP) / sum_("j", p)
    return results(dtype, o=("b h i e", o))


# ---- sign sketches -----------------------------------------------------------------------------

QJL = {"b": 2, "h": 4, "g": 2, "j": 29, "r": 5, "d": 16, "m": 64, "mo": 40, "c": 3, "t": 8, "gv": 8,
       "dtype": "float32"}  # fmt: skip
QJL_SHAPES: dict[str, Sizes] = {
    f"{name} {n}k": {"b": 8, "h": 32, "g": g, "j": 1024 * n - 128, "r": 128, "d": 128, "m": m}
    for name, g, m in (("Llama2-7B", 32, 256), ("Llama3-8B", 8, 256), ("first layers", 8, 512))
    for n in (1, 8, 32, 64)
}


def distinct_draw(along: str) -> Draw:
    """Ascending distinct places 0 .. size of `along`, in the last axis."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
        order = np.argsort(rng.random((*shape[:-1], sizes[along])), axis=-1)
        return np.sort(order[..., : shape[-1]], axis=-1)

    return draw


def outlying(places: Node, d: int) -> Node:
    """Whether each channel is one of the places[c]."""
    return reduce_("any", "c", eq(places, iota("d", d)))


@workload("C3", "C R Q T", QJL, QJL_SHAPES,
          {"kb": WORDS, "ob": WORDS, "v": BYTES, "norms": SCALES, "onorms": uniform(0.5, 4.0),
           "vs": SCALES, "vz": normal(), "out": distinct_draw("d")})  # fmt: skip
def qjl_decode(
    *, b: int, h: int, g: int, j: int, r: int, d: int, m: int, mo: int = 64, c: int = 8,
    t: int = 32, gv: int = 32, dtype: str = "float16",
) -> Program:  # fmt: skip
    """Scores sqrt(pi/2)/m |k| <Pq, sign(Pk)> from sketched keys, those of t tokens' c outlying
    channels apart; values of 2 bits; the last r tokens are exact."""
    s = {"b": b, "h": h, "g": g, "j": j, "r": r, "d": d, "e": d, "m": m, "mo": mo, "c": c,
         "tg": -(-j // t), "eg": -(-d // gv)}  # fmt: skip
    q, kr, vr, vs, vz = inputs(s, dtype, q="b h d", kr="b g r d", vr="b g r e", vs="b g j eg",
                               vz="b g j eg")  # fmt: skip
    apart = by_head(outlying(inputs(s, I32, out="b g tg c")[0], d), h)

    def estimate(bits: str, size: str, projection: str, norms: str, part: Node) -> Node:
        p, length = inputs(s, F32, **{projection: f"{size} d", norms: "b g j"})
        turned = spread(sum_("d", p * part), "tg", "j", j, t)
        sign = by_head(coded(CODECS["sign"], bits, s, f"b g j {size}", size, "arg"), h)
        scale = math.sqrt(math.pi / 2) / s[size] * d**-0.5
        return sum_(size, turned * cast(sign, F32)) * by_head(length, h) * scale

    old = estimate("kb", "m", "p", "norms", where(apart, 0.0, q))
    old = old + estimate("ob", "mo", "po", "onorms", where(apart, q, 0.0))
    v = cast(coded(CODECS["u2"], "v", s, "b g j e", "e", "arg"), F32)
    v = v * spread(vs, "eg", "e", d, gv) + spread(vz, "eg", "e", d, gv)
    recent = sum_("d", q * by_head(kr, h)) * d**-0.5
    return results(dtype, o=("b h e", attend(("j", old, by_head(v, h)),
                                             ("r", recent, by_head(vr, h)))))  # fmt: skip


@workload("C3", "C Q T", {x: QJL[x] for x in ("b", "g", "j", "d", "m", "c", "t", "dtype")},
          {"Llama3-8B 32k": {"b": 8, "g": 8, "j": 32768, "d": 128, "m": 256}},
          {"out": distinct_draw("d")})  # fmt: skip
def qjl_sketch(
    *, b: int, g: int, j: int, d: int, m: int, c: int = 8, t: int = 32, dtype: str = "float16"
) -> Program:
    """Signs of projected keys as words, and the lengths of keys, without outlying channels."""
    s = {"b": b, "g": g, "j": j, "d": d, "m": m, "c": c, "tg": -(-j // t)}
    (k,), (p,), (out,) = inputs(s, dtype, k="b g j d"), inputs(s, F32, p="m d"), inputs(
        s, I32, out="b g tg c")  # fmt: skip
    inner = where(spread(outlying(out, d), "tg", "j", j, t), 0.0, k)
    signs = packed(CODECS["sign"], encoded(CODECS["sign"], sum_("d", p * inner)), "m")
    return results(F32, bits=("b g j mw", signs), norms=("b g j", norm("d", inner)))


# ---- caches ------------------------------------------------------------------------------------


def pages_draw(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Places of pages in the pool; sequences share some where it has fewer than they need."""
    need = shape[0] * shape[1]
    return rng.permutation(max(sizes["pages"], need))[:need].reshape(shape) % sizes["pages"]


@workload("C4", "C R Q I",
          {"b": 2, "h": 4, "g": 2, "n": 3, "pages": 8, "slots": 5, "d": 16, "gv": 6,
           "dtype": "float32"},
          {"Llama3-8B 32k": {"b": 8, "h": 32, "g": 8, "n": 2048, "pages": 16384, "slots": 16,
                             "d": 128},
           "Llama2-70B 4k": {"b": 64, "h": 64, "g": 8, "n": 256, "pages": 16384, "slots": 16,
                             "d": 128}},
          {"k": BYTES, "v": BYTES, "table": pages_draw, "length": lambda rng, shape, sizes:
           rng.integers(1, sizes["n"] * sizes["slots"] + 1, shape),
           **dict.fromkeys(("kz", "vz"), uniform(0.0, 15.0)),
           **dict.fromkeys(("ks", "vs"), uniform(0.05, 0.3))})  # fmt: skip
def kv4_decode(
    *, b: int, h: int, g: int, n: int, pages: int, slots: int, d: int, gv: int = 64,
    dtype: str = "float16",
) -> Program:  # fmt: skip
    """One query a sequence over pages of 4-bit keys, scaled by page and channel, and values,
    scaled by token and group of channels; scale (code - zero)."""
    s = {"b": b, "h": h, "g": g, "n": n, "page": pages, "slot": slots, "d": d, "e": d,
         "eg": -(-d // gv)}  # fmt: skip
    (q,), (table, length) = inputs(s, dtype, q="b h d"), inputs(s, I32, table="b n", length="b")
    ks, kz, vs, vz = inputs(s, dtype, ks="page g d", kz="page g d", vs="page g slot eg",
                            vz="page g slot eg")  # fmt: skip
    k, v = (cast(coded(CODECS["kv4"], name, s, f"page g slot {axis}", axis, "arg"), F32)
            for name, axis in (("k", "d"), ("v", "e")))  # fmt: skip
    v = (v - spread(vz, "eg", "e", d, gv)) * spread(vs, "eg", "e", d, gv)
    j = iota("j", n * slots)
    page = reaxis(table, {"n": j // slots})
    k, v = (by_head(take(reaxis(x, {"slot": j % slots}), "page", page), h)
            for x in ((k - kz) * ks, v))  # fmt: skip
    scores = where(j < length, sum_("d", q * k) * d**-0.5, -math.inf)
    return results(dtype, o=("b h e", attend(("j", scores, v))))


THINK = {"b": 2, "h": 4, "g": 2, "j": 11, "d": 16, "c": 10, "dtype": "float32"}


@workload("C5", "C R I Q", {**THINK, "r": 5},
          {f"Llama3-8B b{b} T{j}": {"b": b, "h": 32, "g": 8, "j": j, "r": 128, "d": 128, "c": 77}
           for b, j in ((8, 32640), (700, 370))},
          {"kept": distinct_draw("d")})  # fmt: skip
def think_decode(
    *, b: int, h: int, g: int, j: int, r: int, d: int, c: int, dtype: str = "bfloat16"
) -> Program:
    """Old keys have c channels, whose places are listed by head; the last r tokens have all."""
    s = {"b": b, "h": h, "g": g, "j": j, "r": r, "d": d, "e": d, "c": c}
    q, k, v, kr, vr = inputs(s, dtype, q="b h d", k="b g j c", v="b g j e", kr="b g r d",
                             vr="b g r e")  # fmt: skip
    kept = by_head(inputs(s, I32, kept="b g c")[0], h)
    old = sum_("c", take(q, "d", kept) * by_head(k, h)) * d**-0.5
    recent = sum_("d", q * by_head(kr, h)) * d**-0.5
    return results(dtype, o=("b h e", attend(("j", old, by_head(v, h)),
                                             ("r", recent, by_head(vr, h)))))  # fmt: skip


@workload("C5", "C P Q", {**THINK, "w": 3},
          {"Llama3-8B": {"b": 8, "h": 32, "g": 8, "w": 32, "j": 8192, "d": 128, "c": 77}})
def think_select(
    *, b: int, h: int, g: int, w: int, j: int, d: int, c: int, dtype: str = "bfloat16"
) -> Program:
    """The c channels of a key head with the greatest mean of q**2 over its last w queries times
    mean of k**2, in ascending order, and keys that have only these."""
    s = {"b": b, "h": h, "g": g, "w": w, "j": j, "d": d}
    q, k = inputs(s, dtype, q="b h w d", k="b g j d")
    shared = reaxis(q, {"h": iota("g", g) * (h // g) + iota("s", h // g)})
    score = mean("s w", shared * shared) * mean("j", k * k)
    other, at, to = rename(score, {"d": "o"}), iota("d", d), iota("o", d)
    # A channel is never ahead of itself, even where a kernel computes its score twice and rounds
    # differently.
    ahead = map_("ne", to, at) & ((other > score) | (eq(other, score) & (to < at)))
    chosen = sum_("o", cast(ahead, I32)) < c  # among the first c by rank
    place = scan("sum", "d", cast(chosen, I32), exclusive=True)
    kept = sum_("d", where(chosen & eq(place, iota("c", c)), at, 0))
    return results(dtype, kept=("b g c", kept), pruned=("b g j c", take(k, "d", kept)))


@workload("D17", "C Q", {"b": 2, "h": 2, "i": 9, "d": 8, "m": 5, "dtype": "float32"},
          {"PVTv2-B0": {"b": 1, "h": 1, "i": 3136, "d": 32, "m": 16}})  # fmt: skip
def ecoformer(*, b: int, h: int, i: int, d: int, m: int, dtype: str = "float32") -> Program:
    """Linear attention on learned hashes of m signs: values are added or subtracted."""
    s = {"b": b, "h": h, "i": i, "j": i, "d": d, "e": d, "m": m}
    q, k, v = inputs(s, dtype, q="b h i d", k="b h j d", v="b h j e")
    hash_, bias = inputs(s, dtype, "weight", hash="h m d", bias="h m")
    bq, bk = (sum_("d", x * hash_) + bias >= 0.0 for x in (q, k))
    state = sum_("j", where(bk, v, -v))
    return results(dtype, o=("b h i e", sum_("m", where(bq, state, -state))))
