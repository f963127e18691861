"""A schedule as plain data, and its replay: algebra program and actions in, tile program out.

A `Sketch` is a list of actions whose sizes are named knobs with finite domains, and constraints
over them; a `Schedule` is the same actions with the knobs filled in. Both are JSON both ways, and
`replay` of one schedule on one program gives one tile program, whoever runs it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autosched.ir.extent import evaluate_extent, knobs_of
from autosched.ir.node import Node, Program
from autosched.ir.rules import RULES
from autosched.ir.rules.action import Action, Illegal


@dataclass(frozen=True)
class Knob:
    """A named size and the values that it may take, ascending; `unit` says of what."""

    name: str
    domain: tuple[int, ...]
    unit: str = "elements"


@dataclass(frozen=True)
class Schedule:
    """Actions and knob values: all that is needed to make the tile program again."""

    sketch: str
    actions: tuple[Action, ...]
    knobs: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "sketch": self.sketch,
            "actions": [a.to_json() for a in self.actions],
            "knobs": {k: int(v) for k, v in sorted(self.knobs.items())},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Schedule:
        actions = tuple(Action.from_json(a) for a in data["actions"])
        return Schedule(data["sketch"], actions, dict(data["knobs"]))

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def text(self) -> str:
        """Canonical JSON: equal schedules have equal texts."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Sketch:
    """A structure with open sizes. `constraints` are bool nodes over knobs: all must hold."""

    name: str
    actions: tuple[Action, ...]
    knobs: tuple[Knob, ...]
    constraints: tuple[Node, ...] = ()

    def schedule(self, knobs: Mapping[str, int]) -> Schedule:
        return Schedule(self.name, self.actions, dict(knobs))

    def size(self) -> int:
        """Rows of the full product of the domains, before constraints."""
        total = 1
        for knob in self.knobs:
            total *= len(knob.domain)
        return total

    def table(self, limit: int = 200_000, seed: int = 0) -> dict[str, np.ndarray]:
        """One column a knob, one row a candidate that satisfies the constraints.

        The whole product where it has at most `limit` rows, else a Latin hypercube of that many,
        over the legal rows of each group of knobs that constraints tie together.
        """
        if not self.knobs:
            return {"": np.zeros(1, np.int64)}
        if self.size() <= limit:
            return self._filtered(_grid(self.knobs), self.constraints)
        parts = [self._part(knobs, limit, seed) for knobs in self._components()]
        counts = [len(next(iter(p.values()))) for p in parts]
        if 0 < math.prod(counts) <= limit:
            picks = np.meshgrid(*map(np.arange, counts), indexing="ij")
            rows = np.stack([x.reshape(-1) for x in picks], 1)
        else:
            rows = _spread(counts, limit, seed)
        made = {n: c[rows[:, k]] for k, p in enumerate(parts) for n, c in p.items()}
        return {knob.name: made[knob.name] for knob in self.knobs}

    def _components(self) -> list[tuple[Knob, ...]]:
        """The knobs in groups that no constraint ties to each other: what is legal in one is so
        whatever the others are."""
        groups = [{k.name} for k in self.knobs]
        for constraint in self.constraints:
            tied = set(knobs_of(constraint))
            groups = [
                *(g for g in groups if not g & tied),
                set().union(*(g for g in groups if g & tied)),
            ]
        order = {k.name: n for n, k in enumerate(self.knobs)}
        sets = sorted((g for g in groups if g), key=lambda g: min(order[n] for n in g))
        return [tuple(k for k in self.knobs if k.name in g) for g in sets]

    def _part(self, knobs: tuple[Knob, ...], limit: int, seed: int) -> dict[str, np.ndarray]:
        """The legal rows of one group, or of a sample of it."""
        names = {k.name for k in knobs}
        own = [c for c in self.constraints if knobs_of(c) <= names]
        if math.prod(len(k.domain) for k in knobs) <= limit:
            return self._filtered(_grid(knobs), own)
        picks = _spread([len(k.domain) for k in knobs], limit, seed)
        columns = {k.name: np.asarray(k.domain, np.int64)[picks[:, n]] for n, k in enumerate(knobs)}
        return self._filtered(columns, own)

    @staticmethod
    def _filtered(
        columns: dict[str, np.ndarray], constraints: Sequence[Node]
    ) -> dict[str, np.ndarray]:
        rows = len(next(iter(columns.values())))
        keep = np.ones(rows, bool)
        for constraint in constraints:
            keep &= np.broadcast_to(np.asarray(evaluate_extent(constraint, columns), bool), rows)
        return {name: column[keep] for name, column in columns.items()}


def _grid(knobs: Sequence[Knob]) -> dict[str, np.ndarray]:
    """Every combination of the knobs' values."""
    grid = np.meshgrid(*(np.asarray(k.domain, np.int64) for k in knobs), indexing="ij")
    return {k.name: g.reshape(-1) for k, g in zip(knobs, grid)}


def _spread(counts: Sequence[int], rows: int, seed: int) -> np.ndarray:
    """Distinct combinations of numbers below `counts`, a Latin hypercube of at most `rows`."""
    from scipy.stats import qmc

    if not all(counts):
        return np.zeros((0, len(counts)), np.int64)
    points = qmc.LatinHypercube(d=len(counts), seed=seed).random(rows)
    return np.unique((points * np.asarray(counts)).astype(np.int64), axis=0)


def replay(program: Program, schedule: Schedule) -> Program | Illegal:
    """The tile program of a schedule: each action applied in turn, or the first refusal."""
    return run_actions(program, [a.bind(dict(schedule.knobs)) for a in schedule.actions])


def run_actions(program: Program, actions: list[Action] | tuple[Action, ...]) -> Program | Illegal:
    for action in actions:
        if action.rule not in RULES:
            return Illegal("NO_SUCH_RULE", f"{action.rule!r} is none of {', '.join(RULES)}")
        result = RULES[action.rule](program, action)
        if isinstance(result, Illegal):
            return Illegal(result.code, f"{action}: {result.why}")
        program = result
    return program


def symbolic(program: Program, sketch: Sketch) -> Program | Illegal:
    """The tile program of a sketch with its knobs left open, for features of the whole table."""
    return run_actions(program, sketch.actions)
