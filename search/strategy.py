"""What to measure next: a frozen `State` in, a batch of candidates out; results in, a State out.

`ask` is pure: the same state, size and scores give the same batch. Its random numbers come from
the state's seed and the number of candidates tried, so a search resumed from records goes on as
if it had never stopped. Any search can be replayed on a log without a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

import numpy as np

from autosched.ir.record import Record, Status
from autosched.ir.schedule import Schedule
from autosched.search.space import Candidate, Space, Table

# (sketch, rows or None for its table) -> latency_us[row] and spread[row] (of log latency).
Score = Callable[[int, "Table | None"], tuple[np.ndarray, np.ndarray]]

DIVERSITY = 0.15  # log time that a pick may lose to be unlike the other picks
SAME_SKETCH = 0.5  # how alike two candidates are that share a sketch and no knob
SHORTLIST = 512  # candidates of each sketch that compete for a batch
PARENTS = 3  # best candidates whose neighbours are looked at,
NEAR_BEST = 1.3  # if they take at most this times the best
NEIGHBOUR_SHARE = 3 / 8
EXPLORE_SHARE = 1 / 4


@dataclass(frozen=True)
class Result:
    """One attempt: latency_us is None where it failed."""

    candidate: Candidate
    latency_us: float | None


@dataclass(frozen=True)
class State:
    """The space of a task, a seed, and every attempt so far in the order it was told."""

    space: Space
    seed: int = 0
    results: tuple[Result, ...] = ()

    @cached_property
    def tried(self) -> frozenset[Candidate]:
        return frozenset(r.candidate for r in self.results)

    @cached_property
    def ranking(self) -> tuple[tuple[float, Candidate], ...]:
        """(median latency in µs, candidate), fastest first; candidates that failed are out."""
        times: dict[Candidate, list[float]] = {}
        failed = {r.candidate for r in self.results if r.latency_us is None}
        for r in self.results:
            if r.latency_us is not None and r.candidate not in failed:
                times.setdefault(r.candidate, []).append(r.latency_us)
        return tuple(sorted((median(t), c) for c, t in times.items()))

    @property
    def best(self) -> tuple[float, Candidate] | None:
        return self.ranking[0] if self.ranking else None

    @cached_property
    def since_best(self) -> int:
        """Attempts since the best time was last improved by 1 % or more."""
        least, since = np.inf, 0
        for r in self.results:
            better = r.latency_us is not None and r.latency_us < 0.99 * least
            least = min(least, r.latency_us) if r.latency_us is not None else least
            since = 0 if better else since + 1
        return since


def tell(state: State, records: Iterable[Record]) -> State:
    """The state with the records of its candidates; what is not of its sketches is left out.

    A cancelled attempt says nothing and may be made again.
    """
    added: list[Result] = []
    for r in records:
        if r.peer is not None or r.status is Status.CANCELLED:
            continue
        candidate = state.space.locate(Schedule.from_json(r.schedule_json))
        if candidate is not None:
            added.append(Result(candidate, r.latency_us))
    return replace(state, results=(*state.results, *added))


def ask(state: State, size: int, score: Score) -> tuple[Candidate, ...]:
    """At most `size` candidates to measure, none of them tried; fewer where no more are left.

    Without any time yet: the model's best, unlike each other. Later a part of the batch is
    neighbours of the best so far, a part is what the model knows least of among the promising.
    """
    pools = [shortlist(state, n, score) for n in range(len(state.space.sketches))]
    ranked = _merge(pools)
    if state.best is None:
        return tuple(_diverse(ranked, size, ()))
    near = math.ceil(size * NEIGHBOUR_SHARE)
    explore = int(size * EXPLORE_SHARE)
    batch = _diverse(_neighbours(state, score), near, ())
    batch += _diverse(_without(ranked, batch), size - len(batch) - explore, batch)
    batch += _explored(state, _without(ranked, batch), size - len(batch))
    if len(batch) < size:
        batch += _diverse(_without(ranked, batch), size - len(batch), batch)
    return tuple(batch)


@dataclass(frozen=True)
class Ranked:
    """Candidates with predictions, best first."""

    candidates: tuple[Candidate, ...]
    latency_us: np.ndarray
    spread: np.ndarray

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    def take(self, index: Sequence[int] | np.ndarray) -> Ranked:
        at = np.asarray(index, np.int64)
        chosen = tuple(self.candidates[i] for i in at)
        return Ranked(chosen, self.latency_us[at], self.spread[at])


def shortlist(state: State, sketch: int, score: Score, size: int = SHORTLIST) -> Ranked:
    """The best untried rows of a sketch's table."""
    latency, spread = score(sketch, None)
    rows = state.space.rows(sketch)
    kept: list[int] = []
    names: list[Candidate] = []
    for i in np.argsort(latency, kind="stable"):
        candidate = Candidate(sketch, tuple(int(v) for v in rows[i]))
        if candidate not in state.tried:
            kept.append(int(i))
            names.append(candidate)
        if len(kept) == size:
            break
    return Ranked(tuple(names), latency[kept], spread[kept])


