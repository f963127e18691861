"""Kernels with views resolved: `reaxis`, `take` and `slice` moved into addresses and coordinates.

What is left stands on computed values (reduces, dots, folds, states), where the emitter renames,
gathers or reshapes a tensor; renames are left where they stand, they cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from autosched.ir.extent import simplify
from autosched.ir.node import Extent, Node, walk
from autosched.ir.ops import cast, const, iota, load, reaxis
from autosched.ir.scalar import FLOATS, SCALARS, round_to_grid, split_name

Exprs = Mapping[str, Node]
INDEX = ("int32", "int64", "bool")


def resolve(root: Node) -> Node:
    """The statement with views moved down, `place` hints gone and constants folded."""
    memo: dict[Node, Node] = {}
    for node in walk(root):
        src = tuple(memo[s] for s in node.src)
        fresh = node if src == node.src else Node(node.op, src, node.attr)
        memo[node] = _RULES.get(fresh.op, lambda n: n)(fresh)
    return memo[root]


def _place(node: Node) -> Node:
    return node.src[0]


def _slice(node: Node) -> Node:
    axis, new, size = node.attr
    start = cast(node.src[1], "int32")
    return _moved(node.src[0], {axis: start + iota(new, size)})


def _take(node: Node) -> Node:
    return _moved(node.src[0], {node.attr[0]: cast(node.src[1], "int32")})


def _reaxis(node: Node) -> Node:
    return _moved(node.src[0], dict(zip(node.attr[0], node.src[1:])))


def _map(node: Node) -> Node:
    """A constant for a function of constants; index expressions and masks in one form."""
    if any(s.op != "const" for s in node.src):
        if not all(n.op in ("map", "iota", "const") and n.dtype in INDEX for n in walk(node)):
            return node
        short = simplify(node)
        return short if short.types == node.types else node
    fn, _ = split_name(node.attr[0])
    operands = [np.asarray(s.attr[0], np.float64 if s.dtype in FLOATS else s.dtype)
                for s in node.src]  # fmt: skip
    got = np.asarray(SCALARS[fn].numpy(*operands))
    if node.dtype in FLOATS:
        wide = node.dtype in ("float64", "float32")
        return const(float(got if wide else round_to_grid(got.astype(np.float64), node.dtype)),
                     node.dtype)  # fmt: skip
    return const(np.trunc(got).astype(node.dtype).item() if node.dtype != "bool" else bool(got),
                 node.dtype)  # fmt: skip


_RULES = {"place": _place, "slice": _slice, "take": _take, "reaxis": _reaxis, "map": _map}


def is_rename(value: Node, exprs: Exprs) -> bool:
    """Whether every axis is read whole, along an axis of another name that the value lacks."""
    news = [e.attr[0] for e in exprs.values() if e.op == "iota"]
    kept = set(value.names) - set(exprs)
    return (
        len(news) == len(exprs)
        and len(set(news)) == len(news)
        and not kept & set(news)
        and all(e.attr[1] == value.extent(a) for a, e in exprs.items())
    )


def _moved(value: Node, exprs: Exprs) -> Node:
    todo = {a: e for a, e in exprs.items() if a in value.names}
    if not todo:
        return value
    if value.op != "iota" and is_rename(value, todo):
        return reaxis(value, todo)
    return _pushed(value, todo)


def _pushed(value: Node, exprs: Exprs) -> Node:
    """`value` with coordinates replaced, down to its loads."""
    exprs = {a: e for a, e in exprs.items() if a in value.names}
    if not exprs:
        return value
    if value.op == "iota":
        return cast(exprs[value.attr[0]], value.dtype)
    if value.op == "map":
        return _map(Node("map", tuple(_pushed(s, exprs) for s in value.src), value.attr))
    if value.op == "load":
        return _load(value, exprs)
    if value.op == "reaxis":
        inner = {a: _pushed(e, exprs) for a, e in zip(value.attr[0], value.src[1:])}
        rest = {a: e for a, e in exprs.items() if a in value.src[0].names and a not in inner}
        return _moved(value.src[0], {**inner, **rest})
    return reaxis(value, exprs)


def _load(value: Node, exprs: Exprs) -> Node:
    dims, masked = value.attr
    starts, tiles = [], []
    for start, dim in zip(value.src[1:], dims):
        start = _pushed(start, exprs)
        if dim is not None and dim[0] in exprs:
            at = exprs[dim[0]]
            if at.op == "iota":
                dim = (at.attr[0], at.attr[1], dim[2])
            else:
                start, dim = cast(start, "int32") + at * dim[2], None
        starts.append(start)
        tiles.append(dim)
    mask, fill = (_pushed(s, exprs) for s in value.src[-2:]) if masked else (None, None)
    return load(value.src[0], starts, tiles, mask, fill)


# ---- axes of several lengths --------------------------------------------------------------------


def distinct_axes(root: Node) -> Node:
    """The statement with one name for each axis and length: a name may be bound twice, with two
    lengths, in places that never meet. Loops keep their names."""
    loops = {n.attr[0] for n in walk(root) if n.op in ("fold", "forall")}
    lengths: dict[str, set[Extent]] = {}
    for node in walk(root):
        for axis, extent in _axes_at(node):
            lengths.setdefault(axis, set()).add(extent)
    clash = {a for a, found in lengths.items() if len(found - {1}) > 1} - loops
    if not clash:
        return root

    def name(axis: str, extent: Extent) -> str:
        return f"{axis}.{extent}" if axis in clash and extent != 1 else axis

    memo: dict[Node, Node] = {}
    for node in walk(root):
        src = tuple(memo[s] for s in node.src)
        memo[node] = Node(node.op, src, _renamed(node, name))
    return memo[root]


def _axes_at(node: Node) -> list[tuple[str, Extent]]:
    if node.op == "input":  # its dimensions are read by position
        return []
    found = [x for t in node.types for x in t.axes]
    if node.op == "store":
        found += [(d[0], d[1]) for d in node.attr[0] if d is not None]
    return found


def _renamed(node: Node, name: Callable[[str, Extent], str]) -> tuple[Any, ...]:
    """The attributes of a node with its axes renamed."""
    attr = node.attr
    sizes = {a: e for s in node.src for t in s.types for a, e in t.axes}
    if node.op == "iota":
        return (name(attr[0], attr[1]), *attr[1:])
    if node.op == "carry":
        return (*attr[:2], tuple(sorted((name(a, e), e) for a, e in attr[2])))
    if node.op == "reaxis":
        value = dict(node.src[0].axes)
        return (tuple(name(a, value[a]) for a in attr[0]),)
    if node.op in ("load", "store"):
        dims = tuple(d and (name(d[0], d[1]), d[1], d[2]) for d in attr[0])
        return (dims, *attr[1:])
    if node.op == "reduce":
        return (attr[0], tuple(name(a, sizes[a]) for a in attr[1]))
    if node.op == "scan":
        return (attr[0], name(attr[1], sizes[attr[1]]), *attr[2:])
    if node.op == "dot":
        return (tuple(name(a, sizes[a]) for a in attr[0]), *attr[1:])
    if node.op == "trisolve":
        return tuple(name(a, sizes[a]) for a in attr)
    return attr
