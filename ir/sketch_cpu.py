"""Sketches for a CPU: an algebra program in, structures with open sizes out.

One recipe for every program. The nests of an `inline` choice share as many outer loops as the
rules allow; the shared axis that most operands do without is cut into blocks. Within a block each
nest gets a register tile: a vector of lanes along the axis that memory likes best, some vectors
side by side, some rows. A nest that only reduces puts the lanes on the reduced axis. What the
lanes would have to gather is packed once (constants) or copied to scratch (the rest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from autosched.ir import access as acc
from autosched.ir.access import Access
from autosched.ir.extent import as_extent, as_node, ext_cdiv, ext_mul
from autosched.ir.loops import Nest, buffers_read, nests
from autosched.ir.node import Node, Program
from autosched.ir.ops import knob
from autosched.ir.rules import bind, inline, split
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.schedule import Knob, Sketch, run_actions
from autosched.ir.target import Target

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)
VECTORS = (1, 2, 3, 4, 6)
BLOCKS = (1, 2, 4, 8, 16, 32, 64, 128)
PARTIALS = (1, 2, 4, 8)
TRIAL_BLOCK = 8
SMALL_WORK = 200_000  # scalar operations below which one thread may be faster than a launch
MAX_VARIANTS = 8


@dataclass(frozen=True)
class Tile:
    """How one nest is traversed: actions, knobs and constraints of its own."""

    actions: tuple[Action, ...]
    knobs: tuple[Knob, ...]
    constraints: tuple[Node, ...]


def cpu_sketches(program: Program, target: Target) -> tuple[Sketch, ...]:
    out: dict[tuple[Action, ...], Sketch] = {}
    for choice in inline.propose(program, target):
        staged = inline.apply(program, choice)
        if isinstance(staged, Illegal):
            continue
        for sketch in _of_choice(staged, choice, target):
            out.setdefault(sketch.actions, sketch)
    return tuple(out.values())


def _of_choice(staged: Program, choice: Action, target: Target) -> list[Sketch]:
    found = [n for _, n in nests(staged.body[0])]
    linked = any(
        h.attr[3] == "scratch" for n in found for h in buffers_read(n.value) if h.op == "buffer"
    )
    shared = shared_axes(staged, found) if linked else ()
    if shared:
        return _fused(staged, choice, found, shared, target)
    return _separate(staged, choice, found, target)


# ---- loops that nests share --------------------------------------------------------------------


def shared_axes(staged: Program, found: Sequence[Nest]) -> tuple[str, ...]:
    """Axes of the last nest that all nests may run in one loop, in its memory order.

    A nest without a reduce may do without the axis: it then stands before the loop. The axis
    along which the last nest writes its elements side by side is left to the lanes.
    """
    out: list[str] = []
    written = acc.stored(found[-1])
    for axis in found[-1].axes:
        if written.stride(axis) == 1 and len(found[-1].axes) > 1:
            continue
        loops = [f"{a}:grid" for a in (*out, axis)]
        if all(axis in n.axes for n in found if acc.reductions(n)) and not isinstance(
            bind.apply(staged, act("bind", loops=loops)), Illegal
        ):
            out.append(axis)
    return tuple(out)


def block_axis(found: Sequence[Nest], shared: Sequence[str]) -> str | None:
    """The shared axis without which most operands of reductions do, the innermost of equals."""
    best, most = None, -1
    for axis in shared:
        loop = next(n.loop(axis) for n in found if n.loop(axis))
        assert loop is not None
        if as_extent(loop.hi) == 1:
            continue
        without = sum(
            a.stride(axis) == 0
            for n in found
            if acc.reductions(n)
            for _, a in acc.loads(n)
            if a.handle.op == "input"
        )
        if without >= most:
            best, most = axis, without
    return best


def _fused(
    staged: Program, choice: Action, found: list[Nest], shared: tuple[str, ...], target: Target
) -> list[Sketch]:
    axis = block_axis(found, shared)
    outer = [a for a in shared if a != axis]
    head: list[Action] = [choice]
    knobs: list[Knob] = []
    trial = staged
    if axis is not None:
        extent = _extent(found, axis)
        sizes = _sizes(BLOCKS, extent, 1)
        head.append(act("split", axis=axis, size="$block"))
        knobs.append(Knob("block", sizes))
        step = split.apply(trial, act("split", axis=axis, size=min(TRIAL_BLOCK, extent)))
        assert isinstance(step, Program)
        trial = step
    sketches = []
    for inner in ("serial", "grid"):
        loops = [f"{a}:grid" for a in outer] + ([f"{axis}.o:{inner}"] if axis else [])
        share = act("bind", loops=loops)
        bound = bind.apply(trial, share)
        if isinstance(bound, Illegal) or (inner == "serial" and not outer):
            continue
        tiles = [
            _tiles(nest, [x.axis for x in above], inner, target, axis)
            for above, nest in nests(bound.body[0])
        ]
        for n, combo in enumerate(_combine(tiles)):
            name = f"fused.{inner}.{n}"
            sketches.append(_sketch(name, [*head, share], knobs, combo, staged, target))
        if axis is None:
            break
    return [s for s in sketches if s is not None]


def _combine(tiles: list[list[Tile]]) -> list[tuple[Tile, ...]]:
    return list(product(*tiles))[:MAX_VARIANTS]


def _separate(staged: Program, choice: Action, found: list[Nest], target: Target) -> list[Sketch]:
    """Each nest on its own: one nest, or nests that share nothing."""
    sketches = []
    small = sum(_work(n) for n in found) <= SMALL_WORK
    for order in ("columns", "rows"):
        for outer in ("grid", "serial") if small else ("grid",):
            tiles = [_tiles(n, [], outer, target, None, order) for n in found]
            for k, combo in enumerate(_combine(tiles)):
                name = f"{order}.{outer}.{k}"
                sketches.append(_sketch(name, [choice], [], combo, staged, target))
    return [s for s in sketches if s is not None]


def _sketch(
    name: str,
    head: list[Action],
    knobs: list[Knob],
    tiles: Sequence[Tile],
    staged: Program,
    target: Target,
) -> Sketch | None:
    actions = [*head, *(a for t in tiles for a in t.actions)]
    every = {k.name: k for k in (*knobs, *(k for t in tiles for k in t.knobs))}
    constraints = {c for t in tiles for c in t.constraints}
    opened = run_actions(staged, tuple(actions[1:]))
    if isinstance(opened, Illegal):
        return None
    constraints |= _scratch_fits(opened, target)
    ordered = tuple(sorted(constraints, key=lambda c: repr(c)))
    return Sketch(name, tuple(actions), tuple(every.values()), ordered)


def _scratch_fits(program: Program, target: Target) -> set[Node]:
    """The scratch of a task stays within the second-level cache."""
    from autosched.ir.extent import ext_add, ext_product
    from autosched.ir.node import walk
    from autosched.ir.scalar import ITEMSIZE

    total: int | Node = 0
    for node in walk(*program.body):
        if node.op == "buffer" and node.attr[3] == "scratch":
            total = ext_add(total, ext_mul(ext_product(node.attr[1]), ITEMSIZE[node.dtype]))
    return {total <= target.l2_bytes} if isinstance(total, Node) else set()


# ---- one nest ----------------------------------------------------------------------------------


def _tiles(
    nest: Nest,
    above: Sequence[str],
    outer: str,
    target: Target,
    block: str | None,
    order: str = "columns",
) -> list[Tile]:
    """The ways to traverse a nest, the most promising first."""
    loads = acc.loads(nest)
    if not acc.reductions(nest):
        return [_map_tile(nest, loads, above, outer, target, block)]
    lane = _lane_axis(nest, [a for _, a in loads], block)
    reduced = _lane_reduce(nest)
    gathers = [a for _, a in loads if lane and a.stride(lane) not in (0, 1) and not a.is_weight]
    # Gathering pays only where rows share what was gathered.
    shares = any(x.axis != lane and as_extent(x.hi) != 1 for x in nest.loops)
    ways: list[Tile] = []
    if lane is not None and (shares or not gathers or reduced is None):
        ways.append(_register_tile(nest, lane, loads, above, outer, target, block, order))
    if reduced is not None and (gathers or not ways):
        ways.append(_reduce_tile(nest, reduced, above, outer, target, block))
    return ways or [_scalar_tile(nest, above, outer)]


def _lane_axis(nest: Nest, loads: Sequence[Access], block: str | None) -> str | None:
    """The loop along which most accesses are contiguous or constant; None where none can be.

    A blocked axis cannot: its length is a knob, and lanes are a fixed number.
    """
    best, least = None, None
    to = acc.stored(nest)
    for loop in nest.loops:
        extent = as_extent(loop.hi)
        if loop.axis == f"{block}.i" or (isinstance(extent, int) and extent < 2):
            continue
        cost = 0 if to.stride(loop.axis) == 1 else 4
        for a in loads:
            stride = a.stride(loop.axis)
            if stride not in (0, 1):
                cost += 2 if a.is_weight else 16
        if all(a.stride(loop.axis) == 0 for a in loads) and to.stride(loop.axis) != 1:
            cost += 16
        if isinstance(extent, int) and extent < 8:
            cost += 8
        if least is None or cost <= least:
            best, least = loop.axis, cost
    return best


def _lane_reduce(nest: Nest) -> tuple[str, int] | None:
    """The one reduced axis along which the lanes may run, with its extent."""
    reductions = acc.reductions(nest)
    if any(r.op != "reduce" or len(r.attr[1]) != 1 or len(r.src) != 1 for r in reductions):
        return None
    axes = {r.attr[1][0] for r in reductions}
    if len(axes) != 1:
        return None
    (axis,) = axes
    extent = next(e for r in reductions for s in r.src for a, e in s.free if a == axis)
    if not isinstance(extent, int) or extent < 2:
        return None
    return axis, extent


def _register_tile(
    nest: Nest,
    lane: str,
    loads: Sequence[tuple[Node, Access]],
    above: Sequence[str],
    outer: str,
    target: Target,
    block: str | None,
    order: str,
) -> Tile:
    """Lanes along `lane`, vectors side by side, rows along the longest other loop."""
    name = nest.name
    extents = {x.axis: as_extent(x.hi) for x in nest.loops}
    lanes = _lanes(extents[lane], target)
    others = [x.axis for x in nest.loops if x.axis != lane]
    row = _row_axis(others, extents, [a for _, a in loads])
    count = len(acc.reductions(nest))
    cols = _sizes(tuple(v * lanes for v in VECTORS), extents[lane], lanes)
    actions = [
        act("split", nest=name, axis=lane, size=f"${name}.cols",
            into=[f"{lane}.{name}o", f"{lane}.{name}r"]),
        act("split", nest=name, axis=f"{lane}.{name}r", size=lanes, tail="exact",
            into=[f"{lane}.{name}u", f"{lane}.{name}l"]),
    ]  # fmt: skip
    knobs = [Knob(f"{name}.cols", cols)]
    vectors = ext_cdiv(knob(f"{name}.cols"), lanes)
    rows: int | Node = 1
    constraints: list[Node] = []
    if row is not None:
        blocked = block is not None and row == f"{block}.i"
        limit = BLOCKS[-1] if blocked else extents[row]
        knobs.append(Knob(f"{name}.rows", _sizes(ROWS, limit, 1)))
        rows = knob(f"{name}.rows")
        if blocked:
            constraints.append(rows <= knob("block"))
        actions.append(
            act("split", nest=name, axis=row, size=f"${name}.rows",
                into=[f"{row}.{name}o", f"{row}.{name}u"])
        )  # fmt: skip
    used = as_node(ext_mul(ext_mul(rows, vectors), count)) + as_node(vectors) + 1
    constraints.append(used <= target.registers)
    tiles = [f"{lane}.{name}o", *([f"{row}.{name}o"] if row else [])]
    rest = [a for a in others if a != row]
    inner = "serial" if above else outer
    walk_ = tiles if order == "columns" else tiles[::-1]
    loops = [f"{a}:{inner}" for a in (*rest, *walk_)]
    loops += [f"{row}.{name}u:unroll"] if row else []
    loops += [f"{lane}.{name}u:unroll", f"{lane}.{name}l:lane"]
    actions.append(act("bind", nest=name, loops=loops))
    for more in _copies(nest, lane, loads, above, outer, lanes):
        actions.append(more)
    return Tile(tuple(actions), tuple(knobs), tuple(constraints))


def _copies(
    nest: Nest,
    lane: str,
    loads: Sequence[tuple[Node, Access]],
    above: Sequence[str],
    outer: str,
    lanes: int,
) -> list[Action]:
    """Packs for constants that the tile reads, copies for what its lanes would gather."""
    reduced = {a for r in acc.reductions(nest) for s in r.src for a, _ in s.free} - {
        x.axis for x in nest.loops
    }
    out = []
    for handle in {a.handle: None for _, a in loads}:
        mine = [a for _, a in loads if a.handle is handle]
        operand = str(handle.attr[0])
        big = any(a.stride(lane) != 0 and any(a.stride(x) != 0 for x in reduced) for a in mine)
        if mine[0].is_weight and big and _direct(nest, handle):
            out.append(act("place", nest=nest.name, operand=operand, home="packed"))
        elif any(a.stride(lane) not in (0, 1) for a in mine) and not mine[0].is_weight:
            level = _level(mine, above)
            if level is not None and outer == "serial" and _direct(nest, handle):
                out.append(
                    act("place", nest=nest.name, operand=operand, home="scratch", loop=level)
                )
                out.extend(_vector_copy(nest, lane, operand, mine, above))
    return out


def _vector_copy(
    nest: Nest, lane: str, operand: str, accesses: Sequence[Access], above: Sequence[str]
) -> list[Action]:
    """The copy's own nest with its lanes along the lane of the nest that reads it."""
    if len(accesses) != 1:
        return []
    axes = [a for a, _ in accesses[0].strides if a not in above and a != lane]
    loops = [f"{lane}.{nest.name}o:serial", *(f"{a}:serial" for a in axes)]
    loops += [f"{lane}.{nest.name}u:unroll", f"{lane}.{nest.name}l:lane"]
    return [act("bind", nest=f"{operand}.{nest.name}", loops=loops)]


