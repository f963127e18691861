"""Open extents in kernels: which arguments stand for them, and what depends on them as JSON.

A kernel with open extents is one source for every shape of a class. The values of one workload
decide nothing in it but which offsets need 64 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from autosched.codegen.runtime.sizes import Count, Size
from autosched.codegen.triton_text import Names, Unsupported
from autosched.ir.extent import as_extent, evaluate_extent, knobs_of, simplify, subst
from autosched.ir.linear import poly, range_of
from autosched.ir.node import Extent, Node
from autosched.ir.open_extents import Sizes
from autosched.ir.ops import knob


def count_of(extent: Extent) -> Count:
    """An extent as the launcher reads it: a number, the name of a size, or [function, a, b]."""
    extent = as_extent(extent)
    if not isinstance(extent, Node):
        return extent
    if extent.op == "knob":
        return str(extent.attr[0])
    if extent.op != "map" or len(extent.src) != 2:
        raise Unsupported(f"a {extent.op} in an extent")
    return (extent.attr[0], *map(count_of, extent.src))


def is_multiple(extent: Extent, of: int) -> bool:
    """Whether the extent is a multiple for all values of its sizes."""
    if not isinstance(extent, Node):
        return extent % of == 0
    return all(c % of == 0 for c in poly(simplify(extent)).values())


class OpenSizes:
    """The sizes of a module: names of their arguments, values of the workload at hand."""

    def __init__(self, sizes: Sizes, names: Names) -> None:
        self.values = sizes.knobs()
        self.arguments = {size.name: names.fresh(size.name) for size in sizes.open}
        self.rows = tuple(Size(**asdict(size)) for size in sizes.open)
        # A name for the extent itself: what stands before the unit.
        self.hints = {
            knob(s.name) * s.unit: s.name.rpartition(".")[0] for s in sizes.open if s.unit > 1
        }

    def read_by(self, extents: Iterable[Extent]) -> tuple[Size, ...]:
        """The sizes that extents are made of."""
        used = knobs_of(*extents)
        return tuple(row for row in self.rows if row.name in used)

    def value(self, extent: Extent) -> int:
        """An extent for this workload."""
        return int(evaluate_extent(extent, self.values))

    def most(self, node: Node) -> int | None:
        """The greatest value of an index expression for this workload."""
        return range_of(subst(node, self.values))[1]
