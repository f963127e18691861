"""Schedules of programs in, attempts at them on a GPU out: built, checked and timed in processes.

Builds run on all cores while the GPU measures what is built already. One process at a time uses
the device; spare ones are ready beside it, with the device's context made, and take over when a
kernel has spoilt the first. What a candidate does costs only itself.
"""

from __future__ import annotations

import copy
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from autosched.codegen.jobs import Failed, Job, Outcome, Stage
from autosched.codegen.measure import Timing
from autosched.codegen.reference import write_program
from autosched.codegen.triton_spec import TritonModule
from autosched.codegen.workers import Ticket, WorkerPool
from autosched.ir.node import Program
from autosched.ir.record import Status

REASON_CHARS = 2000  # of what a compiler said that a record keeps
_LOST = frozenset({Status.RUN_CRASHED, Status.RUN_TIMEOUT, Status.OUT_OF_MEMORY})
_LOST_MARKS = ("CUDA error", "illegal memory access", "device-side assert")


@dataclass(frozen=True)
class GpuJobs:
    """The functions that workers run, as "module:function"."""

    plan: str = "autosched.tools.gpu_plan:plan"
    build: str = "autosched.codegen.triton_jobs:build_schedule"
    build_module: str = "autosched.codegen.triton_jobs:build_module"
    warm_up: str = "autosched.codegen.gpu_jobs:warm_up"
    prepare: str = "autosched.codegen.gpu_jobs:prepare"
    measure: str = "autosched.codegen.gpu_jobs:measure"
    versus: str = "autosched.tools.gpu_peers:versus"
    ready: str = "autosched.codegen.triton_jobs:toolchain"
    builder_modules: tuple[str, ...] = ("autosched.codegen.triton_jobs",)
    measurer_modules: tuple[str, ...] = ("autosched.codegen.gpu_jobs", "autosched.tools.gpu_peers")
    packages: tuple[str, ...] = ("autosched",)


@dataclass(frozen=True)
class GpuLimits:
    """Seconds after which a job is killed, and of timed running for each candidate."""

    start_s: float = 120.0
    plan_s: float = 60.0
    build_s: float = 30.0
    prepare_s: float = 60.0
    measure_s: float = 20.0
    timing_s: float = 0.02
    versus_s: float = 60.0
    final_s: float = 0.1


@dataclass(frozen=True)
class Setup:
    """How measurements are made: what a record depends on beside the schedule."""

    target: str
    device: str = "cuda"  # or "cpu": Triton's interpreter
    launcher: str = "cubin"
    seed: int = 0
    cold: bool = False
    open_sizes: bool = False  # builds serve all tasks of a class: see `ir.open_extents`


@dataclass(frozen=True)
class Candidate:
    """A schedule as JSON, and by whom it was picked."""

    schedule: Mapping[str, Any]
    by: str = ""
    estimate_us: float | None = None


@dataclass(frozen=True)
class GpuAttempt:
    """What became of one candidate. entry: its build; bound: the type whose error bound its
    arithmetic asks for; facts: of its kernels; seconds: of each step."""

    candidate: Candidate
    status: Status
    timing: Timing | None = None
    error: str | None = None
    rel_l2: float | None = None
    entry: str = ""
    bound: str | None = None
    facts: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status is Status.OK


class Measurer:
    """Runs jobs one after the other in a process that holds the device, with spares beside it.

    recovery_s: the longest that a job waited for a process after the one before it was lost.
    """

    def __init__(self, jobs: GpuJobs, limits: GpuLimits, setup: Setup, env: Mapping[str, str],
                 spares: int = 2) -> None:  # fmt: skip
        self._warm_up = Job(jobs.warm_up, {"device": setup.device}, Stage.RUN, limits.start_s)
        self._pools = deque(
            WorkerPool(1, limits.measure_s, env=env, preload=jobs.measurer_modules,
                       packages=jobs.packages, recycle_after=1 << 30,
                       start_timeout_s=limits.start_s)
            for _ in range(1 + spares)
        )  # fmt: skip
        self._warm = [pool.submit(self._warm_up) for pool in self._pools]
        self.lost, self.recovery_s = 0, 0.0
        self._just_lost = False

    def device(self) -> Outcome:
        """What the device is; waits until the first process is ready."""
        return self._warm[0].result()

    def run(self, job: Job) -> Outcome:
        outcome = self._pools[0].run(job)
        if self._just_lost:
            self.recovery_s = max(self.recovery_s, outcome.queue_s)
        self._just_lost = isinstance(outcome, Failed) and is_lost(outcome)
        if self._just_lost:
            self.lost += 1
            self._pools.rotate(-1)
            self._pools[-1].submit(self._warm_up)  # starts its next process
        return outcome

    def close(self) -> None:
        for pool in self._pools:
            pool.close()


