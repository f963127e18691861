"""Structure and rates in, what one iteration of each loop costs a core out: `Body`.

A body takes as long as the unit that it keeps busiest (arithmetic, loads, stores, issue) or as
its longest chain of dependent operations, whichever is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from autosched.costmodel.columns import Column, Columns
from autosched.costmodel.machine import Rates
from autosched.costmodel.structure import Access, Extent, Registers, Structure

# Shuffle and combine of one halving step when lanes are folded; later steps are narrower.
_FOLD_STEP = 1.5
_SPILL_LATENCY = 5.0  # store to load forwarding of a spilled accumulator
_LOOP_UOPS = 2.0  # increment, fused compare and branch


@dataclass
class Body:
    """Operations in one iteration of a loop, not counting inner loops; vectors unless said.

    *_work are scalar operations (lanes counted); registers are of the whole enclosing tile.
    """

    fma: Column = 0.0
    arith: Column = 0.0
    special: Column = 0.0
    int: Column = 0.0
    move: Column = 0.0
    fold_lanes: Column = 0.0
    scalar: Column = 0.0
    fma_work: Column = 0.0
    other_work: Column = 0.0
    special_work: Column = 0.0
    vector_slots: Column = 0.0  # lanes that the vector operations had room for
    vector_work: Column = 0.0  # lanes that they used
    vector_loads: Column = 0.0
    scalar_loads: Column = 0.0
    gathered: Column = 0.0  # lanes
    vector_stores: Column = 0.0
    scalar_stores: Column = 0.0
    scattered: Column = 0.0  # lanes
    loaded_bytes: Column = 0.0
    accumulators: Column = 0.0
    operands: Column = 0.0
    chain: float = 0.0


@dataclass(frozen=True)
class Cycles:
    """Cycles of one iteration: of each unit, of the longest chain, and of all together."""

    arithmetic: Column
    loads: Column
    stores: Column
    issue: Column
    chain: Column
    spilled: Column  # registers
    total: Column
    uops: Column


def vectors(columns: Columns, lanes: Extent | None, width: int, rates: Rates) -> Column:
    """Vector registers that the lanes of one value take."""
    if lanes is None:
        return 1.0
    return np.ceil(columns.value(lanes) * width / rates.vector_bytes)


def halvings(lanes: Column) -> Column:
    """Ceiling of log2, exactly."""
    steps: Column = 0.0
    for power in range(7):
        steps = steps + np.where(lanes > 2.0**power, 1.0, 0.0)
    return steps


def bodies(structure: Structure, columns: Columns, rates: Rates) -> list[Body]:
    out = [Body(chain=loop.chain_cycles) for loop in structure.loops]
    _count_ops(structure, columns, rates, out)
    points: list[Column] = [1.0] * len(out)
    for state in structure.registers:
        count = _registers(state, columns, rates)
        out[state.loop].accumulators = out[state.loop].accumulators + count
        points[state.loop] = np.maximum(points[state.loop], count)
    for n, loop in enumerate(structure.loops):
        parent = structure.loops[loop.parent] if loop.parent >= 0 else None
        if loop.kind == "fold" and parent is not None and parent.kind == "fold":
            out[n].accumulators = out[n].accumulators + out[loop.parent].accumulators
    for access in structure.accesses:
        _count_access(access, columns, rates, out[access.loop], points[access.loop])
    return out


def _registers(state: Registers, columns: Columns, rates: Rates) -> Column:
    return columns.product(state.points) * vectors(columns, state.lanes, 4, rates)


def _count_ops(structure: Structure, columns: Columns, rates: Rates, out: Sequence[Body]) -> None:
    for op in structure.ops:
        body = out[op.loop]
        points = op.count * columns.product(op.points)
        if op.lanes is None:
            body.scalar = body.scalar + points
            work = points
        else:
            lanes = columns.value(op.lanes)
            count = points * vectors(columns, op.lanes, op.width, rates)
            work = points * lanes
            if op.kind == "fold_lanes":
                count = count * halvings(lanes)
            setattr(body, op.kind, getattr(body, op.kind) + count)
            body.vector_slots = body.vector_slots + count * (rates.vector_bytes / op.width)
            body.vector_work = body.vector_work + work
        kind = {"fma": "fma_work", "special": "special_work"}.get(op.kind, "other_work")
        setattr(body, kind, getattr(body, kind) + work)


def _count_access(access: Access, columns: Columns, rates: Rates, body: Body, tile: Column) -> None:
    points = columns.product(access.points)
    if access.along == "scalar":
        name, count, lanes = ("scalar_stores" if access.stores else "scalar_loads"), points, 1.0
    else:
        lanes = columns.value(access.lanes or 1)
        if access.along == "vector":
            name = "vector_stores" if access.stores else "vector_loads"
            count = points * vectors(columns, access.lanes, access.itemsize, rates)
        else:
            name = "scattered" if access.stores else "gathered"
            count = points * lanes
    setattr(body, name, getattr(body, name) + count)
    if not access.stores:
        body.loaded_bytes = body.loaded_bytes + points * lanes * access.itemsize
        # An operand that several accumulators share stays in its registers; others pass through.
        live = 1.0 if access.along == "scalar" else np.where(points < tile, points, 1.0)
        body.operands = body.operands + live


def cycles(body: Body, rates: Rates, trips: Column, in_fold: bool) -> Cycles:
    """trips: of the loop each time that it is entered; with one it has no counter and branch."""
    spilled: Column = 0.0
    if in_fold:
        needed = body.accumulators + body.operands
        spilled = np.maximum(needed - rates.registers, 0.0)
    others = body.arith + body.special + body.int + body.move + _FOLD_STEP * body.fold_lanes
    arithmetic = body.fma / rates.fma_per_cycle + others / rates.vector_per_cycle
    arithmetic = arithmetic + body.scalar / rates.scalar_per_cycle
    vector_ops = body.fma + others
    vector_loads = body.vector_loads + spilled
    loads = vector_loads / rates.load_per_cycle
    loads = loads + body.scalar_loads / rates.scalar_load_per_cycle
    loads = loads + body.gathered / rates.gather_per_cycle
    stores = (body.vector_stores + spilled) / rates.store_per_cycle
    stores = stores + body.scalar_stores + body.scattered / rates.scatter_per_cycle
    uops = vector_ops + body.scalar + vector_loads + body.scalar_loads + 2.0 * body.gathered
    uops = uops + body.vector_stores + spilled + body.scalar_stores + 2.0 * body.scattered
    uops = uops + np.where(trips > 1.0, _LOOP_UOPS, 0.0)
    issue = uops / rates.issue_width
    chain: Column = body.chain
    if body.chain:
        # A short loop overlaps with what comes after it, as far as the core looks ahead.
        ahead = 1.0 + rates.window_uops / np.maximum(trips * uops, 1.0)
        chain = (body.chain + np.where(spilled > 0, _SPILL_LATENCY, 0.0)) / ahead
    total: Column = 0.0
    for part in (arithmetic, loads, stores, issue, chain):
        total = np.maximum(total, part)
    return Cycles(arithmetic, loads, stores, issue, chain, spilled, total, uops)


WORK = tuple(f.name for f in fields(Body))
