"""Work of a program of a kernel in, cycles of its units, of its chain and of a wave out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autosched.costmodel.columns import Column
from autosched.costmodel.gpu_structure import LAST
from autosched.costmodel.gpu_view import Facts, View

# Stores on their way to the second level, and the count of arrivals there and back.
ARRIVAL_LOADS = 2.0
SPILL_MOVES = 4.0  # loads and stores of a spilled register in each step, beyond the first level


def join(a: Column, b: Column) -> Column:
    """Two bounds that overlap: the larger one, and up to 9 % more where they are equal."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    ratio = low / np.maximum(high, 1e-9)
    for _ in range(3):
        ratio = ratio * ratio
    return high * np.sqrt(np.sqrt(np.sqrt(1.0 + ratio)))


def added(*parts: Facts) -> Facts:
    """Columns of the same names, summed."""
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def program_cycles(view: View, dots: Facts, ops: Facts, memory: Facts, spills: Column) -> Facts:
    """Cycles that one program keeps each unit of its multiprocessor busy."""
    r = view.rates
    # A memory operation of a lane comes with its address and its mask.
    addresses = 3.0 * memory["pointers"]
    issued = ops["arith"] + ops["int"] + ops["move"] + ops["mufu"] + addresses
    cuda = np.maximum(issued / r.issue_per_cycle, ops["arith"] / r.fp32_per_cycle)
    cuda = np.maximum(cuda, (ops["int"] + addresses) / r.int_per_cycle)
    cuda = np.maximum(cuda, ops["move"] / r.move_per_cycle)
    trips_: Column = 1.0
    for n in view.loops:
        if view.structure.loops[n].kind == "fold":
            trips_ = np.maximum(trips_, view.iterations[n])
    spilled = SPILL_MOVES * spills * view.threads * trips_
    lanes = memory["access_lanes"] + spilled
    bytes_ = memory["access_bytes"] + 4.0 * spilled
    return {
        "tensor": dots["tensor"],
        # What of it runs while the rest of its step does, waiting for nothing of it.
        "beside": dots["tensor"] * dots["early"] / np.maximum(dots["flops"], 1.0),
        "cuda": cuda + dots["cuda"],
        "mufu": ops["mufu"] / r.mufu_per_cycle,
        "access": np.maximum(lanes / r.memory_lanes_per_cycle,
                             bytes_ / r.shared_bytes_per_cycle),
        "port": (memory["loaded"] + memory["stored"] + 4.0 * spilled)
        / r.l2_port_bytes_per_cycle,
    }  # fmt: skip


def start_cycles(view: View, waves: Column) -> Column:
    """Cycles until a program does its first load: a persistent one starts once for all waves."""
    r = view.rates
    described = view.facts["descriptors"] > 0
    start = r.block_cycles + np.where(described, r.descriptor_cycles, 0.0)
    return start / np.where(view.walks > 0, np.maximum(np.ceil(waves), 1.0), 1.0)


def chain_cycles(view: View, waves: Column) -> Column:
    """Cycles that a program takes from then on, however idle its multiprocessor is; one loop over
    the grid and what is inside fetches ahead across its programs."""
    r = view.rates
    flat = (view.facts["flatten"] > 0) & (view.persistent > 0)
    begins = np.where(flat, 1.0 / np.maximum(np.ceil(waves), 1.0), 1.0)
    total: Column = 0.0
    for chain in view.structure.chains:
        if not view.mine(chain.loop):
            continue
        step = chain.cycles + r.load_cycles * chain.loads
        if chain.staged:
            first = r.load_cycles + _staged_bytes(view, chain.loop) / r.share_of_l2
            ahead = first / np.maximum(view.stages - 1.0, 1.0)
            looped = view.counts[chain.loop] != 1.0
            step = np.where(looped, np.maximum(step + r.wait_cycles, ahead), step)
            total = total + first * begins
        total = total + step * view.iterations[chain.loop] * view.alone(chain.loop)
    merges = sum(view.mine(n) for n, x in enumerate(view.structure.loops) if x.kind == LAST)
    return total + merges * ARRIVAL_LOADS * r.load_cycles


def _staged_bytes(view: View, loop: int) -> Column:
    """Bytes that one step of a loop fetches ahead."""
    total: Column = 0.0
    for number, box in view.boxes.items():
        access = view.structure.accesses[number]
        if access.loop == loop and access.staged:
            total = total + box.sectors
    return total


def wave_cycles(view: View, together: Column, costs: Sequence[Facts], chain: Column) -> Column:
    """Cycles of `together` programs on one multiprocessor.

    Units work side by side as far as there are programs to feed them. Within one, contraction,
    arithmetic and special functions wait for each other, but for contractions a step early; groups
    of its warps walk in step, unless other warps load for them. What surrounds the loops waits for
    them.
    """
    streams = 1.0 + view.specialised
    phases: Column = 0.0
    for cost in costs:
        other = cost["cuda"] + cost["mufu"]
        most: Column = np.maximum(np.maximum(cost["tensor"], cost["cuda"]), cost["mufu"])
        every = cost["tensor"] - cost["beside"] + np.maximum(cost["beside"], other)
        alone = most + np.maximum(every - most, 0.0) / streams
        phases = phases + np.maximum(alone, np.maximum(cost["access"], cost["port"]))
    whole = added(*costs)
    most = 0.0
    for unit in (n for n in whole if n != "beside"):
        most = np.maximum(most, whole[unit])
    busy = most + np.maximum(phases - most, 0.0) / np.maximum(together, 1.0)
    return join(together * busy, chain)
