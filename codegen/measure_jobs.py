"""Jobs of the measuring worker: one candidate checked against the reference, then timed.

TVM is never imported here: a kernel is called as the package will call it, through ctypes with
the small runtime library. Correct first: outputs lie poisoned between guards, every element must
be written, nothing beside them, and the values must agree with float64. Timings are of warm
caches: the same buffers again and again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autosched.codegen.check import (
    NAN_POISON,
    REL_L2_BOUND,
    Comparison,
    compare,
    poison,
    unwritten,
)
from autosched.codegen.jobs import JobFailure
from autosched.codegen.measure import time_callable, time_interleaved
from autosched.codegen.runtime.arrays import ALIGNMENT, STORAGE, address, empty, from_bfloat16
from autosched.codegen.runtime.native import Library, Pool
from autosched.codegen.runtime.pack import pack
from autosched.codegen.runtime.spec import KernelArg, PackSpec, arg_from_json
from autosched.codegen.task_files import TaskData, read_data
from autosched.ir.record import Status

PACKS_KEPT = 4  # packed operands that are remembered
GUARD_BYTES = 4096  # before and after each output: strays are a few vectors or a row away


@dataclass(frozen=True)
class Bound:
    """A kernel with its buffers: `run()` computes `outputs` anew."""

    run: Callable[[], int]  # keeps alive all that it points to
    outputs: Mapping[str, np.ndarray]  # by name, in storage types
    guards: tuple[np.ndarray, ...]  # each output with what lies before and after it


def measure(
    folder: str, library: str, symbol: str, args: Sequence[Mapping[str, Any]], threads: int,
    target_time_s: float = 0.05, stop_above_us: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Checks and times one candidate of the task in `folder`.

    Returns {"timing": Timing as JSON, "rel_l2": the worst of the outputs}.
    Raises: JobFailure with WRONG_RESULT, NAN_RESULT or RUN_FAILED and the reason.
    """
    bound = _bind_row(folder, {"library": library, "symbol": symbol, "args": args}, threads)
    worst = verify(bound, _data(folder))
    timing = time_callable(
        bound.run, min_runs=7, target_time_s=target_time_s, warmup_s=0.01,
        stop_above_us=stop_above_us,
    )  # fmt: skip
    return {"timing": timing.to_json(), "rel_l2": worst}


def measure_together(
    folder: str, candidates: Sequence[Mapping[str, Any]], threads: int,
    target_time_s: float = 0.1, rounds: int = 6,
) -> list[dict[str, Any]]:  # fmt: skip
    """Times finalists that were checked before, interleaved; a Timing as JSON for each.

    candidates: {"library", "symbol", "args"} of each.
    """
    runs = [_bind_row(folder, candidate, threads).run for candidate in candidates]
    timings = time_interleaved(runs, rounds=rounds, target_time_s=target_time_s, warmup_s=0.01)
    return [t.to_json() for t in timings]


def side(folder: str, candidate: str, threads: int) -> Callable[[], int]:
    """A candidate as one side of a paired measurement; candidate: its JSON text."""
    return _bind_row(folder, json.loads(candidate), threads).run


def _bind_row(folder: str, row: Mapping[str, Any], threads: int) -> Bound:
    args = tuple(map(arg_from_json, row["args"]))
    packed = functools.partial(_packed, folder)
    return bind(_data(folder), Path(row["library"]), row["symbol"], args, threads, packed)


def bind(
    data: TaskData, library: Path, symbol: str, args: Sequence[KernelArg], threads: int,
    packed: Callable[[PackSpec, str], np.ndarray] | None = None,
) -> Bound:  # fmt: skip
    """Loads a candidate and gives it the inputs, packed where it asks for that.

    packed: makes or remembers the packed form of an input, by its spec and dtype.
    """
    loaded = Library(library, _no_carried_runtime)
    if loaded.runtime is not None:
        _pool(loaded, threads)
    buffers: list[np.ndarray] = []
    outputs: dict[str, np.ndarray] = {}
    guards: list[np.ndarray] = []
    for arg in args:
        if arg.role == "output":
            array, around = _guarded(arg)
            outputs[arg.name] = array
            guards.append(around)
        else:
            array = _operand(arg, data, packed)
        buffers.append(array)
    function = loaded.function(symbol)
    run = functools.partial(function, *(_Cell(a) for a in buffers))
    return Bound(run, outputs, tuple(guards))


