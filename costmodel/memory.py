"""Accesses of a structure in, what they touch out: footprints at each loop, traffic per cache.

A cache keeps what the body of a loop touches if that fits; then the data of one iteration that
the next one reads again is still there. So an access moves, through a cache, its footprint over
the innermost loop that touches more than the cache holds, each time that loop is entered. What
fits as a whole is counted as being there (warm caches).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autosched.costmodel.columns import Column, Columns, whole
from autosched.costmodel.structure import Access, Index, Structure
from autosched.ir.extent import ext_product
from autosched.ir.node import Extent, Node
from autosched.ir.scalar import ITEMSIZE

SET_SPAN = 4096  # bytes after which first-level caches of all current CPUs repeat their sets
STORE_TRAFFIC = 2.0  # a line is read before it is written, and written back later


@dataclass(frozen=True)
class Footprints:
    """Bytes in lines: touched[a][k] by access a in one run of the k-th loop of its chain
    (innermost first), body[a] in one iteration; working[n] by all accesses in a run of loop n.
    pressure[a] is the number of lines of access a that want the same set of the first level."""

    touched: tuple[tuple[Column, ...], ...]
    body: tuple[Column, ...]
    working: tuple[Column, ...]
    pressure: tuple[Column, ...]


def buffer_bytes(handle: Node, columns: Columns) -> Column:
    dims: Sequence[Extent] = (
        [e for _, e in handle.attr[1]] if handle.op == "input" else handle.attr[1]
    )
    return columns.value(ext_product(dims)) * ITEMSIZE[handle.dtype]


def footprints(
    structure: Structure, columns: Columns, counts: Sequence[Column], line: float
) -> Footprints:
    """counts: trips of each loop as one thread runs them."""
    touched, body, pressure = [], [], []
    for access in structure.accesses:
        dims = [_Dimension(i, columns, access, structure, counts) for i in access.index]
        pressure.append(_pressure(dims, access, columns))
        first, levels = _touched(structure, access, dims, columns, counts, line)
        body.append(first)
        touched.append(levels)
    working = _working(structure, touched)
    return Footprints(tuple(touched), tuple(body), tuple(working), tuple(pressure))


def _working(structure: Structure, touched: Sequence[tuple[Column, ...]]) -> list[Column]:
    """Per loop, the sum over buffers; several accesses to one mostly touch the same data."""
    parts: list[dict[Node, Column]] = [{} for _ in structure.loops]
    for access, levels in zip(structure.accesses, touched):
        for n, bytes_ in zip(structure.chain(access.loop), levels):
            have = parts[n].get(access.handle)
            parts[n][access.handle] = bytes_ if have is None else np.maximum(have, bytes_)
    out: list[Column] = []
    for part in parts:
        total: Column = 0.0
        for bytes_ in part.values():
            total = total + bytes_
        out.append(total)
    return out


def _touched(
    structure: Structure,
    access: Access,
    dims: Sequence[_Dimension],
    columns: Columns,
    counts: Sequence[Column],
    line: float,
) -> tuple[Column, tuple[Column, ...]]:
    whole_buffer = buffer_bytes(access.handle, columns)
    for axis, extent in access.inner:
        _widen(dims, axis, columns.value(extent))
    body = _bytes(dims, access.itemsize, whole_buffer, line)
    levels: list[Column] = []
    for n in structure.chain(access.loop):
        axis = structure.loops[n].axis
        moved = _widen(dims, axis, counts[n]) if axis else False
        same = levels[-1] if levels else body
        levels.append(_bytes(dims, access.itemsize, whole_buffer, line) if moved else same)
    return body, tuple(levels)


def _widen(dims: Sequence[_Dimension], axis: str, trips: Column) -> bool:
    moved = [d.widen(axis, trips) for d in dims]
    return any(moved)


class _Dimension:
    """How far along one dimension an access has come: distance covered, places touched."""

    def __init__(
        self,
        index: Index,
        columns: Columns,
        access: Access,
        structure: Structure,
        counts: Sequence[Column],
    ) -> None:
        self.extent = columns.value(index.extent)
        self.loaded = index.loaded
        self.strides: dict[str, Column] = {a: float(abs(s)) for a, s in index.strides}
        if index.rest is not None:
            lengths = {structure.loops[n].axis: counts[n] for n in structure.chain(access.loop)}
            lengths.update((a, columns.value(e)) for a, e in access.inner)
            for axis in index.rest_axes:
                step = self.extent if index.loaded else _step(index, axis, lengths, columns)
                self.strides[axis] = self.strides.get(axis, 0.0) + step
        self.span: Column = 0.0
        self.places: Column = 1.0

    def widen(self, axis: str, trips: Column) -> bool:
        """Takes the iterations along `axis` in; whether the access moves with them."""
        if axis not in self.strides:
            return False
        step = self.strides[axis]
        self.span = np.minimum(self.span + step * np.maximum(trips - 1.0, 0.0), self.extent - 1.0)
        moving = trips if isinstance(step, float) and step > 0 else np.where(step > 0, trips, 1.0)
        limit = self.extent if self.loaded else np.minimum(self.extent, self.span + 1.0)
        self.places = np.minimum(self.places * np.maximum(moving, 1.0), limit)
        return True


def _step(index: Index, axis: str, lengths: dict[str, Column], columns: Columns) -> Column:
    """Mean distance per step of an axis in a position that is not linear."""
    assert index.rest is not None
    rest = dict.fromkeys(index.rest_axes, 0)
    last = np.maximum(lengths.get(axis, 1.0) - 1.0, 0.0)
    start = columns.at(index.rest, rest)
    far: Column = 0.0
    for at in (np.minimum(last, 1.0), np.floor(last / 2.0), last):
        far = np.maximum(far, np.abs(columns.at(index.rest, {**rest, axis: whole(at)}) - start))
    return far / np.maximum(last, 1.0)


def _bytes(dims: Sequence[_Dimension], itemsize: int, whole_buffer: Column, line: float) -> Column:
    """Bytes of the lines touched: runs grow over dimensions as long as these are covered."""
    run: Column = 1.0
    rows: Column = 1.0
    covered: Column = True
    for d in reversed(dims):
        still = isinstance(d.span, float) and d.span == 0.0
        if d.loaded:  # places that data names lie apart
            rows = rows * d.places
            covered = False
            continue
        if not still and isinstance(covered, np.ndarray):
            run = np.where(covered, run * (d.span + 1.0), run)
            rows = np.where(covered, rows, rows * d.places)
        elif not still and covered:
            run = run * (d.span + 1.0)
        elif not still:
            rows = rows * d.places
        covered = np.logical_and(covered, d.span + 1.0 >= d.extent)
    return np.minimum(rows * np.maximum(run * itemsize, line), np.maximum(whole_buffer, line))


def _pressure(dims: Sequence[_Dimension], access: Access, columns: Columns) -> Column:
    """Rows at a multiple of 4 KiB from each other share a set: as many as fall together."""
    worst: Column = 1.0
    lane = access.inner[-1][0] if access.lanes is not None else None
    for axis, extent in access.inner:
        if axis == lane:
            continue
        step: Column = 0.0
        unit: Column = float(access.itemsize)
        for d in reversed(dims):
            step = step + d.strides.get(axis, 0.0) * unit
            unit = unit * d.extent
        whole_step = np.asarray(np.floor(step), np.int64)
        apart = SET_SPAN / np.gcd(whole_step, SET_SPAN)
        together = np.where(whole_step >= SET_SPAN // 64, columns.value(extent) / apart, 1.0)
        worst = np.maximum(worst, together)
    return worst


def conflict_traffic(
    structure: Structure,
    prints: Footprints,
    columns: Columns,
    iterations: Sequence[Column],
    ways: float,
    line: float,
) -> dict[int, Column]:
    """Bytes that the first level fetches again because too many lines want one set, by region."""
    out: dict[int, Column] = {}
    for access, pressure in zip(structure.accesses, prints.pressure):
        share = np.clip((pressure - ways) / (0.5 * ways), 0.0, 1.0)
        moved = share * line * columns.product(access.points) * iterations[access.loop]
        region = structure.chain(access.loop)[-1]
        out[region] = out.get(region, 0.0) + moved
    return out


def traffic(
    structure: Structure,
    prints: Footprints,
    entries: Sequence[Column],
    cache_bytes: float,
) -> dict[int, Column]:
    """Bytes that one thread moves into and out of a cache of that size, by region.

    What several accesses to a buffer move in the same loop is the same data.
    """
    too_big = [w > cache_bytes for w in prints.working]
    # (loop, loop inside it) -> entries where the outer one is too big and the inner one fits.
    refills: dict[tuple[int, int], Column] = {}
    parts: dict[tuple[int, Node], Column] = {}
    for access, levels in zip(structure.accesses, prints.touched):
        weight = STORE_TRAFFIC if access.stores else 1.0
        inner = -1
        for n, bytes_ in zip(structure.chain(access.loop), levels):
            if (n, inner) not in refills:
                fits = True if inner < 0 else np.logical_not(too_big[inner])
                here = np.logical_and(too_big[n], fits)
                refills[n, inner] = np.where(here, entries[n], 0.0) if np.any(here) else None
            times = refills[n, inner]
            inner = n
            if times is None:
                continue
            moved = weight * bytes_ * times
            key = (n, access.handle)
            parts[key] = np.maximum(parts[key], moved) if key in parts else moved
    out: dict[int, Column] = {}
    for (n, _), moved in parts.items():
        region = structure.chain(n)[-1]
        out[region] = out.get(region, 0.0) + moved
    return out