def _direct(nest: Nest, handle: Node) -> bool:
    """Whether no load of the handle has a position that is itself loaded."""
    from autosched.ir.node import walk

    return not any(
        n.op == "load"
        for x, a in acc.loads(nest)
        if a.handle is handle
        for s in x.src[1:]
        for n in walk(s)
    )


def _level(accesses: Sequence[Access], above: Sequence[str]) -> str | None:
    """The innermost shared loop that the operand depends on, if no loop inside of it matters."""
    used = [a for a in above if any(x.stride(a) != 0 for x in accesses)]
    return used[-1] if used else None


def _reduce_tile(
    nest: Nest,
    reduced: tuple[str, int],
    above: Sequence[str],
    outer: str,
    target: Target,
    block: str | None,
) -> Tile:
    """Lanes along the reduced axis, several partial results a row, several rows."""
    name = nest.name
    axis, extent = reduced
    lanes = _lanes(extent, target)
    parts = tuple(p for p in PARTIALS if p * lanes <= extent)
    knobs = [Knob(f"{name}.partials", parts, "vectors")]
    extents = {x.axis: as_extent(x.hi) for x in nest.loops}
    row = _row_axis(list(extents), extents, [])
    actions: list[Action] = []
    constraints: list[Node] = []
    rows: int | Node = 1
    if row is not None:
        blocked = block is not None and row == f"{block}.i"
        limit = BLOCKS[-1] if blocked else extents[row]
        knobs.append(Knob(f"{name}.rows", _sizes((1, 2, 4, 8), limit, 1)))
        rows = knob(f"{name}.rows")
        if blocked:
            constraints.append(rows <= knob("block"))
        actions.append(
            act("split", nest=name, axis=row, size=f"${name}.rows",
                into=[f"{row}.{name}o", f"{row}.{name}u"])
        )  # fmt: skip
    used = as_node(ext_mul(rows, knob(f"{name}.partials"))) * len(acc.reductions(nest)) + 2
    constraints.append(used <= target.registers)
    actions.append(act("rfactor", nest=name, axis=axis, lanes=lanes, unroll=f"${name}.partials"))
    inner = "serial" if above else outer
    loops = [f"{a}:{inner}" for a in extents if a != row]
    loops += [f"{row}.{name}o:{inner}", f"{row}.{name}u:unroll"] if row else []
    if loops:
        actions.append(act("bind", nest=name, loops=loops))
    return Tile(tuple(actions), tuple(knobs), tuple(constraints))


