"""Structure, columns and rates in, the values of all features out, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autosched.costmodel.bodies import Body, Cycles, bodies, cycles
from autosched.costmodel.columns import Column, Columns, share_of_thread, trips
from autosched.costmodel.machine import Rates, rates
from autosched.costmodel.memory import (
    Footprints,
    buffer_bytes,
    conflict_traffic,
    footprints,
    traffic,
)
from autosched.costmodel.structure import Structure
from autosched.ir.count import Work
from autosched.ir.target import Target

Facts = dict[str, Column]
PREDICTED_TRIPS = 32.0  # the end of a loop of fewer trips is foreseen, or it was unrolled


def program_facts(work: Work, structure: Structure) -> Facts:
    moved = max(work.bytes, 1)
    return {
        "program_flops": work.flops,
        "program_contracted": work.contraction_flops / max(work.flops, 1),
        "program_special": work.special,
        "program_weighted": work.weighted,
        "program_read_bytes": work.read_bytes,
        "program_write_bytes": work.write_bytes,
        "program_intensity": work.weighted / moved,
        "program_nests": sum(a.stores for a in structure.accesses),
        "program_buffers": len({a.handle for a in structure.accesses}),
    }


def target_facts(target: Target) -> Facts:
    return {
        "target_threads": rates(target).threads,
        "target_lanes": target.lanes,
        "target_registers": target.registers,
        "target_fma": target.fma,
        "target_clock": target.clock_ghz,
        "target_l1_bytes": target.l1_bytes,
        "target_l2_bytes": target.l2_bytes,
        "target_l3_bytes": target.l3_bytes,
        "target_dram": target.dram_gbs,
    }


@dataclass(frozen=True)
class _Run:
    """How often things happen: per loop for the busiest thread, and tasks per region."""

    counts: list[Column]
    entries: list[Column]
    iterations: list[Column]
    tasks: dict[int, Column]
    spread: dict[int, Column]  # region: all threads' work over the busiest thread's


def _run(structure: Structure, columns: Columns, threads: int) -> _Run:
    every = trips(structure.loops, columns)
    counts, tasks = share_of_thread(structure, every, threads)
    entries: list[Column] = []
    iterations: list[Column] = []
    for loop, n in zip(structure.loops, counts):
        entered = iterations[loop.parent] if loop.parent >= 0 else 1.0
        entries.append(entered)
        iterations.append(entered * n)
    spread = {r: t / np.maximum(np.ceil(t / threads), 1.0) for r, t in tasks.items()}
    return _Run(counts, entries, iterations, tasks, spread)


def schedule_facts(structure: Structure, columns: Columns, speeds: Rates, work: Work) -> Facts:
    run = _run(structure, columns, speeds.threads)
    body = bodies(structure, columns, speeds)
    cost = [
        cycles(b, speeds, n, loop.kind == "fold")
        for b, n, loop in zip(body, run.counts, structure.loops)
    ]
    prints = footprints(structure, columns, run.counts, speeds.line_bytes)
    facts = {
        **_work_facts(structure, run, body, work),
        **_cycle_facts(run, cost),
        **_buffer_facts(structure, columns, run, prints),
        **_hot_facts(run, body, cost, prints),
    }
    facts.update(_bounds(structure, columns, run, cost, prints, speeds))
    facts["reread"] = facts["loaded_all"] / np.maximum(facts["buffer_bytes"], 1.0)
    return facts


# ---- totals --------------------------------------------------------------------------------------


def _total(run: _Run, parts: Sequence[Column]) -> Column:
    """Sum over loops of iterations times the part of one iteration: of the busiest thread."""
    out: Column = 0.0
    for n, part in zip(run.iterations, parts):
        if not (isinstance(part, float) and part == 0.0):
            out = out + n * part
    return out


def _work_facts(structure: Structure, run: _Run, body: Sequence[Body], work: Work) -> Facts:
    regions = [structure.chain(n)[-1] for n in range(len(body))]
    threads = [run.spread[r] for r in regions]

    def everywhere(name: str) -> Column:
        return _total(run, [getattr(b, name) * t for b, t in zip(body, threads)])

    def busiest(name: str) -> Column:
        return _total(run, [getattr(b, name) for b in body])

    fma, special, other = map(everywhere, ("fma_work", "special_work", "other_work"))
    vector_work, slots = everywhere("vector_work"), everywhere("vector_slots")
    done = 2.0 * fma + special + other
    return {
        "fma_ops": fma,
        "other_ops": other,
        "special_ops": special,
        "repeated": done / max(work.weighted, 1.0),
        "vector_share": vector_work / np.maximum(fma + special + other, 1.0),
        "lanes_used": vector_work / np.maximum(slots, 1.0),
        "vector_loads": busiest("vector_loads"),
        "scalar_loads": busiest("scalar_loads"),
        "gathered_loads": busiest("gathered"),
        "stores": busiest("vector_stores") + busiest("scalar_stores"),
        "scattered_stores": busiest("scattered"),
        "loaded_bytes": busiest("loaded_bytes"),
        "loaded_all": everywhere("loaded_bytes"),
        "lane_folds": busiest("fold_lanes"),
    }


def _cycle_facts(run: _Run, cost: Sequence[Cycles]) -> Facts:
    spills: Column = 0.0
    code: Column = 0.0
    for c, n in zip(cost, run.counts):
        spills = np.maximum(spills, c.spilled)
        code = code + np.where(n > 0, c.uops, 0.0)
    return {
        "arithmetic_cycles": _total(run, [c.arithmetic for c in cost]),
        "load_cycles": _total(run, [c.loads for c in cost]),
        "store_cycles": _total(run, [c.stores for c in cost]),
        "issue_cycles": _total(run, [c.issue for c in cost]),
        "chain_cycles": _total(run, [c.chain for c in cost]),
        "spills": spills,
        "code_uops": code,
        "loop_entries": sum(np.where(n > 0, e, 0.0) for n, e in zip(run.counts, run.entries)),
        "iterations": sum(run.iterations),
    }


def _buffer_facts(structure: Structure, columns: Columns, run: _Run, prints: Footprints) -> Facts:
    scratch: dict[int, Column] = {}
    for region, handle in structure.scratch:
        scratch[region] = scratch.get(region, 0.0) + buffer_bytes(handle, columns)
    packed: Column = 0.0
    for handle in structure.packed:
        packed = packed + buffer_bytes(handle, columns)
    whole: Column = 0.0
    for handle in dict.fromkeys(a.handle for a in structure.accesses):
        whole = whole + buffer_bytes(handle, columns)
    return {
        "scratch_bytes": _largest(scratch.values()),
        "set_pressure": _largest(prints.pressure),
        "packed_bytes": packed,
        "buffer_bytes": whole,
        "working_bytes": _largest(prints.working[r] for r in run.tasks),
        "task_bytes": _largest(prints.working[n] for n in _task_loops(structure)),
        "tasks": sum(run.tasks.values()),
        "regions": float(len(run.tasks)),
    }


def _task_loops(structure: Structure) -> list[int]:
    """The loops that one task runs as a whole: those right below the grid or the region."""
    outer = [loop.kind in ("region", "grid") for loop in structure.loops]
    inside = [
        n
        for n, loop in enumerate(structure.loops)
        if not outer[n] and loop.parent >= 0 and outer[loop.parent]
    ]
    return inside or [n for n, is_outer in enumerate(outer) if is_outer]


def _largest(values: object) -> Column:
    out: Column = 0.0
    for value in values:  # type: ignore[attr-defined]
        out = np.maximum(out, value)
    return out


# ---- the hottest loop ----------------------------------------------------------------------------


def _hot_facts(
    run: _Run, body: Sequence[Body], cost: Sequence[Cycles], prints: Footprints
) -> Facts:
    best: Column = -1.0
    total: Column = 0.0
    hot: Facts = {}
    for n, (b, c) in enumerate(zip(body, cost)):
        spent = run.iterations[n] * c.total
        total = total + spent
        mine = spent > best
        best = np.where(mine, spent, best)
        units = np.maximum(np.maximum(c.arithmetic, c.loads), np.maximum(c.stores, c.issue))
        fma = np.maximum(b.fma, 1.0)
        values = {
            "hot_cycles": c.total,
            "hot_trips": run.counts[n],
            "hot_entries": run.entries[n],
            "hot_accumulators": b.accumulators,
            "hot_operands": b.operands,
            "hot_fma": b.fma,
            "hot_loads_per_fma": b.vector_loads / fma,
            "hot_scalars_per_fma": b.scalar_loads / fma,
            "hot_chain": c.chain / np.maximum(units, 1e-3),
            "hot_uops": c.uops,
            "hot_bytes": prints.working[n],
        }
        hot = {k: np.where(mine, v, hot.get(k, 0.0)) for k, v in values.items()}
    return {**hot, "hot_share": best / np.maximum(total, 1e-9)}


# ---- time ----------------------------------------------------------------------------------------


def join_bounds(compute: Column, memory: Column) -> Column:
    """Two bounds that overlap: the larger one, and up to 19 % more where they are equal."""
    a, b = compute * compute, memory * memory
    return np.sqrt(np.sqrt(a * a + b * b))


def _bounds(
    structure: Structure,
    columns: Columns,
    run: _Run,
    cost: Sequence[Cycles],
    prints: Footprints,
    speeds: Rates,
) -> Facts:
    compute: dict[int, Column] = dict.fromkeys(run.tasks, 0.0)
    overhead: dict[int, Column] = {}
    for region, tasks in run.tasks.items():
        overhead[region] = np.ceil(tasks / speeds.threads) * speeds.task_cycles
    for n, loop in enumerate(structure.loops):
        region = structure.chain(n)[-1]
        compute[region] = compute[region] + run.iterations[n] * cost[n].total
        if loop.kind in ("serial", "fold"):
            surprise = np.clip((run.counts[n] - 1.0) / PREDICTED_TRIPS, 0.0, 1.0)
            leaves = speeds.loop_exit_cycles * surprise
            overhead[region] = overhead[region] + run.entries[n] * leaves
    levels = (
        ("l2_traffic", speeds.l1_bytes, speeds.l2_bytes_per_cycle),
        ("l3_traffic", speeds.l2_bytes, speeds.l3_bytes_per_cycle),
        ("dram_traffic", speeds.l3_bytes, speeds.dram_bytes_per_cycle),
    )
    memory: dict[int, Column] = dict.fromkeys(run.tasks, 0.0)
    facts: Facts = {}
    for name, size, rate in levels:
        moved = traffic(structure, prints, run.entries, size)
        if name == "l2_traffic":
            again = conflict_traffic(
                structure, prints, columns, run.iterations, speeds.l1_ways, speeds.line_bytes
            )
            moved = {r: moved.get(r, 0.0) + b for r, b in again.items()}
        facts[name] = sum(moved.values())
        for region, bytes_ in moved.items():
            memory[region] = np.maximum(memory[region], bytes_ / rate)
    bound: Column = 0.0
    ideal: Column = 0.0
    launches: Column = 0.0
    for region, tasks in run.tasks.items():
        busy = compute[region] + overhead[region]
        bound = bound + join_bounds(busy, memory[region])
        ideal = ideal + busy * run.spread[region] / np.minimum(tasks, float(speeds.threads))
        launches = launches + np.where(tasks > 1.0, 1.0, 0.0)
    every = sum(compute.values()) + sum(overhead.values())
    us = bound / speeds.clock_mhz + speeds.call_us + speeds.launch_us * launches
    return {
        **facts,
        "compute_cycles": sum(compute.values()),
        "memory_cycles": sum(memory.values()),
        "overhead_cycles": sum(overhead.values()),
        "bound_cycles": bound,
        "launches": launches,
        "imbalance": every / np.maximum(ideal, 1e-9),
        "analytic_us": us,
    }
