"""Schedules of the GPU sketches, drawn at random, as Triton kernels: run by Triton's interpreter on
odd sizes, against the meaning of the definition."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import programs
import pytest
from tile_programs import delta_algebra

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.schedule import replay
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.target import parse_target
from autosched.tools.triton_interpreter import Interpreter

DRAWS = 25  # schedules of each program
DEFINITIONS = {
    "gemm": programs.gemm(37, 29, 45),
    "causal": programs.attention(1, 2, 37, 16),
    "grouped": programs.attention(1, 4, 21, 16, groups=2, mask=None),
    "layernorm": programs.layernorm(7, 50),
    "rmsnorm": programs.rmsnorm(5, 70),
    "softmax": programs.softmax(9, 70),
    "gated": programs.swiglu(19, 33, 21),
    "rotary": programs.rotary(1, 2, 11, 16),
    "recurrence": delta_algebra(1, 2, 9, 16, 16),
}


def draw(program: Program, rng: np.random.Generator) -> dict[str, Any]:
    out = {}
    for node in program.inputs:
        shape = [e for _, e in node.attr[1]]
        out[node.attr[0]] = (rng.standard_normal(shape) / 4).astype(np.float32)
    return out | ({"g": -np.abs(out["g"])} if "g" in out else {})


def dead_names(source: str) -> set[str]:
    """Names that a function of the module gives a value and never reads."""
    found: set[str] = set()
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef):
            names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
            read = {n.id for n in names if isinstance(n.ctx, ast.Load)}
            found |= {n.id for n in names if isinstance(n.ctx, ast.Store)} - read
    return found


@pytest.mark.parametrize("name", list(DEFINITIONS))
def test_random_schedules(interpreter: Interpreter, name: str) -> None:
    program, rng = DEFINITIONS[name], np.random.default_rng(0)
    sketches = gpu_sketches(program, parse_target("sm_90"))
    tables = [s.table() for s in sketches]
    arrays = draw(program, rng)
    want = evaluate(program, arrays)
    seen: set[str] = set()
    for _ in range(DRAWS):
        pick = int(rng.integers(len(sketches)))
        row = int(rng.integers(len(next(iter(tables[pick].values())))))
        schedule = sketches[pick].schedule({k: int(v[row]) for k, v in tables[pick].items() if k})
        tile = replay(program, schedule)
        assert isinstance(tile, Program), tile
        module = emit(tile, Header(name, schedule=schedule.to_json()))
        assert isinstance(module, TritonModule), (module, schedule)
        if module.source in seen:
            continue
        seen.add(module.source)
        assert not dead_names(module.source), module.source
        assert all(len(line) < 100 for line in module.source.splitlines()), module.source
        got = interpreter(module, arrays)
        for key, array in want.items():
            np.testing.assert_allclose(got[key], array, 1e-4, 1e-5, True, module.source)
