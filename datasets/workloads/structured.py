"""Structured linear maps: Monarch, butterflies, Hadamard, long convolutions, chains, products."""

from __future__ import annotations

import math

from autosched.datasets.workloads.define import normal, workload
from autosched.datasets.workloads.terms import (
    F32,
    inputs,
    number,
    results,
    state,
    weights,
)
from autosched.ir.node import Node, Program
from autosched.ir.ops import cast, const, eq, fold, get, iota, map_, reaxis, sum_, take, where


def split(x: Node, axis: str, outer: str, rows: int, inner: str) -> Node:
    """An axis as two: `outer` of `rows` places and `inner` of the rest."""
    width = int(x.extent(axis)) // rows
    return reaxis(x, {axis: iota(outer, rows) * width + iota(inner, width)})


def joined(x: Node, outer: str, inner: str, axis: str) -> Node:
    """Two axes as one, `outer` of the larger steps."""
    rows, width = int(x.extent(outer)), int(x.extent(inner))
    at = iota(axis, rows * width)
    return reaxis(x, {outer: at // width, inner: at % width})


# ---- Monarch and butterflies -----------------------------------------------------------------

MONARCH_SHAPES = {
    f"{n} in {k}": {"b": 16384, "k": k, "q": n // k, "p": n // k, "l": n // k, "s": k, "r": k}
    for n, k in ((1024, 32), (4096, 64), (16384, 128))
} | {"4096 in 4": {"b": 16384, "k": 4, "q": 1024, "p": 1024, "l": 4, "s": 1024, "r": 1024}}


@workload("F1", "C T", {"b": 3, "k": 4, "q": 3, "p": 5, "l": 2, "s": 7, "r": 6, "dtype": F32},
          MONARCH_SHAPES)  # fmt: skip
def monarch(
    *, b: int, k: int, q: int, p: int, l: int, s: int, r: int, dtype: str = "bfloat16"
) -> Program:
    """Two block-diagonal maps, k blocks q x p and l blocks s x r, transposed between and after."""
    sizes = {"b": b, "x": k * p, "k": k, "q": q, "p": p, "l": l, "s": s, "r": r}
    (x,), (w1, w2) = inputs(sizes, dtype, x="b x"), weights(sizes, dtype, w1="k q p", w2="l s r")
    first = sum_("p", w1 * split(x, "x", "k", k, "p"))
    turned = split(joined(first, "k", "q", "m"), "m", "r", r, "l")
    second = sum_("r", w2 * turned)
    return results(dtype, y=("b y", joined(second, "s", "l", "y")))


def partner(stage: Node, n: int) -> Node:
    """Where the other element of each pair lies in a stage of pairs 2^stage apart."""
    return map_("bitxor", iota("n", n), map_("shl", const(1, "int32"), stage))


@workload("F2", "T", {"b": 3, "stages": 4, "dtype": F32},
          {str(2**k): {"b": 8192, "stages": k} for k in (8, 10, 12)})  # fmt: skip
def butterfly(*, b: int, stages: int, dtype: str = "bfloat16") -> Program:
    """Stages of learned 2 x 2 mixes of elements 1, 2, 4, ... apart."""
    n = 2**stages
    s = {"b": b, "n": n, "g": stages}
    (x,), (own, other) = inputs(s, dtype, x="b n"), weights(s, dtype, own="g n", other="g n")
    y = state("y", s, "b n")
    mixed = own * y + other * take(y, "n", partner(iota("g", stages), n))
    return results(dtype, y=("b n", get(fold("g", [(0, stages)], {"y": (x, mixed)}))))


FWHT_SHAPES = {str(2**k): {"b": 8192, "stages": k} for k in (4, 7, 12)}


@workload("F2 E4 E7", "T", {"b": 3, "stages": 5, "dtype": F32}, FWHT_SHAPES)
def fwht(*, b: int, stages: int, dtype: str = "bfloat16") -> Program:
    """The normalised Walsh-Hadamard transform by stages of sums and differences."""
    n, stage = 2**stages, iota("g", stages)
    s = {"b": b, "n": n}
    (x,), y = inputs(s, dtype, x="b n"), state("y", s, "b n")
    late = map_("bitand", iota("n", n), map_("shl", const(1, "int32"), stage)) > 0
    mixed = take(y, "n", partner(stage, n)) + where(late, -y, y)
    whole = get(fold("g", [(0, stages)], {"y": (x, mixed)}))
    return results(dtype, y=("b n", whole * n**-0.5))


@workload("F2 E4 E7", "C T", {"b": 3, "stages": 5, "dtype": F32}, FWHT_SHAPES)
def hadamard(*, b: int, stages: int, dtype: str = "bfloat16") -> Program:
    """The same against the matrix of signs (-1)^popcount(i & j)."""
    n = 2**stages
    (x,) = inputs({"b": b, "n": n}, dtype, x="b n")
    ones = map_("popcount", map_("bitand", iota("m", n), iota("n", n)))
    signs = where(eq(ones % 2, 0), number(1.0), -1.0)
    return results(dtype, y=("b m", sum_("n", x * signs) * n**-0.5))


# ---- long convolutions -----------------------------------------------------------------------

Complex = tuple[Node, Node]


def roots(a: Node, b: Node, n: int, sign: int) -> Complex:
    """exp(sign 2 pi i a b / n), the product reduced before it is a float."""
    angle = cast((a * b) % n, F32) * (sign * 2 * math.pi / n)
    return map_("cos", angle), map_("sin", angle)


def product(x: Complex, y: Complex) -> Complex:
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def contract(axis: str, x: Complex, y: Complex) -> Complex:
    real, imaginary = product(x, y)
    return sum_(axis, real), sum_(axis, imaginary)


def spectrum(x: Node, axis: str, n1: int, n2: int) -> Complex:
    """The transform of x along an axis, padded to n1 n2, as X[k1, k2] of frequency k1 + n1 k2:
    matrices of n1 and of n2 points with twiddles between."""
    at = iota("n1", n1) * n2 + iota("n2", n2)
    t = int(x.extent(axis))
    padded = where(at < t, reaxis(x, {axis: map_("min", at, t - 1)}), 0.0)
    k1, k2, n = iota("k1", n1), iota("k2", n2), n1 * n2
    first = contract("n1", (padded, number(0.0)), roots(iota("n1", n1), k1, n1, -1))
    return contract("n2", product(first, roots(iota("n2", n2), k1, n, -1)),
                    roots(iota("n2", n2), k2, n2, -1))  # fmt: skip


@workload("F1", "C T", {"b": 2, "t": 7, "d": 3, "n1": 3, "n2": 5, "dtype": F32},
          {"4k": {"b": 8, "t": 4096, "d": 768, "n1": 64, "n2": 128},
           "8k": {"b": 4, "t": 8192, "d": 768, "n1": 128, "n2": 128}},
          {"h": normal(0.3)})  # fmt: skip
def m2_long_convolution(
    *, b: int, t: int, d: int, n1: int, n2: int, dtype: str = "bfloat16"
) -> Program:
    """Gated causal convolution over the whole sequence, gate iFFT(FFT(u) FFT(h)), by transforms
    of n1 n2 >= 2 t - 1 points in Monarch form."""
    s, n = {"b": b, "t": t, "d": d}, n1 * n2
    (u, gate), (h,) = inputs(s, dtype, u="b d t", gate="b d t"), weights(s, F32, h="d t")
    both = product(spectrum(u, "t", n1, n2), spectrum(h, "t", n1, n2))
    back = contract("k2", both, roots(iota("n2", n2), iota("k2", n2), n2, 1))
    back = product(back, roots(iota("n2", n2), iota("k1", n1), n, 1))
    y, _ = contract("k1", back, roots(iota("n1", n1), iota("k1", n1), n1, 1))
    y = reaxis(y, {"n1": iota("t", t) // n2, "n2": iota("t", t) % n2}) / float(n)
    return results(dtype, y=("b d t", gate * y))


# ---- chains and products ---------------------------------------------------------------------


@workload("F3", "C", {"m": 5, "k": 11, "r": 3, "n": 7, "dtype": F32}, {
    f"{k}-{r}-{n} m{m}": {"m": m, "k": k, "r": r, "n": n}
    for m in (1, 16, 4096) for k, r, n in ((6144, 2048, 24576), (24576, 2048, 6144))})  # fmt: skip
def low_rank_chain(*, m: int, k: int, r: int, n: int, dtype: str = "bfloat16") -> Program:
    """y = B (A x): two contractions with a narrow middle."""
    s = {"m": m, "k": k, "r": r, "n": n}
    (x,), (a, c) = inputs(s, dtype, x="m k"), weights(s, dtype, a="r k", b="n r")
    return results(dtype, y=("m n", sum_("r", c * sum_("k", a * x))))


F8_SHAPES = {
    f"lmax {l}": {"b": 10_000, "u": 1, **dict.fromkeys(("l1", "l2", "l3"), (l + 1) ** 2),
                  "grid": 4 * (l + 1) ** 2}
    for l in (1, 3, 6)
}  # fmt: skip
F8_SMALL = {"b": 3, "u": 2, "l1": 4, "l2": 9, "l3": 5, "grid": 11, "dtype": F32}


@workload("F8", "C T", F8_SMALL, F8_SHAPES)
def tensor_product(
    *, b: int, u: int, l1: int, l2: int, l3: int, grid: int = 0, dtype: str = "float32"
) -> Program:
    """z3 = sum C[1, 2, 3] x1 y2: a constant tensor of coupling coefficients, for u channels."""
    s = {"b": b, "u": u, "i": l1, "j": l2, "k": l3}
    (x, y), (c,) = inputs(s, dtype, x="b u i", y="b u j"), weights(s, dtype, c="i j k")
    return results(dtype, z=("b u k", sum_("i", x * sum_("j", c * y))))


@workload("F8", "C T", F8_SMALL, F8_SHAPES)
def gaunt_tensor_product(
    *, b: int, u: int, l1: int, l2: int, l3: int, grid: int, dtype: str = "float32"
) -> Program:
    """G3' ((G1 x) (G2 y)): both on the points of a sphere, multiplied, and back."""
    s = {"b": b, "u": u, "i": l1, "j": l2, "k": l3, "p": grid}
    x, y = inputs(s, dtype, x="b u i", y="b u j")
    g1, g2, g3 = weights(s, dtype, g1="p i", g2="p j", g3="p k")
    points = sum_("i", g1 * x) * sum_("j", g2 * y)
    return results(dtype, z=("b u k", sum_("p", g3 * points)))
