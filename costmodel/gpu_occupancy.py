"""View of a kernel in, how many of its programs share a multiprocessor out."""

from __future__ import annotations

import numpy as np

from autosched.costmodel.columns import Column
from autosched.costmodel.gpu_structure import KEPT
from autosched.costmodel.gpu_view import WARPGROUP, View

BASE_REGISTERS = 40.0  # addresses, loop counters, masks
MAX_REGISTERS = 255.0  # of a thread
SHARED_OUT = 168.0  # of a thread at the start of a program whose warps then share them out


def registers(view: View) -> tuple[Column, Column]:
    """(registers of a thread, those beyond what it has): states and the largest value of the
    worst loop."""
    states: dict[int, Column] = {}
    values: dict[int, Column] = {}
    for held in view.structure.held:
        if view.mine(held.loop):
            words = np.ceil(view.columns.product(held.box) * held.width / 4.0 / view.threads)
            if held.role == "state":
                states[held.loop] = states.get(held.loop, 0.0) + words
            else:
                values[held.loop] = np.maximum(values.get(held.loop, 0.0), words)
    for held in view.structure.operands:
        if view.mine(held.loop):
            words = np.ceil(view.columns.product(held.box) * held.width / 4.0 / view.threads)
            values[held.loop] = values.get(held.loop, 0.0) + words
    worst: Column = 0.0
    for n in view.loops:
        live = values.get(n, 0.0)
        for m in view.structure.chain(n):
            live = live + states.get(m, 0.0)
        worst = np.maximum(worst, live)
    wanted = BASE_REGISTERS + worst
    cap = view.facts["registers"]
    most = np.where(cap > 0, np.minimum(cap, MAX_REGISTERS), MAX_REGISTERS)
    return np.minimum(wanted, most), np.maximum(wanted - most, 0.0)


def shared_bytes(view: View) -> Column:
    """Bytes of shared memory of a program: boxes fetched ahead, and operands."""
    loops: dict[int, Column] = {}
    outer: Column = 0.0
    ahead = {a.handle for a in view.structure.accesses if a.shared and a.staged}
    for number, access in enumerate(view.structure.accesses):
        if number in view.boxes and access.shared:
            box = view.boxes[number].elements * access.itemsize
            if access.staged:
                loops[access.loop] = loops.get(access.loop, 0.0) + box * np.where(
                    view.often(access.needs)[1] > 0, view.stages, 1.0
                )
            elif access.handle not in ahead:  # else it is a first or a last step of the loop
                outer = outer + box
    for held in view.structure.operands:
        if view.mine(held.loop):
            box = view.columns.product(held.box) * held.width
            if held.role == "rows":  # asynchronous contractions take rows from registers
                box = np.where(view.warps >= WARPGROUP, 0.0, box)
            loops[held.loop] = loops.get(held.loop, 0.0) + box
    most: Column = 0.0
    for n in loops:
        around: Column = 0.0
        for m in view.structure.chain(n):
            around = around + loops.get(m, 0.0)
        most = np.maximum(most, around)
    kept = _leaving(view)
    # The next block, or warps of their own, load already while a store leaves.
    beside = (view.walks > 0) | (view.specialised > 0)
    return np.where(beside, outer + most + kept, np.maximum(outer + most, kept))


def _leaving(view: View) -> Column:
    """Bytes of shared memory that a store through a descriptor leaves from, part by part."""
    kept: Column = 0.0
    for number, access in enumerate(view.structure.accesses):
        parts = any(view.structure.loops[n].kind == KEPT for n in access.needs)
        if number in view.boxes and access.stores and not parts:
            kept = kept + view.boxes[number].elements * access.itemsize
    return kept / view.facts["epilogue"] * view.boxed("store")


def resident_programs(view: View, registers: Column, shared: Column) -> Column:
    """Programs that one multiprocessor runs at a time, at least one."""
    r = view.rates
    # Groups of warps that load for others start with as many registers as they may share out.
    warps = view.warps + 2.0 * WARPGROUP * view.specialised
    each = np.where(view.specialised > 0, SHARED_OUT, np.ceil(registers / 8.0) * 8.0)
    fits = np.minimum(np.floor(r.registers / (each * warps * r.lanes)), r.block_slots)
    fits = np.minimum(fits, np.floor(r.warp_slots / warps))
    room = r.shared_bytes + r.shared_reserved
    fits = np.minimum(fits, np.floor(room / (shared + r.shared_reserved)))
    # A persistent kernel launches so many programs for each multiprocessor.
    fits = np.where(view.persistent > 0, np.minimum(fits, view.persistent), fits)
    dealt = np.ceil(view.dealt / r.cores)
    fits = np.where(dealt > 0, np.minimum(fits, dealt), fits)
    return np.maximum(fits, 1.0)
