"""A suite row in, our schedules for it out, built and measured: known, picked and tuned ones.

What logs know of the row's workload comes first, and one that the model picks; where nothing of
these is right, the model's next picks. They are chosen and built ahead, while other rows are on
the GPU. A live search is another thing: it starts from nothing but the model, which has then seen
none of the suite's workloads, and its seconds are counted.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from threading import Event
from types import TracebackType

from autosched.codegen.reference import write_given, write_program
from autosched.codegen.task_files import PROGRAM
from autosched.costmodel.model import CostModel
from autosched.datasets.exchange import read_attempts
from autosched.datasets.shipped import shipped_records
from autosched.datasets.store import Store
from autosched.datasets.suites import SuiteRow
from autosched.ir.count import count
from autosched.ir.partition import Task
from autosched.ir.record import CONDEMNED
from autosched.ir.schedule import Schedule
from autosched.search.strategy import ask
from autosched.tools.campaign import Bench, Book, Entry, TaskState, open_task
from autosched.tools.explore import Explorer
from autosched.tools.gpu_lab import GpuLab
from autosched.tools.gpu_probe import Device
from autosched.tools.lab import BuiltModule
from autosched.tools.learner import Learner, shipped_rows
from autosched.tools.stopping import Stopper
from autosched.tools.suite_options import How
from autosched.tools.triton_lab import TritonLab, task_name
from autosched.tools.tuning import silent

KNOWN = 4  # of the logs' best schedules, measured anew
PICKS = 4  # of the model's, tried in turn until one is right
FINALISTS = 3
AHEAD = 2  # rows that are chosen and built for at once


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
    """What there is for a row. tried: schedules; failures: how many, by status; known: schedules
    that logs had."""

    finalists: tuple[Finalist, ...]
    tried: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    known: int = 0
    note: str = ""


@dataclass(frozen=True)
class Tuned:
    """What a live search came to. seconds: by the clock, with the definition as its only input and
    processes that were started before: the space, the reference, builds, measurements, the model's
    fits; best: (seconds, µs) whenever a faster one was found."""

    finalist: Finalist | None
    seconds: float
    tried: int
    best: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Ahead:
    """A row whose schedules are chosen, and by whom; state: None where no sketch fits."""

    state: TaskState | None
    chosen: Sequence[tuple[Schedule, str]]
    known: int


class Finder:
    """Finds our schedules, row after row; use as a context manager.

    busy: set while the processor's cores are to be left alone (others are searching on them).
    """

    def __init__(
        self, lab: GpuLab, store: Store, bench: Bench, how: How, where: Device | None,
        known: Mapping[str, Sequence[Schedule]], learner: Learner, width: int,
    ) -> None:  # fmt: skip
        """learner: for picks, and what live searches start from; width: candidates that such a
        search tries at once."""
        seed, target = bench.seed, bench.target.name
        self._lab = lab
        self._triton = TritonLab(lab.folder, target, seed, where, lab=lab)
        apart = lab.beside(lab.folder / "tuned")  # what was built for a race is no help there
        self._apart = apart
        self._live = TritonLab(apart.folder, target, seed, where, lab=apart)
        self._book, self._bench, self._how = Book(store, bench), bench, how
        self._known, self._learner, self._width = known, learner, width
        self._threads = ThreadPoolExecutor(AHEAD, "autosched-suite")
        self._free = Event()
        self._free.set()

    def __enter__(self) -> Finder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._free.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def busy(self, on: bool) -> None:
        """Has what goes on ahead wait, or go on, before its next row."""
        (self._free.clear if on else self._free.set)()

    # -- ahead -----------------------------------------------------------------------------

    def ahead(self, row: SuiteRow) -> Future[Ahead]:
        """Has a row's schedules chosen and built in the background. Its definition is in its
        folder when this returns."""
        _written(self._lab, row)
        return self._threads.submit(self._chosen, row)

    def _chosen(self, row: SuiteRow) -> Ahead:
        self._free.wait()
        state = self._opened(row, self._learner.model)
        key = state.key
        known = [] if self._how.model_only else list(self._known.get(key, ()))[:KNOWN]
        if not state.pool.sketches:
            return Ahead(None, (), len(known))
        chosen = [(s, "logs") for s in known]
        chosen += [(s, "model") for s in _asked(state, 1) if s not in known]
        # What it comes to is asked for anew, from the cache.
        self._triton.build(key, [s for s, _ in chosen])
        return Ahead(state, chosen, len(known))

    def _opened(self, row: SuiteRow, model: CostModel) -> TaskState:
        program = row.program()
        work = count(program)
        task = Task(program.key, program, 1, work.flops, work.read_bytes + work.write_bytes,
                    row.name, row.source)  # fmt: skip
        return open_task(task, self._bench.target, self._bench.seed, model)

    # -- on the GPU ------------------------------------------------------------------------

    def find(self, ahead: Ahead) -> Ours:
        """The best few of a row's schedules that were chosen ahead."""
        state = ahead.state
        if state is None:
            return Ours((), note="no sketch fits this program")
        explorer = self._explorer(state, self._triton, self._learner, Stopper(None))
        explorer.attempt(state, [s for s, _ in ahead.chosen])
        by = {s.text: who for s, who in ahead.chosen}
        for _ in range(PICKS - 1):
            if state.ranked() or _built(state):
                break
            explorer.attempt(state, _asked(state, 1))
        return Ours(tuple(_finalists(state, by, "model")), state.tried, state.failures, ahead.known)

    def tune(self, row: SuiteRow, seconds: float) -> Tuned:
        """Searches from nothing, so long: batches as wide as there are builders, and none that
        would not be done in time, going by the one before."""
        begun = time.monotonic()
        _written(self._apart, row)
        learner = self._learner.fork()
        state = self._opened(row, learner.model)
        explorer = self._explorer(state, self._live, learner, Stopper(None))
        history: list[tuple[float, float]] = []
        cost = 0.0
        while state.pool.sketches:
            at = time.monotonic()
            if state.tried and at - begun + cost > seconds:
                break
            if not (chosen := _asked(state, self._width)):
                break
            explorer.attempt(state, chosen)
            best = state.best_us
            if best is not None and (not history or best < history[-1][1]):
                history.append((round(time.monotonic() - begun, 2), round(best, 4)))
            if time.monotonic() - at + time.monotonic() - begun > seconds:
                break  # no fit for a batch that does not come
            learner.learn([state])
            cost = time.monotonic() - at
        spent = round(time.monotonic() - begun, 2)
        return Tuned(next(_finalists(state, {}, "tuned"), None), spent, state.tried, tuple(history))

    def _explorer(
        self, state: TaskState, lab: TritonLab, learner: Learner, stopper: Stopper
    ) -> Explorer:
        return Explorer((state,), lab, self._book, learner, stopper, silent)


