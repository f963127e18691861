"""A model's values in, equal ones out in which equal work and epilogues are easy to see.

`lift` moves renamings from producers to consumers and constant factors out of sums:

    before:  sum(d, (q[b,s,d] read at s=i) * c * k[j,d])      x + (lin[m,n] read at n=c)
    after:   sum(d, (q[b,s,d] read at s=i) * k[j,d]) * c      (x read at c=n + lin) read at n=c
"""

from __future__ import annotations

from collections.abc import Sequence

from autosched.ir.index import renaming
from autosched.ir.node import Node
from autosched.ir.ops import get, rename
from autosched.ir.scalar import split_name
from autosched.ir.views import walk_values

_HOIST_TYPES = ("float64", "float32")  # a narrower type may overflow without its factor


def lift(roots: Sequence[Node]) -> tuple[Node, ...]:
    """The roots with renamings late and constant factors outside of sums."""
    memo: dict[Node, Node] = {}
    depth: dict[Node, int] = {}
    for node in walk_values(*roots):
        count = 1 if node.op == "reaxis" else len(node.src)
        src = (*(memo[s] for s in node.src[:count]), *node.src[count:])
        new = node if src == node.src else Node(node.op, src, node.attr)
        new = _hoisted(new) if new.op == "reduce" else new
        new = _late(new, depth) if new.op == "map" else new
        memo[node] = new
        depth.setdefault(new, 1 + max((depth.get(s, 0) for s in new.src[:count]), default=0))
    return tuple(memo[root] for root in roots)


# ---- renamings late ----------------------------------------------------------------------------


def _late(node: Node, depth: dict[Node, int]) -> Node:
    """A map of a renamed value as a renamed map, if the value has every axis of the map."""
    views = [
        s for s in node.src
        if s.op == "reaxis" and s.src[0].op not in ("input", "iota")
        and renaming(s) is not None and set(s.names) == set(node.names)
    ]  # fmt: skip
    if not views or node.carries:
        return node
    view = max(views, key=lambda v: depth.get(v, 0))  # the one computed last
    names = renaming(view) or {}
    back = {new: old for old, new in names.items()}
    src = tuple(view.src[0] if s is view else _renamed(s, back) for s in node.src)
    return _renamed(Node(node.op, src, node.attr), names)


def _renamed(value: Node, names: dict[str, str]) -> Node:
    """`value` with axes renamed at once; a renaming that undoes another one cancels it."""
    before = renaming(value)
    if before is None:
        return rename(value, names)
    inner = value.src[0]
    both = {a: names.get(before.get(a, a), before.get(a, a)) for a in inner.names}
    return rename(inner, both)


# ---- constant factors out of sums ---------------------------------------------------------------


def _hoisted(node: Node) -> Node:
    """sum(c * x) as c * sum(x)."""
    if node.attr[0] != "sum" or node.dtype not in _HOIST_TYPES:
        return node
    body, found = _without_factors(node.src[0])
    out = get(Node(node.op, (body,), node.attr))
    for fn, factor in found:
        out = Node("map", (out, factor), (fn,))
    return out


def _without_factors(node: Node) -> tuple[Node, list[tuple[str, Node]]]:
    """`node` without the constants it is multiplied with or divided by, and those."""
    if node.op == "reaxis":
        value, found = _without_factors(node.src[0])
        return (Node(node.op, (value, *node.src[1:]), node.attr) if found else node), found
    fn = split_name(node.attr[0])[0] if node.op == "map" else ""
    if fn not in ("mul", "div"):
        return node, []
    a, b = node.src
    if b.op == "const":
        value, found = _without_factors(a)
        return value, [*found, (fn, b)]
    if fn == "mul" and a.op == "const":
        value, found = _without_factors(b)
        return value, [*found, (fn, a)]
    if fn == "div":
        return node, []
    left, found_left = _without_factors(a)
    right, found_right = _without_factors(b)
    found = [*found_left, *found_right]
    return (Node("map", (left, right), node.attr) if found else node), found
