"""The loop tree of a tile program: statements as nests that rules take apart and put together.

A *nest* is a store under the longest chain of foralls that hold nothing else; it is named by the
buffer that it stores to. Everything above nests is shared by several of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from autosched.ir.node import Extent, Node, replace_nodes, walk
from autosched.ir.ops import carry, forall

GRIDS = ("grid", "persistent")  # binds of loops whose iterations are programs of their own


@dataclass(frozen=True)
class Loop:
    """One forall: `axis` runs over [lo, hi) and is bound to `bind`."""

    axis: str
    lo: Node
    hi: Node
    bind: str


@dataclass(frozen=True)
class Nest:
    """Loops, outermost first, around one store."""

    loops: tuple[Loop, ...]
    store: Node

    @property
    def name(self) -> str:
        return str(self.store.src[0].attr[0])

    @property
    def handle(self) -> Node:
        return self.store.src[0]

    @property
    def value(self) -> Node:
        return self.store.src[1]

    @property
    def starts(self) -> tuple[Node, ...]:
        return self.store.src[2 : 2 + len(self.store.attr[0])]

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(loop.axis for loop in self.loops)

    def loop(self, axis: str) -> Loop | None:
        return next((loop for loop in self.loops if loop.axis == axis), None)

    def with_value(self, value: Node) -> Nest:
        src = (self.handle, value, *self.store.src[2:])
        return replace(self, store=Node("store", src, self.store.attr))

    def substitute(self, table: Mapping[Node, Node]) -> Nest:
        """Nodes exchanged in the store and in the bounds of the loops."""
        loops = tuple(
            replace(x, lo=replace_nodes(x.lo, dict(table)), hi=replace_nodes(x.hi, dict(table)))
            for x in self.loops
        )
        return Nest(loops, replace_nodes(self.store, dict(table)))

    def build(self) -> Node:
        return build(self.loops, (self.store,))


def build(loops: Sequence[Loop], body: Iterable[Node]) -> Node:
    """The statement of `loops` around `body`; without loops the body must be one statement."""
    inner = list(body)
    for x in reversed(loops):
        inner = [forall(x.axis, x.lo, x.hi, x.bind, inner)]
    (only,) = inner
    return only


def as_loop(stmt: Node) -> tuple[Loop, tuple[Node, ...]]:
    """A forall as its loop and the statements under it."""
    axis, bind = stmt.attr
    return Loop(axis, stmt.src[0], stmt.src[1], bind), stmt.src[2:]


def grid_of(kernel: Node) -> tuple[list[Node], tuple[Node, ...]]:
    """The chain of grid loops of a kernel, outermost first, and what stands inside."""
    loops: list[Node] = []
    body = kernel.src
    while len(body) == 1 and body[0].op == "forall" and body[0].attr[1] in GRIDS:
        loops.append(body[0])
        body = body[0].src[2:]
    return loops, body


def as_nest(stmt: Node) -> Nest | None:
    """The statement as a nest, or None where it holds several stores, or where a loop stores
    to the same place again and again: a recurrence, whose loop keeps its place and order."""
    loops: list[Loop] = []
    while stmt.op == "forall":
        loop, body = as_loop(stmt)
        if len(body) != 1:
            return None
        loops.append(loop)
        (stmt,) = body
    if stmt.op != "store":
        return None
    nest = Nest(tuple(loops), stmt)
    stored = {a for s in nest.starts for a in s.names}
    repeats = updates_itself(nest) and any(
        x.axis not in stored and trip_count(x) != 1 for x in loops
    )
    return None if repeats else nest


def nests(stmt: Node) -> Iterator[tuple[tuple[Loop, ...], Nest]]:
    """Every nest below a statement with the loops that enclose it, in program order.

    A kernel's only chain of loops belongs to its nest, except for loops bound to the grid."""
    if stmt.op == "kernel":
        for s in stmt.src:
            yield from nests(s)
        return
    nest = as_nest(stmt)
    if nest is not None:
        yield (), nest
        return
    loop, body = as_loop(stmt)
    for s in body:
        for outer, inner in nests(s):
            yield (loop, *outer), inner


def edit_nests(stmt: Node, fn: Callable[[Nest], Sequence[Node]]) -> Node:
    """`stmt` with every nest replaced by the statements that `fn` returns for it."""
    (only,) = _edit(stmt, fn)
    return only


def _edit(stmt: Node, fn: Callable[[Nest], Sequence[Node]]) -> list[Node]:
    if stmt.op == "kernel":
        body = [new for s in stmt.src for new in _edit(s, fn)]
        return [Node("kernel", tuple(body), stmt.attr)]
    nest = as_nest(stmt)
    if nest is not None:
        return list(fn(nest))
    loop, statements = as_loop(stmt)
    return [build((loop,), [new for s in statements for new in _edit(s, fn)])]


def buffers_read(node: Node) -> set[Node]:
    """The handles of all loads below a value or statement."""
    return {n.src[0] for n in walk(node) if n.op == "load"}


def load_starts(load: Node) -> tuple[Node, ...]:
    return load.src[1 : 1 + len(load.attr[0])]


def iota_axis(node: Node) -> str | None:
    """The axis, where `node` is exactly its coordinate."""
    return str(node.attr[0]) if node.op == "iota" else None


def at_coordinate(root: Node, axis: str, at: Node) -> Node:
    """`root` with the coordinate of its free axis replaced by `at`, in the axes of fold states
    too. Another axis of that name, which something below binds, stays as it is."""
    memo: dict[Node, Node] = {}
    for node in walk(root):
        if axis not in dict(node.free):
            memo[node] = node
        elif node.op == "iota":
            memo[node] = at
        elif node.op == "carry":
            name, dtype, axes = node.attr
            kept = {a: e for a, e in axes if a != axis}
            memo[node] = carry(name, dtype, {**kept, **dict(at.free)})
        else:
            memo[node] = Node(node.op, tuple(memo[s] for s in node.src), node.attr)
    return memo[root]


def trip_count(loop: Loop) -> Extent | None:
    """hi - lo where both are literals; None where they are expressions."""
    if loop.lo.op == "const" and loop.hi.op == "const":
        return int(loop.hi.attr[0]) - int(loop.lo.attr[0])
    return None


def updates_itself(nest: Nest) -> bool:
    """Whether the nest reads what it stores to, so that no element may be done twice."""
    return nest.handle in buffers_read(nest.value)
