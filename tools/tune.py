"""A model in, a package of tuned kernels out.

import, partition, rank every task's space, time the peer on the same parts, then batch after
batch: choose a task and candidates, build them, check and time them, store what came out. At the
end the finalists are timed against each other and the winners are compiled and written.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autosched.codegen.artifact import Artifact, Kernel
from autosched.codegen.package import Written, check_folder, module_name, write_package
from autosched.datasets.store import Store
from autosched.ir.graph import ModelGraph
from autosched.ir.partition import Partition, partition
from autosched.ir.record import CHECKED_NONE, CHECKED_REFERENCE
from autosched.ir.target import Target
from autosched.tools.campaign import Book, Entry, TaskState, open_task
from autosched.tools.explore import Explorer
from autosched.tools.gpu_lab import GpuJobs
from autosched.tools.gpu_probe import find_device
from autosched.tools.lab import JOBS, LIMITS, BuiltModule, Jobs, Limits
from autosched.tools.learner import Learner
from autosched.tools.models import Model, name_of, open_model, stem_of
from autosched.tools.peers import Peer
from autosched.tools.plan import plan_model, run_time_tasks
from autosched.tools.stopping import Stopper
from autosched.tools.tuning import (
    Progress,
    StageEvent,
    TaskResult,
    TuningError,
    TuningResult,
    silent,
)
from autosched.tools.winners import Choice
from autosched.tools.workshop import (
    GPU_JOBS,
    Order,
    Probe,
    Workshop,
    usable_target,
    workshop,
)

TRIAL_S = 0.15  # to build, check and time one candidate, measured on small models
FINAL_S, WRITE_S = 1.5, 3.0  # of a task's final measurements; of compiling and writing
KEPT_FOR_FINALS = 0.4  # of a budget, at most


def tune(
    model: Any, example_inputs: Any = None, out: Path | str | None = None, *,
    example_kwargs: Mapping[str, Any] | None = None, target: str = "auto",
    budget_s: float = 120.0, trials: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0,
    store: Path | str | None = None, resume: bool = False, dry_run: bool = False,
    progress: Progress = silent, jobs: Jobs = JOBS, limits: Limits = LIMITS,
    probe: Probe = find_device, gpu_jobs: GpuJobs = GPU_JOBS,
) -> TuningResult:  # fmt: skip
    """Tunes a model's kernels and writes them to the folder `out`.

        tune("model.onnx", "tuned/")            tune(module, (x, mask), "tuned/")

    Args:
        model: an ONNX file; a torch.nn.Module, a torch.export.ExportedProgram or a .pt2 file of
            one. example_inputs: the arguments of a call of the module, whose shapes its kernels
            are tuned for; example_kwargs: those by name. Files take none.
        out: a new or empty folder, for files the second argument; by default one in the working
            directory with the model's name and "-tuned".
        target: "auto", "cpu" or "cpu:x86-64-v3", measured on this machine; "sm_90" or
            "sm_90+tf32", measured where there is such a GPU, else picked by the cost model.
        budget_s: seconds from the call on; the batch that is being measured is finished.
        trials: candidates to measure instead of a time; 0 takes the model's pick of each task.
        shapes: of inputs with free dimensions, by name.
        seed: of everything that is drawn; equal seeds and records make equal choices.
        store: file of the records; the user's own by default. What it knows is not measured again.
        resume: go on from an interrupted run: its trials count as trials of this one.
        dry_run: stop before anything is measured or written.
        progress: called with each Event, in this thread.
        probe: finds the GPU of this machine, for targets that are GPUs.
    Raises: ModelError, TargetError, StoreError, PackageError: a user's mistakes, each with a way
    out; KeyboardInterrupt at the second Ctrl-C, or before anything was measured.
    """
    stopper = Stopper(None if trials is not None else budget_s)
    chosen = usable_target(target)
    if isinstance(model, (str, Path)) and out is None:
        example_inputs, out = None, example_inputs  # a file's second argument is the folder
    named = Path(f"{stem_of(model)}-tuned") if out is None else out
    folder = check_folder(named)
    clock = _Clock(progress, stopper)
    given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    with clock.stage("import", name_of(model)):
        opened = open_model(model, given, example_inputs, example_kwargs)
    run = _Run(opened, given, target, chosen, seed, clock)
    if dry_run:
        return _result(run, _opened(run, Learner(seed)), estimate_s=(budget_s, trials))
    order = Order(opened, given, target, chosen, seed, jobs, limits, probe, gpu_jobs)
    with (
        Store(store) as records,
        tempfile.TemporaryDirectory(prefix="autosched-") as scratch,
        workshop(order, Path(scratch)) as shop,
    ):
        learner = Learner(seed)
        ready = _opened(run, learner)
        tuning = _Tuning(run, ready, shop, Book(records, shop.bench), learner, stopper)
        return tuning.finish(folder, trials, resume)


@dataclass(frozen=True)
class _Run:
    """The facts of one call."""

    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    target_name: str
    target: Target
    seed: int
    clock: _Clock

    @property
    def graph(self) -> ModelGraph:
        return self.model.graph


class _Clock:
    """Announces stages and adds up their seconds."""

    def __init__(self, progress: Progress, stopper: Stopper) -> None:
        self.progress, self.stopper = progress, stopper
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        self.progress(StageEvent(name, detail, self.stopper.left_s))
        begun = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begun
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)


@dataclass(frozen=True)
class _Opened:
    """What is tuned: the model in parts, each task with its space ranked."""

    cut: Partition
    states: tuple[TaskState, ...]


def _opened(run: _Run, learner: Learner) -> _Opened:
    with run.clock.stage("partition"):
        cut = partition(run.graph, run.target)
    tasks = run_time_tasks(cut)
    with run.clock.stage("rank", f"{len(tasks)} tasks"):
        states = tuple(open_task(t, run.target, run.seed, learner.model) for t in tasks)
    for state in states:
        run.clock.progress(state.event(left_s=run.clock.stopper.left_s))
    return _Opened(cut, states)


# ---- stages -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Tuning:
    """Everything at hand; `finish` takes it through the stages that measure and write."""

    run: _Run
    opened: _Opened
    shop: Workshop
    book: Book
    learner: Learner
    stopper: Stopper

    @property
    def states(self) -> tuple[TaskState, ...]:
        return self.opened.states

    def finish(self, folder: Path, trials: int | None, resume: bool) -> TuningResult:
        run, clock = self.run, self.run.clock
        reused = sum(map(self.book.recall, self.states))
        self.learner.read(self.book.store, self.book.bench, self.states)
        if self.shop.peer is None:
            self._prepare()
        else:
            with clock.stage("peer", self.shop.peer.name):
                self._prepare()
                self._time_peers(self.shop.peer)
        with self.stopper:
            search = self._search if self.shop.pick is None else self._pick
            stopped, chosen = search(trials, resume)
            with clock.stage("compile", f"{len(self.states)} kernels"):
                kernels = self.shop.winners([self._choice(s, chosen[s.key]) for s in self.states])
            with clock.stage("write", str(folder)):
                written = self._written(folder, kernels)
        done = replace(
            _result(run, self.opened, chosen, self.shop), package=written.folder,
            digest=written.digest, store=str(self.book.store.path), reused=reused,
            ranked_by=self.learner.name, stopped=stopped, interrupted=self.stopper.asked,
        )  # fmt: skip
        clock.progress(StageEvent("done", str(folder), self.stopper.left_s))
        return done

    def _search(self, trials: int | None, resume: bool) -> tuple[str, dict[str, Entry]]:
        """Why measuring stopped, and the best of each task."""
        clock = self.run.clock
        explorer = Explorer(
            self.states, self.shop.lab, self.book, self.learner, self.stopper, clock.progress
        )
        with clock.stage("tune", f"{len(self.states)} tasks"):
            stopped = explorer.search(self._reserve_s(), trials, resume)
            chosen = {s.key: explorer.pick(s) for s in self.states}
        if trials != 0:
            with clock.stage("final", f"{len(self.states)} tasks"):
                self._finals(explorer, chosen)
        return stopped, chosen

    def _pick(self, trials: int | None, resume: bool) -> tuple[str, dict[str, Entry]]:
        """The same where nothing can be measured."""
        assert self.shop.pick is not None
        with self.run.clock.stage("tune", f"{len(self.states)} tasks, picked by the model"):
            chosen = self.shop.pick(
                self.states, self.book, self.stopper, self.run.clock.progress
            )
        return "nothing to measure with", chosen

    def _prepare(self) -> None:
        """Inputs and references. A task without them can't be checked, hence not tuned."""
        failed = self.shop.lab.prepare({s.key: s.task.program for s in self.states})
        for state in (s for s in self.states if s.key in failed):
            raise TuningError(f"the reference of {state.task.public_name} can't be computed: "
                              f"{failed[state.key]}")  # fmt: skip

    def _time_peers(self, peer: Peer) -> None:
        for state in self.states:
            self.book.recall_peer(state, peer.name)
            if state.peer_us is None and self.stopper.has(0.0):
                timing = peer.time(state.key)
                if timing is not None:
                    self.book.note_peer(state, peer.name, timing)
            self.run.clock.progress(state.event(left_s=self.stopper.left_s))

    def _reserve_s(self) -> float:
        """Seconds to keep for finals, compiling and writing; none where time is no limit."""
        left = self.stopper.left_s
        wanted = WRITE_S + FINAL_S * len(self.states)
        return 0.0 if left is None else min(wanted, KEPT_FOR_FINALS * left)

    def _finals(self, explorer: Explorer, chosen: dict[str, Entry]) -> None:
        """The best few of each task against each other, then the winner against the peer; what
        matters most comes first, in case the time does not last."""
        for state in sorted(self.states, key=_time_us, reverse=True):
            if self.stopper.has(WRITE_S):
                chosen[state.key] = explorer.finals(state)
                if self.shop.peer is not None:
                    explorer.pair(state, chosen[state.key], self.shop.peer)
                self.run.clock.progress(state.event(left_s=self.stopper.left_s))

    def _choice(self, state: TaskState, entry: Entry) -> Choice:
        tuned_us = state.paired_us or entry.latency_us
        bound = entry.built.bound if isinstance(entry.built, BuiltModule) else None
        return Choice(state.task, entry.schedule, tuned_us, state.peer_us, entry.facts, bound)

    def _written(self, folder: Path, kernels: Mapping[str, Kernel]) -> Written:
        run = self.run
        planned = plan_model(run.graph, self.opened.cut, kernels)
        artifact = Artifact(
            tuple(kernels.values()), replace(planned.plan, call=run.model.tree), planned.weights,
            threads=self.shop.threads,
        )
        origin = {**run.model.origin, "seed": run.seed, "target": run.target_name}
        summary = f"Tuned kernels of {run.model.name} for {run.target.device}"
        name = module_name(folder.name)
        return write_package(artifact, folder, name, summary=summary, origin=origin)


