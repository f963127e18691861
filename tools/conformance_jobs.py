"""A job of the conformance workers: cases in folders in, what is wrong with each out.

Each case is imported, partitioned, scheduled, compiled by TVM and run through ctypes on its own
inputs, step by step, constant steps too; no interpreter and no other runtime takes part in its
answer. Kernels of all the cases of a job share one library.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autosched.codegen.build import BuiltKernel, Request, compile_kernels
from autosched.codegen.check import Comparison
from autosched.codegen.jobs import JobFailure
from autosched.codegen.measure_jobs import bind, compare_stored, run_guarded
from autosched.codegen.runtime.arrays import STORAGE
from autosched.codegen.task_files import TaskData
from autosched.ir.graph import ModelError, ModelGraph
from autosched.ir.node import Program
from autosched.ir.partition import IslandStep, KernelStep, Partition, Task, partition
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, Sketch
from autosched.ir.sketches import sketches
from autosched.ir.target import Target, host_target
from autosched.tools.onnx_cases import Case, import_case, read_case

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """What became of a case. problem: what is wrong, "" where all is right; outside: why it is
    not ours at all; kernels: how many distinct ones ran."""

    name: str
    family: str
    problem: str = ""
    outside: str = ""
    kernels: int = 0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class _Build:
    """A case on its way: each variant names the kernel of every task by its symbol."""

    case: Case
    graph: ModelGraph | None = None
    steps: Partition | None = None
    variants: list[dict[str, str]] = field(default_factory=list)
    problem: str = ""
    outside: str = ""


def check(
    folders: Sequence[str], threads: int, more: int = 0, seed: int = 0
) -> list[dict[str, Any]]:
    """A Verdict as JSON for each case.

    Every task runs by the middle row of its first sketch, and by `more` rows of any sketch, drawn
    by `seed`.
    """
    target = host_target()
    requests = _Requests(target)
    builds = [_prepare(read_case(Path(f)), requests, more, seed, target) for f in folders]
    kernels = requests.compiled()
    with tempfile.TemporaryDirectory(prefix="autosched-") as folder:
        libraries = _Libraries(Path(folder))
        return [_verdict(b, kernels, libraries, threads).to_json() for b in builds]


# ---- import and schedules ----------------------------------------------------------------------


class _Requests:
    """The kernels to compile, each (task, schedule) once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.requests: dict[tuple[str, str], Request] = {}
        self.sketches: dict[str, tuple[Sketch, ...]] = {}

    def of(self, task: Task) -> tuple[Sketch, ...]:
        if task.key not in self.sketches:
            self.sketches[task.key] = sketches(task.program, self.target)
        return self.sketches[task.key]

    def symbol(self, task: Task, schedule: Schedule) -> str:
        key = (task.key, schedule.text)
        if key not in self.requests:
            name = f"k{len(self.requests)}"
            self.requests[key] = Request(task.program, schedule, name)
        return self.requests[key].symbol

    def compiled(self) -> dict[str, BuiltKernel | str]:
        """By symbol the kernel, or why there is none."""
        wanted = list(self.requests.values())
        return {r.symbol: k for r, k in zip(wanted, _compiled(wanted, self.target))}


