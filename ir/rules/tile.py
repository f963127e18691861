"""tile: an algebra program as kernels over boxes, for a target that computes on tiles.

    before:  y[m,n] = gelu(sum k x[m,k] w[k,n])                                        (algebra)
    after:   kernel y on stages=3, warps=8:                                               (tile)
               forall m.o: grid: forall n.o: grid:
                 acc = fold k.o from 0:  acc + dot k.i (load x[m.o*BM :: BM, k.o*BK :: BK],
                                                        load w[k.o*BK :: BK, n.o*BN :: BN])
                 store y[m.o*BM :: BM, n.o*BN :: BN] = gelu(acc)    mask m < M, n < N
    args:    keep, numbers of values (see `candidates`) that get a kernel and a buffer; parts, an
             axis: what the parts of reduces over it result in gets them too;
             plans, one a kernel (see `stages`), kept values first: (axes, reduces, facts) with
             axes (axis, size) outermost first, size 1 for a point of the grid, 0 for the whole
             axis in the box, "step" for the axis of a fold whose results are stacked; and
             (axis, size, "serial") for blocks that one program stores one after the other,
             (axis, size, "backward") for the same from the last block to the first, and
             (axis, size, "reverse") for a grid whose last block comes first, and
             (axis, size, "packed") for blocks that lie side by side in one box with those of the
             other packed axes, the last fastest ("packed2": in another such box);
             reduces (axis, size) with 0 for the whole; facts (name, number) of the launch;
             narrow, precision: how dots multiply (see `products.DotTypes`);
             joined, whether kept results of one loop share a kernel whatever their axes.
    Illegal: NOT_ALGEBRA, NO_SUCH_CANDIDATE, PLANS (not one a kernel, or not its axes), NO_BLOCK
             (a value that has no form over boxes; the reason says why).

Sizes are numbers or knobs. Whatever is not whole is masked at its end, so that any size is right.
Loops over one axis that do not depend on each other become one.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from autosched.ir.blocks import Blocks, NoBlock, Serial, closed
from autosched.ir.elsewhere import loop_of, loop_results
from autosched.ir.expand import Home, fresh
from autosched.ir.extent import as_node, ext_cdiv
from autosched.ir.fuse import merged_folds, without_unread
from autosched.ir.lower import axis_order
from autosched.ir.node import Extent, Node, Output, Program, walk
from autosched.ir.ops import buffer, eq, forall, iota, kernel, knob, store
from autosched.ir.products import DotTypes
from autosched.ir.rules import inline
from autosched.ir.rules.action import Action, Illegal
from autosched.ir.rules.split_reduce import partial_states

STEP = "step"
SERIAL, BACKWARD, REVERSE = "serial", "backward", "reverse"
PACKED = ("packed", "packed2")
SCRATCH = "t"
Group: TypeAlias = "list[tuple[Output, Node]]"  # what one kernel stores
Plan: TypeAlias = (
    "tuple[tuple[tuple[str, Extent | str, str], ...], dict[str, Extent], dict[str, Extent]]"
)


def apply(program: Program, action: Action) -> Program | Illegal:
    if program.level != "algebra":
        return Illegal("NOT_ALGEBRA", "tile starts from an algebra program")
    keep = tuple(action.get("keep", ()))
    found = candidates(program)
    if any(k >= len(found) for k in keep):
        return Illegal("NO_SUCH_CANDIDATE", f"the program has {len(found)} candidates")
    wanted = {found[k] for k in keep}
    if "parts" in dict(action.args):
        wanted |= set(partial_states(program, action["parts"]))
    kept = [n for n in walk(*program.body) if n in wanted]
    plans = [_plan(p) for p in action["plans"]]
    groups = stages(program, kept, bool(action.get("joined", False)))
    if len(plans) != len(groups):
        return Illegal("PLANS", f"{len(groups)} kernels want as many plans, not {len(plans)}")
    types = DotTypes(action.get("narrow", True), action.get("precision", ""))
    homes: dict[Node, Home] = {}
    outputs = set(program.outputs)
    kernels = []
    try:
        for group, plan in zip(groups, plans):
            wrong = _misfit(group, plan)
            if wrong:
                return Illegal("PLANS", wrong)
            handles = {
                o.name: buffer(o.name, o.extents, o.dtype, "output" if o in outputs else "scratch")
                for o, _ in group
            }
            kernels.append(_kernel(group, plan, homes, handles, types))
            homes |= {
                value: Home(handles[out.name], out.dims)
                for out, value in group
                if value in kept or _loops_of(value)
            }
    except NoBlock as reason:
        return Illegal("NO_BLOCK", str(reason))
    return Program("tile", program.inputs, program.outputs, tuple(kernels))


def candidates(program: Program) -> tuple[Node, ...]:
    """The values that may get a kernel: those of `inline`, and whatever loops result in."""
    known = inline.candidates(program)
    return (*known, *(n for n in loop_results(program) if n not in set(known)))


def stages(program: Program, kept: Sequence[Node], joined: bool = False) -> list[Group]:
    """What each kernel stores: kept values first, those of one loop together; then the outputs
    that have the same axes.

    joined: kept values of one loop share a kernel whatever their axes, and lie in memory part by
    part, where parts of the loop differ in their bounds.
    """
    order = axis_order(program)
    taken = {o.name for o in program.outputs} | {str(n.attr[0]) for n in program.inputs}
    first: dict[object, Group] = {}
    for value in kept:
        given = [(o, v) for o, v in zip(program.outputs, program.body) if v is value]
        if not given:
            apart = _bound_by(value) if joined else frozenset()
            dims = tuple(
                sorted(value.names, key=lambda a: (a not in apart, order.get(a, len(order))))
            )
            name = fresh(f"{SCRATCH}{len(first)}", taken)
            taken.add(name)
            extents = tuple(value.extent(a) for a in dims)
            given = [(Output(name, dims, value.dtype, extents), value)]
        loop = loop_of(value)
        alike = None if joined else frozenset(value.names)
        key = value if loop is None else (loop, alike)
        first.setdefault(key, []).extend(given)
    last: dict[frozenset[str], Group] = {}
    for o, value in zip(program.outputs, program.body):
        if value not in set(kept):
            last.setdefault(frozenset(o.dims), []).append((o, value))
    groups = sorted(last.values(), key=lambda g: -len(g[0][0].dims))
    whole: list[Group] = []
    for group in groups:
        # An output over fewer axes is stored by the kernel that makes it on the way.
        host = next((w for w in whole if _made_inside(group, w, set(kept))), None)
        if host is None:
            whole.append(group)
        else:
            host.extend(group)
    return [*first.values(), *_makers_first(whole)]


def _bound_by(value: Node) -> frozenset[str]:
    """The axes along which the bounds of the loop vary that a value is a result of."""
    loop = loop_of(value)
    if loop is None or loop.op != "fold":
        return frozenset()
    return frozenset(a for b in loop.src[: 2 * loop.attr[2]] for a in b.names)


def _made_inside(group: Group, host: Group, kept: set[Node]) -> bool:
    """Whether the host does loops of the group's values, and what else these take runs over the
    same axes: one kernel reads for both what two would read. Where neither has all axes of the
    other, each value has to take all of those that it lacks."""
    inside = {a for o, _ in group for a in o.dims} <= {a for o, _ in host for a in o.dims}
    axes = {a for o, _ in (*group, *host) for a in o.dims}
    if not inside and any(
        axes - {*o.dims} - _bound_axes(_loops_of(v, kept)) for o, v in (*group, *host)
    ):
        return False
    below = set(walk(*(v for _, v in host)))
    if all(v in below for _, v in group):
        return True
    loops = {n for _, v in group for n in _loops_of(v, kept)}
    return bool(loops & below) and _bound_axes(loops - below) <= _bound_axes(loops & below)


def _makers_first(groups: Sequence[Group]) -> list[Group]:
    """The groups in an order in which those that others are computed from come first."""
    left, out = list(groups), []
    while left:
        below = {id(g): set(walk(*(s for _, v in g for s in v.src))) for g in left}
        ready = [
            g for g in left
            if not any(v in below[id(g)] for other in left if other is not g for _, v in other)
        ]  # fmt: skip
        out.append((ready or left)[0])
        left.remove(out[-1])
    return out


def _loops_of(value: Node, kept: Collection[Node] = ()) -> set[Node]:
    """The loops of a value, but for those of the kernels of what it keeps."""
    seen: set[Node] = set()
    todo = [value]
    while todo:
        node = todo.pop()
        if node not in seen and (node is value or node not in kept):
            seen.add(node)
            todo.extend(node.src)
    return {n for n in seen if n.op in ("reduce", "fold", "scan")}


def _bound_axes(loops: Iterable[Node]) -> set[str]:
    """The axes that loops run over."""
    return {a for n in loops for a in (n.attr[1] if n.op == "reduce" else _along(n))}


def _along(loop: Node) -> tuple[str, ...]:
    return (loop.attr[0] if loop.op == "fold" else loop.attr[1],)


def _plan(data: Sequence[Sequence[Sequence[object]]]) -> Plan:
    axes, reduces, facts = data
    return (
        tuple(
            (str(a), s if s == STEP else _size(s), "".join(map(str, how))) for a, s, *how in axes
        ),
        {str(a): _size(s) for a, s in reduces},
        {str(a): _size(s) for a, s in facts},
    )


def _size(value: object) -> Extent:
    return knob(value[1:]) if isinstance(value, str) else int(str(value))


def _misfit(group: Group, plan: Plan) -> str:
    wanted = {a for o, _ in group for a in o.dims}
    given = [a for a, _, _ in plan[0]]
    if sorted(given) != sorted(wanted):
        return f"the kernel of {group[0][0].name} has the axes {sorted(wanted)}, not {given}"
    return ""


def _kernel(
    group: Group,
    plan: Plan,
    homes: Mapping[Node, Home],
    handles: Mapping[str, Node],
    types: DotTypes,
) -> Node:
    axes, reduces, facts = plan
    blocks = Blocks(reduces, homes, types)
    extents = {a: e for o, _ in group for a, e in zip(o.dims, o.extents)}
    placed: dict[str, tuple[str, Extent]] = {}  # on the grid, outermost first
    steps: dict[str, tuple[str, Extent]] = {}
    for pack in PACKED:
        _pack([(a, extents[a], s) for a, s, how in axes if how == pack], blocks, placed)
    for axis, size, how in axes:
        extent = extents[axis]
        if how in PACKED:
            placed[axis] = placed.pop(axis)  # in the order of the plan
        elif size == STEP:
            name = blocks.name(f"{axis}.s", axis, extent)
            blocks.own[axis] = iota(name, extent)
            steps[axis] = (name, extent)
            blocks.steps.add(name)
        elif size == 1:
            name = blocks.name(axis, axis, extent, 1)
            blocks.own[axis] = iota(name, extent)
            placed[axis] = (name, extent)
        elif size == 0:
            blocks.own[axis] = blocks.whole(axis, closed(axis, extent))
        else:
            assert not isinstance(size, str)
            outer, blocks.own[axis] = blocks.blocked(
                axis, extent, size, "store", reverse=how in (REVERSE, BACKWARD)
            )
            trips = ext_cdiv(extent, size)
            if how in (SERIAL, BACKWARD):
                steps[axis] = (outer, trips)
                blocks.serial[axis] = Serial(outer, trips, how == BACKWARD)
            else:
                placed[axis] = (outer, trips)
    values = [blocks.at(v, {a: blocks.own[a] for a in v.names}) for _, v in group]
    values = merged_folds(without_unread(values))
    places = {a: iota(name, trips) for a, (name, trips) in placed.items()}
    body = [
        _stored(o, handles[o.name], v, blocks, steps, _first(o, places))
        for (o, _), v in zip(group, values)
    ]
    persistent = "persistent" if facts.get("persistent") else "grid"
    for name, trips in reversed(placed.values()):
        body = [forall(name, 0, as_node(trips), persistent, body)]
    return kernel(group[0][0].name, body, {}, facts)


def _pack(
    parts: Sequence[tuple[str, Extent, Extent | str]],
    blocks: Blocks,
    placed: dict[str, tuple[str, Extent]],
) -> None:
    """Blocks of axes in one box; what is not a number has no place in it."""
    sizes = [(a, e, s) for a, e, s in parts if isinstance(e, int) and isinstance(s, int) and s > 0]
    if len(sizes) != len(parts):
        raise NoBlock(f"packed axes want sizes that are numbers: {[a for a, _, _ in parts]}")
    for (axis, _, _), (outer, trips, at) in zip(sizes, blocks.packed(sizes) if sizes else ()):
        blocks.own[axis] = at
        placed[axis] = (outer, trips)


def _first(out: Output, places: Mapping[str, Node]) -> Node | None:
    """Of the programs along axes that an output lacks, which all make it: the one that stores."""
    others = [at for a, at in places.items() if a not in out.dims and at.attr[1] != 1]
    tests = [eq(at, as_node(0)) for at in others]
    return functools.reduce(lambda a, b: a & b, tests) if tests else None


def _stored(
    out: Output,
    handle: Node,
    value: Node,
    blocks: Blocks,
    steps: Mapping[str, tuple[str, Extent]],
    once: Node | None,
) -> Node:
    """The store of a box, in the loop over the steps of a fold where it is a stacked result."""
    starts, dims = blocks.boxed([blocks.own[a] for a in out.dims])
    for n, start in enumerate(starts):  # a store binds its tile axes, by a stride of 0 if need be
        axes = [a for a, _ in start.free if a in blocks.tiles]
        if axes and axes[0] not in {d[0] for d in dims if d is not None}:
            dims[n] = (axes[0], blocks.tiles[axes[0]], 0)
    mask = blocks.conditions(*(blocks.own[a] for a in out.dims))
    if once is not None:
        mask = once if mask is None else mask & once
    stmt = store(handle, value, starts, dims, mask)
    for axis in out.dims:
        if axis in steps:
            name, extent = steps[axis]
            stmt = forall(name, *_interval(value, name, extent), "serial", [stmt])
    return stmt


def _interval(value: Node, loop: str, extent: Extent) -> tuple[Node | int, Node]:
    """The steps at which a stacked value exists: those of its fold."""
    stacks = {n for n in walk(value) if n.op == "fold" and n.attr[0] == loop and n.attr[3]}
    found = {n.src[:2] for n in stacks if n.attr[2] == 1}
    ((lo, hi),) = found if len(found) == 1 else ((as_node(0), as_node(extent)),)
    return lo, hi
