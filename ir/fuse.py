"""Values in, the same values out with loops that run side by side made one.

    a = fold k from 0: a + f(x[k]);  b = fold k from 0: b + g(x[k])
    ->  (a, b) = fold k from (0, 0): (a + f(x[k]), b + g(x[k]))

Two folds join where they run over the same interval of the same axis, neither needs the other's
result, and both stand in the same place: the joint loop reads what they share once.
"""

from __future__ import annotations

from collections.abc import Sequence

from autosched.ir.node import Node, replace_nodes, walk
from autosched.ir.ops import carry, get


def merged_folds(values: Sequence[Node]) -> list[Node]:
    """The values with every group of folds that can run side by side as one fold."""
    out = list(values)
    while True:
        group = _group(out)
        if not group:
            return out
        table = _joined(group)
        out = [replace_nodes(v, table) for v in out]


def without_unread(values: Sequence[Node]) -> list[Node]:
    """The values with folds that stack only what is read."""
    read: dict[Node, set[int]] = {}
    for node in walk(*values):
        if node.op == "get" and node.src[0].op == "fold":
            read.setdefault(node.src[0], set()).add(node.attr[0])
    table: dict[Node, Node] = {}
    for loop, used in read.items():
        axis, names, n_intervals, n_outs = loop.attr
        kept = [k for k in range(n_outs) if len(names) + k in used]
        if len(kept) == n_outs:
            continue
        outs = loop.src[len(loop.src) - n_outs :]
        src = (*loop.src[: len(loop.src) - n_outs], *(outs[k] for k in kept))
        made = Node("fold", src, (axis, names, n_intervals, len(kept)))
        places = [*range(len(names)), *(len(names) + k for k in kept)]
        table |= {get(loop, k): get(made, n) for n, k in enumerate(places) if k in used}
    return [replace_nodes(v, table) for v in values] if table else list(values)


def _group(values: Sequence[Node]) -> list[Node]:
    """Folds with one header that are independent of each other, or none."""
    folds = [n for n in walk(*values) if n.op == "fold"]
    steps = {f.attr[0] for f in folds}
    around = {f: {a for a, _ in f.free} & steps for f in folds}  # loops that it is made anew in
    below = {f: set(walk(*f.src)) for f in folds}
    inside = {f: {g for g in folds if g is not f and g in below[f]} for f in folds}
    for k, first in enumerate(folds):
        same = [first]
        for other in folds[k + 1 :]:
            if _header(other) != _header(first) or other.carries != first.carries:
                continue
            if around[other] != around[first]:
                continue
            if any(other in inside[f] or f in inside[other] for f in same):
                continue
            same.append(other)
        if len(same) > 1:
            return same
    return []


def _header(fold: Node) -> tuple[object, ...]:
    axis, _, n_intervals, _ = fold.attr
    return (axis, n_intervals, fold.src[: 2 * n_intervals])


def _joined(group: Sequence[Node]) -> dict[Node, Node]:
    """{result of a fold: the same result of the one loop}."""
    axis, _, n_intervals, _ = group[0].attr
    bounds = group[0].src[: 2 * n_intervals]
    names: list[str] = []
    parts: tuple[list[Node], list[Node], list[Node]] = ([], [], [])
    where: dict[Node, list[tuple[str, int]]] = {}
    for fold in group:
        mine, n = fold.attr[1], len(fold.attr[1])
        rest = fold.src[2 * n_intervals :]
        renamed = {m: _new_name(m, names) for m in mine}
        table = {
            c: carry(renamed[c.attr[0]], c.dtype, dict(c.axes))
            for c in walk(*rest[n:])
            if c.op == "carry" and c.attr[0] in renamed and renamed[c.attr[0]] != c.attr[0]
        }
        body = [replace_nodes(s, table) if table else s for s in rest[n:]]
        where[fold] = [("state", len(names) + k) for k in range(n)]
        where[fold] += [("out", len(parts[2]) + k) for k in range(len(body) - n)]
        names += renamed.values()
        parts[0].extend(rest[:n])
        parts[1].extend(body[:n])
        parts[2].extend(body[n:])
    attr = (axis, tuple(names), n_intervals, len(parts[2]))
    joint = Node("fold", (*bounds, *parts[0], *parts[1], *parts[2]), attr)
    out: dict[Node, Node] = {}
    for fold, places in where.items():
        for k, (kind, at) in enumerate(places):
            index = at if kind == "state" else len(names) + at
            out[get(fold, k)] = get(joint, index)
    return out


def _new_name(name: str, taken: Sequence[str]) -> str:
    n, found = 1, name
    while found in taken:
        n += 1
        found = f"{name}{n}"
    return found
