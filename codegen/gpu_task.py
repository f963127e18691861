"""The folder of a task and a device in, its inputs and float64 reference on that device out.

Inputs are drawn on the device, the definition is evaluated there, and both stay there while
candidates of the task are measured: real sizes never travel. Equal seeds give equal inputs on
equal devices. They lie in an arena that tells whether a candidate has written to them.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autosched.codegen.check import bound_dtype
from autosched.codegen.draw import Ranges, draw_inputs, ranges_of
from autosched.codegen.gpu_arena import Arena, broken
from autosched.codegen.reference import read_given, read_program
from autosched.codegen.torch_arrays import TorchArrays, supports
from autosched.codegen.torch_types import STORAGE
from autosched.ir.interp import InterpError, evaluate
from autosched.ir.node import Node, Program
from autosched.ir.scalar import FLOATS

_SHRINKS = (1, 16, 1 << 30)  # of the range of indices, until no read is out of range
_INPUT, _OUTPUT = "input ", "reference of "  # what a tensor of the arena is, before its name

Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class GpuTask:
    """Inputs and reference by name, dense; bounds: the type whose error bound holds.

    arena: where both lie; remake: inputs and reference once more, elsewhere.
    """

    program: Program
    inputs: Values
    outputs: Values
    bounds: Mapping[str, str]
    device: torch.device
    arena: Arena
    remake: Callable[[], tuple[Values, Values]]


@functools.lru_cache(maxsize=1)
def load_task(folder: str, seed: int, device: str = "cuda") -> GpuTask:
    """The task in `folder`: one at a time is kept, a new one takes the memory of the last."""
    if device != "cpu":
        torch.cuda.empty_cache()
    place = Path(folder)
    return make_task(read_program(place), seed, torch.device(device), read_given(place))


def make_task(
    program: Program, seed: int, device: torch.device,
    given: Mapping[str, np.ndarray] | None = None, scale: float = 1.0,
) -> GpuTask:  # fmt: skip
    """given: inputs that are not drawn, by name; scale: of floats that are drawn and no weights.

    Raises: InterpError where the program reads out of range on every kind of inputs.
    """
    roots = zip(program.outputs, program.body, strict=True)
    bounds = {out.name: dtype for out, body in roots if (dtype := bound_dtype(body)) is not None}
    remake = functools.partial(_values, program, seed, device, given or {}, scale)
    inputs, outputs = remake()
    arena = Arena(_labelled(inputs, outputs), device)
    kept = arena.tensors
    return GpuTask(
        program, {name: kept[_INPUT + name] for name in inputs},
        {name: kept[_OUTPUT + name] for name in outputs}, bounds, device, arena, remake,
    )  # fmt: skip


def mend(tasks: Sequence[GpuTask]) -> tuple[str, ...]:
    """The names of tensors of tasks that were written to since they were made; they are made anew.

    Costs one pass over the tasks' memory, and a wait for the device.
    """
    spoilt = broken([task.arena for task in tasks])
    told: list[str] = []
    for task in tasks:
        if task.arena in spoilt:
            told += task.arena.changed()
            task.arena.fill(_labelled(*task.remake()))
    return tuple(told)


def _labelled(inputs: Values, outputs: Values) -> dict[str, torch.Tensor]:
    return {**{_INPUT + n: x for n, x in inputs.items()},
            **{_OUTPUT + n: x for n, x in outputs.items()}}  # fmt: skip


def _values(
    program: Program, seed: int, device: torch.device, given: Mapping[str, np.ndarray],
    scale: float,
) -> tuple[Values, Values]:  # fmt: skip
    """Inputs and reference: drawn in the widest range in which the program reads nothing else."""
    own = {name: torch.from_numpy(array).to(device) for name, array in given.items()}
    for shrink in _SHRINKS:
        inputs = draw_on(program, seed, device, shrink, own, scale)
        try:
            return inputs, _reference(program, inputs, device)
        except InterpError:
            if shrink == _SHRINKS[-1]:
                raise
    raise AssertionError("the last range either works or raises")


def _reference(
    program: Program, inputs: Mapping[str, torch.Tensor], device: torch.device
) -> dict[str, torch.Tensor]:
    """On the device where torch knows all types, else by NumPy."""
    if supports(program):
        return evaluate(program, inputs, TorchArrays(str(device)))
    arrays = {
        name: (x.to(torch.float32) if x.dtype is torch.bfloat16 else x).cpu().numpy()
        for name, x in inputs.items()
    }
    found = evaluate(program, arrays)
    return {name: torch.from_numpy(array).to(device) for name, array in found.items()}


def draw_on(
    program: Program, seed: int, device: torch.device, shrink: int = 1,
    own: Mapping[str, torch.Tensor] | None = None, scale: float = 1.0,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Inputs by name: floats are drawn on the device, the rest as `draw_inputs` draws it, but for
    those that have values of their `own`."""
    ranges, drawn = ranges_of(program), dict(own or {})
    left = [n for n in program.inputs if n.attr[0] not in drawn]
    for node in left:
        if node.dtype in FLOATS:
            by = 1.0 if node.attr[3] == "weight" else scale
            drawn[str(node.attr[0])] = _floats(node, ranges, seed, device, by)
    if any(n.dtype not in FLOATS for n in left):
        arrays = draw_inputs(program, seed, shrink)
        for node in left:
            if node.dtype not in FLOATS:
                name = str(node.attr[0])
                drawn[name] = torch.from_numpy(arrays[name]).to(device)
    return {str(n.attr[0]): drawn[str(n.attr[0])] for n in program.inputs}


def _floats(
    node: Node, ranges: Ranges, seed: int, device: torch.device, scale: float
) -> torch.Tensor:
    name, dims, dtype, _ = node.attr
    rng = torch.Generator(device)
    rng.manual_seed(seed * 1_000_003 + zlib.crc32(str(name).encode()))
    shape = tuple(extent for _, extent in dims)
    values = torch.empty(shape, dtype=torch.float32, device=device)
    if node in ranges.domain:
        values.uniform_(*ranges.domain[node], generator=rng)
    else:
        values.normal_(0.0, scale * ranges.scale.get(node, 1.0), generator=rng)
    return values.to(STORAGE[dtype])