class _Cell(c_void_p):
    """The address of an array, which lives as long as the cell."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(address(array))
        self.array = array


def run_guarded(bound: Bound) -> None:
    """Runs a candidate on poisoned outputs.

    Raises: JobFailure where it fails, leaves elements out or writes beside its outputs.
    """
    for guard in bound.guards:
        poison(guard)
    outputs = list(bound.outputs.values())
    status = []
    missed = unwritten(lambda: status.append(bound.run()), outputs)
    if any(status):
        raise JobFailure(Status.RUN_FAILED, f"the kernel returned {max(status, key=abs)}")
    if any(missed):
        raise JobFailure(Status.WRONG_RESULT, f"{sum(missed)} elements were never written")
    for name, guard in zip(bound.outputs, bound.guards):
        inside = slice(GUARD_BYTES, guard.size - GUARD_BYTES)
        touched = (guard != NAN_POISON).sum() - (guard[inside] != NAN_POISON).sum()
        if touched:
            raise JobFailure(Status.WRONG_RESULT, f"{touched} bytes beside {name} were written")


def verify(bound: Bound, data: TaskData) -> float:
    """Runs a candidate on poisoned outputs; the worst relative error (L2) of its outputs.

    Raises: JobFailure where anything is wrong.
    """
    run_guarded(bound)
    worst = 0.0
    for name, out in bound.outputs.items():
        found = compare_stored(out, data.outputs[name], data.bounds.get(name))
        if not found.ok:
            raise JobFailure(found.status, f"{name}: {found.reason}")
        worst = max(worst, found.rel_l2)
    return worst


def compare_stored(out: np.ndarray, ref: np.ndarray, bound: str | None = None) -> Comparison:
    """An output in storage type against its reference: float64, or the exact type; storage of
    bfloat16 and bool is seen as what it stores. bound: the dtype whose error bound holds."""
    if out.dtype == np.bool_:
        return compare(out.view(np.uint8), ref.astype(np.uint8))
    if out.dtype == np.uint16 and ref.dtype.kind == "f":
        return compare(from_bfloat16(out), ref, bound or "bfloat16")
    own = out.dtype.name if out.dtype.name in REL_L2_BOUND else None
    return compare(out, ref, bound or own)


def _guarded(arg: KernelArg) -> tuple[np.ndarray, np.ndarray]:
    """An output between guards, and all bytes from the first guard's to the last's."""
    size = STORAGE[arg.dtype].itemsize * int(np.prod(arg.shape, dtype=np.int64))
    raw = empty("uint8", (GUARD_BYTES + size + GUARD_BYTES,))
    inner = raw[GUARD_BYTES : GUARD_BYTES + size]
    return inner.view(STORAGE[arg.dtype]).reshape(arg.shape), raw


def _operand(
    arg: KernelArg, data: TaskData, packed: Callable[[PackSpec, str], np.ndarray] | None
) -> np.ndarray:
    if arg.pack is None:
        return data.inputs[arg.name]
    if packed is not None:
        return packed(arg.pack, arg.dtype)
    return pack(data.inputs[arg.pack.source], arg.pack, arg.dtype)


@functools.lru_cache(maxsize=PACKS_KEPT)
def _packed(folder: str, spec: PackSpec, dtype: str) -> np.ndarray:
    """Candidates of a task share a few layouts, and packing a big weight takes longer than
    measuring."""
    return pack(_data(folder).inputs[spec.source], spec, dtype)


@functools.lru_cache(maxsize=1)
def _data(folder: str) -> TaskData:
    """The task's arrays, inputs in memory of their own: one task at a time."""
    mapped = read_data(Path(folder))
    inputs = {n: _aligned(a) for n, a in mapped.inputs.items()}
    return TaskData(inputs, mapped.outputs, mapped.bounds)


def _aligned(array: np.ndarray) -> np.ndarray:
    raw = empty("uint8", (array.nbytes + ALIGNMENT,))
    out = raw[: array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(out, array)
    return out


_pools: list[Pool] = []


def _pool(library: Library, threads: int) -> None:
    """Makes this process's pool, once; another size than the first is refused."""
    assert library.runtime is not None
    if not _pools:
        _pools.append(library.runtime.make_pool(threads))
    (pool,) = _pools
    if pool.threads != threads:
        raise JobFailure(
            Status.RUN_FAILED, f"the pool has {pool.threads} threads, and {threads} are asked for"
        )
    pool.seats.go_home()


def _no_carried_runtime() -> Path:
    raise JobFailure(
        Status.RUN_FAILED, "libtvm_runtime.so is missing: install apache-tvm again"
    )
