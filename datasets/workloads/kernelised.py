"""Attention by other kernels than the softmax: feature maps, local regression, landmarks."""

from __future__ import annotations

import math
from collections.abc import Callable

from autosched.datasets.workloads.define import Draw, normal, workload
from autosched.datasets.workloads.recurrent import SMALL, qkv
from autosched.datasets.workloads.terms import (
    F32,
    inputs,
    mean,
    norm,
    number,
    relu,
    results,
    spread,
    state,
    weights,
)
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    abs_,
    eq,
    exp,
    fold,
    get,
    iota,
    map_,
    max_,
    reaxis,
    rename,
    sum_,
    tanh,
    where,
)

VISION_SHAPES = {f"n{n}": {"b": 8, "h": h, "t": n, "d": 32, "e": 32}
                 for n, h in ((3136, 3), (784, 6), (196, 12))}  # fmt: skip


def keys(x: Node) -> Node:
    """Rows along t as keys along j."""
    return rename(x, {"t": "j"})


def causal(t: int) -> Node:
    return iota("t", t) >= iota("j", t)


# ---- local linear attention ------------------------------------------------------------------


LLA_DRAWS: dict[str, Draw] = {"q": normal(0.7), "k": normal(0.7)}


@workload(
    "D8", "C R L", {**SMALL, "ridge": 1.0, "rounds": 9},
    {"1k": {"b": 2, "h": 16, "t": 1024, "d": 64, "e": 64, "ridge": 1.0, "rounds": 16}}, LLA_DRAWS,
)  # fmt: skip
def local_linear_attention(
    *, b: int, h: int, t: int, d: int, e: int, ridge: float, rounds: int, dtype: str = "bfloat16"
) -> Program:
    """Local linear regression on the causal keys around each query: o = sum w (1 - z rho) v / down
    with (sum w z z' + ridge) rho = sum w z, solved by conjugate gradients that stream the keys."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    z = keys(k) - q
    w = where(causal(t), exp(sum_("d", q * keys(k)) * d**-0.5), 0.0)
    mu = sum_("j", w * z)
    rho = conjugate_gradients(
        lambda p: sum_("j", w * z * sum_("d", z * p)) + ridge * p, mu, "d", rounds
    )
    down = sum_("j", w) - sum_("d", mu * rho)
    o = sum_("j", w * (1.0 - sum_("d", z * rho)) * keys(v)) / down
    return results(dtype, o=("b h t e", o))


def conjugate_gradients(
    apply: Callable[[Node], Node], rhs: Node, axis: str, rounds: int
) -> Node:
    """x of `apply`(x) = rhs along an axis, after `rounds` from zero; done rows stay as they are."""
    sizes = {a: int(rhs.extent(a)) for a in rhs.names}
    x, r, p = (state(name, sizes, " ".join(sizes)) for name in ("x", "r", "p"))
    after = apply(p)
    rr, pAp = sum_(axis, r * r), sum_(axis, p * after)
    step = where(rr > 0.0, rr / where(pAp > 0.0, pAp, 1.0), 0.0)
    left = r - step * after
    turn = where(rr > 0.0, sum_(axis, left * left) / where(rr > 0.0, rr, 1.0), 0.0)
    states = {"x": (number(0.0), x + step * p), "r": (rhs, left), "p": (rhs, left + turn * p)}
    return get(fold("round", [(0, rounds)], states), 0)


@workload(
    "D8", "C R", {"b": 2, "h": 4, "g": 2, "t": 13, "d": 5, "e": 7, "dtype": F32},
    {"4k": {"b": 2, "h": 32, "g": 8, "t": 4096, "d": 128, "e": 128}},
)  # fmt: skip
def parallax(
    *, b: int, h: int, g: int, t: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """Local linear attention with its correction given by rows r: a softmax, and one weighed by
    r k beside it; o = o1 (1 + mean r k) - o2."""
    s, head = {"b": b, "h": h, "g": g, "t": t, "d": d, "e": e}, {"g": iota("h", h) // (h // g)}
    q, r, k, v = inputs(s, dtype, q="b h t d", r="b h t d", k="b g t d", v="b g t e")
    k, v = keys(reaxis(k, head)), keys(reaxis(v, head))
    scores = where(causal(t), sum_("d", q * k) * d**-0.5, -math.inf)
    p1 = exp(scores - max_("j", scores))
    p2 = p1 * sum_("d", r * k)
    d1, d2 = sum_("j", p1), sum_("j", p2)
    o = sum_("j", p1 * v) / d1 * (1.0 + d2 / d1) - sum_("j", p2 * v) / d1
    return results(dtype, o=("b h t e", o))


# ---- feature maps ----------------------------------------------------------------------------


def rotated(x: Node, axis: str, cos: Node, sin: Node) -> Node:
    """x with the halves of an axis turned by angles."""
    width = int(x.extent(axis))
    at = iota(axis, width)
    turned = reaxis(x, {axis: (at + width // 2) % width})
    return x * cos + where(at < width // 2, -turned, turned) * sin


@workload("D13", "C", {**SMALL, "d": 6}, VISION_SHAPES)
def nalaformer(*, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """Linear attention with a power of q's direction that grows with q's length, and k cubed;
    positive and negative parts are features of their own, rotated in the numerator."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e, "f": 2 * d}
    q, k, v = qkv(s, dtype)
    cos, sin = weights(s, F32, cos="t f", sin="t f")
    at, length = iota("f", 2 * d), norm("d", q)

    def parts(x: Node, power: Node) -> Node:
        wide = reaxis(x, {"d": at % d})
        return map_("pow", relu(where(at < d, wide, -wide)), power)

    fq, fk = parts(q / length, 3.0 * (0.5 + tanh(length))), parts(k, number(3.0))
    kv = sum_("t", rotated(fk, "f", cos, sin) * v) / float(t)
    o = sum_("f", rotated(fq, "f", cos, sin) * kv) / sum_("f", fq * mean("t", fk))
    return results(dtype, o=("b h t e", o))


