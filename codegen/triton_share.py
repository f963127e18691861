"""Programs that are dealt tiles and parts of tiles, which each does one after the other.

    for step in range(first, end + whole):         # tiles that it shares, then its own
        tile = step if step < end else ...
        m, n, part, parts = ...
        acc = ...                                  # the part's steps
        if parts == 1:                             # all of the tile: nothing is stored
            store what follows from acc
        else:
            store acc, count; the last one to arrive stores what follows from all parts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autosched.codegen.triton_arrive import Arrivals
from autosched.codegen.triton_order import Order
from autosched.codegen.triton_text import Unsupported, Val, literal
from autosched.ir.extent import as_node, ext_product, ext_sub, simplify
from autosched.ir.node import Extent, Node, replace_nodes, rewrite, walk
from autosched.ir.ops import const, get, iota, where
from autosched.ir.shares import Shares

Trips = Sequence[tuple[str, Extent]]


class Sharing(Arrivals):
    """Kernels whose parts are bound to "share"; `merges` are the folds over parts."""

    def __init__(self) -> None:
        super().__init__()
        self.merges: frozenset[Node] = frozenset()
        self.order = Order()

    def options(self, node: Node) -> str:
        """A merge is short, and its boxes are as large as sums: none is fetched ahead."""
        return "" if node in self.merges else super().options(node)

    def alone(self, loop: Node, rest: Sequence[Node]) -> frozenset[Node]:
        """Descriptors are made once for all tiles: only parts have none."""
        if loop.attr[1] != "share":
            return super().alone(loop, rest)
        parts = {n.src[0] for n in loop.src[2:]}
        accesses = (n for n in walk(loop, *rest) if n.op in ("load", "store"))
        return frozenset(n for n in accesses if n.src[0] not in parts)

    def bind_grid(self, trips: Trips, tile: str) -> None:
        """Binds the loops of the grid to their coordinates at a tile."""
        raise NotImplementedError

    def deal(
        self, trips: Trips, body: Sequence[Node], facts: Mapping[str, int], pid: Val
    ) -> None:
        """All tiles of one program."""
        if self.rides:
            raise Unsupported("results of each step in a kernel that merges parts")
        loop, *rest = body
        # Tiles are numbered as `shares.tile_number` says.
        grouped = len(trips) > 1 and all(n != 1 for _, n in trips[-2:])
        self.order = Order(facts["group"] if grouped else 0)
        self.merges = frozenset(_merges(loop, rest))
        programs, shared = facts["programs"], facts["shared"]
        shares = Shares(facts["pieces"], programs, shared)
        part = loop.attr[0]
        by, step, at = (f"{part}.{name}" for name in ("by", "step", "at"))
        own = iota(by, programs)
        self.scopes.stack[0].axes[by] = pid
        lo, hi = (self.value(n) for n in shares.tiles(own))
        end = self.named(hi, "end") if not hi.literal else hi
        left = as_node(ext_sub(ext_product(n for _, n in trips), shared))
        alone = self.value(simplify((left - own + programs - 1) // programs))
        span = end.text if alone.text == "0" else f"{end.text} + {alone.text}"
        tile = self.scopes.fresh("tile")
        self.scopes.enter({a: literal(0, "int32") for a, _ in trips}, loop=True)
        scope = self.scopes.stack[-1]
        index = tile
        if alone.text != "0":
            index = self.scopes.fresh("step")
            scope.axes[step] = Val(index, (), "int32")
            beyond = f"{shared} + {pid.text} + ({index} - {end.text}) * {programs}"
            self.scopes.line(f"{tile} = {index} if {index} < {end.text} else {beyond}")
        scope.axes[at] = Val(tile, (), "int32")
        self.bind_grid(trips, tile)
        here = iota(at, ext_product(n for _, n in trips))
        number_of = where(shares.is_shared(here), own - shares.first(here), 0)
        scope.axes[part] = self.named(self.value(simplify(number_of)), "part")
        self.tile_done(loop, rest, tile)
        self.scopes.leave(f"for {index} in range({lo.text}, {span}):")

    def tile_done(self, loop: Node, rest: Sequence[Node], tile: str) -> None:
        """A part of a tile, and what follows from it."""
        parts = loop.src[2:]
        for value in (n.src[1] for n in parts):
            self.uses[value] = 2  # it is stored, or goes on as it is
            self.value(value)
        whole = of_one(loop, rest)
        boxes = {n.src[0] for n in self.boxed if n.op == "store"}
        self.boxed |= {n for n in walk(*whole) if n.op == "store" and n.src[0] in boxes}
        count = self.named(self.value(loop.src[1]), "parts")
        self.scopes.enter(alone=True)
        self.statements(whole)
        self.scopes.leave(f"if {count.text} == 1:")
        self.scopes.enter(alone=True)
        self.statements(parts)
        self.last(f"{self.counter} + {tile}", f"{count.text} - 1", rest)
        self.scopes.leave("else:")


def of_one(loop: Node, rest: Sequence[Node]) -> list[Node]:
    """The statements behind a loop over parts where there is one, which is still at hand."""
    values = {n.src[0]: n.src[1] for n in loop.src[2:]}
    table: dict[Node, Node] = {}
    for fold in _merges(loop, rest):
        axis, names, _, _ = fold.attr
        loads = {n: values[n.src[0]] for n in walk(*fold.src[2:])
                 if n.op == "load" and n.src[0] in values}  # fmt: skip
        inits, yields = fold.src[2:][: len(names)], fold.src[2 + len(names) :]
        starts = dict(zip(names, inits))
        known = {n: starts[n.attr[0]] for n in walk(*yields)
                 if n.op == "carry" and n.attr[0] in starts}  # fmt: skip
        first = {n: const(0, n.dtype) for n in walk(*yields)
                 if n.op == "iota" and n.attr[0] == axis}  # fmt: skip
        for k, value in enumerate(yields):
            table[get(fold, k)] = rewrite(replace_nodes(value, {**loads, **known, **first}), _sum)
    return [replace_nodes(stmt, table) for stmt in rest]


def _merges(loop: Node, rest: Sequence[Node]) -> list[Node]:
    """The folds that read what the parts have stored."""
    stored = {n.src[0] for n in loop.src[2:]}
    folds = (n for n in walk(*rest) if n.op == "fold")
    return [f for f in folds
            if any(n.op == "load" and n.src[0] in stored for n in walk(*f.src[2:]))]  # fmt: skip


def _sum(node: Node) -> Node:
    """A sum with 0 is the other operand."""
    if node.op == "map" and node.attr[0] == "add":
        for zero, other in (node.src, node.src[::-1]):
            if zero.op == "const" and zero.attr[0] == 0 and other.type == node.type:
                return other
    return node
