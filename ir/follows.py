"""A value and what some of its parts are known to be in, what the value then is out.

Where a mask leaves something out, its fill is known, and so is what follows from it: exp(-inf - m)
is 0, and a product with 0 is 0, for other factors are taken as finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Node, walk
from autosched.ir.ops import const
from autosched.ir.scalar import FLOATS


def conjuncts(test: Node) -> Iterator[Node]:
    """The parts of a conjunction that depend on positions alone, not on loaded values."""
    if test.op == "map" and test.attr[0] == "and":
        for s in test.src:
            yield from conjuncts(s)
    elif test.op == "map" and not any(n.op == "load" for n in walk(test)):
        yield test


def what_follows(root: Node, table: Mapping[Node, Node]) -> Node:
    """`root` with nodes exchanged for constants and what follows: other factors are finite."""
    memo: dict[Node, Node] = dict(table)
    for node in walk(root):
        if node not in memo:
            src = tuple(memo[s] for s in node.src)
            memo[node] = node
            if src != node.src:
                memo[node] = _followed(node, src)
    return memo[root]


def _followed(node: Node, src: tuple[Node, ...]) -> Node:
    if node.op == "map" and node.attr[0] in _FOLLOWS:
        found = _FOLLOWS[node.attr[0]](*src)
        if found is not None:
            return found
    if node.op == "reduce" and len(src) == 1 and src[0].op == "const":
        return src[0] if is_identity(node.attr[0], src[0]) else node
    if node.op == "dot" and any(_is(s, 0.0) for s in src):
        return const(0.0, node.dtype)
    if node.op == "map" and node.attr[0].startswith("cast:") and _is(src[0], 0.0):
        return const(0.0, node.dtype) if node.dtype in FLOATS else node
    return node if any(s.op == "const" for s in src) and node.op != "map" else _try(node, src)


def _try(node: Node, src: tuple[Node, ...]) -> Node:
    return Node(node.op, src, node.attr) if node.op == "map" else node


def _is(x: Node, value: float) -> bool:
    return x.op == "const" and x.attr[0] == value and not isinstance(x.attr[0], bool)


def is_identity(monoid: str, x: Node) -> bool:
    (wanted,) = MONOIDS[monoid].identity
    return x.op == "const" and x.attr[0] == dtype_limit(wanted, x.dtype)


def _sum(a: Node, b: Node) -> Node | None:
    for x, other in ((a, b), (b, a)):
        if _is(x, -math.inf):
            return x
        if _is(x, 0.0):
            return other
    return None


def _difference(a: Node, b: Node) -> Node | None:
    if a is b:
        return const(0.0, a.dtype)
    return a if _is(a, -math.inf) or _is(b, 0.0) else None


def _product(a: Node, b: Node) -> Node | None:
    for x, other in ((a, b), (b, a)):
        if _is(x, 0.0):
            return x
        if _is(x, 1.0):
            return other
        if _is(x, -math.inf) and other.op == "const" and other.attr[0] > 0:
            return x
    return None


def _quotient(a: Node, b: Node) -> Node | None:
    return a if _is(a, 0.0) or (_is(a, -math.inf) and b.op == "const" and b.attr[0] > 0) else None


def _power(a: Node) -> Node | None:
    if _is(a, 0.0):
        return const(1.0, a.dtype)
    return const(0.0, a.dtype) if _is(a, -math.inf) else None


def _greater(a: Node, b: Node) -> Node | None:
    return b if _is(a, -math.inf) else a if _is(b, -math.inf) else None


def _choice(test: Node, a: Node, b: Node) -> Node | None:
    if test.op == "const":
        return a if test.attr[0] else b
    return a if a is b else None


def _both(a: Node, b: Node) -> Node | None:
    return next((x for x in (a, b) if x.op == "const" and not x.attr[0]), None)


def _nan(a: Node) -> Node | None:
    return const(math.isnan(a.attr[0]), "bool") if a.op == "const" else None


_FOLLOWS: Mapping[str, Callable[..., Node | None]] = {
    "add": _sum, "sub": _difference, "mul": _product, "div": _quotient, "exp": _power,
    "exp2": _power, "max": _greater, "where": _choice, "and": _both, "isnan": _nan,
}  # fmt: skip


# ---- magnitudes ----------------------------------------------------------------------------------

HUGE = 1e30  # what exporters write for infinity lies beyond, scores and what makes them within
_BOUNDED = ("tanh", "erf", "sin", "cos", "sign", "isnan")  # whatever their operand is


def is_moderate(node: Node) -> bool:
    """Whether no huge finite fill can be among the values: their product with a number near one
    then does not overflow, and rounding it is no error that counts. What is loaded may be such a
    fill; a sum of products is not."""
    fn = node.attr[0] if node.op == "map" else node.op
    if fn == "const":
        size = abs(node.attr[0])
        return size < HUGE or size == math.inf
    if fn in ("iota", "knob") or fn in _BOUNDED:
        return True
    if fn == "reduce" and node.attr[0] == "sum":
        return node.src[0].op == "map" and node.src[0].attr[0] == "mul"
    if fn == "where":
        return all(map(is_moderate, node.src[1:]))
    if fn in ("reaxis", "take", "get"):
        return is_moderate(node.src[0])
    return node.op in ("map", "reduce") and all(map(is_moderate, node.src))
