"""tile: an algebra program as kernels over boxes, for a target that computes on tiles.

    before:  y[m,n] = gelu(sum k x[m,k] w[k,n])                                        (algebra)
    after:   kernel y on stages=3, warps=8:                                               (tile)
               forall m.o: grid: forall n.o: grid:
                 acc = fold k.o from 0:  acc + dot k.i (load x[m.o*BM :: BM, k.o*BK :: BK],
                                                        load w[k.o*BK :: BK, n.o*BN :: BN])
                 store y[m.o*BM :: BM, n.o*BN :: BN] = gelu(acc)    mask m < M, n < N
    args:    keep, numbers of values (see `inline.candidates`) that get a kernel and a buffer;
             plans, one a kernel, kept values first, then the outputs: (axes, reduces, facts) with
             axes (axis, size) outermost first, size 1 for a point of the grid, 0 for the whole
             axis in the box, "step" for the axis of a fold whose results are stacked; and
             (axis, size, "serial") for blocks that one program stores one after the other, and
             (axis, size, "reverse") for a grid whose last block comes first;
             reduces (axis, size) with 0 for the whole; facts (name, number) of the launch;
             narrow, precision: how dots multiply (see `products.DotTypes`).
    Illegal: NOT_ALGEBRA, NO_SUCH_CANDIDATE, PLANS (not one a kernel, or not its axes), NO_BLOCK
             (a value that has no form over boxes; the reason says why).

Sizes are numbers or knobs. Whatever is not whole is masked at its end, so that any size is right.
Loops over one axis that do not depend on each other become one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from autosched.ir.blocks import Blocks, NoBlock
from autosched.ir.expand import Home
from autosched.ir.extent import as_node, ext_cdiv, simplify
from autosched.ir.fuse import merged_folds
from autosched.ir.node import Extent, Node, Output, Program, replace_nodes, walk
from autosched.ir.ops import Dim, buffer, forall, iota, kernel, knob, store
from autosched.ir.products import DotTypes
from autosched.ir.rules.action import Action, Illegal
from autosched.ir.rules.inline import candidates
from autosched.ir.scans import without_scans

STEP = "step"
SERIAL, REVERSE = "serial", "reverse"
Plan: TypeAlias = (
    "tuple[tuple[tuple[str, Extent | str, str], ...], dict[str, Extent], dict[str, Extent]]"
)


def apply(program: Program, action: Action) -> Program | Illegal:
    if program.level != "algebra":
        return Illegal("NOT_ALGEBRA", "tile starts from an algebra program")
    program = without_scans(program)
    keep = tuple(action.get("keep", ()))
    found = candidates(program)
    if any(k >= len(found) for k in keep):
        return Illegal("NO_SUCH_CANDIDATE", f"the program has {len(found)} candidates")
    kept = [n for n in walk(*program.body) if n in {found[k] for k in keep}]
    plans = [_plan(p) for p in action["plans"]]
    groups = stages(program, kept)
    if len(plans) != len(groups):
        return Illegal("PLANS", f"{len(groups)} kernels want as many plans, not {len(plans)}")
    types = DotTypes(action.get("narrow", True), action.get("precision", ""))
    homes: dict[Node, Home] = {}
    kernels = []
    try:
        for group, plan in zip(groups, plans):
            wrong = _misfit(group, plan)
            if wrong:
                return Illegal("PLANS", wrong)
            kernels.append(_kernel(group, plan, homes, types))
            for out, value in group:
                if value in kept:
                    home = "scratch" if out.name.startswith(SCRATCH) else "output"
                    handle = buffer(out.name, out.extents, out.dtype, home)
                    homes[value] = Home(handle, out.dims)
    except NoBlock as reason:
        return Illegal("NO_BLOCK", str(reason))
    return Program("tile", program.inputs, program.outputs, tuple(kernels))


SCRATCH = "t"


def stages(program: Program, kept: Sequence[Node]) -> list[list[tuple[Output, Node]]]:
    """What each kernel stores: kept values first, then the outputs that have the same axes."""
    out: list[list[tuple[Output, Node]]] = []
    order = _axis_order(program)
    for n, value in enumerate(kept):
        dims = tuple(sorted(value.names, key=lambda a: order.get(a, len(order))))
        extents = tuple(value.extent(a) for a in dims)
        out.append([(Output(f"{SCRATCH}{n}", dims, value.dtype, extents), value)])
    last: dict[frozenset[str], list[tuple[Output, Node]]] = {}
    for o, value in zip(program.outputs, program.body):
        last.setdefault(frozenset(o.dims), []).append((o, value))
    groups = sorted(last.values(), key=lambda g: -len(g[0][0].dims))
    whole: list[list[tuple[Output, Node]]] = []
    for group in groups:
        # An output over fewer axes is stored by the kernel that makes it on the way.
        host = next((w for w in whole if _made_inside(group, w)), None)
        if host is None:
            whole.append(group)
        else:
            host.extend(group)
    return out + whole


def _made_inside(group: Sequence[tuple[Output, Node]], host: Sequence[tuple[Output, Node]]) -> bool:
    """Whether the host's values are computed from the group's, or by the same loop."""
    below = set(walk(*(v for _, v in host)))
    sources = {s for _, v in group for s in _loops_of(v)}
    return all(v in below or (sources and sources <= below) for _, v in group)


def _loops_of(value: Node) -> set[Node]:
    return {n for n in walk(value) if n.op in ("reduce", "fold")}


def _axis_order(program: Program) -> dict[str, int]:
    names: dict[str, int] = {}
    for out in program.outputs:
        for axis in out.dims:
            names.setdefault(axis, len(names))
    for node in walk(*program.body):
        for axis, _ in node.free:
            names.setdefault(axis, len(names))
    return names


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


def _misfit(group: Sequence[tuple[Output, Node]], plan: Plan) -> str:
    wanted = {a for o, _ in group for a in o.dims}
    given = [a for a, _, _ in plan[0]]
    if sorted(given) != sorted(wanted):
        return f"the kernel of {group[0][0].name} has the axes {sorted(wanted)}, not {given}"
    return ""


def _kernel(
    group: Sequence[tuple[Output, Node]], plan: Plan, homes: Mapping[Node, Home], types: DotTypes
) -> Node:
    axes, reduces, facts = plan
    blocks = Blocks(reduces, homes, types)
    extents = {a: e for o, _ in group for a, e in zip(o.dims, o.extents)}
    grid: list[tuple[str, Extent]] = []
    steps: dict[str, tuple[str, Extent]] = {}
    for axis, size, how in axes:
        extent = extents[axis]
        if not isinstance(extent, int):
            raise NoBlock(f"the axis {axis} has an open extent")
        if size == STEP:
            name = blocks.name(f"{axis}.s", axis, extent)
            blocks.own[axis] = iota(name, extent)
            steps[axis] = (name, extent)
        elif size == 1:
            name = blocks.name(axis, axis, extent, 1)
            blocks.own[axis] = iota(name, extent)
            grid.append((name, extent))
        elif size == 0:
            blocks.own[axis] = blocks.whole(axis, extent)
        else:
            assert not isinstance(size, str)
            outer, blocks.own[axis] = blocks.blocked(
                axis, extent, size, "store", reverse=how == REVERSE
            )
            if how == SERIAL:
                steps[axis] = (outer, ext_cdiv(extent, size))
            else:
                grid.append((outer, ext_cdiv(extent, size)))
    values = [blocks.at(v, {a: blocks.own[a] for a in v.names}) for _, v in group]
    values = merged_folds(values)
    body = [_stored(o, v, blocks, steps) for (o, _), v in zip(group, values)]
    persistent = "persistent" if facts.get("persistent") else "grid"
    for name, trips in reversed(grid):
        body = [forall(name, 0, as_node(trips), persistent, body)]
    return kernel(group[0][0].name, body, {}, facts)


def _stored(
    out: Output, value: Node, blocks: Blocks, steps: Mapping[str, tuple[str, Extent]]
) -> Node:
    """The store of a box, in the loop over the steps of a fold where it is a stacked result."""
    home = "scratch" if out.name.startswith(SCRATCH) else "output"
    handle = buffer(out.name, out.extents, out.dtype, home)
    starts: list[Node] = []
    dims: list[Dim | None] = []
    for axis in out.dims:
        at = blocks.own[axis]
        boxes = [a for a, _ in at.free if a in blocks.tiles]
        if boxes:
            zero = {iota(boxes[0], blocks.tiles[boxes[0]]): as_node(0)}
            starts.append(simplify(replace_nodes(at, zero)))
            dims.append((boxes[0], blocks.tiles[boxes[0]], 1))
        else:
            starts.append(at)
            dims.append(None)
    mask = blocks.conditions(*(blocks.own[a] for a in out.dims))
    stmt = store(handle, value, starts or [as_node(0)], dims or [None], mask)
    for axis in out.dims:
        if axis in steps:
            name, extent = steps[axis]
            stmt = forall(name, 0, as_node(extent), "serial", [stmt])
    return stmt
