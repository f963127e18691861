"""Dense matrix products with what follows and precedes them, and k-means over points."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from autosched.datasets.workloads.define import Sizes, workload
from autosched.datasets.workloads.terms import (
    F32,
    argmin,
    gelu,
    gelu_tanh,
    inputs,
    number,
    relu,
    results,
    rmsnorm,
    silu,
    state,
    unit_length,
    weights,
)
from autosched.ir.node import Node, Program
from autosched.ir.ops import cast, eq, fold, get, iota, map_, maximum, sum_, take, where

GEMM = {"m": 5, "n": 7, "k": 11, "dtype": F32}
GEMM_SHAPES: dict[str, Sizes] = {
    f"{m}x{k}x{n}": {"m": m, "n": n, "k": k}
    for m, k, n in (
        (4096, 4096, 4096), (8192, 8192, 8192), (4096, 8192, 28672), (512, 4096, 4096),
        (64, 4096, 4096), (16, 4096, 14336),
    )
}  # fmt: skip
EPILOGUES: Mapping[str, Callable[[Node], Node]] = {
    "none": lambda x: x,
    "relu": relu,
    "relu squared": lambda x: relu(x) * relu(x),
    "silu": silu,
    "gelu": gelu,
    "gelu tanh": gelu_tanh,
}


@workload("#29", "C", GEMM, GEMM_SHAPES)
def dense_gemm(*, m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """y = x w."""
    s = {"m": m, "n": n, "k": k}
    (x,), (w,) = inputs(s, dtype, x="m k"), weights(s, dtype, w="k n")
    return results(dtype, y=("m n", sum_("k", x * w)))


@workload("#29", "C", {**GEMM, "epilogue": "gelu"}, {
    f"{name} {e}": {**sizes, "epilogue": e}
    for name, sizes in GEMM_SHAPES.items() for e in ("gelu", "silu")})  # fmt: skip
def gemm_epilogue(*, m: int, n: int, k: int, epilogue: str, dtype: str = "bfloat16") -> Program:
    """y = f(x w + bias) + residual, with f by its name in EPILOGUES."""
    s = {"m": m, "n": n, "k": k}
    (x, residual), (w, bias) = inputs(s, dtype, x="m k", residual="m n"), weights(
        s, dtype, w="k n", bias="n")  # fmt: skip
    return results(dtype, y=("m n", EPILOGUES[epilogue](sum_("k", x * w) + bias) + residual))


@workload("#29", "C", GEMM, {"llama": {"m": 4096, "k": 4096, "n": 14336}})
def swiglu_pair(*, m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """silu(x gate) (x up): two products that share x."""
    s = {"m": m, "n": n, "k": k}
    (x,), (gate, up) = inputs(s, dtype, x="m k"), weights(s, dtype, gate="k n", up="k n")
    return results(dtype, y=("m n", silu(sum_("k", x * gate)) * sum_("k", x * up)))


@workload("#29", "C R", GEMM, {"qkv": {"m": 4096, "k": 4096, "n": 6144}})
def rmsnorm_gemm(*, m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """y = (rmsnorm(x) gamma) w: a statistic of each row before its product."""
    s = {"m": m, "n": n, "k": k}
    (x,), (w, gamma) = inputs(s, dtype, x="m k"), weights(s, dtype, w="k n", gamma="k")
    return results(dtype, y=("m n", sum_("k", rmsnorm("k", x) * gamma * w)))


@workload("#29", "C", {**GEMM, "b": 3}, {"heads": {"b": 64, "m": 1024, "n": 1024, "k": 128}})
def batched_gemm(*, b: int, m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """y[b] = x[b] w[b]."""
    x, w = inputs({"b": b, "m": m, "n": n, "k": k}, dtype, x="b m k", w="b k n")
    return results(dtype, y=("b m n", sum_("k", x * w)))


# ---- k-means ---------------------------------------------------------------------------------

KMEANS = {"b": 2, "n": 23, "k": 5, "d": 3, "dtype": F32}
KMEANS_SHAPES: dict[str, Sizes] = {
    **{f"64k {k}": {"b": 32, "n": 65536, "k": k, "d": 128} for k in (100, 1000)},
    "4M": {"b": 1, "n": 2**22, "k": 2048, "d": 128, "dtype": F32},
}


def clusters(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """The cluster of each point; the last cluster is empty."""
    return rng.integers(0, sizes["k"] - 1, shape)


def nearest(x: Node, c: Node, cosine: bool = False) -> Node:
    """The index along k of the row of c nearest to each row of x."""
    if cosine:
        return argmin("k", -sum_("d", unit_length("d", x) * unit_length("d", c)))
    return argmin("k", sum_("d", x * x) - 2.0 * sum_("d", x * c) + sum_("d", c * c))


def centres(x: Node, ids: Node, c: Node) -> tuple[Node, Node]:
    """Means of the points of each cluster, and how many; an empty one keeps its row of c."""
    mine = eq(ids, iota("k", c.extent("k")))
    total, count = sum_("n", where(mine, x, 0.0)), sum_("n", where(mine, number(1.0), 0.0))
    return where(count > 0.0, total / maximum(count, 1.0), c), count


@workload("F6", "C R P", {**KMEANS, "cosine": False}, KMEANS_SHAPES)
def kmeans_assign(
    *, b: int, n: int, k: int, d: int, cosine: bool = False, dtype: str = "float16"
) -> Program:
    """argmin over centres of |x|^2 - 2 x c + |c|^2, or of the negative cosine."""
    x, c = inputs({"b": b, "n": n, "k": k, "d": d}, dtype, x="b n d", c="b k d")
    return results(dtype, ids=("b n", nearest(x, c, cosine)))


@workload("F6", "C P", KMEANS, KMEANS_SHAPES, {"ids": clusters})
def kmeans_update(*, b: int, n: int, k: int, d: int, dtype: str = "float16") -> Program:
    """The means of the points by cluster, from the cluster of each point."""
    s = {"b": b, "n": n, "k": k, "d": d}
    (x, c), (ids,) = inputs(s, dtype, x="b n d", c="b k d"), inputs(s, "int32", ids="b n")
    means, count = centres(x, ids, c)
    return results(dtype, centres=("b k d", means), count=("b k", cast(count, "int32")))


@workload("F6", "C R P", KMEANS, KMEANS_SHAPES)
def kmeans_step(*, b: int, n: int, k: int, d: int, dtype: str = "float16") -> Program:
    """One round: every point to its nearest centre, every centre to the mean of its points."""
    x, c = inputs({"b": b, "n": n, "k": k, "d": d}, dtype, x="b n d", c="b k d")
    means, _ = centres(x, nearest(x, c), c)
    return results(dtype, centres=("b k d", means))


def run_ends(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Ascending ends of the clusters' runs of points; the last is n, some runs are empty."""
    inner = np.sort(rng.integers(0, sizes["n"] + 1, shape), axis=-1)
    inner[..., -1] = sizes["n"]
    return inner


def orders(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """A permutation of the points in each row."""
    return rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)


@workload("F6", "C I P", KMEANS, KMEANS_SHAPES, {"ends": run_ends, "order": orders})
def kmeans_sorted_sums(*, b: int, n: int, k: int, d: int, dtype: str = "float16") -> Program:
    """The sums of points by cluster from points sorted by cluster: runs of `order` with `ends`."""
    s = {"b": b, "n": n, "k": k, "d": d}
    (x,), (order, ends) = inputs(s, dtype, x="b n d"), inputs(s, "int32", order="b n", ends="b k")
    at = iota("k", k)
    first = where(at > 0, take(ends, "k", map_("max", at - 1, 0)), 0)
    total = state("total", s, "b k d") + take(x, "n", order)
    sums = get(fold("n", [(first, ends)], {"total": (number(0.0), total)}))
    return results(F32, total=("b k d", sums))
