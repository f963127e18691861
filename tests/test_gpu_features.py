"""Features of GPU tile programs: against counts by hand, rows apart, knobs open or bound."""

from __future__ import annotations

import time

import numpy as np
import programs as P
import pytest
import tile_programs as T
from schedules import ZEN4, gemm_sketch
from test_tile import gathered, scores_and_sums

from autosched.costmodel.features import FeatureTable, concatenate, features, sketch_features
from autosched.costmodel.gpu_catalogue import GPU
from autosched.costmodel.gpu_structure import GpuStructure, gpu_structure
from autosched.costmodel.pool import pool
from autosched.costmodel.roofline import RooflineModel, roofline_time
from autosched.costmodel.rows import training_rows
from autosched.datasets.workloads import workloads
from autosched.ir.count import count
from autosched.ir.define import algebra
from autosched.ir.node import IRError, Program
from autosched.ir.ops import cast, exp, input_, sum_
from autosched.ir.record import Record, Status
from autosched.ir.rules.action import Illegal, act
from autosched.ir.schedule import Sketch, replay, symbolic
from autosched.ir.sketches import sketches
from autosched.ir.target import parse_target

TARGET = parse_target("sm_90")


def product(m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    a, b = input_("a", {"m": m, "k": k}, dtype), input_("b", {"k": k, "n": n}, dtype)
    c = sum_("k", cast(a, "float32") * cast(b, "float32"))
    return algebra(c=("m n", cast(c, dtype)))


PROGRAMS = {
    "gemm": product(500, 384, 512),
    "float32": P.gemm(37, 50, 70),
    "attention": P.attention(2, 4, 137, 64, j=241, groups=2),
    "softmax": P.softmax(13, 77),
    "layernorm": P.layernorm(130, 770),
    "swiglu": P.swiglu(130, 77, 150),
    "rotary": P.rotary(2, 3, 13, 24),
    "delta": T.delta_algebra(2, 2, 9, 12, 20),
    "gathered": gathered(),
    "two outputs": scores_and_sums(),
}


def evaluated(program: Program, sketch: Sketch, limit: int = 500) -> tuple[FeatureTable, dict]:
    made = sketch_features(program, sketch, TARGET)
    assert not isinstance(made, Illegal), made
    rows = sketch.table(limit)
    return made.evaluate(rows), rows


def matrix_table(m: int, n: int, k: int, **sizes: int) -> FeatureTable:
    """Of a product whose plan is spelled out, so that no knob stays open."""
    plan = [
        [["m", sizes["rows"]], ["n", sizes["columns"]]],
        [["k", sizes["depth"]]],
        [["warps", sizes.get("warps", 4)], ["stages", sizes.get("stages", 3)]],
    ]
    sketch = Sketch("by hand", (act("tile", plans=[plan], narrow=True),), ())
    table, _ = evaluated(product(m, n, k), sketch)
    return table


def fact(table: FeatureTable, name: str, row: int = 0) -> float:
    return float(table.column(name)[row])


# ---- what every row must hold ------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_row_is_finite_and_stands_alone(name: str) -> None:
    program = PROGRAMS[name]
    found = sketches(program, TARGET)
    assert found
    for sketch in found:
        together, rows = evaluated(program, sketch)
        assert together.version == GPU.version
        assert np.isfinite(together.matrix).all()
        assert (together.matrix >= 0).all()
        made = sketch_features(program, sketch, TARGET)
        assert not isinstance(made, Illegal)
        for i in range(0, len(together), 1 + len(together) // 3):
            alone = made.evaluate({k: c[i : i + 1] for k, c in rows.items()}).matrix
            assert np.array_equal(alone[0], together.matrix[i])


def _masks(structure: GpuStructure) -> int:
    return sum(a.masked for a in structure.accesses)


@pytest.mark.parametrize("name", PROGRAMS)
def test_open_knobs_and_bound_knobs_agree(name: str) -> None:
    program = PROGRAMS[name]
    for sketch in sketches(program, TARGET):
        table, rows = evaluated(program, sketch)
        walked = symbolic(program, sketch)
        assert isinstance(walked, Program)
        opened = gpu_structure(walked)
        for i in range(0, len(table), 1 + len(table) // 3):
            knobs = {k: int(c[i]) for k, c in rows.items() if k}
            bound = replay(program, sketch.schedule(knobs))
            assert isinstance(bound, Program), bound
            alone = features(bound, TARGET, count(program)).evaluate({"": np.zeros(1, np.int64)})
            plain = gpu_structure(bound)
            if _masks(plain) < _masks(opened):
                # With numbers for its knobs a block divides its axis, and the mask goes.
                assert fact(alone, "dot_flops") == fact(table, "dot_flops", i)
                assert fact(alone, "analytic_us") == pytest.approx(
                    fact(table, "analytic_us", i), rel=0.1
                )
                continue
            if len(plain.loops) < len(opened.loops):
                # A block that covers its axis leaves no loop; with open knobs it is of one trip.
                # Of two kernels that take about as long, another one may be the longest.
                marks = ("hot_programs", "hot_warps", "hot_stages", "hot_rows", "hot_columns")
                same = all(fact(alone, n) == fact(table, n, i) for n in marks)
                hot = ("hot_shared_bytes",) if same else ()
                for exact in ("dot_flops", "loaded_bytes", "programs", *hot):
                    assert fact(alone, exact) == pytest.approx(fact(table, exact, i)), exact
                assert fact(alone, "analytic_us") == pytest.approx(
                    fact(table, "analytic_us", i), rel=0.1
                )
                continue
            differ = ~np.isclose(alone.matrix[0], table.matrix[i], rtol=1e-4)
            assert not differ.any(), (knobs, [n for n, d in zip(table.names, differ) if d])


# ---- counts by hand ----------------------------------------------------------------------------


def test_a_product_of_whole_blocks() -> None:
    table = matrix_table(512, 384, 256, rows=128, columns=64, depth=32)
    programs = 4 * 6
    assert fact(table, "programs") == programs
    assert fact(table, "hot_trips") == 8
    assert fact(table, "dot_flops") == 2 * 512 * 384 * 256
    assert fact(table, "dot_repeat") == 1
    assert fact(table, "loaded_bytes") == programs * 8 * (128 + 64) * 32 * 2
    assert fact(table, "unique_bytes") == (512 + 384) * 256 * 2
    assert fact(table, "stored_bytes") == 512 * 384 * 2
    assert fact(table, "load_waste") == fact(table, "store_waste") == 0
    assert fact(table, "lane_bytes") == 16
    assert fact(table, "hot_shared_bytes") == 3 * (128 + 64) * 32 * 2
    assert fact(table, "hot_registers") == 40 + 128 * 64 / 128
    assert fact(table, "hot_async") == 1


def test_what_masks_leave_is_not_loaded_but_computed() -> None:
    table = matrix_table(96, 384, 256, rows=128, columns=64, depth=32)
    assert fact(table, "loaded_bytes") == 6 * 8 * (96 + 64) * 32 * 2
    assert fact(table, "load_waste") == pytest.approx(32 / (128 + 64))
    assert fact(table, "store_waste") == pytest.approx(32 / 128)
    assert fact(table, "dot_repeat") == pytest.approx(128 / 96)


def test_larger_blocks_read_less_again() -> None:
    sizes = (32, 64, 128, 256)
    read = [
        fact(matrix_table(1024, 1024, 512, rows=s, columns=64, depth=32), "reread") for s in sizes
    ]
    assert read == sorted(read, reverse=True)
    assert read[0] > 2 * read[-1]


def test_stages_and_warps_cost_what_they_take() -> None:
    few = matrix_table(1024, 1024, 512, rows=128, columns=128, depth=64, stages=2)
    many = matrix_table(1024, 1024, 512, rows=128, columns=128, depth=64, stages=4)
    assert fact(many, "hot_shared_bytes") == 2 * fact(few, "hot_shared_bytes")
    assert fact(many, "hot_resident") < fact(few, "hot_resident")
    assert fact(many, "hot_chain_cycles") < fact(few, "hot_chain_cycles")
    wide = matrix_table(1024, 1024, 512, rows=128, columns=128, depth=64, warps=8)
    assert fact(wide, "hot_registers") < fact(few, "hot_registers")


def test_strided_and_contiguous_reads_differ() -> None:
    x = input_("x", {"m": 256, "n": 256})
    along = algebra(y=("m n", exp(x)))
    across = algebra(y=("n m", exp(x)))
    plans = ([["m", 1], ["n", 256]], [["n", 1], ["m", 256]])
    tables = [
        evaluated(p, Sketch("", (act("tile", plans=[[plan, [], []]]),), ()))[0]
        for p, plan in zip((along, across), plans)
    ]
    straight, strided = tables
    assert fact(straight, "sector_share") == 1
    assert fact(straight, "lane_bytes") == 16
    assert fact(strided, "sector_share") == pytest.approx(4 / 32)
    assert fact(strided, "lane_bytes") == 4
    assert fact(strided, "port_us") > 3 * fact(straight, "port_us")


def test_the_tail_of_the_last_wave() -> None:
    def tail(m: int) -> tuple[float, float]:
        table = matrix_table(m, 128, 512, rows=128, columns=128, depth=64, stages=5)
        assert fact(table, "hot_resident") == 1
        return fact(table, "hot_waves"), fact(table, "hot_tail")

    assert tail(132 * 128) == (1, 0)
    waves, empty = tail(133 * 128)
    assert waves == pytest.approx(133 / 132)
    assert empty == pytest.approx(131 / 264)


def test_trimmed_loops_count_their_mean_trips() -> None:
    masked, plain = (
        min(
            float(evaluated(p, s)[0].column("dot_flops").min())
            for s in sketches(p, TARGET)
            if s.name.startswith("onepass")
        )
        for p in (P.attention(1, 2, 2048, 64), P.attention(1, 2, 2048, 64, mask=None))
    )
    assert 0.5 <= masked / plain < 0.6


def test_the_walk_finds_what_a_step_loop_does() -> None:
    program = PROGRAMS["delta"]
    (sketch,) = sketches(program, TARGET)
    rows = sketch.table()
    made = replay(program, sketch.schedule({k: int(c[0]) for k, c in rows.items()}))
    assert isinstance(made, Program)
    found = gpu_structure(made)
    # One loop over steps, which also stores what they yield; states stay in registers.
    assert [loop.kind for loop in found.loops].count("fold") == 1
    assert [h.role for h in found.held].count("state") == 1
    assert {found.loops[a.loop].kind for a in found.accesses if not a.stores} == {"fold"}
    assert sum(a.stores for a in found.accesses) == 2
    with pytest.raises(IRError, match="tile"):
        gpu_structure(program)


# ---- tables ------------------------------------------------------------------------------------


def test_names_are_those_of_the_catalogue() -> None:
    table = matrix_table(512, 384, 256, rows=128, columns=64, depth=32)
    assert table.names == tuple(f.name for f in GPU.features)
    assert len(set(table.names)) == len(GPU.features)
    assert {GPU.bound, *GPU.shares} <= set(table.names)


def test_tables_of_two_kinds_of_target_do_not_mix() -> None:
    cpu = sketch_features(P.gemm(32, 32, 32), gemm_sketch(), ZEN4)
    assert not isinstance(cpu, Illegal)
    ours = matrix_table(512, 384, 256, rows=128, columns=64, depth=32)
    with pytest.raises(IRError, match="versions"):
        concatenate([cpu.evaluate({"cols": np.array([16]), "rows": np.array([4])}), ours])


def test_a_pool_thins_and_scores_and_records_become_rows() -> None:
    program = product(1024, 1024, 1024)
    found = pool(program, sketches(program, TARGET), TARGET, keep=200)
    assert found.ranked > 1000
    assert not found.illegal
    score = found.score(RooflineModel())
    latency, spread = score(0, None)
    assert len(latency) == len(spread) == len(found.features[0])
    table = found.tables[0]
    again, _ = score(0, {k: c[:5] for k, c in table.items()})
    assert np.allclose(again, latency[:5])
    schedules = [
        found.sketches[0].schedule({k: int(c[i]) for k, c in table.items()}) for i in range(3)
    ]
    records = [
        Record.of(
            workload=program.key, target=TARGET.key, schedule=s.to_json(), status=Status.OK,
            latency_us=10.0 + i, toolchain="t", device="d", threads=1,
        )
        for i, s in enumerate(schedules)
    ]  # fmt: skip
    rows = training_rows(records, {program.key: program}, TARGET)
    assert rows is not None
    assert rows.features.version == GPU.version
    assert np.allclose(rows.features.matrix, found.features[0].matrix[:3])


def test_forty_thousand_rows_take_less_than_a_second() -> None:
    program = P.attention(4, 32, 4096, 128)
    sketch = sketches(program, TARGET)[0]
    made = sketch_features(program, sketch, TARGET)
    assert not isinstance(made, Illegal)
    rows = sketch.table()
    many = {k: np.tile(c, 1 + 40_000 // len(c))[:40_000] for k, c in rows.items()}
    started = time.process_time()
    assert len(made.evaluate(many)) == 40_000
    assert time.process_time() - started < 1.0


def test_loops_between_loaded_bounds_share_their_axis() -> None:
    program = workloads()["grouped_gemm_by_segment"].program(None)
    (rows,) = {e for i in program.inputs for a, e in i.attr[1] if a == "m"}
    for sketch in sketches(program, TARGET)[:1]:
        table, _ = evaluated(program, sketch, 10)
        groups = next(e for i in program.inputs if i.attr[0] == "ends" for _, e in i.attr[1])
        assert fact(table, "hot_trips") == -(-rows // groups)


def test_every_workload_has_features() -> None:
    for name, workload in workloads().items():
        program = workload.program()
        least = roofline_time(program, TARGET)
        for sketch in sketches(program, TARGET)[:1]:
            table = sketch.table(20)
            if len(next(iter(table.values()))):
                made = sketch_features(program, sketch, TARGET)
                assert not isinstance(made, Illegal), name
                found = made.evaluate(table)
                assert np.isfinite(found.matrix).all(), name
                assert (found.matrix >= 0).all(), name
                assert (found.column("analytic_us") > least).all(), name
