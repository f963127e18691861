"""Every scalar function on every type that it takes, compiled: vectors, tails and odd values.

One kernel a type holds all its functions; NaN, infinities, signed zeros and the ends of the
integers are among the operands. The reference is the meaning that the table of functions states.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest

from autosched.codegen.build import BuiltKernel, compile_kernel
from autosched.codegen.draw import _DOMAINS
from autosched.codegen.measure_jobs import bind, run_guarded
from autosched.codegen.runtime.arrays import STORAGE, from_bfloat16, to_bfloat16
from autosched.codegen.task_files import TaskData
from autosched.ir.node import Node, Program
from autosched.ir.ops import input_, map_
from autosched.ir.rules.action import act
from autosched.ir.scalar import INTS, ITEMSIZE, SCALARS, reinterpret, round_to_grid, split_name
from autosched.ir.schedule import Schedule
from autosched.ir.target import host_target

FLOATS = ("float64", "float32", "float16", "bfloat16")
TOLERANCE = {"float64": 4e-15, "float32": 5e-6, "float16": 1e-3, "bfloat16": 8e-3}
BITS = {"bitand", "bitor", "bitxor", "bitnot", "shl", "shr", "popcount"}
LOGIC = {"and", "or", "xor", "not"}
COMPARE = {"lt", "le", "gt", "ge", "eq", "ne"}
WHOLE = {"add", "sub", "mul", "floordiv", "truncdiv", "mod", "fmod", "max", "min", "pow", "abs",
         "sign", "floor", "ceil", "round", "neg"}  # fmt: skip
TYPES = (*FLOATS, *INTS, "bool")


def functions_of(dtype: str) -> list[str]:
    """The functions that take operands of a type, casts to every type among them."""
    casts = [f"cast:{t}" for t in TYPES if t != dtype]
    if dtype != "bool":
        same = [t for t in TYPES[:-1] if ITEMSIZE[t] == ITEMSIZE[dtype] and t != dtype]
        casts += [f"bitcast:{t}" for t in same]
    if dtype == "bool":
        return [*sorted(LOGIC | {"eq", "ne"}), *casts]
    if dtype in INTS:
        return [*sorted((WHOLE | BITS | COMPARE) - ({"neg"} if dtype[0] == "u" else set())), *casts]
    return [*sorted(set(SCALARS) - BITS - LOGIC - {"where", "cast", "bitcast"}), *casts]


def operands(fn: str, dtype: str) -> tuple[np.ndarray, ...]:
    """All pairs (or all) of some ordinary and some odd values, in float64 or the type itself."""
    name = split_name(fn)[0]
    arity = SCALARS[name].arity
    values = _values(name, fn, dtype)
    others = _others(name, dtype, values)
    columns = zip(*(product(values, others) if arity == 2 else ((v,) for v in values)))
    kind = np.float64 if dtype in FLOATS else np.dtype(dtype)
    return tuple(np.array(c, kind) for c in columns)


def _values(name: str, fn: str, dtype: str) -> list[Any]:
    rng = np.random.default_rng(7)
    if dtype == "bool":
        return [False, True, True, False] * 5
    if dtype in INTS:
        info = np.iinfo(dtype)
        near = [0, 1, 2, 3, 7, 10, info.max, info.max - 1, info.min, info.min + 1]
        return [*near, *range(20, 27), *([] if dtype[0] == "u" else [-1, -2, -7])]
    low, high = _DOMAINS.get(name, (-5.0, 5.0))
    drawn = list(_rounded(rng.uniform(low, high, 25), dtype))
    if name == "cast":
        # What a type can't hold is undefined in C and in ONNX.
        return _castable(drawn, fn.partition(":")[2], dtype)
    if name in ("asinh", "acosh"):
        drawn += [1e30 if dtype != "float16" else 6e4, 1e5, 1e-3]
    return [*drawn, 0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.0, 0.5, -2.5]


def _castable(drawn: list[float], target: str, dtype: str) -> list[float]:
    odd = [0.0, -0.0, 2.5, 3.5, 100.75]
    if target in FLOATS:
        return [*drawn, *odd, np.nan, np.inf, -np.inf, 70000.0, 1e-7]
    if target == "bool":
        return [*drawn, *odd, np.nan, np.inf]
    return [abs(v) for v in drawn] + odd if target[0] == "u" else [*drawn, *odd, -100.75]


def _others(name: str, dtype: str, values: list[Any]) -> list[Any]:
    if name in ("shl", "shr"):
        bits = np.dtype(dtype).itemsize * 8
        return [0, 1, 3, bits - 1, bits, bits + 5]
    if name == "pow" and dtype in INTS:
        return [0, 1, 2, 3, 5, 13]
    if name == "pow":
        return [0.0, 1.0, 2.0, -1.0, 0.5, 3.0, -0.3, np.nan, np.inf]
    return values


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return values if dtype == "float64" else round_to_grid(values, dtype)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return to_bfloat16(values.astype(np.float32))
    with np.errstate(over="ignore"):
        return values.astype(STORAGE[dtype])


def program_of(dtype: str) -> tuple[Program, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All functions of a type as one program; its inputs as stored; references by output."""
    dims: dict[str, tuple[str, ...]] = {}
    values: dict[str, Node] = {}
    given: dict[str, np.ndarray] = {}
    want: dict[str, np.ndarray] = {}
    for n, fn in enumerate(functions_of(dtype)):
        columns = [stored(c, dtype) for c in operands(fn, dtype)]
        names = [f"x{n}_{k}" for k in range(len(columns))]
        given |= dict(zip(names, columns))
        axis = f"i{n}"
        inputs = [input_(name, {axis: len(columns[0])}, dtype) for name in names]
        out = fn.replace(":", "_")
        values[out] = map_(fn, *inputs)
        dims[out] = (axis,)
        exact = [from_bfloat16(c).astype(np.float64) if dtype == "bfloat16" else c for c in columns]
        want[out] = meaning(fn, exact, dtype)
    return programs.algebra(dims, **values), given, want


