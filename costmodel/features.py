"""Symbolic tile program in, `FeatureProgram` out; table columns in, `FeatureTable` out.

The program is walked once; then the features of a million candidates are array operations over
the knob columns. A row's features do not depend on the other rows. What is measured depends on
the kind of the target: see `_SURVEYS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from autosched.costmodel.catalogue import CATALOGUES
from autosched.costmodel.columns import Column, Columns
from autosched.costmodel.feature import Catalogue
from autosched.costmodel.gpu_measures import (
    gpu_program_facts,
    gpu_schedule_facts,
    gpu_target_facts,
)
from autosched.costmodel.gpu_structure import gpu_structure
from autosched.costmodel.machine import rates
from autosched.costmodel.measures import program_facts, schedule_facts, target_facts
from autosched.costmodel.structure import structure
from autosched.ir.count import Work, count
from autosched.ir.node import IRError, Program
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Sketch, symbolic
from autosched.ir.target import Target

Facts = dict[str, Column]
CHUNK = 32_768  # rows at once: few calls, and columns that stay in the last-level cache


@dataclass(frozen=True)
class FeatureTable:
    """matrix[row, feature] in float32, with the names and units of its columns."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    matrix: np.ndarray
    version: str

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def column(self, name: str) -> np.ndarray:
        return self.matrix[:, self.names.index(name)]

    def rows(self, index: np.ndarray) -> FeatureTable:
        """Some of the rows, by index or mask."""
        return FeatureTable(self.names, self.units, self.matrix[index], self.version)


@dataclass(frozen=True)
class Survey:
    """What a walk over a program found: facts of all schedules, and those of some."""

    fixed: Facts
    of_rows: Callable[[Columns], Facts]


@dataclass(frozen=True)
class FeatureProgram:
    """The features of one sketch, its knobs open; `evaluate` fills them in."""

    catalogue: Catalogue
    survey: Survey

    def evaluate(self, table: Mapping[str, np.ndarray]) -> FeatureTable:
        """table: one integer column a knob, as `Sketch.table()` returns it (at least one row)."""
        rows = len(next(iter(table.values())))
        listed = self.catalogue.features
        matrix = np.empty((rows, len(listed)), np.float32, order="F")
        for first in range(0, rows, CHUNK):
            part = slice(first, min(first + CHUNK, rows))
            columns = Columns({name: c[part] for name, c in table.items()})
            values = {**self.survey.fixed, **self.survey.of_rows(columns)}
            for n, feature in enumerate(listed):
                matrix[part, n] = values[feature.name]
        names, units = zip(*((f.name, f.unit) for f in listed))
        return FeatureTable(names, units, matrix, self.catalogue.version)


def _cpu_survey(tile: Program, target: Target, work: Work) -> Survey:
    walked, speeds = structure(tile), rates(target)
    fixed = {**program_facts(work, walked), **target_facts(target)}
    return Survey(fixed, lambda columns: schedule_facts(walked, columns, speeds, work))


def _gpu_survey(tile: Program, target: Target, work: Work) -> Survey:
    walked = gpu_structure(tile)
    fixed = {**gpu_program_facts(work, walked), **gpu_target_facts(target)}
    return Survey(fixed, lambda columns: gpu_schedule_facts(walked, columns, target, work))


_SURVEYS: Mapping[str, Callable[[Program, Target, Work], Survey]] = {
    "cpu": _cpu_survey,
    "gpu": _gpu_survey,
}


def features(tile: Program, target: Target, work: Work) -> FeatureProgram:
    """tile: a sketch's program with its knobs open (or bound); work: `count` of its algebra."""
    return FeatureProgram(CATALOGUES[target.kind], _SURVEYS[target.kind](tile, target, work))


def sketch_features(program: Program, sketch: Sketch, target: Target) -> FeatureProgram | Illegal:
    """The features of a sketch of an algebra program, or why its actions do not apply."""
    tile = symbolic(program, sketch)
    return tile if isinstance(tile, Illegal) else features(tile, target, count(program))


def concatenate(tables: list[FeatureTable]) -> FeatureTable:
    """The rows of several tables, in order. Raises IRError where versions differ."""
    if len({t.version for t in tables}) != 1:
        raise IRError("feature tables of different versions, or none at all")
    first = tables[0]
    matrix = np.concatenate([t.matrix for t in tables])
    return FeatureTable(first.names, first.units, matrix, first.version)
