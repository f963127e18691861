"""Jobs that rank by a model of the logs that come with the package, where LightGBM is installed.

Heads are ranked ahead of time, with the builds, so that the machine with the GPU needs no model.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from autosched.costmodel.catalogue import VERSIONS
from autosched.costmodel.gbm import GbmModel
from autosched.costmodel.rows import training_rows
from autosched.datasets.shipped import shipped_logs, shipped_records
from autosched.ir.record import json_key
from autosched.ir.target import parse_target
from autosched.ir.text import parse
from autosched.tools.profile_build import planned


def weights_name(target: str) -> str:
    """A key of the weights that `fit` makes: other logs or features make other weights."""
    logs = shipped_logs(parse_target(target).key)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in logs]
    return json_key(repr(("ranking", target, sorted(VERSIONS), digests)))


def fit(target: str, path: str) -> dict[str, int]:
    """Writes the weights of a model of a target's shipped logs; on how many rows."""
    chosen = parse_target(target)
    records, texts = shipped_records(chosen.key)
    rows = training_rows(records, {key: parse(texts[key]) for key in sorted(texts)}, chosen)
    model = GbmModel() if rows is None else GbmModel().fit(rows)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    model.save(Path(path))
    return {"rows": 0 if rows is None else len(rows)}


def plan(
    folder: str, target: str, seed: int, spread: int, head: int, model: str
) -> dict[str, Any]:
    """As profile_build.plan, the head by the weights in the file `model`."""
    return planned(folder, target, seed, spread, head, _loaded(model))


@functools.lru_cache(maxsize=1)
def _loaded(path: str) -> GbmModel:
    return GbmModel.load(Path(path))
