"""bind: set the order of loops and what each is bound to, in one nest or shared by all.

    before:  forall m: forall n: forall n.l:  store ...
    after:   forall n: grid: forall m: serial: forall n.l: lane:  store ...
    args:    loops, a list of "axis:bind", outermost first; nest, the nest whose loops these are
             (all of them), or none: then these loops are taken out of every nest and shared by all.
    Illegal: NOT_THE_LOOPS (nest: not a permutation of its loops), NO_BIND, CROSSES (a nest reads
             a buffer of another at a different coordinate of a shared axis), LATE (a nest without
             a shared axis reads what is only made inside it), LANE_NOT_LAST.

Sharing loops is what fuses: scratch that lives within one iteration loses the shared dimensions.
A nest that lacks an axis stands before the loop over it, under the loops that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import TypeAlias

from autosched.ir.extent import as_node
from autosched.ir.loops import (
    Loop,
    Nest,
    as_loop,
    as_nest,
    buffers_read,
    build,
    edit_nests,
    iota_axis,
    load_starts,
)
from autosched.ir.node import Node, Program, rewrite, walk
from autosched.ir.ops import BINDS, buffer, load, store
from autosched.ir.rules.action import Action, Illegal


def apply(program: Program, action: Action) -> Program | Illegal:
    wanted = [tuple(item.rsplit(":", 1)) for item in action["loops"]]
    if any(bind not in BINDS for _, bind in wanted):
        return Illegal("NO_BIND", f"binds are {', '.join(BINDS)}")
    name = action.get("nest")
    return _order(program, name, wanted) if name else _share(program, wanted)


# ---- one nest ----------------------------------------------------------------------------------


def _order(program: Program, name: str, wanted: list[tuple[str, ...]]) -> Program | Illegal:
    problems: list[Illegal] = []
    hits = 0
    lanes = [n for n, (_, bind) in enumerate(wanted) if bind == "lane"]
    if lanes and lanes != [len(wanted) - 1]:
        return Illegal("LANE_NOT_LAST", "one loop may be the lane, and it is the innermost")

    def edit(nest: Nest) -> list[Node]:
        nonlocal hits
        if nest.name != name:
            return [nest.build()]
        hits += 1
        if sorted(nest.axes) != sorted(axis for axis, _ in wanted):
            problems.append(
                Illegal("NOT_THE_LOOPS", f"{name} has the loops {', '.join(nest.axes)}")
            )
            return [nest.build()]
        loops = {x.axis: x for x in nest.loops}
        return [build([replace(loops[a], bind=b) for a, b in wanted], [nest.store])]

    body = tuple(edit_nests(k, edit) for k in program.body)
    if not hits:
        return Illegal("NOT_THE_LOOPS", f"no nest is named {name}")
    return problems[0] if problems else program.with_body(*body)


# ---- shared loops ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """A loop over several statements, such as the steps of a fold."""

    loop: Loop
    items: tuple[_Item, ...]


_Item: TypeAlias = "Nest | _Group"


def _share(program: Program, wanted: list[tuple[str, ...]]) -> Program | Illegal:
    if len(program.body) != 1:
        return Illegal("CROSSES", "loops are shared within one kernel")
    (root,) = program.body
    items = [_item(s) for s in root.src]
    found = [n for item in items for n in _nests_of(item)]
    if any(g.loop.bind != "serial" for item in items for g in _groups_of(item)):
        return Illegal("CROSSES", "the kernel's loops are shared already")
    axes = [axis for axis, _ in wanted]
    problem = _crossing(found, axes)
    if problem:
        return problem
    drop = _dropped(items, axes)
    body = _fuse([_shrunk(item, drop) for item in items], wanted)
    if isinstance(body, Illegal):
        return body
    return program.with_body(Node("kernel", tuple(body), root.attr))


def _item(stmt: Node) -> _Item:
    nest = as_nest(stmt)
    if nest is not None:
        return nest
    loop, body = as_loop(stmt)
    return _Group(loop, tuple(map(_item, body)))


def _nests_of(item: _Item) -> Iterator[Nest]:
    if isinstance(item, Nest):
        yield item
    else:
        for inner in item.items:
            yield from _nests_of(inner)


def _groups_of(item: _Item) -> Iterator[_Group]:
    if isinstance(item, _Group):
        yield item
        for inner in item.items:
            yield from _groups_of(inner)


def _loop_over(item: _Item, axis: str) -> Loop | None:
    """The loop over `axis` that all nests of an item have, or None."""
    loops = [n.loop(axis) for n in _nests_of(item)]
    return None if None in loops else loops[0]


def _has_loop(item: _Item, axis: str) -> bool:
    return _loop_over(item, axis) is not None


def _without(item: _Item, axis: str) -> _Item:
    """The item without its loops over `axis`: the states of a fold are apart per coordinate, so
    that a shared loop may stand around the steps."""
    if isinstance(item, Nest):
        return replace(item, loops=tuple(x for x in item.loops if x.axis != axis))
    return replace(item, items=tuple(_without(i, axis) for i in item.items))


def _built(item: _Item) -> Node:
    return item.build() if isinstance(item, Nest) else build([item.loop], map(_built, item.items))


def _fuse(items: list[_Item], wanted: list[tuple[str, ...]]) -> list[Node] | Illegal:
    if not wanted:
        return [_built(n) for n in items]
    (axis, bind), rest = wanted[0], wanted[1:]
    outside = [n for n in items if _loop_over(n, axis) is None]
    inside = [n for n in items if _loop_over(n, axis) is not None]
    if not inside:
        return Illegal("NOT_THE_LOOPS", f"no nest has a loop over {axis}")
    made_inside = {n.handle for item in inside for n in _nests_of(item)}
    for nest in (n for item in outside for n in _nests_of(item)):
        if buffers_read(nest.value) & made_inside:
            return Illegal("LATE", f"{nest.name} needs what is made inside the loop over {axis}")
        if nest.loop(axis) is not None:
            why = f"{nest.name} has a loop over {axis}, others in its group have none"
            return Illegal("CROSSES", why)
    loop = _loop_over(inside[0], axis)
    assert loop is not None
    inner = _fuse([_without(n, axis) for n in inside], rest)
    if isinstance(inner, Illegal):
        return inner
    mine: list[tuple[str, ...]] = [
        (a, "serial") for a, _ in rest if any(_loop_over(n, a) for n in outside)
    ]
    before = _fuse(outside, mine)
    if isinstance(before, Illegal):
        return before
    return [*before, build([Loop(axis, loop.lo, loop.hi, bind)], inner)]


def _crossing(nests: list[Nest], axes: list[str]) -> Illegal | None:
    """A read of a buffer at another coordinate of a shared axis than the one it was made at."""
    made = {n.handle: n for n in nests}
    for nest in nests:
        for node in walk(nest.value):
            if node.op != "load" or node.src[0] not in made:
                continue
            producer = made[node.src[0]]
            for at, own in zip(load_starts(node), producer.starts):
                axis = iota_axis(own)
                if axis in axes and iota_axis(at) != axis:
                    why = f"{nest.name} reads {producer.name} across {axis}"
                    return Illegal("CROSSES", why)
    return None


def _dropped(items: list[_Item], axes: list[str]) -> dict[Node, tuple[int, ...]]:
    """{scratch: its dimensions over shared loops}, which it does not need. An item without a
    shared axis stands before the loop over it and shares none of the loops inside; the steps of
    a fold are no loop of its nests."""
    drop: dict[Node, tuple[int, ...]] = {}
    for item in items:
        shared = list(takewhile(partial(_has_loop, item), axes))
        for nest in _nests_of(item):
            if nest.handle.attr[3] != "scratch":
                continue
            mine = [k for k, s in enumerate(nest.starts) if iota_axis(s) in shared]
            known = drop.get(nest.handle, tuple(mine))
            drop[nest.handle] = tuple(k for k in mine if k in known)
    return drop


def _shrunk(item: _Item, drop: Mapping[Node, tuple[int, ...]]) -> _Item:
    """The item with scratch dimensions over shared axes dropped."""
    if isinstance(item, _Group):
        return replace(item, items=tuple(_shrunk(i, drop) for i in item.items))

    def smaller(handle: Node) -> Node:
        name, extents, dtype, home = handle.attr
        kept = [e for k, e in enumerate(extents) if k not in drop[handle]]
        return buffer(name, kept or [1], dtype, home)

    def kept_starts(handle: Node, starts: tuple[Node, ...]) -> list[Node]:
        kept = [s for k, s in enumerate(starts) if k not in drop[handle]]
        return kept or [as_node(0)]

    def fix(node: Node) -> Node:
        if node.op != "load" or node.src[0] not in drop:
            return node
        handle = node.src[0]
        return load(smaller(handle), kept_starts(handle, load_starts(node)))

    nest = item.with_value(rewrite(item.value, fix))
    if nest.handle in drop:
        starts = kept_starts(nest.handle, nest.starts)
        nest = replace(nest, store=store(smaller(nest.handle), nest.value, starts))
    return nest
