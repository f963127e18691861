"""The programs of a GPU campaign: a name in, the algebra at a real size and its torch peers out.

Each is a definition with sizes; peers are names of `gpu_peers`. Values are stored in `dtype` and
computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    cast,
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

F32 = "float32"


@dataclass(frozen=True)
class Case:
    """A program and what it is measured beside.

    features: of the target, besides its own: "tf32" multiplies float32 in fewer bits.
    share: of the definition's contractions that any schedule has to do (a mask leaves less).
    """

    name: str
    define: Callable[[], Program]
    peers: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    share: float = 1.0


def _wide(name: str, axes: Mapping[str, int], dtype: str, kind: str = "arg") -> Node:
    made = input_(name, axes, dtype, kind)
    return made if dtype == F32 else cast(made, F32)


def product(m: int, n: int, k: int, dtype: str, transposed: bool = False) -> Program:
    """y[m, n] = sum(k, x[m, k] w[k, n]); transposed: w is stored as w[n, k]."""
    x = _wide("x", {"m": m, "k": k}, dtype)
    w = _wide("w", {"n": n, "k": k} if transposed else {"k": k, "n": n}, dtype, "weight")
    return algebra(y=("m n", cast(sum_("k", x * w), dtype)))


def scaled_product(
    m: int, n: int, k: int, rows: bool, a: str = "float8_e4m3", b: str = "float8_e4m3"
) -> Program:
    """y[m, n] = sum(k, x[m, k] w[n, k]) sx sw in 8 bits, scaled by tensor, or by row and column."""
    x, w = _wide("x", {"m": m, "k": k}, a), _wide("w", {"n": n, "k": k}, b, "weight")
    sx, sw = input_("sx", {"m": m} if rows else {}), input_("sw", {"n": n} if rows else {})
    return algebra(y=("m n", cast(sum_("k", x * w) * sx * sw, BF16)))


def gelu_linear(m: int, n: int, k: int, dtype: str) -> Program:
    """y = gelu(x w + bias)"""
    x, w = _wide("x", {"m": m, "k": k}, dtype), _wide("w", {"k": k, "n": n}, dtype, "weight")
    z = sum_("k", x * w) + _wide("bias", {"n": n}, dtype, "weight")
    y = 0.5 * z * (1.0 + erf(z * math.sqrt(0.5)))
    return algebra(y=("m n", cast(y, dtype)))


def gated_pair(t: int, c: int, f: int, dtype: str) -> Program:
    """y = silu(x wg) * (x wu)"""
    x = _wide("x", {"t": t, "c": c}, dtype)
    gate, up = (
        sum_("c", x * _wide(name, {"c": c, "f": f}, dtype, "weight")) for name in ("wg", "wu")
    )
    return algebra(y=("t f", cast(gate * sigmoid(gate) * up, dtype)))


def attention(
    b: int, h: int, i: int, d: int, dtype: str, *, j: int | None = None, groups: int = 1,
    causal: bool = False,
) -> Program:  # fmt: skip
    """Softmax attention over q[b, h, i, d], k[b, g, j, d], v[b, g, j, e]."""
    j = j or i
    q = _wide("q", {"b": b, "h": h, "i": i, "d": d}, dtype)
    k = _wide("k", {"b": b, "g": h // groups, "j": j, "d": d}, dtype)
    v = _wide("v", {"b": b, "g": h // groups, "j": j, "e": d}, dtype)
    head = {"g": iota("h", h) // groups}
    s = sum_("d", q * reaxis(k, head)) * (1 / math.sqrt(d))
    if causal:
        s = where(iota("i", i) >= iota("j", j), s, -math.inf)
    p = exp(s - max_("j", s))
    o = sum_("j", p * reaxis(v, head)) / sum_("j", p)
    return algebra(o=("b h i e", cast(o, dtype)))


def layernorm(t: int, c: int, dtype: str) -> Program:
    x = _wide("x", {"t": t, "c": c}, dtype)
    gamma, beta = (_wide(name, {"c": c}, dtype, "weight") for name in ("gamma", "beta"))
    centred = x - sum_("c", x) / float(c)
    y = centred * rsqrt(sum_("c", centred * centred) / float(c) + 1e-5) * gamma + beta
    return algebra(y=("t c", cast(y, dtype)))


def rmsnorm(t: int, c: int, dtype: str) -> Program:
    x = _wide("x", {"t": t, "c": c}, dtype)
    gamma = _wide("gamma", {"c": c}, dtype, "weight")
    y = x * rsqrt(sum_("c", x * x) / float(c) + 1e-6) * gamma
    return algebra(y=("t c", cast(y, dtype)))


def softmax(t: int, c: int, dtype: str) -> Program:
    x = _wide("x", {"t": t, "c": c}, dtype)
    p = exp(x - max_("c", x))
    return algebra(y=("t c", cast(p / sum_("c", p), dtype)))


# ---- the table ---------------------------------------------------------------------------------

BF16, F16 = "bfloat16", "float16"
_SHORT = {BF16: "bf16", F16: "fp16", F32: "fp32"}
# m, n, k, dtype, weight stored n x k
_PRODUCTS = (
    (4096, 4096, 4096, BF16, False), (4096, 4096, 4096, F16, False),
    (8192, 8192, 8192, BF16, False), (2048, 2048, 2048, BF16, False),
    (1024, 1024, 1024, BF16, False), (512, 4096, 4096, BF16, False),
    (64, 4096, 4096, BF16, True), (16, 14336, 4096, BF16, True),
    (4096, 4096, 128, BF16, False), (126, 1536, 384, BF16, False),
    (1008, 1024, 1024, F16, False), (126, 1536, 384, F32, False),
    (1024, 1024, 1024, F32, False), (4096, 4096, 4096, F32, False),
    # Of the encoder and the decoder that the examples tune, at one sequence and at eight.
    (128, 384, 384, F32, False), (128, 1536, 384, F32, False), (128, 384, 1536, F32, False),
    (1024, 384, 384, F32, False), (1024, 1536, 384, F32, False), (1024, 384, 1536, F32, False),
    (128, 512, 512, F32, False), (128, 512, 1408, F32, False), (128, 32000, 512, F32, True),
    (1008, 1024, 1024, F32, False), (126, 768, 3072, F32, False), (126, 768, 3072, BF16, False),
)  # fmt: skip
# m, n, k, scaled by row and column, kinds of 8 bits
_SCALED = (
    (4096, 4096, 4096, False, "e4m3", "e4m3"), (4096, 4096, 4096, True, "e4m3", "e4m3"),
    (8192, 8192, 8192, True, "e4m3", "e4m3"), (4096, 4096, 4096, True, "e4m3", "e5m2"),
    (16, 4096, 4096, True, "e4m3", "e4m3"), (64, 14336, 4096, True, "e4m3", "e4m3"),
    (512, 4096, 14336, False, "e4m3", "e4m3"),
)
# b, h, i, d, dtype, keys, heads that share a key head, causal
_ATTENTIONS = (
    (4, 32, 4096, 128, BF16, 4096, 1, True), (4, 32, 4096, 128, BF16, 4096, 1, False),
    (8, 16, 2048, 64, BF16, 2048, 1, True), (8, 16, 1024, 64, BF16, 1024, 1, False),
    (4, 32, 4096, 64, F16, 4096, 1, True), (2, 32, 2048, 128, BF16, 2048, 4, True),
    (8, 12, 128, 32, F16, 128, 1, False), (1, 12, 126, 64, F32, 126, 1, False),
    (1, 8, 512, 64, F32, 512, 1, True), (4, 32, 512, 128, BF16, 4096, 1, False),
    # The encoder's and the decoder's own.
    (1, 12, 128, 32, F32, 128, 1, False), (8, 12, 128, 32, F32, 128, 1, False),
    (1, 8, 128, 64, F32, 128, 4, True), (2, 16, 4096, 256, BF16, 4096, 1, True),
    # Decoding: one query, or a few, of each head over many keys.
    (1, 32, 1, 128, BF16, 8192, 4, False), (1, 32, 1, 128, BF16, 32768, 4, False),
    (16, 32, 1, 128, BF16, 8192, 4, False), (8, 28, 4, 128, BF16, 8192, 7, False),
)  # fmt: skip


def _product_case(m: int, n: int, k: int, dtype: str, transposed: bool) -> Iterator[Case]:
    name = f"mm{'t' if transposed else ''}.{m}x{n}x{k}.{_SHORT[dtype]}"
    peer = "mmt" if transposed else "mm"
    yield Case(name, lambda: product(m, n, k, dtype, transposed), (peer,))
    if dtype == F32:
        yield Case(f"{name}.tf32", lambda: product(m, n, k, dtype, transposed), (f"{peer}.tf32",),
                   ("tf32",))  # fmt: skip


def _scaled_case(m: int, n: int, k: int, rows: bool, a: str, b: str) -> Case:
    """Beside the library's product, exact to float32 in its sums or not."""
    kinds = a if a == b else f"{a}x{b}"
    return Case(
        f"scaled.{'row' if rows else 'tensor'}.{m}x{n}x{k}.{kinds}",
        lambda: scaled_product(m, n, k, rows, f"float8_{a}", f"float8_{b}"),
        ("scaled_mm", "scaled_mm.fast"),
    )


