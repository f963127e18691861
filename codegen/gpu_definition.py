"""A job: a built kernel and its definition by torch's operators, timed against each other.

The definition is what a package falls back on. It is checked against float64 as kernels are, and
both are timed as CUDA graphs, interleaved, so that a package may call the faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autosched.codegen.gpu_jobs import timed_together
from autosched.codegen.gpu_task import GpuTask, load_task
from autosched.codegen.runtime.gpu_calls import load_function


def against_definition(
    folder: str, entry: str, source: str, operands: Sequence[str], seed: int, *,
    device: str = "cuda", launcher: str = "cubin", rounds: int = 4, target_time_s: float = 0.02,
) -> dict[str, Any]:  # fmt: skip
    """Times the build in `entry` and torch code of the same task.

    source: a file with a function `definition` of `operands`.
    Returns {"ratio": time of the definition / that of the kernel}, or {"ratio": None, "why"} where
    the definition is not right.
    """
    task = load_task(folder, seed, device)
    function = load_function(Path(source))
    tensors = [task.inputs[name] for name in operands]
    if why := _wrong(task, function(*tensors)):
        return {"ratio": None, "why": why}
    kernel, definition = timed_together(
        task, [entry], launcher, [lambda: function(*tensors)], rounds, target_time_s
    )
    return {"ratio": definition.median_us / kernel.median_us}


def _wrong(task: GpuTask, made: Sequence[Any]) -> str | None:
    for output, found in zip(task.program.outputs, made, strict=True):
        name = output.name
        result = task.compare(output, found, task.bounds.get(name))
        if not result.ok:
            return f"{name}: {result.reason}"
    return None
