"""Progress of all tasks in, the one to work on next out, or the reason to stop.

A task is worth its expected gain: weight times the time that its next batch is likely to save.
Tasks share one budget; each decision takes the task that gains most per second of tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from autosched.search.strategy import Score, State, improvement, shortlist

BATCH = 8
PATIENCE = 24  # attempts without improvement that halve the hopes in a task
THRESHOLD = 0.005  # of the model's total time: less than this to gain is not worth tuning
_TOP = 32  # promising candidates whose improvement is weighed


class Stop(StrEnum):
    """Why nothing more is measured."""

    THRESHOLD = "the expected gain of every task is under the threshold"
    TIME = "the time is spent"
    TRIALS = "the trials are spent"
    EXHAUSTED = "every candidate was tried"


@dataclass(frozen=True)
class Progress:
    """Where a task stands.

    weight: how often the task runs in the model. best_us: best measured, or None. start_us: what
    it takes without tuning (a peer's time, or the first prediction). gain_us: improvement that
    the model expects of a batch. left: candidates not tried. cost_s: seconds a batch takes.
    """

    weight: float
    best_us: float | None
    start_us: float
    gain_us: float
    tries: int
    since_best: int
    left: int
    cost_s: float = 1.0

    @property
    def time_us(self) -> float:
        """The task's share of the model's time as it is now."""
        return self.weight * (self.start_us if self.best_us is None else self.best_us)

    @property
    def worth_us(self) -> float:
        """Expected saving in the whole model; hope halves with every PATIENCE idle attempts."""
        if not self.left:
            return 0.0
        if self.best_us is None and not self.tries:
            return self.time_us
        return self.weight * self.gain_us * 0.5 ** (self.since_best / PATIENCE)


@dataclass(frozen=True)
class Budget:
    """What may still be spent; None is without limit."""

    seconds: float | None = None
    trials: int | None = None


def progress(
    state: State, score: Score, weight: float, start_us: float, cost_s: float = 1.0
) -> Progress:
    """The standing of one task by a model's scores."""
    best = state.best[0] if state.best else None
    gain, left = _prospects(state, score, best)
    if best is None:
        gain = start_us
    return Progress(weight, best, start_us, gain, len(state.tried), state.since_best, left, cost_s)


def _prospects(state: State, score: Score, best: float | None) -> tuple[float, int]:
    """(expected gain of the most promising untried candidate, how many are untried)."""
    gain, left = 0.0, 0
    for sketch in range(len(state.space.sketches)):
        left += len(state.space.rows(sketch))
        fresh = shortlist(state, sketch, score, _TOP)
        if best is not None and fresh.candidates:
            gain = max(gain, float(improvement(best, fresh.latency_us, fresh.spread).max()))
    return gain, left - sum(state.space.contains(c) for c in state.tried)


def choose(tasks: Sequence[Progress], left: Budget, threshold: float = THRESHOLD) -> int | Stop:
    """The number of the task to give the next batch to; the first one of equals."""
    if left.trials is not None and left.trials <= 0:
        return Stop.TRIALS
    if not any(t.left for t in tasks):
        return Stop.EXHAUSTED
    affordable = [
        n
        for n, t in enumerate(tasks)
        if t.left and (left.seconds is None or t.cost_s <= left.seconds)
    ]
    if not affordable:
        return Stop.TIME
    total = sum(t.time_us for t in tasks)
    if sum(t.worth_us for t in tasks) < threshold * total:
        return Stop.THRESHOLD
    return max(affordable, key=lambda n: (tasks[n].worth_us / max(tasks[n].cost_s, 1e-9), -n))
