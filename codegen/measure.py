"""Callables in, Timings out: the protocol by which kernels are timed inside a worker.

Warm up, then the median of many runs, with the state of the caches said: warm (the same buffers
again), cold (everything flushed before each run) or rotated (several sets of buffers in turn).
Finalists are timed interleaved, so that a drifting clock meets all of them alike.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from autosched.ir.target import host_target

Run = Callable[[], object]

_SAMPLE_NS = 20_000  # shorter runs are timed several at once: a clock read costs about 50 ns
_PROBE_RUNS = 3  # runs after which a hopeless candidate is given up


class Cache(StrEnum):
    """State of the caches when a run begins."""

    WARM = "warm"
    COLD = "cold"
    ROTATED = "rotated"


@dataclass(frozen=True)
class Timing:
    """Quantiles over samples; a sample is the mean of `inner` runs in a row."""

    median_us: float
    p10_us: float
    p90_us: float
    runs: int
    inner: int = 1
    cache: Cache = Cache.WARM

    @property
    def spread_us(self) -> float:
        """90th minus 10th percentile: what a Record keeps."""
        return self.p90_us - self.p10_us

    @classmethod
    def of(cls, samples_us: Sequence[float], inner: int = 1, cache: Cache = Cache.WARM) -> Timing:
        low, middle, high = (float(q) for q in np.quantile(samples_us, (0.1, 0.5, 0.9)))
        return cls(middle, low, high, len(samples_us) * inner, inner, cache)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cache": self.cache.value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timing:
        return cls(**{**value, "cache": Cache(value["cache"])})


def time_callable(fn: Run | Sequence[Run], *, min_runs: int = 10, target_time_s: float = 0.2,
                  warmup_runs: int = 3, warmup_s: float = 0.02, max_runs: int = 10_000,
                  stop_above_us: float | None = None, cold: bool = False,
                  flush_bytes: int | None = None) -> Timing:
    """Times `fn`, or several that do the same on buffers of their own, in turn (ROTATED).

    target_time_s: timed running to gather, unless min_runs or max_runs (samples) say otherwise.
    stop_above_us: give up after a few runs if all are slower than this (nothing to win).
    cold: write through flush_bytes (default: twice the last-level cache) before each run.
    """
    fns = tuple(fn) if isinstance(fn, Sequence) else (fn,)
    flush = _flusher(flush_bytes) if cold else None
    cache = Cache.COLD if cold else Cache.ROTATED if len(fns) > 1 else Cache.WARM
    with _quiet():
        once_ns = _warm_up(fns, warmup_runs, warmup_s)
        inner = 1 if flush else _inner(once_ns)
        turn = itertools.cycle(fns)
        samples: list[float] = []
        spent_ns, target_ns = 0, target_time_s * 1e9
        while len(samples) < max_runs and (len(samples) < min_runs or spent_ns < target_ns):
            if flush:
                flush()
            took_ns = _time_ns(turn, inner)
            spent_ns += took_ns
            samples.append(took_ns / inner / 1e3)
            if stop_above_us is not None and len(samples) == _PROBE_RUNS < min_runs and (
                    min(samples) > stop_above_us):
                break
    return Timing.of(samples, inner, cache)


def time_interleaved(fns: Sequence[Run], *, rounds: int = 10, target_time_s: float = 0.2,
                     warmup_runs: int = 3, warmup_s: float = 0.02) -> tuple[Timing, ...]:
    """Times finalists against each other, ABBA: each round visits all, the next one backwards.

    target_time_s: timed running of each. A visit begins with one run that is not timed, since
    the visit before has filled the caches with other things. Returns one Timing for each.
    """
    samples: list[list[float]] = [[] for _ in fns]
    with _quiet():
        inners = [_inner(_warm_up((fn,), warmup_runs, warmup_s)) for fn in fns]
        visit_ns = int(target_time_s * 1e9 / rounds)
        order = list(range(len(fns)))
        for _ in range(rounds):
            for i in order:
                fns[i]()
                samples[i].extend(_visit(fns[i], inners[i], visit_ns))
            order.reverse()
    return tuple(Timing.of(s, inner) for s, inner in zip(samples, inners))


def time_visit(fn: Run, *, visit_s: float, warmup_s: float) -> tuple[list[float], int]:
    """One visit of a paired measurement: warm up, then samples (µs) and the runs in each."""
    with _quiet():
        inner = _inner(_warm_up((fn,), 2, warmup_s))
        return list(_visit(fn, inner, int(visit_s * 1e9))), inner


def _flusher(flush_bytes: int | None) -> Run:
    """Writes a buffer of flush_bytes from the calling thread: every cache that it shares with
    other cores is emptied, other cores' private ones only where the last level includes them."""
    buffer = np.zeros((flush_bytes or _flush_bytes()) // 8, np.int64)
    return lambda: np.add(buffer, 1, out=buffer)


def _flush_bytes() -> int:
    host = host_target()
    return 2 * max(host.l2_bytes, host.l3_bytes)


def _warm_up(fns: Sequence[Run], runs: int, seconds: float) -> int:
    """Runs all of `fns` at least `runs` times and `seconds` in total; ns of the fastest run."""
    best_ns, begun = 1 << 62, time.perf_counter_ns()
    for done in itertools.count(1):
        for fn in fns:
            best_ns = min(best_ns, _time_ns(itertools.repeat(fn), 1))
        if done >= runs and time.perf_counter_ns() - begun >= seconds * 1e9:
            return best_ns
    raise AssertionError("count() does not end")


def _visit(fn: Run, inner: int, visit_ns: int) -> Iterator[float]:
    """Samples in µs until visit_ns of running are through; at least one."""
    turn, spent_ns = itertools.repeat(fn), 0
    while spent_ns == 0 or spent_ns < visit_ns:
        took_ns = _time_ns(turn, inner)
        spent_ns += max(took_ns, 1)
        yield took_ns / inner / 1e3


def _inner(once_ns: int) -> int:
    return max(1, _SAMPLE_NS // max(once_ns, 1))


def _time_ns(turn: Iterator[Run], inner: int) -> int:
    """Nanoseconds of `inner` runs in a row."""
    todo = list(itertools.islice(turn, inner))
    begun = time.perf_counter_ns()
    for fn in todo:
        fn()
    return time.perf_counter_ns() - begun


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Python's garbage collector out of the samples."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
