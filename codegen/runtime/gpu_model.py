"""A whole model tuned for a GPU: tensors by input name in, tensors by output name out.

Weights are uploaded once for each device. A run takes memory from torch's allocator and gives
each value back after its last use; launches go to torch's current stream, one after the other.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from statistics import median
from typing import Any

import numpy as np

from .face import Face
from .gpu import find_device, launching, torch_module
from .gpu_kernel import GpuKernel
from .island import BoundIsland, Island
from .launch import torch_type
from .manifest import Manifest
from .spec import Step, Value, plan_from_json
from .steps import StepTime, StepValues, in_order, root_of
from .tensors import from_numpy, giver, tensor, to_numpy
from .weights import FILE, Weights

Tensors = dict[str, Any]  # by the name of a value or weight that is no alias
Visit = Callable[[int, Callable[[], None]], None]  # makes the call of a step, by its number


class GpuModel(Face):
    """A tuned model; `run` may be called from any thread.

    `inputs` and `outputs` say names, dtypes and shapes, `digest` names the package's every byte.
    """

    def __init__(self, manifest: Manifest, threads: int) -> None:
        plan = plan_from_json(manifest.data["plan"])
        self.digest, self.tree = manifest.digest, plan.call
        self.threads = threads
        self.inputs, self.outputs, self.aliases = plan.inputs, plan.outputs, plan.aliases
        table = manifest.data["weights"]
        self.weights = Weights(manifest.path(FILE) if table else None, table)
        used = {step.kernel for step in plan.steps}
        self.kernels = {
            row["key"]: GpuKernel(manifest, row)
            for row in manifest.data["kernels"] if row["key"] in used
        }  # fmt: skip
        self.islands = {
            name: Island(name, manifest.path(file), threads)
            for name, file in manifest.data["plan"]["islands"].items()
        }
        self.steps = [(step, list(step.args)) for step in plan.steps]
        self._values = {v.name: v for v in (*plan.inputs, *plan.values, *plan.outputs)}
        self._calls = list(self._bound(plan.steps))
        self._uploaded: dict[Any, Tensors] = {}

    def value(self, name: str) -> Value:
        """Name, dtype and shape of an input, a value or a weight."""
        return self.weights.value(name) if name in self.weights else self._values[name]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name, as new tensors; as NumPy arrays where no input is a tensor.

        Args: inputs: a torch tensor, NumPy array or DLPack object for each of `self.inputs`;
            dense tensors on the GPU are read where they are, others are copied there.
        Raises InputError, UnsupportedMachineError, KernelFailedError.
        """
        device, values = self._take(inputs)
        with launching(device):
            self._execute(values, device, _call)
            results = self._results(values)
        give = giver(inputs.values())
        return {v.name: give(results[v.name], v) for v in self.outputs}

    def profile(self, inputs: Mapping[str, Any], repeats: int = 20) -> tuple[StepTime, ...]:
        """The median time of each step over several runs, after one that warms up."""
        device, first = self._take(inputs)
        runs = []
        with launching(device):
            for _ in range(repeats + 1):
                times: list[float] = []
                self._execute(dict(first), device, partial(_timed, times, device))
                runs.append(times)
        return tuple(
            StepTime(self._name(step), step.kernel, median(column))
            for (step, _), column in zip(self.steps, zip(*runs[1:]))
        )

    def trace(self, inputs: Mapping[str, Any]) -> Iterator[StepValues]:
        """Runs step by step, and yields copies of what each step read and wrote."""
        device, values = self._take(inputs)
        for (step, _), call in zip(self.steps, self._calls):
            with launching(device):
                call(values, device)
            copies = tuple(self._copy(values[self._root(n)], self.value(n)) for n in step.args)
            yield StepValues(self._name(step), step.kernel, copies)

    def bound_step(self, inputs: Mapping[str, Any], number: int) -> Callable[[], None]:
        """One step of the plan, to be called again and again on what the steps before it made;
        each call waits until the device is done."""
        device, values = self._take(inputs)
        with launching(device):
            for call in self._calls[:number]:
                call(values, device)

        def step() -> None:
            with launching(device):
                self._calls[number](values, device)
                _wait(device)

        return step

    # -- inside ----------------------------------------------------------------------------

    def _root(self, name: str) -> str:
        return root_of(name, self.aliases)

    def _name(self, step: Step) -> str:
        if step.kernel is None:
            return step.island or ""
        name: str = self.kernels[step.kernel].data["public_name"]
        return name

    def _take(self, inputs: Mapping[str, Any]) -> tuple[Any, Tensors]:
        """The device of a run, with weights and inputs on it."""
        given = in_order(inputs, self.inputs)
        device = find_device(given)
        if device not in self._uploaded:
            self._uploaded[device] = {n: self._upload(n, device) for n in self._used}
        ready = {v.name: tensor(x, v, device) for x, v in zip(given, self.inputs)}
        return device, {**self._uploaded[device], **ready}

    @cached_property
    def _used(self) -> tuple[str, ...]:
        named = {self._root(n) for _, names in self.steps for n in names}
        named |= {self._root(v.name) for v in self.outputs}
        return tuple(sorted(n for n in named if n in self.weights))

    def _upload(self, name: str, device: Any) -> Any:
        dtype = self.weights.value(name).dtype
        return from_numpy(self.weights.array(name), dtype).to(device)

    @cached_property
    def _last(self) -> tuple[tuple[str, ...], ...]:
        """Of each step, the values that nobody reads after it."""
        kept = {self._root(v.name) for v in self.outputs} | set(self._used)
        last: dict[str, int] = {}
        for number, (_, names) in enumerate(self.steps):
            last.update({self._root(n): number for n in names})
        ends: list[list[str]] = [[] for _ in self.steps]
        for name, number in last.items():
            if name not in kept:
                ends[number].append(name)
        return tuple(map(tuple, ends))

    def _execute(self, values: Tensors, device: Any, visit: Visit) -> None:
        for number, call in enumerate(self._calls):
            visit(number, partial(call, values, device))
            for name in self._last[number]:
                del values[name]

    def _bound(self, steps: Sequence[Step]) -> Iterator[Callable[[Tensors, Any], None]]:
        """The call of each step."""
        written = {v.name for v in self.inputs} | set(self._used)
        for step in steps:
            roots = [self._root(name) for name in step.args]
            if step.kernel is not None:
                yield partial(_run_kernel, self.kernels[step.kernel], roots)
            else:
                assert step.island is not None
                buffers = [
                    (root, self.value(name), root not in written)
                    for root, name in zip(roots, step.args)
                ]
                yield partial(_run_island, self.islands[step.island], buffers)
            written.update(roots)

    def _results(self, values: Tensors) -> Tensors:
        """The outputs; what is an input, a weight or another output's memory is copied."""
        given = {v.name for v in self.inputs} | set(self._used)
        out: Tensors = {}
        for value in self.outputs:
            root = self._root(value.name)
            shaped = values[root].view(value.shape)
            out[value.name] = shaped.clone() if root in given else shaped
            given.add(root)
        return out

    def _copy(self, found: Any, value: Value) -> np.ndarray:
        return to_numpy(found, value.dtype).reshape(value.shape).copy()


