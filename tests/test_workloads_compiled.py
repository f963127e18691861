"""Sparse workloads, whose indices are computed, through compiled CPU kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sketches import TARGET, agree, exact
from workload_check import find

from autosched.codegen.build import BuiltKernel, Request, compile_kernels
from autosched.codegen.measure_jobs import bind, run_guarded
from autosched.codegen.task_files import TaskData
from autosched.ir.define import algebra
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.ops import eq, input_, iota, sum_, take, where
from autosched.ir.schedule import Schedule
from autosched.ir.sketches import sketches


def first_schedule(program: Program) -> Schedule:
    """The middle row of the first sketch's table."""
    sketch = sketches(program, TARGET)[0]
    table = sketch.table(limit=2000)
    row = len(next(iter(table.values()))) // 2
    return sketch.schedule({k: int(v[row]) for k, v in table.items() if k})


def check(program: Program, inputs: dict[str, np.ndarray[Any, Any]], folder: Path) -> None:
    arrays = {k: v.astype("f4") if v.dtype.kind == "f" else v for k, v in inputs.items()}
    want = evaluate(program, exact(arrays))
    (built,) = compile_kernels([Request(program, first_schedule(program), "kernel")], TARGET)
    assert isinstance(built, BuiltKernel), built
    library = folder / "kernel.so"
    library.write_bytes(built.library)
    bound = bind(TaskData(arrays, want), library, built.symbol, built.args, threads=2)
    run_guarded(bound)
    for name in want:
        assert agree(bound.outputs[name], want[name], 1e-5), name


@pytest.mark.parametrize("name", [
    "paged_attention", "block_sparse_attention", "variable_block_attention",
    "sparse_linear_attention", "hash_order", "hyper_attention", "scout_attention",
])  # fmt: skip
def test_computed_indices(name: str, tmp_path: Path) -> None:
    check(find(name).program(), find(name).inputs(0), tmp_path)


def test_an_index_that_is_a_sum_and_an_output(tmp_path: Path) -> None:
    """The inverse of a permutation by comparison, read at and returned: the sum is one loop."""
    place, v = input_("place", {"b": 2, "y": 7}, "int32"), input_("v", {"b": 2, "j": 7, "e": 5})
    order = sum_("y", where(eq(place, iota("n", 3)), iota("y", 7), 0))
    program = algebra(o=("b n e", take(v, "j", order)), order=("b n", order))
    rng = np.random.default_rng(0)
    places = np.argsort(rng.random((2, 7)), axis=-1).astype(np.int32)
    check(program, {"place": places, "v": rng.standard_normal((2, 7, 5))}, tmp_path)
