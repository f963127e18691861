"""A whole tuned model: arrays by input name in, arrays by output name out.

Everything that can be done once is done at load: libraries, addresses of weights, one offset in an
arena for each value, and the argument objects of every call. A run then costs about half a
microsecond of Python for each kernel. Concurrent runs have a frame (arena and arguments) each.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import threads as workers
from .arrays import STORAGE, address, dense, empty, nbytes, public
from .errors import KernelFailedError, PackageError
from .face import Face
from .gpu_model import GpuModel
from .island import BoundIsland, Island
from .kernel import Kernel
from .kinds import code_of
from .manifest import Manifest, check_all, read
from .memory import lifetimes, plan
from .spec import NATIVE, TRITON, Plan, Step, Value, plan_from_json
from .steps import StepTime, StepValues, in_order, root_of
from .weights import FILE, Weights

Cells = dict[str, ctypes.c_void_p]


class _Layout:
    """Where the bytes of each name live: an alias is its root, a root is an input, a weight, an
    output (memory of the run's caller) or a value in the arena."""

    def __init__(self, plan_: Plan, steps: Sequence[Sequence[str]], spare: Mapping[str, int],
                 weights: Weights) -> None:
        self.aliases = plan_.aliases
        self.inputs = {v.name for v in plan_.inputs}
        self.values = {v.name: v for v in (*plan_.inputs, *plan_.values, *plan_.outputs)}
        roots = dict.fromkeys(self.root(v.name) for v in plan_.outputs)
        self.made = [self.values[r] for r in roots if r not in self.inputs and r not in weights]
        outside = {*self.inputs, *(v.name for v in self.made)}
        sizes = {
            v.name: nbytes(v.dtype, v.shape) for v in plan_.values
            if v.name not in outside and v.name not in self.aliases
        }  # fmt: skip
        touched = [[self.root(n) for n in names] for names in steps]
        self.offsets, self.size = plan(lifetimes({**sizes, **spare}, touched))

    def root(self, name: str) -> str:
        return root_of(name, self.aliases)


class _Frame:
    """Memory and bound arguments of one run at a time."""

    def __init__(self, model: Model) -> None:
        layout = model.layout
        self._arena = empty("uint8", (layout.size,))
        start = address(self._arena)
        self.cells: Cells = {
            name: ctypes.c_void_p(start + at) for name, at in layout.offsets.items()
        }
        for value in (*model.inputs, *layout.made):
            self.cells[value.name] = ctypes.c_void_p()
        self.calls = [self._bind(model, step, names) for step, names in model.steps]

    def cell(self, model: Model, name: str) -> ctypes.c_void_p:
        root = model.layout.root(name)
        if root not in self.cells:
            self.cells[root] = ctypes.c_void_p(model.weights.address(root))
        return self.cells[root]

    def _bind(self, model: Model, step: Step, names: Sequence[str]) -> tuple[Any, tuple[Any, ...]]:
        cells = [self.cell(model, name) for name in names]
        if step.kernel is not None:
            kernel = model.kernels[step.kernel]
            return kernel.function, (*cells, *kernel.extents)
        assert step.island is not None
        values = [model.value(name) for name in names]
        return BoundIsland(model.islands[step.island], list(zip(values, cells))).run, ()


class Model(Face):
    """A tuned model; `run` may be called from any thread, and after a fork.

    `inputs` and `outputs` say names, dtypes and shapes, `digest` names the package's every byte.
    """

    def __init__(self, manifest: Manifest, threads: int) -> None:
        plan_ = plan_from_json(manifest.data["plan"])
        self.digest = manifest.digest
        self.threads = threads
        self.inputs, self.outputs, self.tree = plan_.inputs, plan_.outputs, plan_.call
        table = manifest.data["weights"]
        self.weights = Weights(manifest.path(FILE) if table else None, table)
        used = {step.kernel for step in plan_.steps}
        self.kernels = {
            row["key"]: Kernel(manifest, row)
            for row in manifest.data["kernels"] if row["key"] in used
        }  # fmt: skip
        self.islands = {
            name: Island(name, manifest.path(file), threads)
            for name, file in manifest.data["plan"]["islands"].items()
        }
        loaded = [kernel.library.runtime for kernel in self.kernels.values()]
        self._runtime = next((r for r in loaded if r is not None), None)
        self.steps, spare = self._with_workspaces(plan_.steps)
        self.layout = _Layout(plan_, [names for _, names in self.steps], spare, self.weights)
        self._frames = [_Frame(self)]

    def _with_workspaces(
        self, steps: Sequence[Step]
    ) -> tuple[list[tuple[Step, list[str]]], dict[str, int]]:
        """Each step with a name for all its pointers, and the bytes of the workspaces."""
        named: list[tuple[Step, list[str]]] = []
        spare: dict[str, int] = {}
        for number, step in enumerate(steps):
            names = list(step.args)
            for place, arg in enumerate(self.kernels[step.kernel].args if step.kernel else ()):
                if arg.role == "workspace":
                    name = f"\0workspace {number} {arg.name}"  # no graph has such a name
                    names.insert(place, name)
                    spare[name] = nbytes(arg.dtype, arg.shape)
            named.append((step, names))
        return named, spare

    def value(self, name: str) -> Value:
        """Name, dtype and shape of an input, a value or a weight."""
        return self.weights.value(name) if name in self.weights else self.layout.values[name]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name, as new arrays of the caller's.

        Args: inputs: a NumPy array, torch tensor or DLPack object for each of `self.inputs`, of
            any strides and alignment; dense ones are read where they are.
        Raises InputError, KernelFailedError.
        """
        arrays = self._take(inputs)
        return self._call(partial(self._execute, arrays, _run_all))

    def profile(self, inputs: Mapping[str, Any], repeats: int = 20) -> tuple[StepTime, ...]:
        """The median time of each step over several runs, after one that warms up."""
        arrays = self._take(inputs)
        runs = []
        for _ in range(repeats + 1):
            times: list[int] = []
            self._call(partial(self._execute, arrays, partial(_run_timed, times)))
            runs.append(times)
        return tuple(
            StepTime(self._name(step), step.kernel, median(column) / 1e3)
            for (step, _), column in zip(self.steps, zip(*runs[1:]))
        )

    def trace(self, inputs: Mapping[str, Any]) -> Iterator[StepValues]:
        """Runs step by step, and yields copies of what each step read and wrote."""
        arrays = self._take(inputs)
        frame = _Frame(self)
        keep = self._aim(frame, arrays)
        for (step, _), call in zip(self.steps, frame.calls):
            self._call(partial(_run_all, [call]))
            copies = tuple(_copy(self.value(n), frame.cell(self, n)) for n in step.args)
            yield StepValues(self._name(step), step.kernel, copies)
        del keep

    def bound_step(self, inputs: Mapping[str, Any], number: int) -> Callable[[], None]:
        """One step of the plan, to be called again and again on what the steps before it made."""
        arrays = self._take(inputs)
        frame = _Frame(self)
        made = self._aim(frame, arrays)
        self._call(partial(_run_all, frame.calls[: number + 1]))
        return partial(self._call, _Held(frame.calls[number : number + 1], (frame, arrays, made)))

    def _name(self, step: Step) -> str:
        if step.kernel is None:
            return step.island or ""
        name: str = self.kernels[step.kernel].data["public_name"]
        return name

    def _call(self, function: Callable[[], Any]) -> Any:
        return workers.call(self._runtime, self.threads, function)

    def _take(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """Dense arrays in the order of `self.inputs`."""
        return [dense(x, v) for x, v in zip(in_order(inputs, self.inputs), self.inputs)]

    def _aim(self, frame: _Frame, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Points a frame at the inputs and at new memory for the outputs, which it returns."""
        made = {v.name: empty(v.dtype, v.shape) for v in self.layout.made}
        for value, array in zip(self.inputs, arrays):
            frame.cells[value.name].value = address(array)
        for name, array in made.items():
            frame.cells[name].value = address(array)
        return made

    def _execute(self, arrays: Sequence[np.ndarray], run: Callable[[Any], None]) -> dict[str, Any]:
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = _Frame(self)
        try:
            made = self._aim(frame, arrays)
            run(frame.calls)
        finally:
            self._frames.append(frame)
        return self._results(made, arrays)

    def _results(self, made: dict[str, np.ndarray], arrays: Sequence[np.ndarray]) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for value in self.outputs:
            root = self.layout.root(value.name)
            array = made.pop(root, None)
            if array is None:  # an input, a weight, or the second output of the same bytes
                array = self._source(root, results, arrays).copy()
            shaped = array if array.shape == value.shape else array.reshape(value.shape)
            results[value.name] = public(shaped, value.dtype, torch=False)
        return results

    def _source(self, root: str, results: Mapping[str, Any],
                arrays: Sequence[np.ndarray]) -> np.ndarray:
        if root in self.weights:
            return self.weights.array(root)
        for value, array in zip(self.inputs, arrays):
            if value.name == root:
                return array
        same = next(v for v in self.outputs if self.layout.root(v.name) == root)
        array = results[same.name]
        return array.view(STORAGE[same.dtype])


class _Held:
    """Calls, and what must live as long as they do."""

    def __init__(self, calls: Sequence[tuple[Callable[..., int], Any]], memory: object) -> None:
        self._calls, self._memory = calls, memory

    def __call__(self) -> None:
        _run_all(self._calls)


def _run_all(calls: Sequence[tuple[Callable[..., int], tuple[Any, ...]]]) -> None:
    for function, args in calls:
        if function(*args):
            raise KernelFailedError(f"kernel {getattr(function, '__name__', function)} failed")


def _run_timed(times: list[int], calls: Sequence[tuple[Callable[..., int], Any]]) -> None:
    for call in calls:
        start = time.perf_counter_ns()
        _run_all((call,))
        times.append(time.perf_counter_ns() - start)


def _copy(value: Value, cell: ctypes.c_void_p) -> np.ndarray:
    out = np.empty(value.shape, STORAGE[value.dtype])
    if out.nbytes:
        ctypes.memmove(address(out), cell, out.nbytes)
    return out


TunedModel = Model | GpuModel
_MODELS: Mapping[str, type[Model] | type[GpuModel]] = {NATIVE: Model, TRITON: GpuModel}


def load(folder: Path | str, *, threads: int | None = None,
         expect_digest: str | None = None) -> TunedModel:
    """The tuned model in a package's folder, every file of which is checked against its hash.

    Args:
        threads: for kernels and islands on the CPU; by default AUTOSCHED_NUM_THREADS, or every
            core there is.
        expect_digest: refuse any package but the one of this digest.
    """
    manifest = read(folder, expect_digest)
    check_all(manifest)
    if manifest.data["plan"] is None:
        raise PackageError(f"{manifest.root} holds kernels only, no whole model")
    used = {step["kernel"] for step in manifest.data["plan"]["steps"]}
    codes = {code_of(row) for row in manifest.data["kernels"] if row["key"] in used}
    # All of a plan's kernels are of one code; a plan of islands alone needs none.
    return _MODELS[max(codes, default=NATIVE)](manifest, workers.thread_count(threads))
