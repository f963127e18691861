"""Kernels written by the Triton emitter, run by Triton's interpreter, against the meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton_programs as programs
from tile_programs import attention_tile, delta_tile

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.extent import subst
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.scalar import FLOATS, round_to_grid
from autosched.tools.triton_interpreter import Interpreter

Array = np.ndarray[Any, Any]
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


def source_of(program: Program) -> TritonModule:
    module = emit(program, Header("A kernel of the tests"))
    assert isinstance(module, TritonModule), module
    assert all(len(line) < 100 for line in module.source.splitlines()), module.source
    return module


def draw(program: Program, seed: int = 0) -> dict[str, Array]:
    """Arrays for the inputs, on the grid of their types."""
    rng = np.random.default_rng(seed)
    out = {}
    for node in program.inputs:
        name, dims, dtype, _ = node.attr
        shape = [e for _, e in dims]
        if dtype in FLOATS:
            out[name] = round_to_grid(rng.standard_normal(shape), dtype)
        else:
            out[name] = rng.integers(0, 2 if dtype == "bool" else 5, shape).astype(dtype)
    return out


def check(
    interpreter: Interpreter, program: Program, arrays: dict[str, Array] | None = None,
    tolerance: float | None = None,
) -> TritonModule:  # fmt: skip
    arrays = draw(program) if arrays is None else arrays
    module = source_of(program)
    got = interpreter(module, arrays)
    for out, want in evaluate(program, arrays).items():
        dtype = next(o.dtype for o in program.outputs if o.name == out)
        bound = tolerance or TOLERANCE.get(dtype, 0)
        np.testing.assert_allclose(got[out], want, rtol=bound, atol=bound, err_msg=module.source)
    return module


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bind", ["grid", "persistent"])
def test_gemm(interpreter: Interpreter, dtype: str, bind: str) -> None:
    module = check(interpreter, programs.gemm(37, 29, 45, dtype=dtype, bind=bind))
    assert module.source.count("tl.dot(x_tile, w_tile, acc") == 1
    assert ("num_programs" in module.source) == (bind == "persistent")


def test_gemm_of_a_transposed_weight_is_loaded_so(interpreter: Interpreter) -> None:
    module = check(interpreter, programs.gemm(37, 29, 45, turned=True))
    assert "tl.trans" not in module.source


def test_descriptors(interpreter: Interpreter) -> None:
    facts = (("warps", 4), ("stages", 3), ("descriptors", 1))
    module = check(interpreter, programs.gemm(40, 24, 48, facts=facts, dtype="float16"))
    assert module.launches[0].descriptors
    assert "x_box.load(" in module.source and "y_box.store(" in module.source
    odd = check(interpreter, programs.gemm(37, 29, 45, facts=facts))
    assert "x_box" not in odd.source


def test_an_index_is_loaded_by_pointers_also_beside_descriptors() -> None:
    source = source_of(programs.gather(64, 6, 8, 16, (("descriptors", 1),))).source
    assert "y_box" in source and "index_box" not in source


def test_softmax(interpreter: Interpreter) -> None:
    check(interpreter, programs.softmax(5, 37, 64))
    check(interpreter, programs.softmax(5, 37, 64, rows=4))
    check(interpreter, programs.softmax(5, 37, 64, rows=2, dtype="bfloat16"))


def test_nan_of_a_softmax(interpreter: Interpreter) -> None:
    program = programs.softmax(4, 37, 64, rows=2)
    arrays = draw(program)
    arrays["x"][1, 3] = np.nan
    check(interpreter, program, arrays)


def test_layernorm(interpreter: Interpreter) -> None:
    check(interpreter, programs.layernorm(7, 50, 64))


def test_gather(interpreter: Interpreter) -> None:
    program = programs.gather(11, 6, 8, 4)
    check(interpreter, program)


def test_causal_attention(interpreter: Interpreter) -> None:
    program = subst(attention_tile(1, 2, 37, 16, groups=2), {"BM": 16, "BN": 16})
    module = check(interpreter, program)
    assert module.source.count("tl.dot(") == 4 and "tl.trans" not in module.source


def test_gated_delta_rule(interpreter: Interpreter) -> None:
    program = subst(delta_tile(1, 2, 19, 16, 16), {"C": 8})
    arrays = draw(program)
    arrays |= {"g": -np.abs(arrays["g"]) / 10, "beta": 1 / (1 + np.exp(-arrays["beta"])),
               "k": arrays["k"] * 0.3}  # fmt: skip
    check(interpreter, program, arrays)
