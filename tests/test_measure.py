"""Timing, pairing and checking of results: what they must notice, and what they must not."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from autosched.codegen import check, measure
from autosched.codegen.check import compare, poison, still_poisoned, unwritten
from autosched.codegen.measure import Cache, Timing, time_callable, time_interleaved
from autosched.codegen.measure_jobs import compare_stored
from autosched.codegen.pairing import Pairing, Side, paired
from autosched.codegen.reference import reference as reference_of
from autosched.codegen.workers import Failed, WorkerPool
from autosched.ir import ops
from autosched.ir.node import Output, Program
from autosched.ir.record import Status

TESTS = str(Path(__file__).parent)
FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)
EXACT = (np.int8, np.uint8, np.int32, np.int64, np.bool_)


# -- timing --------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock in nanoseconds that only `advance` moves: timings are exact."""
    now = [0]
    monkeypatch.setattr(measure.time, "perf_counter_ns", lambda: now[0])
    return now


def advance(clock: list[int], steps_ns: Iterator[int] | int) -> Callable[[], None]:
    def run() -> None:
        clock[0] += steps_ns if isinstance(steps_ns, int) else next(steps_ns)
    return run


def test_quantiles_of_samples() -> None:
    t = Timing.of([float(n) for n in range(101)], inner=2)
    assert (t.p10_us, t.median_us, t.p90_us, t.runs) == (10.0, 50.0, 90.0, 202)
    assert t.spread_us == 80.0
    assert Timing.from_json(t.to_json()) == t


def test_the_median_is_of_single_runs(clock: list[int]) -> None:
    pattern = [100_000, 100_000, 900_000]  # one slow run in three
    t = time_callable(advance(clock, (pattern[i % 3] for i in range(10_000))),
                      target_time_s=0.03)
    assert (t.median_us, t.p90_us, t.inner, t.cache) == (100.0, 900.0, 1, Cache.WARM)
    assert t.runs * (1.1 / 3) == pytest.approx(30, rel=0.05)


def test_short_runs_are_timed_several_at_once(clock: list[int]) -> None:
    t = time_callable(advance(clock, 250), target_time_s=0.001)
    assert t.median_us == 0.25 and t.inner == 80 and t.runs == 80 * 50


def test_limits_on_the_number_of_runs(clock: list[int]) -> None:
    slow = advance(clock, 1_000_000_000)
    assert time_callable(slow, min_runs=7).runs == 7
    assert time_callable(advance(clock, 50_000), max_runs=20).runs == 20


def test_warm_up_comes_first_and_does_not_count(clock: list[int]) -> None:
    steps = iter([9_000_000] * 3 + [50_000] * 100_000)
    t = time_callable(advance(clock, steps), warmup_runs=3, warmup_s=0.0)
    assert t.p90_us == 50.0


def test_a_hopeless_candidate_is_given_up(clock: list[int]) -> None:
    assert time_callable(advance(clock, 2_000_000), stop_above_us=1000.0).runs == 3
    assert time_callable(advance(clock, 900_000), stop_above_us=1000.0).runs > 100


def test_buffers_are_rotated(clock: list[int]) -> None:
    calls: list[int] = []

    def use(n: int) -> Callable[[], None]:
        def run() -> None:
            calls.append(n)
            clock[0] += 100_000
        return run
    t = time_callable([use(0), use(1), use(2)], target_time_s=0.003)
    assert t.cache is Cache.ROTATED
    assert calls == [i % 3 for i in range(len(calls))] and len(calls) > 30


def test_cold_runs_meet_flushed_caches() -> None:
    data = np.ones(64 << 10, np.float64)  # 512 KiB: stays in a second-level cache
    warm = time_callable(lambda: data.sum(), target_time_s=0.05)
    cold = time_callable(lambda: data.sum(), target_time_s=0.01, cold=True)
    assert cold.cache is Cache.COLD and cold.inner == 1
    assert cold.median_us > 1.1 * warm.median_us


def test_real_time_is_met() -> None:
    t = time_callable(lambda: time.sleep(0.002), min_runs=10, target_time_s=0.02)
    assert 2000 <= t.median_us < 4000 and t.runs == 10


def test_the_garbage_collector_is_kept_out_and_restored() -> None:
    states: list[bool] = []
    time_callable(lambda: states.append(gc.isenabled()), target_time_s=0.001)
    assert not any(states) and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        time_callable(lambda: 1 / 0)
    assert gc.isenabled()


def test_finalists_alternate_forth_and_back(clock: list[int]) -> None:
    visits: list[int] = []

    def use(n: int, ns: int) -> Callable[[], None]:
        def run() -> None:
            clock[0] += ns
            visits.append(n)
        return run
    a, b = time_interleaved([use(0, 50_000), use(1, 100_000)], rounds=4, target_time_s=0.004,
                            warmup_s=0.0, warmup_runs=1)
    assert (a.median_us, b.median_us) == (50.0, 100.0)
    order = [n for i, n in enumerate(visits) if i == 0 or n != visits[i - 1]]
    # Warming up, A B; then the rounds A B, B A, A B, B A, neighbours of one kind as one.
    assert order == [0, 1, 0, 1, 0, 1, 0]
    assert a.runs == 4 * 20 and b.runs == 4 * 10


