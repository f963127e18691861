"""Jobs of the process that measures on a GPU: a built module checked against float64, then timed.

One such process holds the device's context. Correct first: outputs lie poisoned between guards,
every element must be written, nothing beside them, and the values must agree with the float64
reference on the device. Before the next candidate inputs and references must be what they were: a
kernel that strays costs itself, and no other is measured on what it left behind. An illegal access
ends the process's usefulness: the error says "CUDA error", by which the pool knows to replace it.

device "cpu" runs kernels in Triton's interpreter (TRITON_INTERPRET=1), which shows that they are
right and says nothing of their speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autosched.codegen import gpu_timing
from autosched.codegen.check import REL_L2_BOUND
from autosched.codegen.cubin import CubinLauncher
from autosched.codegen.gpu_arena import GUARD_BYTES, guarded
from autosched.codegen.gpu_check import POISONS, poison, still_poisoned
from autosched.codegen.gpu_task import GpuTask, load_task, make_task, mend
from autosched.codegen.jobs import JobFailure
from autosched.codegen.measure import Timing, time_callable
from autosched.codegen.runtime.launch import Launcher, Plan, torch_type
from autosched.codegen.runtime.sizes import SizeError
from autosched.codegen.triton_entry import SOURCE, Build, read_build
from autosched.ir.define import algebra
from autosched.ir.node import Program
from autosched.ir.ops import cast, exp, input_, iota, max_, sum_, where
from autosched.ir.record import Status

Run = Callable[[], object]
_NO_ROOM = ("out of memory", "can't allocate memory")  # what torch and the driver say


@dataclass(frozen=True)
class Bound:
    """A module with its tensors: `run()` computes `outputs` anew; guards: the bytes of these and
    of what the module keeps between its launches, with those around them, by name."""

    run: Run
    outputs: Mapping[str, torch.Tensor]
    guards: Mapping[str, torch.Tensor]


def warm_up(device: str = "cuda") -> dict[str, Any]:
    """Makes the device's context, and loads what references need; returns its name and memory."""
    begun = time.perf_counter()
    if device == "cpu":
        return {"device": "cpu", "seconds": 0.0}
    make_task(usual(), 0, torch.device(device))
    facts = torch.cuda.get_device_properties(device)
    return {
        "device": facts.name, "capability": f"sm_{facts.major}{facts.minor}",
        "torch": torch.__version__, "memory": facts.total_memory,
        "seconds": round(time.perf_counter() - begun, 3),
    }  # fmt: skip


def usual() -> Program:
    """A small program of what most references compute, whose code the device loads at first use."""
    x = input_("x", {"m": 64, "k": 64}, "bfloat16")
    w = input_("w", {"k": 64, "n": 64}, "bfloat16")
    s = where(iota("m", 64) >= iota("k", 64), cast(x, "float32"), -math.inf)
    p = exp(s - max_("k", s))
    y = sum_("k", p * cast(w, "float32")) / sum_("k", p)
    return algebra(y=("m n", cast(y, "bfloat16")))


def present() -> dict[str, str] | None:
    """Name and architecture of the CUDA device that torch would use; None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return {"device": torch.cuda.get_device_name(), "capability": f"sm_{major}{minor}"}


def prepare(folder: str, seed: int, device: str = "cuda") -> dict[str, float]:
    """Draws the inputs of the task and evaluates its reference; how long that took, and the share
    of the outputs that it has."""
    begun = time.perf_counter()
    task = load_task(folder, seed, device)
    _synchronize(device)
    return {"seconds": round(time.perf_counter() - begun, 3), "checked": task.checked}


def measure(
    folder: str, entry: str, seed: int, *, device: str = "cuda", launcher: str = "cubin",
    bound: str | None = None, target_time_s: float = 0.02, stop_above_us: float | None = None,
    cold: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Checks and times the build in `entry` on the task in `folder`.

    launcher: "cubin" for the machine code as it was built, "jit" for the launcher of packages.
    bound: a dtype as coarse as the schedule's arithmetic, where it is coarser than the outputs.
    Returns {"timing": Timing as JSON, "rel_l2": the worst of the outputs, "load_s", "check_s"}.
    Raises: JobFailure with WRONG_RESULT, NAN_RESULT, OUT_OF_MEMORY or UNSUPPORTED and the reason.
    """
    task, begun = load_task(folder, seed, device), time.perf_counter()
    with contained(task), opened(task, entry, launcher) as made:
        loaded = time.perf_counter()
        worst = verify(made, task, bound)
        checked = time.perf_counter()
        timing = _timed(made.run, device, target_time_s, stop_above_us, cold)
        nothing_beside(made)
    return {
        "timing": timing.to_json(), "rel_l2": worst, "load_s": round(loaded - begun, 4),
        "check_s": round(checked - loaded, 4),
        "time_s": round(time.perf_counter() - checked, 4),
    }  # fmt: skip


