"""A task and a target in, its whole schedule space as one ranked table out.

A candidate is a row: a sketch and a value for each of its knobs. Features of all rows are a few
array operations; spaces too large to list are sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autosched.costmodel.features import (
    FeatureProgram,
    FeatureTable,
    concatenate,
    sketch_features,
)
from autosched.ir.count import count
from autosched.ir.node import Program
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, Sketch
from autosched.ir.sketches import sketches
from autosched.ir.target import Target

ROWS = 40_000  # of a task; a larger space is sampled


@dataclass(frozen=True, eq=False)
class Space:
    """Rows of all sketches, one sketch after the other; features has one row for each.

    columns: of each sketch, one a knob; first: row at which each sketch begins.
    """

    program: Program
    sketches: tuple[Sketch, ...]
    columns: tuple[dict[str, np.ndarray], ...]
    first: tuple[int, ...]
    features: FeatureTable
    programs: tuple[FeatureProgram, ...]

    def __len__(self) -> int:
        return len(self.features)

    def schedule(self, row: int) -> Schedule:
        """The candidate of a row."""
        which = int(np.searchsorted(self.first, row, side="right")) - 1
        sketch, at = self.sketches[which], row - self.first[which]
        return sketch.schedule({k.name: int(self.columns[which][k.name][at]) for k in sketch.knobs})

    def features_of(self, schedules: Sequence[Schedule]) -> tuple[FeatureTable | None, list[int]]:
        """Features of schedules of this space, sampled or not, and which of them those are."""
        tables: list[FeatureTable] = []
        at: list[int] = []
        for sketch, program in zip(self.sketches, self.programs):
            names = sorted(k.name for k in sketch.knobs)
            mine = [
                n for n, s in enumerate(schedules)
                if s.actions == sketch.actions and sorted(s.knobs) == names
            ]  # fmt: skip
            if mine:
                columns = {
                    k: np.array([schedules[n].knobs[k] for n in mine], np.int64) for k in names
                }
                tables.append(program.evaluate(columns or {"": np.zeros(len(mine), np.int64)}))
                at += mine
        return (concatenate(tables) if tables else None), at


def roofline_us(program: Program, target: Target) -> float:
    """What the target could do at best: its peak rate for the program's operations, special
    functions by their cost; and its memory's, for what the caches can't hold between runs."""
    work = count(program)
    compute = work.weighted / target.peak(program.outputs[0].dtype)
    memory = work.bytes / target.dram_gbs if work.bytes > target.l3_bytes else 0.0
    return max(compute, memory) / 1e3


def space(program: Program, target: Target, seed: int = 0, rows: int = ROWS) -> Space | Illegal:
    """The space of a task. Illegal NO_SKETCH: no schedule of it is known on this target."""
    found = sketches(program, target)
    kept: list[Sketch] = []
    columns: list[dict[str, np.ndarray]] = []
    programs: list[FeatureProgram] = []
    tables: list[FeatureTable] = []
    why = "no rule applies"
    for sketch in found:
        table = sketch.table(max(1, rows // len(found)), seed)
        if not len(next(iter(table.values()))):
            why = f"no sizes of {sketch.name} keep to its limits"
            continue
        program_features = sketch_features(program, sketch, target)
        if isinstance(program_features, Illegal):
            why = f"{sketch.name}: {program_features.why}"
            continue
        kept.append(sketch)
        columns.append(table)
        programs.append(program_features)
        tables.append(program_features.evaluate(table))
    if not kept:
        return Illegal("NO_SKETCH", why)
    starts = np.cumsum([0, *(len(t) for t in tables)])
    return Space(
        program, tuple(kept), tuple(columns), tuple(map(int, starts[:-1])),
        concatenate(tables), tuple(programs),
    )  # fmt: skip
