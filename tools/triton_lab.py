"""Schedules of a task in, attempts at them on a GPU out: a Lab whose candidates are Triton's.

All cores build; one process measures, if there is a GPU at all. Without one, an attempt ends
when its kernels are compiled and fit the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from autosched.codegen.jobs import Failed, Job, Ok, Stage
from autosched.codegen.measure import Timing
from autosched.codegen.reference import write_program
from autosched.ir.node import Program
from autosched.ir.record import Status
from autosched.ir.schedule import Schedule
from autosched.tools.gpu_lab import (
    Candidate,
    GpuAttempt,
    GpuJobs,
    GpuLab,
    GpuLimits,
    Setup,
    reason,
)
from autosched.tools.gpu_probe import Device
from autosched.tools.lab import Attempt, BuiltModule

_LAUNCHERS = {"cuda": "cubin", "cpu": "jit"}  # the interpreter has no machine code
_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {"cuda": {}, "cpu": {"TRITON_INTERPRET": "1"}}
_AGAINST = "autosched.codegen.gpu_definition:against_definition"
_DEFINITION = "definition.py"  # in a task's folder
_TOGETHER = "autosched.codegen.gpu_jobs:measure_together"


class TritonLab:
    """Worker processes and the folders of the tasks; use as a context manager.

    folder: scratch space of this run. target: as parse_target takes it. device: None builds only.
    """

    def __init__(
        self, folder: Path, target: str, seed: int, device: Device | None, *,
        builders: int | None = None, jobs: GpuJobs | None = None, limits: GpuLimits | None = None,
        lab: GpuLab | None = None,
    ) -> None:  # fmt: skip
        """lab: with its processes, where they are there already."""
        where = "cuda" if device is None else device.where
        self.target, self.seed, self.device = target, seed, device
        self._where = where
        self._lab = lab or GpuLab(
            folder, Setup(target, where, _LAUNCHERS[where], seed), builders=builders, jobs=jobs,
            limits=limits, measure=device is not None, measurer_env=_ENVIRONMENT[where],
        )  # fmt: skip

    def close(self) -> None:
        """Ends the workers; what they were doing is lost."""
        self._lab.close()

    def __enter__(self) -> TritonLab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def warm_up(self) -> None:
        """The process that measures has begun to make its context; nothing else to do."""

    def prepare(self, tasks: Mapping[str, Program]) -> dict[str, str]:
        """Writes the definitions of the tasks. Their references are made on the device, which
        holds one at a time, when a task's candidates are measured."""
        for key, program in tasks.items():
            write_program(self._lab.place(task_name(key)), program)
        return {}

    # -- candidates ------------------------------------------------------------------------

    def attempt(
        self, key: str, program: Program, schedules: Sequence[Schedule],
        stop_above_us: float | None = None,
    ) -> Iterator[Attempt]:  # fmt: skip
        """Builds all schedules and measures each when it is built; an Attempt for each.

        stop_above_us: candidates slower than this are timed by a few runs only.
        """
        self.prepare({key: program})
        if self.device is None:
            yield from self.build(key, schedules)
            return
        tickets = self._lab.submit_builds(task_name(key), self.target, _candidates(schedules))
        try:
            ready = self._lab.prepare(task_name(key))
            if isinstance(ready, Failed):
                why = f"the reference can't be computed: {reason(ready)}"
                yield from (Attempt(s, Status.RUN_FAILED, error=why) for s in schedules)
                return
            for made in self._lab.built(tickets):
                yield _attempt(self._lab.measure(task_name(key), made, stop_above_us)
                               if made.ok else made)  # fmt: skip
        finally:
            for ticket in tickets:
                ticket.cancel()

    def build(self, key: str, schedules: Sequence[Schedule]) -> list[Attempt]:
        """Compiles schedules; an Attempt for each, in order, OK where it is built and fits."""
        return list(self.build_all([(key, schedule) for schedule in schedules]))

    def build_all(self, wanted: Sequence[tuple[str, Schedule]]) -> Iterator[Attempt]:
        """Compiles schedules of several tasks, all at once; an Attempt for each, in order."""
        tickets = [
            self._lab.submit_builds(task_name(key), self.target, _candidates([schedule]))
            for key, schedule in wanted
        ]
        for some in tickets:
            yield from map(_attempt, self._lab.built(some))

    def finals(self, key: str, attempts: Sequence[Attempt]) -> list[Timing] | None:
        """Times attempts that were measured well, interleaved; None where that fails."""
        if self._lab.measurer is None:
            return None
        kwargs = {
            "folder": str(self._lab.place(task_name(key))), "seed": self.seed,
            "entries": [a.built.entry for a in attempts if isinstance(a.built, BuiltModule)],
            "device": self._where, "launcher": _LAUNCHERS[self._where],
            "target_time_s": self._lab.limits.final_s,
        }  # fmt: skip
        limit = self._lab.limits.versus_s
        outcome = self._lab.measurer.run(Job(_TOGETHER, kwargs, Stage.RUN, limit))
        return [Timing.from_json(t) for t in outcome.value] if isinstance(outcome, Ok) else None

    def against(
        self, key: str, built: BuiltModule, reference: str, operands: Sequence[str]
    ) -> float | None:
        """How long torch code of a task takes, as a multiple of what a build of it takes; None
        where nothing measures, or the code is not right.

        reference: the text of a file that defines `definition(*operands)`.
        """
        if self._lab.measurer is None:
            return None
        folder = self._lab.place(task_name(key))
        (folder / _DEFINITION).write_text(reference, "utf-8")
        kwargs = {
            "folder": str(folder), "entry": built.entry, "source": str(folder / _DEFINITION),
            "operands": list(operands), "seed": self.seed, "device": self._where,
            "launcher": _LAUNCHERS[self._where],
        }  # fmt: skip
        limit = self._lab.limits.versus_s
        outcome = self._lab.measurer.run(Job(_AGAINST, kwargs, Stage.RUN, limit))
        return outcome.value["ratio"] if isinstance(outcome, Ok) else None


def task_name(key: str) -> str:
    """The name of a task's folder."""
    return key[:32]


def _candidates(schedules: Sequence[Schedule]) -> list[Candidate]:
    return [Candidate(s.to_json()) for s in schedules]


def _attempt(made: GpuAttempt) -> Attempt:
    built = BuiltModule(made.entry, made.bound) if made.entry else None
    build_s = sum(made.seconds.get(n, 0.0) for n in ("compile_s", "lower_s", "build_s"))
    return Attempt(
        Schedule.from_json(made.candidate.schedule), made.status, made.timing, made.error,
        made.rel_l2, build_s, made.seconds.get("measure_s", 0.0), built, made.facts,
    )  # fmt: skip
