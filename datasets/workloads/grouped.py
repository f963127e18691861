"""Products whose matrix a row chooses: grouped GEMM, layers of experts, segments of rows."""

from __future__ import annotations

import numpy as np

from autosched.datasets.workloads.define import Sizes, uniform, workload
from autosched.datasets.workloads.terms import (
    F32,
    argmax,
    gelu,
    inputs,
    number,
    results,
    silu,
    softmax,
    state,
    weights,
)
from autosched.ir.node import Node, Program
from autosched.ir.ops import cast, eq, fold, get, iota, map_, scan, sum_, take, where


def segment_ends(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Ascending ends of segments of the rows m; some are empty, the last is m."""
    return np.asarray([*np.sort(rng.integers(0, sizes["m"] + 1, shape[0] - 1)), sizes["m"]])


GROUPED = {"m": 17, "k": 5, "n": 7, "experts": 4, "dtype": F32}
GROUPED_SHAPES: dict[str, Sizes] = {
    "E64 up": {"m": 16384, "k": 2048, "n": 2048, "experts": 64},
    "E128 up": {"m": 32768, "k": 2048, "n": 2048, "experts": 128},
}
ENDS = {"ends": segment_ends}


def expert_of_row(ends: Node, rows: int) -> Node:
    """In whose segment each row m lies: how many segments end at or before it."""
    return sum_("x", cast(iota("m", rows) >= ends, "int32"))


def rows_times(x: Node, w: Node, axis: str, expert: Node) -> Node:
    """x[m] times the matrix of the row's expert."""
    return sum_(axis, x * take(w, "x", expert))


@workload("F4 #42", "C I", GROUPED, GROUPED_SHAPES, ENDS)
def grouped_gemm(*, m: int, k: int, n: int, experts: int, dtype: str = "bfloat16") -> Program:
    """y[m] = x[m] w[expert of m], rows sorted by expert with the ends of their segments."""
    s = {"m": m, "k": k, "n": n, "x": experts}
    (x,), (w,) = inputs(s, dtype, x="m k"), weights(s, dtype, w="x k n")
    (ends,) = inputs(s, "int32", ends="x")
    return results(dtype, y=("m n", rows_times(x, w, "k", expert_of_row(ends, m))))


@workload("F4 #42", "C I Q", GROUPED, GROUPED_SHAPES,
          {**ENDS, "xs": uniform(0.5, 2.0), "ws": uniform(0.5, 2.0)})  # fmt: skip
def fp8_grouped_gemm(*, m: int, k: int, n: int, experts: int, dtype: str = "bfloat16") -> Program:
    """Grouped product of E4M3 by E4M3 with a scale for each row and each column of an expert."""
    s = {"m": m, "k": k, "n": n, "x": experts}
    (x,), (w,) = inputs(s, "float8_e4m3", x="m k"), weights(s, "float8_e4m3", w="x k n")
    (xs,), (ws,) = inputs(s, F32, xs="m"), weights(s, F32, ws="x n")
    (ends,) = inputs(s, "int32", ends="x")
    expert = expert_of_row(ends, m)
    return results(
        dtype, y=("m n", rows_times(x, w, "k", expert) * xs * take(ws, "x", expert))
    )


@workload("F4 #42", "C I", GROUPED, GROUPED_SHAPES, ENDS)
def grouped_gemm_by_segment(
    *, m: int, k: int, n: int, experts: int, dtype: str = "bfloat16"
) -> Program:
    """dw[expert] = x' dy over its own segment of rows: a loop with bounds that are data."""
    s = {"m": m, "k": k, "n": n, "x": experts}
    (x, dy), (ends,) = inputs(s, dtype, x="m k", dy="m n"), inputs(s, "int32", ends="x")
    at = iota("x", experts)
    first = where(at > 0, take(ends, "x", map_("max", at - 1, 0)), 0)
    total = state("w", s, "x k n") + x * dy
    dw = get(fold("m", [(first, ends)], {"w": (number(0.0), total)}))
    return results(dtype, dw=("x k n", dw))


# ---- layers of experts -----------------------------------------------------------------------

MOE = {"t": 11, "d": 5, "f": 7, "experts": 4, "dtype": F32}
MOE_SHAPES: dict[str, Sizes] = {
    "E64": {"t": 8192, "d": 2048, "f": 2048, "experts": 64},
    "E128": {"t": 16384, "d": 2048, "f": 2048, "experts": 128},
}


def routed(x: Node, router: Node) -> tuple[Node, Node]:
    """The two best experts of each token along r, and their shares of the softmax of the two."""
    p = softmax("x", sum_("d", x * router))
    first = argmax("x", p)
    second = argmax("x", where(eq(iota("x", p.extent("x")), first), -1.0, p))
    expert = where(eq(iota("r", 2), 0), first, second)
    share = take(p, "x", expert)
    return expert, share / sum_("r", share)


def expert_sizes(t: int, d: int, f: int, experts: int) -> dict[str, int]:
    return {"t": t, "d": d, "f": f, "x": experts}


@workload("F4", "C I P", MOE, MOE_SHAPES)
def moe_layer(*, t: int, d: int, f: int, experts: int, dtype: str = "bfloat16") -> Program:
    """Softmax router, two best experts, a gated pair of products in each, the weighed sum."""
    s = expert_sizes(t, d, f, experts)
    (x,), (router,) = inputs(s, dtype, x="t d"), weights(s, F32, router="d x")
    gate, up, down = weights(s, dtype, gate="x d f", up="x d f", down="x f d")
    expert, share = routed(x, router)
    own_gate, own_up, own_down = (take(w, "x", expert) for w in (gate, up, down))
    hidden = silu(sum_("d", x * own_gate)) * sum_("d", x * own_up)
    return results(dtype, y=("t d", sum_("r", share * sum_("f", hidden * own_down))))


@workload("F4", "C I P", {**MOE, "capacity": 5}, {
    name: {**sizes, "capacity": 2 * sizes["t"] // sizes["experts"]}
    for name, sizes in MOE_SHAPES.items()})  # fmt: skip
def moe_layer_with_capacity(
    *, t: int, d: int, f: int, experts: int, capacity: int, dtype: str = "bfloat16"
) -> Program:
    """Experts that take `capacity` tokens each, first choices before second ones and then by
    position; what comes too late adds nothing."""
    s = expert_sizes(t, d, f, experts)
    (x,), (router, up, down) = inputs(s, dtype, x="t d"), weights(
        s, F32, router="d x", up="x d f", down="x f d")  # fmt: skip
    expert, share = routed(x, router)
    wants = cast(eq(expert, iota("x", experts)), "int32")  # t r x
    ahead = scan("sum", "t", wants, exclusive=True)
    all_first = take(sum_("t", wants), "r", 0 * iota("r", 2))
    place = take(ahead + where(iota("r", 2) > 0, all_first, 0), "x", expert)
    hidden = gelu(sum_("d", x * take(up, "x", expert)))
    out = sum_("f", hidden * take(down, "x", expert))
    return results(dtype, y=("t d", sum_("r", where(place < capacity, share * out, 0.0))))


@workload("F4 #42", "C I P", {**MOE, "m": 22}, {
    name: {**sizes, "m": 2 * sizes["t"]} for name, sizes in MOE_SHAPES.items()},
    {**ENDS, "token": lambda rng, shape, sizes: rng.integers(0, sizes["t"], shape),
     "place": lambda rng, shape, sizes: rng.permutation(sizes["m"]).reshape(shape),
     "share": uniform(0.0, 1.0)})  # fmt: skip
def moe_dispatched(
    *, t: int, d: int, f: int, experts: int, m: int, dtype: str = "bfloat16"
) -> Program:
    """Tokens gathered in the order of their experts, two grouped products, and back: `token` is
    whose each row is, `place` where the row of each token's r-th choice lies."""
    s = {**expert_sizes(t, d, f, experts), "m": m, "r": 2}
    (x,), (up, down) = inputs(s, dtype, x="t d"), weights(s, dtype, up="x d f", down="x f d")
    (share,), (place,) = inputs(s, F32, share="t r"), inputs(s, "int32", place="t r")
    token, ends = inputs(s, "int32", token="m", ends="x")
    expert = expert_of_row(ends, m)
    hidden = gelu(rows_times(take(x, "t", token), up, "d", expert))
    rows = rows_times(hidden, down, "f", expert)
    return results(dtype, y=("t d", sum_("r", share * take(rows, "m", place))))
