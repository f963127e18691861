"""Schedules of the tile space, drawn at random, as Triton kernels: numbers against the meaning.

Programs of odd shapes in several types; Triton's interpreter runs what the emitter writes.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import test_tile
import triton_workloads as W

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.define import algebra
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.ops import exp, input_, max_, sum_
from autosched.ir.rules.action import Illegal
from autosched.ir.scalar import FLOATS, round_to_grid
from autosched.ir.schedule import replay
from autosched.ir.target import parse_target
from autosched.tools.triton_interpreter import Interpreter

EACH = 9  # schedules of a program: with the programs below over 200 pairs
# Relative L2 against float64, inputs on the grid of their type.
BOUND = {"float32": 3e-6, "float16": 3e-3, "bfloat16": 2e-2}
LIMIT = 700  # programs of a grid: each takes the interpreter milliseconds


def draw(program: Program, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for node in program.inputs:
        name, dims, dtype, _ = node.attr
        shape = [e for _, e in dims]
        if dtype in FLOATS:
            out[name] = round_to_grid(rng.standard_normal(shape), dtype)
        else:
            out[name] = rng.integers(0, 2 if dtype == "bool" else 17, shape).astype(dtype)
    return out


PROGRAMS = {**test_tile.PROGRAMS, **W.PROGRAMS}


def test_there_are_enough_pairs() -> None:
    assert len(PROGRAMS) * EACH >= 200


@pytest.mark.parametrize("name", PROGRAMS)
def test_random_schedules(name: str, interpreter: Interpreter) -> None:
    program = PROGRAMS[name]
    seed = zlib.crc32(name.encode())
    inputs = draw(program, seed)
    want = evaluate(program, inputs)
    kind = min((i.dtype for i in program.inputs if i.dtype in BOUND), key=list(BOUND).index,
               default="float32")  # fmt: skip
    narrow = [o.dtype for o in program.outputs if o.dtype in BOUND]
    bound = max(BOUND[k] for k in (kind, *narrow))
    ran = 0
    for schedule in test_tile.some_schedules(program, 40, seed):
        made = replay(program, schedule)
        assert not isinstance(made, Illegal), made
        module = emit(made, Header(name, schedule=schedule.to_json()))
        if isinstance(module, Illegal):  # what Triton can't say is named
            known = ("elements", "warps that load")
            assert any(words in module.why for words in known), (module, schedule.text)
            continue
        assert isinstance(module, TritonModule)
        if max(x.programs for x in module.launches) > LIMIT:
            continue
        got = interpreter(module, inputs)
        for out, value in want.items():
            scale = max(float(np.linalg.norm(value)), 1e-30)
            error = float(np.linalg.norm(got[out] - value)) / scale
            assert error <= bound, (out, error, schedule.text, module.source)
        ran += 1
        if ran == EACH:
            break
    assert ran, "no schedule of this program ran"


def test_tf32_is_a_choice_of_the_target() -> None:
    program = test_tile.PROGRAMS["gemm"]
    schedules = {t: test_tile.some_schedules(program, 1, 0, parse_target(t))
                 for t in ("sm_90", "sm_90+tf32")}  # fmt: skip
    for name, wanted in (("sm_90", "ieee"), ("sm_90+tf32", "tf32")):
        made = replay(program, schedules[name][0])
        assert isinstance(made, Program)
        module = emit(made, Header("gemm"))
        assert isinstance(module, TritonModule) and f'"{wanted}"' in module.source


def test_a_finite_fill_at_the_start_of_a_row(interpreter: Interpreter) -> None:
    """Left padding with the lowest number: the first blocks of a row hold nothing else."""
    s, m = input_("s", {"i": 16, "j": 128}), input_("m", {"j": 128})
    v = input_("v", {"j": 128, "e": 16})
    x = s + m
    p = exp(x - max_("j", x))
    program = algebra(y=("i e", sum_("j", p * v) / sum_("j", p)))
    inputs = draw(program, 7)
    inputs["m"] = np.where(np.arange(128) < 100, float(np.finfo(np.float32).min), 0.0)
    want = evaluate(program, inputs)["y"]
    kinds = set()
    for schedule in test_tile.some_schedules(program, 2, 7):
        made = replay(program, schedule)
        assert isinstance(made, Program)
        module = emit(made, Header("padded"))
        assert isinstance(module, TritonModule)
        got = interpreter(module, inputs)["y"]
        assert np.linalg.norm(got - want) <= 3e-6 * np.linalg.norm(want), module.source
        kinds.add(any(a.rule == "cascade" for a in schedule.actions))
    assert kinds == {True, False}
