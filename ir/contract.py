"""Sums of products of arrays with named dimensions, through BLAS where two factors share a sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autosched.ir.gather import Dim, align, joint

Factor = tuple[Any, tuple[Dim, ...]]  # an array and the names of its dimensions
EXACT = 2.0**53  # integers up to here are exact in float64


def contract(factors: Sequence[Factor], gone: tuple[Dim, ...]) -> Factor:
    """The product of the factors, summed over the dimensions `gone`; some factor has each."""
    sizes = {d: n for data, dims in factors for d, n in zip(dims, data.shape)}
    work = _sum_alone(list(factors), gone)
    while sum(any(d in gone for d in dims) for _, dims in work) > 2:
        work = _sum_alone(_merge_cheapest(work, gone, sizes), gone)
    inner = [w for w in work if any(d in gone for d in w[1])]
    outer = [w for w in work if not any(d in gone for d in w[1])]
    out = _product_sum(inner, gone) if inner else outer.pop()
    for other in sorted(outer, key=lambda w: w[0].size):
        dims = joint((out[1], other[1]))
        out = (align(*out, dims) * align(*other, dims), dims)
    return out


def _sum_alone(work: list[Factor], gone: tuple[Dim, ...]) -> list[Factor]:
    """The factors with those dimensions summed that only one of several has."""
    out = list(work)
    for d in gone:
        owners = [n for n, (_, dims) in enumerate(out) if d in dims]
        if len(owners) == 1 and len(out) > 1:
            data, dims = out[owners[0]]
            out[owners[0]] = (_sum(data, dims.index(d)), tuple(x for x in dims if x != d))
    return out


def _merge_cheapest(
    work: list[Factor], gone: tuple[Dim, ...], sizes: dict[Dim, int]
) -> list[Factor]:
    inner = [n for n, w in enumerate(work) if any(d in gone for d in w[1])]
    pairs = [(a, b) for a in inner for b in inner if a < b]
    a, b = min(
        pairs, key=lambda p: np.prod([sizes[d] for d in joint((work[p[0]][1], work[p[1]][1]))])
    )
    dims = joint((work[a][1], work[b][1]))
    merged = (align(*work[a], dims) * align(*work[b], dims), dims)
    return [w for n, w in enumerate(work) if n not in (a, b)] + [merged]


def _product_sum(work: list[Factor], gone: tuple[Dim, ...]) -> Factor:
    if len(work) == 1:
        data, dims = work[0]
        at = tuple(n for n, d in enumerate(dims) if d in gone)
        return _sum(data, at), tuple(d for d in dims if d not in gone)
    (a, da), (b, db) = work
    both = [d for d in da if d in db]
    batch = tuple(d for d in both if d not in gone)
    inner = tuple(d for d in both if d in gone)
    rows = tuple(d for d in da if d not in db)
    cols = tuple(d for d in db if d not in da)
    x = align(a, da, (*batch, *rows, *inner))
    y = align(b, db, (*batch, *inner, *cols))
    shape = x.shape[: len(batch) + len(rows)] + y.shape[len(batch) + len(inner) :]
    count = int(np.prod(x.shape[: len(batch)], dtype=np.int64))
    k = int(np.prod(y.shape[len(batch) : len(batch) + len(inner)], dtype=np.int64))
    m = int(np.prod(x.shape[len(batch) : len(batch) + len(rows)], dtype=np.int64))
    n = int(np.prod(y.shape[len(batch) + len(inner) :], dtype=np.int64))
    out = _matmul(x.reshape(count, m, k), y.reshape(count, k, n))
    return out.reshape(shape), (*batch, *rows, *cols)


def _sum(data: Any, axis: Any) -> Any:
    return np.sum(data, axis=axis)


def _matmul(a: Any, b: Any) -> Any:
    """Batched product; integers go through float64 where the result is exact there."""
    if a.dtype.kind == "f":
        return np.matmul(np.ascontiguousarray(a), np.ascontiguousarray(b))
    bound = _largest(a) * _largest(b) * max(a.shape[-1], 1)
    if bound < EXACT:
        return np.rint(np.matmul(a.astype(np.float64), b.astype(np.float64))).astype(np.int64)
    wide = np.uint64 if a.dtype == np.uint64 else np.int64
    return np.matmul(a.astype(wide), b.astype(wide))


def _largest(x: Any) -> float:
    return float(np.abs(x.astype(np.float64)).max()) if x.size else 0.0
