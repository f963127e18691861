"""An algebra program in, the data it is checked on out: random inputs and float64 results."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autosched.codegen.check import bound_dtype
from autosched.codegen.draw import draw_inputs
from autosched.codegen.runtime.arrays import from_bfloat16
from autosched.codegen.task_files import PROGRAM, TaskData
from autosched.ir.interp import InterpError, evaluate
from autosched.ir.node import Program
from autosched.ir.text import parse, to_text

GIVEN = "given.npz"
_SHRINKS = (1, 16, 1 << 30)  # of the range of indices, until no read is out of range


def reference(program: Program, seed: int) -> TaskData:
    """Inputs drawn by `seed` and what the definition makes of them.

    Raises: InterpError where the program reads out of range on every kind of inputs.
    """
    roots = zip(program.outputs, program.body, strict=True)
    bounds = {out.name: dtype for out, body in roots if (dtype := bound_dtype(body)) is not None}
    for shrink in _SHRINKS:
        inputs = draw_inputs(program, seed, shrink)
        try:
            return TaskData(inputs, evaluate(program, _numbers(program, inputs)), bounds)
        except InterpError:
            if shrink == _SHRINKS[-1]:
                raise
    raise AssertionError("the last range either works or raises")


def _numbers(program: Program, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stored inputs as numbers that the interpreter reads."""
    halves = {n.attr[0] for n in program.inputs if n.dtype == "bfloat16"}
    return {n: from_bfloat16(a) if n in halves else a for n, a in inputs.items()}


def write_program(folder: Path, program: Program) -> None:
    """Makes the folder of a task with its definition."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROGRAM).write_text(to_text(program), "utf-8")


def write_given(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Adds inputs to the folder of a task that have values of their own and are not drawn."""
    np.savez(folder / GIVEN, **dict(arrays))  # type: ignore[arg-type]


def read_given(folder: Path) -> dict[str, np.ndarray]:
    """What `write_given` wrote; nothing where it was not called."""
    path = folder / GIVEN
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


@functools.lru_cache(maxsize=64)
def read_program(folder: Path) -> Program:
    """The definition that `write_program` wrote."""
    return parse((folder / PROGRAM).read_text("utf-8"))
