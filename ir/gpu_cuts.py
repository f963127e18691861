"""How the axes of a kernel are cut for a target that computes on tiles: roles in, sizes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from autosched.ir.block_axes import power_of_two
from autosched.ir.gpu_axes import KernelAxes
from autosched.ir.rules import tile
from autosched.ir.schedule import Knob

MATRIX_BLOCKS = (16, 32, 64, 128, 256)
STEP_BLOCKS = (16, 32, 64, 128)  # elements of a reduced axis between two loads
ROW_BLOCKS = (1, 2, 4, 8, 16, 32, 64)
SUM_BLOCKS = (512, 2048)  # of a line of which no more than sums are stored, besides all of it
LINE_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
WHOLE = 256  # elements of a matrix axis that stay in one box
LONGEST_SIDE = 512  # of one whose rows are reduced, too: cut, each block would compute all of it
LONG_LINE = 16384  # elements of a row that stay in one box
MIN_DOT = 16
PACKED_ROWS = 128  # of several axes in one box

Sizes = tuple[int, ...] | int | str


def knob_over(knobs: list[Knob], name: str, sizes: Sizes) -> int | str:
    """A size of the plan: a number, or the knob over several."""
    if isinstance(sizes, (int, str)):
        return sizes
    if len(sizes) == 1:
        return sizes[0]
    knobs.append(Knob(name, sizes))
    return f"${name}"


def matrix_cut(
    dims: Sequence[str], extents: dict[str, int], axes: KernelAxes, blocked: bool,
    packed: Mapping[str, int] | None = None,
) -> dict[str, Sizes]:  # fmt: skip
    """Blocks along one axis of each operand, points along what both have.

    blocked: an axis of fewer elements than a tensor core's tile is a block all the same; else a
    point, and the contraction a sum of products. packed: axes that share a box, in blocks of
    these sizes.
    """
    packed = packed or {}
    free = [a for a in dims if a in axes.left and a not in axes.shared and a not in packed]
    sides = _sides(free, extents)
    out: dict[str, Sizes] = {}
    for axis in dims:
        extent = extents[axis]
        if axis in packed:
            out[axis] = packed[axis]
        elif axis in axes.steps:
            out[axis] = tile.STEP
        elif axis in axes.scanned:
            out[axis] = 0 if extent <= LONG_LINE else _up_to(LINE_BLOCKS, extent)
        elif axis in axes.ragged:
            out[axis] = 1
        elif _stays_whole(axis, extent, axes):
            out[axis] = 0
        elif axis in sides and extent > 1 and (blocked or extent >= MIN_DOT):
            out[axis] = _up_to(MATRIX_BLOCKS, extent)
        else:
            out[axis] = 1
    return out


def packed_sizes(
    groups: Sequence[Mapping[str, int]], extents: Mapping[str, int], axes: KernelAxes
) -> tuple[dict[str, int], ...]:
    """Blocks of the axes that share a box, for each group that is worth one: no axis of it fills a
    box by itself, and together they have more rows than the longest.

    groups: as `packing.packable` tells, with the elements of each axis that see the same.
    """
    held = axes.states & axes.inside
    fixed = {*axes.steps, *axes.scanned, *axes.ragged, *axes.moved, *axes.reduced, *held}
    out = []
    for group in groups:
        if fixed & set(group) or max(group.values()) > PACKED_ROWS:
            continue
        # Without this, an axis that only one operand names is a side of the box anyway; heads that
        # both name would each be a program, though all of them share one key head.
        sides = {*group} - axes.shared
        alone = max((n for a, n in group.items() if n == extents[a] and a in sides), default=1)
        left, sizes = PACKED_ROWS, {}
        for axis, members in reversed(list(group.items())):
            size = min(members, left)
            if members < extents[axis]:  # a block lies in one group of members
                size = max(n for n in range(1, size + 1) if members % n == 0)
            sizes[axis] = size
            left //= size
        if prod(sizes.values()) > alone:
            out.append(dict(reversed(list(sizes.items()))))
    return tuple(out[: len(tile.PACKED)])


def _stays_whole(axis: str, extent: int, axes: KernelAxes) -> bool:
    """Whether an axis is read at other places too, or cutting it would repeat a contraction."""
    if axis in axes.moved or (axis in axes.states and axis in axes.inside):
        return True
    if axis in axes.left:
        most = LONGEST_SIDE if axis in axes.reduced else WHOLE if axis in axes.recomputed else 0
        return extent <= most
    return axis in axes.reduced


def _sides(free: Sequence[str], extents: dict[str, int]) -> set[str]:
    """The last axis and the longest of the others: one for rows, one for columns."""
    if not free:
        return set()
    last = free[-1]
    others = [a for a in free if a != last]
    return {last, *([max(others, key=lambda a: extents[a])] if others else [])}


def line_cut(dims: Sequence[str], extents: dict[str, int], axes: KernelAxes) -> dict[str, Sizes]:
    """A box along the contiguous axis, or along what is reduced, and some rows of another."""
    out: dict[str, Sizes] = {}
    for axis in dims:
        extent = extents[axis]
        if axis in axes.steps:
            out[axis] = tile.STEP
        elif axis in axes.ragged:
            out[axis] = 1
        elif axis in axes.moved:
            out[axis] = 0
        elif axis in axes.reduced or axis in axes.scanned:
            out[axis] = 0 if extent <= LONG_LINE else _up_to(LINE_BLOCKS, extent)
        elif axis == dims[-1] and set(axes.reduced) - set(dims):
            out[axis] = _up_to(sorted({*ROW_BLOCKS, *LINE_BLOCKS}), extent)
        elif axis == dims[-1]:
            short = power_of_two(extent) < LINE_BLOCKS[0]
            out[axis] = power_of_two(extent) if short else _up_to(LINE_BLOCKS, extent)
        else:
            out[axis] = 1
    rows = [a for a in dims if out[a] == 1 and extents[a] > 1 and a not in axes.ragged]
    if rows:
        longest = max(rows, key=lambda a: extents[a])
        out[longest] = _up_to(ROW_BLOCKS, extents[longest])
    return out


def reduce_sizes(
    axis: str, extent: int, axes: KernelAxes, crowded: bool, stored: bool = True
) -> Sizes:
    """Blocks of a reduced axis, 0 for all of it; stored: values along it are stored too."""
    if axis in axes.contracted and axis not in axes.inside:
        if extent <= MIN_DOT:
            return 0
        return _up_to(STEP_BLOCKS, extent)
    if axis in axes.contracted:
        return 0 if extent <= WHOLE else _up_to(STEP_BLOCKS, extent)
    if extent > LONG_LINE:
        return _up_to(LINE_BLOCKS, extent)
    if crowded and extent > MIN_DOT:
        return _up_to(STEP_BLOCKS, extent)
    if stored or axes.contracted or extent <= SUM_BLOCKS[0]:
        return 0
    cover = power_of_two(extent)
    return (*(s for s in SUM_BLOCKS if s < cover), cover)


def _up_to(sizes: Sequence[int], extent: int) -> Sizes:
    """The sizes that the axis fills, with the first that covers it."""
    cover = power_of_two(extent)
    fits = tuple(s for s in sizes if s <= cover)
    return fits or (sizes[0],)
