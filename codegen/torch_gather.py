"""Tensors with named dimensions in, read at index tensors or contracted, tensors out.

What ir.gather and ir.contract do with NumPy, in float64 on the device: renamings, slices and
strides become views; contractions go to the BLAS of the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from autosched.ir.gather import Dim, joint

Tensor = torch.Tensor
Factor = tuple[Tensor, tuple[Dim, ...]]
EXACT = 2.0**53  # integers up to here are exact in float64
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def align(x: Tensor, have: tuple[Dim, ...], want: tuple[Dim, ...]) -> Tensor:
    """`x` transposed to the order of `want`, with length 1 along what it lacks."""
    if have == want:
        return x
    out = x.permute([have.index(d) for d in want if d in have])
    return out[tuple(slice(None) if d in have else None for d in want)]


# ---- reading -----------------------------------------------------------------------------------


def gather(data: Tensor, index: Sequence[Factor]) -> Factor:
    """(values, dimension names) of `data` at `index`, whose entries are in range."""
    users: dict[Dim, int] = {}
    for _, dims in index:
        for d in dims:
            users[d] = users.get(d, 0) + 1
    out, axis = data, 0
    labels: list[Dim | int] = []  # of each remaining dimension: its name, or its index's number
    for n, (x, dims) in enumerate(index):
        if not dims:
            out = out.select(axis, int(x))
            continue
        straight = len(dims) == 1 and users[dims[0]] == 1
        span = _progression(x) if straight else None
        out = out if span is None else _strided(out, axis, span)
        labels.append(n if span is None else dims[0])
        axis += 1
    for group in _groups([n for n in labels if isinstance(n, int)], index):
        out, labels = _read_group(out, labels, group, index)
    return out, tuple(d for d in labels if not isinstance(d, int))


def _progression(x: Tensor) -> tuple[int, int, int] | None:
    """(first, step, count) of evenly spaced integers, else None."""
    flat = x.reshape(-1)
    n = len(flat)
    if n <= 1:
        return (int(flat[0]) if n else 0, 1, n)
    first, second, last = flat[[0, 1, -1]].tolist()
    step = second - first
    if step == 0 or last != first + step * (n - 1):
        return None
    even = torch.arange(n, device=flat.device, dtype=torch.int64) * step + first
    return (first, step, n) if torch.equal(even, flat.to(torch.int64)) else None


def _strided(data: Tensor, axis: int, span: tuple[int, int, int]) -> Tensor:
    first, step, count = span
    if step > 0:
        cut = slice(first, first + step * (count - 1) + 1 if count else first, step)
        return data[(slice(None),) * axis + (cut,)]
    last = first + step * (count - 1)
    return data[(slice(None),) * axis + (slice(last, first + 1, -step),)].flip(axis)


def _groups(pending: list[int], index: Sequence[Factor]) -> list[list[int]]:
    """Pending dimensions, together where their indices share a name."""
    groups: list[list[int]] = []
    for n in pending:
        mine = set(index[n][1])
        touching = [g for g in groups if any(mine & set(index[m][1]) for m in g)]
        groups = [g for g in groups if g not in touching]
        groups.append(sorted([n, *(m for g in touching for m in g)]))
    return sorted(groups)


def _read_group(
    data: Tensor, labels: list[Dim | int], group: list[int], index: Sequence[Factor]
) -> tuple[Tensor, list[Dim | int]]:
    """Dimensions of one group merged into one, read at the flat index, and unfolded."""
    dims = tuple(dict.fromkeys(d for n in group for d in index[n][1]))
    at = [labels.index(n) for n in group]
    rest = [n for n in range(len(labels)) if n not in at]
    before = sum(n < at[0] for n in rest)
    moved = data.permute(rest[:before] + at + rest[before:])
    head, tail = moved.shape[:before], moved.shape[before + len(at) :]
    sizes = moved.shape[before : before + len(at)]
    flat = torch.zeros((), dtype=torch.int64, device=data.device)
    for n, size in zip(group, sizes):
        flat = flat * size + align(*index[n], dims).to(torch.int64)
    merged = moved.reshape(*head, math.prod(sizes), *tail)
    out = torch.index_select(merged, before, flat.reshape(-1))
    kept = [labels[n] for n in rest]
    return out.reshape(*head, *flat.shape, *tail), [*kept[:before], *dims, *kept[before:]]


# ---- contraction -------------------------------------------------------------------------------


def contract(factors: Sequence[Factor], gone: tuple[Dim, ...]) -> Factor:
    """The product of the factors, summed over the dimensions `gone`; some factor has each."""
    sizes = {d: n for data, dims in factors for d, n in zip(dims, data.shape)}
    exact = all(not data.is_floating_point() for data, _ in factors)
    if exact:
        return _integers(factors, gone, sizes)
    work = [(data.to(torch.float64), dims) for data, dims in factors]
    while len(work) > 2:
        pairs = [(a, b) for a in range(len(work)) for b in range(a + 1, len(work))]
        a, b = min(pairs, key=lambda p: _size(_merged(work, p, gone), sizes))
        keep = _merged(work, (a, b), gone)
        merged = _einsum([work[a], work[b]], keep)
        work = [w for n, w in enumerate(work) if n not in (a, b)] + [merged]
    return _einsum(work, tuple(d for d in joint(dims for _, dims in work) if d not in gone))


def _merged(
    work: Sequence[Factor], pair: tuple[int, int], gone: tuple[Dim, ...]
) -> tuple[Dim, ...]:
    """Dimensions of a pair's product that somebody still needs."""
    others = {d for n, (_, dims) in enumerate(work) if n not in pair for d in dims}
    both = joint(work[n][1] for n in pair)
    return tuple(d for d in both if d not in gone or d in others)


def _size(dims: tuple[Dim, ...], sizes: dict[Dim, int]) -> int:
    return math.prod(sizes[d] for d in dims)


def _einsum(work: Sequence[Factor], keep: tuple[Dim, ...]) -> Factor:
    names = {d: _LETTERS[n] for n, d in enumerate(joint(dims for _, dims in work))}
    terms = ",".join("".join(names[d] for d in dims) for _, dims in work)
    out = "".join(names[d] for d in keep)
    return torch.einsum(f"{terms}->{out}", *(data for data, _ in work)), keep


def _integers(
    factors: Sequence[Factor], gone: tuple[Dim, ...], sizes: dict[Dim, int]
) -> Factor:  # fmt: skip
    """Through float64 where the result is exact there, else as one broadcast product."""
    terms = _size(gone, sizes)
    largest = math.prod(float(x.to(torch.float64).abs().max()) for x, _ in factors if x.numel())
    if largest * max(terms, 1) < EXACT:
        data, dims = contract([(x.to(torch.float64), d) for x, d in factors], gone)
        return data.round().to(torch.int64), dims
    dims = joint(d for _, d in factors)
    product = torch.ones((), dtype=torch.int64, device=factors[0][0].device)
    for data, own in factors:
        product = product * align(data.to(torch.int64), own, dims)
    at = tuple(n for n, d in enumerate(dims) if d in gone)
    return product.sum(dim=at) if at else product, tuple(d for d in dims if d not in gone)
