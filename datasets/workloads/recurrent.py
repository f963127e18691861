"""Linear attention with decays as recurrences over t, and their forms by chunk and by token."""

from __future__ import annotations

import math

from autosched.datasets.workloads.define import uniform, workload
from autosched.datasets.workloads.terms import (
    F32,
    elu_plus_one,
    flip,
    inputs,
    linear_step,
    log_sigmoid,
    number,
    query,
    recurrence,
    recurrences,
    results,
    rmsnorm,
    softmax,
    state,
    weights,
)
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    abs_,
    cast,
    eq,
    exp,
    iota,
    maximum,
    minimum,
    reaxis,
    rename,
    sigmoid,
    sum_,
    where,
)

SMALL = {"b": 2, "h": 3, "t": 13, "d": 5, "e": 7, "dtype": F32}
GLA_SHAPES = {
    "4k": {"b": 4, "h": 64, "t": 4096, "d": 128, "e": 128},
    "16k": {"b": 2, "h": 16, "t": 16384, "d": 128, "e": 128},
    "1k": {"b": 8, "h": 8, "t": 1024, "d": 64, "e": 64},
}
LIGHTNING_SHAPES = {
    f"{t // 1024}k": {"b": 4, "h": 32, "t": t, "d": 128, "e": 128} for t in (2048, 8192, 32768)
}
MLSTM_SHAPES = {
    f"{t // 1024}k": {"b": 65536 // t, "h": 8, "t": t, "d": 256, "e": 512}
    for t in (1024, 8192, 65536)
}
TOKEN = {"b": 2, "h": 3, "d": 5, "e": 7, "dtype": F32}
TOKEN_SHAPES = {"token": {"b": 128, "h": 32, "d": 128, "e": 128}}
SLOPES = {"slope": uniform(0.01, 0.7)}
Sizes = dict[str, int]


def qkv(s: Sizes, dtype: str) -> tuple[Node, ...]:
    return inputs(s, dtype, q="b h t d", k="b h t d", v="b h t e")


@workload("D1", "C S", SMALL, LIGHTNING_SHAPES)
def linear_attention(*, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """S += k v; o = q S."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    o, last = recurrence("t", s, "b h d e", linear_step(k, v), query(q, d**-0.5))
    return results(dtype, o=("b h t e", o), last=("b h d e", last))


@workload("D1 D2", "C S", SMALL, LIGHTNING_SHAPES)
def normalised_linear_attention(
    *, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """S += f(k) v, z += f(k); o = f(q) S / f(q) z with f = elu + 1."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    q, k = elu_plus_one(q), elu_plus_one(k)
    S = state("S", s, "b h d e") + k * v
    z = state("z", s, "b h d") + k
    out = sum_("d", q * S) / sum_("d", q * z)
    (o,) = recurrences("t", t, {"S": (number(0.0), S), "z": (number(0.0), z)}, [out])
    return results(dtype, o=("b h t e", o))


@workload("D1", "C S", SMALL, LIGHTNING_SHAPES, SLOPES)
def retention(*, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """S = exp(-slope) S + k v; o = q S: a constant decay for each head."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    (slope,) = weights(s, F32, slope="h")
    o, last = recurrence("t", s, "b h d e", linear_step(k, v, -slope), query(q))
    return results(dtype, o=("b h t e", o), last=("b h d e", last))


@workload("D1", "C S", SMALL, LIGHTNING_SHAPES, SLOPES)
def lightning_attention(
    *, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """The retention of TransNormerLLM with its norm over all heads and its gate."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    (gate,) = inputs(s, dtype, gate="b h t e")
    (slope,) = weights(s, F32, slope="h")
    o, _ = recurrence("t", s, "b h d e", linear_step(k, v, -slope), query(q))
    return results(dtype, o=("b t h e", rmsnorm("h e", o) * gate))


@workload("D2", "C S", SMALL, {"1k": GLA_SHAPES["1k"]})
def norm_attention(*, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """rmsnorm(f(q) S) with S += f(k) v and f = elu + 1: a norm takes the normaliser's place."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    step = linear_step(elu_plus_one(k), v)
    o, _ = recurrence("t", s, "b h d e", step, query(elu_plus_one(q)))
    return results(dtype, o=("b h t e", rmsnorm("e", o)))


@workload("D2", "C R M", {**SMALL, "block": 4}, {"1k": {**GLA_SHAPES["1k"], "block": 64}})
def diagonal_attention(
    *, b: int, h: int, t: int, d: int, e: int, block: int, dtype: str = "bfloat16"
) -> Program:
    """softmax(q k) v inside blocks on the diagonal."""
    q, k, v = qkv({"b": b, "h": h, "t": t, "d": d, "e": e}, dtype)
    k, v = rename(k, {"t": "j"}), rename(v, {"t": "j"})
    scores = sum_("d", q * k) * d**-0.5
    near = eq(iota("t", t) // block, iota("j", t) // block)
    o = sum_("j", softmax("j", where(near, scores, -math.inf)) * v)
    return results(dtype, o=("b h t e", o))


@workload("D3", "C S R", SMALL, MLSTM_SHAPES)
def mlstm_exp(*, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """mLSTM with an exponential input gate, kept in range by a running maximum m from -inf."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    i, f = inputs(s, F32, i="b h t", f="b h t")
    C, n, m = state("C", s, "b h d e"), state("n", s, "b h d"), state("m", s, "b h")
    top = maximum(log_sigmoid(f) + m, i)
    keep, write = exp(log_sigmoid(f) + m - top), exp(i - top)
    C, n = keep * C + write * k * v, keep * n + write * k
    down = maximum(abs_(sum_("d", q * n)) * d**-0.5, exp(-top))
    states = {"C": (number(0.0), C), "n": (number(0.0), n), "m": (number(-math.inf), top)}
    (o,) = recurrences("t", t, states, [sum_("d", q * C) * d**-0.5 / down])
    return results(dtype, o=("b h t e", o))


@workload("D3", "C S", {**SMALL, "normalised": True}, MLSTM_SHAPES)
def mlstm_sigmoid(
    *, b: int, h: int, t: int, d: int, e: int, normalised: bool = False, dtype: str = "bfloat16"
) -> Program:
    """mLSTM with sigmoid gates: no running maximum, and the normaliser by choice."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    i, f = inputs(s, F32, i="b h t", f="b h t")
    C = sigmoid(f) * state("C", s, "b h d e") + sigmoid(i) * k * v
    n = sigmoid(f) * state("n", s, "b h d") + sigmoid(i) * k
    top, down = sum_("d", q * C) * d**-0.5, abs_(sum_("d", q * n)) * d**-0.5
    states = {"C": (number(0.0), C), **({"n": (number(0.0), n)} if normalised else {})}
    (o,) = recurrences("t", t, states, [top / maximum(down, 1.0) if normalised else top])
    return results(dtype, o=("b h t e", o))


def gla(s: Sizes, q: Node, k: Node, v: Node, x: Node) -> Node:
    """Gated linear attention with the gate logits x, a decay for each channel."""
    step = linear_step(k, v, log_sigmoid(x) / 16.0)
    return recurrence("t", s, "b h d e", step, query(q, s["d"] ** -0.5))[0]


@workload("D4", "C S", SMALL, GLA_SHAPES)
def gated_linear_attention(
    *, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """S = exp(g) S + k v with g = log sigmoid(x) / 16 for each channel; o = q S."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    (x,) = inputs(s, dtype, x="b h t d")
    q, k, v = qkv(s, dtype)
    return results(dtype, o=("b h t e", gla(s, q, k, v, x)))


def both_ways(s: Sizes, q: Node, k: Node, v: Node, xf: Node, xb: Node) -> Node:
    back = gla(s, flip(q, "t"), flip(k, "t"), flip(v, "t"), flip(xb, "t"))
    return 0.5 * (gla(s, q, k, v, xf) + flip(back, "t"))


@workload("D4", "C S", SMALL, {"vig": {"b": 8, "h": 3, "t": 3136, "d": 64, "e": 64}})
def vig(*, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """The mean of gated linear attention forwards and backwards, each with its own gates."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    xf, xb = inputs(s, dtype, xf="b h t d", xb="b h t d")
    return results(dtype, o=("b h t e", both_ways(s, q, k, v, xf, xb)))


def local_conv(x: Node, w: Node, width: int) -> Node:
    """x[b h t e] on a grid of rows of `width`, each channel with its own 3 x 3 taps w[h e y x]."""
    t = int(x.extent("t"))
    row = iota("t", t) // width + iota("y", 3) - 1
    col = iota("t", t) % width + iota("x", 3) - 1
    inside = (row >= 0) & (row < t // width) & (col >= 0) & (col < width)
    near = reaxis(x, {"t": maximum(minimum(row * width + col, t - 1), 0)})
    return sum_(["y", "x"], where(inside, w * near, 0.0))


@workload("D4", "C S", {**SMALL, "t": 12, "e": 5, "width": 4},
          {"vig": {"b": 8, "h": 3, "t": 3136, "d": 64, "e": 64, "width": 56}})  # fmt: skip
def vig_with_locality(
    *, b: int, h: int, t: int, d: int, e: int, width: int, dtype: str = "bfloat16"
) -> Program:
    """`vig` with a gate, for each value, between it and a 3 x 3 convolution of the image."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e, "y": 3, "x": 3}
    q, k, v = qkv(s, dtype)
    xf, xb, gate = inputs(s, dtype, xf="b h t d", xb="b h t d", gate="b h t e")
    (w,) = weights(s, dtype, w="h e y x")
    share = sigmoid(gate)
    o = share * both_ways(s, q, k, v, xf, xb) + (1.0 - share) * local_conv(v, w, width)
    return results(dtype, o=("b h t e", o))


@workload(
    "D10", "C S", {"b": 2, "h": 3, "r": 3, "c": 5, "d": 5, "e": 7, "dtype": F32},
    {"256k": {"b": 1, "h": 16, "r": 4, "c": 65536, "d": 128, "e": 128}}, SLOPES,
)  # fmt: skip
def lasp2(
    *, b: int, h: int, r: int, c: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """Retention in chunks r: a state for each, then what each reads of those before and itself."""
    s = {"b": b, "h": h, "r": r, "c": c, "d": d, "e": e}
    q, k, v = inputs(s, dtype, q="b h r c d", k="b h r c d", v="b h r c e")
    (slope,) = weights(s, F32, slope="h")
    at, early = iota("c", c), iota("j", c)

    def decay(steps: Node, over: Node) -> Node:
        return where(over, exp(-slope * cast(steps, F32)), 0.0)

    states = rename(sum_("c", decay(c - 1 - at, at < c) * k * v), {"r": "p"})
    chunks = iota("r", r) - 1 - iota("p", r)
    before = sum_("p", decay(chunks * c, chunks >= 0) * states)
    k, v = rename(k, {"c": "j"}), rename(v, {"c": "j"})
    intra = sum_("j", sum_("d", q * k) * decay(at - early, at >= early) * v)
    inter = sum_("d", q * decay(at + 1, at >= 0) * before)
    return results(dtype, o=("b h r c e", intra + inter))


@workload(
    "D18", "S", {"b": 2, "t": 13, "d": 7, "dtype": F32},
    {"1024": {"b": 8, "t": 2048, "d": 1024}, "2560": {"b": 8, "t": 2048, "d": 2560}},
)  # fmt: skip
def hgrn(*, b: int, t: int, d: int, dtype: str = "bfloat16") -> Program:
    """h = f h + (1 - f) c, by element; f is the sigmoid of its logits."""
    s = {"b": b, "t": t, "d": d}
    f, c = inputs(s, dtype, f="b t d", c="b t d")
    f = sigmoid(f)
    o, last = recurrence("t", s, "b d", lambda S: f * S + (1.0 - f) * c, lambda S: S)
    return results(dtype, o=("b t d", o), last=("b d", last))


@workload("D4", "C S", TOKEN, TOKEN_SHAPES)
def gla_decode(*, b: int, h: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """One token of gated linear attention: the next state and its row."""
    s = {"b": b, "h": h, "d": d, "e": e}
    q, k, v, x = inputs(s, dtype, q="b h d", k="b h d", v="b h e", x="b h d")
    (past,) = inputs(s, F32, past="b h d e")
    new = linear_step(k, v, log_sigmoid(x) / 16.0)(past)
    return results(dtype, o=("b h e", query(q, d**-0.5)(new)), last=("b h d e", new))
