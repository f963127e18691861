"""The folder of a task and a device in, its inputs and float64 reference on that device out.

Inputs are drawn on the device, the definition is evaluated there, and both stay there while
candidates of the task are measured: real sizes never travel. Equal seeds give equal inputs on
equal devices. They lie in an arena that tells whether a candidate has written to them.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from autosched.codegen.check import Comparison, bound_dtype
from autosched.codegen.draw import Ranges, draw_inputs, ranges_of
from autosched.codegen.gpu_arena import Arena, broken
from autosched.codegen.gpu_check import compare
from autosched.codegen.gpu_reference import Effort, Reference, reference, share
from autosched.codegen.reference import read_given, read_program
from autosched.codegen.torch_types import STORAGE
from autosched.ir.interp import InterpError
from autosched.ir.node import Node, Output, Program
from autosched.ir.record import Status
from autosched.ir.scalar import FLOATS

_SHRINKS = (1, 16, 1 << 30)  # of the range of indices, until no read is out of range
_INPUT, _OUTPUT = "input ", "reference of "  # what a tensor of the arena is, before its name

Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class GpuTask:
    """Inputs and reference by name, dense; bounds: the type whose error bound holds.

    arena: where both lie; remake: inputs and reference once more, elsewhere; rows: of references
    that are a sample, the dimension it is of and the coordinates there.
    """

    program: Program
    inputs: Values
    outputs: Values
    bounds: Mapping[str, str]
    device: torch.device
    arena: Arena
    remake: Callable[[], tuple[Values, Values]]
    rows: Mapping[str, tuple[int, torch.Tensor]] = field(default_factory=dict)

    @property
    def checked(self) -> float:
        """The share of the outputs' elements that the reference has."""
        return share(self.program, self.outputs)

    def compare(self, output: Output, found: torch.Tensor, bound: str | None) -> Comparison:
        """An output against its reference. bound: the type whose error bound holds, if not its own.

        Where the reference is a sample without NaNs, there are to be none elsewhere either.
        """
        want = self.outputs[output.name]
        if output.name not in self.rows or tuple(found.shape) != output.extents:
            return compare(found, want, output.dtype, bound)
        dim, at = self.rows[output.name]
        result = compare(found.index_select(dim, at), want, output.dtype, bound)
        if result.ok and output.dtype in FLOATS and not bool(torch.isnan(want).any()):
            count = int(torch.isnan(found.to(torch.float32)).sum())
            if count:
                return Comparison(Status.NAN_RESULT, result.rel_l2, math.inf, result.bound,
                                  f"{count} of {found.numel()} elements are NaN where the "
                                  "reference has none nearby")  # fmt: skip
        return result


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
    effort: Effort | None = None,
) -> GpuTask:  # fmt: skip
    """given: inputs that are not drawn, by name; scale: of floats that are drawn and no weights;
    effort: how much of a reference is made that would take long.

    Raises: InterpError where the program reads out of range on every kind of inputs.
    """
    roots = zip(program.outputs, program.body, strict=True)
    bounds = {out.name: dtype for out, body in roots if (dtype := bound_dtype(body)) is not None}
    values = functools.partial(_values, program, seed, device, given or {}, scale)
    effort = effort or Effort(seed=seed)
    inputs, made = values(effort)
    outputs, again = made.outputs, replace(effort, taken=made.taken)

    def remake() -> tuple[Values, Values]:
        inputs, made = values(again)
        return inputs, made.outputs

    arena = Arena(_labelled(inputs, outputs), device)
    kept = arena.tensors
    return GpuTask(
        program, {name: kept[_INPUT + name] for name in inputs},
        {name: kept[_OUTPUT + name] for name in outputs}, bounds, device, arena, remake,
        made.rows,
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
    scale: float, effort: Effort,
) -> tuple[Values, Reference]:  # fmt: skip
    """Inputs and reference: drawn in the widest range in which the program reads nothing else."""
    own = {name: torch.from_numpy(array).to(device) for name, array in given.items()}
    for shrink in _SHRINKS:
        inputs = draw_on(program, seed, device, shrink, own, scale)
        try:
            return inputs, reference(program, inputs, device, effort)
        except InterpError:
            if shrink == _SHRINKS[-1]:
                raise
    raise AssertionError("the last range either works or raises")


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
