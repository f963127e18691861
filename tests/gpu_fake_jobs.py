"""A GPU that is none: jobs of a campaign that answer as the real ones do, at once."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import JobFailure
from autosched.codegen.measure import Timing
from autosched.codegen.triton_build import build
from autosched.codegen.triton_spec import Launch, Tensor, TritonModule
from autosched.ir.record import Status
from autosched.ir.target import parse_target

SOURCE = '''"""y = x"""

import triton
import triton.language as tl


@triton.jit
def one(x, y):
    tl.store(y, tl.load(x))
'''


def schedule(n: int, fate: str = "ok", us: float = 100.0) -> dict[str, Any]:
    return {"sketch": fate, "actions": [], "knobs": {"k0.n": n, "us": int(us)}}


def plan(folder: str, target: str, count: int, seed: int) -> dict[str, Any]:
    name = Path(folder).name
    if name == "unplanned":
        raise ValueError("no such rule")
    fates = {"mixed": ("ok", "wrong", "illegal", "crash", "refused", "broken", "hang")}.get(
        name, ("ok",)
    )
    picked = [schedule(n, fates[n % len(fates)], 100.0 + n) for n in range(count)]
    return {"picked": [{"schedule": s, "by": "head", "estimate_us": 1.0} for s in picked],
            "sketches": 1, "rows": count}  # fmt: skip


def build_schedule(
    folder: str, schedule: Mapping[str, Any], target: str, cache: str, title: str = ""
) -> dict[str, Any]:
    if schedule["sketch"] == "refused":
        return {"illegal": "BACKEND", "why": "no such thing in Triton"}
    if schedule["sketch"] == "broken":
        raise RuntimeError("PassManager::run failed\n" + "x" * 5000)
    x, y = (Tensor(n, "float32", (1,), role) for n, role in (("x", "input"), ("y", "output")))
    made = TritonModule(SOURCE, (x, y), (Launch("one", ("x", "y"), 1, 1, 1),))
    entry = build(made, parse_target("sm_90"), Path(cache))
    place = Path(folder) / f"{schedule['sketch']}-{schedule['knobs']['us']}"
    if not place.exists():
        place.symlink_to(entry.folder)
    return {"entry": str(place), "bound": None, "facts": entry.facts(), "compile_s": 0.1,
            "lower_s": 0.0}  # fmt: skip


def warm_up(device: str = "cuda") -> dict[str, Any]:
    if device == "cpu":
        raise RuntimeError("Found no NVIDIA driver on your system")
    return {"device": "a fake", "capability": "sm_90", "seconds": 0.0}


def prepare(folder: str, seed: int, device: str = "cuda") -> dict[str, float]:
    if Path(folder).name == "unprepared":
        raise ValueError("reads out of range")
    return {"seconds": 0.0}


def measure(folder: str, entry: str, seed: int, **how: Any) -> dict[str, Any]:
    fate, us = Path(entry).name.rsplit("-", 1)
    if fate == "wrong":
        raise JobFailure(Status.WRONG_RESULT, "y: relative error 1e+00 is above 1e-05")
    if fate == "illegal":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if fate == "crash":
        ctypes.string_at(0)
    if fate == "hang":
        time.sleep(3600)
    if Path(folder).name == "slow":
        time.sleep(0.3)
    timing = Timing.of([float(us)] * 3)
    return {"timing": timing.to_json(), "rel_l2": 1e-7, "load_s": 0.0, "check_s": 0.0,
            "time_s": 0.0, "pid": os.getpid()}  # fmt: skip


def versus(
    folder: str, entries: Sequence[str], peers: Sequence[str], seed: int, **how: Any
) -> dict[str, Any]:
    ours = [Timing.of([float(Path(e).name.rsplit("-", 1)[1])] * 3).to_json() for e in entries]
    return {"ours": ours, "peers": {p: Timing.of([150.0] * 3).to_json() for p in peers},
            "errors": dict.fromkeys(peers, 1e-7), "refused": {}, "torch": "2"}  # fmt: skip
