"""A program with scans in, the same with every scan written as a fold that stacks its state."""

from __future__ import annotations

from autosched.ir.extent import as_node
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Node, Program, rewrite, walk
from autosched.ir.ops import carry, const, fold, get, iota, map_, reaxis


def without_scans(program: Program) -> Program:
    """The algebra program with folds for scans; itself where it has none."""
    if not any(n.op == "scan" for n in walk(*program.body)):
        return program
    memo: dict[Node, Node] = {}
    folds: dict[Node, tuple[Node, ...]] = {}

    def fix(node: Node) -> Node:
        if node.op == "get" and node.src[0].op == "scan":
            return _results(node.src[0], folds)[node.attr[0]]
        if node.op == "scan" and len(node.types) == 1:
            return _results(node, folds)[0]
        return node

    return program.with_body(*(rewrite(value, fix, memo) for value in program.body))


def _results(node: Node, folds: dict[Node, tuple[Node, ...]]) -> tuple[Node, ...]:
    if node not in folds:
        folds[node] = as_fold(node)
    return folds[node]


def as_fold(node: Node) -> tuple[Node, ...]:
    """The components of a scan; a reverse scan runs over the axis read backwards."""
    monoid, axis, exclusive, reverse = node.attr
    spec = MONOIDS[monoid]
    extent = node.types[0].extent(axis)
    back = {axis: as_node(extent) - 1 - iota(axis, extent)}
    parts = [reaxis(s, back) if reverse and axis in s.names else s for s in node.src]
    axes = {a: e for a, e in node.types[0].axes if a != axis}
    names = [f"{monoid}{k}" for k in range(spec.arity)]
    old = tuple(carry(n, s.dtype, axes) for n, s in zip(names, parts))
    new = spec.combine(map_, old, tuple(parts))
    states = {
        n: (const(dtype_limit(i, s.dtype), s.dtype), step)
        for n, i, s, step in zip(names, spec.identity, parts, new)
    }
    # An exclusive scan shows the state as it was before the step.
    loop = fold(axis, [(0, as_node(extent))], states, old if exclusive else new)
    found = [get(loop, spec.arity + k) for k in range(spec.arity)]
    return tuple(reaxis(x, back) if reverse else x for x in found)
