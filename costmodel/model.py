"""What all cost models share: rows to learn from in, a `Prediction` of latencies out.

A model is a value: `fit` returns a new one. Every model predicts log(time / analytic time), so
that one without data is the analytic model, and errors are relative.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from autosched.costmodel.catalogue import VERSIONS
from autosched.costmodel.features import FeatureTable

# How far off, in log time, a schedule may be of which only the program is known. Measured: 0.2
# on 390 schedules of 15 programs.
PRIOR_SPREAD = 0.25


class ModelError(ValueError):
    """Weights that do not fit these features, or a file that holds no weights: a user's error."""


@dataclass(frozen=True)
class Rows:
    """Measured schedules: features[row], latency_us[row], and the workload key of each row."""

    features: FeatureTable
    latency_us: np.ndarray
    workloads: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.latency_us) == len(self.workloads):
            raise ValueError("features, latencies and workloads differ in length")

    def __len__(self) -> int:
        return len(self.workloads)

    def take(self, index: np.ndarray) -> Rows:
        chosen = np.arange(len(self))[index]
        workloads = tuple(self.workloads[i] for i in chosen)
        return Rows(self.features.rows(chosen), self.latency_us[chosen], workloads)

    @property
    def residual(self) -> np.ndarray:
        """log(measured / analytic), float64."""
        return np.log(self.latency_us.astype(np.float64)) - log_prior(self.features)


@dataclass(frozen=True)
class Prediction:
    """latency_us[row] (the median), and spread[row]: standard deviation of log(latency)."""

    latency_us: np.ndarray
    spread: np.ndarray


class CostModel(Protocol):
    """Features in, latencies out; weights carry the feature version."""

    def fit(self, rows: Rows) -> Self:
        """A model that has learned from all of `rows`, and from nothing else."""

    def predict(self, table: FeatureTable) -> Prediction: ...

    def save(self, path: Path) -> None: ...

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ModelError for weights of another feature version, and for other files."""


def log_prior(table: FeatureTable) -> np.ndarray:
    """Log of the analytic time, float64."""
    return np.log(np.maximum(table.column("analytic_us").astype(np.float64), 1e-3))


# What a model that has not been trained is of: the features of any version.
UNTRAINED = ""


def check_version(version: object, where: str, trained: str = UNTRAINED) -> None:
    """Raises ModelError unless this code computes features of `version`, and the model that
    reads them was trained on these or not at all."""
    if version not in VERSIONS:
        known = " and ".join(map(repr, VERSIONS))
        raise ModelError(
            f"{where} has weights for features {version!r}; this autosched computes {known}: "
            "train the model again (old weights would be misread)"
        )
    if trained not in (UNTRAINED, version):
        raise ModelError(
            f"{where} has features {version!r}, the model was trained on {trained!r}: "
            "train a model for each kind of target"
        )


def joined_version(rows: Rows, trained: str) -> str:
    """The version of a model that learns from these rows; those of none leave it as it is."""
    check_version(rows.features.version, "the table")
    return rows.features.version if len(rows) else trained
