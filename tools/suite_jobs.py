"""Jobs of the process that measures a suite: peers made, everything checked, then raced.

Ours and the peers run on the same tensors in one process. Before they are timed every answer is
compared with the float64 reference, on data of several scales, within the bounds of
`codegen.check`; whoever is wrong is not timed. A peer that can't do a row is refused with its
own words.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from autosched.codegen.gpu_check import compare
from autosched.codegen.gpu_jobs import Bound, opened, verify
from autosched.codegen.gpu_task import GpuTask, load_task, make_task
from autosched.codegen.jobs import JobFailure
from autosched.codegen.reference import read_given
from autosched.tools.gpu_peers_library import Staged
from autosched.tools.gpu_peers_masks import area
from autosched.tools.gpu_peers_table import PEERS
from autosched.tools.suite_race import Plan, race

Call = Callable[[], torch.Tensor]
SCALES = (0.125, 8.0)  # of the data, besides 1: sums and exponents of another size
LOST = ("CUDA error", "illegal memory access", "device-side assert")
REASON_CHARS = 300


@functools.lru_cache(maxsize=1)
def _peers(folder: str, seed: int, device: str) -> dict[str, Call]:
    """The peers made so far for the task at hand, by name."""
    if "torch._dynamo" in sys.modules:  # loading it takes seconds, and most rows compile nothing
        torch.compiler.reset()  # what was compiled for the last task
    return {}


def prepare_peer(
    folder: str, facts: Mapping[str, Any], name: str, seed: int, device: str = "cuda"
) -> dict[str, Any]:
    """Makes a peer and runs it once.

    Returns {"seconds": to its first answer, search and compilation included}, or {"refused":
    why it can't do this row}.
    """
    begun = time.perf_counter()
    try:
        _peer(folder, facts, name, seed, device)()
        _synchronize(device)
    except Exception as error:  # of any library; a lost device is the job's failure
        return {"refused": _refusal(error)}
    return {"seconds": round(time.perf_counter() - begun, 3)}


def _peer(folder: str, facts: Mapping[str, Any], name: str, seed: int, device: str) -> Call:
    made = _peers(folder, seed, device)
    if name not in made:
        _own_caches(Path(folder))
        module, function = PEERS[name].maker.split(":")
        maker = getattr(importlib.import_module(module), function)
        made[name] = maker(load_task(folder, seed, device).inputs, facts)
    return made[name]


def _own_caches(folder: Path) -> None:
    """What compilers remember of other rows must not shorten the search of this one."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    os.environ["HELION_CACHE_DIR"] = str(folder / "helion")


def _refusal(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if any(mark in text for mark in LOST):
        raise error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:REASON_CHARS]


# ---- the race ----------------------------------------------------------------------------------


def run_race(
    folder: str, facts: Mapping[str, Any], ours: Sequence[Mapping[str, Any]],
    peers: Sequence[str], seed: int, *, device: str = "cuda", launcher: str = "cubin",
    rounds: int = 15, scaled: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Checks and races at most one build of ours ({"entry", "bound"}) and peers made before.

    scaled: also on data of other scales.

    Returns {"ours": result or None, "peers": {name: result}, "refused": {name: why}, "scales":
    of the data checked on, "pairs": let through by the mask}; a result is Times as JSON with
    "rel_l2", the worst error over the scales.
    Raises: JobFailure where ours is wrong.
    """
    task = load_task(folder, seed, device)
    refused: dict[str, str] = {}
    calls = {}
    for name in peers:
        try:
            calls[name] = _peer(folder, facts, name, seed, device)
            calls[name]()
        except Exception as error:  # as in prepare_peer
            refused[name] = _refusal(error)
    calls = {name: call for name, call in calls.items() if name not in refused}
    with ExitStack() as stack:
        bounds = [str(o["bound"]) if o["bound"] else None for o in ours]
        builds = [stack.enter_context(opened(task, o["entry"], launcher)) for o in ours]
        made = list(zip(builds, bounds, strict=True))
        scales = (*(SCALES if scaled else ()), 1.0)
        errors, mine = _checked(folder, task, made, calls, refused, seed, scales)
        timed = {name: call for name, call in calls.items() if name not in refused}
        runs = [*(b.run for b in builds), *timed.values()]
        times = race(runs, Plan(rounds), device) if runs else []
    results = [t.to_json() for t in times]
    first = {**results.pop(0), "rel_l2": mine} if builds else None
    return {
        "ours": first, "refused": refused, "scales": list(scales),
        "peers": {n: {**r, "rel_l2": errors[n]} for n, r in zip(timed, results, strict=True)},
        "pairs": _pairs(task, facts), "torch": torch.__version__,
    }  # fmt: skip


def _checked(
    folder: str, task: GpuTask, builds: Sequence[tuple[Bound, str | None]],
    calls: Mapping[str, Call], refused: dict[str, str], seed: int, scales: Sequence[float],
) -> tuple[dict[str, float], float]:  # fmt: skip
    """Worst errors of the peers and of ours over the scales; who is wrong goes to `refused`.

    The tensors of the task stay where they are and take on other values; at the end their own.
    """
    own = {name: x.clone() for name, x in task.inputs.items()}
    errors = dict.fromkeys(calls, 0.0)
    worst = 0.0
    try:
        for scale in scales:
            at = task if scale == 1.0 else _rescaled(folder, task, seed, scale)
            _fill(task, own if scale == 1.0 else at.inputs)
            worst = max([worst, *(verify(b, at, bound) for b, bound in builds)])
            for name, call in calls.items():
                if isinstance(call, Staged):
                    call.stage()
                found = _compared(at, call())
                errors[name] = max(errors[name], found.rel_l2)
                if not found.ok:
                    refused.setdefault(name, f"wrong: {found.reason}")
    except JobFailure as failure:
        raise JobFailure(failure.status, f"data x {scale:g}: {failure.reason}") from failure
    finally:
        _fill(task, own)
    return errors, worst


def _rescaled(folder: str, task: GpuTask, seed: int, scale: float) -> GpuTask:
    return make_task(task.program, seed + 1, task.device, read_given(Path(folder)), scale)


def _fill(task: GpuTask, values: Mapping[str, torch.Tensor]) -> None:
    for name, x in task.inputs.items():
        x.copy_(values[name])


def _compared(task: GpuTask, answer: torch.Tensor) -> Any:
    (output,) = task.program.outputs
    return compare(answer, task.outputs[output.name], output.dtype, task.bounds.get(output.name))


def _pairs(task: GpuTask, facts: Mapping[str, Any]) -> int | None:
    if facts["mask"] in ("", "full"):
        return None
    return area(task.inputs, facts)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


# ---- ceilings ----------------------------------------------------------------------------------

SQUARE, COPY_BYTES = 8192, 1 << 31


def ceilings(device: str = "cuda") -> dict[str, float]:
    """What this device reaches on a large product and a large copy: TFLOP/s by dtype, and TB/s,
    read and written bytes together. Empty on a CPU."""
    if device == "cpu":
        return {}
    flops = 2.0 * SQUARE**3
    found = {"bfloat16": flops / _best_us(_product(torch.bfloat16)) / 1e6,
             "float8_e4m3": flops / _best_us(_product(torch.float8_e4m3fn)) / 1e6}  # fmt: skip
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2.0 * COPY_BYTES / _best_us(lambda: target.copy_(source)) / 1e6
    return {name: round(value, 3) for name, value in found.items()}


def _product(dtype: torch.dtype) -> Callable[[], object]:
    a, b = (torch.randn(SQUARE, SQUARE, device="cuda").to(dtype) for _ in range(2))
    if dtype is torch.bfloat16:
        return lambda: torch.mm(a, b.t())
    one = torch.ones(1, device="cuda")
    f = torch.nn.functional
    plain = f.ScalingType.TensorWise
    return lambda: f.scaled_mm(a, b.t(), one, plain, one, plain, output_dtype=torch.bfloat16,
                               use_fast_accum=True)  # fmt: skip


def _best_us(run: Callable[[], object]) -> float:
    (times,) = race([run], Plan(rounds=15, visit_s=0.02, cold_rounds=1))
    return min(times.warm_us)
