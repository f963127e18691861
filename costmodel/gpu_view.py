"""A kernel of a GPU structure and rows of a table in, the columns that all measures share out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autosched.costmodel.columns import Column, Columns, trips
from autosched.costmodel.gpu_machine import gpu_rates
from autosched.costmodel.gpu_memory import Moved, Reach, moved
from autosched.costmodel.gpu_structure import KEPT, LAST, SHARE, GpuKernel, GpuStructure
from autosched.ir.gpu_facts import LOADS, OTHERS, STORES
from autosched.ir.target import Target

Facts = dict[str, Column]
Times = Callable[[Sequence[int]], Column]  # loops that a value depends on -> how often it is made
WARPGROUP = 4.0  # warps that issue one asynchronous tensor instruction together


class View:
    """grid: its programs; counts: mean trips of each loop; iterations: in one program; boxes and
    reaches: of its accesses, by number."""

    def __init__(
        self,
        structure: GpuStructure,
        kernel: GpuKernel,
        columns: Columns,
        target: Target,
    ) -> None:
        self.structure, self.kernel, self.columns = structure, kernel, columns
        self.target, self.rates = target, gpu_rates(target)
        self.facts = {name: columns.value(value) for name, value in kernel.facts}
        self.warps, self.stages = self.facts["warps"], self.facts["stages"]
        self.persistent = self.facts["persistent"]
        # Where some warps load for others, as many again compute.
        self.specialised = self.facts["specialise"]
        self.computing = self.warps * (1.0 + self.specialised)
        self.threads = self.computing * self.rates.lanes
        self.groups = np.maximum(self.computing / WARPGROUP, 1.0)
        self.counts = trips(structure.loops, columns)
        self.iterations: list[Column] = []
        for loop, n in zip(structure.loops, self.counts):
            around = self.iterations[loop.parent] if loop.parent >= 0 else 1.0
            self.iterations.append(around if loop.kind in ("grid", SHARE) else around * n)
        self.loops = [
            n for n in range(len(structure.loops)) if structure.chain(n)[-1] == kernel.root
        ]
        self.grid: Column = 1.0
        for number in self.loops:
            if structure.loops[number].kind in ("grid", SHARE):
                self.grid = self.grid * self.counts[number]
        # Programs that do all of it, one piece of work after the other; 0: as many as there are.
        self.dealt = self.facts["programs"]
        self.walks = np.where((self.persistent > 0) | (self.dealt > 0), 1.0, 0.0)
        lengths = {structure.loops[n].axis: self.counts[n] for n in self.loops}
        self.reaches: dict[int, Reach] = {}
        self.boxes: dict[int, Moved] = {}
        for number, access in enumerate(structure.accesses):
            if access.needs[0] == kernel.root:
                box = {a: columns.value(e) for a, e in access.box}
                reach_of = {**lengths, **box}
                self.reaches[number] = Reach(access, columns, reach_of)
                self.boxes[number] = moved(access, self.reaches[number], columns, reach_of)

    def boxed(self, role: str) -> Column:
        """1 where accesses of this role are tensor descriptors: "operand", "store" or "other"."""
        bits = np.floor(self.facts["descriptors"] + 0.0)
        own = {"operand": LOADS, "store": STORES, "other": OTHERS}[role]
        low = own & -own
        some = np.floor(bits / low) % (own // low + 1) > 0
        return np.where((bits % 2.0 > 0) | some, 1.0, 0.0)

    def mine(self, loop: int) -> bool:
        """Whether a loop belongs to the kernel."""
        return loop in self.loops

    def often(self, needs: Sequence[int]) -> tuple[Column, Column]:
        """(times that a program makes a value, 1 where it does so at the steps of a loop).

        A loop of one trip is none: what depends on it is made around it.
        """
        times: Column = 1.0
        inside: Column = 0.0
        for n in needs:
            if self.steps(n):
                looped = np.asarray(self.counts[n] != 1.0)
                times = np.where(looped, self.iterations[n], times)
                inside = np.where(looped, 1.0, inside)
        return times, inside

    def steps(self, loop: int) -> bool:
        """Whether a program runs the loop step by step."""
        return self.structure.loops[loop].kind in ("fold", "serial", LAST, KEPT)

    def alone(self, loop: int) -> Column:
        """Of how many programs one does what is inside the loop."""
        share: Column = 1.0
        for n in self.structure.chain(loop):
            if self.structure.loops[n].kind == LAST:
                share = share / self.counts[n]
        return share

    def of_tiles(self) -> list[Column]:
        """Trips of loops where parts of tiles are whole tiles again."""
        out = list(self.counts)
        for n in self.loops:
            if self.structure.loops[n].kind == "fold":
                for m in self.structure.chain(n):
                    if self.structure.loops[m].kind == SHARE:
                        out[n] = out[n] * self.counts[m]
        return out

    def longest_loop(self) -> Column:
        """Trips of the loop that has most."""
        most: Column = 1.0
        for n in self.loops:
            if self.structure.loops[n].kind in ("fold", "serial"):
                most = np.maximum(most, self.counts[n])
        return most
