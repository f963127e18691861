"""Tile axes of a kernel: names, extents, and where they lie inside of the axes that they cut."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import prod

from autosched.ir.expand import fresh
from autosched.ir.extent import as_node, ext_cdiv, simplify
from autosched.ir.node import Extent, Node, replace_nodes, walk
from autosched.ir.ops import iota

LEAST_ROWS = 16  # of several axes in one box: what the least tensor core tile has


def power_of_two(extent: int) -> int:
    """The least power of two that covers the extent."""
    return 1 << max(extent - 1, 0).bit_length()


@dataclass
class BlockAxes:
    """tiles: extents of the tile axes in use. valid: the condition under which a tile axis lies
    inside of its own axis; one without a row always does. claims: what a name stands for.
    filled: of a box that is longer than what it holds, the elements that it holds."""

    tiles: dict[str, Extent] = field(default_factory=dict, kw_only=True)
    valid: dict[str, Node] = field(default_factory=dict, kw_only=True)
    claims: dict[str, tuple[object, ...]] = field(default_factory=dict, kw_only=True)
    filled: dict[str, int] = field(default_factory=dict, kw_only=True)

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

    def packed(self, parts: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, Node]]:
        """Blocks of several axes (axis, extent, size) as one box, the last axis fastest: for each
        the loop over its blocks, its trips and its coordinates."""
        rows = prod(size for _, _, size in parts)
        tile = max(power_of_two(rows), LEAST_ROWS)
        name = self.name("_".join(a for a, _, _ in parts) + ".p", "packed", *parts)
        self.tiles[name], self.filled[name] = tile, rows
        row, below = iota(name, tile), rows
        tests = [row < rows] if rows < tile else []
        out = []
        for axis, extent, size in parts:
            below //= size
            outer = self.name(f"{axis}.o", axis, extent, size, "packed")
            trips = -(-extent // size)
            at = self.short(iota(outer, trips) * size + row // below % size)
            out.append((outer, trips, at))
            tests += [at < extent] if extent % size else []
        if tests:
            self.valid[name] = functools.reduce(lambda a, b: a & b, tests)
        return out

    def short(self, at: Node) -> Node:
        """The expression in a shorter form, which is equal wherever boxes hold something if it is
        one of coordinates alone."""
        nodes = list(walk(at))
        long = {n: iota(n.attr[0], self.filled[n.attr[0]], n.attr[2]) for n in nodes
                if n.op == "iota" and n.attr[0] in self.filled}  # fmt: skip
        if not long or any(n.op not in ("map", "iota", "const", "knob") for n in nodes):
            return simplify(at)
        back = {held: n for n, held in long.items()}
        return replace_nodes(simplify(replace_nodes(at, long)), back)

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
