"""Tiles of equal work dealt out to a fixed number of programs, as int32 expressions.

Each tile is a run of `blocks` steps. The first tiles, `shared` of them, are laid end to end, and
each program takes an even, contiguous piece of their steps: it ends a tile that another one has
begun, does some whole, and begins one more. Every other tile is done by one program, and each
program does as many of these.

    3 tiles of 4 steps for 2 programs, all of them shared:
    steps      0 1 2 3 | 4 5 6 7 | 8 9 10 11
    program    0 0 0 0   0 0 1 1   1 1 1  1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autosched.ir.extent import (
    as_extent,
    as_node,
    ext_add,
    ext_floordiv,
    ext_max,
    ext_min,
    ext_mul,
    ext_product,
    ext_sub,
    simplify,
)
from autosched.ir.node import Extent, Node
from autosched.ir.ops import iota, maximum, minimum, where


@dataclass(frozen=True)
class Shares:
    """blocks: steps of a tile; programs: among which the steps of the first `shared` tiles are
    dealt out."""

    blocks: Extent
    programs: Extent
    shared: Extent

    @property
    def sharing(self) -> Extent:
        """Programs that get steps of shared tiles: no more than there are steps."""
        return ext_min(self.programs, ext_max(self._steps, 1))

    @property
    def most(self) -> Extent:
        """Parts of a tile at most."""
        least = ext_max(ext_floordiv(self._steps, self.sharing), 1)
        return ext_add(ext_floordiv(ext_sub(ext_add(self.blocks, least), 2), least), 1)

    @property
    def slots(self) -> Extent:
        """Places for the parts of shared tiles, and one more."""
        return ext_add(self.sharing, self.shared)

    def start(self, program: Node) -> Node:
        """The step with which a program starts; behind the last program, the number of steps."""
        return program * as_node(self._steps) // as_node(self.sharing)

    def tiles(self, program: Node) -> tuple[Node, Node]:
        """The interval of shared tiles of which a program does steps; `program` may be one of
        those that get none."""
        lo, hi = (self.start(minimum(p, as_node(self.sharing))) for p in (program, program + 1))
        blocks = as_node(self.blocks)
        # Where both are the end of the steps, the interval is empty.
        return simplify(lo // blocks), simplify((hi + blocks - 1) // blocks)

    def parts(self, tile: Node) -> Node:
        """The parts of a tile: one, or the programs that share it."""
        last = self._program((tile + 1) * as_node(self.blocks) - 1)
        return where(self.is_shared(tile), last - self.first(tile) + 1, 1)

    def first(self, tile: Node) -> Node:
        """The program that does the first step of a shared tile."""
        return self._program(tile * as_node(self.blocks))

    def steps(self, tile: Node, part: Node) -> tuple[Node, Node]:
        """The interval of a tile's steps that is its part number `part`."""
        blocks = as_node(self.blocks)
        program = self.first(tile) + part
        before = tile * blocks
        shared = self.is_shared(tile)
        lo, hi = (
            maximum(minimum(self.start(p) - before, blocks), 0) for p in (program, program + 1)
        )
        return where(shared, lo, 0), where(shared, hi, blocks)

    def slot(self, tile: Node, part: Node) -> Node:
        """Where a part is kept: programs and tiles go up together, so no sum of a shared tile's
        number and a program's comes twice. All tiles of one program are kept at the last place,
        by whoever keeps them."""
        own = tile + self.first(tile) + part
        return where(self.is_shared(tile), own, as_node(ext_sub(self.slots, 1)))

    def is_shared(self, tile: Node) -> Node:
        return tile < as_node(self.shared)

    @property
    def _steps(self) -> Extent:
        return ext_mul(self.shared, self.blocks)

    def _program(self, step: Node) -> Node:
        """Who does a step: the last one to start at it or before it."""
        dealt = ext_max(self._steps, 1)
        return ((step + 1) * as_node(self.sharing) - 1) // as_node(dealt)


def shared_tiles(tiles: Extent, programs: Extent, waves: Extent) -> Extent:
    """How many tiles to share: what is left of the last wave, and `waves` whole ones."""
    whole = ext_max(ext_sub(ext_floordiv(tiles, programs), waves), 0)
    return as_extent(simplify(as_node(ext_sub(tiles, ext_mul(whole, programs)))))


def tile_number(places: Sequence[tuple[Node, Extent]], group: Extent) -> Node:
    """The number of a tile from its (coordinate, trips) along the loops of a grid, outermost first.

    group: iterations of the last but one loop that are done together, see `gpu_facts`.
    """
    places = [(as_node(0) if trips == 1 else at, trips) for at, trips in places]
    if len(places) < 2 or group in (0, 1):
        return _rank(places)
    *outer, (row, rows), (column, columns) = places
    size = ext_max(group, 1)
    first = row // as_node(size) * as_node(size)
    tall = minimum(as_node(size), as_node(rows) - first)
    inside = first * as_node(columns) + column * tall + (row - first)
    return simplify(_rank(outer) * as_node(ext_mul(rows, columns)) + inside)


def tile_of(loops: Sequence[Node], group: Extent) -> Node:
    """The number of the tile that the loops of a grid are at."""
    trips = [as_extent(x.src[1]) for x in loops]
    return tile_number([(iota(x.attr[0], n), n) for x, n in zip(loops, trips)], group)


def _rank(places: Sequence[tuple[Node, Extent]]) -> Node:
    total = as_node(0)
    for n, (at, _) in enumerate(places):
        total = total + at * as_node(ext_product(trips for _, trips in places[n + 1 :]))
    return simplify(total)
