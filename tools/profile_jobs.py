"""Jobs of the processes that measure for a profiling run: a batch of builds of one task, one GPU.

A batch has a journal beside it, a line before each candidate and one after it, so that what was
measured outlives this process and the one that asked, and whoever ended the process is known.
References stay on the GPU as long as there is room: a task comes back in every round.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from autosched.codegen import gpu_timing
from autosched.codegen.gpu_jobs import contained, nothing_beside, opened, verify
from autosched.codegen.gpu_task import GpuTask, make_task, mend
from autosched.codegen.jobs import JobFailure
from autosched.codegen.measure import Timing, time_callable
from autosched.codegen.reference import read_given, read_program
from autosched.codegen.triton_entry import Build, read_build

ROOM = 0.5  # of the GPU's memory that references may keep; candidates need scratch and outputs
HOPELESS = 4.0  # times slower than the best so far: two runs, launched one by one
MIDDLING = 1.3  # times slower: a few replays; what is faster is timed until its median is sure
FEW, MOST = 5, 20  # replays of about a millisecond each
MOST_US, SLOW_US = 25_000.0, 5_000.0  # of running in all; of one run, from which two will do
SURE = 0.0015  # relative error of a median that is good enough
LAUNCH_US = 100.0  # that a run launched by itself may take longer than its replay
WATCH_S = 1.0  # seconds between two looks at the clock
WATCH_SIDE = 2048  # of the product that watches the clock

_tasks: OrderedDict[tuple[str, int], GpuTask] = OrderedDict()
_watch: list[gpu_timing.Replay] = []
_seen, _said = [0.0], dict[str, float]()  # when the device was watched last, and what it said


def prepare(folder: str, seed: int, device: str = "cuda") -> dict[str, float]:
    """Has inputs and reference of the task in `folder`, which are kept; how long that took."""
    begun = time.perf_counter()
    _task(folder, seed, device)
    if device != "cpu":
        torch.cuda.synchronize()
    return {"prepare_s": round(time.perf_counter() - begun, 4)}


def measure_batch(
    folder: str, items: Sequence[Mapping[str, Any]], journal: str, seed: int, *,
    device: str = "cuda", launcher: str = "cubin", best_us: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Checks and times builds of the task in `folder`, in turn.

    items: {"id", "entry": folder of the build, "module": see gpu_jobs.opened, "bound"}.
    journal: file that gets {"begun": id}, then the result of each: {"id", "timing", "rel_l2",
    "facts", "seconds"} or {"id", "status", "reason"}. best_us: the fastest so far.
    Returns {"prepare_s", "watch": of the device, "mended": tensors of this task that a candidate
    of another had written to}. Raises: what ends the use of this process.
    """
    begun = time.perf_counter()
    task = _task(folder, seed, device)
    watch = _watched(device)
    # Candidates that failed have been looked into; one whose answer was right may have strayed.
    mended = mend([task])
    if device != "cpu":
        torch.cuda.synchronize()
    prepared = time.perf_counter()
    # A line is one write, and in the kernel's hands when the candidate begins.
    with open(journal, "a", buffering=1, encoding="utf-8") as file:
        for item in items:
            _tell(file, {"begun": item["id"]})
            found = _measured(task, item, launcher, best_us)
            if "timing" in found:
                us = found["timing"]["median_us"]
                best_us = us if best_us is None else min(best_us, us)
            _tell(file, found)
    return {"prepare_s": round(prepared - begun, 4), "watch": watch, "mended": mended}


def _tell(file: TextIO, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, separators=(",", ":")) + "\n")


