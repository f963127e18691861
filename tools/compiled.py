"""A partition and schedules in, its steps run by compiled kernels: nothing else computes.

`Kernels` collects what is to be compiled, each (task, schedule) once, and compiles all of it into
one library; `run_steps` then runs a partition on arrays by the kernels chosen for its tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autosched.codegen.build import BuiltKernel, Request, compile_kernels
from autosched.codegen.jobs import JobFailure
from autosched.codegen.measure_jobs import bind, run_guarded
from autosched.codegen.runtime.arrays import STORAGE
from autosched.codegen.task_files import TaskData
from autosched.ir.partition import IslandStep, KernelStep, Partition, Task
from autosched.ir.record import Status
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, Sketch
from autosched.ir.sketches import sketches
from autosched.ir.target import Target

Arrays = dict[str, np.ndarray]
Choice = Mapping[str, str]  # the key of each task to the symbol of its kernel


class Kernels:
    """Kernels to be compiled for a target; `folder` holds their libraries."""

    def __init__(self, target: Target, folder: Path, threads: int) -> None:
        self.target, self.folder, self.threads = target, folder, threads
        self.requests: dict[tuple[str, str], Request] = {}
        self.sketches: dict[str, tuple[Sketch, ...]] = {}
        self.made: dict[str, BuiltKernel | str] = {}
        self.libraries: dict[bytes, Path] = {}

    def choose(self, part: Partition, rng: np.random.Generator | None) -> dict[str, str] | str:
        """A schedule for each task (see `choose`); or which task has none."""
        chosen = {}
        for task in part.tasks:
            if task.key not in self.sketches:
                self.sketches[task.key] = sketches(task.program, self.target)
            schedule = choose(self.sketches[task.key], rng)
            if schedule is None:
                return f"{task.public_name} has no legal schedule"
            chosen[task.key] = self.request(task, schedule)
        return chosen

    def request(self, task: Task, schedule: Schedule) -> str:
        """The symbol that the kernel of a task by a schedule will have."""
        key = (task.key, schedule.text)
        if key not in self.requests:
            name = f"k{len(self.requests)}"
            self.requests[key] = Request(task.program, schedule, name)
        return self.requests[key].symbol

    def compile(self) -> None:
        """Compiles what is not compiled yet."""
        wanted = [r for r in self.requests.values() if r.symbol not in self.made]
        self.made |= {r.symbol: k for r, k in zip(wanted, _compiled(wanted, self.target))}

    def kernel(self, symbol: str) -> tuple[BuiltKernel, Path]:
        """A kernel and the file of its library.

        Raises: JobFailure where it could not be compiled.
        """
        kernel = self.made[symbol]
        if isinstance(kernel, str):
            raise JobFailure(Status.BUILD_FAILED, kernel)
        if kernel.library not in self.libraries:
            path = self.folder / f"{len(self.libraries)}.so"
            path.write_bytes(kernel.library)
            self.libraries[kernel.library] = path
        return kernel, self.libraries[kernel.library]


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


def _compiled(wanted: Sequence[Request], target: Target) -> list[BuiltKernel | str]:
    """The kernels, or why there is none."""
    if not wanted:
        return []
    try:
        built = compile_kernels(wanted, target)
    except Exception as error:  # of TVM: one kernel spoils the library of all
        if len(wanted) == 1:
            return [f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"]
        half = len(wanted) // 2
        return [*_compiled(wanted[:half], target), *_compiled(wanted[half:], target)]
    return [f"{k.code}: {k.why}" if isinstance(k, Illegal) else k for k in built]


# ---- running -----------------------------------------------------------------------------------


def run_steps(part: Partition, chosen: Choice, kernels: Kernels, values: Arrays) -> Arrays:
    """All values after all steps, from those of inputs and weights, in storage types.

    Raises: JobFailure that names the task which fails.
    """
    values = dict(values)
    for step in part.steps:
        if isinstance(step, IslandStep):
            raise ValueError(f"{step.name} is not for kernels")
        task = part.task(step.task)
        try:
            values |= _run(step, task, kernels, chosen[task.key], values)
        except JobFailure as failure:
            reason = f"{task.public_name}: {failure.reason}"
            raise JobFailure(failure.status, reason) from failure
    return values


def _run(
    step: KernelStep, task: Task, kernels: Kernels, symbol: str, values: Arrays
) -> Arrays:
    kernel, library = kernels.kernel(symbol)
    given = {
        str(node.attr[0]): values[name].reshape([e for _, e in node.attr[1]])
        for node, name in zip(task.program.inputs, step.inputs, strict=True)
    }
    bound = bind(TaskData(given, {}), library, kernel.symbol, kernel.args, kernels.threads)
    run_guarded(bound)
    outputs = zip(task.program.outputs, step.outputs, strict=True)
    return {name: bound.outputs[o.name] for o, name in outputs}


def storage(array: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as kernels read it: dense, in the storage type of `dtype`."""
    array = np.ascontiguousarray(array)
    return array if array.dtype == STORAGE[dtype] else array.view(STORAGE[dtype])
