"""GPU structure, columns and target in, the values of all features out, by name.

Each kernel is measured alone: what one program costs each unit of its multiprocessor, how many
programs share one, how many waves that makes, and what the device as a whole has to move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autosched.costmodel.columns import Column, Columns, trips
from autosched.costmodel.gpu_machine import TENSOR_TYPES, GpuRates, gpu_rates, tensor_gflops
from autosched.costmodel.gpu_memory import Moved, Reach, device_traffic, moved
from autosched.costmodel.gpu_structure import Dot, GpuKernel, GpuStructure
from autosched.ir.count import Work
from autosched.ir.scalar import ITEMSIZE
from autosched.ir.target import Target

Facts = dict[str, Column]
BASE_REGISTERS = 40.0  # addresses, loop counters, masks
Times = Callable[[Sequence[int]], Column]  # loops that a value depends on -> how often
MAX_REGISTERS = 255.0  # of a thread
WARPGROUP = 4.0  # warps that issue one asynchronous tensor instruction together
GROUP_ROWS = 64.0  # and its rows
SPILL_MOVES = 4.0  # loads and stores of a spilled register in each step, beyond the first level
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


@dataclass(frozen=True)
class _Run:
    """Of every loop: mean trips, and iterations in one program; of every kernel: programs."""

    counts: list[Column]
    iterations: list[Column]
    grids: list[Column]


def _run(structure: GpuStructure, columns: Columns) -> _Run:
    counts = trips(structure.loops, columns)
    iterations: list[Column] = []
    for loop, n in zip(structure.loops, counts):
        around = iterations[loop.parent] if loop.parent >= 0 else 1.0
        iterations.append(around if loop.kind == "grid" else around * n)
    grids: list[Column] = []
    for kernel in structure.kernels:
        programs: Column = 1.0
        for n in kernel.grid:
            programs = programs * counts[n]
        grids.append(programs)
    return _Run(counts, iterations, grids)


def gpu_schedule_facts(
    structure: GpuStructure, columns: Columns, target: Target, work: Work
) -> Facts:
    run = _run(structure, columns)
    rates = gpu_rates(target)
    parts = [
        _Kernel(structure, kernel, grid, run, columns, target, rates).facts()
        for kernel, grid in zip(structure.kernels, run.grids)
    ]
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


def join(a: Column, b: Column) -> Column:
    """Two bounds that overlap: the larger one, and up to 9 % more where they are equal."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    ratio = low / np.maximum(high, 1e-9)
    for _ in range(3):
        ratio = ratio * ratio
    return high * np.sqrt(np.sqrt(np.sqrt(1.0 + ratio)))


def _added(*parts: Facts) -> Facts:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