# ---- steps -------------------------------------------------------------------------------------


def _run_kernel(kernel: GpuKernel, names: Sequence[str], values: Tensors, device: Any) -> None:
    named = list(zip(kernel.args, names))
    made = kernel.call_on(device)([values[n] for arg, n in named if arg.role != "output"])
    values.update(zip((n for arg, n in named if arg.role == "output"), made))


def _run_island(
    island: Island, buffers: Sequence[tuple[str, Value, bool]], values: Tensors, device: Any
) -> None:
    """Runs a graph on the CPU: inputs are copied there, outputs back.

    buffers: inputs and outputs in the graph's order; True for those that it writes.
    """
    homes = [
        (name, _empty(value.dtype, value.shape, "cpu") if made else values[name].cpu(), made)
        for name, value, made in buffers
    ]
    cells = [ctypes.c_void_p(home.data_ptr()) for _, home, _ in homes]
    BoundIsland(island, [(value, c) for (_, value, _), c in zip(buffers, cells)]).run()
    values.update({name: home.to(device) for name, home, made in homes if made})


def _empty(dtype: str, shape: tuple[int, ...], device: Any) -> Any:
    return torch_module().empty(shape, dtype=torch_type(dtype), device=device)


def _call(number: int, call: Callable[[], None]) -> None:
    call()


def _timed(times: list[float], device: Any, number: int, call: Callable[[], None]) -> None:
    """Adds the microseconds of a step, its launch included."""
    _wait(device)
    begun = time.perf_counter_ns()
    call()
    _wait(device)
    times.append((time.perf_counter_ns() - begun) / 1e3)


def _wait(device: Any) -> None:
    if device.type == "cuda":
        torch_module().cuda.synchronize(device)
