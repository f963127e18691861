"""Bits of scalars in Triton kernels, run by Triton's interpreter: read as another type, counted."""

from __future__ import annotations

import numpy as np
import pytest
import triton_programs as programs

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program
from autosched.ir.ops import bitcast, input_, load, map_, store
from autosched.ir.scalar import INTS, reinterpret
from autosched.tools.triton_interpreter import Interpreter


def each(value: Node) -> Program:
    """A kernel that stores one tile of 64 values."""
    out = programs.output("y", (64,), value.dtype)
    body = store(out, value, [0], [("i", 64, 1)])
    return programs.tile_program([programs.gpu_kernel("bits", {"o": 1}, [body])], y=out)


def tile(dtype: str) -> Node:
    return load(input_("x", {"n": 64}, dtype), [0], [("i", 64, 1)])


def run(interpreter: Interpreter, program: Program, x: np.ndarray) -> None:
    module = emit(program, Header("Bits"))
    assert isinstance(module, TritonModule), module
    got, want = interpreter(module, {"x": x})["y"], evaluate(program, {"x": x})["y"]
    assert np.array_equal(got, want), module.source


@pytest.mark.parametrize("dtype", INTS)
def test_set_bits(interpreter: Interpreter, dtype: str) -> None:
    info = np.iinfo(dtype)
    x = np.random.default_rng(1).integers(info.min, info.max, 64, dtype, endpoint=True)
    value = map_("popcount", tile(dtype))
    run(interpreter, each(value), x)


PAIRS = [("float32", "int32"), ("float32", "uint32"), ("float16", "int16"), ("bfloat16", "int16")]


@pytest.mark.parametrize("source, target", PAIRS)
def test_bits_of_floats(interpreter: Interpreter, source: str, target: str) -> None:
    raw = np.random.default_rng(2).standard_normal(64)
    x = reinterpret(reinterpret(raw, source, target), target, source)
    value = bitcast(tile(source), target)
    run(interpreter, each(value), x)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_floats_of_bits(interpreter: Interpreter, dtype: str) -> None:
    kind = {"float32": "int32", "float16": "int16"}[dtype]
    x = reinterpret(np.random.default_rng(2).standard_normal(64), dtype, kind)
    run(interpreter, each(bitcast(tile(kind), dtype)), x)
