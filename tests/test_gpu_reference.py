"""References in pieces and as samples, against the interpreter's whole answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autosched.codegen.gpu_jobs import usual
from autosched.codegen.gpu_reference import Effort, reference
from autosched.codegen.gpu_task import GpuTask, draw_on, make_task, mend
from autosched.datasets.workloads.attention import attention, attention_backward
from autosched.ir.define import algebra
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.ops import input_, iota, reaxis, scan, sum_
from autosched.ir.pieces import cuts
from autosched.ir.record import Status

CPU = torch.device("cpu")
SIZES = {"b": 2, "h": 4, "g": 2, "i": 37, "j": 37, "d": 4, "e": 4, "dtype": "float32"}


def moved() -> Program:
    """A running sum over the axis that is cut, read backwards, and a product with both."""
    x, y = input_("x", {"m": 41, "k": 30}), input_("y", {"m": 41, "k": 30, "n": 3})
    run = scan("sum", "m", x)
    back = reaxis(run, {"m": 40 - iota("m", 41)})
    return algebra(z=("k m n", (back + x) * y), s=("n m", sum_("k", back * y)))


PROGRAMS = {
    "causal": lambda: attention(**SIZES, mask="causal"),
    "backward": lambda: attention_backward(**SIZES, mask="causal"),
    "moved": moved,
}


def whole(program: Program, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return evaluate(program, {n: x.numpy() for n, x in inputs.items()})


@pytest.mark.parametrize("name", PROGRAMS)
def test_pieces_are_together_what_the_interpreter_says(name):
    program = PROGRAMS[name]()
    inputs = draw_on(program, 0, CPU)
    effort = Effort(budget_s=60, elements=700)
    assert all(cut.count > 1 for cut in cuts(program, effort.elements))
    found, want = reference(program, inputs, CPU, effort), whole(program, inputs)
    assert not found.rows and list(found.outputs) == [o.name for o in program.outputs]
    for key, x in found.outputs.items():
        np.testing.assert_allclose(x.numpy(), want[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_sample_has_both_ends_and_is_exact(name):
    program = PROGRAMS[name]()
    inputs = draw_on(program, 0, CPU)
    found = reference(program, inputs, CPU, Effort(budget_s=0, elements=700))
    want = whole(program, inputs)
    assert set(found.rows) == set(want)
    for key, (dim, at) in found.rows.items():
        extent = want[key].shape[dim]
        assert at[0] == 0 and at[-1] == extent - 1 and len(at) < extent
        rows = np.take(want[key], at.numpy(), dim)
        np.testing.assert_allclose(found.outputs[key].numpy(), rows, rtol=1e-12, atol=1e-12)


def test_small_programs_are_evaluated_whole():
    assert [c.count for c in cuts(PROGRAMS["causal"]())] == [1]


def test_what_the_device_is_warmed_up_with_is_a_program():
    task = make_task(usual(), 0, CPU)
    assert not task.rows and task.checked == 1.0 and bool(torch.isfinite(task.outputs["y"]).all())


def sampled() -> tuple[GpuTask, torch.Tensor]:
    """A task with a sampled reference, and the right answer to its first output."""
    program = attention(**SIZES, mask="causal")
    task = make_task(program, 0, CPU, effort=Effort(budget_s=0, elements=700))
    name = program.outputs[0].name
    return task, torch.from_numpy(whole(program, dict(task.inputs))[name]).to(torch.float32)


def test_a_sample_finds_wrong_rows_and_nans_anywhere():
    task, right = sampled()
    output = task.program.outputs[0]
    dim, at = task.rows[output.name]
    assert task.compare(output, right, None).ok and 0 < task.checked < 0.5
    wrong = right.clone()
    wrong.select(dim, int(at[-1])).add_(1.0)
    assert task.compare(output, wrong, None).status is Status.WRONG_RESULT
    unseen = next(n for n in range(right.shape[dim]) if n not in at.tolist())
    hole = right.clone()
    hole.select(dim, unseen)[0, 0, 0] = float("nan")
    assert task.compare(output, hole, None).status is Status.NAN_RESULT
    assert task.compare(output, right[:1], None).status is Status.WRONG_RESULT


def test_a_sample_is_made_again_of_the_same_rows():
    task, _ = sampled()
    before = {name: x.clone() for name, x in task.outputs.items()}
    next(iter(task.outputs.values())).zero_()
    assert mend([task])
    assert all(torch.equal(x, before[name]) for name, x in task.outputs.items())
