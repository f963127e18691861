"""rfactor: a reduce split into partial results, and a combine of the partials.

    before:  reduce sum k { x[m,k] }
    after:   reduce sum k.l { fold k.o from 0: acc[k.l] + x[m, k.o*L + k.l] }   +  the rest of k
    args:    nest; axis, the reduced axis; lanes L and unroll U, numbers of partials; the L run in
             the vector lanes, the U in registers of their own (a chain of U independent sums).
    Illegal: NOT_REDUCED (the nest does not reduce that axis, or not by itself), TOO_BIG,
             HAS_LANE (the nest's own loops already use the lanes).

What does not fill L*U elements is reduced one by one and combined last: the order of the terms
is fixed by the schedule, so the same schedule gives the same bits.
"""

from __future__ import annotations

from dataclasses import replace

from autosched.ir.extent import as_extent, as_node, ext_floordiv, ext_mul
from autosched.ir.loops import Nest, at_coordinate, edit_nests
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Extent, Node, Program, replace_nodes, walk
from autosched.ir.ops import carry, const, fold, get, iota, map_, reduce_
from autosched.ir.rules.action import Action, Illegal


def apply(program: Program, action: Action) -> Program | Illegal:
    name, axis = action["nest"], action["axis"]
    lanes, unroll = action.size("lanes"), action.size("unroll")
    problems: list[Illegal] = []
    binds: list[tuple[str, str]] = []
    bare = 0  # nests of that name that reduce nothing, such as the start of a fold's state

    def edit(nest: Nest) -> list[Node]:
        nonlocal bare
        if nest.name != name:
            return [nest.build()]
        if any(x.bind == "lane" for x in nest.loops):
            problems.append(Illegal("HAS_LANE", f"{name} has a lane among its loops"))
            return [nest.build()]
        found = [n for n in walk(nest.value) if n.op == "reduce" and n.attr[1] == (axis,)]
        if not found:
            bare += 1
            return [nest.build()]
        table = {n: _partials(n, axis, lanes, unroll, binds, problems) for n in found}
        return [nest.with_value(replace_nodes(nest.value, table)).build()]

    body = tuple(edit_nests(k, edit) for k in program.body)
    if problems:
        return problems[0]
    if not binds:
        why = f"{name} has no reduce over {axis} alone" if bare else f"no nest is named {name}"
        return Illegal("NOT_REDUCED", why)
    return replace(program, body=tuple(_with_binds(k, binds) for k in body))


def _with_binds(kernel: Node, binds: list[tuple[str, str]]) -> Node:
    """The kernel with the traversal of axes that no forall binds written into it."""
    name, *old = kernel.attr
    table = {**dict(old[0] if old else ()), **dict(binds)}
    return Node("kernel", kernel.src, (name, tuple(sorted(table.items())), *old[1:]))


def _partials(
    node: Node,
    axis: str,
    lanes: Extent,
    unroll: Extent,
    binds: list[tuple[str, str]],
    problems: list[Illegal],
) -> Node:
    monoid = node.attr[0]
    spec = MONOIDS[monoid]
    extent = next(e for s in node.src for a, e in s.free if a == axis)
    step = ext_mul(lanes, unroll)
    if isinstance(extent, int) and isinstance(step, int) and step > extent:
        problems.append(Illegal("TOO_BIG", f"{axis} has {extent} elements, a step {step}"))
        return node
    if len(node.src) != 1:
        problems.append(Illegal("NOT_REDUCED", f"{monoid} has several components"))
        return node
    lane, row, outer = f"{axis}.l", f"{axis}.u", f"{axis}.o"
    binds.extend([(lane, "lane"), (row, "unroll")])
    value, dtype = node.src[0], node.dtype
    trips = ext_floordiv(extent, step)
    at = iota(outer, trips) * as_node(step) + iota(row, unroll) * as_node(lanes) + iota(lane, lanes)
    body = at_coordinate(value, axis, at)
    start = const(dtype_limit(spec.identity[0], dtype), dtype)
    axes = {a: e for a, e in body.free if a != outer}
    state = carry("acc", dtype, axes)
    (total,) = spec.combine(map_, (state,), (body,))
    acc = get(fold(outer, [(as_node(0), as_node(trips))], {"acc": (start, total)}))
    result = reduce_(monoid, (lane,), reduce_(monoid, (row,), acc))
    done = as_extent(as_node(ext_mul(trips, step)))
    if done == extent:
        return result
    rest = f"{axis}.r"
    tail = at_coordinate(value, axis, iota(rest, extent))
    rest_state = carry("rest", dtype, {a: e for a, e in tail.free if a != rest})
    (more,) = spec.combine(map_, (rest_state,), (tail,))
    last = fold(rest, [(as_node(done), as_node(extent))], {"rest": (result, more)})
    return get(last)
