"""Linear layers on coded weights and activations: formats, group scales, rotations, mixed rows.

Weights lie as w[n, k]; a group axis is kg. What codes mean and how they lie is in `codecs`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from autosched.datasets.workloads import packing
from autosched.datasets.workloads.codecs import (
    CODECS,
    I32,
    absmax,
    coded,
    codes,
    dense24,
    encoded,
    grouped,
    hadamard,
    largest,
    packed,
    product,
    quantised,
    scaled_dot,
    scales,
    spread,
    ungrouped,
    words,
)
from autosched.datasets.workloads.define import Draw, Sizes, integers, uniform, workload
from autosched.datasets.workloads.formats import clamp, exponent_of, power_of_two, up_by_chance
from autosched.datasets.workloads.terms import F32, inputs, mean, results, rmsnorm, silu, weights
from autosched.ir.node import Node, Program
from autosched.ir.ops import abs_, cast, map_, maximum, minimum, sum_, take, where

E4M3 = "float8_e4m3"
BYTES, OCTETS, WORDS = integers(0, 256), integers(-128, 128), integers(0, 2**32)
SCALES = uniform(0.5, 2.0)


def code_draw(name: str = "", below: int | None = None, along: str = "k") -> Draw:
    """Words of random codes with finite values (and `below` a number) of the codec `name`, or of
    the one that the size `codec` names, along the axis `along`."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
        codec = CODECS[name or sizes["codec"]]
        allowed = np.flatnonzero(np.isfinite(codec.format.table))[:below]
        rows = shape[: -2 if codec.layout == "planes" else -1]
        drawn = rng.choice(allowed, (*rows, sizes[along]))
        return packing.pack(drawn, codec.bits, codec.word, codec.layout)

    return draw


