"""The state of one tuning: what is known of each task, and how knowledge grows batch by batch.

Every attempt becomes a Record, and a batch of Records reaches the store in one call before the
next batch begins. A schedule with a Record of this workload, target, toolchain, device and
number of threads is never tried again, whichever run it is from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_low

import numpy as np

from autosched.codegen.measure import Timing
from autosched.codegen.pairing import Pairing
from autosched.costmodel.model import CostModel
from autosched.costmodel.pool import Pool, Score, pool
from autosched.costmodel.roofline import roofline_time
from autosched.datasets.store import Store
from autosched.ir.partition import Task
from autosched.ir.record import (
    CHECKED_NONE,
    CHECKED_REFERENCE,
    CONDEMNED,
    Record,
    Status,
    canonical_json,
)
from autosched.ir.rules import inline
from autosched.ir.schedule import Schedule
from autosched.ir.sketches import sketches
from autosched.ir.target import Target
from autosched.ir.text import to_text
from autosched.search.space import space
from autosched.search.strategy import State, tell
from autosched.tools.lab import Attempt, Built, BuiltModule
from autosched.tools.tuning import Event, TaskEvent

ROWS = 40_000  # of a task's space that are ranked
COST_S = 1.0  # of a batch, before one was measured
PASSING = frozenset({Status.CANCELLED})  # says nothing of the schedule: it may be tried again
# Marks of a record that times again what was tried before; and of one measured with a peer.
FINAL, PAIRED = "final", "paired"
UNMEASURED = "compiled, and nothing here to measure it with"


def text_of(schedule: Schedule) -> str:
    """The schedule as records write it."""
    return canonical_json(schedule.to_json())


@dataclass
class Entry:
    """What is known of one schedule: its times (µs), how it failed, where it is compiled and what
    the compiler tells of it."""

    schedule: Schedule
    times_us: list[float] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    built: Built | BuiltModule | None = None
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def latency_us(self) -> float | None:
        """The median of its records; None if it ever gave a wrong answer, or never an answer."""
        if not self.times_us or any(s in CONDEMNED for s in self.statuses):
            return None
        return median_low(self.times_us)


@dataclass
class TaskState:
    """A task while it is tuned.

    pool: its candidates with their features; search: what was tried of them, for ask and tell;
    score: predictions of the present model; cost_s: seconds that a batch takes, as it seems;
    paired_us: of the best, measured in turn with the peer.
    """

    task: Task
    pool: Pool
    search: State
    roofline_us: float
    score: Score
    entries: dict[str, Entry] = field(default_factory=dict)
    peer_us: float | None = None
    peer_from: str = "none"
    paired_us: float | None = None
    new_tries: int = 0
    cost_s: float = COST_S

    @property
    def key(self) -> str:
        return self.task.key

    def ranked(self) -> list[Entry]:
        """Entries with a time, the fastest first; ties by text, so that equal records choose
        alike."""
        timed = [(e.latency_us, text, e) for text, e in self.entries.items()]
        return [e for us, _, e in sorted((t for t in timed if t[0] is not None), key=_by_time)]

    @property
    def best(self) -> Entry | None:
        ranked = self.ranked()
        return ranked[0] if ranked else None

    @property
    def best_us(self) -> float | None:
        best = self.best
        return None if best is None else best.latency_us

    @property
    def tried(self) -> int:
        return sum(len(e.statuses) for e in self.entries.values())

    @property
    def failures(self) -> dict[str, int]:
        """How many attempts failed, by status."""
        fine = {Status.OK, *PASSING}
        every = (s for e in self.entries.values() for s in e.statuses if s not in fine)
        return dict(sorted(Counter(s.value for s in every).items()))

    def predicted_us(self, schedule: Schedule) -> float | None:
        """What the present model says of a schedule; None where it is not of this space."""
        candidate = self.search.space.locate(schedule)
        if candidate is None:
            return None
        rows = np.array([candidate.knobs], np.int64).reshape(1, len(candidate.knobs))
        latency, _ = self.score(candidate.sketch, self.search.space.columns(candidate.sketch, rows))
        return float(latency[0])

    def event(self, active: bool = False, left_s: float | None = None) -> Event:
        t = self.task
        return TaskEvent(
            t.key, t.public_name, t.doc, t.count, self.roofline_us,
            self.paired_us or self.best_us, self.peer_us,
            self.tried, sum(self.failures.values()), active, left_s,
        )  # fmt: skip


def open_task(task: Task, target: Target, seed: int, model: CostModel) -> TaskState:
    """A task with its space ranked and nothing tried."""
    made = pool(task.program, sketches(task.program, target), target, limit=ROWS, seed=seed)
    searched = State(space(made.sketches, made.tables), seed)
    bound = roofline_time(task.program, target)
    return TaskState(task, made, searched, bound, made.score(model))


def plain_schedules(task: Task, target: Target) -> tuple[Schedule, ...]:
    """Schedules without loops of their own: slow, and right where nothing else is. A GPU runs
    nothing but kernels, so it has none."""
    if target.kind != "cpu":
        return ()
    return tuple(Schedule("plain", (action,)) for action in inline.propose(task.program))


def _by_time(row: tuple[float | None, str, Entry]) -> tuple[float, str]:
    return (row[0] or 0.0, row[1])


@dataclass(frozen=True)
class Bench:
    """Where attempts are made; what every Record says."""

    target: Target
    toolchain: str
    threads: int
    seed: int


class Book:
    """The store as one tuning sees it: reads what is known, writes what is new."""

    def __init__(self, store: Store, bench: Bench) -> None:
        self.store, self.bench = store, bench

    def recall(self, state: TaskState) -> int:
        """Fills in what earlier runs found out; how many records that were."""
        known = self.store.records(
            workload=state.key, target=self.bench.target.key, toolchain=self.bench.toolchain,
            device=self.bench.target.device, peers=False,
        )  # fmt: skip
        mine = [r for r in known if r.threads == self.bench.threads and r.status not in PASSING]
        for record in mine:
            self._enter(state, Schedule.from_json(record.schedule_json), record)
        state.search = tell(state.search, (r for r in mine if not r.extra.get(FINAL)))
        return len(mine)

    def recall_peer(self, state: TaskState, peer: str) -> None:
        """Fills in what this very version of the peer took before, on this device."""
        found = self.store.records(
            workload=state.key, target=self.bench.target.key, device=self.bench.target.device,
            status=Status.OK, peers=True,
        )  # fmt: skip
        mine = [r for r in found if r.peer == peer and r.threads == self.bench.threads]
        if mine:
            state.peer_us, state.peer_from = mine[-1].latency_us, "subgraph"

    def note(self, state: TaskState, attempts: Sequence[Attempt]) -> list[Record]:
        """Stores a batch of attempts in one call, and remembers them."""
        records = [self._record(state, a) for a in attempts]
        self._add(state, records)
        for attempt, record in zip(attempts, records):
            entry = self._enter(state, attempt.schedule, record)
            entry.built, entry.facts = attempt.built or entry.built, attempt.facts or entry.facts
        state.search = tell(state.search, records)
        state.new_tries += len(attempts)
        return records

    def note_final(self, state: TaskState, entry: Entry, timing: Timing) -> None:
        """Stores one more time of a schedule that is known to be right."""
        self._enter(state, entry.schedule, self._add_time(state, entry, timing, {FINAL: True}))

    def note_pair(self, state: TaskState, entry: Entry, peer: str, pairing: Pairing) -> None:
        """Stores the times of a schedule and of the peer, measured in turn.

        That of the schedule is not mixed with its others: in turn with a peer, caches are colder.
        """
        self._add_time(state, entry, pairing.a, {FINAL: True, PAIRED: True})
        state.paired_us = pairing.a.median_us
        self.note_peer(state, peer, pairing.b)

    def note_peer(self, state: TaskState, peer: str, timing: Timing) -> None:
        """Stores the peer's time for this task."""
        self._add(state, [self._base(
            state, {"peer": peer}, Status.OK, timing, None, CHECKED_NONE, _facts(timing)
        )])  # fmt: skip
        state.peer_us, state.peer_from = timing.median_us, "subgraph"

    # -- inside ----------------------------------------------------------------------------

    def _add(self, state: TaskState, records: Iterable[Record]) -> None:
        known = self.store.workload(state.key) is not None
        texts = {} if known else {state.key: to_text(state.task.program)}
        self.store.add(records, texts)

    def _add_time(
        self, state: TaskState, entry: Entry, timing: Timing, marks: Mapping[str, bool]
    ) -> Record:
        record = self._record(state, Attempt(entry.schedule, Status.OK, timing))
        record = replace(record, extra={**_facts(timing), **marks})
        self._add(state, [record])
        return record

    def _enter(self, state: TaskState, schedule: Schedule, record: Record) -> Entry:
        entry = state.entries.setdefault(record.schedule, Entry(schedule))
        if not record.extra.get(FINAL):  # the same attempt, timed again
            entry.statuses.append(record.status)
        if record.latency_us is not None and not record.extra.get(PAIRED):
            entry.times_us.append(record.latency_us)
        return entry

    def _record(self, state: TaskState, a: Attempt) -> Record:
        extra: dict[str, object] = {
            "build_s": round(a.build_s, 4), "run_s": round(a.run_s, 4), "seed": self.bench.seed,
        }  # fmt: skip
        if a.rel_l2 is not None:
            extra["rel_l2"] = a.rel_l2
        if a.timing is not None:
            extra |= _facts(a.timing)
        if a.facts:
            extra["compiled"] = dict(a.facts)
        if a.ok and a.timing is None:
            a = replace(a, status=Status.CANCELLED, error=UNMEASURED)
        checked = CHECKED_REFERENCE if a.ok or a.status in CONDEMNED else CHECKED_NONE
        return self._base(state, a.schedule.to_json(), a.status, a.timing, a.error, checked, extra)

    def _base(
        self, state: TaskState, schedule: object, status: Status, timing: Timing | None,
        error: str | None, checked: str, extra: dict[str, object],
    ) -> Record:  # fmt: skip
        bench = self.bench
        return Record.of(
            workload=state.key, target=bench.target.key, schedule=schedule, status=status,
            latency_us=None if timing is None else timing.median_us,
            spread_us=None if timing is None else timing.spread_us, error=error,
            toolchain=bench.toolchain, device=bench.target.device, threads=bench.threads,
            checked=checked, extra=extra,
        )  # fmt: skip


def _facts(timing: Timing) -> dict[str, object]:
    return {"cache": timing.cache.value, "runs": timing.runs}
