"""What the Triton emitter hands to builders, measurers and packages: sources and how to launch.

Plain data, JSON both ways. A module is one Python text with one @triton.jit function per kernel;
all numbers that a launch needs are here, so that nothing has to run the text to know them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autosched.codegen.runtime.sizes import Count, Size, frozen


@dataclass(frozen=True)
class Tensor:
    """A buffer that a kernel is passed: an input, weight, output, or scratch between kernels.

    extents: row-major, dense. role: "input" | "weight" | "output" | "scratch" | "packed" |
    "counter", which is 0 before a launch and after it.
    """

    name: str
    dtype: str
    extents: tuple[Count, ...]
    role: str


@dataclass(frozen=True)
class Launch:
    """One kernel launch: function of the module, tensors by position, then sizes, nothing else.

    programs: size of the one-dimensional grid, with the innermost loop fastest.
    persistent: the grid is min(programs, multiprocessors * this), 0 for a plain grid.
    """

    kernel: str
    tensors: tuple[str, ...]
    programs: Count
    warps: int
    stages: int
    persistent: int = 0
    descriptors: bool = False  # needs triton.set_allocator before the launch
    registers: int = 0  # of a thread at most, 0 for as many as it wants
    sizes: tuple[str, ...] = ()  # names, in the order of the arguments


@dataclass(frozen=True)
class TritonModule:
    """`source` is the whole text of the module, launches run in order. sizes: what kernels are
    told of the shapes of a call, where they serve several (see `runtime.sizes`)."""

    source: str
    tensors: tuple[Tensor, ...]
    launches: tuple[Launch, ...]
    sizes: tuple[Size, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back as an equal module."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TritonModule:
        tensors = tuple(
            Tensor(**{**row, "extents": frozen(row["extents"])}) for row in data["tensors"]
        )
        launches = tuple(
            Launch(**{k: frozen(v) for k, v in row.items()}) for row in data["launches"]
        )
        sizes = tuple(Size(**row) for row in data.get("sizes", ()))
        return TritonModule(data["source"], tensors, launches, sizes)
