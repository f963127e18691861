"""A model in, what the compiler sees of it out: its tasks, or one task after each action."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autosched.codegen.build import Request, lower
from autosched.codegen.runtime.manifest import read
from autosched.codegen.triton import Header, emit
from autosched.costmodel.gbm import GbmModel
from autosched.ir.graph import ModelError
from autosched.ir.node import Program
from autosched.ir.partition import Task, partition
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, replay, run_actions
from autosched.ir.target import Target, parse_target
from autosched.ir.text import parse, to_text
from autosched.search.strategy import ask
from autosched.tools.campaign import open_task, plain_schedules
from autosched.tools.models import PROGRAM, open_model

LEVELS = ("algebra", "tile", "tvm", "triton")
SOURCES: Mapping[str, str] = {"cpu": "tvm", "gpu": "triton"}  # kind of a target: its last level


@dataclass(frozen=True)
class View:
    """A program as text, and what made it: "algebra", an action, "tvm" or "triton"."""

    title: str
    text: str


@dataclass(frozen=True)
class Row:
    """A task of the list. share: of the model's operations."""

    number: int
    name: str
    doc: str
    count: int
    gflops: float
    share: float


@dataclass(frozen=True)
class Showing:
    """rows: all tasks; views: of the task that was asked for, in order; schedule: its JSON."""

    coverage: str
    target: str
    rows: tuple[Row, ...]
    task: int | None = None
    schedule: Mapping[str, Any] | None = None
    views: tuple[View, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "coverage": self.coverage, "target": self.target,
            "tasks": [asdict(row) for row in self.rows], "task": self.task,
            "schedule": self.schedule, "views": [asdict(view) for view in self.views],
        }  # fmt: skip


def show(model: Path | str, *, task: int | None = None, level: str = "tile",
         shapes: Mapping[str, tuple[int, ...]] | None = None, target: str = "auto",
         kernels: Path | str | None = None) -> Showing:
    """The list of a model's tasks, or one of them at a level.

    Args: kernels: a package whose schedules, input shapes and target are taken.
    Raises: ModelError, TargetError, PackageError.
    """
    if level not in LEVELS:
        raise ModelError(f"--level {level!r}: the levels are {', '.join(LEVELS)}")
    known = dict(shapes or {})
    chosen: dict[str, Schedule] = {}
    if kernels is not None:
        manifest = read(kernels).data
        target = manifest["origin"].get("target", target) if target == "auto" else target
        plan = manifest["plan"]
        known = {v["name"]: tuple(v["shape"]) for v in plan["inputs"]} | known if plan else known
        chosen = {
            parse(k["definition"]).key: Schedule.from_json(k["schedule"])
            for k in manifest["kernels"]
        }
    device = parse_target(target)
    if level in SOURCES.values() and level != SOURCES[device.kind]:
        raise ModelError(f"--level {level}: kernels for {device.name} are written in "
                         f"{SOURCES[device.kind]}; use --level {SOURCES[device.kind]}")  # fmt: skip
    graph = open_model(model, {} if Path(model).suffix == PROGRAM else known).graph
    tasks = partition(graph, device).tasks
    total = sum(t.flops * t.count for t in tasks) or 1
    rows = tuple(
        Row(n, t.public_name, t.doc, t.count, t.flops / 1e9, t.flops * t.count / total)
        for n, t in enumerate(tasks)
    )
    if task is None:
        return Showing(graph.coverage.line(), device.name, rows)
    if task >= len(tasks):
        raise ModelError(f"--task {task}: the model has the tasks 0 to {len(tasks) - 1}")
    one = tasks[task]
    schedule = chosen.get(one.key) or default_schedule(one, device)
    views = tuple(_views(one, schedule, device, level))
    return Showing(graph.coverage.line(), device.name, rows, task, schedule.to_json(), views)


def default_schedule(task: Task, target: Target) -> Schedule:
    """The schedule that the cost model puts first before anything is measured."""
    state = open_task(task, target, 0, GbmModel(0))
    picks = ask(state.search, 1, state.score)
    found = [state.search.space.schedule(c) for c in picks] or plain_schedules(task, target)
    if not found:
        raise ModelError(f"{task.public_name} has no schedule for {target.name}: please report it")
    return found[0]


def _views(task: Task, schedule: Schedule, target: Target, level: str) -> Iterator[View]:
    program: Program | Illegal = task.program
    yield View("algebra", to_text(task.program))
    if level == "tile":
        for action in (a.bind(dict(schedule.knobs)) for a in schedule.actions):
            assert isinstance(program, Program)
            program = run_actions(program, (action,))
            if isinstance(program, Illegal):
                raise ModelError(
                    f"{action} does not apply here ({program.why}): the schedule is of another "
                    "version of autosched; tune again"
                )
            yield View(str(action), to_text(program))
    elif level in _SOURCE:
        source = _SOURCE[level](task, schedule, target)
        if isinstance(source, Illegal):
            raise ModelError(f"this schedule can't be compiled ({source.why}); tune again")
        yield View(level, source)


def _tvm(task: Task, schedule: Schedule, target: Target) -> str | Illegal:
    lowered = lower(Request(task.program, schedule, task.public_name), target)
    return lowered if isinstance(lowered, Illegal) else lowered.source


def _triton(task: Task, schedule: Schedule, target: Target) -> str | Illegal:
    tile = replay(task.program, schedule)
    if isinstance(tile, Illegal):
        return tile
    module = emit(tile, Header(task.doc, "", schedule.to_json()))
    return module if isinstance(module, Illegal) else module.source


_SOURCE: Mapping[str, Callable[[Task, Schedule, Target], str | Illegal]] = {
    "tvm": _tvm, "triton": _triton,
}  # fmt: skip
