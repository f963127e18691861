"""Gradient boosting on log(time / analytic time): rows in, LightGBM ensembles out.

Each member of the ensemble sees a random four fifths of the rows; what it gets wrong on the rest
is the noise, how far members differ is what the model does not know. Below `MIN_ROWS` rows there
are no trees, and the model is the analytic one with a learned scale.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autosched.costmodel.catalogue import VERSIONS
from autosched.costmodel.features import FeatureTable
from autosched.costmodel.files import read_weights, write_text
from autosched.costmodel.model import (
    PRIOR_SPREAD,
    UNTRAINED,
    ModelError,
    Prediction,
    Rows,
    check_version,
    joined_version,
    log_prior,
)
from autosched.costmodel.roofline import RooflineModel

if TYPE_CHECKING:
    import lightgbm as lgb

MIN_ROWS = 24
MEMBERS = 3
TREES = 50
_FIELDS = ("seed", "offset", "weight", "noise", "members")


@dataclass(frozen=True)
class GbmModel:
    """offset: learned scale of the analytic model; members: LightGBM's own text format.

    weight: how far trees are trusted (few rows: little); noise: spread on rows not trained on.
    """

    seed: int = 0
    offset: float = 0.0
    weight: float = 0.0
    noise: float = PRIOR_SPREAD
    members: tuple[str, ...] = ()
    version: str = UNTRAINED
    _boosters: tuple[lgb.Booster, ...] = field(default=(), repr=False, compare=False)

    def fit(self, rows: Rows) -> GbmModel:
        version = joined_version(rows, self.version)
        n = len(rows)
        offset = RooflineModel().fit(rows).offset
        if n < MIN_ROWS or not trees_grow_here():
            return GbmModel(self.seed, offset, version=version)
        inputs, target = design(rows.features), rows.residual - offset
        rng = np.random.default_rng(self.seed)
        texts: list[str] = []
        errors: list[np.ndarray] = []
        for member in range(MEMBERS):
            order = rng.permutation(n)
            train, rest = order[n // 5 :], order[: n // 5]
            booster = _train(inputs[train], target[train], self.seed + member)
            errors.append(target[rest] - _predict(booster, inputs[rest]))
            texts.append(booster.model_to_string())
        noise = float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
        weight = n / (n + MIN_ROWS)
        return GbmModel(self.seed, offset, weight, noise, tuple(texts), version).ready()

    def ready(self) -> GbmModel:
        """The same model with its trees parsed."""
        import lightgbm as lgb

        boosters = tuple(lgb.Booster(model_str=text) for text in self.members)
        return replace(self, _boosters=boosters)

    def predict(self, table: FeatureTable) -> Prediction:
        check_version(table.version, "the table", self.version)
        base = log_prior(table) + self.offset
        if not self.members:
            return Prediction(np.exp(base), np.full(len(table), PRIOR_SPREAD))
        model = self if self._boosters else self.ready()
        inputs = design(table)
        votes = np.stack([_predict(b, inputs) for b in model._boosters])
        doubt = np.var(votes, axis=0) + self.noise**2
        spread = np.sqrt(self.weight * doubt + (1.0 - self.weight) * PRIOR_SPREAD**2)
        return Prediction(np.exp(base + self.weight * np.mean(votes, axis=0)), spread)

    def save(self, path: Path) -> None:
        data = {
            "model": "gbm",
            "features": self.version,
            "seed": self.seed,
            "offset": self.offset,
            "weight": self.weight,
            "noise": self.noise,
            "members": [text.split("\n") for text in self.members],
        }
        write_text(path, json.dumps(data, indent=0) + "\n")

    @classmethod
    def load(cls, path: Path) -> GbmModel:
        import lightgbm as lgb

        data = read_weights(path, "gbm", _FIELDS)
        members = tuple("\n".join(lines) for lines in data["members"])
        offset, weight, noise = (float(data[name]) for name in ("offset", "weight", "noise"))
        try:
            version = str(data["features"])
            return cls(int(data["seed"]), offset, weight, noise, members, version).ready()
        except lgb.basic.LightGBMError as error:
            raise ModelError(f"{path} has trees that LightGBM cannot read: {error}") from error


def design(table: FeatureTable) -> np.ndarray:
    """The inputs of the trees: all features, and each bound's share of the whole, which tells
    what a schedule is limited by, at any size."""
    catalogue = VERSIONS[table.version]
    bound = np.maximum(table.column(catalogue.bound), np.float32(1e-3))
    shares = [table.column(name) / bound for name in catalogue.shares]
    return np.column_stack([table.matrix, *shares])


def trees_grow_here() -> bool:
    """Whether LightGBM is installed: a machine that only measures may lack it."""
    return importlib.util.find_spec("lightgbm") is not None


def _train(inputs: np.ndarray, target: np.ndarray, seed: int) -> lgb.Booster:
    import lightgbm as lgb

    params: dict[str, Any] = {
        "objective": "regression",
        "num_leaves": 7,
        "learning_rate": 0.1,
        "min_data_in_leaf": max(3, min(20, len(target) // 30)),
        "lambda_l2": 1.0,
        "feature_fraction": 0.7,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    return lgb.train(params, lgb.Dataset(inputs, target), TREES)


def _predict(booster: lgb.Booster, inputs: np.ndarray) -> np.ndarray:
    """One row or a million, in one thread or more: the sum over trees has one order."""
    return np.asarray(booster.predict(inputs), np.float64)
