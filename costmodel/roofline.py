"""Program and target in, a lower bound of its time out; and the analytic model as a CostModel.

`roofline_time` knows nothing of schedules: the work at peak, or the bytes at the bandwidth of the
cache that holds them. `RooflineModel` predicts the analytic time of each schedule, which features
carry as a column (see measures.py); it learns one number, the device's clock and such against
what the target says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autosched.costmodel.features import FeatureTable
from autosched.costmodel.files import read_weights, write_text
from autosched.costmodel.gpu_machine import gpu_rates, tensor_gflops
from autosched.costmodel.machine import rates
from autosched.costmodel.model import (
    PRIOR_SPREAD,
    UNTRAINED,
    Prediction,
    Rows,
    check_version,
    joined_version,
    log_prior,
)
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
    compute_us = _COMPUTE[target.kind](done, program, target)
    return max(compute_us, done.bytes / bandwidth(target, done.bytes))


def _one_unit(work: Work, program: Program, target: Target) -> float:
    """All work by the vector units."""
    return work.weighted / (target.peak(work_dtype(program)) * 1e3)


def _two_units(work: Work, program: Program, target: Target) -> float:
    """Contractions in the fastest type of any input, beside everything else on CUDA cores."""
    kinds = {i.dtype for i in program.inputs} | {"float32"}
    if "tf32" in target.features:
        kinds.add("tf32")
    contracted = work.contraction_flops / (max(tensor_gflops(target, k) for k in kinds) * 1e3)
    return max(contracted, (work.flops - work.contraction_flops) / (target.peak() * 1e3))


_COMPUTE: Mapping[str, Callable[[Work, Program, Target], float]] = {
    "cpu": _one_unit,
    "gpu": _two_units,
}


def bandwidth(target: Target, nbytes: float) -> float:
    """Bytes per µs, whole device, of the cache level that holds `nbytes`, or of memory."""
    return next(rate for size, rate in _LEVELS[target.kind](target) if nbytes <= size)


def _cpu_levels(target: Target) -> tuple[tuple[float, float], ...]:
    r = rates(target)
    scale = r.threads * r.clock_mhz
    return (
        (r.l2_bytes * r.threads, r.l2_bytes_per_cycle * scale),
        (r.l3_bytes, r.l3_bytes_per_cycle * scale),
        (float("inf"), r.dram_bytes_per_cycle * scale),
    )


def _gpu_levels(target: Target) -> tuple[tuple[float, float], ...]:
    r = gpu_rates(target)
    return ((r.l2_bytes, r.l2_gbs * 1e3), (float("inf"), r.dram_gbs * 1e3))


# (bytes that it holds, bytes per µs) of each level, nearest first.
_LEVELS: Mapping[str, Callable[[Target], tuple[tuple[float, float], ...]]] = {
    "cpu": _cpu_levels,
    "gpu": _gpu_levels,
}


@dataclass(frozen=True)
class RooflineModel:
    """Analytic time times exp(offset); `count` records of features `version` made the offset."""

    offset: float = 0.0
    count: int = 0
    version: str = UNTRAINED

    def fit(self, rows: Rows) -> RooflineModel:
        n = len(rows)
        version = joined_version(rows, self.version)
        offset = float(np.sum(rows.residual) / (n + _SCALE_ROWS)) if n else 0.0
        return RooflineModel(offset, n, version)

    def predict(self, table: FeatureTable) -> Prediction:
        check_version(table.version, "the table", self.version)
        spread = np.full(len(table), PRIOR_SPREAD)
        return Prediction(np.exp(log_prior(table) + self.offset), spread)

    def save(self, path: Path) -> None:
        data = {"model": "roofline", "features": self.version,
                "offset": self.offset, "count": self.count}  # fmt: skip
        write_text(path, json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> RooflineModel:
        data = read_weights(path, "roofline", ("offset", "count"))
        return cls(float(data["offset"]), int(data["count"]), str(data["features"]))
