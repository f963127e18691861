"""Products without multipliers: bit planes and popcounts, shifts, selections, added exponents."""

from __future__ import annotations

from autosched.datasets.workloads.codecs import (
    CODECS,
    I32,
    codes,
    grouped,
    scaled_dot,
    words,
)
from autosched.datasets.workloads.define import Sizes, integers, uniform, workload
from autosched.datasets.workloads.terms import F32, inputs, results, softmax, weights
from autosched.ir.node import Node, Program
from autosched.ir.ops import bitcast, cast, const, eq, input_, iota, map_, rename, sum_, where
from autosched.ir.scalar import ITEMSIZE

WORDS, SCALES = integers(0, 2**32), uniform(0.5, 2.0)
DENSE = {"m": 3, "n": 7, "k": 160, "dtype": "float32"}


def plane_weight(axis: str, bits: int, signed: bool) -> Node:
    """2**i of each plane; of the last one -2**i where it is a sign."""
    plane = iota(axis, bits)
    size = map_("shl", const(1, I32), plane)
    return where(eq(plane, bits - 1), -size, size) if signed else size


def plane_pairs(a: Node, b: Node, fn: str, signed: bool, axis: str) -> Node:
    """sum over planes i, j of +-2**(i + j) popcount(fn(a_i, b_j)), summed over words `axis`."""
    a, b = rename(a, {"kp": "i"}), rename(b, {"kp": "j"})
    ones = cast(map_("popcount", map_(fn, a, b)), I32)
    left, right = (plane_weight(p, int(x.extent(p)), signed) for p, x in (("i", a), ("j", b)))
    return sum_(("i", "j"), sum_(axis, ones) * (left * right))


FLEXQ = [(4096, 12288), (4096, 4096), (4096, 11008), (8192, 24576), (8192, 28672), (28672, 8192)]


@workload("E3", "C Q", {**DENSE, "g": 64, "bits": 6, "form": "planes"},
          {f"{k}x{n} m{m} A{bits} {form}": {"m": m, "n": n, "k": k, "bits": bits, "form": form}
           for k, n in FLEXQ for m in (1, 8, 64) for bits in (6, 8) for form in ("planes", "ints")},
          {"x": WORDS, "w": WORDS, "xs": SCALES, "ws": SCALES})  # fmt: skip
