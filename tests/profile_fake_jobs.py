"""A GPU that is none: jobs of a profiling run that answer as the real ones do, at once.

A candidate's fate is the knob "fate" of its schedule; its time is a bowl over the other knobs.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import JobFailure
from autosched.codegen.measure import Timing
from autosched.ir.record import Status, json_key

FATES = ("ok", "ok", "ok", "ok", "wrong", "crash", "illegal", "broken", "unsupported")
FACTS = {"registers": 32, "spill_bytes": 0, "shared_bytes": 0, "ptx_bytes": 9, "threads": 128}


def plan(folder: str, target: str, seed: int, spread: int, head: int) -> dict[str, Any]:
    fates = range(len(FATES)) if "mixed" in folder else (0,)
    rows = [[0, [n, f]] for n in range(spread) for f in fates][:spread]
    return {"sketches": [{"sketch": "0", "actions": [], "knobs": ["k0.n", "fate"]}],
            "spread": rows, "head": [[0, [100 + n, 0], 1.0] for n in range(head)]}  # fmt: skip


def fit(target: str, path: str) -> dict[str, int]:
    """Weights of a model that prefers n = 50."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"best": 50}))
    return {"rows": 1}


def ranked_plan(
    folder: str, target: str, seed: int, spread: int, head: int, model: str
) -> dict[str, Any]:
    best = json.loads(Path(model).read_text())["best"]
    made = plan(folder, target, seed, spread, 0)
    return {**made, "head": [[0, [best + n, 0], 1.0] for n in range(head)]}


def propose(
    folder: str, measured: Sequence[Sequence[Any]], known: Sequence[Sequence[Any]], count: int,
    seed: int,
) -> list[list[Any]]:  # fmt: skip
    tried = {tuple(values) for _, values in known}
    moves = [(n + s, f) for _, (n, f), _ in measured for s in (1, -1) if 0 <= n + s < 200]
    return [[0, list(v)] for v in dict.fromkeys(moves) if v not in tried][:count]


def lower(
    folder: str, target: str, schedules: Sequence[Mapping[str, Any]], cache: str,
    open_sizes: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    out: list[dict[str, Any]] = []
    for data in schedules:
        n, fate = data["knobs"]["k0.n"], FATES[data["knobs"]["fate"]]
        if fate == "unsupported":
            out.append({"illegal": "BACKEND", "why": "no such thing in Triton"})
            continue
        module = {"n": n, "fate": fate}
        out.append({"code": json_key(json.dumps(module)), "module": module, "bound": None})
        (Path(cache) / "fates").mkdir(exist_ok=True)
        (Path(cache) / "fates" / out[-1]["code"]).write_text(fate)
    return out


def compile_code(key: str, target: str, cache: str) -> dict[str, Any]:
    if (Path(cache) / "fates" / key).read_text() == "broken":
        raise RuntimeError("PassManager::run failed")
    folder = Path(cache) / "codes" / key
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "k.cubin").write_bytes(b"code " * 50)
    (folder / "build.json").write_text(json.dumps({"kernels": [{"file": "k.cubin"}]}))
    with open(Path(cache) / "compiled", "a") as file:
        file.write(key + "\n")
    return {"seconds": 0.1}


def full_disk(key: str, target: str, cache: str) -> dict[str, Any]:
    raise OSError(28, "No space left on device")


def warm_up(device: str = "cuda") -> dict[str, Any]:
    return {"device": "a fake", "capability": "sm_90", "seconds": 0.0}


def prepare(folder: str, seed: int, device: str = "cuda") -> dict[str, float]:
    with open(f"{folder}.prepared", "a") as file:
        file.write("once\n")
    if "unprepared" in folder:
        raise ValueError("reads out of range")
    if "endless" in folder:
        time.sleep(60)
    return {"prepare_s": 0.0}


def measure_batch(
    folder: str, items: Sequence[Mapping[str, Any]], journal: str, seed: int, **how: Any
) -> dict[str, Any]:
    with open(journal, "a", buffering=1) as file:
        for item in items:
            file.write(json.dumps({"begun": item["id"]}) + "\n")
            file.write(json.dumps(_measured(item, "slow" in folder)) + "\n")
    return {"prepare_s": 0.0, "watch": {"us": 30.0, "gpu": _gpu()}, "mended": []}


def _gpu() -> int:
    return int(os.environ.get("CUDA_VISIBLE_DEVICES", "0"))


def _measured(item: Mapping[str, Any], slow: bool) -> dict[str, Any]:
    n, fate = item["module"]["n"], item["module"]["fate"]
    assert (Path(item["entry"]) / "build.json").exists()
    if slow:
        time.sleep(0.05)
    try:
        if fate == "wrong":
            raise JobFailure(Status.WRONG_RESULT, "y: relative error 1e+00 is above 1e-05")
    except JobFailure as failure:
        return {"id": item["id"], "status": failure.status.value, "reason": failure.reason}
    if fate == "illegal":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if fate == "crash":
        ctypes.string_at(0)
    timing = Timing.of([10.0 + (n - 70) ** 2] * 3)
    return {"id": item["id"], "timing": timing.to_json(), "rel_l2": 1.23456e-7, "facts": FACTS,
            "seconds": {"compile_s": 0.1, "load_s": 0.0, "check_s": 0.0,
                        "time_s": 0.0}}  # fmt: skip


def no_gpu(device: str = "cuda") -> dict[str, Any]:
    raise RuntimeError("Found no NVIDIA driver on your system")
