"""Attention in plain NumPy, one head at a time: what the references of sparse workloads share."""

from __future__ import annotations

import math
from itertools import product
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"
Arrays: TypeAlias = "dict[str, Array]"


def attend(q: Array, k: Array, v: Array, keep: Array, scale: float | None = None) -> Any:
    """One head: q[i,d] over the keys that keep[i,j] lets through; rows without any are 0."""
    p = np.exp(q @ k.T * (scale or 1 / math.sqrt(q.shape[-1]))) * keep
    total = p.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total[:, None] > 0, p @ v / total[:, None], 0.0), np.log(total)


def each(x: Arrays, s: Any, keep: Any) -> Arrays:
    """Every head by itself; keep(b, h) gives its mask."""
    b, h, i, _ = x["q"].shape
    o, lse = np.empty((b, h, i, x["v"].shape[-1])), np.empty((b, h, i))
    for n, a in product(range(b), range(h)):
        own = a // (h // x["k"].shape[1])
        o[n, a], lse[n, a] = attend(x["q"][n, a], x["k"][n, own], x["v"][n, own], keep(n, a))
    return {"o": o, "lse": lse}


def spread(blocks: Array, i: int, j: int, rows: int, columns: int) -> Array:
    """A mask of blocks as one of elements."""
    return np.kron(blocks, np.ones((rows, columns)))[:i, :j]


def causal(i: int, j: int) -> Array:
    return np.tri(i, j, j - i)
