"""Calls that launch work on a GPU in, Timings out.

What is timed is the replay of a CUDA graph that holds many runs in a row, between two events:
neither Python nor the driver's launches are in it. Warm by default, the same buffers again and
again; cold writes through a buffer twice the size of the second-level cache before each run.
Finalists are timed interleaved, so that a drifting clock meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autosched.codegen.measure import Cache, Timing

Run = Callable[[], object]

GRAPH_US = 1000.0  # of running that one graph holds: launching it costs about 10 µs
MAX_INNER = 200  # runs in one graph: more make its capture the larger part
WARMUP_RUNS = 3
WARMUP_US = 5000.0  # of replays before the first sample: an idle device lowers its clock
MIN_SAMPLES, MAX_SAMPLES = 7, 200
PROBE_SAMPLES = 3  # after which a hopeless candidate is given up
FLUSH_BYTES = 2 * 60 * 1024 * 1024  # twice what the device says of its second-level cache


@dataclass(frozen=True)
class Replay:
    """A captured graph of `inner` runs; `sample` replays it once: µs of one run.

    run: what was captured. The graph knows addresses alone, and goes on writing there: the tensors
    that the run holds must live as long as it does.
    """

    graph: torch.cuda.CUDAGraph
    inner: int
    run: Run

    def sample(self, before: Run | None = None) -> float:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if before is not None:
            before()
        begun.record()
        self.graph.replay()
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended) * 1e3 / self.inner


def capture(run: Run, cold: bool = False) -> Replay:
    """Warms up and captures as many runs as fill GRAPH_US; one where the cache is to be cold."""
    for _ in range(WARMUP_RUNS):
        run()
    torch.cuda.synchronize()
    once_us = eager_us(run)
    inner = 1 if cold else _inner(once_us)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            run()
    replay = Replay(graph, inner, run)
    spent_us = 0.0
    while spent_us < WARMUP_US:
        spent_us += replay.sample() * inner
    return replay


def recorded(run: Run, once_us: float) -> Replay:
    """The same of a call that has run before and takes about once_us, in a busy process: without
    the warm-up, and without the collection of garbage and the emptied caches of torch's own."""
    inner, graph = _inner(once_us), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        graph.capture_begin()
        for _ in range(inner):
            run()
        graph.capture_end()
    return Replay(graph, inner, run)


def _inner(once_us: float) -> int:
    """Runs that one graph holds."""
    return int(min(MAX_INNER, max(1, GRAPH_US / max(once_us, 1e-3))))


def eager_us(run: Run) -> float:
    """A run as it is launched one by one: at least what a replay takes."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    run()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended) * 1e3)


def time_run(
    run: Run, *, target_time_s: float = 0.02, stop_above_us: float | None = None,
    cold: bool = False,
) -> Timing:  # fmt: skip
    """Median and quantiles of one run.

    target_time_s: timed running to gather, between MIN_SAMPLES and MAX_SAMPLES replays.
    stop_above_us: give up after a few replays if all are slower than this (nothing to win).
    """
    if stop_above_us is not None and (slow_us := _slow(run, stop_above_us)) is not None:
        return Timing.of(slow_us)
    replay = capture(run, cold)
    flush = flusher() if cold else None
    samples: list[float] = []
    spent_us, target_us = 0.0, target_time_s * 1e6
    while len(samples) < MAX_SAMPLES and (len(samples) < MIN_SAMPLES or spent_us < target_us):
        samples.append(replay.sample(flush))
        spent_us += samples[-1] * replay.inner
    return Timing.of(samples, replay.inner, Cache.COLD if cold else Cache.WARM)


def _slow(run: Run, limit_us: float) -> list[float] | None:
    """A few plain runs of what is hopeless: much slower than its limit, launches and all."""
    run()
    samples = [eager_us(run) for _ in range(PROBE_SAMPLES)]
    return samples if min(samples) > limit_us + 100.0 else None


def flusher() -> Run:
    """Writes through a buffer twice the size of the second-level cache."""
    buffer = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    return buffer.zero_


def time_together(
    runs: Sequence[Run], *, rounds: int = 6, target_time_s: float = 0.05
) -> list[Timing]:
    """Times finalists against each other, ABBA: each round visits all, the next one backwards.

    target_time_s: timed running of each. A visit begins with one replay that is not counted.
    """
    replays = [capture(run) for run in runs]
    samples: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    visit_us = target_time_s * 1e6 / rounds
    for _ in range(rounds):
        for n in order:
            replays[n].sample()
            spent_us = 0.0
            while spent_us < visit_us:
                samples[n].append(replays[n].sample())
                spent_us += samples[n][-1] * replays[n].inner
        order.reverse()
    return [Timing.of(s, r.inner) for s, r in zip(samples, replays)]
