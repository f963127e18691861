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
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autosched.codegen.gpu_jobs import Bound, contained, opened, verify
from autosched.codegen.gpu_task import GpuTask, load_task, make_task
from autosched.codegen.jobs import JobFailure
from autosched.codegen.reference import read_given
from autosched.tools.gpu_peers_library import Staged
from autosched.tools.gpu_peers_masks import area
from autosched.tools.gpu_peers_table import PEERS, Kind
from autosched.tools.suite_race import Plan, race

Call = Callable[[], torch.Tensor]
SCALES = (0.125, 8.0)  # of the data, besides 1: sums and exponents of another size
HEAT = Plan(rounds=5, visit_s=0.005, cold_rounds=0, whole_s=1.0)  # of ours among themselves
LOST = ("CUDA error", "illegal memory access", "device-side assert")
REASON_CHARS = 300


@dataclass
class _Peer:
    """A peer of the task at hand. rel_l2: its worst error so far."""

    run: Call
    rel_l2: float = 0.0


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

    Returns {"seconds": to its first answer, search and compilation included, in a process that
    has compiled before}, or {"refused": why it can't do this row}.
    """
    if PEERS[name].kind is not Kind.LIBRARY:
        _warm_compiler(device)
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


@functools.lru_cache(maxsize=1)
def _warm_compiler(device: str) -> None:
    """Loads torch's compiler and starts its processes: not what a row's search is to pay for."""
    if device != "cpu":
        torch.compile(lambda x: x + 1)(torch.zeros(64, device=device))


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
    peers: Sequence[str], seed: int, *, keep: Sequence[int] = (), device: str = "cuda",
    launcher: str = "cubin", rounds: int = 15, scales: Sequence[float] = SCALES,
) -> dict[str, Any]:  # fmt: skip
    """Checks builds of ours ({"entry", "bound"}) and peers made before, and races them.

    Of ours, the fastest of a short race among themselves is raced beside the peers, and those
    whose numbers are in `keep`. scales: of the data that answers are checked on, besides 1.

    Returns {"ours": {number: result}, "best": number or None, "wrong": {number: [status, why]},
    "peers": {name: result}, "refused": {name: why}, "scales": of the data checked on, "pairs":
    let through by the mask}; a result is Times as JSON with "rel_l2", the worst error over the
    scales. Numbers are written as text.
    Raises: JobFailure where something wrote to what the task computes with.
    """
    task = load_task(folder, seed, device)
    refused: dict[str, str] = {}
    calls: dict[str, _Peer] = {}
    for name in peers:
        try:
            calls[name] = _Peer(_peer(folder, facts, name, seed, device))
            calls[name].run()
        except Exception as error:  # as in prepare_peer
            refused[name] = _refusal(error)
    calls = {name: call for name, call in calls.items() if name not in refused}
    with contained(task), ExitStack() as stack:
        builds = [
            _Ours(n, stack.enter_context(opened(task, o["entry"], launcher)), o["bound"])
            for n, o in enumerate(ours)
        ]
        checked = (*scales, 1.0)
        _check(folder, task, builds, calls, refused, seed, checked)
        right = [b for b in builds if b.wrong is None]
        best = _fastest(right, device)
        mine = [b for b in right if b is best or b.number in keep]
        timed = {name: call for name, call in calls.items() if name not in refused}
        runs = [*(b.made.run for b in mine), *(call.run for call in timed.values())]
        times = [t.to_json() for t in race(runs, Plan(rounds), device)] if runs else []
    errors = [*(b.rel_l2 for b in mine), *(c.rel_l2 for c in timed.values())]
    results = [{**t, "rel_l2": e} for t, e in zip(times, errors, strict=True)]
    return {
        "ours": {str(b.number): r for b, r in zip(mine, results)},
        "best": None if best is None else str(best.number),
        "wrong": {str(b.number): b.wrong for b in builds if b.wrong is not None},
        "peers": dict(zip(timed, results[len(mine) :], strict=True)), "refused": refused,
        "scales": list(checked), "pairs": _pairs(task, facts), "torch": torch.__version__,
    }  # fmt: skip


@dataclass
class _Ours:
    """A build while it is checked. wrong: status and reason; rel_l2: its worst error so far."""

    number: int
    made: Bound
    bound: str | None
    wrong: list[str] | None = None
    rel_l2: float = 0.0


def _fastest(builds: Sequence[_Ours], device: str) -> _Ours | None:
    """Of builds that are right, by a short race among themselves."""
    if len(builds) < 2:
        return builds[0] if builds else None
    times = race([b.made.run for b in builds], HEAT, device)
    return min(zip(builds, times), key=lambda pair: statistics.median(pair[1].warm_us))[0]


def _check(
    folder: str, task: GpuTask, builds: Sequence[_Ours], calls: Mapping[str, _Peer],
    refused: dict[str, str], seed: int, scales: Sequence[float],
) -> None:  # fmt: skip
    """Notes errors over the scales; a peer that is wrong goes to `refused`.

    The tensors of the task stay where they are and take on other values; at the end their own.
    """
    own = {name: x.clone() for name, x in task.inputs.items()}
    try:
        for scale in scales:
            at = task if scale == 1.0 else _rescaled(folder, task, seed, scale)
            _fill(task, own if scale == 1.0 else at.inputs)
            for build in builds:
                _check_ours(build, at, scale)
            for name, peer in calls.items():
                if isinstance(peer.run, Staged):
                    peer.run.stage()
                found = _compared(at, peer.run())
                peer.rel_l2 = max(peer.rel_l2, found.rel_l2)
                if not found.ok:
                    refused.setdefault(name, f"wrong: {found.reason}")
    finally:
        _fill(task, own)


def _check_ours(build: _Ours, task: GpuTask, scale: float) -> None:
    if build.wrong is not None:
        return
    try:
        build.rel_l2 = max(build.rel_l2, verify(build.made, task, build.bound))
    except JobFailure as failure:
        build.wrong = [failure.status.value, f"data x {scale:g}: {failure.reason}"]


def _rescaled(folder: str, task: GpuTask, seed: int, scale: float) -> GpuTask:
    return make_task(task.program, seed + 1, task.device, read_given(Path(folder)), scale)


def _fill(task: GpuTask, values: Mapping[str, torch.Tensor]) -> None:
    for name, x in task.inputs.items():
        x.copy_(values[name])


def _compared(task: GpuTask, answer: torch.Tensor) -> Any:
    (output,) = task.program.outputs
    return task.compare(output, answer, task.bounds.get(output.name))


def _pairs(task: GpuTask, facts: Mapping[str, Any]) -> int | None:
    if facts["mask"] in ("", "full"):
        return None
    return area(task.inputs, facts)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


# ---- ceilings ----------------------------------------------------------------------------------

SQUARE, STREAM_BYTES = 8192, 1 << 32


def ceilings(device: str = "cuda") -> dict[str, float]:
    """What this device reaches at its best: TFLOP/s of a large product by dtype; TB/s of a copy
    (bytes read and written together) and of a sum (read alone). Empty on a CPU."""
    if device == "cpu":
        return {}
    flops = 2.0 * SQUARE**3
    products = {"bfloat16": torch.bfloat16, "float8_e4m3": torch.float8_e4m3fn}
    found = {name: flops / _best_us([_product(dtype)]) / 1e6 for name, dtype in products.items()}
    source = torch.zeros(STREAM_BYTES // 4, dtype=torch.int32, device=device)
    target, total = torch.empty_like(source), torch.empty((), dtype=torch.int32, device=device)
    # A copy is left to the copy engine where a graph holds it; a kernel is faster, and the one
    # kernel is not the other: the best of three ways.
    copies = (lambda: target.copy_(source), lambda: torch.neg(source, out=target),
              lambda: torch.bitwise_and(source, 1, out=target))  # fmt: skip
    found["copy"] = 2.0 * STREAM_BYTES / _best_us(copies) / 1e6
    found["read"] = STREAM_BYTES / _best_us([lambda: torch.amax(source, 0, out=total)]) / 1e6
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


def _best_us(runs: Sequence[Callable[[], object]]) -> float:
    times = race(runs, Plan(rounds=10, visit_s=0.02, cold_rounds=0))
    return min(us for t in times for us in t.warm_us)
