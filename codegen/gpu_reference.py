"""A program and its inputs on a device in, float64 outputs there out: all of them or a sample.

Outputs come in pieces of rows spread from end to end (see `ir.pieces`). Pieces are made until
all are there or their time is over: a reference of hours would check little more than one of
seconds, and it would hold the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from autosched.codegen.torch_arrays import TorchArrays, supports
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.pieces import PIECE_ELEMENTS, Cut, Pieces, cuts

Tensor = torch.Tensor
BUDGET_S = 4.0  # for all outputs; the pieces with the first and the last coordinate come anyway


@dataclass(frozen=True)
class Effort:
    """How much of a reference is made. taken: numbers of pieces by the first output of a cut,
    where they were chosen before; otherwise as many as fit into `budget_s`."""

    budget_s: float = BUDGET_S
    elements: int = PIECE_ELEMENTS
    seed: int = 0
    taken: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """rows: of outputs that are a sample, the dimension it is of, and its coordinates there."""

    outputs: Mapping[str, Tensor]
    rows: Mapping[str, tuple[int, Tensor]]
    taken: Mapping[str, tuple[int, ...]]


def reference(
    program: Program, inputs: Mapping[str, Tensor], device: torch.device, effort: Effort
) -> Reference:
    """On the device where torch knows all types, else by NumPy.

    Raises: InterpError where the program reads out of range.
    """
    if not supports(program):
        return Reference(_by_numpy(program, inputs, device), {}, {})
    pieces = Pieces(program, inputs, TorchArrays(str(device)))
    outputs: dict[str, Tensor] = {}
    rows: dict[str, tuple[int, Tensor]] = {}
    taken: dict[str, tuple[int, ...]] = {}
    chosen = cuts(program, effort.elements)
    for cut in chosen:
        if cut.count == 1:
            outputs.update(pieces.values(cut, 0))
            continue
        made = _made(pieces, cut, effort, effort.budget_s / len(chosen), device)
        taken[cut.names[0]] = tuple(made)
        numbers = list(made)
        for name in cut.names:
            dim = next(o for o in program.outputs if o.name == name).dims.index(cut.axis)
            at = torch.cat([torch.arange(n, cut.extent, cut.count) for n in numbers]).to(device)
            whole = torch.cat([made[n].pop(name) for n in numbers], dim)
            at, order = torch.sort(at)
            outputs[name] = whole.index_select(dim, order)
            if len(made) < cut.count:
                rows[name] = dim, at
    ordered = {out.name: outputs[out.name] for out in program.outputs}
    return Reference(ordered, rows, taken)


def _made(
    pieces: Pieces, cut: Cut, effort: Effort, budget_s: float, device: torch.device
) -> dict[int, dict[str, Tensor]]:
    """Outputs of pieces, by the pieces' numbers."""
    fixed = effort.taken.get(cut.names[0])
    made: dict[int, dict[str, Tensor]] = {}
    until = time.monotonic() + budget_s
    for number in fixed if fixed is not None else cut.order(effort.seed):
        if fixed is None and len(made) >= 2 and time.monotonic() > until:
            break
        made[number] = pieces.values(cut, number)
        if device.type != "cpu":
            torch.cuda.synchronize(device)
    return made


def share(program: Program, made: Mapping[str, Tensor]) -> float:
    """Of the elements of all outputs, those that a reference has."""
    whole = sum(math.prod(e for e in o.extents if isinstance(e, int)) for o in program.outputs)
    return sum(x.numel() for x in made.values()) / max(whole, 1)


def _by_numpy(
    program: Program, inputs: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    arrays = {
        name: (x.to(torch.float32) if x.dtype is torch.bfloat16 else x).cpu().numpy()
        for name, x in inputs.items()
    }
    found = evaluate(program, arrays)
    return {name: torch.from_numpy(array).to(device) for name, array in found.items()}
