"""Every scalar function as the Triton emitter writes it, run by Triton's interpreter on the values
where functions differ, against the table's own meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton_programs as programs

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_scalars import SCALAR_ROWS
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program
from autosched.ir.ops import const, input_, load, map_, store
from autosched.ir.scalar import FLOATS, INTS, SCALARS, round_to_grid
from autosched.ir.spec import _OPERANDS
from autosched.tools.triton_interpreter import Interpreter

Array = np.ndarray[Any, Any]
SIZE = 64
BOUNDS = {"float64": 1e-13, "float32": 3e-6, "float16": 2e-3, "bfloat16": 1e-2}
# Exponentials and products of powers lose what the argument's own rounding loses.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, 1e-3, -1e-3, 1e-5, 7.25, -7.25,
           20.0, np.inf, -np.inf, np.nan]  # fmt: skip
WIDE = ("exp", "exp2", "sinh", "cosh", "pow")


def kinds(fn: str) -> tuple[str, ...]:
    """The types that a function is for and that the backend computes in."""
    floats = ("float32", "float64", "float16", "bfloat16")
    if fn in ("and", "or", "xor", "not"):
        return ("bool",)
    wants = _OPERANDS.get(fn) or (FLOATS if SCALARS[fn].cost == "special" else (*FLOATS, *INTS))
    out = [t for t in floats if t in wants]
    if fn == "pow":
        return tuple(out)
    return (*out, *(t for t in ("int32", "int64", "int8", "uint8") if t in wants))


def operands(fn: str, dtype: str, arity: int) -> list[Array]:
    rng = np.random.default_rng(len(fn))
    if dtype == "bool":
        return [rng.integers(0, 2, SIZE).astype(bool) for _ in range(arity)]
    if dtype in INTS:
        info = np.iinfo(dtype)
        low = 0 if fn in ("shl", "shr") else max(info.min, -100)
        out = [rng.integers(low, 7 if n and fn in ("shl", "shr") else 100, SIZE).astype(dtype)
               for n in range(arity)]  # fmt: skip
        if fn in ("floordiv", "truncdiv", "mod", "fmod"):
            out[1][out[1] == 0] = 3
        return out
    special = [x for x in SPECIAL if dtype in ("float32", "float64") or not 0 < abs(x) < 1e-4]
    out = []
    for n in range(arity):
        x = np.concatenate([special, rng.standard_normal(SIZE - len(special)) * 3])
        out.append(round_to_grid(np.roll(x, 5 * n), dtype))
    if fn in ("floordiv", "truncdiv", "mod", "fmod"):
        out[1] = np.where(np.isfinite(out[1]) & (out[1] != 0), out[1], 2.0)
        out[0] = np.where(np.isfinite(out[0]), out[0], 5.0)
    return out


def pointwise(fn: str, dtypes: list[str], result: str = "") -> Program:
    """y = fn(a, b, ...) over one tile."""
    parts: list[Node] = [
        load(input_(f"x{n}", {f"n{n}": SIZE}, t), [0], [("n", SIZE, 1)])
        for n, t in enumerate(dtypes)
    ]
    value = map_(fn, *parts)
    y = programs.output("y", (SIZE,), value.dtype)
    put = store(y, value, [0], [("n", SIZE, 1)])
    return programs.tile_program([programs.gpu_kernel("point", {}, [put])], y=y)


def run(interpreter: Interpreter, program: Program, arrays: dict[str, Array]) -> Array:
    module = emit(program, Header("One function"))
    assert isinstance(module, TritonModule), module
    return interpreter(module, arrays)["y"]


def test_every_function_has_a_row() -> None:
    assert set(SCALAR_ROWS) == set(SCALARS) - {"cast", "bitcast"}


@pytest.mark.parametrize("fn", sorted(SCALAR_ROWS))
def test_function(interpreter: Interpreter, fn: str) -> None:
    arity = SCALARS[fn].arity
    for dtype in kinds(fn):
        dtypes = ["bool", dtype, dtype] if fn == "where" else [dtype] * arity
        given = operands(fn, dtype, arity)
        if fn == "where":
            given[0] = given[1] > 0
        arrays = {f"x{n}": x for n, x in enumerate(given)}
        program = pointwise(fn, dtypes)
        want = evaluate(program, arrays, rounding=True)["y"]
        got = run(interpreter, program, arrays)
        name = f"{fn} of {dtype}"
        if program.outputs[0].dtype not in FLOATS:
            np.testing.assert_array_equal(got, want, name)
            continue
        bound = BOUNDS[dtype] * (20 if fn in WIDE else 1)
        near = bound if fn in ("sin", "cos") else 1e-300
        np.testing.assert_allclose(got, want, bound, near, True, name)


CASTS = [("float32", t) for t in ("float64", "float16", "bfloat16", "int32", "int8", "bool")] + [
    ("int32", "float32"), ("int32", "int8"), ("int32", "int64"), ("int8", "float32"),
    ("bool", "float32"), ("bool", "int32"), ("float16", "bfloat16"), ("float64", "bfloat16"),
    ("bfloat16", "float32"), ("bfloat16", "float16"), ("uint8", "int32"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), CASTS)
def test_casts(interpreter: Interpreter, source: str, target: str) -> None:
    (x,) = operands("cast", source, 1)
    if target in INTS:
        x = np.where(np.isfinite(x), x, 3).astype(x.dtype)
    program = pointwise(f"cast:{target}", [source])
    want = evaluate(program, {"x0": x}, rounding=True)["y"]
    got = run(interpreter, program, {"x0": x})
    np.testing.assert_array_equal(got, want)


def test_floats_that_rounding_turns(interpreter: Interpreter) -> None:
    """A sum of halves is not rounded before the cast that follows it."""
    n = SIZE
    x = load(input_("x", {"n": n}, "bfloat16"), [0], [("n", n, 1)])
    value = map_("cast:float32", x * const(1.0, "bfloat16") + const(2.0**-10, "bfloat16"))
    y = programs.output("y", (n,))
    program = programs.tile_program(
        [programs.gpu_kernel("point", {}, [store(y, value, [0], [("n", n, 1)])])], y=y)  # fmt: skip
    x_data = np.ones(n)
    np.testing.assert_array_equal(run(interpreter, program, {"x": x_data}), x_data + 2.0**-10)
