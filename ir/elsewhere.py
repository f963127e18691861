"""An algebra program in, the results of its loops that are read at other places than made, out.

    y = get(fold t ..., stacked):    reduce t: y     reaxis y at t := T-1-t     fold t: ... y ...

What a loop stacks exists at a step of that loop alone; whoever reads it along the axis of the
steps needs all of it, so that it wants a buffer. The same holds for results of scans that are read
inside a loop over their axis or at computed places, and for results of folds read at computed
places, for each of which the loop would run again.
"""

from __future__ import annotations

from collections.abc import Iterator

from autosched.ir.node import Node, Program, walk

_MOVED, _SUMMED, _INSIDE = "moved", "summed", "inside"  # how an axis is not the reader's own
Where = frozenset[tuple[str, str]]


def read_elsewhere(program: Program) -> tuple[Node, ...]:
    """Results of folds and scans that need a buffer, sources before users."""
    found: set[Node] = set()
    seen: set[tuple[Node, Where]] = set()
    todo: list[tuple[Node, Where]] = [(value, frozenset()) for value in program.body]
    while todo:
        node, where = todo.pop()
        where = frozenset(x for x in where if x[0] == _INSIDE or x[1] in dict(node.free))
        if (node, where) in seen:
            continue
        seen.add((node, where))
        if _is_far(node, where):
            found.add(node)
            where = frozenset()
        todo += _operands(node, where)
    return tuple(n for n in walk(*program.body) if n in found)


def loop_results(program: Program) -> tuple[Node, ...]:
    """Every result of a fold or scan that no loop around it changes."""
    return tuple(
        n
        for n in walk(*program.body)
        if len(n.types) == 1 and loop_of(n) is not None and not n.carries
    )


def moved_states(loop: Node) -> set[str]:
    """The axes along which the steps of a fold read its states at other places."""
    _, names, n_intervals, _ = loop.attr
    found: set[str] = set()
    seen: set[tuple[Node, Where]] = set()
    todo: list[tuple[Node, Where]] = [
        (s, frozenset()) for s in loop.src[2 * n_intervals + len(names) :]
    ]
    while todo:
        node, where = todo.pop()
        if (node, where) in seen or not node.carries & set(names):
            continue
        seen.add((node, where))
        if node.op == "carry":
            found |= {a for how, a in where if how == _MOVED and a in node.names}
        todo += _operands(node, where)
    return found


def loop_of(node: Node) -> Node | None:
    """The fold or scan that a node is a result of."""
    source = node.src[0] if node.op == "get" else node
    return source if source.op in ("fold", "scan") else None


def _is_far(node: Node, where: Where) -> bool:
    loop = loop_of(node)
    if loop is None or len(node.types) != 1 or node.carries:
        return False
    moved = {a for how, a in where if how == _MOVED}
    if loop.op == "scan":
        axis = loop.attr[1]
        return bool(moved & set(node.names)) or (_INSIDE, axis) in where
    axis, names = loop.attr[:2]
    index = node.attr[0] if node.op == "get" else 0
    stacked = index >= len(names)
    far = stacked and any((how, axis) in where for how in (_MOVED, _SUMMED, _INSIDE))
    return far or bool(moved & set(node.names))


def _operands(node: Node, where: Where) -> Iterator[tuple[Node, Where]]:
    if node.op == "reaxis":
        value, *exprs = node.src
        here = {a for a, e in zip(node.attr[0], exprs) if e.op == "iota" and e.attr[0] == a}
        yield value, _without(where, node.attr[0]) | {(_MOVED, a) for a in node.attr[0]} - {
            (_MOVED, a) for a in here
        }
        for expr in exprs:
            yield expr, where
    elif node.op == "take":
        value, index = node.src
        yield value, _without(where, node.attr) | {(_MOVED, node.attr[0])}
        yield index, where
    elif node.op in ("reduce", "scan"):
        axes = node.attr[1] if node.op == "reduce" else (node.attr[1],)
        for s in node.src:
            yield s, _without(where, axes) | {(_SUMMED, a) for a in axes}
    elif node.op == "fold":
        axis, _, n_intervals, _ = node.attr
        n = 2 * n_intervals + len(node.attr[1])
        for s in node.src[:n]:
            yield s, where
        for s in node.src[n:]:
            yield s, _without(where, (axis,)) | {(_INSIDE, axis)}
    else:
        for s in node.src:
            yield s, where


def _without(where: Where, axes: tuple[str, ...]) -> Where:
    return frozenset(x for x in where if x[0] == _INSIDE or x[1] not in axes)
