"""Two sides in processes of their own in, their paired Timings out: ours against a peer, fairly.

Thread pools in one process stall each other (a pool that spins takes the other's cores), so each
side lives in its own process with its default settings. They alternate A B B A while the other
idles, so that a drifting clock speed cancels within every round. A visit ends only when the
threads of its side have stopped spinning.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from autosched.codegen.jobs import resolve
from autosched.codegen.measure import Run, Timing, time_visit
from autosched.codegen.workers import Failed, Job, Ok, WorkerPool

_ORDER = (0, 1, 1, 0)
_QUIET_CPU = 0.05  # CPU seconds per second below which a side counts as idle
_GLANCE_S = 0.005  # over which that is looked at


@dataclass(frozen=True)
class Side:
    """What to time, and where. pool: of one worker, used by nothing else meanwhile.

    factory: "module:function" that makes a callable without arguments from `kwargs` (plain
    JSON); it is called once, in the worker, and what it made stays there.
    """

    pool: WorkerPool
    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)


@dataclass(frozen=True)
class Pairing:
    """a, b: Timings over all rounds. speedup: time of b over time of a, median of the rounds
    (above 1: a is faster), with the 10th and 90th percentile of the rounds.

    stray_cpu: CPU seconds per second that a side still used while it was to idle, the worst of
    all visits; well above 0 the sides have disturbed each other.
    """

    a: Timing
    b: Timing
    speedup: float
    speedup_low: float
    speedup_high: float
    rounds: int
    stray_cpu: float


@dataclass(frozen=True)
class _Visit:
    samples_us: Sequence[float]
    inner: int
    stray_cpu: float


def paired(a: Side, b: Side, *, rounds: int = 6, visit_s: float = 0.05, warmup_s: float = 0.01,
           settle_s: float = 0.5, timeout_s: float | None = None) -> Pairing | Failed:
    """Times a against b in `rounds` rounds of A B B A.

    visit_s, warmup_s: timed and untimed running of each visit.
    settle_s: how long at most to wait after a visit for the side's threads to fall asleep.
    timeout_s: of one visit, and of making a side; None for the pool's own limit.
    Returns Failed if either side fails. Raises ValueError where both name one pool.
    """
    if a.pool is b.pool:
        raise ValueError("paired: each side needs a process of its own, so two pools")
    sides = (a, b)
    for side in sides:  # made before the clock starts; the visits find it in the worker
        made = side.pool.run(_job("prepare_side", side, timeout_s, settle_s=settle_s))
        if isinstance(made, Failed):
            return made
    visits: tuple[list[_Visit], list[_Visit]] = ([], [])
    for _ in range(rounds):
        for i in _ORDER:
            outcome = sides[i].pool.run(_job("visit_side", sides[i], timeout_s, visit_s=visit_s,
                                             warmup_s=warmup_s, settle_s=settle_s))
            if not isinstance(outcome, Ok):
                return outcome
            visits[i].append(_Visit(**outcome.value))
    return _pairing(visits, rounds)


def prepare_side(factory: str, kwargs_json: str, packages: Sequence[str],
                 settle_s: float) -> None:
    """In the worker: makes the side's callable, runs it once, waits for it to settle."""
    _callable(factory, kwargs_json, tuple(packages))()
    _settle(settle_s)


def visit_side(factory: str, kwargs_json: str, packages: Sequence[str], visit_s: float,
               warmup_s: float, settle_s: float) -> dict[str, Any]:
    """In the worker: one visit to a side; the fields of a _Visit."""
    run = _callable(factory, kwargs_json, tuple(packages))
    samples_us, inner = time_visit(run, visit_s=visit_s, warmup_s=warmup_s)
    return {"samples_us": samples_us, "inner": inner, "stray_cpu": _settle(settle_s)}


def _settle(limit_s: float) -> float:
    """Waits until this process uses no CPU, or limit_s; CPU seconds per second at the end."""
    end = time.monotonic() + limit_s
    while True:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        time.sleep(_GLANCE_S)
        share = (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)
        if share < _QUIET_CPU or time.monotonic() >= end:
            return share


@functools.lru_cache(maxsize=1)
def _callable(factory: str, kwargs_json: str, packages: tuple[str, ...]) -> Run:
    # One at a time: a side that is done with shall not keep its weights or its threads.
    return resolve(factory, packages)(**json.loads(kwargs_json))


def _job(function: str, side: Side, timeout_s: float | None, **more: float) -> Job:
    return Job(f"{__name__}:{function}", {
        "factory": side.factory, "kwargs_json": json.dumps(dict(side.kwargs), sort_keys=True),
        "packages": list(side.pool.packages), **more}, timeout_s=timeout_s)


def _pairing(visits: tuple[list[_Visit], list[_Visit]], rounds: int) -> Pairing:
    """Ratios within each round, quantiles over the rounds."""
    logs = [[math.log(float(np.median(v.samples_us))) for v in side] for side in visits]
    speedups = [
        math.exp((logs[1][2 * r] + logs[1][2 * r + 1] - logs[0][2 * r] - logs[0][2 * r + 1]) / 2)
        for r in range(rounds)
    ]
    low, middle, high = (float(q) for q in np.quantile(speedups, (0.1, 0.5, 0.9)))
    a, b = (Timing.of([s for v in side for s in v.samples_us], side[-1].inner) for side in visits)
    stray = max(v.stray_cpu for side in visits for v in side)
    return Pairing(a, b, middle, low, high, rounds, stray)
