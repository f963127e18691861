"""Gradients of recurrences: the state forwards, its gradient backwards, token by token."""

from __future__ import annotations

from autosched.datasets.workloads.define import Draw, uniform, workload
from autosched.datasets.workloads.delta import GDN_SHAPES, UNIT_KEYS
from autosched.datasets.workloads.recurrent import GLA_SHAPES, LIGHTNING_SHAPES, SLOPES, SMALL, qkv
from autosched.datasets.workloads.terms import (
    F32,
    flip,
    inputs,
    linear_step,
    number,
    recurrence,
    recurrences,
    results,
    shift,
    spread,
    state,
    weights,
)
from autosched.ir.node import Node, Program
from autosched.ir.ops import exp, scan, sum_

GATES: dict[str, Draw] = {"g": uniform(-0.6, -0.01)}
Four = tuple[Node, Node, Node, Node]


def linear_gradients(
    s: dict[str, int], qkvo: Four, g: Node, scale: float
) -> tuple[Node, Node, Node]:
    """Gradients of q, k, v of o = scale q S, S = exp(g) S + k v, for the gradient of o.

    The state's own gradient R is the same recurrence from the end, with the next token's decay.
    """
    q, k, v, do = qkvo
    dq, _ = recurrence(
        "t", s, "b h d e", linear_step(k, v, g), lambda S: sum_("e", do * S) * scale
    )
    k, v, q, do = (flip(x, "t") for x in (k, v, q, do))
    R = linear_step(q * scale, do, shift(flip(g, "t"), "t"))(state("R", s, "b h d e"))
    outs = [sum_("e", R * v), sum_("d", R * k)]
    dk, dv = recurrences("t", s["t"], {"R": (number(0.0), R)}, outs)
    return dq, flip(dk, "t"), flip(dv, "t")


@workload("D1", "C S", SMALL, LIGHTNING_SHAPES, SLOPES)
def retention_backward(
    *, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """Gradients of q, k and v of `retention`, for the gradient of o."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    (q, k, v), (do,) = qkv(s, dtype), inputs(s, dtype, do="b h t e")
    (slope,) = weights(s, F32, slope="h")
    dq, dk, dv = linear_gradients(s, (q, k, v, do), spread(-slope, "t", t), 1.0)
    return results(dtype, dq=("b h t d", dq), dk=("b h t d", dk), dv=("b h t e", dv))


@workload("D4", "C S", SMALL, GLA_SHAPES, GATES)
def gla_backward(*, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """Gradients of gated linear attention; that of the log decays is a sum over later tokens."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    (q, k, v), (do,) = qkv(s, dtype), inputs(s, dtype, do="b h t e")
    (g,) = inputs(s, F32, g="b h t d")
    dq, dk, dv = linear_gradients(s, (q, k, v, do), g, d**-0.5)
    dg = scan("sum", "t", q * dq - k * dk, reverse=True)
    return results(
        dtype, dq=("b h t d", dq), dk=("b h t d", dk), dv=("b h t e", dv), dg=("b h t d", dg)
    )


@workload(
    "D5 D6", "C S L", {**SMALL, "wide": False},
    {**GDN_SHAPES, **{f"{n} by channel": {**x, "wide": True} for n, x in GDN_SHAPES.items()}},
    UNIT_KEYS,
)  # fmt: skip
def gated_delta_backward(
    *, b: int, h: int, t: int, d: int, e: int, wide: bool = False, dtype: str = "bfloat16"
) -> Program:
    """Gradients of the gated delta rule, with a decay for each head or for each channel."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    (q, k, v), (beta,) = qkv(s, dtype), inputs(s, dtype, beta="b h t")
    (do,), (g,) = inputs(s, dtype, do="b h t e"), inputs(s, F32, g="b h t d" if wide else "b h t")
    kept = exp(g) * state("S", s, "b h d e")
    wrong = v - sum_("d", k * kept)
    new = kept + k * (beta * wrong)
    read = sum_("e", do * new) * d**-0.5
    dq, kept, wrong = recurrences("t", t, {"S": (number(0.0), new)}, [read, kept, wrong])

    q, k, beta, g, do, kept, wrong = (flip(x, "t") for x in (q, k, beta, g, do, kept, wrong))
    R = state("R", s, "b h d e") + q * do * d**-0.5  # the gradient of the token's new state
    dv = beta * sum_("d", k * R)
    before = R - k * dv
    dk = sum_("e", R * (beta * wrong)) - sum_("e", kept * dv)
    dbeta = sum_("e", sum_("d", k * R) * wrong)
    dg = sum_("e" if wide else ["d", "e"], kept * before)
    outs = recurrences("t", t, {"R": (number(0.0), exp(g) * before)}, [dk, dv, dbeta, dg])
    dk, dv, dbeta, dg = (flip(x, "t") for x in outs)
    return results(
        dtype, dq=("b h t d", dq), dk=("b h t d", dk), dv=("b h t e", dv), dbeta=("b h t", dbeta),
        dg=("b h t d" if wide else "b h t", dg),
    )  # fmt: skip
