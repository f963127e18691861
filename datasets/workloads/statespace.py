"""State spaces and the operators of ONNX that carry linear attention: packed heads, past states."""

from __future__ import annotations

from autosched.datasets.workloads.define import Draw, uniform, workload
from autosched.datasets.workloads.terms import (
    F32,
    delta_step,
    flip,
    inputs,
    linear_step,
    query,
    recurrence,
    results,
    shift,
    silu,
    softplus,
    weights,
)
from autosched.ir.node import Node, Program
from autosched.ir.ops import exp, iota, maximum, minimum, reaxis, sum_, where

SSD = {"b": 2, "t": 13, "h": 4, "groups": 2, "n": 5, "p": 3, "dtype": F32}
SSD_SHAPES = {
    f"{t // 1024}k": {"b": 8, "t": t, "h": 32, "groups": 1, "n": 128, "p": 64}
    for t in (2048, 4096, 32768)
}
HYDRA_SHAPES = {
    "BERT-base": {"b": 64, "t": 512, "h": 24, "groups": 1, "n": 64, "p": 64},
    "ViT-B": {"b": 64, "t": 197, "h": 24, "groups": 1, "n": 64, "p": 64},
}
SSD_DRAWS: dict[str, Draw] = {"A": uniform(-1.0, 1.0), "dt_bias": uniform(-3.0, 0.0)}