def test_a_drifting_clock_favours_nobody(clock: list[int]) -> None:
    def drifting() -> None:  # ever slower, as a CPU that heats up
        clock[0] += 100_000 + clock[0] // 100_000
    a, b = time_interleaved([drifting, drifting], rounds=10, target_time_s=0.2)
    assert a.median_us == pytest.approx(b.median_us, rel=0.02)


# -- pairs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pools() -> Iterator[tuple[WorkerPool, WorkerPool]]:
    more: dict[str, Any] = {"env": {"PYTHONPATH": TESTS}, "packages": ("autosched", "worker_jobs")}
    with WorkerPool(1, **more) as a, WorkerPool(1, **more) as b:
        yield a, b


def side(pool: WorkerPool, factory: str = "adder", **kwargs: Any) -> Side:
    return Side(pool, f"worker_jobs:{factory}", kwargs)


def test_a_pair_tells_the_faster_side(pools: tuple[WorkerPool, WorkerPool]) -> None:
    got = paired(side(pools[0], n=20_000), side(pools[1], n=400_000), rounds=3, visit_s=0.02)
    assert isinstance(got, Pairing), got
    assert got.speedup > 3 and got.a.median_us < got.b.median_us
    assert got.speedup_low <= got.speedup <= got.speedup_high
    assert got.stray_cpu < 0.2 and got.rounds == 3


def test_equals_are_about_equal(pools: tuple[WorkerPool, WorkerPool]) -> None:
    got = paired(side(pools[0], n=100_000), side(pools[1], n=100_000), rounds=5, visit_s=0.02)
    assert isinstance(got, Pairing), got
    assert 0.5 < got.speedup < 2.0


def test_a_side_that_does_not_rest_is_reported(pools: tuple[WorkerPool, WorkerPool]) -> None:
    with WorkerPool(1, env={"PYTHONPATH": TESTS}, packages=pools[0].packages) as restless:
        got = paired(side(restless, "spinner", n=100), side(pools[1], n=100), rounds=1,
                     visit_s=0.005, settle_s=0.05)
    assert isinstance(got, Pairing), got
    assert got.stray_cpu > 0.2


def test_a_side_that_crashes_is_a_failure(pools: tuple[WorkerPool, WorkerPool]) -> None:
    got = paired(side(pools[0], n=10), side(pools[1], "crasher"))
    assert isinstance(got, Failed) and got.status is Status.RUN_CRASHED
    assert isinstance(paired(side(pools[0], n=10), side(pools[1], n=10), rounds=1,
                             visit_s=0.001), Pairing), "the pool goes on"


def test_two_sides_need_two_processes(pools: tuple[WorkerPool, WorkerPool]) -> None:
    with pytest.raises(ValueError, match="process of its own"):
        paired(side(pools[0], n=10), side(pools[0], n=10))


# -- poison --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_poison_is_a_nan_in_every_float(dtype: Any) -> None:
    a = np.zeros((3, 5), dtype)
    poison(a)
    assert np.isnan(a.astype(np.float64)).all() and still_poisoned(a).all()


@pytest.mark.parametrize("dtype", FLOATS + EXACT)
def test_what_was_never_written_is_counted(dtype: Any) -> None:
    out, second = np.zeros((7, 9), dtype), np.zeros(4, dtype)

    def kernel() -> None:
        out[:6, :] = 1
        out[6, :4] = -1 if np.dtype(dtype).kind == "i" else 1  # -1 is a poison's own pattern
        second[...] = 1
    assert unwritten(kernel, [out, second]) == (5, 0)


def test_strided_and_empty_outputs_are_poisoned_in_place() -> None:
    whole = np.zeros((4, 6), np.float32)
    part = whole[::2, 1::2]
    poison(part)
    assert np.isnan(part).all() and np.isnan(whole).sum() == part.size
    assert still_poisoned(part).all()
    assert unwritten(lambda: None, [np.zeros((0, 3), np.float32), np.zeros((), np.int8)]) == (0, 1)


def test_summing_onto_the_old_content_shows() -> None:
    out = np.zeros(10, np.float32)

    def kernel() -> None:
        out[...] += 1  # a kernel that forgot to clear its accumulator
    assert unwritten(kernel, [out]) == (0,) or np.isnan(out).all()
    assert compare(out, np.ones(10)).status is Status.NAN_RESULT


# -- comparisons ---------------------------------------------------------------------------


