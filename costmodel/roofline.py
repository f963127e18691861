"""Program and target in, a lower bound of its time out; and the analytic model as a CostModel.

`roofline_time` knows nothing of schedules: the work at peak, or the bytes at the bandwidth of the
cache that holds them. `RooflineModel` predicts the analytic time of each schedule, which features
carry as a column (see measures.py); it learns one number, the device's clock and such against
what the target says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autosched.costmodel.catalogue import VERSION
from autosched.costmodel.features import FeatureTable
from autosched.costmodel.files import read_weights, write_text
from autosched.costmodel.machine import rates
from autosched.costmodel.model import PRIOR_SPREAD, Prediction, Rows, check_version, log_prior
from autosched.ir.count import Work, count
from autosched.ir.node import Program
from autosched.ir.scalar import FLOATS
from autosched.ir.target import Target

# Rows that an unknown scale is worth: so many records move it half of the way.
_SCALE_ROWS = 4.0


def work_dtype(program: Program) -> str:
    """The widest floating type among inputs: what the work is done in."""
    found = [i.dtype for i in program.inputs if i.dtype in FLOATS]
    return min(found, key=FLOATS.index, default="float32")


def roofline_time(program: Program, target: Target, work: Work | None = None) -> float:
    """Least time in µs of an algebra program: max(work / peak, bytes / bandwidth)."""
    done = work or count(program)
    compute_us = done.weighted / (target.peak(work_dtype(program)) * 1e3)
    return max(compute_us, done.bytes / bandwidth(target, done.bytes))


def bandwidth(target: Target, nbytes: float) -> float:
    """Bytes per µs, all threads, of the cache level that holds `nbytes`, or of memory."""
    r = rates(target)
    levels = (
        (r.l2_bytes * r.threads, r.l2_bytes_per_cycle),
        (r.l3_bytes, r.l3_bytes_per_cycle),
        (np.inf, r.dram_bytes_per_cycle),
    )
    rate = next(per_cycle for size, per_cycle in levels if nbytes <= size)
    return float(rate * r.threads * r.clock_mhz)


@dataclass(frozen=True)
class RooflineModel:
    """Analytic time times exp(offset); `count` records made the offset."""

    offset: float = 0.0
    count: int = 0

    def fit(self, rows: Rows) -> RooflineModel:
        n = len(rows)
        return RooflineModel(float(np.sum(rows.residual) / (n + _SCALE_ROWS)) if n else 0.0, n)

    def predict(self, table: FeatureTable) -> Prediction:
        check_version(table.version, "the table")
        spread = np.full(len(table), PRIOR_SPREAD)
        return Prediction(np.exp(log_prior(table) + self.offset), spread)

    def save(self, path: Path) -> None:
        data = {"model": "roofline", "features": VERSION,
                "offset": self.offset, "count": self.count}  # fmt: skip
        write_text(path, json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> RooflineModel:
        data = read_weights(path, "roofline", ("offset", "count"))
        return cls(float(data["offset"]), int(data["count"]))
