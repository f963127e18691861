"""Reading an array at one integer array per dimension, through views wherever that is possible.

Index arrays carry dimension names; equal names vary together. Renamings, slices, splits and
merges of axes become transposes, slices and reshapes; only the rest is gathered by element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Dim = tuple[str, int]  # an axis name and a number that tells equal names apart
Index = tuple[Any, tuple[Dim, ...]]  # an integer array and the names of its dimensions


def progression(x: Any) -> slice | None:
    """The slice that reads what the flattened integers read, if they are evenly spaced."""
    flat = x.reshape(-1)
    n = len(flat)
    if n == 0:
        return slice(0, 0)
    first, last = int(flat[0]), int(flat[-1])
    if n == 1:
        return slice(first, first + 1)
    step = int(flat[1]) - first
    if step == 0 or last != first + step * (n - 1):
        return None
    if n > 2 and not np.array_equal(flat, np.arange(first, last + (1 if step > 0 else -1), step)):
        return None
    stop = last + (1 if step > 0 else -1)
    return slice(first, None if stop < 0 else stop, step)


def gather(data: Any, index: Sequence[Index]) -> tuple[Any, tuple[Dim, ...]]:
    """(values, dimension names) of `data` at `index`, whose entries are in range."""
    users: dict[Dim, int] = {}
    for _, dims in index:
        for d in dims:
            users[d] = users.get(d, 0) + 1
    cuts: list[Any] = []
    labels: list[Any] = []  # of each remaining dimension: its name, or the number of its index
    for n, (x, dims) in enumerate(index):
        if not dims:
            cuts.append(int(x))
            continue
        straight = len(dims) == 1 and users[dims[0]] == 1
        span = progression(x) if straight else None
        cuts.append(slice(None) if span is None else span)
        labels.append(n if span is None else dims[0])
    out = data[tuple(cuts)]
    for group in _groups([n for n in labels if isinstance(n, int)], index):
        out, labels = _read_group(out, labels, group, index)
    return out, tuple(labels)


def _groups(pending: list[int], index: Sequence[Index]) -> list[list[int]]:
    """Pending dimensions, together where their indices share a name."""
    groups: list[list[int]] = []
    for n in pending:
        mine = set(index[n][1])
        touching = [g for g in groups if any(mine & set(index[m][1]) for m in g)]
        groups = [g for g in groups if g not in touching]
        groups.append(sorted([n, *(m for g in touching for m in g)]))
    return sorted(groups)


def _read_group(
    data: Any, labels: list[Any], group: list[int], index: Sequence[Index]
) -> tuple[Any, list[Any]]:
    """Dimensions of one group merged into one, read at the flat index, and unfolded."""
    dims = tuple(dict.fromkeys(d for n in group for d in index[n][1]))
    at = [labels.index(n) for n in group]
    rest = [n for n in range(len(labels)) if n not in at]
    before = sum(n < at[0] for n in rest)
    order = rest[:before] + at + rest[before:]
    moved = data.transpose(order)
    head, tail = moved.shape[:before], moved.shape[before + len(at) :]
    sizes = moved.shape[before : before + len(at)]
    flat: Any = np.zeros((), np.int64)
    for n, size in zip(group, sizes):
        flat = flat * size + align(*index[n], dims).astype(np.int64)
    merged = moved.reshape(*head, int(np.prod(sizes, dtype=np.int64)), *tail)
    span = progression(flat) if flat.size else None
    if span is not None:
        out = merged[(slice(None),) * before + (span,)].reshape(*head, *flat.shape, *tail)
    else:
        out = np.take(merged, flat, axis=before)
    kept = [labels[n] for n in rest]
    return out, [*kept[:before], *dims, *kept[before:]]


def align(x: Any, have: tuple[Dim, ...], want: tuple[Dim, ...]) -> Any:
    """`x` transposed to the order of `want`, with length 1 along what it lacks."""
    if have == want:
        return x
    out = x.transpose([have.index(d) for d in want if d in have])
    return out[tuple(slice(None) if d in have else None for d in want)]


def joint(dims: Iterable[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """All dimensions, those of the longest operand first and in its order."""
    groups = sorted(dims, key=len, reverse=True)
    return tuple(dict.fromkeys(d for group in groups for d in group))
