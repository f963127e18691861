"""A schedule as plain data, and its replay: algebra program and actions in, tile program out.

A `Sketch` is a list of actions whose sizes are named knobs with finite domains, and constraints
over them; a `Schedule` is the same actions with the knobs filled in. Both are JSON both ways, and
`replay` of one schedule on one program gives one tile program, whoever runs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autosched.ir.extent import evaluate_extent
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

        The whole product where it has at most `limit` rows, else a Latin hypercube of that many.
        """
        if not self.knobs:
            return {"": np.zeros(1, np.int64)}
        if self.size() <= limit:
            grid = np.meshgrid(*(np.asarray(k.domain, np.int64) for k in self.knobs), indexing="ij")
            columns = {k.name: g.reshape(-1) for k, g in zip(self.knobs, grid)}
        else:
            columns = self._sample(limit, seed)
        rows = len(next(iter(columns.values())))
        keep = np.ones(rows, bool)
        for constraint in self.constraints:
            keep &= np.broadcast_to(np.asarray(evaluate_extent(constraint, columns), bool), rows)
        return {name: column[keep] for name, column in columns.items()}

    def _sample(self, rows: int, seed: int) -> dict[str, np.ndarray]:
        from scipy.stats import qmc

        points = qmc.LatinHypercube(d=len(self.knobs), seed=seed).random(rows)
        picks = np.empty(points.shape, np.int64)
        for n, knob in enumerate(self.knobs):
            index = (points[:, n] * len(knob.domain)).astype(np.int64)
            picks[:, n] = np.asarray(knob.domain, np.int64)[index]
        unique = np.unique(picks, axis=0)
        return {k.name: unique[:, n] for n, k in enumerate(self.knobs)}


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
