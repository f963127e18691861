"""The GPU of this machine, asked in a child process: the tuner itself never loads torch."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

from autosched.codegen.jobs import Job, Ok
from autosched.codegen.workers import WorkerPool
from autosched.ir.target import Target, TargetError

PROBE_S = 120.0  # the first import of torch with CUDA reads gigabytes


@dataclass(frozen=True)
class Device:
    """Where kernels are measured. where: "cuda", or "cpu" for Triton's interpreter."""

    name: str
    arch: str
    where: str = "cuda"


def find_device() -> Device | None:
    """The first CUDA device that torch sees; None where there is none, or no torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or importlib.util.find_spec("torch") is None:
        return None
    with WorkerPool(1, PROBE_S, start_timeout_s=PROBE_S) as pool:
        outcome = pool.run(Job("autosched.codegen.gpu_jobs:present"))
    if not isinstance(outcome, Ok):
        raise TargetError(
            f"torch can't say whether there is a GPU: {outcome.reason}; mend it, or hide the GPU "
            "with CUDA_VISIBLE_DEVICES= to pick by the model"
        )
    found = outcome.value
    return None if found is None else Device(found["device"], found["capability"])


def check_compiler(target: Target) -> None:
    """Raises TargetError unless kernels for a GPU can be compiled here."""
    if importlib.util.find_spec("triton") is None:
        raise TargetError(f"target {target.name!r} needs Triton to compile kernels: pip install "
                          '"autosched[gpu]", which needs no GPU')  # fmt: skip


def check_device(target: Target, device: Device | None) -> None:
    """Raises TargetError where the GPU of this machine is not what is tuned for."""
    if device is not None and device.arch != target.arch:
        raise TargetError(
            f"target {target.name!r} is not the GPU of this machine, {device.name} "
            f"({device.arch}): kernels are measured where they are tuned; use --target "
            f"{device.arch}, or hide the GPU with CUDA_VISIBLE_DEVICES= to pick by the model"
        )
