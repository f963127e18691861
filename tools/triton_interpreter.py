"""A TritonModule and arrays by name in, what Triton's interpreter makes of them out.

The interpreter is chosen when Triton is imported, so it has a process of its own, which a kernel
that crashes or hangs costs no more than itself. With AUTOSCHED_TEST_DEVICE=cuda the same kernels
are compiled and run on that device.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from autosched.codegen.jobs import Failed, Job, Stage
from autosched.codegen.runtime.launch import Buffer, Plan, Step, load_kernels, torch_type
from autosched.codegen.task_files import TaskData, read_data, write_data
from autosched.codegen.triton_spec import TritonModule
from autosched.codegen.workers import WorkerPool
from autosched.tools.triton_mended import mend_interpreter

Arrays = Mapping[str, np.ndarray]

DEVICE, INTERPRET = "AUTOSCHED_TEST_DEVICE", "TRITON_INTERPRET"
PROGRAMS = 3  # persistent kernels run with this many programs, fewer than tiles
TIMEOUT_S = 120.0  # of one module; the interpreter takes about 20 us an operation
GUARD = 512  # elements before and behind each tensor, which no kernel may change
POISON = 77  # what integers hold that no kernel has written; floats are NaN
_MODULE, _SOURCE = "module.json", "kernels.py"
_RUN = "autosched.tools.triton_interpreter:run_module"


class InterpreterError(RuntimeError):
    """A module does not run: the interpreter's last words, and the source."""


class Interpreter:
    """The process, started at the first use. Arrays are numbers, of any NumPy type that holds
    those of the tensor's type: bfloat16 comes and goes as wider floats."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.device = os.environ.get(DEVICE, "cpu")
        self.timeout_s = timeout_s
        self._pool: WorkerPool | None = None

    def run(self, module: TritonModule, arrays: Arrays) -> Arrays | Failed:
        """The outputs by name, floats in float64; or why there are none."""
        with tempfile.TemporaryDirectory(prefix="autosched-") as name:
            folder = Path(name)
            (folder / _MODULE).write_text(json.dumps(module.to_json()), "utf-8")
            write_data(folder, TaskData(arrays, {}))
            kwargs = {"folder": name, "device": self.device}
            outcome = self._workers().run(Job(_RUN, kwargs, Stage.RUN, self.timeout_s))
            if isinstance(outcome, Failed):
                return outcome
            return {n: np.array(a) for n, a in read_data(folder).outputs.items()}

    def __call__(self, module: TritonModule, arrays: Arrays) -> Arrays:
        """The outputs by name. Raises: InterpreterError."""
        got = self.run(module, arrays)
        if isinstance(got, Failed):
            raise InterpreterError(f"{got.stderr_tail}\n{got.reason}\n{module.source}")
        return got

    def _workers(self) -> WorkerPool:
        if self._pool is None:
            env = {INTERPRET: "1" if self.device == "cpu" else "0", "OMP_NUM_THREADS": "1",
                   "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
            self._pool = WorkerPool(1, self.timeout_s, env=env, preload=(_RUN.split(":")[0],))
        return self._pool

    def close(self) -> None:
        """Ends the process; the next use starts another."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


# ---- in the process ----------------------------------------------------------------------------


def run_module(folder: str, device: str) -> None:
    """A job: writes the outputs of the module in the folder, of the inputs there.

    Raises: RuntimeError where a kernel wrote beside its tensors; what Triton raises.
    """
    import torch
    import triton

    if os.environ[INTERPRET] == "1":
        mend_interpreter()
    triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=device))
    place = Path(folder)
    module, data = json.loads((place / _MODULE).read_text("utf-8")), read_data(place)
    plan = Plan.from_json(module, {name: a.shape for name, a in data.inputs.items()})
    tensors = {t.name: _guarded(t, data.inputs.get(t.name), device) for t in plan.buffers}
    before = {name: _edges(whole).clone() for name, whole in tensors.items()}
    (place / _SOURCE).write_text(module["source"], "utf-8")
    functions = load_kernels(place / _SOURCE)
    inner = {t.name: _inner(tensors[t.name], t.extents) for t in plan.buffers}
    counters = [t.name for t in plan.of_role("counter")]
    for name in counters:
        inner[name].zero_()
    for _ in range(2 if counters else 1):  # a launch leaves them as it found them
        for step in plan.steps:
            _launch(functions, step, [inner[name] for name in step.tensors])
    if left := [name for name in counters if inner[name].any()]:
        raise RuntimeError(f"a kernel left counts in {', '.join(left)}")
    for name, edges in before.items():
        now = _edges(tensors[name])
        if not torch.equal(now.view(torch.uint8), edges.view(torch.uint8)):
            raise RuntimeError(f"a kernel wrote before or behind {name}")
    outputs = [t.name for t in plan.of_role("output")]
    write_data(place, TaskData({}, {name: _numbers(inner[name]) for name in outputs}))


def _guarded(tensor: Buffer, given: np.ndarray | None, device: str) -> Any:
    """A flat tensor with guards, which holds what is given, or else poison."""
    import torch

    kind = torch_type(tensor.dtype)
    poison = float("nan") if kind.is_floating_point else POISON
    whole = torch.full((prod(tensor.extents) + 2 * GUARD,), poison).to(kind)
    if given is not None:
        whole[GUARD:-GUARD] = torch.from_numpy(np.array(given)).to(kind).reshape(-1)
    return whole.to(device)


def _inner(whole: Any, extents: Sequence[int]) -> Any:
    return whole[GUARD:-GUARD].view(tuple(extents))


def _edges(whole: Any) -> Any:
    import torch

    return torch.cat([whole[:GUARD], whole[-GUARD:]])


def _launch(functions: Any, step: Step, args: Sequence[Any]) -> None:
    grid = min(step.programs, PROGRAMS) if step.persistent else step.programs
    options = {"num_warps": step.warps, "num_stages": step.stages}
    if grid:
        getattr(functions, step.kernel)[(grid,)](*args, *step.sizes, **options)


def _numbers(tensor: Any) -> np.ndarray:
    array: np.ndarray = (tensor.double() if tensor.is_floating_point() else tensor).cpu().numpy()
    return array
