"""One immutable, interned node for both levels of the IR, and the Program that holds them.

A node denotes a value (or, for statements, an effect) as a function of its *free axes*. Axes
have names, never positions: `map` joins the axes of its sources, a binder (`reduce`, `fold`,
`forall`, ...) removes the axis it binds, and `iota(axis)` is the coordinate along an axis,
bound or free. Inside a binder an axis therefore reads as "the current coordinate"; outside any
binder the value is an array over it. That one convention makes the algebra level and the tile
level the same language.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

Extent: TypeAlias = "int | Node"
Axes: TypeAlias = "tuple[tuple[str, Extent], ...]"


class IRError(ValueError):
    """A node was built against the rules of the IR: a bug of the builder, never of a user."""


@dataclass(frozen=True)
class Type:
    """Element type and free axes (sorted by name) of one result of a node."""

    dtype: str
    axes: Axes = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.axes)

    def extent(self, axis: str) -> Extent:
        return dict(self.axes)[axis]


class Node:
    """`Node(op, src, attr)`: equal nodes are the same object.

    op: a key of `ops.OPS`; src: operand nodes; attr: hashable plain data that the op defines.
    `types` has one `Type` per result (none for a statement); `free` are the free axes of the
    node with their extents; `carries` are the names of fold states that it reads unbound.
    """

    __slots__ = ("__weakref__", "attr", "carries", "free", "op", "src", "types")
    op: str
    src: tuple[Node, ...]
    attr: tuple[Any, ...]
    types: tuple[Type, ...]
    free: Axes
    carries: frozenset[str]
    _table: ClassVar[weakref.WeakValueDictionary[Any, Node]] = weakref.WeakValueDictionary()
    _entering: ClassVar[threading.Lock] = threading.Lock()

    def __new__(cls, op: str, src: tuple[Node, ...] = (), attr: tuple[Any, ...] = ()) -> Node:
        key = (op, tuple(map(id, src)), _freeze_key(attr))
        found = cls._table.get(key)
        if found is not None:
            return found
        from autosched.ir.ops import OPS

        if op not in OPS:
            raise IRError(f"unknown op {op!r}")
        self = object.__new__(cls)
        object.__setattr__(self, "op", op)
        object.__setattr__(self, "src", src)
        object.__setattr__(self, "attr", attr)
        types, free, carries = OPS[op].infer(src, attr)
        object.__setattr__(self, "types", types)
        object.__setattr__(self, "free", free)
        object.__setattr__(self, "carries", carries)
        with cls._entering:  # two threads may have built the same node: the first one stays
            return cls._table.setdefault(key, self)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("nodes are immutable")

    @property
    def type(self) -> Type:
        if len(self.types) != 1:
            raise IRError(f"{self.op} has {len(self.types)} results; project one with get()")
        return self.types[0]

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def axes(self) -> Axes:
        return self.type.axes

    @property
    def names(self) -> tuple[str, ...]:
        return self.type.names

    def extent(self, axis: str) -> Extent:
        return self.type.extent(axis)

    def __repr__(self) -> str:
        return f"<{self.op} {' '.join(map(str, self.attr))} {self.types}>"

    # Arithmetic on nodes builds `map` nodes; `==` stays identity, use ops.eq for the comparison.
    def __add__(self, o: Operand) -> Node:
        return _map("add", self, o)

    def __radd__(self, o: Operand) -> Node:
        return _map("add", o, self)

    def __sub__(self, o: Operand) -> Node:
        return _map("sub", self, o)

    def __rsub__(self, o: Operand) -> Node:
        return _map("sub", o, self)

    def __mul__(self, o: Operand) -> Node:
        return _map("mul", self, o)

    def __rmul__(self, o: Operand) -> Node:
        return _map("mul", o, self)

    def __truediv__(self, o: Operand) -> Node:
        return _map("div", self, o)

    def __rtruediv__(self, o: Operand) -> Node:
        return _map("div", o, self)

    def __floordiv__(self, o: Operand) -> Node:
        return _map("floordiv", self, o)

    def __rfloordiv__(self, o: Operand) -> Node:
        return _map("floordiv", o, self)

    def __mod__(self, o: Operand) -> Node:
        return _map("mod", self, o)

    def __neg__(self) -> Node:
        return _map("neg", self)

    def __lt__(self, o: Operand) -> Node:
        return _map("lt", self, o)

    def __le__(self, o: Operand) -> Node:
        return _map("le", self, o)

    def __gt__(self, o: Operand) -> Node:
        return _map("gt", self, o)

    def __ge__(self, o: Operand) -> Node:
        return _map("ge", self, o)

    def __and__(self, o: Operand) -> Node:
        return _map("and", self, o)

    def __or__(self, o: Operand) -> Node:
        return _map("or", self, o)

    def __invert__(self) -> Node:
        return _map("not", self)


Operand: TypeAlias = "Node | int | float | bool"


def _map(fn: str, *operands: Operand) -> Node:
    from autosched.ir.ops import map_

    return map_(fn, *operands)


def _freeze_key(attr: Any) -> Any:
    """`attr` as a dictionary key in which 1, 1.0 and True, and 0.0 and -0.0, stay apart."""
    if isinstance(attr, tuple):
        return tuple(map(_freeze_key, attr))
    if isinstance(attr, Node):
        return ("node", id(attr))
    if isinstance(attr, float):
        return ("float", attr.hex())
    return (type(attr).__name__, attr)


def walk(*roots: Node) -> Iterator[Node]:
    """Every node below `roots` once, sources before users, in a fixed order."""
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if done:
            yield node
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.append((node, True))
        stack.extend((s, False) for s in reversed(node.src) if id(s) not in seen)


def rewrite(root: Node, fn: Any, memo: dict[Node, Node] | None = None) -> Node:
    """Rebuild `root` bottom-up; `fn(node)` sees each rebuilt node and returns its replacement."""
    memo = {} if memo is None else memo
    for node in walk(root):
        if node not in memo:
            src = tuple(memo[s] for s in node.src)
            memo[node] = fn(node if src == node.src else Node(node.op, src, node.attr))
    return memo[root]


def replace_nodes(root: Node, table: dict[Node, Node]) -> Node:
    """`root` with every node that is a key of `table` exchanged for its value."""
    memo = dict(table)
    order = [n for n in walk(root) if n not in memo]
    for node in order:
        src = tuple(memo[s] for s in node.src)
        memo[node] = node if src == node.src else Node(node.op, src, node.attr)
    return memo[root]


@dataclass(frozen=True)
class Output:
    """A result of a program: a public name and the order of its axes in memory (row-major)."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class Pack:
    """A constant operand laid out anew once: `buffer[dims] = value`, computed before any call."""

    buffer: Node
    dims: tuple[str, ...]
    value: Node


@dataclass(frozen=True)
class Program:
    """Inputs, outputs and a body.

    algebra level: `body[n]` is the value of `outputs[n]`; tile level: `body` is a sequence of
    `kernel` statements that store every output, and `packs` lists operands packed once.
    """

    level: str
    inputs: tuple[Node, ...]
    outputs: tuple[Output, ...]
    body: tuple[Node, ...]
    packs: tuple[Pack, ...] = field(default=())

    @property
    def key(self) -> str:
        """Content key: the same for programs that differ in names alone."""
        from autosched.ir.key import content_key

        return content_key(self)

    def with_body(self, *body: Node) -> Program:
        return replace(self, body=tuple(body))
