"""Schedules of a task in, attempts at them out: built, checked and timed in child processes.

Builds run in `build_workers` processes at once, measurements in one process alone; the two
alternate batch by batch and never overlap, so that a build never disturbs a timing. Whatever a
candidate does costs only itself: it hangs, crashes or answers wrong, and its Attempt says so.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from autosched.codegen.jobs import Failed, Job, Ok, Outcome, Stage
from autosched.codegen.measure import Timing
from autosched.codegen.pairing import Side
from autosched.codegen.reference import write_program
from autosched.codegen.task_files import has_data
from autosched.codegen.workers import WorkerPool
from autosched.ir.node import Program
from autosched.ir.record import Status
from autosched.ir.schedule import Schedule
from autosched.tools.tuning import TuningError

SYMBOL = "candidate"


@dataclass(frozen=True)
class Jobs:
    """The functions that workers run, as "module:function"."""

    warm_up: str = "autosched.codegen.build_jobs:warm_up"
    prepare: str = "autosched.codegen.build_jobs:prepare"
    build: str = "autosched.codegen.build_jobs:build"
    measure: str = "autosched.codegen.measure_jobs:measure"
    together: str = "autosched.codegen.measure_jobs:measure_together"
    side: str = "autosched.codegen.measure_jobs:side"
    packages: tuple[str, ...] = ("autosched",)


@dataclass(frozen=True)
class Limits:
    """Seconds after which a job is killed, and of timed running for each candidate.

    rounds: of finalists against each other; pair_rounds: of the winner against the peer.
    """

    prepare_s: float = 120.0
    build_s: float = 10.0
    measure_s: float = 10.0
    timing_s: float = 0.05
    final_s: float = 0.1
    rounds: int = 6
    pair_rounds: int = 3


@dataclass(frozen=True)
class Built:
    """A compiled candidate: a library file, a symbol in it, its arguments and source."""

    library: str
    symbol: str
    args: tuple[Mapping[str, Any], ...]
    source: str = field(default="", repr=False)

    def to_json(self) -> dict[str, Any]:
        return {"library": self.library, "symbol": self.symbol, "args": list(self.args)}

    @property
    def text(self) -> str:
        """Canonical JSON."""
        return json.dumps(self.to_json(), sort_keys=True)


@dataclass(frozen=True)
class BuiltModule:
    """A compiled GPU candidate: the folder of its build, and the type whose error bound its
    arithmetic asks for, where that is coarser than the outputs'."""

    entry: str
    bound: str | None


@dataclass(frozen=True)
class Attempt:
    """What became of one schedule. timing: where status is OK and something measures; error:
    where it is not; facts: of the compiled code, as the compiler tells them."""

    schedule: Schedule
    status: Status
    timing: Timing | None = None
    error: str | None = None
    rel_l2: float | None = None
    build_s: float = 0.0
    run_s: float = 0.0
    built: Built | BuiltModule | None = None
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status is Status.OK


JOBS, LIMITS = Jobs(), Limits()


class AnyLab(Protocol):
    """What a search needs of a lab, whatever is built there."""

    def warm_up(self) -> None: ...

    def prepare(self, tasks: Mapping[str, Program]) -> dict[str, str]: ...

    def attempt(
        self, key: str, program: Program, schedules: Sequence[Schedule],
        stop_above_us: float | None = None,
    ) -> Iterator[Attempt]: ...  # fmt: skip

    def build(self, key: str, schedules: Sequence[Schedule]) -> list[Attempt]: ...

    def finals(self, key: str, attempts: Sequence[Attempt]) -> list[Timing] | None: ...


class ScratchFullError(TuningError):
    """No room for libraries and arrays of candidates."""

    def __init__(self) -> None:
        super().__init__(f"{tempfile.gettempdir()} is full: make room there, or set TMPDIR to "
                         "another place")  # fmt: skip


