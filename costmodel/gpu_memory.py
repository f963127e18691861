"""Boxes of a GPU structure in, the bytes they move out: per box, per wave of programs, per device.

The second level keeps what the programs of a wave read together, and what a run of further waves
needs again as long as all that the run touches fits. Programs are numbered with the innermost
grid loop fastest, so a wave covers that loop first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autosched.costmodel.columns import Column, Columns, whole
from autosched.costmodel.gpu_places import Place
from autosched.costmodel.gpu_structure import LAST, BoxAccess, GpuKernel, GpuStructure
from autosched.ir.node import Extent, Node
from autosched.ir.scalar import ITEMSIZE

SECTOR = 32.0  # bytes that memory moves at least
VECTOR = 16.0  # bytes that one lane moves at most
HIT_EDGE = 0.4  # caches fade out over this share of their size around it
KEPT = 0.9  # share of a cache that is there for data of one kernel


@dataclass(frozen=True)
class Moved:
    """One access: what a single box costs, and what all its boxes touch.

    lanes: memory operations of threads; elements: points of the box; sectors: bytes moved for it;
    useful: bytes of it that a mask leaves; width: bytes a lane moves.
    """

    lanes: Column
    elements: Column
    sectors: Column
    useful: Column
    width: Column


class Reach:
    """How far an access comes along each dimension when axes run over lengths."""

    def __init__(self, access: BoxAccess, columns: Columns, lengths: Mapping[str, Column]) -> None:
        self.access = access
        self.extents = [columns.value(p.extent) for p in access.places]
        self.steps = [_steps(p, e, columns, lengths) for p, e in zip(access.places, self.extents)]
        self.whole = _buffer_bytes(access.handle, columns)

    def bytes(self, lengths: Mapping[str, Column], *, clipped: bool = True) -> Column:
        """Bytes of the sectors touched while each axis of `lengths` runs over that many steps;
        not clipped: as if the buffer had no end."""
        rows: Column = 1.0
        last: Column = float(self.access.itemsize)
        for n, (steps, extent) in enumerate(zip(self.steps, self.extents)):
            limit = extent if clipped else np.inf
            span, places = _covered(steps, lengths, limit, self.access.places[n].loaded)
            if n < len(self.steps) - 1:
                rows = rows * places
            else:
                dense = (span + 1.0) * self.access.itemsize
                last = np.maximum(np.minimum(dense, places * SECTOR), SECTOR)
        return np.minimum(rows * last, np.maximum(self.whole, SECTOR)) if clipped else rows * last

    def kept(self, lengths: Mapping[str, Column]) -> Column:
        """The share of the boxes' points that lie inside the buffer."""
        share: Column = 1.0
        if not self.access.masked:
            return share
        for steps, extent in zip(self.steps, self.extents):
            far: Column = 1.0
            for axis, step in steps.items():
                far = far + step * (lengths.get(axis, 1.0) - 1.0)
            share = share * np.minimum(1.0, extent / np.maximum(far, 1.0))
        return share


def _steps(
    place: Place, extent: Column, columns: Columns, lengths: Mapping[str, Column]
) -> dict[str, Column]:
    """Mean distance along a dimension for each step of an axis."""
    out: dict[str, Column] = {a: np.abs(columns.value(s)) for a, s in place.strides}
    for axis in place.rest_axes:
        step = extent if place.loaded else _mean_step(place.rest, axis, lengths, columns)
        out[axis] = out.get(axis, 0.0) + step
    return out


def _mean_step(
    rest: Node | None, axis: str, lengths: Mapping[str, Column], columns: Columns
) -> Column:
    assert rest is not None
    at = dict.fromkeys(rest.names, 0)
    last = np.maximum(lengths.get(axis, 1.0) - 1.0, 0.0)
    start = columns.at(rest, at)
    far: Column = 0.0
    for point in (np.minimum(last, 1.0), np.floor(last / 2.0), last):
        far = np.maximum(far, np.abs(columns.at(rest, {**at, axis: whole(point)}) - start))
    return far / np.maximum(last, 1.0)