def _timed(
    run: Run, device: str, target_time_s: float, stop_above_us: float | None, cold: bool
) -> Timing:
    if device == "cpu":
        return time_callable(run, min_runs=1, warmup_runs=1, target_time_s=0.0, warmup_s=0.0)
    return gpu_timing.time_run(
        run, target_time_s=target_time_s, stop_above_us=stop_above_us, cold=cold
    )


@contextmanager
def contained(task: GpuTask, others: Iterable[GpuTask] = ()) -> Iterator[None]:
    """Around one candidate of a task: what it does reaches no candidate after it.

    others: tasks that this process keeps too, looked at where the candidate fails. What was
    written to is made anew. Raises: JobFailure with WRONG_RESULT where anything was, and with
    OUT_OF_MEMORY where the device has no room for the candidate.
    """
    try:
        yield
    except JobFailure as failure:
        if strayed := mend([task, *others]):
            raise _stray(strayed, failure.reason) from failure
        raise
    except RuntimeError as error:
        if not any(mark in str(error) for mark in _NO_ROOM):
            raise
        if task.device.type != "cpu":
            torch.cuda.empty_cache()
        told = str(error).split("\n")[0]
        raise JobFailure(Status.OUT_OF_MEMORY, f"no room on the device: {told}") from error
    if strayed := mend([task]):
        raise _stray(strayed, "its answer was right before")


def _stray(names: Sequence[str], otherwise: str) -> JobFailure:
    return JobFailure(Status.WRONG_RESULT, f"wrote outside its outputs: to {', '.join(names)}, or "
                      f"beside it; {otherwise}")  # fmt: skip


@contextmanager
def opened(
    task: GpuTask, entry: str, launcher: str = "cubin", module: Mapping[str, Any] | None = None
) -> Iterator[Bound]:
    """A build bound to the task's inputs and to outputs between guards.

    module: tensors and launches of the task's own (a TritonModule as JSON), where the build is
    one that several tasks share.
    """
    build = read_build(Path(entry))
    shapes = {n: x.shape for n, x in task.inputs.items()}
    try:
        plan = Plan.from_json(build.module.to_json() if module is None else module, shapes)
    except SizeError as error:
        raise JobFailure(Status.UNSUPPORTED, f"a build of another class: {error}") from error
    outputs, guards = _guarded(plan, task, "output")
    if absent := sorted(set(task.outputs) - set(outputs)):
        raise JobFailure(Status.UNSUPPORTED, f"the module has no output {', '.join(absent)}")
    tensors = {**_operands(plan, task), **outputs}
    if launcher == "jit":
        call = Launcher(build.folder / SOURCE, plan)
        yield Bound(lambda: call(tensors), outputs, guards)
        return
    scratch, more = _guarded(plan, task, "scratch")
    with _loaded(build, plan, task.device) as code:
        yield Bound(code.bind({**tensors, **scratch}), outputs, {**guards, **more})


def _loaded(build: Build, plan: Plan, device: torch.device) -> CubinLauncher:
    return CubinLauncher(build.folder, plan, [asdict(k) for k in build.kernels], device)