def _compiled(wanted: Sequence[Request], target: Target) -> list[BuiltKernel | str]:
    try:
        built = compile_kernels(wanted, target)
    except Exception as error:  # of TVM: one kernel spoils the library of all
        if len(wanted) == 1:
            return [f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"]
        half = len(wanted) // 2
        return [*_compiled(wanted[:half], target), *_compiled(wanted[half:], target)]
    return [f"{k.code}: {k.why}" if isinstance(k, Illegal) else k for k in built]


def _prepare(
    case: Case, requests: _Requests, more: int, seed: int, target: Target
) -> _Build:
    try:
        graph = import_case(case)
    except ModelError as error:
        return _Build(case, outside=str(error))
    if graph.islands:
        return _Build(case, outside="; ".join(o.reason for o in graph.coverage.outside))
    steps = partition(graph, target)
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    build = _Build(case, graph, steps)
    for n in range(1 + more):
        chosen: dict[str, str] = {}
        for task in steps.tasks:
            schedule = choose(requests.of(task), rng if n else None)
            if schedule is None:
                build.problem = f"{task.public_name} has no legal schedule"
                return build
            chosen[task.key] = requests.symbol(task, schedule)
        build.variants.append(chosen)
    return build


def choose(found: Sequence[Sketch], rng: np.random.Generator | None) -> Schedule | None:
    """The middle row of the first sketch that has one; with `rng`, any row of any sketch."""
    order = range(len(found)) if rng is None else rng.permutation(len(found))
    for n in order:
        table = found[n].table()
        rows = len(next(iter(table.values())))
        if rows:
            row = rows // 2 if rng is None else int(rng.integers(rows))
            knobs = {name: int(column[row]) for name, column in table.items() if name}
            return found[n].schedule(knobs)
    return None


# ---- running -----------------------------------------------------------------------------------


class _Libraries:
    """Shared objects as files, each written once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: dict[bytes, Path] = {}

    def path(self, content: bytes) -> Path:
        if content not in self.paths:
            self.paths[content] = self.folder / f"{len(self.paths)}.so"
            self.paths[content].write_bytes(content)
        return self.paths[content]


def _verdict(
    build: _Build, kernels: Mapping[str, BuiltKernel | str], libraries: _Libraries, threads: int
) -> Verdict:
    name, family = build.case.name, build.case.family
    used = {symbol for chosen in build.variants for symbol in chosen.values()}
    problem = build.problem
    for chosen in build.variants:
        problem = problem or _wrong(build, chosen, kernels, libraries, threads)
    return Verdict(name, family, problem, build.outside, len(used))


def _wrong(
    build: _Build, chosen: Mapping[str, str], kernels: Mapping[str, BuiltKernel | str],
    libraries: _Libraries, threads: int,
) -> str:  # fmt: skip
    """What is wrong with a case under one choice of schedules, or ""."""
    assert build.graph is not None and build.steps is not None
    values = {name: storage(w.load(), w.dtype) for name, w in build.graph.weights.items()}
    for node in build.graph.inputs:
        name, _, dtype, _ = node.attr
        values[name] = storage(build.case.feed[name], dtype)
    for step in build.steps.steps:
        assert not isinstance(step, IslandStep)
        kernel = kernels[chosen[step.task]]
        task = build.steps.task(step.task)
        if isinstance(kernel, str):
            return f"{task.public_name}: {kernel}"
        try:
            values |= _run(step, task.program, kernel, values, libraries, threads)
        except JobFailure as failure:
            return f"{task.public_name}: {failure.reason}"
    return "; ".join(_off(build, values))


def _run(
    step: KernelStep, program: Program, kernel: BuiltKernel, values: Arrays,
    libraries: _Libraries, threads: int,
) -> Arrays:  # fmt: skip
    """The outputs of a step by the names of values."""
    given = {
        str(node.attr[0]): values[name].reshape([e for _, e in node.attr[1]])
        for node, name in zip(program.inputs, step.inputs, strict=True)
    }
    path = libraries.path(kernel.library)
    bound = bind(TaskData(given, {}), path, kernel.symbol, kernel.args, threads)
    run_guarded(bound)
    names = {o.name: name for o, name in zip(program.outputs, step.outputs, strict=True)}
    return {names[own]: array for own, array in bound.outputs.items()}


def _off(build: _Build, values: Arrays) -> Iterator[str]:
    """What each wrong output has that it should not."""
    assert build.graph is not None
    for value, want in zip(build.graph.outputs, build.case.expected, strict=True):
        dtype = value.node.dtype
        if want.dtype.name != dtype or want.shape != value.shape:
            yield f"{value.name}: {dtype}{value.shape}, wants {want.dtype}{want.shape}"
            continue
        got = values[value.name].reshape(value.shape)
        ref = want.astype(np.float64) if want.dtype.kind not in "biu" else want
        found: Comparison = compare_stored(got, ref)
        if not found.ok:
            yield f"{value.name}: {found.reason}"


def storage(array: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as kernels read it: dense, in the storage type of `dtype`."""
    array = np.ascontiguousarray(array)
    if array.dtype != STORAGE[dtype]:
        array = array.view(STORAGE[dtype])
    return array
