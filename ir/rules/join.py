"""join: reduces of one nest that read a common operand run in one loop.

    before:  silu(reduce sum k { x[m,k] * w[k,n] }) * reduce sum j { x[m,j] * u[j,n] }
    after:   (g, h) = fold k from (0, 0):  yield (g + x[m,k]*w[k,n],  h + x[m,k]*u[k,n])
             silu(g) * h
    args:    nest.
    Illegal: NO_NEST, NOTHING_SHARED (fewer than two reduces over equal extents share a load).

Each element of the common operand is then loaded once for all the reduces.
"""

from __future__ import annotations

from autosched.ir.extent import as_node
from autosched.ir.loops import Nest, at_coordinate, edit_nests
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Extent, Node, Program, replace_nodes, walk
from autosched.ir.ops import carry, const, fold, get, iota, map_
from autosched.ir.rules.action import Action, Illegal


def apply(program: Program, action: Action) -> Program | Illegal:
    name = action["nest"]
    hits: list[bool] = []  # of each nest of the name, whether it has such reduces

    def edit(nest: Nest) -> list[Node]:
        if nest.name == name:
            group = joinable(nest.value)
            hits.append(len(group) > 1)
            if hits[-1]:
                nest = nest.with_value(replace_nodes(nest.value, _joined(group)))
        return [nest.build()]

    body = tuple(edit_nests(k, edit) for k in program.body)
    if not hits:
        return Illegal("NO_NEST", f"no nest is named {name}")
    if not any(hits):  # the nest that starts a state has none, but the one that makes the next may
        return Illegal("NOTHING_SHARED", f"{name} has no two reduces that share an operand")
    return program.with_body(*body)


def joinable(value: Node) -> tuple[Node, ...]:
    """The outermost reduces that share a load with the first of them, over an equal extent."""
    found = [n for n in _outermost(value) if len(n.src) == 1 and len(n.attr[1]) == 1]
    for first in found:
        reads = _reads(first)
        same = [n for n in found if _extent(n) == _extent(first) and reads & _reads(n)]
        if len(same) > 1:
            return tuple(same)
    return ()


def _outermost(value: Node) -> list[Node]:
    out: list[Node] = []
    stack, seen = [value], set[Node]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "reduce":
            out.append(node)
        elif node.op != "fold":
            stack.extend(reversed(node.src))
    return out


def _extent(node: Node) -> Extent:
    (axis,) = node.attr[1]
    return next(e for s in node.src for a, e in s.free if a == axis)


def _over(node: Node, axis: str) -> Node:
    """The body of a reduce, read along `axis` in place of its own."""
    (own,) = node.attr[1]
    return at_coordinate(node.src[0], own, iota(axis, _extent(node)))


def _reads(node: Node) -> set[Node]:
    """The loads that depend on the reduced axis, with that axis under one name."""
    return {n for n in walk(_over(node, "*")) if n.op == "load" and "*" in n.names}


def _joined(group: tuple[Node, ...]) -> dict[Node, Node]:
    """{reduce: its result of the one loop}."""
    (axis,) = group[0].attr[1]
    states = {}
    for n, node in enumerate(group):
        monoid, body = node.attr[0], _over(node, axis)
        spec = MONOIDS[monoid]
        state = carry(f"{monoid}{n}", node.dtype, dict(node.free))
        (step,) = spec.combine(map_, (state,), (body,))
        start = const(dtype_limit(spec.identity[0], node.dtype), node.dtype)
        states[f"{monoid}{n}"] = (start, step)
    loop = fold(axis, [(0, as_node(_extent(group[0])))], states)
    return {node: get(loop, n) for n, node in enumerate(group)}
