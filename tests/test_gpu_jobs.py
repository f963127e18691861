"""Measuring jobs on the CPU, in Triton's interpreter: right modules pass, wrong ones are named."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton_modules as modules
from programs import algebra, softmax

from autosched.codegen.check import compare as compare_arrays
from autosched.codegen.gpu_arena import GUARD_BYTES, Arena, broken
from autosched.codegen.gpu_check import compare
from autosched.codegen.gpu_jobs import contained
from autosched.codegen.gpu_task import make_task, mend
from autosched.codegen.jobs import JobFailure
from autosched.codegen.reference import write_program
from autosched.codegen.runtime.launch import Plan, Step
from autosched.codegen.triton_build import build
from autosched.codegen.triton_spec import Tensor
from autosched.codegen.workers import Failed, Job, Ok, WorkerPool
from autosched.ir.node import Program
from autosched.ir.ops import cast, input_, sum_, take
from autosched.ir.record import Status
from autosched.ir.target import parse_target
from autosched.tools.profile_log import read_journal

SM90 = parse_target("sm_90")
MEASURE = "autosched.codegen.gpu_jobs:measure"


def product(m: int, n: int, k: int, dtype: str = "float32") -> Program:
    x, w = input_("x", {"m": m, "k": k}, dtype), input_("w", {"k": k, "n": n}, dtype, "weight")
    y = sum_("k", cast(x, "float32") * cast(w, "float32"))
    return algebra({"y": ("m", "n")}, y=cast(y, dtype))


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1, 60.0, env={"TRITON_INTERPRET": "1"}) as made:
        yield made


@pytest.fixture
def measured(pool: WorkerPool, tmp_path: Path) -> Any:
    def run(program: Program, module: Any, **more: Any) -> Any:
        write_program(tmp_path / "task", program)
        entry = build(module, SM90, tmp_path / "cache")
        kwargs = {"folder": str(tmp_path / "task"), "entry": str(entry.folder), "seed": 0,
                  "device": "cpu", "launcher": "jit", **more}  # fmt: skip
        return pool.run(Job(MEASURE, kwargs))

    return run


def copied(t: int, c: int) -> Program:
    return algebra({"y": ("t", "c")}, y=input_("x", {"t": t, "c": c}) * 1.0)


# (Triton's interpreter multiplies the bits of bfloat16, hence none here.)
@pytest.mark.parametrize("program, module", [
    (product(33, 40, 50), modules.gemm(33, 40, 50)),
    (product(33, 40, 50, "float16"), modules.gemm(33, 40, 50, dtype="float16")),
    (softmax(9, 100), modules.softmax(9, 100)),  # persistent: 4 programs for 9 rows
    (copied(48, 32), modules.copy(48)),  # tensor descriptors
])  # fmt: skip
def test_right_modules_are_checked_and_timed(measured, program, module):
    outcome = measured(program, module)
    assert isinstance(outcome, Ok), outcome
    assert 0 <= outcome.value["rel_l2"] < 2e-3
    assert outcome.value["timing"]["median_us"] > 0


def test_launches_share_scratch(measured):
    x = input_("x", {"t": 6, "c": 20})
    program = algebra({"y": ("t", "c")}, y=x / sum_("c", x))
    assert isinstance(measured(program, modules.shares(6, 20)), Ok)


def test_a_wrong_answer_is_told(measured):
    outcome = measured(copied(9, 100), modules.softmax(9, 100))
    assert isinstance(outcome, Failed) and outcome.status is Status.WRONG_RESULT
    assert "y: relative error" in outcome.reason


def test_an_element_that_is_not_written_is_told(measured):
    outcome = measured(copied(4, 4), modules.fault("lazy", (4, 4)))
    assert isinstance(outcome, Failed) and outcome.status is Status.WRONG_RESULT
    assert "1 elements of y were never written" in outcome.reason


def test_a_write_beside_the_output_is_told(measured):
    program = copied(4, 4)
    module = modules.fault("lazy", (4, 4))
    (launch,) = module.launches
    over = dataclasses.replace(module, launches=(dataclasses.replace(launch, programs=17),))
    outcome = measured(program, over)
    assert isinstance(outcome, Failed) and "4 bytes beside y were written" in outcome.reason


@pytest.mark.parametrize("extents", [(4, 4), (1, 3)])
def test_a_write_to_an_input_is_told_and_undone(measured, extents):
    """The last element of x becomes NaN, which y has been made of before."""
    program = copied(*extents)
    for _ in range(2):
        outcome = measured(program, modules.fault("strays", extents))
        assert isinstance(outcome, Failed) and outcome.status is Status.WRONG_RESULT
        assert "wrote outside its outputs: to input x, or beside it" in outcome.reason
    lazy = modules.fault("lazy", extents)
    (launch,) = lazy.launches
    whole = dataclasses.replace(launch, programs=launch.programs + 1)
    assert isinstance(measured(program, dataclasses.replace(lazy, launches=(whole,))), Ok)


def test_an_arena_knows_what_was_written_to(arena):
    assert broken([arena]) == [] and arena.changed() == ()
    for name, x in arena.tensors.items():
        assert x.is_contiguous() and x.data_ptr() % 64 == 0
        if not x.numel():
            continue
        x.view(-1).view(torch.uint8)[-1] ^= 1
        assert broken([arena]) == [arena] and arena.changed() == (name,)
        arena.fill(VALUES)
    assert broken([arena]) == []


@pytest.mark.parametrize("offset", [-1, -GUARD_BYTES, 0, GUARD_BYTES - 1])
def test_an_arena_knows_what_was_written_beside(arena, offset):
    """Bytes before the first tensor and behind the last."""
    first, last = arena.tensors["x"], arena.tensors["flags"]
    edge = first.data_ptr() if offset < 0 else last.data_ptr() + last.numel()
    ctypes.memset(edge + offset, 0, 1)
    assert arena.changed() == (("x",) if offset < 0 else ("flags",))


VALUES = {
    "x": torch.arange(6.0).view(2, 3), "none": torch.ones(0, 4), "one": torch.ones(()),
    "turned": torch.arange(6.0).view(2, 3).t(), "half": torch.ones(5, dtype=torch.bfloat16),
    "eight": torch.ones(5).to(torch.float8_e4m3fn), "flags": torch.ones(7, dtype=torch.bool),
}  # fmt: skip


@pytest.fixture
def arena():
    made = Arena(VALUES, torch.device("cpu"))
    for name, x in VALUES.items():
        assert torch.equal(made.tensors[name].double(), x.double())
    yield made


def test_other_tasks_are_looked_at_where_one_fails():
    mine, other = (make_task(copied(4, n), 0, torch.device("cpu")) for n in (4, 5))
    want = {n: x.clone() for n, x in {**other.inputs, **other.outputs}.items()}
    with (pytest.raises(JobFailure, match=r"to input x, reference of y, .*; 3 of 16") as found,
          contained(mine, [other])):  # fmt: skip
        other.inputs["x"].fill_(math.nan)
        other.outputs["y"][0, 0] += 1
        raise JobFailure(Status.NAN_RESULT, "3 of 16 elements are NaN")
    assert found.value.status is Status.WRONG_RESULT
    assert all(torch.equal(x, want[n]) for n, x in {**other.inputs, **other.outputs}.items())
    other.inputs["x"].fill_(math.nan)
    assert mend([mine, other]) == ("input x",) and mend([mine, other]) == ()
    with pytest.raises(JobFailure, match=r"^3 of 16"), contained(mine, [other]):
        raise JobFailure(Status.NAN_RESULT, "3 of 16 elements are NaN")


def test_too_much_scratch_is_one_failure(measured):
    made = modules.shares(6, 20)
    wide = [dataclasses.replace(t, extents=(1 << 48,)) if t.name == "s" else t
            for t in made.tensors]  # fmt: skip
    x = input_("x", {"t": 6, "c": 20})
    program = algebra({"y": ("t", "c")}, y=x / sum_("c", x))
    outcome = measured(program, dataclasses.replace(made, tensors=tuple(wide)))
    assert isinstance(outcome, Failed) and outcome.status is Status.OUT_OF_MEMORY
    assert outcome.reason.startswith("no room on the device: ")
    assert isinstance(measured(program, made), Ok)


def test_a_batch_goes_on_after_each_fault(pool: WorkerPool, tmp_path: Path):
    """As a profiling run measures: wrong, stray and too large ones between right ones."""
    program = copied(4, 4)
    write_program(tmp_path / "task", program)
    lazy, strays = modules.fault("lazy", (4, 4)), modules.fault("strays", (4, 4))
    (launch,) = lazy.launches
    right = dataclasses.replace(lazy, launches=(dataclasses.replace(launch, programs=16),))
    huge = dataclasses.replace(right, tensors=(*right.tensors, Tensor("s", "float32", (1 << 48,),
                                                                      "scratch")))  # fmt: skip
    made = {"a": right, "lazy": lazy, "b": right, "strays": strays, "c": right, "huge": huge,
            "d": right}  # fmt: skip
    items = [{"id": name, "entry": str(build(m, SM90, tmp_path / "cache").folder),
              "module": m.to_json(), "bound": None} for name, m in made.items()]  # fmt: skip
    job = Job("autosched.tools.profile_jobs:measure_batch", {
        "folder": str(tmp_path / "task"), "items": items, "journal": str(tmp_path / "journal"),
        "seed": 0, "device": "cpu", "launcher": "jit"})  # fmt: skip
    outcome = pool.run(job)
    assert isinstance(outcome, Ok) and outcome.value["mended"] == [], outcome
    results, left = read_journal(tmp_path / "journal")
    assert left is None
    assert {r["id"]: r.get("status", "ok") for r in results} == {
        "a": "ok", "lazy": "wrong_result", "b": "ok", "strays": "wrong_result", "c": "ok",
        "huge": "out_of_memory", "d": "ok",
    }  # fmt: skip


def test_a_module_for_another_task_is_told(measured):
    outcome = measured(softmax(9, 101), modules.softmax(9, 100))
    assert isinstance(outcome, Failed) and outcome.status is Status.UNSUPPORTED
    assert "the module wants x: float32[9, 100], the task has" in outcome.reason


def test_coarser_arithmetic_has_a_coarser_bound(measured):
    x, w = input_("x", {"m": 8, "k": 64}), input_("w", {"k": 64, "n": 8})
    rounded = sum_("k", cast(cast(x, "float16"), "float32") * w)
    program = algebra({"y": ("m", "n")}, y=sum_("k", x * w))
    assert rounded.dtype == "float32"
    source = modules.gemm(8, 8, 64)
    coarse = dataclasses.replace(
        source, source=source.source.replace("tl.dot(a, b", "tl.dot(a.to(tl.float16).to("
                                             "tl.float32), b"))  # fmt: skip
    outcome = measured(program, coarse)
    assert isinstance(outcome, Failed) and outcome.status is Status.WRONG_RESULT
    assert isinstance(measured(program, coarse, bound="float16"), Ok)


# ---- tasks and comparisons ---------------------------------------------------------------------


def test_inputs_are_drawn_in_range_and_by_seed():
    x, at = input_("x", {"t": 5, "c": 3}), input_("at", {"s": 50}, "int32")
    program = algebra({"y": ("s", "c")}, y=take(x, "t", at))
    cpu = torch.device("cpu")
    one, again, other = (make_task(program, seed, cpu) for seed in (0, 0, 1))
    assert torch.equal(one.inputs["x"], again.inputs["x"])
    assert not torch.equal(one.inputs["x"], other.inputs["x"])
    assert one.inputs["at"].max() < 5
    want = one.inputs["x"][one.inputs["at"].long()].double()
    assert torch.equal(one.outputs["y"], want)


def test_types_that_torch_cannot_compute_in_go_through_numpy():
    x = input_("x", {"c": 8}, "uint32")
    task = make_task(algebra({"y": ("c",)}, y=x + x), 0, torch.device("cpu"))
    want = task.inputs["x"].to(torch.int64) * 2
    assert torch.equal(task.outputs["y"].to(torch.int64), want)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("out, ref", [
    ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [1.0, 2.0, 3.5]),
    ([NAN, 1.0], [NAN, 1.0]), ([NAN, 1.0], [1.0, 1.0]), ([INF, 1.0], [1e300, 1.0]),
    ([-INF, 1.0], [INF, 1.0]), ([0.0, 0.0], [0.0, 0.0]), ([1e-9, 0.0], [0.0, 0.0]),
    ([*[1.0] * 4095, 1.04], [1.0] * 4096),
])  # fmt: skip
def test_comparisons_are_those_of_arrays(out, ref, dtype):
    kind = getattr(torch, dtype)
    a, b = torch.tensor(out, dtype=kind), torch.tensor(ref, dtype=torch.float64)
    found, want = compare(a, b, dtype), compare_arrays(a.numpy(), b.numpy())
    assert (found.status, found.reason) == (want.status, want.reason)
    assert found.rel_l2 == pytest.approx(want.rel_l2) and found.bound == want.bound


def test_integers_must_be_equal():
    a, b = torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([1, 2, 4])
    assert "1 of 3 elements differ" in str(compare(a, b, "int32").reason)
    assert compare(a, a, "int32").ok


def test_a_persistent_grid_is_no_larger_than_the_work():
    step = Step("k", (), 300, 4, 1, persistent=2)
    assert step.grid(132) == 264 and step.grid(1000) == 300
    assert dataclasses.replace(step, persistent=0).grid(132) == 300


def test_a_plan_reads_its_json():
    module = modules.shares(3, 4)
    plan = Plan.from_json(module.to_json())
    assert [b.name for b in plan.of_role("scratch")] == ["s"]
    assert [s.kernel for s in plan.steps] == ["parts", "shares"]