# ---- results ------------------------------------------------------------------------------------


def _result(
    run: _Run, opened: _Opened, chosen: Mapping[str, Entry] | None = None,
    shop: Workshop | None = None, estimate_s: tuple[float, int | None] | None = None,
) -> TuningResult:  # fmt: skip
    """What is known without the package. estimate_s: budget and trials of a dry run."""
    states, coverage = opened.states, run.graph.coverage
    target = run.target if shop is None else shop.bench.target
    times = list(map(_time_us, states))
    total = sum(times) or 1.0
    tasks = tuple(
        _task_result(s, us / total, None if chosen is None else chosen[s.key])
        for s, us in zip(states, times)
    )
    estimate = None if estimate_s is None else _estimate_s(len(states), *estimate_s)
    return TuningResult(
        model=str(run.model.file or run.model.name), target=target.name, device=target.device,
        threads=target.cores if target.kind == "cpu" else 0,
        seed=run.seed, coverage=coverage.line(), covered=coverage.share, tasks=tasks,
        seconds=dict(run.clock.seconds), trials=sum(s.new_tries for s in states),
        estimate_s=estimate, measured=shop is None or shop.pick is None,
        peer="none" if target.kind == "gpu" else run.model.peer,
    )  # fmt: skip


def _time_us(state: TaskState) -> float:
    """Of the task in the whole model, as far as it is known."""
    return state.task.count * (state.peer_us or state.best_us or state.roofline_us)


def _estimate_s(tasks: int, budget_s: float, trials: int | None) -> float:
    """How long a run takes."""
    if trials is None:
        return budget_s
    return round(2 * WRITE_S + tasks * FINAL_S + max(trials, tasks) * TRIAL_S, 1)


def _task_result(state: TaskState, share: float, entry: Entry | None) -> TaskResult:
    t = state.task
    facts = TaskResult(
        t.key, t.public_name, t.doc, t.count, t.flops, state.roofline_us, share,
        state.pool.ranked, peer_us=state.peer_us, peer_from=state.peer_from, tries=state.tried,
        failures=state.failures,
    )  # fmt: skip
    if entry is None:
        return facts
    schedule = entry.schedule
    return replace(
        facts, tuned_us=state.paired_us or entry.latency_us,
        predicted_us=state.predicted_us(schedule), sketch=schedule.sketch,
        knobs=dict(schedule.knobs), schedule=schedule.to_json(),
        checked=CHECKED_NONE if entry.latency_us is None else CHECKED_REFERENCE,
    )  # fmt: skip
