"""Model and measured rows in, how well it ranks workloads that it has not seen out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from autosched.costmodel.model import CostModel, Rows

TRIES = (1, 3, 8)


@dataclass(frozen=True)
class Score:
    """One workload: regret[k] is best time over the best of the first TRIES[k] picks (1 is
    perfect); correlation of ranks; bias: mean of log(measured / predicted)."""

    workload: str
    rows: int
    regret: tuple[float, ...]
    correlation: float
    bias: float


def cross_validate(model: CostModel, rows: Rows, folds: int = 5) -> tuple[Score, ...]:
    """Scores of every workload by a model trained without it. Never split by row."""
    keys = sorted(set(rows.workloads))
    owner = np.array([keys.index(w) for w in rows.workloads])
    scores = []
    for fold in range(min(folds, len(keys))):
        held = owner % folds == fold
        trained = model.fit(rows.take(~held))
        for n in sorted(set(owner[held])):
            scores.append(score(trained, rows.take(owner == n)))
    return tuple(sorted(scores, key=lambda s: s.workload))


def score(model: CostModel, rows: Rows) -> Score:
    """All rows must be of one workload."""
    predicted = model.predict(rows.features).latency_us
    order = np.argsort(predicted, kind="stable")
    measured = rows.latency_us[order]
    best = float(measured.min())
    varied = len(rows) > 2 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
    correlation = float(spearmanr(predicted, rows.latency_us).statistic) if varied else 1.0
    return Score(
        rows.workloads[0],
        len(rows),
        tuple(best / float(measured[:k].min()) for k in TRIES),
        correlation,
        float(np.mean(np.log(rows.latency_us) - np.log(predicted))),
    )


def summary(scores: Sequence[Score]) -> dict[str, tuple[float, float, float]]:
    """(mean, 10th percentile, worst) over workloads of the regret at each number of tries."""
    table = np.array([s.regret for s in scores])
    return {
        f"regret@{k}": (
            float(table[:, n].mean()),
            float(np.quantile(table[:, n], 0.1)),
            float(table[:, n].min()),
        )
        for n, k in enumerate(TRIES)
    }