def _operands(plan: Plan, task: GpuTask) -> dict[str, torch.Tensor]:
    wanted = plan.of_role("input", "weight")
    if missing := [b.name for b in plan.buffers if b.role == "packed"]:
        raise JobFailure(Status.UNSUPPORTED,
                         f"operands packed ahead are not measured on GPUs: {', '.join(missing)}")
    for b in wanted:
        found = task.inputs.get(b.name)
        if found is None or tuple(found.shape) != b.extents or found.dtype != torch_type(b.dtype):
            raise JobFailure(Status.UNSUPPORTED,
                             f"the module wants {b.name}: {b.dtype}{list(b.extents)}, the task has "
                             + (f"{found.dtype}{list(found.shape)}" if found is not None else
                                f"only {', '.join(task.inputs)}"))  # fmt: skip
    return {b.name: task.inputs[b.name] for b in wanted}


def _guarded(
    plan: Plan, task: GpuTask, role: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors for the buffers of a role, and their bytes with those around them."""
    tensors, guards = {}, {}
    for b in plan.of_role(role):
        tensors[b.name], guards[b.name] = guarded(b.extents, torch_type(b.dtype), task.device)
    return tensors, guards


def verify(made: Bound, task: GpuTask, bound: str | None = None) -> float:
    """Runs a build on poisoned outputs; the worst relative error (L2) of its outputs.

    Raises: JobFailure where anything is wrong.
    """
    never = {name: torch.ones((), dtype=torch.bool, device=task.device) for name in made.outputs}
    for byte in POISONS:
        for guard in made.guards.values():
            poison(guard, byte)
        made.run()
        for name, out in made.outputs.items():
            never[name] = never[name] & still_poisoned(out, byte)
    _synchronize(task.device.type)
    for name in made.outputs:
        if count := int(never[name].sum()):
            raise JobFailure(Status.WRONG_RESULT,
                             f"{count} elements of {name} were never written")
    nothing_beside(made)
    return _worst(made, task, bound)


def nothing_beside(made: Bound) -> None:
    """Raises: JobFailure where guards are not as the last poison left them."""
    names = list(made.guards)
    ends = [torch.cat([g[:GUARD_BYTES], g[-GUARD_BYTES:]]) for g in made.guards.values()]
    counts = torch.stack([(end != POISONS[-1]).sum() for end in ends]).tolist() if ends else []
    for name, touched in zip(names, counts, strict=True):
        if touched:
            raise JobFailure(Status.WRONG_RESULT, f"{touched} bytes beside {name} were written")


def _worst(made: Bound, task: GpuTask, bound: str | None) -> float:
    worst = 0.0
    for output in task.program.outputs:
        name = output.name
        known = [d for d in (bound, task.bounds.get(name)) if d is not None]
        coarsest = max(known, key=lambda d: REL_L2_BOUND[d], default=None)
        found = task.compare(output, made.outputs[name], coarsest)
        if not found.ok:
            raise JobFailure(found.status, f"{name}: {found.reason}")
        worst = max(worst, found.rel_l2)
    return worst


def measure_together(
    folder: str, entries: Sequence[str], seed: int, *, device: str = "cuda",
    launcher: str = "cubin", rounds: int = 6, target_time_s: float = 0.05,
) -> list[dict[str, Any]]:  # fmt: skip
    """Times builds that were checked before, interleaved; a Timing as JSON for each."""
    task = load_task(folder, seed, device)
    timings = timed_together(task, entries, launcher, (), rounds, target_time_s)
    return [t.to_json() for t in timings]


def timed_together(
    task: GpuTask, entries: Sequence[str], launcher: str, others: Sequence[Run], rounds: int,
    target_time_s: float,
) -> list[Timing]:  # fmt: skip
    """Timings of builds, then of other calls, each against all."""
    with contained(task), ExitStack() as stack:
        ours = [stack.enter_context(opened(task, e, launcher)).run for e in entries]
        return _together([*ours, *others], task.device.type, rounds, target_time_s)


def _together(
    runs: Sequence[Run], device: str, rounds: int, target_time_s: float
) -> list[Timing]:
    if device == "cpu":
        return [_timed(run, device, 0.0, None, False) for run in runs]
    return gpu_timing.time_together(runs, rounds=rounds, target_time_s=target_time_s)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