def ssd(s: dict[str, int], x: Node, B: Node, C: Node, dt: Node, A: Node) -> Node:
    """y[b t h p] of h = exp(A dt) h + dt B x, y = C h; dt is positive, groups g share B and C."""
    head = {"g": iota("h", s["h"]) // (s["h"] // s["g"])}
    B, C = reaxis(B, head), reaxis(C, head)
    step = linear_step(B * dt, x, A * dt)
    return recurrence("t", s, "b h n p", step, lambda S: sum_("n", C * S))[0]


@workload("D12", "C S", SSD, SSD_SHAPES, SSD_DRAWS)
def mamba2(
    *, b: int, t: int, h: int, groups: int, n: int, p: int, dtype: str = "bfloat16"
) -> Program:
    """Mamba2: a state space with one decay for each head and step, and a skip D x."""
    s = {"b": b, "t": t, "h": h, "g": groups, "n": n, "p": p}
    x, B, C, dt = inputs(s, dtype, x="b t h p", B="b t g n", C="b t g n", dt="b t h")
    A, D, dt_bias = weights(s, F32, A="h", D="h", dt_bias="h")
    y = ssd(s, x, B, C, softplus(dt + dt_bias), -exp(A))
    return results(dtype, y=("b t h p", y + D * x))


@workload("D11", "C S", SSD, HYDRA_SHAPES, SSD_DRAWS)
def hydra(
    *, b: int, t: int, h: int, groups: int, n: int, p: int, dtype: str = "bfloat16"
) -> Program:
    """State spaces of both directions, each a row later, and the diagonal: one matrix mixer."""
    s = {"b": b, "t": t, "h": h, "g": groups, "n": n, "p": p}
    x, B, C, dt = inputs(s, dtype, x="b t h p", B="b t g n", C="b t g n", dt="b t h")
    A, D, dt_bias = weights(s, F32, A="h", D="h", dt_bias="h")
    back = inputs(s, dtype, B_back="b t g n", C_back="b t g n", dt_back="b t h")
    B_back, C_back, dt_back = (flip(part, "t") for part in back)
    ahead = ssd(s, x, B, C, softplus(dt + dt_bias), -exp(A))
    behind = ssd(s, flip(x, "t"), B_back, C_back, softplus(dt_back + dt_bias), -exp(A))
    y = shift(ahead, "t") + flip(shift(behind, "t"), "t") + D * x
    return results(dtype, y=("b t h p", y))


@workload("D12", "C S", {"b": 2, "h": 4, "groups": 2, "n": 5, "p": 3, "dtype": F32},
          {"token": {"b": 128, "h": 32, "groups": 1, "n": 128, "p": 64}}, SSD_DRAWS)  # fmt: skip
def mamba2_decode(
    *, b: int, h: int, groups: int, n: int, p: int, dtype: str = "bfloat16"
) -> Program:
    """One token of Mamba2: the next state and its row."""
    s = {"b": b, "h": h, "g": groups, "n": n, "p": p}
    x, B, C, dt = inputs(s, dtype, x="b h p", B="b g n", C="b g n", dt="b h")
    A, D, dt_bias = weights(s, F32, A="h", D="h", dt_bias="h")
    (past,), head = inputs(s, F32, past="b h n p"), {"g": iota("h", h) // (h // groups)}
    dt = softplus(dt + dt_bias)
    new = linear_step(reaxis(B, head) * dt, x, -exp(A) * dt)(past)
    return results(
        dtype, y=("b h p", sum_("n", reaxis(C, head) * new) + D * x), last=("b h n p", new)
    )


# ---- operators of ONNX -----------------------------------------------------------------------

ONNX = {"b": 2, "t": 11, "heads": 4, "kv": 2, "d": 5, "e": 3, "rule": "gated_delta",
        "wide": False, "dtype": F32}  # fmt: skip
ONNX_SHAPES = {
    "token": {"b": 128, "t": 1, "heads": 32, "kv": 32, "d": 128, "e": 128},
    "prefill": {"b": 1, "t": 8192, "heads": 32, "kv": 16, "d": 128, "e": 128},
}


def unpacked(x: Node, packed: str, head: str, heads: int, inner: str) -> Node:
    """x[.., heads * inner] with the packed axis as two."""
    width = int(x.extent(packed)) // heads
    return reaxis(x, {packed: iota(head, heads) * width + iota(inner, width)})


@workload("D1 D4 D5 D6 D12", "C S L", ONNX, ONNX_SHAPES,
          {"decay": uniform(-0.6, -0.01), "beta": uniform(0.1, 0.95)})  # fmt: skip
def onnx_linear_attention(
    *, b: int, t: int, heads: int, kv: int, d: int, e: int, rule: str = "gated_delta",
    wide: bool = False, dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """LinearAttention of ONNX: packed heads, shared key heads, a past state, four update rules."""
    s = {"b": b, "t": t, "g": kv, "d": d, "e": e, "hd": heads * d, "gd": kv * d, "ge": kv * e}
    q, k, v = inputs(s, dtype, query="b t hd", key="b t gd", value="b t ge")
    q, k = unpacked(q, "hd", "h", heads, "d"), unpacked(k, "gd", "g", kv, "d")
    v, (past,) = unpacked(v, "ge", "g", kv, "e"), inputs(s, F32, past="b g d e")
    decay, beta = inputs(s, dtype, decay="b t gd" if wide else "b t g", beta="b t g")
    decay = unpacked(decay, "gd", "g", kv, "d") if wide else decay
    g = decay if rule.startswith("gated") else None
    step = delta_step(k, v, beta, g) if rule.endswith("delta") else linear_step(k, v, g)
    shared = {"g": iota("h", heads) // (heads // kv)}
    o, last = recurrence(
        "t", s, "b g d e", step, lambda S: query(q, d**-0.5)(reaxis(S, shared)), past
    )
    y = iota("y", heads * e)
    o = reaxis(o, {"h": y // e, "e": y % e})
    return results(dtype, output=("b t y", o), present=("b g d e", last))


@workload("D5 D6 D12", "C", {"b": 2, "c": 5, "t": 7, "k": 4, "activation": "silu", "dtype": F32},
          {"token": {"b": 128, "c": 8192, "t": 1, "k": 4},
           "prefill": {"b": 1, "c": 8192, "t": 8192, "k": 4}})  # fmt: skip
def causal_conv_with_state(
    *, b: int, c: int, t: int, k: int, activation: str = "silu", dtype: str = "bfloat16"
) -> Program:
    """CausalConvWithState of ONNX: k taps of each channel over the past k - 1 rows and x."""
    s = {"b": b, "c": c, "t": t, "k": k, "p": k - 1}
    x, past = inputs(s, dtype, x="b c t", past="b c p")
    w, bias = weights(s, dtype, w="c k", bias="c")
    both = iota("l", t + k - 1)
    early = reaxis(past, {"p": minimum(both, k - 2)})
    padded = where(both < k - 1, early, reaxis(x, {"t": maximum(both - (k - 1), 0)}))
    y = sum_("k", w * reaxis(padded, {"l": iota("t", t) + iota("k", k)})) + bias
    present = reaxis(padded, {"l": iota("p", k - 1) + t})
    return results(dtype, y=("b c t", silu(y) if activation == "silu" else y),
                   present=("b c p", present))  # fmt: skip
