"""Tile axes of a kernel: names, extents, and where they lie inside of the axes that they cut."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, field

from autosched.ir.expand import fresh
from autosched.ir.extent import as_node, ext_cdiv, simplify
from autosched.ir.node import Extent, Node
from autosched.ir.ops import iota


def power_of_two(extent: int) -> int:
    """The least power of two that covers the extent."""
    return 1 << max(extent - 1, 0).bit_length()


@dataclass
class BlockAxes:
    """tiles: extents of the tile axes in use. valid: the condition under which a tile axis lies
    inside of its own axis; one without a row always does. claims: what a name stands for."""

    tiles: dict[str, Extent] = field(default_factory=dict, kw_only=True)
    valid: dict[str, Node] = field(default_factory=dict, kw_only=True)
    claims: dict[str, tuple[object, ...]] = field(default_factory=dict, kw_only=True)

    def name(self, wanted: str, *claim: object, taken: Collection[str] = ()) -> str:
        """`wanted`, or it with a number, that stands for nothing else and is not `taken`."""
        others = {n for n, c in self.claims.items() if c != claim}
        found = fresh(wanted, {*others, *taken})
        self.claims[found] = claim
        return found

    def block(self, extent: Extent, size: Extent, name: str, start: Node) -> Node:
        """The coordinates start + [0, size) of an axis, and their condition in `valid`."""
        self.tiles[name] = size
        at = simplify(start + iota(name, size))
        inside = simplify(at < as_node(extent))
        if not (inside.op == "const" and inside.attr[0]):
            self.valid[name] = inside
        return at

    def whole(self, axis: str, extent: int, taken: Collection[str] = ()) -> Node:
        """All coordinates of an axis as one box."""
        size = power_of_two(extent)
        name = self.name(f"{axis}.t", axis, extent, taken=taken)
        return self.block(extent, size, name, as_node(0))

    def blocked(
        self, axis: str, extent: Extent, size: Extent, kind: str, taken: Collection[str] = (),
        reverse: bool = False,
    ) -> tuple[str, Node]:  # fmt: skip
        """(the loop over blocks, the coordinates of a block) of an axis; kind: whose loop it is;
        reverse: the last block comes first."""
        trips = ext_cdiv(extent, size)
        outer = self.name(f"{axis}.o", axis, extent, size, kind, taken=taken)
        name = self.name(f"{axis}.i", axis, extent, size, kind, taken=taken)
        number = iota(outer, trips)
        if reverse:
            number = as_node(trips) - 1 - number
        return outer, self.block(extent, size, name, number * as_node(size))

    def box(self, at: Node) -> str:
        """The one tile axis of a block's coordinates."""
        (name,) = [a for a, _ in at.free if a in self.tiles]
        return name

    def boxes(self, value: Node) -> dict[str, Extent]:
        """The axes of a value that are tiles, not loops."""
        return {a: e for a, e in value.axes if a in self.tiles}

    def conditions(self, *exprs: Node) -> Node | None:
        """Whether all coordinates that the expressions depend on lie inside of their axes."""
        axes = sorted({a for e in exprs for a, _ in e.free})
        tests = [self.valid[a] for a in axes if a in self.valid]
        return functools.reduce(lambda a, b: a & b, tests) if tests else None