# Of the kernel that takes longest; all others are sums over kernels.
_HOT = (
    "hot_programs", "hot_resident", "hot_waves", "hot_tail", "hot_warps", "hot_stages",
    "hot_registers", "hot_spills", "hot_shared_bytes", "hot_occupancy", "hot_trips",
    "hot_depth", "hot_streams", "hot_rows", "hot_columns", "hot_inner", "hot_async",
    "hot_tensor_share", "hot_intensity", "hot_chain_cycles", "hot_wave_bytes", "hot_persistent",
    "hot_descriptors",
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


# ---- one kernel ----------------------------------------------------------------------------------


class _Kernel:
    """The costs of one kernel as columns; `facts` are what others see of it."""

    def __init__(
        self,
        structure: GpuStructure,
        kernel: GpuKernel,
        grid: Column,
        run: _Run,
        columns: Columns,
        target: Target,
        rates: GpuRates,
    ) -> None:
        self.structure, self.kernel, self.run, self.columns = structure, kernel, run, columns
        self.target, self.rates, self.grid = target, rates, grid
        self.warps = columns.value(kernel.warps)
        self.stages = columns.value(kernel.stages)
        self.threads = self.warps * rates.lanes
        self.loops = [
            n for n in range(len(structure.loops)) if structure.chain(n)[-1] == kernel.root
        ]
        self.lengths = {structure.loops[n].axis: run.counts[n] for n in self.loops}
        self.reaches: dict[int, Reach] = {}
        self.boxes: dict[int, Moved] = {}
        for number, access in enumerate(structure.accesses):
            if access.loop in self.loops:
                box = {a: columns.value(e) for a, e in access.box}
                lengths = {**self.lengths, **box}
                self.reaches[number] = Reach(access, columns, lengths)
                self.boxes[number] = moved(access, self.reaches[number], columns, lengths)
        self.made_dots = [(d, self.dot(d)) for d in structure.dots if d.needs[0] == kernel.root]

    def mine(self, loop: int) -> bool:
        return loop in self.loops

    def facts(self) -> Facts:
        registers, spills = self.registers()
        shared = self.shared()
        resident = self.resident(registers, shared)
        phases = [self.phase(inside, resident, spills) for inside in (False, True)]
        dots, ops, memory, cost = (_added(*parts) for parts in zip(*phases))
        largest = self.largest_dot()
        chain = self.chain()
        groups = np.maximum(self.warps / WARPGROUP, 1.0)
        over = np.maximum(shared / self.rates.shared_bytes, 1.0) ** OVERFLOW
        slots = self.rates.cores * resident
        full = np.floor(self.grid / slots)
        rest = self.grid - full * slots
        tail = np.ceil(rest / self.rates.cores)
        costs = [phase[-1] for phase in phases]
        cycles = full * self.wave(resident, costs, chain, groups)
        cycles = cycles + np.where(rest > 0, self.wave(tail, costs, chain, groups), 0.0)
        cycles = cycles * over
        us = 1.0 / self.rates.clock_mhz
        per_device = self.grid * us / self.rates.cores
        traffic = device_traffic(
            self.structure, self.kernel, self.reaches, self.run.counts, self.columns, slots,
            self.rates.l2_bytes,
        )  # fmt: skip
        moved_bytes = traffic.fetched + traffic.stored
        waves = self.grid / slots
        return {
            "programs": self.grid,
            "waves_us": cycles * us,
            "tensor_us": cost["tensor"] * per_device,
            "cuda_us": cost["cuda"] * per_device,
            "special_us": cost["mufu"] * per_device,
            "access_us": cost["access"] * per_device,
            "port_us": cost["port"] * per_device,
            "latency_us": chain * us * np.ceil(waves),
            "l2_us": (memory["loaded"] + memory["stored"]) * self.grid / (self.rates.l2_gbs * 1e3),
            "dram_us": moved_bytes / (self.rates.dram_gbs * 1e3),
            "dot_flops": dots["flops"] * self.grid,
            "cuda_ops": (ops["arith"] + ops["int"] + ops["move"]) * self.grid,
            "special_ops": ops["mufu"] * self.grid,
            "loaded_bytes": memory["loaded"] * self.grid,
            "boxed_bytes": memory["boxed"] * self.grid,
            "useful_bytes": memory["useful"] * self.grid,
            "load_lanes": memory["lanes"] * self.grid,
            "store_boxes": memory["store_boxes"] * self.grid,
            "stored_bytes": traffic.stored,
            "unique_bytes": traffic.unique,
            "fetched_bytes": traffic.fetched,
            "touched_bytes": traffic.unique + traffic.stored,
            "dram_bytes": moved_bytes,
            "spilled_bytes": spills * 4.0 * self.threads * self.grid,
            "hot_programs": self.grid,
            "hot_resident": resident,
            "hot_waves": waves,
            "hot_tail": 1.0 - waves / np.maximum(np.ceil(waves), 1.0),
            "hot_warps": self.warps,
            "hot_stages": self.stages,
            "hot_registers": registers,
            "hot_spills": spills,
            "hot_shared_bytes": shared,
            "hot_occupancy": resident * self.warps / self.rates.warp_slots,
            "hot_trips": self.longest_loop(),
            "hot_depth": self.stages / np.maximum(self.longest_loop(), 1.0),
            "hot_streams": groups * resident,
            "hot_rows": largest["rows"],
            "hot_columns": largest["columns"],
            "hot_inner": largest["depth"],
            "hot_async": largest["async"],
            "hot_tensor_share": dots["ideal"] / np.maximum(cost["tensor"], 1.0),
            "hot_intensity": dots["flops"] / np.maximum(memory["loaded"], 1.0),
            "hot_chain_cycles": chain,
            "hot_wave_bytes": traffic.wave,
            "hot_persistent": self.columns.value(self.kernel.persistent),
            "hot_descriptors": self.columns.value(self.kernel.descriptors),
        }

    # ---- what a program takes ----------------------------------------------------------------

    def registers(self) -> tuple[Column, Column]:
        """(registers of a thread, those beyond what it has): states and the largest value of the
        worst loop."""
        states: dict[int, Column] = {}
        values: dict[int, Column] = {}
        for held in self.structure.held:
            if self.mine(held.loop):
                words = np.ceil(self.columns.product(held.box) * held.width / 4.0 / self.threads)
                if held.role == "state":
                    states[held.loop] = states.get(held.loop, 0.0) + words
                else:
                    values[held.loop] = np.maximum(values.get(held.loop, 0.0), words)
        for held in self.structure.operands:
            if self.mine(held.loop):
                words = np.ceil(self.columns.product(held.box) * held.width / 4.0 / self.threads)
                values[held.loop] = values.get(held.loop, 0.0) + words
        worst: Column = 0.0
        for n in self.loops:
            live = values.get(n, 0.0)
            for m in self.structure.chain(n):
                live = live + states.get(m, 0.0)
            worst = np.maximum(worst, live)
        wanted = BASE_REGISTERS + worst
        return np.minimum(wanted, MAX_REGISTERS), np.maximum(wanted - MAX_REGISTERS, 0.0)

    def shared(self) -> Column:
        """Bytes of shared memory of a program: boxes fetched ahead, and operands."""
        loops: dict[int, Column] = {}
        outer: Column = 0.0
        for number, access in enumerate(self.structure.accesses):
            if number in self.boxes and access.shared:
                box = self.boxes[number].elements * access.itemsize
                if access.staged:
                    loops[access.loop] = loops.get(access.loop, 0.0) + box * np.where(
                        self.often(access.needs)[1] > 0, self.stages, 1.0
                    )
                else:
                    outer = outer + box
        for held in self.structure.operands:
            if self.mine(held.loop):
                box = self.columns.product(held.box) * held.width
                if held.role == "rows":  # asynchronous contractions take rows from registers
                    box = np.where(self.warps >= WARPGROUP, 0.0, box)
                loops[held.loop] = loops.get(held.loop, 0.0) + box
        most: Column = 0.0
        for n in loops:
            around: Column = 0.0
            for m in self.structure.chain(n):
                around = around + loops.get(m, 0.0)
            most = np.maximum(most, around)
        return outer + most

    def resident(self, registers: Column, shared: Column) -> Column:
        """Programs that one multiprocessor runs at a time, at least one."""
        r = self.rates
        granted = np.ceil(registers / 8.0) * 8.0 * self.threads
        fits = np.minimum(np.floor(r.registers / granted), r.block_slots)
        fits = np.minimum(fits, np.floor(r.warp_slots / self.warps))
        room = r.shared_bytes + r.shared_reserved
        fits = np.minimum(fits, np.floor(room / (shared + r.shared_reserved)))
        return np.maximum(fits, 1.0)

    def often(self, needs: Sequence[int]) -> tuple[Column, Column]:
        """(times that a program makes a value, 1 where it does so at the steps of a loop).

        A loop of one trip is none: what depends on it is made around it.
        """
        times: Column = 1.0
        inside: Column = 0.0
        for n in needs:
            if self.steps(n):
                looped = np.asarray(self.run.counts[n] != 1.0)
                times = np.where(looped, self.run.iterations[n], times)
                inside = np.where(looped, 1.0, inside)
        return times, inside

    def phase(
        self, inside: bool, resident: Column, spills: Column
    ) -> tuple[Facts, Facts, Facts, Facts]:
        """Contractions, operations, memory and cycles of a program, in its loops or around them."""

        def times(needs: Sequence[int]) -> Column:
            often, stepped = self.often(needs)
            return often * (stepped if inside else 1.0 - stepped)

        dots, ops, memory = self.dots(times), self.operations(times), self.memory(times, resident)
        if inside:
            ops["move"] = ops["move"] + self.step_instructions()
        return dots, ops, memory, self.program_cycles(dots, ops, memory, spills if inside else 0.0)

    def step_instructions(self) -> Column:
        """What the steps of loops take beside their values."""
        total: Column = 0.0
        for n in self.loops:
            if self.steps(n):
                steps = np.where(self.run.counts[n] != 1.0, self.run.iterations[n], 0.0)
                total = total + self.rates.step_instructions * self.threads * steps
        return total

    def steps(self, loop: int) -> bool:
        return self.structure.loops[loop].kind in ("fold", "serial")

    def dots(self, times: Times) -> Facts:
        """Cycles of the tensor cores and of the CUDA cores for contractions."""
        facts: Facts = dict.fromkeys(("tensor", "ideal", "cuda", "flops"), 0.0)
        for dot, made in self.made_dots:
            for name in facts:
                facts[name] = facts[name] + made[name] * times(dot.needs)
        return facts

    def largest_dot(self) -> Facts:
        """Sizes of the contraction that does most."""
        most: Column = -1.0
        facts: Facts = dict.fromkeys(("rows", "columns", "depth", "async"), 0.0)
        for dot, made in self.made_dots:
            done = made["flops"] * self.often(dot.needs)[0]
            larger = done > most
            most = np.where(larger, done, most)
            facts = {name: np.where(larger, made[name], old) for name, old in facts.items()}
        return facts

    def dot(self, dot: Dot) -> Facts:
        """One contraction: the slower of the unit's rate and of the operands' way to it."""
        r, value = self.rates, self.columns.product
        rows, columns, depth = value(dot.rows), value(dot.columns), value(dot.depth)
        batch = value(dot.batch)
        kind = dot.precision or dot.dtype
        flops = 2.0 * rows * columns * depth * batch
        facts = {"flops": flops, "rows": rows, "columns": columns, "depth": depth}
        if kind not in TENSOR_TYPES:
            cycles = flops / 2.0 / (r.fp32_per_cycle * r.cuda_dot_share)
            return {**facts, "tensor": 0.0, "ideal": 0.0, "cuda": cycles, "async": 0.0}
        item = float(ITEMSIZE[dot.dtype])
        step = 32.0 / item  # depth of one tensor instruction
        padded = 2.0 * np.maximum(rows, 16.0) * np.maximum(columns, 8.0) * batch
        padded = padded * np.maximum(depth, step)
        peak = tensor_gflops(self.target, kind) * 1e3 / r.cores / r.clock_mhz * r.tensor_sustained
        groups = self.warps / WARPGROUP
        asynchronous = (rows >= GROUP_ROWS) & (groups >= 1.0) & (not dot.batch)
        asynchronous = asynchronous & (r.mma_share < 0.9)
        # Groups of warps lie along the rows; what is left of them along the columns.
        tall = np.clip(rows / GROUP_ROWS, 1.0, None)
        across = np.maximum(groups / tall, 1.0)
        wide_bytes = depth * item * (rows * across + columns * tall)
        if not dot.loaded[0]:
            wide_bytes = depth * item * columns * tall  # rows come from registers
        down = np.clip(np.sqrt(self.warps * rows / np.maximum(columns, 1.0)), 1.0, self.warps)
        narrow_bytes = depth * item * (rows * self.warps / down + columns * down)
        rate = np.where(asynchronous, peak, peak * r.mma_share)
        bytes_ = np.where(asynchronous, wide_bytes, narrow_bytes) * batch
        cycles = np.maximum(padded / rate, bytes_ / r.shared_bytes_per_cycle)
        return {
            **facts,
            "tensor": cycles,
            "ideal": flops / peak,
            "cuda": 0.0,
            "async": np.where(asynchronous, 1.0, 0.0),
        }

    def operations(self, times: Times) -> Facts:
        """Operations by kind; each thread does at least one of each value."""
        facts: Facts = dict.fromkeys(("arith", "int", "move", "mufu"), 0.0)
        for ops in self.structure.ops:
            if ops.needs[0] == self.kernel.root:
                lanes = np.maximum(self.columns.product(ops.box), self.threads)
                facts[ops.kind] = facts[ops.kind] + ops.count * lanes * times(ops.needs)
        return facts

    def memory(self, times: Times, resident: Column) -> Facts:
        """Bytes and memory operations."""
        names = ("loaded", "boxed", "useful", "lanes", "stored", "store_boxes", "access_bytes",
                 "access_lanes", "pointers")  # fmt: skip
        facts: Facts = dict.fromkeys(names, 0.0)
        for number, box in self.boxes.items():
            access = self.structure.accesses[number]
            often = times(access.needs)
            facts["access_lanes"] = facts["access_lanes"] + box.lanes * often
            facts["pointers"] = facts["pointers"] + box.lanes * often * self.by_pointer(number)
            facts["access_bytes"] = facts["access_bytes"] + box.sectors * often
            if access.stores:
                facts["stored"] = facts["stored"] + box.sectors * often
                facts["store_boxes"] = facts["store_boxes"] + (
                    box.elements * access.itemsize * often
                )
                continue
            facts["boxed"] = facts["boxed"] + box.elements * access.itemsize * often
            facts["useful"] = facts["useful"] + box.useful * often
            facts["lanes"] = facts["lanes"] + box.lanes * often
            facts["loaded"] = facts["loaded"] + self.through_l1(number, box, often, resident)
        return facts

    def by_pointer(self, number: int) -> Column:
        """1 where lanes make their addresses, 0 where a tensor descriptor does it."""
        access = self.structure.accesses[number]
        if not access.box or any(p.rest is not None for p in access.places):
            return 1.0
        return np.where(self.columns.value(self.kernel.descriptors) > 0, 0.0, 1.0)

    def through_l1(self, number: int, box: Moved, times: Column, resident: Column) -> Column:
        """Bytes that the first level does not hold: staged boxes pass it by, others are found
        there again where all steps of the program touch little."""
        access = self.structure.accesses[number]
        every = box.sectors * times
        if access.staged or access.shared:
            return every
        inner = {
            self.structure.loops[n].axis: self.run.counts[n]
            for n in self.structure.chain(access.loop)
            if self.structure.loops[n].kind in ("serial", "fold")
        }
        sizes = {a: self.columns.value(e) for a, e in access.box}
        once = np.minimum(self.reaches[number].bytes({**inner, **sizes}), every)
        return np.where(once * resident <= 0.25 * self.rates.shared_bytes, once, every)

    # ---- time ----------------------------------------------------------------------------------

    def program_cycles(self, dots: Facts, ops: Facts, memory: Facts, spills: Column) -> Facts:
        """Cycles that one program keeps each unit of its multiprocessor busy."""
        r = self.rates
        # A memory operation of a lane comes with its address and its mask.
        addresses = 3.0 * memory["pointers"]
        issued = ops["arith"] + ops["int"] + ops["move"] + ops["mufu"] + addresses
        cuda = np.maximum(issued / r.issue_per_cycle, ops["arith"] / r.fp32_per_cycle)
        cuda = np.maximum(cuda, (ops["int"] + addresses) / r.int_per_cycle)
        cuda = np.maximum(cuda, ops["move"] / r.move_per_cycle)
        trips_: Column = 1.0
        for n in self.loops:
            if self.structure.loops[n].kind == "fold":
                trips_ = np.maximum(trips_, self.run.iterations[n])
        spilled = SPILL_MOVES * spills * self.threads * trips_
        lanes = memory["access_lanes"] + spilled
        bytes_ = memory["access_bytes"] + 4.0 * spilled
        return {
            "tensor": dots["tensor"],
            "cuda": cuda + dots["cuda"],
            "mufu": ops["mufu"] / r.mufu_per_cycle,
            "access": np.maximum(lanes / r.memory_lanes_per_cycle,
                                 bytes_ / r.shared_bytes_per_cycle),
            "port": (memory["loaded"] + memory["stored"] + 4.0 * spilled)
            / r.l2_port_bytes_per_cycle,
        }  # fmt: skip

    def chain(self) -> Column:
        """Cycles that a program takes however idle its multiprocessor is."""
        r = self.rates
        total: Column = r.block_cycles
        described = self.columns.value(self.kernel.descriptors) > 0
        total = total + np.where(described, r.descriptor_cycles, 0.0)
        for chain in self.structure.chains:
            if not self.mine(chain.loop):
                continue
            step = chain.cycles + r.load_cycles * chain.loads
            if chain.staged:
                first = r.load_cycles + self.staged_bytes(chain.loop) / r.share_of_l2
                ahead = first / np.maximum(self.stages - 1.0, 1.0)
                looped = self.run.counts[chain.loop] != 1.0
                step = np.where(looped, np.maximum(step + r.wait_cycles, ahead), step)
                total = total + first
            total = total + step * self.run.iterations[chain.loop]
        return total

    def staged_bytes(self, loop: int) -> Column:
        """Bytes that one step of a loop fetches ahead."""
        total: Column = 0.0
        for number, box in self.boxes.items():
            access = self.structure.accesses[number]
            if access.loop == loop and access.staged:
                total = total + box.sectors
        return total

    def wave(
        self, together: Column, costs: Sequence[Facts], chain: Column, groups: Column
    ) -> Column:
        """Cycles of `together` programs on one multiprocessor.

        Units work side by side as far as there are programs or groups of warps to feed them;
        within one, contraction, arithmetic and special functions wait for each other, and what
        surrounds the loops waits for them.
        """
        phases: Column = 0.0
        for cost in costs:
            units = (cost["tensor"], cost["cuda"], cost["mufu"])
            most: Column = 0.0
            every: Column = 0.0
            for unit in units:
                most = np.maximum(most, unit)
                every = every + unit
            alone = most + (every - most) / np.maximum(together * groups, 1.0)
            phases = phases + np.maximum(alone, np.maximum(cost["access"], cost["port"]))
        whole = _added(*costs)
        most = 0.0
        for unit in whole.values():
            most = np.maximum(most, unit)
        busy = most + np.maximum(phases - most, 0.0) / np.maximum(together, 1.0)
        return join(together * busy, chain)

    def longest_loop(self) -> Column:
        most: Column = 1.0
        for n in self.loops:
            if self.structure.loops[n].kind in ("fold", "serial"):
                most = np.maximum(most, self.run.counts[n])
        return most
