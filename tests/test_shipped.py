"""The logs that come with the package: readable, measured, and of use to a model."""

from __future__ import annotations

import numpy as np
import pytest

from autosched.costmodel.gbm import GbmModel
from autosched.costmodel.model import Rows
from autosched.costmodel.roofline import RooflineModel
from autosched.costmodel.rows import training_rows
from autosched.datasets.shipped import shipped_logs, shipped_records
from autosched.ir.record import Status
from autosched.ir.target import host_target, parse_target
from autosched.ir.text import parse

H200 = parse_target("sm_90")


@pytest.fixture(scope="module")
def rows() -> Rows:
    records, texts = shipped_records(H200.key)
    keep = sorted(texts)[::3]  # a third of the workloads: enough to see, and quick
    programs = {k: parse(texts[k]) for k in keep}
    made = training_rows([r for r in records if r.workload in programs], programs, H200)
    assert made is not None
    return made


def test_every_row_is_measured_and_says_where() -> None:
    assert shipped_logs(H200.key) and not shipped_logs(host_target().key)
    records, texts = shipped_records(H200.key)
    assert len(records) > 3000 and len(texts) > 30
    for r in records:
        assert r.device == "NVIDIA H200" and "triton" in r.toolchain and r.when
        assert (r.latency_us is None) == (r.status is not Status.OK)
        assert r.peer is not None or r.status is not Status.OK or r.checked == "float64"
    assert shipped_records("gpu/none") == ([], {})


def test_schedules_still_replay(rows: Rows) -> None:
    """Rules may change, but most of a log must stay of use."""
    records, _ = shipped_records(H200.key)
    known = set(rows.workloads)
    timed = [r for r in records if r.workload in known and r.latency_us and r.peer is None]
    assert len(rows) >= 0.9 * len(timed)


def test_a_model_learns_from_other_workloads(rows: Rows) -> None:
    """Picked among what was measured, by a model that has not seen the workload: closer to the
    best than the analytic one's picks."""
    names = np.array(rows.workloads)
    order = np.random.default_rng(0).permutation(sorted(set(names)))
    shares: dict[str, list[float]] = {"analytic": [], "learned": []}
    for fold in np.array_split(order, 3):
        out = np.isin(names, fold)
        learned = GbmModel(0).fit(_some(rows, ~out))
        for name in fold:
            mine = _some(rows, names == name)
            for label, model in (("analytic", RooflineModel()), ("learned", learned)):
                pick = int(np.argmin(model.predict(mine.features).latency_us))
                shares[label].append(mine.latency_us.min() / mine.latency_us[pick])
    assert np.mean(shares["learned"]) > np.mean(shares["analytic"])
    assert np.mean(shares["learned"]) > 0.75


def _some(rows: Rows, mask: np.ndarray) -> Rows:
    at = np.flatnonzero(mask)
    names = tuple(np.array(rows.workloads)[at])
    return Rows(rows.features.rows(at), rows.latency_us[at], names)