def _map_tile(
    nest: Nest,
    loads: Sequence[tuple[Node, Access]],
    above: Sequence[str],
    outer: str,
    target: Target,
    block: str | None,
) -> Tile:
    """Lanes along the axis that memory likes best; the loop over vectors stays in the task."""
    lane = _lane_axis(nest, [a for _, a in loads], block)
    if lane is None:
        return _scalar_tile(nest, above, outer)
    name = nest.name
    extents = {x.axis: as_extent(x.hi) for x in nest.loops}
    lanes = _lanes(extents[lane], target)
    cols = _sizes(tuple(v * lanes for v in (1, 2, 4, 8)), extents[lane], lanes)
    others = [x.axis for x in nest.loops if x.axis != lane]
    inner = "serial" if above else outer
    last = "serial" if above or others else outer
    loops = [f"{a}:{inner}" for a in others] + [f"{lane}.{name}o:{last}"]
    actions = (
        act("split", nest=name, axis=lane, size=f"${name}.cols",
            into=[f"{lane}.{name}o", f"{lane}.{name}r"]),
        act("split", nest=name, axis=f"{lane}.{name}r", size=lanes, tail="exact",
            into=[f"{lane}.{name}u", f"{lane}.{name}l"]),
        act("bind", nest=name,
            loops=[*loops, f"{lane}.{name}u:unroll", f"{lane}.{name}l:lane"]),
    )  # fmt: skip
    return Tile(actions, (Knob(f"{name}.cols", cols),), ())


