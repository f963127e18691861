"""The folder of a task and a device in, its inputs and float64 reference on that device out.

Inputs are drawn on the device, the definition is evaluated there, and both stay there while
candidates of the task are measured: real sizes never travel. Equal seeds give equal inputs on
equal devices.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autosched.codegen.check import bound_dtype
from autosched.codegen.draw import Ranges, draw_inputs, ranges_of
from autosched.codegen.reference import read_given, read_program
from autosched.codegen.torch_arrays import TorchArrays, supports
from autosched.codegen.torch_types import STORAGE
from autosched.ir.interp import InterpError, evaluate
from autosched.ir.node import Node, Program
from autosched.ir.scalar import FLOATS

_SHRINKS = (1, 16, 1 << 30)  # of the range of indices, until no read is out of range


@dataclass(frozen=True)
class GpuTask:
    """Inputs and reference by name, dense; bounds: the type whose error bound holds."""

    program: Program
    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]
    bounds: Mapping[str, str]
    device: torch.device


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
    own = {name: torch.from_numpy(array).to(device) for name, array in (given or {}).items()}
    roots = zip(program.outputs, program.body, strict=True)
    bounds = {out.name: dtype for out, body in roots if (dtype := bound_dtype(body)) is not None}
    for shrink in _SHRINKS:
        inputs = draw_on(program, seed, device, shrink, own, scale)
        try:
            return GpuTask(program, inputs, _reference(program, inputs, device), bounds, device)
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
