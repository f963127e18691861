"""Numbers that depend on the shapes of a call: JSON expressions in, integers out.

A kernel with open extents gets *sizes* as arguments. A size is a dimension of an operand, divided
by what the kernel knows that it is a multiple of. Extents of buffers and counts of programs are
numbers, names of sizes, or [function, a, b].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Count: TypeAlias = "int | str | tuple[Any, ...]"


@dataclass(frozen=True)
class Size:
    """An argument of kernels: dimension `dim` of the operand `tensor` is `unit` times it."""

    name: str
    unit: int
    tensor: str
    dim: int


class SizeError(ValueError):
    """A shape that kernels were not made for."""


_FUNCTIONS: Mapping[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
}


def frozen(count: Any) -> Count:
    """A count as JSON has it, hashable."""
    return tuple(map(frozen, count)) if isinstance(count, (list, tuple)) else count


def evaluate(count: Count, values: Mapping[str, int]) -> int:
    """The number that a count is for these sizes."""
    if isinstance(count, tuple):
        name, *operands = count
        return _FUNCTIONS[name](*(evaluate(x, values) for x in operands))
    return values[count] if isinstance(count, str) else count


def sizes_of(sizes: Sequence[Size], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The values of sizes for operands of these shapes. Raises: SizeError."""
    values: dict[str, int] = {}
    for size in sizes:
        if size.tensor not in shapes:
            raise SizeError(f"{size.tensor} is missing, whose shape says what {size.name} is")
        extent = int(shapes[size.tensor][size.dim])
        values[size.name], rest = divmod(extent, size.unit)
        if rest:
            raise SizeError(f"dimension {size.dim} of {size.tensor} is {extent}; these kernels are "
                            f"for multiples of {size.unit}")  # fmt: skip
    return values