def meaning(fn: str, columns: list[np.ndarray], dtype: str) -> np.ndarray:
    name, target = split_name(fn)
    if dtype in FLOATS:
        columns = [c.astype(np.float64) for c in columns]
    with np.errstate(all="ignore"):
        if name == "bitcast":
            return np.asarray(reinterpret(columns[0], dtype, target))
        if name != "cast":
            return np.asarray(SCALARS[name].numpy(*columns))
        (x,) = columns
        if target in FLOATS:
            return _rounded(x.astype(np.float64), target)
        return x.astype(target)


def schedule(program: Program, lanes: int) -> Schedule:
    actions = [act("inline", keep=[])]
    for out in program.outputs:
        (axis,) = out.dims
        if lanes > 1:
            actions.append(act("split", axis=axis, size=lanes, nest=out.name,
                               into=[f"{axis}.o", f"{axis}.l"]))  # fmt: skip
            loops = [f"{axis}.o:serial", f"{axis}.l:lane"]
            actions.append(act("bind", nest=out.name, loops=loops))
    return Schedule("by hand", tuple(actions))


def wrong(got: np.ndarray, want: np.ndarray, dtype: str) -> Iterator[int]:
    """Positions at which a result is off."""
    if dtype not in FLOATS:
        return iter(np.flatnonzero(got != want))
    with np.errstate(over="ignore", invalid="ignore"):
        want = _rounded(np.asarray(want, np.float64), dtype)
        if dtype == "bfloat16":
            got = from_bfloat16(got)
        got = got.astype(np.float64)
        tiny = 1e-300 if dtype == "float64" else 1e-38 if dtype != "float16" else 1e-7
        close = np.abs(got - want) <= TOLERANCE[dtype] * np.abs(want) + tiny
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return iter(np.flatnonzero(~(close | same)))


@pytest.mark.parametrize("lanes", [16, 1])
@pytest.mark.parametrize("dtype", TYPES)
def test_functions_mean_what_the_table_says(dtype: str, lanes: int, tmp_path: Path) -> None:
    program, given, want = program_of(dtype)
    kernel = compile_kernel(program, schedule(program, lanes), host_target(), "scalars")
    assert isinstance(kernel, BuiltKernel), kernel
    library = tmp_path / "k.so"
    library.write_bytes(kernel.library)
    bound = bind(TaskData(given, {}), library, "scalars", kernel.args, 2)
    run_guarded(bound)
    off = []
    for n, (fn, out) in enumerate(zip(functions_of(dtype), program.outputs)):
        got = bound.outputs[out.name]
        found = list(wrong(got, want[out.name], out.dtype))
        if found:
            at = found[0]
            x = [given[f"x{n}_{k}"][at] for k in range(SCALARS[split_name(fn)[0]].arity)]
            off.append(f"{fn}{tuple(x)}: {got[at]}, not {want[out.name][at]} ({len(found)} more)")
    assert not off, "\n".join(off)
