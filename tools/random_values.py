"""The state of a generator of programs: values made so far, and new inputs over their axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from autosched.ir.node import Node
from autosched.ir.ops import cast, const, input_

EXTENTS = (1, 2, 3, 5, 7, 8, 11, 16, 17, 24, 33, 40, 67, 96, 130)
LIMIT = 120_000  # elements of a value
DTYPES = ("float32",) * 6 + ("float16", "bfloat16", "float64")

T = TypeVar("T")


@dataclass
class Values:
    """The state of the generator: the values made so far, over axes of known extents."""

    seed: int
    leaves: list[Node] = field(default_factory=list)
    pool: list[Node] = field(default_factory=list)
    names: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, 2])
        self.dtype = str(self.rng.choice(DTYPES))
        self.compute = "float64" if self.dtype == "float64" else "float32"
        extents = [int(e) for e in self.rng.choice(EXTENTS, 4)]
        self.axes = dict(zip("abcd", extents))

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def axis(self, hint: str = "n") -> str:
        self.names += 1
        return f"{hint}{self.names}"

    def some_axes(self) -> dict[str, int]:
        names = [a for a in self.axes if self.rng.random() < 0.6] or [self.pick([*self.axes])]
        self.rng.shuffle(names)
        while math.prod(self.axes[a] for a in names) > LIMIT:
            names.pop()
        return {a: self.axes[a] for a in names}

    def input(self, dims: dict[str, int], dtype: str, kind: str = "arg") -> Node:
        self.names += 1
        return input_(f"x{self.names}", dims, dtype, kind)

    def leaf(self) -> Node:
        """An input in the type of the computation: stored in it, narrower, or as whole numbers."""
        dims, kind = self.some_axes(), self.pick(["arg", "arg", "weight"])
        if self.rng.random() < 0.15:
            codes = cast(self.input(dims, self.pick(["int8", "uint8"]), kind), self.compute)
            scales = dict([self.pick([*dims.items()])])
            x = codes * 0.02 * cast(self.input(scales, self.dtype, kind), self.compute)
        else:
            x = cast(self.input(dims, self.dtype, kind), self.compute)
            self.leaves.append(x)
        return x

    def old(self) -> Node:
        """A value made before; later ones more often."""
        at = int(len(self.pool) * math.sqrt(self.rng.random()))
        return self.pool[at]

    def with_axes(self) -> Node | None:
        found = [v for v in self.pool if v.axes]
        return found[int(len(found) * math.sqrt(self.rng.random()))] if found else None

    def number(self, value: float) -> Node:
        return const(value, self.compute)


def volume(*values: Node) -> int:
    """Points of the box over all axes of the values."""
    sizes = {a: int(str(e)) for v in values for a, e in v.axes}
    return math.prod(sizes.values())


def size_of(value: Node, axis: str) -> int:
    return int(str(value.extent(axis)))