def flexq(
    *, m: int, n: int, k: int, bits: int, form: str, g: int = 128, dtype: str = "float16"
) -> Program:
    """6 bits of weights times 6 or 8 of tokens, scales per group; form: by popcounts of planes,
    or by integers made of them."""
    s: Sizes = {"m": m, "n": n, "k": k, "kg": -(-k // g)}
    act, codec = CODECS[f"flexq{bits}"], CODECS["flexq6"]
    x, w = words(act, "x", s, "m k", "k", "arg"), words(codec, "w", s, "n k", "k")
    (xs,), (ws,) = inputs(s, F32, xs="m kg"), weights(s, F32, ws="n kg")
    if form == "planes":
        a, b = (grouped(v, "kw", g // 32, "kg", "u") for v in (x, w))
        sums = cast(plane_pairs(a, b, "bitand", True, "u"), F32)
        return results(dtype, y=("m n", sum_("kg", sums * (xs * ws))))
    a, b = (c.format.decode(codes(c, v, "k", k)) for c, v in ((act, x), (codec, w)))
    return results(dtype, y=("m n", scaled_dot("k", a, b, xs * ws, "group", g)))


@workload("E9", "C Q", {**DENSE, "a": 2, "b": 3, "form": "planes"},
          {f"{n} W{b}A{a} {form}": {"m": n, "n": n, "k": n, "a": a, "b": b, "form": form}
           for n in (1024, 4096, 16384) for b, a in ((1, 2), (2, 2), (4, 4))
           for form in ("planes", "ints")},
          {"x": WORDS, "w": WORDS, "ws": SCALES})  # fmt: skip
def bipolar_linear(
    *, m: int, n: int, k: int, a: int, b: int, form: str, dtype: str = "float16"
) -> Program:
    """Sums of +-2**i times the same: k - 2 popcount(xor) of every two planes, or odd integers."""
    s: Sizes = {"m": m, "n": n, "k": k}
    left, right = CODECS[f"bipolar{a}"], CODECS[f"bipolar{b}"]
    x, w = words(left, "x", s, "m k", "k", "arg"), words(right, "w", s, "n k", "k")
    (ws,) = weights(s, F32, ws="n")
    if form == "planes":
        every = k * (2**a - 1) * (2**b - 1)
        y = every - 2 * plane_pairs(x, w, "bitxor", False, "kw")
        return results(dtype, y=("m n", cast(y, F32) * ws))
    values = (c.format.decode(codes(c, v, "k", k)) for c, v in ((left, x), (right, w)))
    return results(dtype, y=("m n", scaled_dot("k", *values, ws, "after")))


@workload("E11", "C Q", {"m": 5, "n": 7, "k": 37},
          {f"{m}x{k}x{n}": {"m": m, "k": k, "n": n}
           for m, k, n in ((3136, 64, 512), (3136, 512, 64), (784, 128, 1024), (784, 1024, 128))},
          {"x": integers(-32768, 32768), "shift": integers(0, 12)})  # fmt: skip
def mat_shift(*, m: int, n: int, k: int) -> Program:
    """The sum over k of +-(x >> shift) in int32: weights are powers of two and a sign."""
    s = {"m": m, "n": n, "k": k}
    (x,), (shift, sign) = inputs(s, I32, x="m k"), weights(s, "int8", shift="n k", sign="n k")
    moved = map_("shr", x, cast(shift, I32))
    return results("int32", y=("m n", sum_("k", where(sign > 0, moved, -moved))))


@workload("E11 D17", "C Q", {"b": 2, "h": 2, "m": 5, "n": 7, "k": 37, "dtype": "float32"},
          {f"h{h} {k}x{n}x{m}": {"b": 1, "h": h, "k": k, "n": n, "m": m}
           for h, k, n, m in ((1, 3136, 32, 16), (2, 784, 32, 16), (5, 196, 32, 16))},
          {"mask": integers(-1, 2)})  # fmt: skip
def mat_add(*, b: int, h: int, m: int, n: int, k: int, dtype: str = "float32") -> Program:
    """The sum of the rows of v that a code picks."""
    s = {"b": b, "h": h, "m": m, "n": n, "k": k}
    (mask,), (v,) = inputs(s, "int8", mask="b h k m"), inputs(s, dtype, v="b h k n")
    return results(dtype, y=("b h m n", sum_("k", where(mask > 0, v, 0.0))))


BITS = {"float32": ("int32", 23, 127), "bfloat16": ("int16", 7, 127), "float16": ("int16", 10, 15)}


def l_mul(a: Node, b: Node) -> Node:
    """a times b, but with mantissas 1 + p + q + 2**-l for (1 + p)(1 + q): the sum of the bit
    patterns. A carry of p + q goes to the exponent; what would be subnormal is zero, and products
    must not overflow."""
    kind, mantissa, bias = BITS[a.dtype]
    below = mantissa if mantissa <= 3 else 3 if mantissa == 4 else 4
    offset = (bias << mantissa) - (1 << (mantissa - below))
    most = 2 ** (8 * ITEMSIZE[kind] - 1) - 1
    x, y = bitcast(a, kind), bitcast(b, kind)
    left, right = map_("bitand", x, most), map_("bitand", y, most)
    size = left - offset + right
    nothing = (eq(left, 0) | eq(right, 0)) | (size < 1 << mantissa)
    sign = map_("bitand", map_("bitxor", x, y), -most - 1)
    return bitcast(map_("bitor", sign, where(nothing, 0, size)), a.dtype)


@workload("E12", "C Q", {"m": 5, "n": 7, "k": 37, "dtype": "float32"},
          {f"m{m} {dtype}": {"m": m, "n": 4096, "k": 4096, "dtype": dtype}
           for m in (1, 512) for dtype in ("bfloat16", "float32")})  # fmt: skip
def l_mul_linear(*, m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """x w with `l_mul` for products, summed in float32."""
    x = input_("x", {"m": m, "k": k}, dtype)
    w = input_("w", {"n": n, "k": k}, dtype, "weight")
    return results(F32, y=("m n", sum_("k", cast(l_mul(x, w), F32))))


@workload("E12", "C R Q", {"b": 2, "h": 2, "i": 5, "j": 9, "d": 8, "e": 6, "dtype": "float32"},
          {"Llama 1k": {"b": 1, "h": 32, "i": 1024, "j": 1024, "d": 128, "e": 128}})  # fmt: skip
def l_mul_attention(
    *, b: int, h: int, i: int, j: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """Softmax attention whose two contractions are made of `l_mul`."""
    q, k, v = (
        input_(name, dims, dtype) for name, dims in (
            ("q", {"b": b, "h": h, "i": i, "d": d}), ("k", {"b": b, "h": h, "j": j, "d": d}),
            ("v", {"b": b, "h": h, "j": j, "e": e}))
    )  # fmt: skip
    p = softmax("j", sum_("d", cast(l_mul(q, k), F32)) * d**-0.5)
    o = sum_("j", cast(l_mul(cast(p, dtype), v), F32))
    return results(F32, o=("b h i e", o))