def _attention_case(
    b: int, h: int, i: int, d: int, dtype: str, j: int, groups: int, causal: bool
) -> Case:
    kind = "causal" if causal else "full"
    shared = f"g{groups}" if groups > 1 else ""
    keys = f"k{j}" if j != i else ""
    name = f"attn.{kind}.b{b}h{h}{shared}t{i}{keys}d{d}.{_SHORT[dtype]}"
    backends = ("efficient", "math") if dtype == F32 else ("cudnn", "flash")
    peers = tuple(f"sdpa.{kind}.{backend}" for backend in backends)
    return Case(
        name,
        lambda: attention(b, h, i, d, dtype, j=j, groups=groups, causal=causal), peers,
        share=(i + 1) / (2 * i) if causal else 1.0,
    )  # fmt: skip


def cases() -> tuple[Case, ...]:
    """All programs of the campaign, in the order in which they are measured."""
    products = [c for row in _PRODUCTS for c in _product_case(*row)]
    attentions = [_attention_case(*row) for row in _ATTENTIONS]
    fused = [
        Case("gelu_linear.512x4096x1024.bf16", lambda: gelu_linear(512, 4096, 1024, BF16),
             ("gelu_linear",)),
        Case("gelu_linear.1008x1536x384.fp32", lambda: gelu_linear(1008, 1536, 384, F32),
             ("gelu_linear",)),
        Case("swiglu.1024x1024x2816.bf16", lambda: gated_pair(1024, 1024, 2816, BF16),
             ("swiglu",)),
    ]  # fmt: skip
    rows = [
        Case("softmax.8192x4096.bf16", lambda: softmax(8192, 4096, BF16), ("softmax",)),
        Case("softmax.4096x1000.fp32", lambda: softmax(4096, 1000, F32), ("softmax",)),
        Case("layernorm.8192x4096.bf16", lambda: layernorm(8192, 4096, BF16), ("layernorm",)),
        Case("layernorm.1008x384.fp32", lambda: layernorm(1008, 384, F32), ("layernorm",)),
        Case("rmsnorm.8192x4096.bf16", lambda: rmsnorm(8192, 4096, BF16), ("rmsnorm",)),
    ]
    # The kinds in turn, so that a run that is cut short has seen all of them.
    scaled = [_scaled_case(*row) for row in _SCALED]
    columns = (products, attentions, scaled, [*fused, *rows])
    longest = max(map(len, columns))
    return tuple(c[n] for n in range(longest) for c in columns if n < len(c))