def reference(n: int = 10_000) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n // 10, 10))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_to_the_dtype_passes(dtype: Any) -> None:
    ref = reference()
    got = compare(ref.astype(dtype), ref)
    assert got.ok and got.reason is None and got.rel_l2 <= got.bound


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "float32"), (np.float16, "float16"),
                                             (ml_dtypes.bfloat16, "bfloat16")])
def test_the_bound_is_where_the_table_says(dtype: Any, name: str) -> None:
    ref = reference()
    bound = check.REL_L2_BOUND[name]
    out = ref * (1 + 1.5 * bound)
    got = compare(out.astype(dtype), ref)
    assert got.status is Status.WRONG_RESULT and got.rel_l2 == pytest.approx(1.5 * bound, rel=0.1)
    assert compare((ref * (1 + 0.7 * bound)).astype(dtype), ref).ok
    # Results in a wider type are held to the bound of the type they stand for.
    assert compare(out.astype(np.float64), ref, dtype=name).bound == bound


def test_one_wrong_element_among_many_is_found() -> None:
    ref = reference(1_000_000)
    out = ref.astype(np.float16)
    out[77, 7] = 0.5 - ref[77, 7]
    got = compare(out, ref)
    assert got.rel_l2 < got.bound and got.status is Status.WRONG_RESULT
    assert got.reason is not None and "1 of 1000000" in got.reason


def test_nan_and_infinity_must_agree_in_place() -> None:
    ref = reference()
    ref[3, :4] = np.nan, np.inf, -np.inf, 70_000.0
    assert compare(ref.astype(np.float32), ref).ok
    # 70,000 is beyond fp16: the infinity it rounds to is right there.
    with np.errstate(over="ignore"):
        assert compare(ref.astype(np.float16), ref).ok
    for index, value in [((0, 0), np.nan), ((0, 0), np.inf), ((3, 0), 0.0), ((3, 1), -np.inf),
                         ((3, 2), np.nan), ((3, 1), 3e38)]:
        out = ref.astype(np.float32)
        out[index] = value
        got = compare(out, ref)
        assert got.status is Status.NAN_RESULT and "1 of 10000" in (got.reason or "")


@pytest.mark.parametrize("dtype", EXACT)
def test_integers_and_bools_are_exact(dtype: Any) -> None:
    ref = (np.arange(100) % 2).astype(dtype)
    assert compare(ref.copy(), ref).ok
    assert compare(ref.copy(), ref.astype(np.float64)).ok
    out = ref.copy()
    out[5] = not out[5]
    got = compare(out, ref)
    assert got.status is Status.WRONG_RESULT and got.max_abs == 1.0
    assert got.reason is not None and "1 of 100" in got.reason


def test_large_integers_are_not_rounded() -> None:
    ref = np.array([2**62 + 1])
    assert not compare(np.array([2**62]), ref).ok


def test_zero_references() -> None:
    zero = np.zeros(100)
    assert compare(zero.astype(np.float32), zero).ok
    assert compare(np.full(100, 1e-8, np.float32), zero).ok
    assert not compare(np.full(100, 1e-3, np.float32), zero).ok
    assert compare(np.zeros((0, 4), np.float32), np.zeros((0, 4))).ok
    assert compare(np.float32(1).reshape(()), np.ones(())).ok


def test_other_shapes_and_types() -> None:
    assert compare(np.zeros((2, 3), np.float32), np.zeros((3, 2))).status is Status.WRONG_RESULT
    with pytest.raises(ValueError, match="no error bound"):
        compare(np.zeros(3, np.complex64), np.zeros(3))


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ref = reference()
    out = ref.astype(np.float32)
    out[999, 9] += 0.01
    whole = compare(out, ref)
    monkeypatch.setattr(check, "_CHUNK", 7)
    parts = compare(out, ref)
    assert parts.status is whole.status is Status.WRONG_RESULT
    assert parts.rel_l2 == pytest.approx(whole.rel_l2) and parts.max_abs == whole.max_abs


def test_an_output_is_held_to_the_coarsest_type_it_was_rounded_to() -> None:
    x = ops.input_("x", {"i": 8}, "float16")
    wide = ops.cast(x, "float32")
    assert check.bound_dtype(wide * 2.0) == "float32"  # what comes in is exact
    assert check.bound_dtype(ops.cast(ops.cast(wide * 3.1, "float16"), "float32")) == "float16"
    assert check.bound_dtype(ops.cast(x, "int32")) is None
    halves = ops.cast(ops.cast(wide * 3.1, "bfloat16"), "float32")
    program = Program("algebra", (x,), (Output("y", ("i",), "float32", (8,)),), (halves,))
    data = reference_of(program, 0)
    assert data.bounds == {"y": "bfloat16"}
    other_way = (data.outputs["y"] * (1 + 2**-8)).astype(np.float32)  # of a tie: one bit is off
    assert compare_stored(other_way, data.outputs["y"], data.bounds["y"]).ok
    assert not compare_stored(other_way, data.outputs["y"]).ok
