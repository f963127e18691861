"""share: a fixed number of programs does all tiles, some of them together.

    before:  kernel t0:  forall m.o, n.o, p: grid:  store t0[p, tile] = part(p)
             kernel y:   forall m.o, n.o: grid:
                           store y[tile] = f(fold p in [0, parts(tile)): acc + load t0[p, tile])
    after:   kernel y on programs=P, shared=R, pieces=B:
               forall m.o, n.o: grid:
                 forall p in [0, parts(tile)): share:  store t0[slot(tile, p)] = part(p)
                 store y[tile] = f(fold p in [0, parts(tile)): acc + load t0[slot(tile, p)])
    args:    axis, along which the parts are numbered; blocks, programs and waves, as `stream` cut
             the parts (blocks: the number of them in a tile).
    Illegal: as of `arrive`; SHARES (the parts are not cut like that).

A program does its parts one after the other; of those that share a tile the last to end goes on,
as with `arrive`; who did all of a tile goes on with what it has, without storing it. So memory
is wanted for the parts of shared tiles alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from autosched.ir.extent import as_extent, ext_mul, ext_product, simplify
from autosched.ir.loops import grid_of
from autosched.ir.node import Extent, Node, Program, rewrite, walk
from autosched.ir.ops import Dim, buffer, const, forall, kernel, kernel_facts, load, store
from autosched.ir.rules import arrive
from autosched.ir.rules.action import Action, Illegal
from autosched.ir.shares import Shares, shared_tiles, tile_of
from autosched.ir.spec import starts

SHARE = "share"


def apply(program: Program, action: Action) -> Program | Illegal:
    merged = arrive.apply(program, action)
    if isinstance(merged, Illegal):
        return merged
    before = set(program.body)
    (at,) = (n for n, k in enumerate(merged.body) if k not in before)
    made = _shared(merged.body[at], action)
    if isinstance(made, Illegal):
        return made
    return merged.with_body(*merged.body[:at], made, *merged.body[at + 1 :])


def _shared(node: Node, action: Action) -> Node | Illegal:
    """The kernel of programs that arrive as one of programs that share."""
    around, (loop, *rest) = grid_of(node)
    facts = kernel_facts(node)
    programs, tiles = action.size("programs"), ext_product(as_extent(x.src[1]) for x in around)
    shared = shared_tiles(tiles, programs, action.size("waves"))
    shares = Shares(action.size("blocks"), programs, shared)
    tile = tile_of(around, facts.get("group", 0))
    count = simplify(shares.parts(tile))
    stored = {n.src[0]: n for n in walk(*loop.src[2:]) if n.op == "store"}
    merges = [n for n in walk(*rest) if n.op == "fold" and _reads(n, stored)]
    if any(simplify(n.src[1]) is not count for n in merges):
        return Illegal("SHARES", f"the parts of {node.attr[0]} are cut in another way")
    numbers = {n.attr[0] for n in merges}
    loops = frozenset((loop.attr[0], *numbers, *(x.attr[0] for x in around)))
    kept = {h: _Kept(s, loop.attr[0], loops, shares, tile) for h, s in stored.items()}

    def moved(node: Node) -> Node:
        if node.op not in ("load", "store") or node.src[0] not in kept:
            return node
        return kept[node.src[0]].access(node)

    parts, rest = ([rewrite(s, moved) for s in body] for body in (loop.src[2:], rest))
    body = [forall(loop.attr[0], 0, count, SHARE, parts), *rest]
    for x in reversed(around):
        body = [forall(x.attr[0], *x.src[:2], "grid", body)]
    own = {"programs": programs, "shared": shares.shared, "pieces": shares.blocks}
    return kernel(node.attr[0], body, {}, facts | own)


def _reads(fold: Node, handles: Collection[Node]) -> bool:
    return any(n.op == "load" and n.src[0] in handles for n in walk(*fold.src[2:]))


@dataclass(frozen=True)
class _Kept:
    """Where the parts lie that a statement stores: box by box, instead of along the axes of what
    they are parts of. part: the loop over them; loops: it and those around it."""

    stored: Node
    part: str
    loops: frozenset[str]
    shares: Shares
    tile: Node

    def access(self, node: Node) -> Node:
        """The store, or a load of such a part, at its new place."""
        handle, own, dims = node.src[0], starts(node), node.attr[0]
        numbers = [n for n, s in enumerate(starts(self.stored)) if self._numbers(s)]
        at = [simplify(self.shares.slot(self.tile, own[numbers[0]]))]
        extents: list[Extent] = [self.shares.slots]
        kept: list[Dim | None] = [None]
        for start, dim, extent in zip(own, dims, handle.attr[1]):
            if not {a for a, _ in start.free} <= self.loops:  # it has a place inside of the box
                at, extents, kept = [*at, start], [*extents, extent], [*kept, dim]
            elif dim is not None:
                _, size, stride = dim
                length = ext_mul(size, max(stride, 1))
                at, extents, kept = [*at, const(0, "int32")], [*extents, length], [*kept, dim]
        name, _, dtype, home = handle.attr
        place = buffer(name, extents, dtype, home)
        masked = node.src[len(node.src) - _MASKS[node.op] :] if node.attr[1] else ()
        if node.op == "store":
            return store(place, node.src[1], at, kept, *masked)
        return load(place, at, kept, *masked)

    def _numbers(self, start: Node) -> bool:
        return start.op == "iota" and start.attr[0] == self.part


_MASKS = {"load": 2, "store": 1}  # operands that a mask takes
