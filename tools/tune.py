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

from autosched.codegen.artifact import Artifact
from autosched.codegen.package import Written, check_folder, module_name, write_package
from autosched.datasets.store import Store
from autosched.ir.frontend.onnx import load_model
from autosched.ir.graph import ModelGraph
from autosched.ir.partition import Partition, partition
from autosched.ir.record import CHECKED_REFERENCE
from autosched.ir.target import Target, TargetError, host_target, parse_target
from autosched.tools.campaign import Bench, Book, Entry, TaskState, open_task
from autosched.tools.explore import Explorer
from autosched.tools.lab import JOBS, LIMITS, Jobs, Lab, Limits
from autosched.tools.learner import Learner
from autosched.tools.packages import model_origin
from autosched.tools.peers import Peer, peer_name
from autosched.tools.plan import plan_model, run_time_tasks
from autosched.tools.stopping import Stopper
from autosched.tools.toolchain import toolchain
from autosched.tools.tuning import (
    Progress,
    StageEvent,
    TaskResult,
    TuningError,
    TuningResult,
    silent,
)
from autosched.tools.winners import Choice, compile_winners

TRIAL_S = 0.15  # to build, check and time one candidate, measured on small models
FINAL_S, WRITE_S = 1.5, 3.0  # of a task's final measurements; of compiling and writing
KEPT_FOR_FINALS = 0.4  # of a budget, at most


def tune(
    model: Path | str, out: Path | str, *, target: str = "auto", budget_s: float = 120.0,
    trials: int | None = None, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0,
    store: Path | str | None = None, resume: bool = False, dry_run: bool = False,
    progress: Progress = silent, jobs: Jobs = JOBS, limits: Limits = LIMITS,
) -> TuningResult:  # fmt: skip
    """Tunes a model's kernels and writes them to the folder `out`.

    Args:
        model: an ONNX file. out: a new or empty folder.
        target: "auto", "cpu" or "cpu:x86-64-v3"; measured on this machine.
        budget_s: seconds from the call on; the batch that is being measured is finished.
        trials: candidates to measure instead of a time; 0 takes the model's pick of each task.
        shapes: of inputs with free dimensions, by name.
        seed: of everything that is drawn; equal seeds and records make equal choices.
        store: file of the records; the user's own by default. What it knows is not measured again.
        resume: go on from an interrupted run: its trials count as trials of this one.
        dry_run: stop before anything is measured or written.
        progress: called with each Event, in this thread.
    Raises: ModelError, TargetError, StoreError, PackageError: a user's mistakes, each with a way
    out; KeyboardInterrupt at the second Ctrl-C, or before anything was measured.
    """
    begun = time.monotonic()
    chosen = _usable_target(target)
    folder = check_folder(out)
    clock = _Clock(progress)
    given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    with clock.stage("import", str(model)):
        graph = load_model(model, given)
    with clock.stage("partition"):
        cut = partition(graph, chosen)
        tasks = run_time_tasks(cut)
    with clock.stage("rank", f"{len(tasks)} tasks"):
        learner = Learner(seed)
        states = [open_task(task, chosen, seed, learner.model) for task in tasks]
    run = _Run(Path(model), given, target, chosen, graph, cut, states, seed, progress, clock,
               learner)  # fmt: skip
    if dry_run:
        return run.result(None, None, estimate_s=_estimate_s(states, budget_s, trials))
    with Store(store) as records, tempfile.TemporaryDirectory(prefix="autosched-") as scratch:
        bench = Bench(chosen, toolchain(), chosen.cores, seed)
        book = Book(records, bench)
        run = replace(run, store=str(records.path), reused=sum(map(book.recall, states)))
        learner.read(records, bench, states)
        for state in states:
            progress(state.event())
        stopper = Stopper(None if trials is not None else budget_s, begun)
        with (
            Lab(Path(scratch), target, chosen.cores, seed, jobs=jobs, limits=limits) as lab,
            Peer(Path(scratch)) as peer, stopper,
        ):  # fmt: skip
            written = _tuned(run, lab, peer, book, stopper, trials, resume, folder)
    return written


@dataclass(frozen=True)
class _Run:
    """The facts of one call that all stages need."""

    model: Path
    shapes: Mapping[str, tuple[int, ...]]
    target_name: str
    target: Target
    graph: ModelGraph
    cut: Partition
    states: Sequence[TaskState]
    seed: int
    progress: Progress
    clock: _Clock
    learner: Learner
    store: str = ""
    reused: int = 0

    def result(
        self, written: Written | None, choices: Mapping[str, Entry] | None, *,
        interrupted: bool = False, stopped: str = "", estimate_s: float | None = None,
    ) -> TuningResult:  # fmt: skip
        times = [s.task.count * (s.peer_us or s.best_us or s.roofline_us) for s in self.states]
        total = sum(times) or 1.0
        tasks = tuple(
            _task_result(s, us / total, (choices or {}).get(s.key))
            for s, us in zip(self.states, times)
        )
        coverage = self.graph.coverage
        return TuningResult(
            str(self.model), self.target.name, self.target.device, self.target.cores, self.seed,
            coverage.line(), coverage.share, tasks, written.folder if written else None,
            written.digest if written else None, self.store, dict(self.clock.seconds),
            sum(s.new_tries for s in self.states), self.reused, self.learner.name, stopped,
            interrupted, estimate_s,
        )  # fmt: skip