def _measured(
    task: GpuTask, item: Mapping[str, Any], launcher: str, best_us: float | None
) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        with (contained(task, _others(task)),
              opened(task, item["entry"], launcher, item["module"]) as made):  # fmt: skip
            loaded = time.perf_counter()
            worst = verify(made, task, item["bound"])
            checked = time.perf_counter()
            timing = _timed(made.run, task.device.type, best_us)
            nothing_beside(made)
    except JobFailure as failure:
        return {"id": item["id"], "status": failure.status.value, "reason": failure.reason}
    ended = time.perf_counter()
    build = read_build(Path(item["entry"]))
    return {
        "id": item["id"], "timing": timing.to_json(), "rel_l2": worst, "facts": _facts(build, task),
        "seconds": {"compile_s": build.seconds, "load_s": round(loaded - begun, 4),
                    "check_s": round(checked - loaded, 4), "time_s": round(ended - checked, 4)},
    }  # fmt: skip


def _facts(build: Build, task: GpuTask) -> dict[str, Any]:
    """Of the build; and where only a sample of the outputs was checked, its share of them."""
    return {**build.facts(), **({"checked": round(task.checked, 4)} if task.rows else {})}


# ---- references --------------------------------------------------------------------------------


def _task(folder: str, seed: int, device: str) -> GpuTask:
    """The task's inputs and reference, kept until others need the room."""
    key = folder, seed
    if key not in _tasks:
        _make_room(device)
        place = Path(folder)
        _tasks[key] = make_task(read_program(place), seed, torch.device(device),
                                read_given(place))  # fmt: skip
        gc.freeze()  # what a task is made of stays: no collection shall walk over it again
    _tasks.move_to_end(key)
    return _tasks[key]


def _others(task: GpuTask) -> list[GpuTask]:
    """The tasks that are kept beside this one."""
    return [other for other in _tasks.values() if other is not task]


def _make_room(device: str) -> None:
    if device == "cpu":
        return
    total = torch.cuda.get_device_properties(0).total_memory
    while _tasks and torch.cuda.memory_allocated() > ROOM * total:
        _tasks.popitem(last=False)
        torch.cuda.empty_cache()


# ---- timing ------------------------------------------------------------------------------------


def _timed(run: gpu_timing.Run, device: str, best_us: float | None) -> Timing:
    """As many runs as a candidate is worth."""
    if device == "cpu":
        return time_callable(run, min_runs=1, warmup_runs=1, target_time_s=0.0, warmup_s=0.0)
    once_us = gpu_timing.eager_us(run)
    if best_us is not None and once_us > HOPELESS * best_us + LAUNCH_US:
        return Timing.of([once_us, gpu_timing.eager_us(run)])
    replay = gpu_timing.recorded(run, once_us)
    replay.sample()
    samples = [replay.sample() for _ in range(FEW if once_us < SLOW_US else 2)]
    limit_us = math.inf if best_us is None else MIDDLING * best_us
    while (len(samples) < MOST and sum(samples) * replay.inner < MOST_US
           and float(np.median(samples)) < limit_us and _doubt(samples) > SURE):  # fmt: skip
        samples.append(replay.sample())
    return Timing.of(samples, replay.inner)


def _doubt(samples: Sequence[float]) -> float:
    """Relative error of the median: of a normal distribution, 1.25 times that of the mean."""
    return float(1.25 * np.std(samples) / math.sqrt(len(samples)) / np.median(samples))


def _watched(device: str) -> dict[str, float]:
    """How fast the device is at this moment: one product, always the same; and how warm."""
    if device == "cpu":
        return {}
    if _watch and time.monotonic() - _seen[0] < WATCH_S:
        return _said
    _seen[0] = time.monotonic()
    if not _watch:
        x = torch.randn(WATCH_SIDE, WATCH_SIDE, dtype=torch.bfloat16, device=device)
        out = torch.empty_like(x)
        _watch.append(gpu_timing.capture(lambda: torch.mm(x, x, out=out)))
    _said["us"] = round(float(np.median([_watch[0].sample() for _ in range(3)])), 3)
    with contextlib.suppress(ImportError, RuntimeError):  # without NVIDIA's management library
        _said.update(celsius=torch.cuda.temperature(), mhz=torch.cuda.clock_rate())
    return _said