@workload("D16", "C T", {**SMALL, "f": 4}, {
    "8k": {"b": 4, "h": 8, "t": 8192, "d": 64, "e": 64, "f": 64}},
    {"bias": normal(0.5), "w": normal(0.5)})  # fmt: skip
def relative_kernel_attention(
    *, b: int, h: int, t: int, d: int, e: int, f: int, dtype: str = "bfloat16"
) -> Program:
    """Random positive features with relative positions: o_i = f(q_i) sum c_(j-i) f(k_j) [v_j, 1]
    as a ratio, c = exp(bias): a Toeplitz product for each feature and value."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e, "f": f, "r": 2 * t - 1}
    q, k, v = qkv(s, dtype)
    w, bias = weights(s, F32, w="f d", bias="h r")
    q, k = q * d**-0.25, k * d**-0.25
    fq, fk = (exp(sum_("d", x * w) - 0.5 * sum_("d", x * x)) * f**-0.5 for x in (q, k))
    toeplitz = exp(reaxis(bias, {"r": iota("j", t) - iota("t", t) + (t - 1)}))
    top = sum_("f", fq * sum_("j", toeplitz * keys(fk) * keys(v)))
    return results(dtype, o=("b h t e", top / sum_("f", fq * sum_("j", toeplitz * keys(fk)))))


# ---- landmarks and global means --------------------------------------------------------------


@workload(
    "D14", "C L", {"b": 2, "h": 2, "m": 4, "pool": 3, "d": 16, "e": 5, "rounds": 20, "dtype": F32},
    {"3136": {"b": 8, "h": 1, "m": 49, "pool": 64, "d": 32, "e": 32, "rounds": 20}},
)  # fmt: skip
def soft_attention(
    *, b: int, h: int, m: int, pool: int, d: int, e: int, rounds: int, dtype: str = "bfloat16"
) -> Program:
    """SOFT: Gaussian attention through m landmarks that pool q, the inverse of the landmarks' own
    kernel by Newton's steps X = X (2 - A X)."""
    t = m * pool
    s = {"b": b, "h": h, "t": t, "m": m, "n": m, "u": pool, "d": d, "e": e}
    (q, v), (w,) = inputs(s, dtype, q="b h t d", v="b h t e"), weights(s, dtype, w="h u")
    q = q * d**-0.25
    marks = sum_("u", w * reaxis(q, {"t": iota("m", m) * pool + iota("u", pool)}))
    left, right = gaussian(q, marks), gaussian(rename(marks, {"m": "n"}), rename(q, {"t": "j"}))
    A = gaussian(marks, rename(marks, {"m": "n"}))
    X = newton_inverse(A, "m", "n", rounds)
    o = sum_("m", left * sum_("n", X * sum_("j", right * rename(v, {"t": "j"}))))
    return results(dtype, o=("b h t e", o))


def gaussian(x: Node, y: Node) -> Node:
    """exp(-|x - y|^2 / 2) over d."""
    return exp(-0.5 * sum_("d", (x - y) * (x - y)))


def newton_inverse(A: Node, row: str, col: str, rounds: int) -> Node:
    """The inverse of a symmetric positive A[.., row, col] by Newton's steps from A / |A|_1^2."""
    n = int(A.extent(row))
    s = {a: int(A.extent(a)) for a in A.names}
    X = state("X", s, " ".join(A.names))
    AX = sum_("x", rename(A, {col: "x"}) * rename(X, {row: "x"}))
    twice = where(eq(iota(row, n), iota(col, n)), number(2.0), 0.0) - AX
    new = sum_("x", rename(X, {col: "x"}) * rename(twice, {row: "x"}))
    most = max_(col, sum_(row, abs_(A)))
    return get(fold("round", [(0, rounds)], {"X": (A / (most * most), new)}))


@workload("D15", "C R", {**SMALL, "rho": 0.9}, {
    "vit": {"b": 8, "h": 12, "t": 4096, "d": 64, "e": 64, "rho": 0.9}})  # fmt: skip
def infinite_attention(
    *, b: int, h: int, t: int, d: int, e: int, rho: float, dtype: str = "bfloat16"
) -> Program:
    """relu(q k / d) over its Frobenius norm, times rho, times v: one norm for the whole matrix."""
    q, k, v = qkv({"b": b, "h": h, "t": t, "d": d, "e": e}, dtype)
    scores = relu(sum_("d", q * keys(k)) / float(d))
    o = rho * sum_("j", scores / norm("t j", scores) * keys(v))
    return results(dtype, o=("b h t e", o))


@workload("D15", "C R", {**SMALL, "rho": 0.9}, {
    "vit": {"b": 1, "h": 12, "t": 332_000, "d": 64, "e": 64, "rho": 0.9}})  # fmt: skip
def linear_infinite_attention(
    *, b: int, h: int, t: int, d: int, e: int, rho: float, dtype: str = "bfloat16"
) -> Program:
    """One query for all, the mean of q weighed by its length: each row gets the same sum of v."""
    q, k, v = qkv({"b": b, "h": h, "t": t, "d": d, "e": e}, dtype)
    length = norm("d", q)
    one = sum_("t", length / sum_("t", length) * q)
    a = relu(sum_("d", one * k))
    o = rho * sum_("t", a / sum_("t", a) * v)
    return results(dtype, o=("b h t e", spread(o, "t", t)))