def _covered(
    steps: Mapping[str, Column], lengths: Mapping[str, Column], extent: Column, loaded: bool
) -> tuple[Column, Column]:
    """(distance covered, places touched) along one dimension."""
    span: Column = 0.0
    places: Column = 1.0
    for axis, step in steps.items():
        length = lengths.get(axis, 1.0)
        span = span + step * np.maximum(length - 1.0, 0.0)
        moves = length if isinstance(step, float) and step > 0 else np.where(step > 0, length, 1.0)
        places = places * np.maximum(moves, 1.0)
    span = np.minimum(span, extent - 1.0)
    limit = extent if loaded else np.minimum(extent, span + 1.0)
    return span, np.minimum(places, limit)


def _buffer_bytes(handle: Node, columns: Columns) -> Column:
    dims: Sequence[Extent] = (
        [e for _, e in handle.attr[1]] if handle.op == "input" else handle.attr[1]
    )
    return columns.product(dims) * max(ITEMSIZE[handle.dtype], 1)


def lane_bytes(access: BoxAccess, columns: Columns) -> Column:
    """Bytes that one lane moves: a vector where the last dimension is contiguous and aligned."""
    item = float(access.itemsize)
    if not access.places:
        return item
    last = access.places[-1]
    box = dict(access.box)
    along = [a for a, s in last.strides if a in box and s == 1]
    if not along or last.loaded or last.rest is not None:
        return item
    others = [s for a, s in last.strides if a != along[0]]
    pitch = [last.extent] if len(access.places) > 1 else []
    common = whole(columns.value(box[along[0]]))
    for size in (*pitch, *others):
        common = np.gcd(common, whole(columns.value(size)))
    elements = np.gcd(common, int(VECTOR // item))
    return np.asarray(elements, np.float64) * item


def moved(
    access: BoxAccess, reach: Reach, columns: Columns, lengths: Mapping[str, Column]
) -> Moved:
    """What one box of an access costs, on average over all boxes."""
    box = {a: columns.value(e) for a, e in access.box}
    elements: Column = 1.0
    for size in box.values():
        elements = elements * size
    width = lane_bytes(access, columns)
    kept = reach.kept(lengths)
    sectors = reach.bytes(box, clipped=False) * kept
    return Moved(
        elements * access.itemsize / width, elements, sectors, elements * access.itemsize * kept,
        width,
    )  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kernel from memory: once (`unique`), with what the second level loses
    (`fetched`), stored, and what one wave touches."""

    unique: Column
    fetched: Column
    stored: Column
    wave: Column


def device_traffic(
    structure: GpuStructure,
    kernel: GpuKernel,
    reaches: Mapping[int, Reach],
    counts: Sequence[Column],
    columns: Columns,
    concurrent: Column,
    cache_bytes: float,
) -> Traffic:
    """reaches: of the kernel's accesses, by number; concurrent: programs that run at a time."""
    inner = {
        loop.axis: n
        for k, (loop, n) in enumerate(zip(structure.loops, counts))
        if loop.kind in ("serial", "fold") and structure.chain(k)[-1] == kernel.root
    }
    covers = _covers(structure, kernel, counts, columns, concurrent)
    passing = _passing(structure, reaches)
    touched: list[dict[tuple[Node, bool], Column]] = []
    for cover in covers:
        walked = {**inner, **_unions(structure, kernel, inner, cover, columns)}
        level: dict[tuple[Node, bool], Column] = {}
        for number, reach in reaches.items():
            access = structure.accesses[number]
            if access.handle in passing:
                continue
            box = {a: columns.value(e) for a, e in access.box}
            bytes_ = reach.bytes({**walked, **cover, **box})
            key = (access.handle, access.stores)
            level[key] = np.maximum(level[key], bytes_) if key in level else bytes_
        touched.append(level)
    totals = [sum(level.values()) for level in touched]
    repeats = [_repeats(structure, kernel, counts, cover) for cover in covers]
    fetched = sum(b * repeats[0] for (_, stores), b in touched[0].items() if not stores)
    for k in range(len(covers) - 1):
        hit = np.clip((1.0 - totals[k] / (KEPT * cache_bytes)) / HIT_EDGE + 0.5, 0.0, 1.0)
        for key, bytes_ in touched[k].items():
            if not key[1]:
                saved = bytes_ * repeats[k] - touched[k + 1][key] * repeats[k + 1]
                fetched = fetched - hit * np.maximum(saved, 0.0)
    last = touched[-1]
    unique = sum(b for (_, stores), b in last.items() if not stores)
    stored = sum(b for (_, stores), b in last.items() if stores)
    return Traffic(unique, np.maximum(fetched, unique), stored, totals[0])


def _passing(structure: GpuStructure, numbers: Iterable[int]) -> set[Node]:
    """What programs store for the one that arrives last: it never leaves the second level."""
    accesses = [structure.accesses[n] for n in numbers]
    late = {
        a.handle for a in accesses
        if not a.stores and any(structure.loops[n].kind == LAST for n in a.needs)
    }  # fmt: skip
    return late & {a.handle for a in accesses if a.stores}


def _unions(
    structure: GpuStructure,
    kernel: GpuKernel,
    inner: Mapping[str, Column],
    cover: Mapping[str, Column],
    columns: Columns,
) -> dict[str, Column]:
    """Steps of loops that start elsewhere in other programs, as all programs of a cover take
    them together: from the first start to the last end."""
    out: dict[str, Column] = {}
    for n, loop in enumerate(structure.loops):
        if loop.axis not in inner or loop.loaded or structure.chain(n)[-1] != kernel.root:
            continue
        axes = {a for b in (loop.lo, loop.hi) for a, _ in b.free}
        if not set(cover) & {a for a, _ in loop.lo.free}:
            continue
        lengths = {a: cover.get(a, inner.get(a, 1.0)) for a in axes}
        last = {a: whole(np.floor(np.maximum(n - 1.0, 0.0))) for a, n in lengths.items()}
        ends = columns.at(loop.hi, last) - columns.at(loop.lo, dict.fromkeys(axes, 0))
        out[loop.axis] = np.maximum(out.get(loop.axis, inner[loop.axis]), ends)
    return out


def _covers(
    structure: GpuStructure,
    kernel: GpuKernel,
    counts: Sequence[Column],
    columns: Columns,
    concurrent: Column,
) -> list[dict[str, Column]]:
    """Lengths of the grid axes: as one wave covers them, then with one more loop covered whole;
    of the last two loops the last one whole in groups of iterations of the other."""
    moving = [n for n in kernel.grid if not (isinstance(counts[n], float) and counts[n] <= 1.0)]
    axis = {n: structure.loops[n].axis for n in kernel.grid}
    wave: dict[str, Column] = {axis[n]: 1.0 for n in kernel.grid}
    left, rest, group = np.maximum(np.ceil(concurrent), 1.0), list(moving), 1.0 + 0.0 * concurrent
    if len(moving) > 1:
        outer, inner = moving[-2:]
        group = np.clip(columns.value(kernel.fact("group")), 1.0, counts[outer])
        across = np.minimum(counts[inner], np.maximum(np.ceil(left / group), 1.0))
        groups = np.ceil(left / (group * counts[inner]))
        down = np.minimum(counts[outer], np.minimum(left, group * groups))
        wave |= {axis[inner]: across, axis[outer]: down}
        left, rest = left / (across * down), rest[:-2]
    for n in reversed(rest):
        own = np.minimum(counts[n], np.maximum(np.ceil(left), 1.0))
        wave[axis[n]] = own
        left = left / np.maximum(own, 1.0)
    covers = [wave]
    for n in reversed(moving):
        more = {axis[n]: counts[n]}
        if len(moving) > 1 and n == moving[-1]:
            more[axis[moving[-2]]] = np.maximum(wave[axis[moving[-2]]], group)
        covers.append({**covers[-1], **more})
    return covers


def _repeats(
    structure: GpuStructure,
    kernel: GpuKernel,
    counts: Sequence[Column],
    cover: Mapping[str, Column],
) -> Column:
    out: Column = 1.0
    for n in kernel.grid:
        out = out * (counts[n] / np.maximum(cover[structure.loops[n].axis], 1.0))
    return out
