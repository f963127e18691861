"""Programs of the usual kinds in narrow types and odd shapes, for kernels that run on tiles."""

from __future__ import annotations

import math

from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.ops import cast, exp, input_, iota, max_, reaxis, sigmoid, sum_, tanh, where


def wide(x: Node) -> Node:
    return cast(x, "float32")


def gemm(m: int, n: int, k: int, dtype: str, turned: bool = False) -> Program:
    """tanh(x w + bias), w stored n by k where turned."""
    x = input_("x", {"m": m, "k": k}, dtype)
    w = input_("w", {"n": n, "k": k} if turned else {"k": k, "n": n}, dtype, "weight")
    bias = input_("bias", {"n": n}, dtype, "weight")
    return algebra(y=("m n", cast(tanh(sum_("k", wide(x) * wide(w)) + wide(bias)), dtype)))


def batched(b: int, m: int, n: int, k: int, dtype: str) -> Program:
    x = input_("x", {"b": b, "m": m, "k": k}, dtype)
    y = input_("y", {"b": b, "k": k, "n": n}, dtype)
    return algebra(z=("b m n", cast(sum_("k", wide(x) * wide(y)), dtype)))


def attention(b: int, h: int, i: int, j: int, d: int, groups: int, dtype: str,
              causal: bool = True, window: int | None = None) -> Program:  # fmt: skip
    """Grouped heads with masks, and the log of the sum beside it."""
    q = input_("q", {"b": b, "h": h, "i": i, "d": d}, dtype)
    k = input_("k", {"b": b, "g": h // groups, "j": j, "d": d}, dtype)
    v = input_("v", {"b": b, "g": h // groups, "j": j, "e": d}, dtype)
    head = {"g": iota("h", h) // groups}
    s = sum_("d", wide(q) * wide(reaxis(k, head))) / math.sqrt(d)
    row, col = iota("i", i) + (j - i), iota("j", j)
    if causal:
        s = where(row >= col, s, -math.inf)
    if window is not None:
        s = where(row - col <= window, s, -math.inf)
    top = max_("j", s)
    p = exp(s - top)
    total = sum_("j", p)
    return algebra(o=("b h i e", cast(sum_("j", p * wide(reaxis(v, head))) / total, dtype)))


def gated(t: int, c: int, f: int, dtype: str) -> Program:
    x = input_("x", {"t": t, "c": c}, dtype)
    gate, up = (
        sum_("c", wide(x) * wide(input_(n, {"c": c, "f": f}, dtype, "weight"))) for n in ("g", "u")
    )
    return algebra(y=("t f", cast(gate * sigmoid(gate) * up, dtype)))


def chain(m: int, r: int, n: int, k: int, dtype: str) -> Program:
    """(x a) b with a small middle."""
    x = input_("x", {"m": m, "k": k}, dtype)
    a = input_("a", {"k": k, "r": r}, dtype, "weight")
    b = input_("b", {"r": r, "n": n}, dtype, "weight")
    return algebra(y=("m n", cast(sum_("r", sum_("k", wide(x) * wide(a)) * wide(b)), dtype)))


PROGRAMS = {
    "bf16 gemm": gemm(70, 45, 83, "bfloat16"),
    "fp16 gemm": gemm(33, 130, 64, "float16"),
    "bf16 gemm, turned": gemm(70, 45, 88, "bfloat16", turned=True),
    "bf16 row": gemm(1, 200, 136, "bfloat16"),
    "bf16 batched": batched(3, 35, 40, 50, "bfloat16"),
    "bf16 attention": attention(1, 4, 75, 75, 24, 2, "bfloat16"),
    "fp16 attention, more keys": attention(2, 2, 33, 90, 16, 1, "float16"),
    "bf16 window": attention(1, 2, 100, 100, 32, 1, "bfloat16", window=30),
    "bf16 decode": attention(2, 4, 1, 150, 32, 2, "bfloat16"),
    "bf16 gated": gated(40, 70, 50, "bfloat16"),
    "fp16 chain": chain(50, 12, 70, 90, "float16"),
    "fp32 batched": batched(2, 19, 23, 31, "float32"),
}
