"""arrive: the program that finishes a part last does what another kernel would do with all parts.

    before:  kernel t0:  forall m.o, n.o, p: grid:  store t0[p, tile] = part(p)
             kernel y:   forall m.o, n.o: grid:
                           store y[tile] = f(fold p: acc + load t0[p, tile])
    after:   kernel y:   forall m.o, n.o: grid:
                           forall p: arrive:        store t0[p, tile] = part(p)
                           store y[tile] = f(fold p: acc + load t0[p, tile])
    args:    axis, along which the parts are numbered.
    Illegal: NO_PARTS (no kernel has a grid loop over the axis, or none follows it), GRIDS (the two
             kernels walk over different tiles, or one is persistent), ELSEWHERE (a tile is made
             from parts of other tiles, or not every program along a grid loop stores its own).

A program for each part stores it and counts itself; the one that finds all others counted goes on
with what follows the loop, in the order that is written there: the same bits whoever is last.
"""

from __future__ import annotations

from collections.abc import Sequence

from autosched.ir.extent import simplify
from autosched.ir.loops import grid_of
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import const, forall, kernel, kernel_facts
from autosched.ir.rules.action import Action, Illegal
from autosched.ir.spec import starts

ARRIVE = "arrive"


def apply(program: Program, action: Action) -> Program | Illegal:
    axis = action["axis"]
    at = [n for n, k in enumerate(program.body) if axis in {x.attr[0] for x in grid_of(k)[0]}]
    if not at or at[0] + 1 == len(program.body):
        return Illegal("NO_PARTS", f"no kernel has a grid loop over {axis} and one behind it")
    first, second = program.body[at[0] : at[0] + 2]
    (loops, parts), (others, rest) = grid_of(first), grid_of(second)
    (own,) = (x for x in loops if x.attr[0] == axis)
    around = [x for x in loops if x is not own]
    if [_header(x) for x in around] != [_header(x) for x in others]:
        return Illegal("GRIDS", f"{second.attr[0]} walks over other tiles than {first.attr[0]}")
    if any(x.attr[1] != "grid" for x in (*loops, *others)):
        return Illegal("GRIDS", f"the programs of {second.attr[0]} walk over several tiles each")
    wrong = _elsewhere(parts, rest, own, around)
    if wrong:
        return Illegal("ELSEWHERE", wrong)
    body = [forall(axis, *own.src[:2], ARRIVE, parts), *rest]
    for loop in reversed(around):
        body = [forall(loop.attr[0], *loop.src[:2], "grid", body)]
    made = kernel(second.attr[0], body, {}, kernel_facts(first))
    return program.with_body(*program.body[: at[0]], made, *program.body[at[0] + 2 :])


def _header(loop: Node) -> tuple[object, ...]:
    return (loop.attr, *(simplify(b) for b in loop.src[:2]))


def _elsewhere(
    parts: Sequence[Node], rest: Sequence[Node], own: Node, around: Sequence[Node]
) -> str:
    """What a tile would need of other tiles' programs; nothing where that is well."""
    stored = {n.src[0]: n for n in walk(*parts) if n.op == "store"}
    if any(h.attr[3] != "scratch" for h in stored):
        return "a part is stored as an output"
    apart = {x.attr[0] for x in around if simplify(x.src[1]) is not const(1, "int32")}
    for handle, store in stored.items():
        along = {a for s in starts(store) for a, _ in s.free}
        lost = sorted({own.attr[0], *apart} - along)
        if lost:
            return f"{handle.attr[0]} has one place for all programs along {', '.join(lost)}"
    for load in (n for n in walk(*rest) if n.op == "load" and n.src[0] in stored):
        store = stored[load.src[0]]
        same = load.attr[0] == store.attr[0] and all(
            a is b or (own.attr[0] in a.names and b.op == "iota")
            for a, b in zip(map(simplify, starts(store)), map(simplify, starts(load)))
        )
        if not same:
            return f"{load.src[0].attr[0]} is read at other places than it is stored"
    return ""
