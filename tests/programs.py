"""Programs that several tests share: algebra of the usual graph parts, as `Program`s."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from autosched.ir.node import Node, Output, Program
from autosched.ir.ops import (
    cast,
    const,
    erf,
    exp,
    input_,
    iota,
    max_,
    reaxis,
    rsqrt,
    sigmoid,
    sum_,
    where,
)

Mask = Callable[[Node, Node], Node]


def algebra(dims: Mapping[str, tuple[str, ...]], **values: Node) -> Program:
    """An algebra program of named values; `dims` gives each output's memory order."""
    names = list(values)
    outputs = tuple(
        Output(n, dims[n], values[n].dtype, tuple(values[n].extent(a) for a in dims[n]))
        for n in names
    )
    return Program("algebra", inputs_of(*values.values()), outputs, tuple(values.values()))


def inputs_of(*roots: Node) -> tuple[Node, ...]:
    from autosched.ir.node import walk

    return tuple(n for n in walk(*roots) if n.op == "input")


# ---- algebra ----------------------------------------------------------------------------------


def gelu(x: Node) -> Node:
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


def gemm(m: int, n: int, k: int, epilogue: Callable[[Node], Node] = gelu) -> Program:
    """epilogue(x[m, k] w[k, n] + bias[n])"""
    x = input_("x", {"m": m, "k": k})
    w = input_("w", {"k": k, "n": n}, kind="weight")
    bias = input_("bias", {"n": n}, kind="weight")
    return algebra({"y": ("m", "n")}, y=epilogue(sum_("k", x * w) + bias))


def causal(i: Node, j: Node) -> Node:
    return i >= j


def attention_value(q: Node, k: Node, v: Node, scale: float, mask: Mask | None) -> Node:
    """Softmax attention over q[b, h, i, d], k[b, h, j, d], v[b, h, j, e]."""
    s = sum_("d", q * k) * scale
    if mask is not None:
        i, j = iota("i", q.extent("i")), iota("j", k.extent("j"))
        s = where(mask(i, j), s, -math.inf)
    p = exp(s - max_("j", s))
    return sum_("j", p * v) / sum_("j", p)


def attention(
    b: int, h: int, i: int, d: int, *, j: int | None = None, groups: int = 1, e: int | None = None,
    mask: Mask | None = causal,
) -> Program:  # fmt: skip
    """Softmax attention; `groups` query heads share a key head."""
    j, e = j or i, e or d
    q = input_("q", {"b": b, "h": h, "i": i, "d": d})
    k = input_("k", {"b": b, "g": h // groups, "j": j, "d": d})
    v = input_("v", {"b": b, "g": h // groups, "j": j, "e": e})
    head = {"g": iota("h", h) // groups}
    o = attention_value(q, reaxis(k, head), reaxis(v, head), 1 / math.sqrt(d), mask)
    return algebra({"o": ("b", "h", "i", "e")}, o=o)


def layernorm_value(x: Node, axis: str, gamma: Node, beta: Node, eps: float = 1e-5) -> Node:
    n = float(x.extent(axis))  # type: ignore[arg-type]
    mean = sum_(axis, x) / n
    centred = x - mean
    return centred * rsqrt(sum_(axis, centred * centred) / n + eps) * gamma + beta


def layernorm(t: int, c: int) -> Program:
    x = input_("x", {"t": t, "c": c})
    gamma, beta = (input_(name, {"c": c}, kind="weight") for name in ("gamma", "beta"))
    return algebra({"y": ("t", "c")}, y=layernorm_value(x, "c", gamma, beta))


def rmsnorm(t: int, c: int, eps: float = 1e-6) -> Program:
    x = input_("x", {"t": t, "c": c})
    gamma = input_("gamma", {"c": c}, kind="weight")
    y = x * rsqrt(sum_("c", x * x) / float(c) + eps) * gamma
    return algebra({"y": ("t", "c")}, y=y)


def softmax(t: int, c: int) -> Program:
    x = input_("x", {"t": t, "c": c})
    p = exp(x - max_("c", x))
    return algebra({"y": ("t", "c")}, y=p / sum_("c", p))


def swiglu(t: int, c: int, f: int) -> Program:
    """silu(x wg) * (x wu): two contractions that share x."""
    x = input_("x", {"t": t, "c": c})
    gate, up = (
        sum_("c", x * input_(name, {"c": c, "f": f}, kind="weight")) for name in ("wg", "wu")
    )
    return algebra({"y": ("t", "f")}, y=gate * sigmoid(gate) * up)


def rotary(b: int, h: int, t: int, d: int) -> Program:
    """x cos + rotate_half(x) sin, on the halves of d."""
    x = input_("x", {"b": b, "h": h, "t": t, "d": d})
    cos, sin = (input_(name, {"t": t, "d": d}) for name in ("cos", "sin"))
    at = iota("d", d)
    turned = reaxis(x, {"d": (at + d // 2) % d})
    sign = where(at < d // 2, const(-1.0, "float32"), 1.0)
    return algebra({"y": ("b", "h", "t", "d")}, y=x * cos + sign * turned * sin)


def narrow(t: int, c: int) -> Program:
    """A sum of products of values rounded to bfloat16, for the rounding of casts."""
    x = input_("x", {"t": t, "c": c})
    y = input_("y", {"c": c})
    rounded = cast(cast(x, "bfloat16"), "float32")
    return algebra({"z": ("t",)}, z=sum_("c", rounded * y))
