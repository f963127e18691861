"""Attention as Hopper wants it: long rows in parts, operands in registers, blocks in groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from test_stagger import attention, inputs

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import build
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.schedule import Sketch, replay
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.target import parse_target
from autosched.tools.triton_interpreter import Interpreter

TARGET = parse_target("sm_90")


def sketch_of(program: Program, name: str) -> Sketch:
    return next(s for s in gpu_sketches(program, TARGET) if s.name == name)


def emitted(program: Program, name: str, knobs: Mapping[str, int]) -> TritonModule:
    sketch = sketch_of(program, name)
    table = sketch.table()
    row = {k.name: int(table[k.name][0]) for k in sketch.knobs}
    tile = replay(program, sketch.schedule({**row, **{f"k0.{k}": v for k, v in knobs.items()}}))
    assert isinstance(tile, Program), tile
    module = emit(tile, Header(name))
    assert isinstance(module, TritonModule), module
    return module


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["onepass64.0.falling", "onepass64.0.falling.stagger"])
def test_values(interpreter: Interpreter, name: str, dtype: str) -> None:
    program = attention(192, "causal", dtype, d=32)
    arrays = {k: a.astype(dtype) for k, a in inputs(program, 3).items()}
    want = evaluate(program, arrays)["o"]
    knobs = {"i": 64, "warps": 4, "stages": 2, "descriptors": 0, "group": 0}
    module = emitted(program, name, knobs)
    assert ", 4, 16))" in module.source, "a row of 64 scores is reduced in four parts"
    assert ("in_registers(late)" in module.source) == (dtype == "float16" and "stagger" in name)
    got = interpreter(module, arrays)["o"]
    bound = {"float32": 1e-5, "float16": 2e-3}[dtype]
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < bound


def test_rows_that_warps_share_are_reduced_at_once() -> None:
    """Of 64 rows, eight warps hold halves."""
    program = attention(192, "causal", "bfloat16", d=32)
    source = emitted(program, "onepass64.0", {"i": 64, "warps": 8}).source
    assert "tl.reduce(" in source and "tl.reshape(" not in source


def test_a_staggered_operand_takes_no_shared_memory(tmp_path: Path) -> None:
    """What is there besides queries are keys and values in flight: two and a half steps of them."""
    program = attention(4096, "full", "bfloat16", d=128)
    knobs = {"i": 128, "warps": 8, "stages": 2, "descriptors": 6, "registers": 0}
    module = emitted(program, "onepass128.0.stagger", knobs)
    (kernel,) = build(module, TARGET, tmp_path).kernels
    assert kernel.shared_bytes < (128 + 5 * 128 + 64) * 128 * 2
    assert not kernel.spill_bytes and not kernel.serialised


def test_blocks_of_long_axes_fill_groups_of_warps() -> None:
    program = attention(16384, "causal", "bfloat16", d=128)
    table = sketch_of(program, "onepass64.0").table()
    assert min(table["k0.i"]) == 64 and min(table["k0.warps"]) == 4
    assert (table["k0.i"] >= 16 * table["k0.warps"]).all()
    short = sketch_of(attention(256, "causal", "bfloat16", d=128), "onepass64.0").table()
    assert min(short["k0.i"]) == 16, "a small grid wants many blocks"


def test_falling_blocks_go_in_groups_of_heads() -> None:
    """The last block of rows of each head of a group comes first."""
    program = attention(1024, "causal", "bfloat16", d=64, heads=8)
    sketch = sketch_of(program, "onepass64.0.falling")
    assert set(sketch.table()["k0.group"]) == {0, 4}
    source = emitted(program, "onepass64.0.falling", {"i": 64, "warps": 4, "group": 4}).source
    for line in ("group = pid // 64", "place = pid % 64", "h = group * 4 + place % 4",
                 "i_o = place // 4", "i_start = 15 - i_o"):  # fmt: skip
        assert line in source, source
