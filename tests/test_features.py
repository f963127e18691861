"""Features: against counts by hand, rows apart from their neighbours, knobs open or bound."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from programs import gemm, layernorm, rmsnorm, softmax
from schedules import AVX2, ZEN4, gemm_sketch, softmax_sketch, unpacked_sketch

from autosched.costmodel.catalogue import document
from autosched.costmodel.cpu_catalogue import CPU
from autosched.costmodel.features import FeatureTable, concatenate, features, sketch_features
from autosched.costmodel.machine import rates
from autosched.ir.count import count, scalar_cost
from autosched.ir.node import IRError, Output, Program
from autosched.ir.ops import buffer, forall, input_, iota, kernel, load, store, sum_, take
from autosched.ir.rules.action import Illegal, act
from autosched.ir.schedule import Knob, Schedule, Sketch, replay

CASES = {
    "gemm": (gemm(37, 100, 33), gemm_sketch()),
    "unpacked": (gemm(128, 384, 96), unpacked_sketch()),
    "softmax": (softmax(64, 100), softmax_sketch((0, 2, 3))),
    "softmax again": (softmax(64, 96), softmax_sketch((0, 3))),
    "layernorm": (layernorm(37, 96), softmax_sketch((1, 7))),
    "rmsnorm": (rmsnorm(64, 96), softmax_sketch((4,))),
}


def table_of(program: Program, sketch: Sketch, target=ZEN4, **knobs: int) -> FeatureTable:
    made = sketch_features(program, sketch, target)
    assert not isinstance(made, Illegal), made
    rows = {k: np.array([v]) for k, v in knobs.items()} or sketch.table()
    return made.evaluate(rows)


def fact(table: FeatureTable, name: str, row: int = 0) -> float:
    return float(table.column(name)[row])


def gemm_fact(name: str, m: int, n: int, k: int, cols: int, rows: int) -> float:
    program = gemm(m, n, k, epilogue=lambda y: y)
    return fact(table_of(program, gemm_sketch(), cols=cols, rows=rows), name)


# ---- what every row must hold ------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_row_does_not_depend_on_its_neighbours(case: str) -> None:
    program, sketch = CASES[case]
    made = sketch_features(program, sketch, ZEN4)
    assert not isinstance(made, Illegal)
    rows = sketch.table()
    together = made.evaluate(rows).matrix
    n = len(together)
    for i in range(0, n, 7):
        alone = made.evaluate({k: c[i : i + 1] for k, c in rows.items()}).matrix
        assert np.array_equal(alone[0], together[i])
    many = made.evaluate({k: np.tile(c, 40_000 // n + 1) for k, c in rows.items()}).matrix
    assert np.array_equal(many[-n:], together)


@pytest.mark.parametrize("case", CASES)
def test_open_knobs_and_bound_knobs_agree(case: str) -> None:
    program, sketch = CASES[case]
    rows = sketch.table()
    matrix = table_of(program, sketch).matrix
    for i in range(0, len(matrix), 5):
        knobs = {k: int(c[i]) for k, c in rows.items()}
        bound = replay(program, Schedule(sketch.name, sketch.actions, knobs))
        if isinstance(bound, Illegal):
            continue  # the table has sizes beyond the extents of a small case
        got = features(bound, ZEN4, count(program)).evaluate({"": np.zeros(1, np.int64)})
        assert np.allclose(got.matrix[0], matrix[i], rtol=1e-5), knobs


def test_values_are_finite_and_not_negative() -> None:
    for program, sketch in CASES.values():
        matrix = table_of(program, sketch).matrix
        assert np.isfinite(matrix).all()
        assert (matrix >= 0).all()


def test_names_units_and_document_are_those_of_the_catalogue() -> None:
    program, sketch = CASES["gemm"]
    table = table_of(program, sketch)
    assert table.names == tuple(f.name for f in CPU.features)
    assert table.units == tuple(f.unit for f in CPU.features)
    assert len(set(table.names)) == len(CPU.features)
    path = Path(__file__).parents[1] / "docs" / "features.md"
    assert path.read_text(encoding="utf-8") == document()


# ---- counts by hand ----------------------------------------------------------------------------


def test_register_tile_of_a_gemm() -> None:
    assert gemm_fact("hot_accumulators", 128, 384, 64, 48, 8) == 24
    assert gemm_fact("hot_operands", 128, 384, 64, 48, 8) == 4  # three vectors and a broadcast
    assert gemm_fact("hot_fma", 128, 384, 64, 48, 8) == 24
    assert gemm_fact("hot_loads_per_fma", 128, 384, 64, 48, 8) == 3 / 24
    assert gemm_fact("hot_scalars_per_fma", 128, 384, 64, 48, 8) == pytest.approx(8 / 24)
    assert gemm_fact("hot_trips", 128, 384, 64, 48, 8) == 64
    assert gemm_fact("lanes_used", 128, 384, 64, 48, 8) == 1
    assert gemm_fact("spills", 128, 384, 64, 48, 8) == 0


def test_spills_are_what_the_registers_lack() -> None:
    program = gemm(128, 384, 64, epilogue=lambda y: y)
    wide = replace(gemm_sketch(), constraints=())
    table = table_of(program, wide, cols=96, rows=14)
    assert fact(table, "spills") == 6 * 14 + 6 + 1 - 32
    assert (
        fact(table_of(program, gemm_sketch(8), AVX2, cols=48, rows=4), "spills") == 6 * 4 + 7 - 16
    )


def test_overlapping_blocks_count_as_work() -> None:
    exact = 128 * 384 * 64
    assert gemm_fact("fma_ops", 128, 384, 64, 48, 8) == exact
    assert gemm_fact("fma_ops", 128, 384, 64, 48, 9) == pytest.approx(exact * 15 * 9 / 128)
    assert gemm_fact("fma_ops", 128, 400, 64, 96, 8) == pytest.approx(exact * 5 * 96 / 384)


def test_imbalance_is_that_of_the_busiest_thread() -> None:
    assert gemm_fact("tasks", 128, 384, 64, 48, 8) == 8
    assert gemm_fact("imbalance", 128, 384, 64, 48, 8) == pytest.approx(1)
    assert gemm_fact("tasks", 128, 48 * 5, 64, 48, 8) == 5
    assert gemm_fact("imbalance", 128, 48 * 5, 64, 48, 8) == pytest.approx(6 / 5, rel=0.01)


def test_what_fits_moves_nothing_and_what_does_not_is_streamed() -> None:
    # k=32: a panel of w takes 6 KiB, the rows of x 1 KiB: all of a thread's data fits L2.
    assert gemm_fact("l3_traffic", 128, 384, 32, 48, 8) == 0
    # k=1024: a panel of 192 KiB stays in L2 and passes through L1 once for each of 16 blocks.
    passed = gemm_fact("l2_traffic", 128, 384, 1024, 48, 8)
    panel = 1024 * 48 * 4
    rows_of_x = 128 * 1024 * 4
    assert passed == pytest.approx(4 * (16 * panel + rows_of_x + 2 * 128 * 48 * 4), rel=0.05)


def test_work_repeated_where_a_producer_is_inlined() -> None:
    program = softmax(64, 96)
    kept = table_of(program, softmax_sketch((0, 2, 3)), block=4, parts=1, cols=32)
    again = table_of(program, softmax_sketch((0, 3)), block=4, parts=1, cols=32)
    exp, div = scalar_cost("exp"), scalar_cost("div")
    assert fact(kept, "special_ops") == 64 * 96 * (exp + div)
    assert fact(again, "special_ops") == 64 * 96 * (2 * exp + div)
    assert fact(again, "repeated") > 1.3 * fact(kept, "repeated")


def test_an_inner_reduction_that_is_not_kept_is_computed_for_every_element() -> None:
    program = softmax(16, 64)
    sketch = Sketch("all inlined", (act("inline", keep=[]),), ())
    # The maximum and the sum of a row are computed again for each of its 64 columns.
    special = fact(table_of(program, sketch), "special_ops")
    exp, div = scalar_cost("exp"), scalar_cost("div")
    assert special == 16 * 64 * (64 * exp + exp + div)


def test_lanes_that_memory_does_not_follow_are_gathered() -> None:
    x = input_("x", {"m": 64, "k": 32})
    w = input_("w", {"n": 64, "k": 32}, kind="weight")  # rows of w are columns of the product
    y = sum_("k", x * w)
    out = (Output("y", ("m", "n"), "float32", (64, 64)),)
    program = Program("algebra", (x, w), out, (y,))
    packed = table_of(program, gemm_sketch(), cols=32, rows=4)
    plain = table_of(program, unpacked_sketch(), cols=32, rows=4)
    assert fact(packed, "gathered_loads") == 0
    assert fact(packed, "packed_bytes") == 64 * 32 * 4
    # Each thread: 1 panel x 16 blocks x 32 steps x 32 lanes.
    assert fact(plain, "gathered_loads") == 16 * 32 * 32
    assert fact(plain, "analytic_us") > 1.5 * fact(packed, "analytic_us")


def test_a_gather_touches_the_rows_that_it_reads_and_no_others() -> None:
    ids = input_("ids", {"m": 64}, dtype="int32")
    table = input_("table", {"v": 50_000, "k": 256}, kind="weight")
    out = (Output("y", ("m", "k"), "float32", (64, 256)),)
    program = Program("algebra", (ids, table), out, (take(table, "v", ids) * 2.0,))
    sketch = Sketch(
        "rows",
        (
            act("inline", keep=[]),
            act("split", axis="k", size=16, nest="y", tail="exact"),
            act("bind", nest="y", loops=["m:grid", "k.o:serial", "k.i:lane"]),
        ),
        (),
    )
    found = table_of(program, sketch)
    rows = 32 * 256 * 4  # of one thread
    assert fact(found, "working_bytes") == pytest.approx(2 * rows + 32 * 4, rel=0.05)
    assert fact(found, "dram_traffic") == 0
    assert fact(found, "gathered_loads") == 0
    assert fact(found, "analytic_us") < 20


def test_rows_at_powers_of_two_press_into_one_set() -> None:
    assert gemm_fact("set_pressure", 64, 64, 1024, 16, 14) == 14  # 4 KiB apart
    assert gemm_fact("set_pressure", 64, 64, 1536, 16, 14) == 7
    assert gemm_fact("set_pressure", 64, 64, 1040, 16, 14) < 1.1


def test_a_chain_of_one_accumulator_is_bound_by_latency() -> None:
    assert gemm_fact("hot_chain", 64, 64, 1024, 16, 1) > 1
    assert gemm_fact("hot_chain", 64, 64, 1024, 48, 8) < 0.2


def test_trips_of_a_triangle() -> None:
    n = 101
    x = input_("x", {"j": n})
    out = buffer("y", [n], "float32", "output")
    inner = store(out, load(x, [iota("j", n)]), [iota("i", n)])
    loops = forall("i", 0, n, "serial", [forall("j", 0, iota("i", n) + 1, "serial", [inner])])
    program = Program(
        "tile", (x,), (Output("y", ("i",), "float32", (n,)),), (kernel("k", [loops]),)
    )
    work = count(Program("algebra", (x,), (Output("y", ("j",), "float32", (n,)),), (x,)))
    table = features(program, ZEN4, work).evaluate({"": np.zeros(1, np.int64)})
    assert fact(table, "stores") == n * (n + 1) / 2


def test_horizontal_folds_and_scratch_of_a_row_reduction() -> None:
    table = table_of(rmsnorm(64, 96), softmax_sketch((4,)), block=8, parts=2, cols=32)
    assert fact(table, "scratch_bytes") == 8 * 4
    assert fact(table, "lane_folds") == 32 * 4  # rows of a thread x halvings of 16 lanes
    assert fact(table, "launches") == 1
    assert fact(table, "regions") == 1


# ---- edges -------------------------------------------------------------------------------------


def test_rates_of_a_core_are_refused_to_other_targets() -> None:
    with pytest.raises(IRError, match="gpu"):
        rates(replace(ZEN4, kind="gpu"))


def test_a_sketch_that_does_not_apply_is_a_value() -> None:
    sketch = Sketch("wrong", (act("inline", keep=[]), act("split", axis="zz", size=4)), ())
    assert isinstance(sketch_features(gemm(32, 32, 32), sketch, ZEN4), Illegal)


def test_tables_of_two_versions_do_not_mix() -> None:
    program, sketch = CASES["gemm"]
    table = table_of(program, sketch)
    with pytest.raises(IRError, match="version"):
        concatenate([table, replace(table, version="cpu-0")])


def test_a_hundred_thousand_candidates_in_a_second() -> None:
    made = sketch_features(layernorm(128, 384), softmax_sketch((1, 7)), ZEN4)
    assert not isinstance(made, Illegal)
    rng = np.random.default_rng(0)
    knobs = (Knob("block", (1, 2, 4, 8, 16)), Knob("parts", (1, 2, 4)), Knob("cols", (16, 32, 64)))
    rows = {k.name: rng.choice(k.domain, 100_000) for k in knobs}
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        table = made.evaluate(rows)
        times.append(time.perf_counter() - begun)
    assert len(table) == 100_000
    assert min(times) < 1.0, f"{min(times):.2f} s"
