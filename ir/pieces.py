"""A program in, parts of its outputs out: all that every n-th coordinate of an axis needs, at once.

A chain of reductions over values too large for memory costs those values once for each reduction
when it is evaluated whole. For a few coordinates of an axis of the outputs the values are small,
and made once. Nothing is assumed of the program: where an operator moves coordinates of the axis,
what it moves is evaluated whole, as ever. Parts can also stand for the whole where that costs
too much: each is spread over the axis from end to end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autosched.ir.bound import Env
from autosched.ir.footprint import shapes
from autosched.ir.interp import evaluating
from autosched.ir.node import Output, Program

PIECE_ELEMENTS = 1 << 26  # of the largest value of a piece: below what reductions are cut at


@dataclass(frozen=True)
class Cut:
    """Outputs that are evaluated together, in `count` pieces of an axis; one piece is all."""

    names: tuple[str, ...]
    axis: str = ""
    extent: int = 1
    count: int = 1

    def order(self, seed: int) -> list[int]:
        """Every piece once: the one of the first coordinate, that of the last, others mixed."""
        ends = list(dict.fromkeys([0, (self.extent - 1) % self.count]))
        rest = [n for n in range(self.count) if n not in ends]
        random.Random(seed).shuffle(rest)
        return ends + rest


def cuts(program: Program, elements: int = PIECE_ELEMENTS) -> tuple[Cut, ...]:
    """How the outputs of an algebra program are cut so that no value of a piece is larger than
    `elements`, as far as one axis goes; one cut of one piece where all of them are small."""
    sizes = {out.name: _sizes(program, n) for n, out in enumerate(program.outputs)}
    if all(n <= elements for found in sizes.values() for n in found.values()):
        return (Cut(tuple(sizes)),)
    made, left = [], list(program.outputs)
    while left:
        axis = _axis(left, sizes, elements)
        both = [out for out in left if axis and axis in out.dims] or left[:1]
        names = tuple(out.name for out in both)
        if axis:
            worst = max(_along(sizes[name], axis)[0] for name in names)
            extent = _extent(both[0], axis)
            made.append(Cut(names, axis, extent, max(1, min(extent, -(-worst // elements)))))
        else:
            made.append(Cut(names))
        left = [out for out in left if out not in both]
    return tuple(made)


def _sizes(program: Program, number: int) -> dict[frozenset[str], int]:
    """Elements of the largest values that an output is made of, by their axes."""
    found: dict[frozenset[str], int] = {}
    for axes in shapes(program.body[number]):
        names = frozenset(a for a, _ in axes)
        count = math.prod(e for _, e in axes if isinstance(e, int))
        found[names] = max(count, found.get(names, 0))
    return found


def _along(sizes: Mapping[frozenset[str], int], axis: str) -> tuple[int, int]:
    """The largest and the sum of the values that have an axis."""
    own = [n for names, n in sizes.items() if axis in names]
    return max(own, default=0), sum(own)


def _axis(
    outputs: list[Output], sizes: Mapping[str, Mapping[frozenset[str], int]], elements: int
) -> str:
    """The axis to cut: of all outputs if there is one, long enough, that most values have."""
    shared = [a for a in outputs[0].dims if all(a in out.dims for out in outputs)]

    def worth(axis: str) -> tuple[bool, bool, int, int]:
        extent = _extent(outputs[0], axis)
        largest, total = _along(sizes[outputs[0].name], axis)
        return largest <= elements * extent, axis in shared, total, extent

    return max(outputs[0].dims, default="", key=worth)


def _extent(output: Output, axis: str) -> int:
    extent = output.extents[output.dims.index(axis)]
    assert isinstance(extent, int)
    return extent


class Pieces:
    """Evaluates pieces of a program's outputs; what all pieces share is made once."""

    def __init__(self, program: Program, inputs: Mapping[str, Any], xp: Any) -> None:
        """As `interp.evaluate`."""
        self.program, self.xp = program, xp
        self._state = evaluating(program, inputs, xp)

    def values(self, cut: Cut, number: int) -> dict[str, Any]:
        """The outputs of a cut at coordinates number, number + count, ... of its axis."""
        xp, state = self.xp, self._state
        with state.machine.frame() as level:
            env: Env = {}
            if cut.count > 1:
                steps = -(-(cut.extent - number) // cut.count)
                at = xp.arange(0, steps, (cut.axis, 0))
                for fn, by in (("mul", cut.count), ("add", number)):
                    at = xp.apply(fn, "int32", [at, xp.constant(by, "int32")])
                env = {cut.axis: state.machine.bound(at, level)}
            return state.outputs(cut.names, env)
