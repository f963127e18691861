"""Calls that launch work on one device in, the times of each in many rounds out: a race.

Every round visits all runners, each round beginning with another one and every second one going
backwards, so that a drifting clock meets all alike. A runner that can be captured is timed as the
replay of a CUDA graph; one that can't is launched call by call, and the result says so. Warm: the
same buffers again and again; cold: other data, several times what the second-level cache holds,
are read before each run. (Were they written, the run would pay for writing them back.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from autosched.codegen import gpu_timing

Run = Callable[[], object]
EAGER_INNER = 10  # launches between two events of a runner without a graph
COLD_RUNS = 3  # of a visit
SETTLED_US = 2000.0  # of one run: what takes longer needs no run before to warm the cache
FLUSH_BYTES = 256 << 20  # more than four times the second-level cache


@dataclass(frozen=True)
class Plan:
    """How long a race goes on: rounds, and seconds of timed running at each visit, if warm.

    whole_s: seconds after which no round of a kind begins, if there were at least `least`.
    """

    rounds: int = 15
    visit_s: float = 0.01
    cold_rounds: int = 7
    whole_s: float = 2.0
    least: int = 3


@dataclass(frozen=True)
class Times:
    """One runner's medians (µs) of each round, in order. how: "graph", "launches" or "host"."""

    warm_us: tuple[float, ...]
    cold_us: tuple[float, ...]
    how: str

    def to_json(self) -> dict[str, Any]:
        return {"warm_us": [round(x, 4) for x in self.warm_us],
                "cold_us": [round(x, 4) for x in self.cold_us], "how": self.how}  # fmt: skip


class Runner(Protocol):
    """`sample`: µs of one run, one of `inner` in a row; `how`: as in Times."""

    @property
    def how(self) -> str: ...

    @property
    def inner(self) -> int: ...

    def sample(self, before: Run | None = None) -> float: ...


@dataclass(frozen=True)
class _Graph:
    replay: gpu_timing.Replay
    how: str = "graph"

    @property
    def inner(self) -> int:
        return self.replay.inner

    def sample(self, before: Run | None = None) -> float:
        return self.replay.sample(before)


@dataclass(frozen=True)
class _Launches:
    """Launched from Python, several at a time."""

    run: Run
    inner: int
    how: str = "launches"

    def sample(self, before: Run | None = None) -> float:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if before is not None:
            before()
        begun.record()
        for _ in range(self.inner):
            self.run()
        ended.record()
        ended.synchronize()
        return float(begun.elapsed_time(ended) * 1e3 / self.inner)


@dataclass(frozen=True)
class _Host:
    """By the host's clock: on a CPU, where nothing is said of speed."""

    run: Run
    inner: int = 1
    how: str = "host"

    def sample(self, before: Run | None = None) -> float:
        begun = time.perf_counter()
        self.run()
        return (time.perf_counter() - begun) * 1e6


def race(runs: Sequence[Run], plan: Plan, device: str = "cuda") -> list[Times]:
    """Times of each run in every round."""
    if device == "cpu":
        hosts = [_Host(run) for run in runs]
        for host in hosts:
            host.sample()
        once = replace(plan, visit_s=0.0)
        return [Times(w, (), h.how) for h, w in zip(hosts, _rounds(hosts, once, plan.rounds))]
    warm = [runner(run) for run in runs]
    warmed = _rounds(warm, plan, plan.rounds)
    hows = [w.how for w in warm]
    if not plan.cold_rounds:
        return [Times(w, (), how) for w, how in zip(warmed, hows)]
    # A graph of one run serves here too; the others are given up with the memory that they hold.
    single = [w if w.inner == 1 else None for w in warm]
    del warm
    cold = [s or runner(run, cold=True) for s, run in zip(single, runs)]
    cooled = _rounds(cold, plan, plan.cold_rounds, flusher())
    return [Times(w, c, how) for w, c, how in zip(warmed, cooled, hows)]


def flusher() -> Run:
    """Reads a buffer that is larger than the second-level cache."""
    buffer = torch.zeros(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
    largest = torch.empty((), dtype=torch.int32, device="cuda")
    return lambda: torch.amax(buffer, 0, out=largest)


def runner(run: Run, cold: bool = False) -> Runner:
    """The run as a graph, where it can be captured."""
    try:
        return _Graph(gpu_timing.capture(run, cold))
    except RuntimeError as error:
        # What synchronises, or allocates in ways that a capture forbids, says so by raising.
        if "captur" not in str(error).lower():
            raise
        torch.cuda.synchronize()
        return _Launches(run, 1 if cold else EAGER_INNER)


def _rounds(
    runners: Sequence[Runner], plan: Plan, rounds: int, flush: Run | None = None
) -> list[tuple[float, ...]]:
    """The median of each visit, by runner."""
    found: list[list[float]] = [[] for _ in runners]
    until = time.monotonic() + plan.whole_s
    for number in range(rounds):
        if number >= plan.least and time.monotonic() > until:
            break
        for n in order(len(runners), number):
            found[n].append(statistics.median(_visit(runners[n], plan.visit_s, flush)))
    return [tuple(f) for f in found]


def order(count: int, number: int) -> Iterator[int]:
    """Whom a round visits: it begins at another runner each time, and turns round."""
    turned = [(number // 2 + n) % count for n in range(count)]
    return iter(turned if number % 2 == 0 else turned[::-1])


def _visit(one: Runner, visit_s: float, flush: Run | None) -> list[float]:
    if flush is not None:
        return [one.sample(flush) for _ in range(COLD_RUNS)]
    samples = [one.sample()]
    if one.how != "host" and samples[0] < SETTLED_US:
        samples = [one.sample()]  # the first brought its data back to the cache
    spent_us = samples[0] * one.inner
    while spent_us < visit_s * 1e6:
        samples.append(one.sample())
        spent_us += samples[-1] * one.inner
    return samples