def _written(lab: GpuLab, row: SuiteRow) -> None:
    """A row's definition and its own arrays, in the folder of its task."""
    program = row.program()
    place = lab.place(task_name(program.key))
    if (place / PROGRAM).exists():  # of a row alike: a builder may be reading it
        return
    if arrays := row.arrays():
        place.mkdir(parents=True)
        write_given(place, arrays)
    write_program(place, program)


def _asked(state: TaskState, size: int) -> list[Schedule]:
    """The model's best that were not tried."""
    return [state.search.space.schedule(c) for c in ask(state.search, size, state.score)]


def _built(state: TaskState) -> list[Entry]:
    return [e for e in state.entries.values() if e.built is not None]


def _finalists(state: TaskState, by: Mapping[str, str], other: str) -> Iterator[Finalist]:
    """The fastest; where nothing was measured, whatever was built. by: who chose a schedule, by
    its text, if it was no `other`."""
    entries = [e for e in state.ranked() if e.built is not None] or _built(state)
    for e in entries[:FINALISTS]:
        if isinstance(e.built, BuiltModule):
            who = by.get(e.schedule.text, other)
            yield Finalist(e.schedule, e.built, who, e.latency_us, e.facts)


# ---- what is known -----------------------------------------------------------------------------

Row = tuple[str, str, float | None, bool]  # workload, schedule's text, µs, whether it was wrong


def known_schedules(target: str, stores: Iterable[Path | Store] = ()) -> dict[
        str, tuple[Schedule, ...]]:  # fmt: skip
    """Schedules by workload, the fastest first, as the package's logs for a target's key and
    stores (open ones, SQLite or Parquet files) have them; none that was ever wrong.

    Raises: StoreError of a file that can't be read.
    """
    tried: dict[str, dict[str, list[tuple[float | None, bool]]]] = defaultdict(
        lambda: defaultdict(list))  # fmt: skip
    for workload, text, us, wrong in _rows(target, stores):
        tried[workload][text].append((us, wrong))
    return {workload: _ranked(group) for workload, group in tried.items()}


def _rows(target: str, stores: Iterable[Path | Store]) -> Iterator[Row]:
    for r in shipped_records(target)[0]:
        if r.peer is None:
            yield r.workload, r.schedule, r.latency_us if r.ok else None, r.status in CONDEMNED
    for store in stores:
        if isinstance(store, Store):
            yield from _stored(store, target)
        elif store.suffix == ".parquet":
            # Rows without a time: wrong, or of a kind that need not be tried again.
            yield from ((w, text, us, us is None) for w, text, us in read_attempts(store, target)
                        if '"peer"' not in text[:8])  # fmt: skip
        else:
            with Store(store) as opened:
                yield from _stored(opened, target)


def _stored(store: Store, target: str) -> Iterator[Row]:
    for r in store.records(peers=False):
        if _alike(r.target, target):
            yield r.workload, r.schedule, r.latency_us if r.ok else None, r.status in CONDEMNED


def _alike(one: str, other: str) -> bool:
    """Whether two keys are of one architecture with the same features, whatever the device."""
    (kind, arch, _, *rest), (kind2, arch2, _, *rest2) = (f"{k}///".split("/") for k in (one, other))
    return (kind, arch, rest) == (kind2, arch2, rest2)


def _ranked(group: Mapping[str, Sequence[tuple[float | None, bool]]]) -> tuple[Schedule, ...]:
    times = []
    for text, found in group.items():
        timed = [us for us, _ in found if us is not None]
        if timed and not any(wrong for _, wrong in found):
            times.append((median_low(timed), text))
    return tuple(_parsed(text) for _, text in sorted(times))


def _parsed(text: str) -> Schedule:
    return Schedule.from_json(json.loads(text))


# ---- models ------------------------------------------------------------------------------------


def taught(bench: Bench, unseen: Iterable[str] = ()) -> Learner:
    """A learner that knows the logs that come with the package, but for some workloads."""
    learner = Learner(bench.seed)
    learner.teach(shipped_rows(bench.target, set(unseen)))
    return learner
