"""What a node's attributes name: the axes it binds and in which operands, result axes, states.

One row an op. Content keys, verification and the interpreter read this table, so that "which
names are bound where" is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from autosched.ir.node import Node, walk


@dataclass(frozen=True)
class Scope:
    """The names in a node's attributes and the rest of them.

    content: the attributes without names, in a fixed order; may hold symbolic extents.
    binds: (axis, operand positions in which it is bound).
    mentions: (axis, tag): axes of the result that the attributes themselves name.
    states: fold states bound in the operands `body`, or read (a carry).
    """

    content: tuple[Any, ...] = ()
    binds: tuple[tuple[str, tuple[int, ...]], ...] = ()
    mentions: tuple[tuple[str, Any], ...] = ()
    states: tuple[str, ...] = ()
    body: tuple[int, ...] = ()


def scope_of(node: Node) -> Scope:
    return _SCOPES[node.op](node)


def bound_axes(node: Node) -> tuple[str, ...]:
    return tuple(axis for axis, _ in scope_of(node).binds)


def state_readers(fold: Node) -> Iterator[Node]:
    """Nodes of a fold's body that depend on its states, carries included; states of the same name
    that folds inside bind are others."""
    start = frozenset(fold.attr[1])
    todo = [(fold.src[n], start) for n in scope_of(fold).body]
    seen: set[tuple[Node, frozenset[str]]] = set()
    while todo:
        node, names = todo.pop()
        if not node.carries & names or (node, names) in seen:
            continue
        seen.add((node, names))
        yield node
        scope = scope_of(node)
        for n, source in enumerate(node.src):
            inner = names - set(scope.states) if n in scope.body else names
            todo.append((source, inner))


def _everywhere(node: Node) -> tuple[int, ...]:
    return tuple(range(len(node.src)))


def _input(node: Node) -> Scope:
    _, dims, dtype, kind = node.attr
    extents = tuple(extent for _, extent in dims)
    return Scope((dtype, kind, *extents), (), tuple((a, n) for n, (a, _) in enumerate(dims)))


def _iota(node: Node) -> Scope:
    axis, extent, dtype = node.attr
    return Scope((extent, dtype), (), ((axis, "coordinate"),))


def _carry(node: Node) -> Scope:
    name, dtype, axes = node.attr
    return Scope((dtype,), (), tuple(axes), (name,))


def _reaxis(node: Node) -> Scope:
    return Scope((len(node.attr[0]),), tuple((a, (0,)) for a in node.attr[0]))


def _reduce(node: Node) -> Scope:
    monoid, axes = node.attr
    return Scope((monoid, len(axes)), tuple((a, _everywhere(node)) for a in axes))


def _scan(node: Node) -> Scope:
    monoid, axis, exclusive, reverse = node.attr
    return Scope((monoid, exclusive, reverse), ((axis, _everywhere(node)),), ((axis, "scan"),))


def _fold(node: Node) -> Scope:
    axis, names, n_intervals, n_outs = node.attr
    body = tuple(range(2 * n_intervals + len(names), len(node.src)))
    stacked = ((axis, "stack"),) if n_outs else ()
    return Scope((len(names), n_intervals, n_outs), ((axis, body),), stacked, names, body)


def _box(node: Node, first: int) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    """(content, tile axes) of the dimensions of a load or store whose starts begin at `first`."""
    dims, masked = node.attr
    shape = tuple(None if d is None else (d[1], d[2]) for d in dims)
    return (shape, masked, first), tuple((d[0], n) for n, d in enumerate(dims) if d is not None)


def _load(node: Node) -> Scope:
    content, tiles = _box(node, 1)
    return Scope(content, (), tiles)


def _store(node: Node) -> Scope:
    content, tiles = _box(node, 2)
    operands = tuple(range(1, len(node.src)))
    places = tuple(n for _, n in tiles)
    return Scope((content, places), tuple((axis, operands) for axis, _ in tiles))


def _forall(node: Node) -> Scope:
    axis, bind = node.attr
    return Scope((bind,), ((axis, tuple(range(2, len(node.src)))),))


def _kernel(node: Node) -> Scope:
    """How inner axes are traversed; an axis is told by where in the body nodes bind it."""
    binds = dict(node.attr[1]) if len(node.attr) > 1 else {}
    places: dict[str, list[int]] = {axis: [] for axis in binds}
    for n, inner in enumerate(walk(*node.src)) if binds else ():
        for axis in bound_axes(inner):
            if axis in places:
                places[axis].append(n)
    facts = node.attr[2] if len(node.attr) > 2 else ()
    return Scope((*facts, *sorted((binds[a], tuple(at)) for a, at in places.items())))


def _place(node: Node) -> Scope:
    home, dims = node.attr
    return Scope((home, len(dims)), (), tuple((a, n) for n, a in enumerate(dims)))


def _slice(node: Node) -> Scope:
    axis, new, size = node.attr
    return Scope((size,), ((axis, (0,)),), ((new, "slice"),))


def _dot(node: Node) -> Scope:
    axes, *types = node.attr
    return Scope((*types, len(axes)), tuple((a, (0, 1)) for a in axes))


def _trisolve(node: Node) -> Scope:
    row, col = node.attr
    return Scope((), ((row, (0, 1)), (col, (0,))), ((row, "row"),))


_SCOPES: dict[str, Callable[[Node], Scope]] = {
    "input": _input,
    "const": lambda n: Scope((repr(n.attr[0]), n.attr[1])),
    "iota": _iota,
    "knob": lambda n: Scope(n.attr),
    "carry": _carry,
    "buffer": lambda n: Scope(n.attr[1:]),
    "map": lambda n: Scope(n.attr),
    "take": lambda n: Scope((), ((n.attr[0], (0,)),)),
    "reaxis": _reaxis,
    "reduce": _reduce,
    "scan": _scan,
    "fold": _fold,
    "get": lambda n: Scope(n.attr),
    "load": _load,
    "store": _store,
    "forall": _forall,
    "kernel": _kernel,
    "place": _place,
    "slice": _slice,
    "dot": _dot,
    "trisolve": _trisolve,
}
