"""Reductions, scans, views of computed values, dots and loops as the Triton emitter writes them,
run by Triton's interpreter on small tiles, against the meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import triton_programs as programs

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.interp import evaluate
from autosched.ir.monoid import MONOIDS
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    buffer,
    carry,
    cast,
    const,
    dot,
    eq,
    exp,
    fold,
    forall,
    get,
    input_,
    iota,
    load,
    map_,
    maximum,
    reaxis,
    reduce_,
    rename,
    scan,
    slice_,
    store,
    sum_,
    take,
    trisolve,
    where,
)
from autosched.ir.rules.action import Illegal
from autosched.ir.scalar import FLOATS
from autosched.tools.triton_interpreter import Interpreter

Array = np.ndarray[Any, Any]
F32 = "float32"


def tile(name: str, dtype: str = F32, **axes: int) -> Node:
    """A whole input as one tile."""
    handle = input_(name, {f"{name}.{a}": e for a, e in axes.items()}, dtype)
    return load(handle, [0] * len(axes), [(a, e, 1) for a, e in axes.items()])


def whole(**values: Node) -> Program:
    """A kernel of one program that stores values as they are, axes in the order of their names."""
    outs, body = {}, []
    for name, value in values.items():
        outs[name] = programs.output(name, [e for _, e in value.axes] or [1], value.dtype)
        dims: list[Any] = [(a, e, 1) for a, e in value.axes] or [None]
        body.append(store(outs[name], value, [0] * len(dims), dims))
    return programs.tile_program([programs.gpu_kernel("whole", {}, body)], **outs)


def draw(program: Program, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    out = {}
    for node in program.inputs:
        name, dims, dtype, _ = node.attr
        shape = [e for _, e in dims]
        if dtype in FLOATS:
            out[name] = rng.standard_normal(shape).astype("f4")
        else:
            out[name] = rng.integers(0, 2 if dtype == "bool" else 9, shape).astype(dtype)
    return out


def source_of(program: Program) -> TritonModule:
    module = emit(program, Header("A kernel of the tests"))
    assert isinstance(module, TritonModule), module
    return module


def check(
    interpreter: Interpreter, program: Program, arrays: Mapping[str, Array] | None = None,
    bound: float = 2e-5,
) -> str:  # fmt: skip
    given = dict(draw(program) if arrays is None else arrays)
    module = source_of(program)
    got = interpreter(module, given)
    for name, want in evaluate(program, given).items():
        np.testing.assert_allclose(got[name], want, bound, bound, True, module.source)
    return module.source


# ---- reductions -------------------------------------------------------------------------------


@pytest.mark.parametrize("monoid", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_reductions(interpreter: Interpreter, monoid: str, dtype: str) -> None:
    x = tile("x", dtype, a=4, b=8, c=2)
    arrays = draw(whole(y=x))
    arrays["x"] = arrays["x"] if dtype != "bfloat16" else np.round(arrays["x"] * 4) / 4
    for axes in ("a", ["b"], ["a", "c"], ["a", "b", "c"]):
        check(interpreter, whole(y=reduce_(monoid, axes, x)), arrays)


def test_reductions_of_bools(interpreter: Interpreter) -> None:
    x = tile("x", "bool", a=4, b=8)
    check(interpreter, whole(y=reduce_("any", "b", x), z=reduce_("all", ["a", "b"], x)))


@pytest.mark.parametrize("monoid", ["max", "min"])
def test_extremes_with_nan(interpreter: Interpreter, monoid: str) -> None:
    x = tile("x", a=4, b=8)
    arrays = draw(whole(y=x))
    arrays["x"][1, 5] = np.nan
    check(interpreter, whole(y=reduce_(monoid, "b", x), z=reduce_(monoid, "a", x)), arrays)


def components(monoid: str) -> tuple[Node, ...]:
    x = tile("x", a=4, b=8)
    if monoid.startswith("arg"):
        return x, iota("b", 8)
    if monoid == "logsumexp":
        return x, x * 0.0 + 1.0
    return x * 0.0 + 1.0, x, x * 0.0


@pytest.mark.parametrize("monoid", [m for m in MONOIDS if MONOIDS[m].arity > 1])
def test_reductions_with_several_components(interpreter: Interpreter, monoid: str) -> None:
    parts = components(monoid)
    out = reduce_(monoid, "b", *parts)
    outs = {f"y{n}": get(out, n) for n in range(len(parts))}
    arrays = draw(whole(y=parts[-2]))
    arrays["x"][0, 3] = arrays["x"][0, 6] = 9.0
    source = check(interpreter, whole(**outs), arrays)
    assert f"def combine_{monoid}(" in source
    if monoid.startswith("arg"):
        arrays["x"][2, 4] = np.nan
        check(interpreter, whole(**outs), arrays)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("monoid", ["sum", "max", "prod", "argmax"])
def test_scans(interpreter: Interpreter, monoid: str, exclusive: bool, reverse: bool) -> None:
    parts = components(monoid) if monoid == "argmax" else (tile("x", a=4, b=8),)
    out = scan(monoid, "b", *parts, exclusive=exclusive, reverse=reverse)
    check(interpreter, whole(**{f"y{n}": get(out, n) for n in range(len(parts))}))


def test_trisolve(interpreter: Interpreter) -> None:
    lower, rhs = tile("x", r=8, c=8) * 0.3, tile("u", r=8, e=4)
    check(interpreter, whole(y=trisolve(lower, rhs, "r", "c")))


# ---- views of computed values -----------------------------------------------------------------


def scores() -> Node:
    return exp(sum_("k", tile("x", a=4, b=8, k=2)))


VIEWS: dict[str, Callable[[Node], Node]] = {
    "renamed": lambda x: rename(x, {"b": "c"}),
    "turned": lambda x: x + rename(x, {"a": "h"}) * 2.0,
    "row": lambda x: reaxis(x, {"b": const(3, "int32")}),
    "split": lambda x: reaxis(x, {"b": iota("p", 2) * 4 + iota("q", 4)}),
    "reversed": lambda x: reaxis(x, {"b": 7 - iota("r", 8)}),
    "gathered": lambda x: reaxis(x, {"b": iota("r", 4) * 2}),
    "taken": lambda x: take(x, "b", tile("at", "int32", r=8) % 8),
    "diagonal": lambda x: reaxis(x, {"b": iota("a", 4) + 1}),
    "scattered": lambda x: reaxis(
        x, {"a": tile("at", "int32", r=8) % 4, "b": tile("to", "int32", r=8) % 8}
    ),
    "sliced": lambda x: slice_(x, "b", const(4, "int32"), "r", 4),
}


@pytest.mark.parametrize("name", list(VIEWS))
def test_views(interpreter: Interpreter, name: str) -> None:
    check(interpreter, whole(y=VIEWS[name](scores())))
    check(interpreter, whole(y=VIEWS[name](tile("x", a=4, b=8))))


# ---- dots -------------------------------------------------------------------------------------


DOTS: dict[str, tuple[dict[str, int], dict[str, int], tuple[str, ...], bool]] = {
    "plain": ({"a": 16, "k": 32}, {"k": 32, "b": 16}, ("k",), True),
    "turned": ({"b": 16, "k": 32}, {"k": 32, "a": 16}, ("k",), True),
    "batched": ({"g": 2, "a": 16, "k": 16}, {"g": 2, "b": 16, "k": 16}, ("k",), True),
    "merged": ({"a": 4, "c": 4, "k": 16}, {"k": 16, "b": 16}, ("k",), True),
    "two sums": ({"a": 16, "k": 4, "l": 8}, {"k": 4, "l": 8, "b": 16}, ("k", "l"), True),
    "short": ({"a": 16, "k": 4}, {"k": 4, "b": 16}, ("k",), False),
    "vector": ({"k": 16}, {"k": 16, "b": 16}, ("k",), False),
    "scalar": ({"k": 16}, {"k": 16}, ("k",), False),
    "outer": ({"a": 8, "k": 1}, {"k": 1, "b": 8}, ("k",), False),
}


@pytest.mark.parametrize("name", list(DOTS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_dots(interpreter: Interpreter, name: str, dtype: str) -> None:
    left, right, axes, native = DOTS[name]
    acc = "float64" if dtype == "float64" else F32
    a, b = (cast(tile(n, F32, **axes_), dtype) for n, axes_ in (("x", left), ("w", right)))
    source = check(interpreter, whole(y=dot(a, b, axes, acc)))
    assert ("tl.dot(" in source) == native


def test_an_operand_that_is_computed_in_the_wanted_order(interpreter: Interpreter) -> None:
    a, b = tile("x", a=16, k=16), tile("w", b=16, k=16)
    source = check(interpreter, whole(y=dot(a, exp(b * 0.1), "k")))
    assert "tl.trans" not in source


def test_a_dot_of_integers(interpreter: Interpreter) -> None:
    a, b = tile("x", "int8", a=16, k=32), tile("w", "int8", k=32, b=16)
    check(interpreter, whole(y=dot(a, b, "k", "int32") + tile("c", "int32", a=16, b=16)))


def test_precision_of_a_dot() -> None:
    a, b = tile("x", a=16, k=16), tile("w", b=16, k=16)
    assert 'input_precision="tf32"' in source_of(whole(y=dot(a, b, "k", F32, "tf32"))).source


# ---- loops ------------------------------------------------------------------------------------


def test_states_that_read_each_other(interpreter: Interpreter) -> None:
    a, b = (carry(n, F32, {"a": 4}) for n in "pq")
    x = tile("x", a=4)
    loop = fold("t", [(0, 5)], {"p": (x, b), "q": (x * 2.0, a + b)})
    check(interpreter, whole(y=get(loop, 0), z=get(loop, 1)))


def test_several_intervals_and_steps(interpreter: Interpreter) -> None:
    x = input_("x", {"t": 9, "a": 4})
    row = load(x, [iota("t", 9), 0], [None, ("a", 4, 1)])
    s = carry("s", F32, {"a": 4})
    for bounds in ([(0, 3), (5, 9)], [(2, 3)], [(4, 4), (8, 9)], [(0, 0)]):
        loop = fold("t", bounds, {"s": (const(1.0, F32), s * 0.5 + row)})
        check(interpreter, whole(y=get(loop) + tile("b", a=4)))


def test_a_fold_in_a_fold(interpreter: Interpreter) -> None:
    x = input_("x", {"t": 4, "u": 3, "a": 4})
    at = load(x, [iota("t", 4), iota("u", 3), 0], [None, None, ("a", 4, 1)])
    inner = get(fold("u", [(0, 3)], {"p": (const(0.0, F32), carry("p", F32, {"a": 4}) + at)}))
    outer = carry("s", F32, {"a": 4})
    loop = fold("t", [(0, 4)], {"s": (const(1.0, F32), outer * 0.5 + inner * inner)})
    check(interpreter, whole(y=get(loop)))


def test_a_bound_that_is_loaded(interpreter: Interpreter) -> None:
    count = load(input_("n", {"one": 1}, "int32"), [0])
    s = carry("s", "int32", {})
    loop = fold("t", [(0, count)], {"s": (const(1, "int32"), s + iota("t", 9) * s)})
    check(interpreter, whole(y=get(loop)))


def test_outputs_of_a_fold_are_stored_in_its_loop(interpreter: Interpreter) -> None:
    x = input_("x", {"t": 6, "a": 4})
    row = load(x, [iota("t", 6), 0], [None, ("a", 4, 1)])
    s = carry("s", F32, {"a": 4})
    loop = fold("t", [(0, 6)], {"s": (const(0.0, F32), s + row)}, [s * 2.0])
    y, z = programs.output("y", (6, 4)), programs.output("z", (4,))
    one = store(y, get(loop, 1), [iota("t", 6), 0], [None, ("a", 4, 1)])
    put = forall("t", 0, 6, "serial", [one])
    last = store(z, get(loop, 0), [0], [("a", 4, 1)])
    program = programs.tile_program([programs.gpu_kernel("both", {}, [put, last])], y=y, z=z)
    assert check(interpreter, program).count("for t in") == 1


def test_scratch_between_and_inside_kernels(interpreter: Interpreter) -> None:
    x = input_("x", {"i": 8})
    i = iota("i", 8)
    part = buffer("part", (8,), F32, "scratch")
    dims = [("i", 8, 1)]
    first = store(part, exp(load(x, [0], dims)), [0], dims)
    y = programs.output("y", (8,))
    second = store(y, load(part, [7 - i]) * 2.0, [0], dims)
    two = [programs.gpu_kernel("a", {}, [first]), programs.gpu_kernel("b", {}, [second])]
    check(interpreter, programs.tile_program(two, y=y))
    one = programs.tile_program([programs.gpu_kernel("ab", {}, [first, second])], y=y)
    assert "debug_barrier" in check(interpreter, one)


def test_running_maximum_with_a_guard(interpreter: Interpreter) -> None:
    x = input_("x", {"t": 5, "a": 4})
    row = load(x, [iota("t", 5), 0], [None, ("a", 4, 1)])
    top, total = carry("m", F32, {"a": 4}), carry("l", F32, {"a": 4})
    new = maximum(top, row)
    fix = where(eq(top, -math.inf), 0.0, exp(top - new))
    loop = fold("t", [(0, 5)], {"m": (const(-math.inf, F32), new),
                                "l": (const(0.0, F32), total * fix + exp(row - new))})  # fmt: skip
    check(interpreter, whole(y=get(loop, 0) + map_("log", get(loop, 1))))


# ---- what Triton cannot say -------------------------------------------------------------------


def test_an_axis_that_is_no_power_of_two() -> None:
    got = emit(whole(y=tile("x", a=6)), Header("x"))
    assert isinstance(got, Illegal) and "6" in got.why and "power of two" in got.why


def test_a_stacked_output_that_no_loop_stores() -> None:
    s = carry("s", F32, {})
    loop = fold("t", [(0, 4)], {"s": (const(0.0, F32), s + 1.0)}, [s])
    got = emit(whole(y=get(loop, 1)), Header("x"))
    assert isinstance(got, Illegal) and "loop" in got.why

