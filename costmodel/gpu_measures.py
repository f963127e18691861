"""GPU structure, columns and target in, the values of all features out, by name.

Each kernel is measured alone: what one program costs each unit of its multiprocessor, how many
programs share one, how many waves that makes, and what the device as a whole has to move.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autosched.costmodel.columns import Column, Columns
from autosched.costmodel.gpu_machine import gpu_rates
from autosched.costmodel.gpu_memory import device_traffic
from autosched.costmodel.gpu_occupancy import registers, resident_programs, shared_bytes
from autosched.costmodel.gpu_structure import GpuStructure
from autosched.costmodel.gpu_time import (
    added,
    chain_cycles,
    join,
    program_cycles,
    start_cycles,
    wave_cycles,
)
from autosched.costmodel.gpu_view import Facts, View
from autosched.costmodel.gpu_work import largest_dot, phase
from autosched.ir.count import Work
from autosched.ir.target import Target

OVERFLOW = 8.0  # how steeply time grows with shared memory beyond its size: it will not run


def gpu_program_facts(work: Work, structure: GpuStructure) -> Facts:
    return {
        "program_flops": work.flops,
        "program_contracted": work.contraction_flops / max(work.flops, 1),
        "program_special": work.special,
        "program_weighted": work.weighted,
        "program_read_bytes": work.read_bytes,
        "program_write_bytes": work.write_bytes,
        "program_intensity": work.weighted / max(work.bytes, 1),
        "program_kernels": len(structure.kernels),
        "program_buffers": len({a.handle for a in structure.accesses}),
    }


def gpu_target_facts(target: Target) -> Facts:
    return {
        "target_cores": target.cores,
        "target_registers": target.registers,
        "target_fma": target.fma,
        "target_clock": target.clock_ghz,
        "target_shared_bytes": target.l1_bytes,
        "target_l2_bytes": target.l2_bytes,
        "target_dram": target.dram_gbs,
        "target_bf16": target.peak("bfloat16"),
        "target_fp32": target.peak("float32"),
    }


def gpu_schedule_facts(
    structure: GpuStructure, columns: Columns, target: Target, work: Work
) -> Facts:
    rates = gpu_rates(target)
    parts = [_kernel_facts(View(structure, k, columns, target)) for k in structure.kernels]
    facts = _summed(parts)
    # What repeated calls find in the second level need not come from memory again.
    size = rates.l2_bytes
    cold = np.clip((facts["touched_bytes"] / size - rates.warm_share) / rates.warm_share, 0.0, 1.0)
    bound: Column = 0.0
    for part in parts:
        dram_us = part["dram_us"] * cold
        bound = bound + join(join(part["waves_us"], dram_us), part["l2_us"])
    facts["dram_us"] = facts["dram_us"] * cold
    facts["bound_us"] = bound
    facts["launch_us"] = rates.launch_us * len(structure.kernels)
    facts["analytic_us"] = bound + facts["launch_us"]
    facts["dot_repeat"] = facts["dot_flops"] / max(work.contraction_flops, 1)
    facts["l2_hit"] = 1.0 - np.minimum(
        facts["dram_bytes"] / np.maximum(facts["loaded_bytes"] + facts["stored_bytes"], 1.0), 1.0
    )
    once = np.maximum(facts["unique_bytes"], 1.0)
    facts["reread"] = facts["loaded_bytes"] / once
    facts["refetched"] = facts["fetched_bytes"] / once
    facts["load_waste"] = 1.0 - facts["useful_bytes"] / np.maximum(facts["boxed_bytes"], 1.0)
    facts["sector_share"] = facts["useful_bytes"] / np.maximum(facts["loaded_bytes"], 1.0)
    facts["store_waste"] = 1.0 - np.minimum(
        facts["stored_bytes"] / np.maximum(facts["store_boxes"], 1.0), 1.0
    )
    facts["lane_bytes"] = facts["boxed_bytes"] / np.maximum(facts["load_lanes"], 1.0)
    return facts


# Of the kernel that takes longest; all others are sums over kernels.
_HOT = (
    "hot_programs", "hot_resident", "hot_waves", "hot_tail", "hot_warps", "hot_stages",
    "hot_registers", "hot_spills", "hot_shared_bytes", "hot_occupancy", "hot_trips",
    "hot_depth", "hot_streams", "hot_rows", "hot_columns", "hot_inner", "hot_async",
    "hot_tensor_share", "hot_intensity", "hot_chain_cycles", "hot_wave_bytes", "hot_persistent",
    "hot_descriptors", "hot_box_stores", "hot_group", "hot_snake", "hot_flatten",
    "hot_specialise", "hot_register_cap", "hot_parts", "hot_swap", "hot_promote", "hot_early",
)  # fmt: skip


def _summed(parts: Sequence[Facts]) -> Facts:
    best: Column = -1.0
    facts: Facts = {}
    for part in parts:
        longer = part["waves_us"] > best
        best = np.where(longer, part["waves_us"], best)
        for name, value in part.items():
            if name in _HOT:
                facts[name] = np.where(longer, value, facts.get(name, 0.0))
            else:
                facts[name] = facts.get(name, 0.0) + value
    return facts


def _kernel_facts(view: View) -> Facts:
    rates = view.rates
    held, spills = registers(view)
    shared = shared_bytes(view)
    resident = resident_programs(view, held, shared)
    phases = [phase(view, inside, resident) for inside in (False, True)]
    dots, ops, memory = (added(*parts) for parts in zip(*phases))
    around, steps = phases
    costs = [program_cycles(view, *around, 0.0), program_cycles(view, *steps, spills)]
    cost = added(*costs)
    largest = largest_dot(view)
    over = np.maximum(shared / rates.shared_bytes, 1.0) ** OVERFLOW
    slots = rates.cores * resident
    waves = view.grid / slots
    chain = start_cycles(view, waves) + chain_cycles(view, waves)
    # Programs that are dealt all tiles end together: their last wave is as full as any other.
    full = np.where(view.dealt > 0, waves, np.floor(waves))
    rest = view.grid - full * slots
    tail = np.ceil(rest / rates.cores)
    cycles = full * wave_cycles(view, resident, costs, chain)
    cycles = cycles + np.where(rest > 0, wave_cycles(view, tail, costs, chain), 0.0)
    cycles = cycles * over
    us = 1.0 / rates.clock_mhz
    per_device = view.grid * us / rates.cores
    traffic = device_traffic(
        view.structure, view.kernel, view.reaches, view.of_tiles(), view.columns, slots,
        rates.l2_bytes,
    )  # fmt: skip
    moved_bytes = traffic.fetched + traffic.stored
    return {
        "programs": view.grid,
        "waves_us": cycles * us,
        "tensor_us": cost["tensor"] * per_device,
        "cuda_us": cost["cuda"] * per_device,
        "special_us": cost["mufu"] * per_device,
        "access_us": cost["access"] * per_device,
        "port_us": cost["port"] * per_device,
        "latency_us": chain * us * np.ceil(waves),
        "l2_us": (memory["loaded"] + memory["stored"]) * view.grid / (rates.l2_gbs * 1e3),
        "dram_us": moved_bytes / (rates.dram_gbs * 1e3),
        "dot_flops": dots["flops"] * view.grid,
        "cuda_ops": (ops["arith"] + ops["int"] + ops["move"]) * view.grid,
        "special_ops": ops["mufu"] * view.grid,
        "loaded_bytes": memory["loaded"] * view.grid,
        "boxed_bytes": memory["boxed"] * view.grid,
        "useful_bytes": memory["useful"] * view.grid,
        "load_lanes": memory["lanes"] * view.grid,
        "store_boxes": memory["store_boxes"] * view.grid,
        "stored_bytes": traffic.stored,
        "unique_bytes": traffic.unique,
        "fetched_bytes": traffic.fetched,
        "touched_bytes": traffic.unique + traffic.stored,
        "dram_bytes": moved_bytes,
        "spilled_bytes": spills * 4.0 * view.threads * view.grid,
        "hot_programs": view.grid,
        "hot_resident": resident,
        "hot_waves": waves,
        "hot_tail": np.where(view.dealt > 0, 0.0, 1.0 - waves / np.maximum(np.ceil(waves), 1.0)),
        "hot_warps": view.warps,
        "hot_stages": view.stages,
        "hot_registers": held,
        "hot_spills": spills,
        "hot_shared_bytes": shared,
        "hot_occupancy": resident * view.warps / rates.warp_slots,
        "hot_trips": view.longest_loop(),
        "hot_depth": view.stages / np.maximum(view.longest_loop(), 1.0),
        "hot_streams": view.groups * resident,
        "hot_rows": largest["rows"],
        "hot_columns": largest["columns"],
        "hot_inner": largest["depth"],
        "hot_async": largest["async"],
        "hot_tensor_share": dots["ideal"] / np.maximum(cost["tensor"], 1.0),
        "hot_intensity": dots["flops"] / np.maximum(memory["loaded"], 1.0),
        "hot_chain_cycles": chain,
        "hot_wave_bytes": traffic.wave,
        "hot_persistent": view.persistent,
        "hot_descriptors": view.boxed("operand"),
        "hot_box_stores": view.boxed("store"),
        "hot_group": view.facts["group"],
        "hot_snake": view.facts["snake"],
        "hot_flatten": view.facts["flatten"],
        "hot_specialise": view.specialised,
        "hot_register_cap": view.facts["registers"],
        "hot_parts": view.facts["epilogue"],
        "hot_swap": view.facts["swap"],
        "hot_promote": view.facts["promote"],
        "hot_early": dots["early"] / np.maximum(dots["flops"], 1.0),
    }