class Lab:
    """Worker processes and the folders of the tasks; use as a context manager.

    folder: scratch space of this run. seed: of the inputs. target: as parse_target takes it.
    """

    def __init__(
        self, folder: Path, target: str, threads: int, seed: int = 0, *, build_workers: int = 2,
        jobs: Jobs = JOBS, limits: Limits = LIMITS,
    ) -> None:  # fmt: skip
        self.folder, self.target, self.threads, self.seed = folder, target, threads, seed
        self.jobs, self.limits = jobs, limits
        self._numbers = itertools.count()
        self._build_workers = build_workers
        # References use all cores: BLAS there may have as many threads as it likes.
        self._builders = WorkerPool(
            build_workers, limits.build_s, packages=jobs.packages,
            preload=("autosched.codegen.build_jobs",),
        )  # fmt: skip
        self._measurer = WorkerPool(
            1, limits.measure_s, packages=jobs.packages,
            preload=("autosched.codegen.measure_jobs",),
            env={"TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": "1",
                 "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip

    def close(self) -> None:
        """Ends the workers; what they were doing is lost."""
        self._builders.close()
        self._measurer.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def warm_up(self) -> None:
        """Has the workers load what they need; returns at once."""
        for _ in range(self._build_workers):
            self._builders.submit(Job(self.jobs.warm_up, {}, Stage.BUILD, self.limits.prepare_s))

    # -- tasks -----------------------------------------------------------------------------

    def place(self, key: str) -> Path:
        """The folder of the task with this workload key."""
        return self.folder / key[:32]

    def prepare(self, tasks: Mapping[str, Program]) -> dict[str, str]:
        """Makes inputs and references of the tasks, several at once; why, for those that fail."""
        todo = {k: p for k, p in tasks.items() if not has_data(self.place(k))}
        try:
            for key, program in todo.items():
                write_program(self.place(key), program)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise ScratchFullError from error
            raise
        jobs = [
            Job(self.jobs.prepare, {"folder": str(self.place(key)), "seed": self.seed},
                Stage.RUN, self.limits.prepare_s)
            for key in todo
        ]  # fmt: skip
        return {
            key: outcome.reason
            for key, outcome in zip(todo, _usable(self._builders.map(jobs)))
            if isinstance(outcome, Failed)
        }

    # -- candidates ------------------------------------------------------------------------

    def attempt(
        self, key: str, program: Program, schedules: Sequence[Schedule],
        stop_above_us: float | None = None,
    ) -> Iterator[Attempt]:  # fmt: skip
        """Builds all schedules, then measures one after the other; an Attempt for each, in order.

        stop_above_us: candidates slower than this are timed by a few runs only.
        """
        failed = self.prepare({key: program})
        if failed:
            why = f"the reference can't be computed: {failed[key]}"
            yield from (Attempt(s, Status.RUN_FAILED, error=why) for s in schedules)
            return
        for attempt in self.build(key, schedules):
            yield attempt if attempt.built is None else self._measure(key, attempt, stop_above_us)

    def build(self, key: str, schedules: Sequence[Schedule]) -> list[Attempt]:
        """Compiles schedules, many in one library; an Attempt for each, OK where it is built."""
        pairs = [(schedule, f"{SYMBOL}{next(self._numbers)}") for schedule in schedules]
        share = -(-len(pairs) // self._workers())
        chunks = [pairs[n : n + share] for n in range(0, len(pairs), max(share, 1))]
        jobs = [self._build_job(key, chunk) for chunk in chunks]
        out: list[Attempt] = []
        for chunk, job, outcome in zip(chunks, jobs, _usable(self._builders.map(jobs))):
            if isinstance(outcome, Failed) and len(chunk) > 1:
                # One of them kills the worker or the library: each on its own shows which.
                singles = [self._build_job(key, [pair]) for pair in chunk]
                for pair, single, alone in zip(
                    chunk, singles, _usable(self._builders.map(singles))
                ):
                    out += _built([pair], single, alone)
            else:
                out += _built(chunk, job, outcome)
        return out

    def compile(
        self, wanted: Sequence[tuple[str, Schedule, str]], target: str, sources: bool = False
    ) -> list[Attempt]:
        """Compiles (task, schedule, symbol) each into a library of its own, for any target."""
        jobs = [self._build_job(k, [(s, symbol)], target, sources) for k, s, symbol in wanted]
        out: list[Attempt] = []
        outcomes = _usable(self._builders.map(jobs))
        for (_, schedule, symbol), job, outcome in zip(wanted, jobs, outcomes):
            out += _built([(schedule, symbol)], job, outcome)
        return out

    def finals(self, key: str, attempts: Sequence[Attempt]) -> list[Timing] | None:
        """Times attempts that were measured well, interleaved; None where a worker fails."""
        rows = [a.built.to_json() for a in attempts if isinstance(a.built, Built)]
        kwargs = {
            "folder": str(self.place(key)), "candidates": rows, "threads": self.threads,
            "target_time_s": self.limits.final_s, "rounds": self.limits.rounds,
        }  # fmt: skip
        outcome = self._measurer.run(Job(self.jobs.together, kwargs, Stage.RUN,
                                         self.limits.measure_s * max(len(rows), 1)))  # fmt: skip
        return [Timing.from_json(t) for t in outcome.value] if isinstance(outcome, Ok) else None

    def side(self, key: str, built: Built) -> Side:
        """A candidate as one side of a paired measurement."""
        return Side(self._measurer, self.jobs.side, {
            "folder": str(self.place(key)), "candidate": built.text, "threads": self.threads,
        })  # fmt: skip

    # -- inside ----------------------------------------------------------------------------

    def _workers(self) -> int:
        return self._build_workers

    def _build_job(
        self, key: str, pairs: Sequence[tuple[Schedule, str]], target: str | None = None,
        sources: bool = False,
    ) -> Job:  # fmt: skip
        library = self.place(key) / f"{next(self._numbers)}.so"
        kwargs = {
            "folder": str(self.place(key)), "schedules": [s.to_json() for s, _ in pairs],
            "symbols": [name for _, name in pairs], "target": target or self.target,
            "library": str(library), "sources": sources,
        }  # fmt: skip
        limit = self.limits.build_s * (1 + len(pairs) / 8)
        return Job(self.jobs.build, kwargs, Stage.BUILD, limit)

    def _measure(self, key: str, attempt: Attempt, stop_above_us: float | None) -> Attempt:
        assert isinstance(attempt.built, Built)
        kwargs = {
            "folder": str(self.place(key)), **attempt.built.to_json(), "threads": self.threads,
            "target_time_s": self.limits.timing_s, "stop_above_us": stop_above_us,
        }  # fmt: skip
        outcome = self._measurer.run(Job(self.jobs.measure, kwargs, Stage.RUN))
        ran = replace(attempt, run_s=outcome.run_s)
        if isinstance(outcome, Failed):
            return replace(ran, status=outcome.status, error=outcome.reason)
        timing = Timing.from_json(outcome.value["timing"])
        return replace(ran, timing=timing, rel_l2=outcome.value["rel_l2"])


def _usable(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The outcomes, until one says that the disk is full: that is no schedule's fault."""
    for outcome in outcomes:
        if isinstance(outcome, Failed) and os.strerror(errno.ENOSPC) in outcome.reason:
            raise ScratchFullError
        yield outcome


def _built(
    pairs: Sequence[tuple[Schedule, str]], job: Job, outcome: Outcome
) -> list[Attempt]:
    """The attempts of one build job."""
    each_s = outcome.run_s / len(pairs)
    if isinstance(outcome, Failed):
        return [Attempt(s, outcome.status, error=outcome.reason, build_s=each_s) for s, _ in pairs]
    out = []
    for (schedule, _), row in zip(pairs, outcome.value, strict=True):
        if "illegal" in row:
            status = Status.UNSUPPORTED if row["illegal"] == "BACKEND" else Status.ILLEGAL
            error = f"{row['illegal']}: {row['why']}"
            out.append(Attempt(schedule, status, error=error, build_s=each_s))
        else:
            built = Built(job.kwargs["library"], row["symbol"], tuple(row["args"]), row["source"])
            out.append(Attempt(schedule, Status.OK, build_s=each_s, built=built))
    return out
