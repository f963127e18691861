"""Sketches and knob tables in, candidates out: what a search chooses among.

A candidate is a sketch's number and its knob values in the order of `sketch.knobs`. A table holds
the rows that were ranked; candidates beside the table are as legal as those in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from autosched.ir.extent import evaluate_extent
from autosched.ir.schedule import Schedule, Sketch

Table = Mapping[str, np.ndarray]


@dataclass(frozen=True, order=True)
class Candidate:
    """One point of the space: plain data."""

    sketch: int
    knobs: tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """sketches[n] with the ranked rows tables[n] (columns of equal length, one a knob)."""

    sketches: tuple[Sketch, ...]
    tables: tuple[Table, ...]

    def schedule(self, candidate: Candidate) -> Schedule:
        sketch = self.sketches[candidate.sketch]
        return sketch.schedule({k.name: v for k, v in zip(sketch.knobs, candidate.knobs)})

    def locate(self, schedule: Schedule) -> Candidate | None:
        """The candidate of a schedule, or None where it is of none of these sketches."""
        number = self._numbers.get(schedule.actions)
        if number is None:
            return None
        knobs = self.sketches[number].knobs
        if {k.name for k in knobs} != set(schedule.knobs):
            return None
        return Candidate(number, tuple(int(schedule.knobs[k.name]) for k in knobs))

    @cached_property
    def _numbers(self) -> dict[Any, int]:
        return {sketch.actions: n for n, sketch in reversed(list(enumerate(self.sketches)))}

    def rows(self, sketch: int) -> np.ndarray:
        """The table of a sketch as rows of knob values, int64[row, knob]."""
        return self._rows[sketch]

    @cached_property
    def _rows(self) -> tuple[np.ndarray, ...]:
        out = []
        for sketch, table in zip(self.sketches, self.tables):
            count = len(next(iter(table.values())))
            columns = [np.asarray(table[k.name], np.int64) for k in sketch.knobs]
            out.append(np.column_stack(columns) if columns else np.zeros((count, 0), np.int64))
        return tuple(out)

    def contains(self, candidate: Candidate) -> bool:
        """Whether the candidate is a row of its sketch's table."""
        return candidate.knobs in self._members[candidate.sketch]

    @cached_property
    def _members(self) -> tuple[frozenset[tuple[int, ...]], ...]:
        return tuple(frozenset(map(tuple, rows.tolist())) for rows in self._rows)

    def columns(self, sketch: int, rows: np.ndarray) -> Table:
        """Rows of knob values as the columns that features are computed from."""
        knobs = self.sketches[sketch].knobs
        if not knobs:
            return {"": np.zeros(len(rows), np.int64)}
        return {k.name: rows[:, n] for n, k in enumerate(knobs)}

    def neighbours(self, candidate: Candidate) -> np.ndarray:
        """Legal rows that differ from the candidate in one knob, by one or two steps."""
        sketch = self.sketches[candidate.sketch]
        found: list[tuple[int, ...]] = []
        for n, knob in enumerate(sketch.knobs):
            at = int(np.searchsorted(knob.domain, candidate.knobs[n]))
            for step in (-2, -1, 1, 2):
                if 0 <= at + step < len(knob.domain):
                    moved = list(candidate.knobs)
                    moved[n] = knob.domain[at + step]
                    found.append(tuple(moved))
        rows = np.array(found, np.int64).reshape(len(found), len(sketch.knobs))
        return rows[self._legal(sketch, rows)]

    def _legal(self, sketch: Sketch, rows: np.ndarray) -> np.ndarray:
        keep = np.ones(len(rows), bool)
        columns = {k.name: rows[:, n] for n, k in enumerate(sketch.knobs)}
        for constraint in sketch.constraints:
            held = evaluate_extent(constraint, columns)
            keep &= np.broadcast_to(np.asarray(held, bool), keep.shape)
        return keep


def space(sketches: Sequence[Sketch], tables: Sequence[Table]) -> Space:
    """Raises ValueError where tables and sketches do not fit each other."""
    if len(sketches) != len(tables):
        raise ValueError(f"{len(sketches)} sketches with {len(tables)} tables")
    return Space(tuple(sketches), tuple(tables))