def is_lost(outcome: Failed) -> bool:
    """Whether the process that ran this is of no more use."""
    return outcome.status in _LOST or any(mark in outcome.reason for mark in _LOST_MARKS)


class GpuLab:
    """Worker processes and the folders of the tasks; use as a context manager.

    folder: scratch space of this run, and of the built modules.
    """

    def __init__(
        self, folder: Path, setup: Setup, *, builders: int | None = None,
        jobs: GpuJobs | None = None, limits: GpuLimits | None = None, measure: bool = True,
        measurer_env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """builders: processes, by default one for each core. measure: False builds only."""
        self.folder, self.setup = folder, setup
        self.jobs, self.limits = jobs or GpuJobs(), limits or GpuLimits()
        cores = len(os.sched_getaffinity(0))
        # The process that measures keeps a core, where there are some to share out.
        count = self._count = builders or (cores - 1 if measure and cores > 4 else cores)
        both = {"TRITON_CACHE_DIR": str(folder / "triton"), "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
        # A builder never sees the device; a measurer may use a few threads for what torch does.
        self._builders = WorkerPool(
            count, self.limits.build_s, env={**both, "CUDA_VISIBLE_DEVICES": ""},
            preload=self.jobs.builder_modules, packages=self.jobs.packages,
            start_timeout_s=self.limits.start_s,
        )  # fmt: skip
        self.measurer: Measurer | None = None
        if measure:
            env = {**both, **(measurer_env or {})}
            self.measurer = Measurer(self.jobs, self.limits, setup, env)

    def close(self) -> None:
        """Ends the workers; what they were doing is lost."""
        self._builders.close()
        if self.measurer is not None:
            self.measurer.close()

    def __enter__(self) -> GpuLab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def start_builders(self) -> None:
        """Has all builders start now, so that the first builds do not wait for them."""
        for _ in range(self._count):
            self._builders.submit(Job(self.jobs.ready, {}, Stage.BUILD))

    # -- tasks -----------------------------------------------------------------------------

    def beside(self, folder: Path) -> GpuLab:
        """The same processes with folders of their own: what was built here is not known there."""
        other = copy.copy(self)
        other.folder = folder
        return other

    def place(self, name: str) -> Path:
        return self.folder / "tasks" / name

    def submit_plan(self, name: str, program: Program, target: str, count: int) -> Ticket:
        """Has the schedules of a program chosen."""
        write_program(self.place(name), program)
        kwargs = {"folder": str(self.place(name)), "target": target, "count": count,
                  "seed": self.setup.seed}  # fmt: skip
        return self._builders.submit(Job(self.jobs.plan, kwargs, Stage.BUILD, self.limits.plan_s))

    def submit_builds(
        self, name: str, target: str, candidates: Sequence[Candidate],
        open_sizes: bool | None = None,
    ) -> dict[Ticket, Candidate]:  # fmt: skip
        """Has candidates built, in the background. open_sizes: other than the setup says."""
        cache = str(self.folder / "builds")
        wide = self.setup.open_sizes if open_sizes is None else open_sizes
        how = {"open_sizes": True} if wide else {}
        return {
            self._builders.submit(Job(
                self.jobs.build,
                {"folder": str(self.place(name)), "schedule": c.schedule, "target": target,
                 "cache": cache, "title": name, **how}, Stage.BUILD,
            )): c
            for c in candidates
        }  # fmt: skip

    def built(self, tickets: Mapping[Ticket, Candidate]) -> Iterator[GpuAttempt]:
        """Attempts as they are built: OK and with an entry, or how they failed."""
        for ticket in self._builders.as_completed(tickets):
            yield _built(tickets[ticket], ticket.result())

    def build_module(self, module: TritonModule, target: str) -> GpuAttempt:
        """Builds a module that is there already."""
        kwargs = {"module": module.to_json(), "target": target,
                  "cache": str(self.folder / "builds")}  # fmt: skip
        return _built(Candidate({}), self._builders.run(Job(
            self.jobs.build_module, kwargs, Stage.BUILD
        )))  # fmt: skip

    def prepare(self, name: str) -> Outcome:
        """Makes inputs and reference on the device."""
        kwargs = {"folder": str(self.place(name)), "seed": self.setup.seed,
                  "device": self.setup.device}  # fmt: skip
        return self._run(Job(self.jobs.prepare, kwargs, Stage.RUN, self.limits.prepare_s))

    def measure(
        self, name: str, attempt: GpuAttempt, stop_above_us: float | None = None
    ) -> GpuAttempt:
        """Checks and times what is built. A process that was lost makes the reference again."""
        setup = self.setup
        kwargs = {
            "folder": str(self.place(name)), "entry": attempt.entry, "seed": setup.seed,
            "device": setup.device, "launcher": setup.launcher, "cold": setup.cold,
            "bound": attempt.bound, "target_time_s": self.limits.timing_s,
            "stop_above_us": stop_above_us,
        }  # fmt: skip
        begun = time.monotonic()
        outcome = self._run(Job(self.jobs.measure, kwargs, Stage.RUN))
        seconds = {**attempt.seconds, "measure_s": round(time.monotonic() - begun, 4)}
        if isinstance(outcome, Failed):
            return replace(attempt, status=outcome.status, error=reason(outcome), seconds=seconds)
        value = outcome.value
        seconds |= {k: value[k] for k in ("load_s", "check_s", "time_s")}
        return replace(attempt, timing=Timing.from_json(value["timing"]),
                         rel_l2=value["rel_l2"], seconds=seconds)  # fmt: skip

    def versus(self, name: str, entries: Sequence[str], peers: Sequence[str]) -> Outcome:
        """The best builds and torch's calls against each other."""
        setup = self.setup
        kwargs = {
            "folder": str(self.place(name)), "entries": list(entries), "peers": list(peers),
            "seed": setup.seed, "device": setup.device, "launcher": setup.launcher,
            "target_time_s": self.limits.final_s,
        }  # fmt: skip
        return self._run(Job(self.jobs.versus, kwargs, Stage.RUN, self.limits.versus_s))

    def _run(self, job: Job) -> Outcome:
        assert self.measurer is not None, "this lab builds only"
        return self.measurer.run(job)


def _built(candidate: Candidate, outcome: Outcome) -> GpuAttempt:
    if isinstance(outcome, Failed):
        return GpuAttempt(candidate, outcome.status, error=reason(outcome),
                          seconds={"build_s": round(outcome.run_s, 4)})  # fmt: skip
    row = outcome.value
    if "illegal" in row:
        status = Status.UNSUPPORTED if row["illegal"] == "BACKEND" else Status.ILLEGAL
        return GpuAttempt(candidate, status, error=f"{row['illegal']}: {row['why']}")
    seconds = {k: row[k] for k in ("compile_s", "lower_s")}
    return GpuAttempt(candidate, Status.OK, entry=row["entry"], bound=row["bound"],
                      facts=row["facts"], seconds=seconds)  # fmt: skip


def reason(failed: Failed) -> str:
    """Why a job failed, and the last that it printed where the process died of it."""
    text = failed.reason
    if failed.status in (Status.BUILD_FAILED, Status.RUN_CRASHED) and "process" in text:
        text = f"{text}; it said: {failed.stderr_tail[-REASON_CHARS // 2 :].strip()}"
    return text[:REASON_CHARS]
