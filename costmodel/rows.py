"""Records and the programs they are of in, `Rows` to learn from out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from autosched.costmodel.features import FeatureTable, concatenate, sketch_features
from autosched.costmodel.model import Rows
from autosched.ir.node import Program
from autosched.ir.record import Record
from autosched.ir.rules.action import Action, Illegal
from autosched.ir.schedule import Schedule, Sketch
from autosched.ir.target import Target

_Groups = dict[tuple[str, tuple[Action, ...]], list[tuple[Schedule, float]]]


def training_rows(
    records: Iterable[Record], programs: Mapping[str, Program], target: Target,
    plans: int | None = None,
) -> Rows | None:  # fmt: skip
    """One row for each record of a timed schedule of ours; None where there is none.

    programs: algebra program per workload key; records of other workloads are left out, as are
    schedules whose actions no longer apply (the rules have changed since).
    plans: at most so many lists of actions, from every workload alike, those with the most records
    first: a plan takes some 10 ms however many records it has.
    """
    groups: _Groups = defaultdict(list)
    for r in records:
        if r.latency_us is not None and r.peer is None and r.workload in programs:
            schedule = Schedule.from_json(r.schedule_json)
            groups[r.workload, schedule.actions].append((schedule, r.latency_us))
    tables: list[FeatureTable] = []
    latencies: list[float] = []
    workloads: list[str] = []
    for (workload, actions), found in _chosen(groups, plans):
        sketch = Sketch(found[0][0].sketch, actions, ())
        made = sketch_features(programs[workload], sketch, target)
        if isinstance(made, Illegal):
            continue
        names = sorted(found[0][0].knobs) or [""]
        columns = {n: np.array([s.knobs.get(n, 0) for s, _ in found], np.int64) for n in names}
        tables.append(made.evaluate(columns))
        latencies.extend(us for _, us in found)
        workloads.extend([workload] * len(found))
    if not tables:
        return None
    return Rows(concatenate(tables), np.array(latencies), tuple(workloads))


def _chosen(
    groups: _Groups, plans: int | None
) -> list[tuple[tuple[str, tuple[Action, ...]], list[tuple[Schedule, float]]]]:
    """The groups of at most so many plans, in their own order."""
    if plans is None or len(groups) <= plans:
        return list(groups.items())
    turn: dict[str, int] = defaultdict(int)
    places: list[tuple[int, int, tuple[str, tuple[Action, ...]]]] = []
    for key in sorted(groups, key=lambda k: -len(groups[k])):
        places.append((turn[key[0]], len(places), key))
        turn[key[0]] += 1
    kept = {key for _, _, key in sorted(places, key=lambda p: p[:2])[:plans]}
    return [(key, found) for key, found in groups.items() if key in kept]