def _merge(parts: Sequence[Ranked]) -> Ranked:
    if not parts:
        return Ranked((), np.zeros(0), np.zeros(0))
    names = tuple(c for p in parts for c in p)
    latency = np.concatenate([p.latency_us for p in parts])
    spread = np.concatenate([p.spread for p in parts])
    return Ranked(names, latency, spread).take(np.argsort(latency, kind="stable"))


def _without(ranked: Ranked, gone: Iterable[Candidate]) -> Ranked:
    known = set(gone)
    return ranked.take([n for n, c in enumerate(ranked) if c not in known])


def _neighbours(state: State, score: Score) -> Ranked:
    """One-knob moves from the best candidates so far."""
    parts = []
    seen: set[Candidate] = set(state.tried)
    least = state.ranking[0][0]
    for time, parent in state.ranking[:PARENTS]:
        if time > NEAR_BEST * least:
            break
        rows = state.space.neighbours(parent)
        names = [Candidate(parent.sketch, tuple(int(v) for v in row)) for row in rows]
        fresh = [n for n, c in enumerate(names) if c not in seen]
        seen.update(names)
        if fresh:
            columns = state.space.columns(parent.sketch, rows[fresh])
            latency, spread = score(parent.sketch, columns)
            parts.append(Ranked(tuple(names[n] for n in fresh), latency, spread))
    return _merge(parts)


def _diverse(ranked: Ranked, size: int, chosen: Sequence[Candidate]) -> list[Candidate]:
    """The fastest by prediction, each made dearer by its likeness to those picked already."""
    if size <= 0 or not ranked.candidates:
        return []
    cost = np.log(ranked.latency_us)
    alike = np.zeros(len(ranked.candidates))
    picked: list[Candidate] = []
    for other in chosen:
        alike = np.maximum(alike, _likeness(ranked, other))
    while len(picked) < min(size, len(ranked.candidates)):
        best = int(np.argmin(cost + DIVERSITY * alike))
        picked.append(ranked.candidates[best])
        cost[best] = np.inf
        alike = np.maximum(alike, _likeness(ranked, picked[-1]))
    return picked


def _likeness(ranked: Ranked, other: Candidate) -> np.ndarray:
    """0 for another sketch, else from SAME_SKETCH up to 1 by the share of equal knobs."""
    out = np.zeros(len(ranked.candidates))
    same = [n for n, c in enumerate(ranked) if c.sketch == other.sketch]
    if same and other.knobs:
        knobs = np.array([ranked.candidates[n].knobs for n in same])
        equal = np.mean(knobs == np.array(other.knobs), axis=1)
        out[same] = SAME_SKETCH + (1.0 - SAME_SKETCH) * equal
    return out


def _explored(state: State, ranked: Ranked, size: int) -> list[Candidate]:
    """Drawn among candidates that may beat the best, more often where the model doubts."""
    if size <= 0 or not ranked.candidates:
        return []
    assert state.best is not None
    chance = improvement(state.best[0], ranked.latency_us, ranked.spread)
    total = float(chance.sum())
    able = int(np.count_nonzero(chance > 0))
    if total <= 0 or able == 0:
        return []
    rng = np.random.default_rng([state.seed, len(state.results)])
    index = rng.choice(len(chance), min(size, able), replace=False, p=chance / total)
    return [ranked.candidates[i] for i in index]


def improvement(best_us: float, latency_us: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Expected µs below `best_us` where log latency is normal around the prediction."""
    wide = np.maximum(spread, 1e-6)
    z = (np.log(best_us) - np.log(latency_us)) / wide
    gain = best_us * _normal(z) - latency_us * np.exp(wide**2 / 2) * _normal(z - wide)
    return np.maximum(gain, 0.0)


def _normal(z: np.ndarray) -> np.ndarray:
    """Distribution function of the standard normal."""
    return np.array([0.5 * math.erfc(-float(x) / math.sqrt(2.0)) for x in z])
