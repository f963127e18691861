"""A program and a GPU target in, the schedules that a campaign tries out.

Half of them is the head of the roofline's ranking, the rest is spread evenly over the space of
each sketch by a low-discrepancy sequence, so that a log also knows what is slow and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from autosched.codegen.reference import read_program
from autosched.costmodel.features import sketch_features
from autosched.costmodel.roofline import RooflineModel
from autosched.ir.extent import evaluate_extent
from autosched.ir.node import Program
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, Sketch
from autosched.ir.sketches import sketches
from autosched.ir.target import Target, parse_target

HEAD = 0.5  # share of the schedules that the ranking picks
TABLE_ROWS = 20_000  # of a sketch that are ranked
POINTS = 4096  # of the sequence that are looked at for legal rows
MAX_ALIKE = 0.25  # share of the head that one sketch may take, where there are several
TIES = 3  # schedules of one sketch that the ranking takes where it tells them apart by no 1 %


@dataclass(frozen=True)
class Picked:
    """A schedule, and by whom it was picked: "head" or "spread"."""

    schedule: Schedule
    by: str
    estimate_us: float | None = None


def plan(folder: str, target: str, count: int, seed: int) -> dict[str, Any]:
    """The job: schedules for the task in `folder` as plain JSON.

    Returns {"picked": [{"schedule", "by", "estimate_us"}], "sketches": how many, "rows": legal
    rows of all tables}.
    """
    program, chosen = read_program(Path(folder)), parse_target(target)
    found = sketches(program, chosen)
    tables = [s.table(TABLE_ROWS, seed) for s in found]
    picked = pick(program, chosen, found, tables, count, seed)
    return {
        "picked": [
            {"schedule": p.schedule.to_json(), "by": p.by, "estimate_us": p.estimate_us}
            for p in picked
        ],
        "sketches": len(found), "rows": sum(len(next(iter(t.values()))) for t in tables),
    }  # fmt: skip


def pick(
    program: Program, target: Target, found: tuple[Sketch, ...],
    tables: list[dict[str, np.ndarray]], count: int, seed: int,
) -> list[Picked]:  # fmt: skip
    """At most `count` different schedules, the head first."""
    head = _head(program, target, found, tables, round(count * HEAD))
    spread = (Picked(s, "spread") for s in _spread(found, seed))
    out: dict[str, Picked] = {}
    for made in (*head, *islice(spread, 4 * count)):
        if len(out) < count:
            out.setdefault(made.schedule.text, made)
    return list(out.values())


def _head(
    program: Program, target: Target, found: tuple[Sketch, ...],
    tables: list[dict[str, np.ndarray]], count: int,
) -> list[Picked]:  # fmt: skip
    """The best by the roofline, with no sketch taking more than its share."""
    ranked: list[tuple[float, int, int]] = []
    model = RooflineModel()
    for n, (sketch, table) in enumerate(zip(found, tables)):
        if len(next(iter(table.values()))):
            made = sketch_features(program, sketch, target)
            if isinstance(made, Illegal):
                continue
            times = model.predict(made.evaluate(table)).latency_us
            ranked += [(float(times[row]), n, int(row)) for row in np.argsort(times)[:count]]
    most = max(1, round(count * max(MAX_ALIKE, 1 / max(len(found), 1))))
    taken = [0] * len(found)
    tied: Counter[tuple[int, float]] = Counter()
    out: list[Picked] = []
    for us, n, row in sorted(ranked):
        tie = n, float(f"{us:.3g}")
        if len(out) < count and taken[n] < most and tied[tie] < TIES:
            taken[n] += 1
            tied[tie] += 1
            knobs = {k.name: int(tables[n][k.name][row]) for k in found[n].knobs}
            out.append(Picked(found[n].schedule(knobs), "head", us))
    return out


def _spread(found: tuple[Sketch, ...], seed: int) -> Iterator[Schedule]:
    """Legal schedules of all sketches in turn, each sketch's evenly over its knobs."""
    lanes = [_points(sketch, seed) for sketch in found]
    alive = set(range(len(lanes)))
    for n in cycle(range(len(lanes))):
        if not alive:
            return
        if n in alive:
            made = next(lanes[n], None)
            if made is None:
                alive.discard(n)
            else:
                yield made


def _points(sketch: Sketch, seed: int) -> Iterator[Schedule]:
    if not sketch.knobs:
        yield sketch.schedule({})
        return
    points = qmc.Halton(d=len(sketch.knobs), seed=seed).random(POINTS)
    columns = {
        k.name: np.asarray(k.domain, np.int64)[(points[:, n] * len(k.domain)).astype(np.int64)]
        for n, k in enumerate(sketch.knobs)
    }
    legal = np.ones(POINTS, bool)
    for constraint in sketch.constraints:
        legal &= np.broadcast_to(np.asarray(evaluate_extent(constraint, columns), bool), POINTS)
    seen: set[tuple[int, ...]] = set()
    for row in np.flatnonzero(legal):
        values = tuple(int(columns[k.name][row]) for k in sketch.knobs)
        if values not in seen:
            seen.add(values)
            yield sketch.schedule({k.name: v for k, v in zip(sketch.knobs, values)})
