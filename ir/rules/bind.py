"""bind: set the order of loops and what each is bound to, in one nest or shared by all.

    before:  forall m: forall n: forall n.l:  store ...
    after:   forall n: grid: forall m: serial: forall n.l: lane:  store ...
    args:    loops, a list of "axis:bind", outermost first; nest, the nest whose loops these are
             (all of them), or none: then these loops are taken out of every nest and shared by all.
    Illegal: NOT_THE_LOOPS (nest: not a permutation of its loops), NO_BIND, CROSSES (a nest reads
             scratch of another at a different coordinate of a shared axis), LATE (a nest without
             a shared axis reads what is only made inside it), LANE_NOT_LAST.

Sharing loops is what fuses: scratch that lives within one iteration loses the shared dimensions.
A nest that lacks an axis stands before the loop over it, under the loops that it has.
"""

from __future__ import annotations

from dataclasses import replace

from autosched.ir.extent import as_node
from autosched.ir.loops import (
    Loop,
    Nest,
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


def _share(program: Program, wanted: list[tuple[str, ...]]) -> Program | Illegal:
    if len(program.body) != 1:
        return Illegal("CROSSES", "loops are shared within one kernel")
    (root,) = program.body
    found = [as_nest(s) for s in root.src]
    nests = [n for n in found if n is not None]
    if len(nests) != len(found):
        return Illegal("CROSSES", "the kernel's loops are shared already")
    axes = [axis for axis, _ in wanted]
    problem = _crossing(nests, axes)
    if problem:
        return problem
    shrunk = _shrink(nests, axes)
    body = _fuse(shrunk, wanted)
    if isinstance(body, Illegal):
        return body
    return program.with_body(Node("kernel", tuple(body), root.attr))


def _fuse(nests: list[Nest], wanted: list[tuple[str, ...]]) -> list[Node] | Illegal:
    if not wanted:
        return [n.build() for n in nests]
    (axis, bind), rest = wanted[0], wanted[1:]
    outside = [n for n in nests if n.loop(axis) is None]
    inside = [n for n in nests if n.loop(axis) is not None]
    if not inside:
        return Illegal("NOT_THE_LOOPS", f"no nest has a loop over {axis}")
    made_inside = {n.handle for n in inside}
    for nest in outside:
        if buffers_read(nest.value) & made_inside:
            return Illegal("LATE", f"{nest.name} needs what is made inside the loop over {axis}")
    loop = inside[0].loop(axis)
    assert loop is not None
    stripped = [replace(n, loops=tuple(x for x in n.loops if x.axis != axis)) for n in inside]
    inner = _fuse(stripped, rest)
    if isinstance(inner, Illegal):
        return inner
    before = _fuse(outside, [(a, "serial") for a, _ in rest if any(n.loop(a) for n in outside)])
    if isinstance(before, Illegal):
        return before
    return [*before, build([Loop(axis, loop.lo, loop.hi, bind)], inner)]


def _crossing(nests: list[Nest], axes: list[str]) -> Illegal | None:
    """A read of scratch at another coordinate of a shared axis than the one it was made at."""
    made = {n.handle: n for n in nests if n.handle.attr[3] == "scratch"}
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


def _shrink(nests: list[Nest], axes: list[str]) -> list[Nest]:
    """The nests with scratch dimensions over shared axes dropped."""
    drop = {
        n.handle: tuple(k for k, s in enumerate(n.starts) if iota_axis(s) in axes)
        for n in nests
        if n.handle.attr[3] == "scratch"
    }
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
        # A nest that stands outside a shared loop keeps the dimension of that loop.
        return load(smaller(handle), kept_starts(handle, load_starts(node)))

    out = []
    for nest in nests:
        nest = nest.with_value(rewrite(nest.value, fix))
        if nest.handle in drop:
            starts = kept_starts(nest.handle, nest.starts)
            nest = replace(nest, store=store(smaller(nest.handle), nest.value, starts))
        out.append(nest)
    return out
