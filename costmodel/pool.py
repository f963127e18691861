"""A task's sketches in, the candidates worth a thought out: tables thinned by the analytic model.

Every row of every table is ranked once without training; what survives keeps its features, so
that a retrained model ranks it again in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autosched.costmodel.features import FeatureProgram, FeatureTable, sketch_features
from autosched.costmodel.model import CostModel
from autosched.ir.node import Program
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Sketch
from autosched.ir.target import Target

Table = Mapping[str, np.ndarray]
# (number of a sketch, knob columns or None for the pool's own rows) -> latency_us, spread.
Score = Callable[[int, "Table | None"], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Pool:
    """sketches[n] with programs[n], its best rows tables[n] and their features[n].

    ranked: rows that the analytic model has seen; illegal: sketches whose actions do not apply.
    """

    sketches: tuple[Sketch, ...]
    programs: tuple[FeatureProgram, ...]
    tables: tuple[Table, ...]
    features: tuple[FeatureTable, ...]
    ranked: int
    illegal: tuple[tuple[Sketch, Illegal], ...]

    def score(self, model: CostModel) -> Score:
        """Latencies and spreads by `model`; the pool's own rows are predicted once."""
        known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

        def score(sketch: int, rows: Table | None) -> tuple[np.ndarray, np.ndarray]:
            if rows is None and sketch in known:
                return known[sketch]
            table = self.features[sketch] if rows is None else self.programs[sketch].evaluate(rows)
            prediction = model.predict(table)
            result = prediction.latency_us, prediction.spread
            if rows is None:
                known[sketch] = result
            return result

        return score


def pool(
    program: Program,
    sketches: Sequence[Sketch],
    target: Target,
    *,
    limit: int = 100_000,
    keep: int = 8_192,
    seed: int = 0,
) -> Pool:
    """The best `keep` of at most about `limit` candidates of all sketches.

    Each sketch keeps at least a few rows, so that a structure that the analytic model misjudges
    can still be found by measuring.
    """
    legal: list[tuple[Sketch, FeatureProgram]] = []
    illegal: list[tuple[Sketch, Illegal]] = []
    for sketch in sketches:
        made = sketch_features(program, sketch, target)
        if isinstance(made, Illegal):
            illegal.append((sketch, made))
        else:
            legal.append((sketch, made))
    share = max(1, limit // max(1, len(legal)))
    tables = [sketch.table(share, seed) for sketch, _ in legal]
    entries = [
        (sketch, made, table)
        for (sketch, made), table in zip(legal, tables)
        if len(next(iter(table.values())))
    ]
    features = [made.evaluate(table) for _, made, table in entries]
    cuts = _thin([f.column("analytic_us") for f in features], keep)
    return Pool(
        tuple(sketch for sketch, _, _ in entries),
        tuple(made for _, made, _ in entries),
        tuple({k: c[cut] for k, c in t.items()} for (_, _, t), cut in zip(entries, cuts)),
        tuple(f.rows(cut) for f, cut in zip(features, cuts)),
        sum(len(f) for f in features),
        tuple(illegal),
    )


def _thin(times: Sequence[np.ndarray], keep: int) -> list[np.ndarray]:
    """Per table, the numbers of the rows to keep, ascending: the best overall and of each."""
    if not times:
        return []
    every = np.concatenate(times)
    floor = max(1, keep // (4 * len(times)))
    limit = np.partition(every, keep - 1)[keep - 1] if len(every) > keep else np.inf
    cuts = []
    for time in times:
        best = np.argsort(time, kind="stable")
        count = max(int(np.count_nonzero(time <= limit)), min(floor, len(time)))
        cuts.append(np.sort(best[: min(count, keep)]))
    return cuts
