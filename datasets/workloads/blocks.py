"""Builders of sparse definitions: an axis in blocks, ranks and lists without a sort, list reads."""

from __future__ import annotations

import math
from typing import Any

from autosched.datasets.workloads.masks import allows
from autosched.datasets.workloads.softmax import size, softmax_over
from autosched.ir.node import Node
from autosched.ir.ops import (
    cast,
    eq,
    iota,
    map_,
    minimum,
    reaxis,
    rename,
    scan,
    sum_,
    take,
    where,
)


def in_blocks(x: Node, axis: str, block: int, outer: str, inner: str) -> Node:
    """x with `axis` as block and place; places behind the end repeat the last element."""
    tokens = size(x, axis)
    at = iota(outer, -(-tokens // block)) * block + iota(inner, block)
    return reaxis(x, {axis: at if tokens % block == 0 else minimum(at, tokens - 1)})


def inside(tokens: int, block: int, outer: str, inner: str) -> Node:
    """Which places of `in_blocks` are not behind the end."""
    return iota(outer, -(-tokens // block)) * block + iota(inner, block) < tokens


def out_of_blocks(x: Node, outer: str, inner: str, axis: str, tokens: int) -> Node:
    """The inverse of `in_blocks`: x[outer, inner] along one axis of `tokens`."""
    at, block = iota(axis, tokens), size(x, inner)
    return reaxis(x, {outer: at // block, inner: at % block})


def block_sum(x: Node, axis: str, block: int, outer: str) -> Node:
    """Sums over consecutive blocks of an axis, the last of which may be short."""
    parts = in_blocks(x, axis, block, outer, "at")
    return sum_("at", where(inside(size(x, axis), block, outer, "at"), parts, 0.0))


def block_mean(x: Node, axis: str, block: int, outer: str) -> Node:
    tokens = size(x, axis)
    held = minimum(tokens - iota(outer, -(-tokens // block)) * block, block)
    return block_sum(x, axis, block, outer) / cast(held, x.dtype)


def larger(x: Node, axis: str, other: str) -> Node:
    """Whether the element at `other` comes before that at `axis` in descending order; of equal
    ones the first does, and none before itself, even where a kernel computes it twice and rounds
    differently."""
    n = size(x, axis)
    at, to = iota(axis, n), iota(other, n)
    peer = rename(x, {axis: other})
    return map_("ne", to, at) & ((peer > x) | (eq(peer, x) & (to < at)))


def rank(x: Node, axis: str) -> Node:
    """The place of each element in descending order: how many come before it."""
    return sum_("other", cast(larger(x, axis, "other"), "int32"))


def listed_at(place: Node, chosen: Node, axis: str, slot: str, slots: int) -> Node:
    """The coordinate along `axis` that is chosen and has place n, for every slot n; else 0."""
    hit = chosen & eq(place, iota(slot, slots))
    return sum_(axis, where(hit, iota(axis, size(place, axis)), 0))


def compacted(keep: Node, axis: str, slot: str) -> tuple[Node, Node]:
    """The kept coordinates along an axis in ascending order, as a list, and their number."""
    kept = cast(keep, "int32")
    place = scan("sum", axis, kept, exclusive=True)
    return listed_at(place, keep, axis, slot, size(keep, axis)), sum_(axis, kept)


def listed_attention(
    q: Node, k: Node, v: Node, listed: Node, counts: Node | None, rows: int, columns: int,
    mask: str = "full", **numbers: Any,
) -> tuple[Node, Node]:  # fmt: skip
    """Softmax over the key blocks listed[..., m, n] of each query block m, the first counts[..., m]
    of them; only these are read. Rows with an empty list are 0.

    q[..., i, d], k[..., j, d] and v[..., j, e] of the same heads; rows, columns: block sizes.
    """
    i, j = size(q, "i"), size(k, "j")
    at = listed * columns + iota("u", columns)
    row = iota("m", -(-i // rows)) * rows + iota("w", rows) + (j - i)
    seen = (at < j) & allows(mask, row, at, j, **numbers)
    seen = seen if counts is None else seen & (iota("n", size(listed, "n")) < counts)
    kn, vn = (take(in_blocks(x, "j", columns, "y", "u"), "y", listed) for x in (k, v))
    s = sum_("d", in_blocks(q, "i", rows, "m", "w") * kn) * size(q, "d") ** -0.5
    o, lse = softmax_over((where(seen, s, -math.inf), vn, ("n", "u")))
    if counts is not None:
        o, lse = where(counts > 0, o, 0.0), where(counts > 0, lse, -math.inf)
    return out_of_blocks(o, "m", "w", "i", i), out_of_blocks(lse, "m", "w", "i", i)
