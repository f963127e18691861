"""A reduce as the fold that it is: start at the identity, combine element by element."""

from __future__ import annotations

from autosched.ir.extent import as_node
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Node
from autosched.ir.ops import carry, const, fold, get, map_, reduce_


def as_fold(node: Node) -> Node:
    """A serial reduce as the fold that it is: the identity, then combine by combine."""
    monoid, axes = node.attr
    spec = MONOIDS[monoid]
    if len(axes) > 1:
        # One loop an axis, the last axis innermost.
        inner = reduce_(monoid, axes[1:], *node.src)
        return as_fold(reduce_(monoid, axes[:1], *(get(inner, k) for k in range(spec.arity))))
    (axis,) = axes
    extents = {a: e for s in node.src for a, e in s.free}
    names = [f"{monoid}{k}" for k in range(spec.arity)]
    kept = dict(node.free)
    states = [carry(n, s.dtype, kept) for n, s in zip(names, node.src)]
    steps = spec.combine(map_, tuple(states), node.src)
    table = {
        n: (const(dtype_limit(i, s.dtype), s.dtype), step)
        for n, i, s, step in zip(names, spec.identity, node.src, steps)
    }
    return fold(axis, [(0, as_node(extents[axis]))], table)
