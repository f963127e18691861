"""The analytic model: how it ranks and times, what it learns, what it saves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from programs import gelu, gemm, layernorm, softmax
from schedules import AVX2, ZEN4, gemm_sketch, softmax_sketch, unpacked_sketch

from autosched.costmodel.features import FeatureTable, sketch_features
from autosched.costmodel.machine import SOURCES, rates
from autosched.costmodel.model import ModelError, Rows
from autosched.costmodel.roofline import RooflineModel, bandwidth, roofline_time
from autosched.ir.node import Node, Program
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Sketch


def plain(y: Node) -> Node:
    return y


def evaluated(program: Program, sketch: Sketch, target=ZEN4) -> tuple[FeatureTable, dict]:
    made = sketch_features(program, sketch, target)
    assert not isinstance(made, Illegal), made
    rows = sketch.table()
    return made.evaluate(rows), rows


def times(m: int, n: int, k: int) -> dict[tuple[int, int], float]:
    """{(rows, vectors): µs} of all register tiles of a GEMM."""
    table, rows = evaluated(gemm(m, n, k, plain), gemm_sketch())
    us = RooflineModel().predict(table).latency_us
    return {(int(r), int(c) // 16): float(t) for r, c, t in zip(rows["rows"], rows["cols"], us)}


# Measured on two cores of an EPYC of family 25 at 3.68 GHz: best register tile and its time.
@pytest.mark.parametrize(
    ("shape", "measured_us"),
    [((128, 384, 384), 162), ((128, 1536, 384), 647), ((128, 384, 1536), 645),
     ((1024, 384, 384), 1288)],
)  # fmt: skip
def test_the_measured_best_register_tile_is_picked_and_its_time_is_met(
    shape: tuple[int, int, int], measured_us: float
) -> None:
    found = times(*shape)
    best = min(found, key=lambda tile: found[tile])
    assert found[8, 3] < 1.02 * found[best]
    assert found[8, 3] == pytest.approx(measured_us, rel=0.1)


def test_rounding_waste_decides_between_tiles_that_are_equal_otherwise() -> None:
    found = times(128, 768, 384)
    assert found[8, 3] < found[9, 3] < found[12, 2] * 1.1
    whole = times(126, 768, 384)
    assert whole[9, 3] < whole[8, 3]


def test_one_row_is_slow_and_few_accumulators_are_slow() -> None:
    found = times(128, 768, 384)
    assert found[1, 3] > 1.4 * found[8, 3]
    assert found[2, 1] > 1.5 * found[8, 3]


def test_strided_columns_are_dearer_than_packed_ones() -> None:
    packed, _ = evaluated(gemm(128, 768, 768, plain), gemm_sketch())
    plain_read, _ = evaluated(gemm(128, 768, 768, plain), unpacked_sketch())
    assert np.all(plain_read.column("analytic_us") >= 0.99 * packed.column("analytic_us"))


def test_threads_halve_the_time_of_many_tasks() -> None:
    program, sketch = gemm(128, 1536, 384, plain), gemm_sketch()
    two = evaluated(program, sketch)[0].column("analytic_us")
    one = evaluated(program, sketch, replace(ZEN4, threads=1, cores=1))[0].column("analytic_us")
    ratio = one / two
    assert np.all(ratio > 1.6)
    assert np.all(ratio < 2.3)  # more than 2 where both halves of the data fit the caches


def test_special_functions_cost_time() -> None:
    bare, _ = evaluated(gemm(128, 384, 384, plain), gemm_sketch())
    with_erf, _ = evaluated(gemm(128, 384, 384, gelu), gemm_sketch())
    assert np.all(with_erf.column("analytic_us") > bare.column("analytic_us"))


@pytest.mark.parametrize("target", [ZEN4, AVX2])
def test_no_schedule_beats_the_roofline(target) -> None:
    cases = [
        (gemm(128, 384, 384), gemm_sketch(target.lanes)),
        (layernorm(128, 384), softmax_sketch((1, 7))),
        (softmax(512, 128), softmax_sketch((0, 2, 3))),
    ]
    for program, sketch in cases:
        table, _ = evaluated(program, sketch, target)
        assert roofline_time(program, target) < table.column("analytic_us").min()


def test_roofline_is_work_at_peak_or_bytes_at_the_bandwidth_of_what_holds_them() -> None:
    big = gemm(1024, 1024, 1024, plain)
    flops = 2 * 1024**3 + 1024**2
    assert roofline_time(big, ZEN4) == pytest.approx(flops / 235.5e3, rel=1e-6)
    thin = gemm(1, 4096, 4096, plain)  # 64 MiB of weights: beyond the caches
    nbytes = 4 * (4096 * 4096 + 4096 + 4096 + 4096)
    assert roofline_time(thin, ZEN4) == pytest.approx(nbytes / 24e3, rel=1e-6)
    assert bandwidth(ZEN4, 100_000) > bandwidth(ZEN4, 4_000_000) > bandwidth(ZEN4, 64_000_000)


def test_every_assumed_rate_has_a_source() -> None:
    known = {"threads", "registers", "vector_bytes", "fma_per_cycle", "l1_bytes", "l1_ways",
             "l2_bytes", "l3_bytes", "line_bytes", "dram_bytes_per_cycle", "clock_mhz"}  # fmt: skip
    assumed = set(rates(ZEN4).__dataclass_fields__) - known
    assert assumed == set(SOURCES)


# ---- learning and saving -----------------------------------------------------------------------


def rows_at(scale: float, count: int) -> Rows:
    table, _ = evaluated(gemm(128, 384, 384), gemm_sketch())
    some = table.rows(np.arange(count))
    latency = some.column("analytic_us").astype(np.float64) * scale
    return Rows(some, latency, ("w",) * count)


def test_a_scale_is_learned_slowly_and_nothing_else() -> None:
    rows = rows_at(0.7, 20)
    untrained, trained = RooflineModel(), RooflineModel().fit(rows)
    before = untrained.predict(rows.features).latency_us
    after = trained.predict(rows.features).latency_us
    assert np.allclose(after / before, after[0] / before[0])
    assert 0.7 < after[0] / before[0] < 0.8
    assert RooflineModel().fit(rows_at(0.7, 1)).offset == pytest.approx(np.log(0.7) / 5, rel=1e-5)


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    model = RooflineModel().fit(rows_at(0.7, 20))
    model.save(tmp_path / "m.json")
    assert RooflineModel.load(tmp_path / "m.json") == model
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {**d, "features": "cpu-0"}, "train the model again"),
        (lambda d: {**d, "model": "gbm"}, "no weights of a roofline model"),
        (lambda d: {k: v for k, v in d.items() if k != "offset"}, "lacks offset"),
        (lambda d: [d], "no weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "m.json"
    RooflineModel().save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ModelError, match=message):
        RooflineModel.load(path)


def test_a_file_that_is_missing_or_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        RooflineModel.load(tmp_path / "none.json")
    path = tmp_path / "cut.json"
    RooflineModel().save(path)
    path.write_text(path.read_text()[:20])
    with pytest.raises(ModelError, match="cannot read"):
        RooflineModel.load(path)


def test_a_table_of_another_version_is_refused() -> None:
    table, _ = evaluated(gemm(128, 384, 384), gemm_sketch())
    with pytest.raises(ModelError, match="cpu-0"):
        RooflineModel().predict(replace(table, version="cpu-0"))