def _scalar_tile(nest: Nest, above: Sequence[str], outer: str) -> Tile:
    inner = "serial" if above else outer
    loops = [f"{x.axis}:{inner}" for x in nest.loops]
    return Tile((act("bind", nest=nest.name, loops=loops),) if loops else (), (), ())


# ---- sizes -------------------------------------------------------------------------------------


def _row_axis(
    others: Sequence[str], extents: dict[str, int | Node], loads: Sequence[Access]
) -> str | None:
    """The loop to unroll: the longest one; among equals the one that most operands do without."""
    best, key = None, (1, -1)
    for axis in others:
        extent = extents[axis]
        length = extent if isinstance(extent, int) else TRIAL_BLOCK
        mine = (min(length, 16), sum(a.stride(axis) == 0 for a in loads))
        if length > 1 and mine > key:
            best, key = axis, mine
    return best


def _lanes(extent: int | Node, target: Target) -> int:
    """The largest power of two that neither the vector nor the axis exceeds."""
    limit = extent if isinstance(extent, int) else target.lanes
    lanes = 1
    while lanes * 2 <= min(limit, target.lanes):
        lanes *= 2
    return lanes


def _sizes(wanted: Sequence[int], extent: int | Node, least: int) -> tuple[int, ...]:
    """The wanted sizes that fit, or the least one."""
    limit = extent if isinstance(extent, int) else max(wanted)
    fitting = tuple(w for w in wanted if w <= limit)
    return fitting or (min(least, limit),)


def _extent(found: Sequence[Nest], axis: str) -> int:
    loop = next(n.loop(axis) for n in found if n.loop(axis))
    assert loop is not None
    extent = as_extent(loop.hi)
    assert isinstance(extent, int)
    return extent


def _work(nest: Nest) -> int:
    """Scalar steps of a nest, reduced axes included."""
    total = 1
    for x in nest.loops:
        extent = as_extent(x.hi)
        total *= extent if isinstance(extent, int) else 1
    inner = 1
    for r in acc.reductions(nest):
        for s in r.src:
            for axis, e in s.free:
                if axis in r.attr[1] and isinstance(e, int):
                    inner = max(inner, e)
    return total * inner
