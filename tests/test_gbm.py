"""Boosting on the residual of the analytic model: on latencies with a law that it lacks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from programs import gemm
from schedules import ZEN4, gemm_sketch, unpacked_sketch

from autosched.costmodel.evaluate import cross_validate, score, summary
from autosched.costmodel.features import FeatureTable, concatenate, sketch_features
from autosched.costmodel.gbm import MIN_ROWS, GbmModel
from autosched.costmodel.model import PRIOR_SPREAD, ModelError, Rows
from autosched.costmodel.pool import pool
from autosched.costmodel.roofline import RooflineModel
from autosched.costmodel.rows import training_rows
from autosched.ir.record import Record, Status
from autosched.ir.rules.action import Illegal, act
from autosched.ir.schedule import Sketch

SHAPES = ((128, 384, 384), (128, 1536, 384), (64, 512, 256), (200, 300, 96), (37, 768, 768))


def table_of(shape: tuple[int, int, int]) -> FeatureTable:
    made = sketch_features(gemm(*shape), gemm_sketch(), ZEN4)
    assert not isinstance(made, Illegal)
    return made.evaluate(gemm_sketch().table())


def law(table: FeatureTable) -> np.ndarray:
    """What a device might do that the analytic model does not know: dislike of many rows."""
    rows = table.column("hot_accumulators") / np.maximum(table.column("hot_fma"), 1)
    penalty = 1 + 0.8 * (table.column("hot_scalars_per_fma") > 0.4) + 0.3 * (rows > 2)
    return table.column("analytic_us").astype(np.float64) * penalty * 0.8


def measured(noise: float = 0.02) -> Rows:
    rng = np.random.default_rng(7)
    tables = [table_of(s) for s in SHAPES]
    latency = np.concatenate([law(t) for t in tables])
    latency *= np.exp(noise * rng.standard_normal(len(latency)))
    names = tuple(f"gemm{n}" for n, t in enumerate(tables) for _ in range(len(t)))
    return Rows(concatenate(tables), latency, names)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return measured()


@pytest.fixture(scope="module")
def trained(rows: Rows) -> GbmModel:
    return GbmModel(seed=3).fit(rows)


def test_without_records_it_is_the_analytic_model(rows: Rows) -> None:
    ours = GbmModel().predict(rows.features)
    analytic = RooflineModel().predict(rows.features)
    assert np.array_equal(ours.latency_us, analytic.latency_us)
    assert np.all(ours.spread == PRIOR_SPREAD)


def test_with_few_records_only_the_scale_is_learned(rows: Rows) -> None:
    few = rows.take(np.arange(MIN_ROWS - 1))
    model = GbmModel().fit(few)
    assert not model.members
    assert model.offset == RooflineModel().fit(few).offset
    assert GbmModel().fit(rows.take(np.arange(MIN_ROWS))).members


def test_it_learns_what_the_analytic_model_lacks(rows: Rows, trained: GbmModel) -> None:
    ours = np.log(trained.predict(rows.features).latency_us / rows.latency_us)
    scaled = RooflineModel().fit(rows).predict(rows.features).latency_us
    theirs = np.log(scaled / rows.latency_us)
    assert ours.std() < 0.4 * theirs.std()
    assert abs(ours.mean()) < 0.05


def test_it_carries_over_to_workloads_that_it_has_not_seen(rows: Rows) -> None:
    ours = cross_validate(GbmModel(), rows)
    theirs = cross_validate(RooflineModel(), rows)
    assert [s.workload for s in ours] == sorted(set(rows.workloads))
    assert np.mean([s.correlation for s in ours]) > np.mean([s.correlation for s in theirs])
    assert summary(ours)["regret@3"][0] >= 0.95
    assert all(0 < r <= 1 for s in ours for r in s.regret)


def test_a_workload_is_never_on_both_sides_of_a_split(rows: Rows) -> None:
    class Spy(RooflineModel):
        seen: list[set[str]] = []  # noqa: RUF012

        def fit(self, rows: Rows) -> RooflineModel:
            self.seen.append(set(rows.workloads))
            return RooflineModel()

    cross_validate(Spy(), rows, folds=3)
    assert len(Spy.seen) == 3
    assert all(s < set(rows.workloads) for s in Spy.seen)
    assert set.intersection(*Spy.seen) == set()


def test_the_same_rows_and_seed_give_the_same_bytes(rows: Rows, trained: GbmModel) -> None:
    again = GbmModel(seed=3).fit(rows)
    assert again == trained
    other = GbmModel(seed=4).fit(rows)
    assert other.members != trained.members


def test_one_row_or_many_predict_alike(rows: Rows, trained: GbmModel) -> None:
    many = trained.predict(rows.features)
    one = trained.predict(rows.features.rows(np.array([17])))
    assert one.latency_us[0] == many.latency_us[17]
    assert one.spread[0] == many.spread[17]


def test_spread_shrinks_with_records_and_is_larger_for_noisy_ones(rows: Rows) -> None:
    some = GbmModel().fit(rows.take(np.arange(0, len(rows), 4)))
    every = GbmModel().fit(rows)
    noisy = GbmModel().fit(measured(noise=0.3))
    table = rows.features
    assert every.predict(table).spread.mean() < some.predict(table).spread.mean() < PRIOR_SPREAD
    assert noisy.predict(table).spread.mean() > 1.5 * every.predict(table).spread.mean()


def test_spread_is_calibrated_on_rows_held_out() -> None:
    rows = measured(noise=0.1)
    held = np.arange(len(rows)) % 5 == 0
    predicted = GbmModel().fit(rows.take(~held)).predict(rows.take(held).features)
    z = np.log(rows.latency_us[held] / predicted.latency_us) / predicted.spread
    assert 0.5 < z.std() < 1.6


def test_weights_come_back_as_they_were(rows: Rows, trained: GbmModel, tmp_path: Path) -> None:
    trained.save(tmp_path / "gbm.json")
    loaded = GbmModel.load(tmp_path / "gbm.json")
    assert loaded == trained
    ours, theirs = (m.predict(rows.features) for m in (trained, loaded))
    assert np.array_equal(ours.latency_us, theirs.latency_us)
    assert np.array_equal(ours.spread, theirs.spread)


def test_weights_that_do_not_fit_are_refused(trained: GbmModel, tmp_path: Path) -> None:
    path = tmp_path / "gbm.json"
    trained.save(path)
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "features": "cpu-0"}))
    with pytest.raises(ModelError, match="train the model again"):
        GbmModel.load(path)
    path.write_text(json.dumps({**good, "members": [["tree", "garbage"]]}))
    with pytest.raises(ModelError, match="LightGBM"):
        GbmModel.load(path)


# ---- records to rows ---------------------------------------------------------------------------


def record(workload: str, schedule: object, latency_us: float | None = 5.0) -> Record:
    return Record.of(
        workload=workload, target="t", schedule=schedule, toolchain="x", device="d", threads=2,
        status=Status.OK if latency_us else Status.BUILD_FAILED, latency_us=latency_us,
        error=None if latency_us else "no",
    )  # fmt: skip


def test_rows_are_made_of_timed_schedules_of_known_programs() -> None:
    programs = {"a": gemm(128, 384, 384), "b": gemm(64, 96, 32)}
    sketch, other = gemm_sketch(), unpacked_sketch()
    first = sketch.schedule({"cols": 48, "rows": 8}).to_json()
    second = other.schedule({"cols": 32, "rows": 4}).to_json()
    broken = Sketch("gone", (act("inline", keep=[]), act("split", axis="zz", size=2)), ())
    found = training_rows(
        [
            record("a", first, 200.0),
            record("b", second, 9.0),
            record("a", first, None),
            record("a", {"peer": "onnxruntime-1.31.1"}, 170.0),
            record("unknown", first, 1.0),
            record("a", broken.schedule({}).to_json(), 3.0),
        ],
        programs,
        ZEN4,
    )
    assert found is not None
    assert found.workloads == ("a", "b")
    assert list(found.latency_us) == [200.0, 9.0]
    at = [k for k, (c, r) in enumerate(zip(sketch.table()["cols"], sketch.table()["rows"]))
          if (c, r) == (48, 8)]  # fmt: skip
    assert np.array_equal(found.features.matrix[0], table_of((128, 384, 384)).matrix[at[0]])
    assert training_rows([], programs, ZEN4) is None


# ---- the pool ----------------------------------------------------------------------------------


def test_the_pool_keeps_the_best_of_all_and_some_of_each() -> None:
    program = gemm(128, 384, 384)
    broken = Sketch("gone", (act("inline", keep=[]), act("split", axis="zz", size=2)), ())
    made = pool(program, [gemm_sketch(), broken, unpacked_sketch()], ZEN4, keep=16)
    assert [s.name for s in made.sketches] == ["tiled", "unpacked"]
    assert [s.name for s, _ in made.illegal] == ["gone"]
    assert made.ranked == 2 * len(gemm_sketch().table()["rows"])
    kept = [len(f) for f in made.features]
    assert sum(kept) >= 16
    assert min(kept) >= 2
    whole = table_of((128, 384, 384)).column("analytic_us")
    assert made.features[0].column("analytic_us").min() == whole.min()
    for table, features, made_program in zip(made.tables, made.features, made.programs):
        assert np.array_equal(made_program.evaluate(table).matrix, features.matrix)


def test_scores_of_the_pool_and_of_single_rows_agree(trained: GbmModel) -> None:
    made = pool(gemm(128, 384, 384), [gemm_sketch()], ZEN4)
    scored = made.score(trained)
    latency, spread = scored(0, None)
    one = {k: c[5:6] for k, c in made.tables[0].items()}
    assert scored(0, one)[0][0] == latency[5]
    assert scored(0, one)[1][0] == spread[5]
    assert scored(0, None)[0] is latency


def test_score_of_one_workload() -> None:
    table = table_of((128, 384, 384)).rows(np.arange(10))
    latency = table.column("analytic_us").astype(np.float64)
    perfect = score(RooflineModel(), Rows(table, latency, ("w",) * 10))
    assert perfect.regret == (1.0, 1.0, 1.0)
    assert perfect.correlation == pytest.approx(1.0)
    reversed_ = score(RooflineModel(), Rows(table, 1e4 / latency, ("w",) * 10))
    assert reversed_.regret[0] < 1
    assert reversed_.correlation == pytest.approx(-1.0)
