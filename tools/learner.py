"""Measured schedules in, the scores of a model that has learned from them out.

The model starts from the analytic one and takes over as records come: those of the store first,
also of other models' tasks on this machine, then each batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from autosched.costmodel.features import FeatureTable, concatenate
from autosched.costmodel.gbm import GbmModel
from autosched.costmodel.model import Rows
from autosched.costmodel.rows import training_rows
from autosched.datasets.shipped import shipped_records
from autosched.datasets.store import Store
from autosched.ir.target import Target
from autosched.ir.text import parse
from autosched.search.strategy import Result
from autosched.tools.campaign import Bench, TaskState

OTHERS = 1500  # records of other workloads to learn from, the latest
PLANS = 500  # of the logs that come with the package: what takes a few seconds


class Learner:
    """A boosted model over the records of all tasks; `refresh` gives a task its scores."""

    def __init__(self, seed: int) -> None:
        self.model = GbmModel(seed)
        self._seed = seed
        self._others: Rows | None = None
        self._mine: dict[str, Rows] = {}
        self._seen: dict[str, int] = {}

    @property
    def count(self) -> int:
        """Records that the model has learned from."""
        return sum(len(r) for r in self._parts())

    @property
    def name(self) -> str:
        """What ranks: the analytic model, or the trained one and on how many records."""
        return f"boosted trees on {self.count} records" if self.model.members else "roofline"

    def teach(self, rows: Rows | None) -> None:
        """Takes in rows of other workloads, and fits the model to them."""
        self._others = rows
        self.learn(())

    def fork(self) -> Learner:
        """Another one that knows what this one knows, and learns for itself from here on."""
        other = Learner(self._seed)
        other.model, other._others = self.model, self._others
        other._mine, other._seen = dict(self._mine), dict(self._seen)
        return other

    def read(self, store: Store, bench: Bench, states: Sequence[TaskState]) -> None:
        """Takes in what the store knows: of the tasks at hand, and of others on this machine; and
        the logs that come with the package, of other workloads on such a device."""
        own = {s.key for s in states}
        found = store.records(target=bench.target.key, toolchain=bench.toolchain, peers=False)
        others = [r for r in found if r.workload not in own and r.latency_us is not None][-OTHERS:]
        texts = store.workloads()
        programs = {key: parse(texts[key]) for key in sorted({r.workload for r in others})}
        parts = [training_rows(others, programs, bench.target), shipped_rows(bench.target, own)]
        self._others = _joined([p for p in parts if p is not None])
        self.learn(states)

    def learn(self, states: Sequence[TaskState]) -> None:
        """Fits the model to everything, the news of `states` included, and scores these anew."""
        news = [self._take(s) for s in states]
        if any(news) or (self._others is not None and not self.model.members):
            rows = _joined(self._parts())
            if rows is not None:
                self.model = GbmModel(self._seed).fit(rows)
        for state in states:
            self.refresh(state)

    def refresh(self, state: TaskState) -> None:
        """Scores of the present model for a task."""
        state.score = state.pool.score(self.model)

    def _parts(self) -> list[Rows]:
        others = [] if self._others is None else [self._others]
        return [*others, *(self._mine[key] for key in sorted(self._mine))]

    def _take(self, state: TaskState) -> bool:
        """Adds the results of a task that are new; whether there are any."""
        results = state.search.results[self._seen.get(state.key, 0) :]
        self._seen[state.key] = len(state.search.results)
        timed = [r for r in results if r.latency_us is not None]
        for sketch in sorted({r.candidate.sketch for r in timed}):
            rows = _rows(state, sketch, [r for r in timed if r.candidate.sketch == sketch])
            known = [self._mine[state.key]] if state.key in self._mine else []
            joined = _joined([*known, rows])
            assert joined is not None
            self._mine[state.key] = joined
        return bool(timed)


def shipped_rows(target: Target, without: Collection[str] = ()) -> Rows | None:
    """What the package's own logs know of a target, except of some workloads."""
    records, texts = shipped_records(target.key)
    programs = {key: parse(texts[key]) for key in sorted(set(texts) - set(without))}
    return training_rows(records, programs, target, PLANS)


def _rows(state: TaskState, sketch: int, results: Sequence[Result]) -> Rows:
    knobs = np.array([r.candidate.knobs for r in results], np.int64).reshape(len(results), -1)
    table: FeatureTable = state.pool.programs[sketch].evaluate(
        state.search.space.columns(sketch, knobs)
    )
    latency = np.array([r.latency_us for r in results], np.float64)
    return Rows(table, latency, (state.key,) * len(results))


def _joined(parts: Sequence[Rows]) -> Rows | None:
    if not parts:
        return None
    return Rows(
        concatenate([p.features for p in parts]), np.concatenate([p.latency_us for p in parts]),
        tuple(w for p in parts for w in p.workloads),
    )  # fmt: skip