class _Clock:
    """Announces stages and adds up their seconds."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, detail: str = "", left_s: float | None = None) -> Iterator[None]:
        self.progress(StageEvent(name, detail, left_s))
        begun = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begun
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)


def _usable_target(text: str) -> Target:
    target, host = parse_target(text), host_target()
    if target.kind != "cpu":
        raise TargetError(f"target {text!r}: kernels are tuned for CPUs; use --target cpu")
    if missing := target.lacks(host):
        raise TargetError(
            f"target {text!r} needs {', '.join(missing)}, which this CPU lacks: kernels are "
            "measured where they are tuned; use --target auto, or tune on such a machine"
        )
    return target


def _estimate_s(states: Sequence[TaskState], budget_s: float, trials: int | None) -> float:
    if trials is None:
        return budget_s
    return round(5.0 + len(states) * FINAL_S + max(trials, len(states)) * TRIAL_S, 1)


# ---- stages -------------------------------------------------------------------------------------


def _tuned(
    run: _Run, lab: Lab, peer: Peer, book: Book, stopper: Stopper, trials: int | None,
    resume: bool, folder: Path,
) -> TuningResult:  # fmt: skip
    clock, states = run.clock, run.states
    for state in states:
        book.recall_peer(state, peer_name())
    with clock.stage("peer", peer_name(), stopper.left_s):
        lab.warm_up()
        if trials != 0 or any(s.peer_us is None for s in states):
            peer.extract(run.model, run.shapes, run.target_name, run.seed)
        failed = lab.prepare({s.key: s.task.program for s in states})
        _refuse(failed)
        _time_peers(run, peer, book, stopper)
    explorer = Explorer(states, lab, book, run.learner, stopper, run.progress)
    with clock.stage("tune", f"{len(states)} tasks", stopper.left_s):
        stopped = explorer.search(_reserve_s(run, stopper), trials, resume)
        choices = {s.key: explorer.pick(s) for s in states}
    if trials != 0:
        with clock.stage("final", f"{len(states)} tasks", stopper.left_s):
            for state in (s for s in states if stopper.has(WRITE_S)):
                choices[state.key] = explorer.finals(state)
                explorer.pair(state, choices[state.key], peer)
                run.progress(state.event(left_s=stopper.left_s))
    with clock.stage("compile", f"{len(states)} kernels", stopper.left_s):
        kernels = compile_winners(
            lab, run.target,
            [Choice(s.task, choices[s.key].schedule, s.paired_us or choices[s.key].latency_us,
                    s.peer_us) for s in states],
            book.bench.toolchain,
        )  # fmt: skip
    with clock.stage("write", str(folder), stopper.left_s):
        planned = plan_model(run.graph, run.cut, kernels)
        artifact = Artifact(
            tuple(kernels.values()), planned.plan, planned.weights, threads=run.target.cores
        )
        name = module_name(folder.name)
        summary = f"Tuned kernels of {run.model.name} for {run.target.device}"
        origin = {**model_origin(run.model), "seed": run.seed, "target": run.target_name}
        written = write_package(artifact, folder, name, summary=summary, origin=origin)
    result = run.result(written, choices, interrupted=stopper.asked, stopped=stopped)
    run.progress(StageEvent("done", str(folder), stopper.left_s))
    return result


def _refuse(failed: Mapping[str, str]) -> None:
    """A task without a reference can't be checked, hence not tuned."""
    for key, why in failed.items():
        if "No space left" in why:
            raise TuningError(
                f"{tempfile.gettempdir()} is full: make room there, or set TMPDIR to another place"
            )
        raise TuningError(f"the reference of task {key[:12]} can't be computed: {why}")


def _time_peers(run: _Run, peer: Peer, book: Book, stopper: Stopper) -> None:
    for state in run.states:
        if state.peer_us is None and stopper.has(0.0):
            timing = peer.time(state.key)
            if timing is not None:
                book.note_peer(state, peer_name(), timing)
        run.progress(state.event(left_s=stopper.left_s))


def _reserve_s(run: _Run, stopper: Stopper) -> float:
    """Seconds to keep for finals, compiling and writing; none where time is no limit."""
    left = stopper.left_s
    return 0.0 if left is None else min(WRITE_S + FINAL_S * len(run.states), KEPT_FOR_FINALS * left)


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
        knobs=dict(schedule.knobs), schedule=schedule.to_json(), checked=CHECKED_REFERENCE,
    )  # fmt: skip
