"""Builders that softmax definitions share: operands by axis, scores, masks, one softmax over sets.

Half-precision inputs are widened as they are read and scores, weights and sums are float32:
which of them a kernel narrows again is a choice of its schedule, not of the definition.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from autosched.datasets.workloads.masks import mask_node
from autosched.ir.node import Extent, Node
from autosched.ir.ops import cast, exp, input_, iota, log, max_, maximum, reaxis, sum_, where
from autosched.ir.scalar import FLOATS, ITEMSIZE

# Scores, the values that they weigh (None: nothing, as of a sink), and the axes of the keys.
Keys: TypeAlias = "tuple[Node, Node | None, str | Sequence[str]]"


def wide(x: Node) -> Node:
    """Types narrower than float32 as float32."""
    return cast(x, "float32") if x.dtype in FLOATS and ITEMSIZE[x.dtype] < 4 else x


def tensor(name: str, dtype: str, kind: str = "arg", **dims: Extent) -> Node:
    """An input in row-major order of `dims`, widened."""
    return wide(input_(name, dims, dtype, kind))


def softmax_over(*sets: Keys) -> tuple[Node, Node]:
    """One softmax over all sets of keys at once: the weighted values, and the log of the sum."""
    m = functools.reduce(maximum, (max_(a, s) if a else s for s, _, a in sets))
    parts = [(exp(s - m), v, a) for s, v, a in sets]
    total = _add(sum_(a, p) if a else p for p, _, a in parts)
    mixed = _add(sum_(a, p * v) if a else p * v for p, v, a in parts if v is not None)
    return mixed / total, m + log(total)


def _add(terms: Iterable[Node]) -> Node:
    return functools.reduce(lambda a, b: a + b, terms)


def grouped(x: Node, h: int) -> Node:
    """x[g, ...] as each of h query heads sees it: a group shares a head."""
    return reaxis(x, {"g": iota("h", h) // (h // size(x, "g"))})


def ungrouped(x: Node, g: int) -> Node:
    """Gradients x[h, ...] summed over the query heads that share a head."""
    share = size(x, "h") // g
    return sum_("share", reaxis(x, {"h": iota("g", g) * share + iota("share", share)}))


def queries_keys_values(
    b: int, h: int, g: int, i: int, j: int, d: int, e: int, dtype: str
) -> tuple[Node, Node, Node]:
    """q[b,h,i,d], and k[b,g,j,d] and v[b,g,j,e] as every query head sees them."""
    q = tensor("q", dtype, b=b, h=h, i=i, d=d)
    k, v = tensor("k", dtype, b=b, g=g, j=j, d=d), tensor("v", dtype, b=b, g=g, j=j, e=e)
    return q, grouped(k, h), grouped(v, h)


def scores(q: Node, k: Node, mask: str = "full", **numbers: Any) -> Node:
    """q k over the square root of d; -inf where `mask` hides the key of axis "j"."""
    s = sum_("d", q * k) * size(q, "d") ** -0.5
    return s if mask == "full" else hidden(s, mask, **numbers)


def hidden(s: Node, mask: str, **numbers: Any) -> Node:
    """Scores with -inf where `mask` hides the key; `numbers` as of `masks.Facts`."""
    sides = (size(s, "i"), size(s, "j"))
    return where(mask_node(mask, *sides, heads=size(s, "h"), **numbers), s, -math.inf)


def size(x: Node, axis: str) -> int:
    """The extent of an axis, as a number."""
    extent = x.extent(axis)
    assert isinstance(extent, int), f"{axis} has no fixed extent"
    return extent