def places_draw(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Words of places of 2 in every 4 elements, ascending."""
    quads = (*shape[:-1], sizes["k"] // 4, 4)
    places = np.sort(np.argsort(rng.random(quads), axis=-1)[..., :2], axis=-1)
    codec = CODECS["index 2:4"]
    return packing.pack(places.reshape(*shape[:-1], -1), codec.bits, codec.word, codec.layout)


def order_draw(rng: np.random.Generator, shape: tuple[int, ...], _: Sizes) -> np.ndarray:
    return rng.permutation(shape[0])


def rotated(x: Node, axis: str, size: int) -> Node:
    """x times the Hadamard matrix in blocks of `size` along an axis."""
    blocks = grouped(x, axis, size, "hb", "hj")
    turned = sum_("hj", hadamard("hi", "hj", size) * blocks)
    return ungrouped(turned, "hb", "hi", axis, int(x.extent(axis)))


def linear(codec: str, x: Node, s: Sizes, g: int, place: str = "") -> Node:
    """x[m, k] times the weights w[n, k] of a codec, with its scales ws, groups of g along k."""
    w = coded(CODECS[codec], "w", s, "n k", "k")
    scale = replace(CODECS[codec].scale, group=g)
    by = scales(scale, "ws", s, "n k", "k")
    return scaled_dot("k", x, w, by, place or scale.place, g)


def llm(models: dict[str, list[tuple[int, int]]], ms: list[int], **rest: Any) -> dict[str, Sizes]:
    """Shapes m, k, n by name of model."""
    return {f"{name} {k}x{n} m{m}": {"m": m, "k": k, "n": n, **rest}
            for name, layers in models.items() for k, n in layers for m in ms}  # fmt: skip


# ---- integer weights ---------------------------------------------------------------------------

SMALL = {"m": 3, "n": 7, "k": 70, "g": 32, "dtype": "float32"}
DENSE = {"m": 3, "n": 7, "k": 70, "dtype": "float32"}
FULL = {**DENSE, "k": 96}  # where blocks must be full
WHOLE = {**SMALL, "k": 96}
MARLIN = {
    "Llama7B": [(4096, 12288), (4096, 4096), (4096, 21504), (10752, 4096)],
    "Llama65B": [(8192, 24576), (8192, 8192), (8192, 43520), (21760, 8192)],
}
MARLIN_SHAPES = llm(MARLIN, [1, 4, 16, 32, 64, 128, 512])


@workload("E1", "C Q", SMALL, MARLIN_SHAPES, {"w": WORDS, "ws": SCALES})
def marlin(*, m: int, n: int, k: int, g: int = 128, dtype: str = "float16") -> Program:
    """x times (u4 - 8) with a scale per 128 of k, codes interleaved for pairs of halves."""
    s = {"m": m, "n": n, "k": k}
    (x,) = inputs(s, dtype, x="m k")
    return results(dtype, y=("m n", linear("marlin", x, s, g)))


@workload("E1", "C Q", WHOLE, llm({"suite": [(8192, 24576)]}, [16, 64, 256, 1024]),
          {"w": WORDS, "index": places_draw, "ws": SCALES})  # fmt: skip
def sparse_marlin(*, m: int, n: int, k: int, g: int = 128, dtype: str = "float16") -> Program:
    """`marlin` where 2 of every 4 weights along k are kept, with their places in 2 bits."""
    s, half = {"m": m, "n": n, "k": k}, {"n": n, "k": k // 2}
    (x,) = inputs(s, dtype, x="m k")
    kept = coded(CODECS["marlin 2:4"], "w", half, "n k", "k")
    w = dense24(kept, coded(CODECS["index 2:4"], "index", half, "n k", "k"), "k", k)
    by = scales(replace(CODECS["marlin 2:4"].scale, group=g), "ws", s, "n k", "k")
    return results(dtype, y=("m n", scaled_dot("k", x, w, by, "before", g)))


FIREQ_SHAPES = {f"Llama3-8B {t}k {e}": {"m": 1024 * t, "k": 4096, "n": 14336, "epilogue": e}
                for t in (1, 4, 16, 64) for e in ("none", "mul", "add", "silu")}  # fmt: skip


@workload("E2", "C Q", {**SMALL, "epilogue": "none", "dtype": "float32"}, FIREQ_SHAPES,
          {"w": BYTES, "ws": SCALES, "xs": SCALES})  # fmt: skip
def fireq_linear(
    *, m: int, n: int, k: int, g: int = 128, epilogue: str = "none", acts: str = E4M3,
    dtype: str = "bfloat16",
) -> Program:  # fmt: skip
    """E4M3 tokens times int4 weights, an E4M3 scale per group, then a scale per token; acts:
    "bfloat16" is the twin without token scales."""
    s = {"m": m, "n": n, "k": k}
    (x,) = inputs(s, acts, x="m k")
    scale = replace(CODECS["s4"].scale, group=g, dtype=E4M3)
    w, by = coded(CODECS["s4"], "w", s, "n k", "k"), scales(scale, "ws", s, "n k", "k")
    y = scaled_dot("k", x, w, by, scale.place, g)
    y = y * inputs(s, F32, xs="m")[0] if acts == E4M3 else y
    other = inputs(s, dtype, r="m n")[0] if epilogue in ("mul", "add") else y
    after = {"none": y, "mul": y * other, "add": y + other, "silu": silu(y)}
    return results(dtype, y=("m n", after[epilogue]))


@workload("E5", "C Q", {**SMALL, "r": 4},
          {f"{n} r{r} m{m}": {"m": m, "n": n, "k": n, "r": r}
           for n in (4096, 8192, 16384) for r in (2, 3, 4, 6, 8) for m in (1, 64)},
          {"w": WORDS, "ws": SCALES})  # fmt: skip
def matgptq(*, m: int, n: int, k: int, r: int, g: int = 128, dtype: str = "float16") -> Program:
    """r bits of an 8-bit parent, rounded by the next bit; only r + 1 of its planes are read."""
    s, codec = {"m": m, "n": n, "k": k}, CODECS["parent8"]
    (x,) = inputs(s, dtype, x="m k")
    stored, low = words(codec, "w", s, "n k", "k"), max(7 - r, 0)
    code = codes(codec, stored, "k", k, lowest=low)
    if r < 8:  # the upper r bits, plus the bit below them
        code = minimum(map_("shr", code, 1) + map_("bitand", code, 1), 2**r - 1)
    w = codec.format.decode(map_("shl", code, 8 - r))
    by = scales(replace(codec.scale, group=g), "ws", s, "n k", "k")
    return results(dtype, y=("m n", scaled_dot("k", x, w, by, codec.scale.place, g)))


@workload("E7", "C Q T", {**WHOLE, "k": 64, "g": 16, "rotate": "weights"},
          {f"{m} {form}": {"m": m, "n": 4096, "k": 4096, "rotate": form}
           for m in (1, 16, 256) for form in ("weights", "tokens")},
          {"w": WORDS, "ws": SCALES, "z": uniform(1.0, 6.0)})  # fmt: skip
def itq3(
    *, m: int, n: int, k: int, g: int = 256, rotate: str = "weights", dtype: str = "float16"
) -> Program:
    """3-bit codes of rotated weights: H d (code - z) in blocks of k; or x is rotated instead."""
    s, codec = {"m": m, "n": n, "k": k, "kg": k // g}, CODECS["itq3"]
    (x,), (d, z) = inputs(s, dtype, x="m k"), weights(s, "float16", ws="n kg", z="n kg")
    code = cast(coded(codec, "w", s, "n k", "k"), F32)
    w = spread(d, "kg", "k", k, g) * (code - spread(z, "kg", "k", k, g))
    y = x * rotated(w, "k", g) if rotate == "weights" else rotated(x, "k", g) * w
    return results(dtype, y=("m n", sum_("k", y)))


# ---- integer weights and activations -----------------------------------------------------------


@workload("E3", "C Q", DENSE, llm({"suite": [(4096, 4096), (8192, 28672)]}, [1, 16, 64, 4096]),
          {"x": OCTETS, "w": OCTETS, "xs": SCALES, "ws": SCALES})  # fmt: skip
def w8a8(*, m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """int8 times int8, a scale per token and one per channel."""
    s = {"m": m, "n": n, "k": k}
    (x,), (w,) = inputs(s, "int8", x="m k"), weights(s, "int8", w="n k")
    (xs,), (ws,) = inputs(s, F32, xs="m"), weights(s, F32, ws="n")
    return results(dtype, y=("m n", scaled_dot("k", x, w, xs * ws, "after")))


@workload("E2 E13", "C Q", {**SMALL, "kind": "tensor"},
          {f"{m}x{k}x{n} {kind}": {"m": m, "n": n, "k": k, "kind": kind}
           for m, k, n in ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 8192, 28672),
                           (512, 4096, 4096), (64, 4096, 4096), (16, 4096, 14336))
           for kind in ("tensor", "row", "block")},
          dict.fromkeys(("xs", "ws"), SCALES))  # fmt: skip
def fp8_gemm(
    *, m: int, n: int, k: int, g: int = 128, kind: str = "tensor", dtype: str = "bfloat16"
) -> Program:
    """E4M3 times E4M3; scales of the tensors, of rows, or of 1 x g and g x g blocks."""
    s = {"m": m, "n": n, "k": k, "kg": -(-k // g), "ng": -(-n // g)}
    (x,), (w,) = inputs(s, E4M3, x="m k"), weights(s, E4M3, w="n k")
    left, right = {"tensor": ("", ""), "row": ("m", "n"), "block": ("m kg", "ng kg")}[kind]
    (xs,), (ws,) = inputs(s, F32, xs=left), weights(s, F32, ws=right)
    ws = spread(ws, "ng", "n", n, g) if kind == "block" else ws
    place = "group" if kind == "block" else "after"
    return results(dtype, y=("m n", scaled_dot("k", x, w, xs * ws, place, g)))


@workload("E6", "C Q I", {**SMALL, "n": 11, "n8": 3},
          {f"r {r}": {"m": 512, "n": 4096, "k": 4096, "n8": round(4096 * r)} for r in (0.1, 0.5)},
          {"w8": BYTES, "w4": BYTES, "x": integers(-127, 128), "slot": order_draw,
           "zero": integers(0, 16), **dict.fromkeys(("xs", "ws8", "ws4"), SCALES)})  # fmt: skip
def mixllm(*, m: int, n: int, k: int, n8: int, g: int = 128, dtype: str = "float16") -> Program:
    """int8 tokens times n8 rows of 8 bits and the rest of 4 bits with zero points, scales per
    group; slot[n] is where each output lies among the rows, those of 8 bits first."""
    s = {"m": m, "n": n, "k": k, "kg": -(-k // g), "p": n8, "q": n - n8}
    (x,), (xs,), (slot,) = inputs(s, "int8", x="m k"), inputs(s, F32, xs="m kg"), weights(
        s, I32, slot="n")  # fmt: skip
    ws8, ws4 = weights(s, "float16", ws8="p kg", ws4="q kg")
    w8 = coded(CODECS["s8"], "w8", s, "p k", "k")
    (zero,) = weights(s, "int8", zero="q kg")
    w4 = coded(CODECS["u4"], "w4", s, "q k", "k") - spread(zero, "kg", "k", k, g)
    y8, y4 = (scaled_dot("k", x, w, xs * ws, "group", g) for w, ws in ((w8, ws8), (w4, ws4)))
    of8, of4 = take(y8, "p", minimum(slot, n8 - 1)), take(y4, "q", maximum(slot - n8, 0))
    return results(dtype, y=("m n", where(slot < n8, of8, of4)))


@workload("E8", "C Q I", {**WHOLE, "k": 160, "b8": 2},
          {f"m{m}": {"m": m, "n": 4096, "k": 4096, "b8": 4} for m in (1, 16, 256)},
          {"x8": integers(-127, 128), "x4": BYTES, "w": BYTES, "slot": order_draw, "xs": SCALES,
           "ws": SCALES})  # fmt: skip
def comet(*, m: int, n: int, k: int, b8: int, g: int = 128, dtype: str = "float16") -> Program:
    """int4 weights times tokens whose blocks of channels have 8 or 4 bits; slot[kg] is where a
    block lies, the b8 blocks of 8 bits first."""
    s = {"m": m, "n": n, "k": k, "kg": k // g, "p": b8, "q": k // g - b8, "u": g}
    (x8,), (xs,), (slot,) = inputs(s, "int8", x8="m p u"), inputs(s, F32, xs="m kg"), inputs(
        s, I32, slot="kg")  # fmt: skip
    x4 = coded(CODECS["s4"], "x4", s, "m q u", "u", kind="arg")
    wide, narrow = take(x8, "p", minimum(slot, b8 - 1)), take(x4, "q", maximum(slot - b8, 0))
    x, (ws,) = where(slot < b8, wide, narrow), weights(s, "float16", ws="n kg")
    w = grouped(coded(CODECS["s4"], "w", s, "n k", "k"), "k", g, "kg", "u")
    y = sum_("kg", cast(sum_("u", product(x, w)), F32) * (xs * ws))
    return results(dtype, y=("m n", y))


@workload("E10", "C Q", DENSE, {f"m{m}": {"m": m, "k": 2560, "n": 6912} for m in (1, 8192)},
          {"w": code_draw("ternary", 3), "ws": SCALES})  # fmt: skip
def bitlinear(*, m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """RMS norm, int8 tokens by their largest value, ternary weights with one scale."""
    s = {"m": m, "n": n, "k": k}
    (x,) = inputs(s, dtype, x="m k")
    normed, scale = rmsnorm("k", x), scales(CODECS["ternary"].scale, "ws", s, "n k", "k")
    token, by = absmax(CODECS["s8"], normed, "k")
    w = coded(CODECS["ternary"], "w", s, "n k", "k")
    return results(dtype, y=("m n", scaled_dot("k", token, w, by * scale, "after")))


@workload("E10", "C Q", DENSE, {"m8192": {"m": 8192, "k": 2560, "n": 6912}})
def bitlinear_training(*, m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """`bitlinear` that makes its weights: clip(round(w / mean|w|), +-1) times the mean."""
    s = {"m": m, "n": n, "k": k}
    (x,), (raw,) = inputs(s, dtype, x="m k"), inputs(s, dtype, w="n k")
    token, by = absmax(CODECS["s8"], rmsnorm("k", x), "k")
    scale = mean("n k", abs_(raw))
    w = cast(clamp(map_("round", raw / scale), -1.0, 1.0), "int8")
    return results(dtype, y=("m n", scaled_dot("k", token, w, by * scale, "after")))


@workload("E13", "C Q", DENSE, {"m4096": {"m": 4096, "k": 4096, "n": 4096}},
          {"w": BYTES, "ws": SCALES})  # fmt: skip
def crossquant(
    *, m: int, n: int, k: int, alpha: float = 0.15, dtype: str = "float16"
) -> Program:
    """int8 tokens with the scale (row max)**alpha (column max)**(1 - alpha) / 127."""
    s = {"m": m, "n": n, "k": k}
    (x,), (ws,) = inputs(s, dtype, x="m k"), weights(s, F32, ws="n")
    rows, columns = map_("pow", largest(x, "k"), alpha), map_("pow", largest(x, "m"), 1 - alpha)
    q = quantised(CODECS["s8"], x / (rows * columns / 127.0))
    w = coded(CODECS["s8"], "w", s, "n k", "k")
    y = sum_("k", cast(q, F32) * (columns * cast(w, F32)))
    return results(dtype, y=("m n", y * (rows / 127.0) * ws))


# ---- floats of few bits ------------------------------------------------------------------------


def block_scale(most: Node, whole: Node | None = None) -> Node:
    """The scale of a group whose largest magnitude is `most`: a power of two (mxfp4), or E4M3
    under one scale of the tensor (nvfp4)."""
    if whole is None:
        return power_of_two(exponent_of(most) - 2)  # the greatest binade of E2M1
    rounded = cast(cast(most / (whole * 6.0), E4M3), F32)
    return maximum(rounded, 2.0**-9) * whole


@workload("E4", "C Q T", {**FULL, "kind": "mxfp4", "h": 32},
          {f"m{m} {kind} H{h}": {"m": m, "k": 8192, "n": 28672, "kind": kind, "h": h}
           for m in (1, 16, 64, 8192) for kind in ("mxfp4", "nvfp4") for h in (16, 32, 128)},
          {"w": BYTES, "ws": lambda rng, shape, sizes: rng.integers(119, 127, shape)
           if sizes["kind"] == "mxfp4" else rng.uniform(0.5, 2.0, shape),
           "xt": uniform(0.001, 0.002), "wt": SCALES})  # fmt: skip
def mr_gptq(
    *, m: int, n: int, k: int, kind: str, h: int, dtype: str = "bfloat16"
) -> Program:
    """Tokens rotated in blocks of h and brought to E2M1 in groups, times rotated E2M1 weights;
    scales are powers of two per 32 (mxfp4) or E4M3 per 16 and one of the tensor (nvfp4)."""
    s, codec = {"m": m, "n": n, "k": k}, CODECS[kind]
    size = codec.scale.group
    (x,) = inputs(s, dtype, x="m k")
    blocks = grouped(rotated(x, "k", h), "k", size, "kg", "u")
    tensor = (None, None) if kind == "mxfp4" else inputs(s, F32, xt="", wt="")
    xs = block_scale(largest(blocks, "u"), tensor[0])
    tokens = ungrouped(quantised(codec, blocks / xs), "kg", "u", "k", k)
    y = scaled_dot("k", tokens, coded(codec, "w", s, "n k", "k"),
                   xs * scales(codec.scale, "ws", s, "n k", "k"), "group", size)  # fmt: skip
    return results(dtype, y=("m n", y if tensor[1] is None else y * tensor[1]))


@workload("E4", "Q T", {"m": 3, "k": 96, "h": 32, "dtype": "float32"},
          {f"8k H{h}": {"m": 8192, "k": 8192, "h": h} for h in (16, 32, 128)})  # fmt: skip
def rotate_and_pack(*, m: int, k: int, h: int, dtype: str = "bfloat16") -> Program:
    """Tokens rotated in blocks of h, stored as E2M1 codes with a power of two per 32."""
    (x,), codec = inputs({"m": m, "k": k}, dtype, x="m k"), CODECS["mxfp4"]
    blocks = grouped(rotated(x, "k", h), "k", 32, "kg", "u")
    scale = block_scale(largest(blocks, "u"))
    code = ungrouped(encoded(codec, blocks / scale), "kg", "u", "k", k)
    exponent = cast(encoded(CODECS["e8m0"], scale), "uint8")
    return results(dtype, q=("m kw", packed(codec, code, "k")), s=("m kg", exponent))


@workload("E13", "C Q", {**SMALL, "codec": "e3m2", "place": "before"},
          {f"{c} {p}": {"m": 16, "k": 4096, "n": 4096, "codec": c, "place": p}
           for c in ("e2m1", "e2m2", "e3m2", "e2m3", "e4m3", "e5m2") for p in ("before", "group")},
          {"w": code_draw(), "ws": SCALES})  # fmt: skip
def minifloat_linear(
    *, m: int, n: int, k: int, codec: str, place: str, g: int = 128, dtype: str = "bfloat16"
) -> Program:
    """x times weights of any ExMy format; place: the scale of a group before its sum, or after
    it (MixPE)."""
    s = {"m": m, "n": n, "k": k, "kg": -(-k // g)}
    (x,), (ws,) = inputs(s, dtype, x="m k"), weights(s, "float16", ws="n kg")
    y = scaled_dot("k", x, coded(CODECS[codec], "w", s, "n k", "k"), ws, place, g)
    return results(dtype, y=("m n", y))


@workload("E13", "C Q T", FULL, {"m4096": {"m": 4096, "k": 4096, "n": 4096}},
          {"noise": uniform(0.0, 1.0)})  # fmt: skip
def fp4_training(*, m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """Both sides rotated by H16 and brought to E2M1 with UE5M3 scales per 16; x is rounded up or
    down by chance."""
    s = {"m": m, "n": n, "k": k}
    (x,), (w,), (noise,) = inputs(s, dtype, x="m k"), inputs(s, dtype, w="n k"), inputs(
        s, F32, noise="m k")  # fmt: skip

    def fp4(value: Node, rounded: Any) -> tuple[Node, Node]:
        blocks = grouped(rotated(value, "k", 16), "k", 16, "kg", "u")
        scale = quantised(CODECS["ue5m3"], largest(blocks, "u") / 6.0)
        return quantised(CODECS["e2m1"], blocks / scale, *rounded), scale

    up = up_by_chance(grouped(noise, "k", 16, "kg", "u"))
    (a, sa), (b, sb) = fp4(x, (up,)), fp4(w, ())
    return results(dtype, y=("m n", sum_("kg", sum_("u", a * b) * (sa * sb))))
