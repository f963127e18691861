"""Every workload on boxes: schedules of the GPU sketches mean what the definition means, and some
of them as Triton kernels.

AUTOSCHED_TEST_TILES=4 takes four schedules of every sketch of every workload and runs them all.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np
import pytest
from workload_check import distance, find

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.datasets.workloads import workloads
from autosched.ir.elsewhere import read_elsewhere
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.schedule import Schedule, replay
from autosched.ir.sketches import sketches
from autosched.ir.target import parse_target
from autosched.ir.verify import verify
from autosched.tools.triton_interpreter import Interpreter

TARGET = parse_target("sm_90")
EVERY = int(os.environ.get("AUTOSCHED_TEST_TILES", "0"))
NAMES = sorted(workloads())
# A product of a computed value and a stored half is of two halves (`products.DotTypes.narrow`).
ROUNDED = {"itq3": 1e-3}
# One of each kind of value that a kernel of boxes can't have where it is read.
RUN = NAMES if EVERY else [
    "butterfly", "soft_attention", "onnx_linear_attention", "hydra", "gla_backward", "hash_order",
    "listed_memories", "moe_layer_with_capacity", "kmeans_sorted_sums", "xattention",
    "permuted_attention_int8", "bitlinear_training", "hyper_attention", "rotate_and_pack",
]  # fmt: skip
FLOAT32 = 2e-4
# Whose boxes no kernel holds, even at small sizes: its choice of blocks is made in every kernel.
TOO_LARGE = {"sparse_linear_backward"}


def schedules(name: str, program: Program) -> list[Schedule]:
    """One of the first sketch with rows, or some of each."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    out: list[Schedule] = []
    for sketch in sketches(program, TARGET):
        table = sketch.table(limit=20_000)
        rows = len(next(iter(table.values())))
        for row in rng.choice(rows, min(max(EVERY, 1), rows), replace=False):
            out.append(sketch.schedule({k: int(v[row]) for k, v in table.items() if k}))
        if out and not EVERY:
            break
    return out


@pytest.mark.parametrize("name", NAMES)
def test_schedules_mean_the_definition(name: str) -> None:
    program, inputs = find(name).program(), find(name).inputs(0)
    want = evaluate(program, inputs)
    found = schedules(name, program)
    assert bool(found) != (name in TOO_LARGE)
    for schedule in found:
        made = replay(program, schedule)
        assert isinstance(made, Program), (schedule.text, made)
        verify(made)
        got = evaluate(made, inputs)
        for key, value in want.items():
            assert distance(got[key], value) <= ROUNDED.get(name, 1e-11), (key, schedule.text)


@pytest.mark.parametrize("name", RUN)
def test_kernels_compute_the_definition(interpreter: Interpreter, name: str) -> None:
    program, inputs = find(name).program(), find(name).inputs(0)
    want = evaluate(program, inputs)
    for schedule in schedules(name, program):
        made = replay(program, schedule)
        assert isinstance(made, Program), made
        module = emit(made, Header(name, schedule=schedule.to_json()))
        assert isinstance(module, TritonModule), (module, schedule.text)
        got: dict[str, Any] = dict(interpreter(module, inputs))
        for key, value in want.items():
            gap = distance(np.asarray(got[key]).reshape(value.shape), value)
            assert gap <= max(FLOAT32, ROUNDED.get(name, 0.0)), (key, gap, module.source)


def test_what_is_read_elsewhere() -> None:
    """What a loop stacks is kept where another step of it is read, and not where its own is."""
    backward = find("retention_backward").program()
    assert {n.op for n in read_elsewhere(backward)} == {"get"}
    assert len(read_elsewhere(backward)) == 2  # the gradients of k and v come out backwards
    assert not read_elsewhere(find("retention").program())
