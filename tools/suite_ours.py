"""A suite row in, our schedules for it out, built and measured: the best known, or the model's.

What logs and stores know of the row's workload comes first. Without any, or where the model is to
pick, its ranking decides: one schedule that builds and is right. With seconds to tune, the tuner
of models searches from there and every attempt is stored.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from autosched.datasets.shipped import shipped_records
from autosched.datasets.store import Store
from autosched.datasets.suites import SuiteRow
from autosched.ir.count import count
from autosched.ir.partition import Task
from autosched.ir.record import CONDEMNED, Record
from autosched.ir.schedule import Schedule
from autosched.ir.target import parse_target
from autosched.search.strategy import ask
from autosched.tools.campaign import Bench, Book, Entry, TaskState, open_task
from autosched.tools.explore import BATCH, Explorer
from autosched.tools.lab import BuiltModule
from autosched.tools.learner import Learner
from autosched.tools.stopping import Stopper
from autosched.tools.suite_options import How
from autosched.tools.triton_lab import TritonLab
from autosched.tools.tuning import silent

KNOWN = 4  # of the logs' best schedules, measured anew
PICKS = 4  # of the model's, tried in turn until one is right
FINALISTS = 3


@dataclass(frozen=True)
class Finalist:
    """A schedule of ours that was right. by: who chose it; us: when it was last measured."""

    schedule: Schedule
    build: BuiltModule
    by: str
    us: float | None
    facts: Mapping[str, int]


@dataclass(frozen=True)
class Ours:
    """What there is for a row. seconds: of search, from the first look at its space on; tried:
    schedules; failures: how many, by status; known: schedules that logs had."""

    finalists: tuple[Finalist, ...]
    seconds: float | None
    tried: int
    failures: Mapping[str, int]
    known: int
    note: str = ""


class Finder:
    """Finds our schedules, row after row; the model learns as it goes."""

    def __init__(self, lab: TritonLab, store: Store, bench: Bench, how: How) -> None:
        self._lab, self._book, self._bench, self._how = lab, Book(store, bench), bench, how
        self._learner = Learner(bench.seed)
        # What was measured on another device of this architecture is a good start, too.
        self._logs = known_schedules(parse_target(bench.target.name).key, store)
        self._taught = False

    def find(self, row: SuiteRow, spare_s: float) -> Ours:
        """The best few for a row; spare_s: seconds that a search may take at most."""
        program = row.program()
        work = count(program)
        task = Task(program.key, program, 1, work.flops, work.read_bytes + work.write_bytes,
                    row.name, row.source)  # fmt: skip
        known = [] if self._how.model_only else list(self._logs.get(program.key, ()))[:KNOWN]
        if self._how.tune_s or not known:
            self._teach()  # once in a run: not counted as this row's search
        begun = time.monotonic()
        state = open_task(task, self._bench.target, self._bench.seed, self._learner.model)
        if not state.pool.sketches:
            return Ours((), None, 0, {}, 0, "no sketch fits this program")
        explorer = Explorer((state,), self._lab, self._book, self._learner, Stopper(None), silent)
        if known:
            explorer.attempt(state, known)
        by = "logs"
        if self._how.tune_s and not self._how.model_only:
            by = "tuned"
            self._batch(explorer, state, BATCH)  # however short the time
            search = Explorer((state,), self._lab, self._book, self._learner,
                              Stopper(min(self._how.tune_s, spare_s), begun), silent)  # fmt: skip
            search.search(0.0, None, False)
        if not state.ranked() and not _built(state):
            by = "model"
            self._pick(explorer, state)
        seconds = round(time.monotonic() - begun, 2) if by != "logs" else None
        return Ours(tuple(_finalists(state, by)), seconds, state.tried, state.failures,
                    len(known))  # fmt: skip

    def _teach(self) -> None:
        """The model learns from the logs once, before the first row that asks it."""
        if not self._taught:
            self._learner.read(self._book.store, self._bench, ())
            self._taught = True

    def _pick(self, explorer: Explorer, state: TaskState) -> None:
        """The model's best in turn, until one is right (or builds, where nothing measures)."""
        for _ in range(PICKS):
            if not self._batch(explorer, state, 1) or state.ranked() or _built(state):
                return

    def _batch(self, explorer: Explorer, state: TaskState, size: int) -> int:
        """Tries the model's best that were not tried; how many there were."""
        chosen = [state.search.space.schedule(c) for c in ask(state.search, size, state.score)]
        explorer.attempt(state, chosen)
        self._learner.learn([state])
        return len(chosen)


def _built(state: TaskState) -> list[Entry]:
    return [e for e in state.entries.values() if e.built is not None]


def _finalists(state: TaskState, by: str) -> list[Finalist]:
    """The fastest; where nothing was measured, whatever was built."""
    entries = [e for e in state.ranked() if e.built is not None] or _built(state)
    return [
        Finalist(e.schedule, e.built, by, e.latency_us, e.facts)
        for e in entries[:FINALISTS] if isinstance(e.built, BuiltModule)
    ]  # fmt: skip


def known_schedules(target: str, *stores: Store) -> dict[str, tuple[Schedule, ...]]:
    """Schedules by workload, the fastest first, as the package's logs for a target's key and
    stores have them; none that was ever wrong."""
    stored = (r for s in stores for r in s.records(peers=False))
    records = [*shipped_records(target)[0], *(r for r in stored if _alike(r.target, target))]
    tried: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.peer is None:
            tried[record.workload][record.schedule].append(record)
    return {workload: _ranked(group) for workload, group in tried.items()}


def _alike(one: str, other: str) -> bool:
    """Whether two keys are of one architecture with the same features, whatever the device."""
    (kind, arch, _, *rest), (kind2, arch2, _, *rest2) = (f"{k}///".split("/") for k in (one, other))
    return (kind, arch, rest) == (kind2, arch2, rest2)


def _ranked(group: Mapping[str, Sequence[Record]]) -> tuple[Schedule, ...]:
    times = []
    for text, records in group.items():
        timed = [r.latency_us for r in records if r.ok and r.latency_us is not None]
        if timed and not any(r.status in CONDEMNED for r in records):
            times.append((median_low(timed), text, records[0]))
    return tuple(Schedule.from_json(r.schedule_json) for _, _, r in sorted(times, key=_by_time))


def _by_time(row: tuple[float, str, Record]) -> tuple[float, str]:
    return row[:2]
