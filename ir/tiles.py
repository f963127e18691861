"""One nest in, the ways to traverse it on a CPU out: register tiles, lane reductions, copies.

A nest gets a vector of lanes along the axis that memory likes best, some vectors side by side,
some rows. A nest that only reduces puts the lanes on the reduced axis. What the lanes would have
to gather is packed once (constants) or copied to scratch (the rest).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from autosched.ir import access as acc
from autosched.ir.access import Access
from autosched.ir.extent import as_extent, as_node, ext_cdiv, ext_mul
from autosched.ir.loops import Nest, updates_itself
from autosched.ir.node import Extent, Node, walk
from autosched.ir.ops import eq, knob
from autosched.ir.rules.action import Action, act
from autosched.ir.rules.place import MAX_PACK_GROWTH
from autosched.ir.schedule import Knob
from autosched.ir.target import Target

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)
VECTORS = (1, 2, 3, 4, 6)
PARTIALS = (1, 2, 4, 8)
TRIAL_EXTENT = 8  # the length of a loop whose extent is open


@dataclass(frozen=True)
class Tile:
    """How one nest is traversed: actions, knobs and constraints of its own."""

    actions: tuple[Action, ...]
    knobs: tuple[Knob, ...] = ()
    constraints: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a nest stands: shared loops above it, outermost first; how its own outer loops are
    bound; the loops whose length is a knob of the sketch, and those over such blocks with how
    many there are."""

    above: tuple[str, ...] = ()
    outer: str = "grid"
    blocks: Mapping[str, Knob] | None = None
    order: str = "columns"
    counts: Mapping[str, Extent] | None = None

    @property
    def inner(self) -> str:
        return "serial" if self.above else self.outer

    def block(self, axis: str) -> Knob | None:
        return (self.blocks or {}).get(axis)

    def extents(self, nest: Nest) -> dict[str, Extent]:
        """The length of each of a nest's own loops; those over blocks are as open as these."""
        open_ = self.counts or {}
        return {x.axis: open_.get(x.axis, as_extent(x.hi)) for x in nest.loops}


def tiles(nest: Nest, place: Place, target: Target) -> list[Tile]:
    """The ways to traverse a nest, the most promising first."""
    loads = acc.loads(nest)
    if not acc.reductions(nest):
        return [_map_tile(nest, loads, place, target)]
    lane = lane_axis(nest, place, target)
    reduced = _lane_reduce(nest)
    gathers = [a for _, a in loads if lane and a.stride(lane) not in (0, 1) and not a.is_weight]
    # Gathering pays only where rows share what was gathered.
    shares = any(x.axis != lane and as_extent(x.hi) != 1 for x in nest.loops)
    ways: list[Tile] = []
    if lane is not None and (shares or not gathers or reduced is None):
        ways.append(_register_tile(nest, lane, loads, place, target))
    if reduced is not None and (gathers or not ways):
        ways.append(_reduce_tile(nest, reduced, place, target))
    return ways or [scalar_tile(nest, place)]


def scalar_tile(nest: Nest, place: Place) -> Tile:
    """The loops as they are, one element at a time: right for any nest."""
    loops = [f"{x.axis}:{place.inner}" for x in nest.loops]
    return Tile((act("bind", nest=nest.name, loops=loops),) if loops else ())


def lane_axis(nest: Nest, place: Place, target: Target) -> str | None:
    """The loop along which most accesses are contiguous or constant; None where none can be."""
    loads = [a for _, a in acc.loads(nest)]
    best, least = None, None
    to = acc.stored(nest)
    for loop in nest.loops:
        extent = _shortest(loop.axis, place.extents(nest)[loop.axis], place)
        if extent < 2:
            continue
        cost = 0 if to.stride(loop.axis) == 1 else 4
        for a in loads:
            stride = a.stride(loop.axis)
            if stride not in (0, 1):
                cost += 2 if a.is_weight else 16
        if all(a.stride(loop.axis) == 0 for a in loads) and to.stride(loop.axis) != 1:
            cost += 16
        if extent < 8:
            cost += 8
        if least is None or cost <= least:
            best, least = loop.axis, cost
    return best


def _shortest(axis: str, extent: Extent, place: Place) -> int:
    """The least length of a loop under any choice of the knobs."""
    block = place.block(axis)
    if block is not None:
        return min(block.domain)
    return extent if isinstance(extent, int) else 1


def _longest(axis: str, extent: Extent, place: Place) -> int:
    block = place.block(axis)
    if block is not None:
        return max(block.domain)
    return extent if isinstance(extent, int) else TRIAL_EXTENT


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
    nest: Nest, lane: str, loads: Sequence[tuple[Node, Access]], place: Place, target: Target
) -> Tile:
    """Lanes along `lane`, vectors side by side, rows along the longest other loop."""
    name = nest.name
    extents = place.extents(nest)
    lanes = _nest_lanes(nest, lane, extents[lane], place, target)
    others = [x.axis for x in nest.loops if x.axis != lane]
    row = _row_axis(others, extents, [a for _, a in loads])
    count = sum(len(r.types) for r in acc.reductions(nest))
    cols = _size_knob(nest, "cols", lane, tuple(v * lanes for v in VECTORS), lanes, extents, place)
    actions = [*_lane_splits(nest, lane, lanes, cols.knob)]
    knobs, constraints = [cols.knob], list(cols.constraints)
    vectors = ext_cdiv(knob(cols.knob.name), lanes)
    rows: int | Node = 1
    if row is not None:
        size = _size_knob(nest, "rows", row, ROWS, 1, extents, place)
        knobs.append(size.knob)
        constraints.extend(size.constraints)
        rows = knob(size.knob.name)
        actions.append(_row_split(nest, row, size.knob))
    operands = ext_mul(vectors, count)
    used = as_node(ext_mul(ext_mul(rows, vectors), count)) + as_node(operands) + 1
    constraints.append(used <= target.registers)
    outer = [f"{lane}.{name}o", *([f"{row}.{name}o"] if row else [])]
    rest = [a for a in others if a != row]
    walk_ = outer if place.order == "columns" else outer[::-1]
    loops = [f"{a}:{place.inner}" for a in (*rest, *walk_)]
    loops += [f"{row}.{name}u:unroll"] if row else []
    loops += [f"{lane}.{name}u:unroll", f"{lane}.{name}l:lane"]
    actions.append(act("bind", nest=name, loops=loops))
    actions.extend(_copies(nest, lane, loads, place))
    return Tile(tuple(actions), tuple(knobs), tuple(constraints))


def _lane_splits(nest: Nest, lane: str, lanes: int, cols: Knob) -> tuple[Action, Action]:
    """`lane` into blocks of the knob's columns, those into vectors and lanes."""
    name = nest.name
    return (
        act("split", nest=name, axis=lane, size=f"${cols.name}", tail=_tail(nest),
            into=[f"{lane}.{name}o", f"{lane}.{name}r"]),
        act("split", nest=name, axis=f"{lane}.{name}r", size=lanes, tail="exact",
            into=[f"{lane}.{name}u", f"{lane}.{name}l"]),
    )  # fmt: skip


def _row_split(nest: Nest, row: str, rows: Knob) -> Action:
    name = nest.name
    return act("split", nest=name, axis=row, size=f"${rows.name}", tail=_tail(nest),
               into=[f"{row}.{name}o", f"{row}.{name}u"])  # fmt: skip


def _tail(nest: Nest) -> str:
    return "exact" if updates_itself(nest) else "overlap"


@dataclass(frozen=True)
class _Size:
    knob: Knob
    constraints: tuple[Node, ...]


def _size_knob(
    nest: Nest,
    what: str,
    axis: str,
    wanted: Sequence[int],
    least: int,
    extents: Mapping[str, Extent],
    place: Place,
) -> _Size:
    """The knob for the size of a block of `axis`. A nest that updates a buffer in place may do
    no element twice, so that its blocks must divide the axis."""
    name = f"{nest.name}.{what}"
    exact = updates_itself(nest)
    sizes = sizes_of(wanted, _longest(axis, extents[axis], place), least)
    block = place.block(axis)
    if block is not None:
        whole = (eq(knob(block.name) % knob(name), 0),) if exact else ()
        return _Size(Knob(name, sizes), (knob(name) <= knob(block.name), *whole))
    extent = extents[axis]
    if isinstance(extent, Node):
        whole = (eq(extent % knob(name), 0),) if exact else ()
        return _Size(Knob(name, sizes), (knob(name) <= extent, *whole))
    if exact:
        sizes = tuple(s for s in sizes if extent % s == 0) or (least,)
    return _Size(Knob(name, sizes), ())


def _copies(
    nest: Nest, lane: str, loads: Sequence[tuple[Node, Access]], place: Place
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
        if mine[0].is_weight and big and _direct(nest, handle) and _pays(handle, loads):
            out.append(act("place", nest=nest.name, operand=operand, home="packed"))
        elif any(a.stride(lane) not in (0, 1) for a in mine) and not mine[0].is_weight:
            level = _level(mine, place.above)
            if level is not None and place.outer == "serial" and _direct(nest, handle):
                out.append(
                    act("place", nest=nest.name, operand=operand, home="scratch", loop=level)
                )
                out.extend(_vector_copy(nest, lane, operand, mine, place.above))
    return out


def _pays(handle: Node, loads: Sequence[tuple[Node, Access]]) -> bool:
    """Whether a pack holds elements half as often as packs may: the rest is for the rounding of
    tiles. Words of several codes and scales of groups are read at many places each, and stay."""
    most = MAX_PACK_GROWTH * max(prod(acc.extents_of(handle)), 1) // 2
    read = (
        [e for a, e in node.axes if access.stride(a) != 0]
        for node, access in loads if access.handle is handle
    )  # fmt: skip
    return all(prod(e for e in extents if isinstance(e, int)) <= most for extents in read)


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


def _reduce_tile(nest: Nest, reduced: tuple[str, int], place: Place, target: Target) -> Tile:
    """Lanes along the reduced axis, several partial results a row, several rows."""
    name = nest.name
    axis, extent = reduced
    lanes = _lanes(extent, target)
    parts = tuple(p for p in PARTIALS if p * lanes <= extent)
    knobs = [Knob(f"{name}.partials", parts, "vectors")]
    extents = place.extents(nest)
    row = _row_axis(list(extents), extents, [])
    actions: list[Action] = []
    constraints: list[Node] = []
    rows: int | Node = 1
    if row is not None:
        size = _size_knob(nest, "rows", row, (1, 2, 4, 8), 1, extents, place)
        knobs.append(size.knob)
        constraints.extend(size.constraints)
        rows = knob(size.knob.name)
        actions.append(_row_split(nest, row, size.knob))
    used = as_node(ext_mul(rows, knob(f"{name}.partials"))) * len(acc.reductions(nest)) + 2
    constraints.append(used <= target.registers)
    actions.append(act("rfactor", nest=name, axis=axis, lanes=lanes, unroll=f"${name}.partials"))
    inner = place.inner
    loops = [f"{a}:{inner}" for a in extents if a != row]
    loops += [f"{row}.{name}o:{inner}", f"{row}.{name}u:unroll"] if row else []
    if loops:
        actions.append(act("bind", nest=name, loops=loops))
    return Tile(tuple(actions), tuple(knobs), tuple(constraints))


def _map_tile(
    nest: Nest, loads: Sequence[tuple[Node, Access]], place: Place, target: Target
) -> Tile:
    """Lanes along the axis that memory likes best; the loop over vectors stays in the task."""
    lane = lane_axis(nest, place, target)
    if lane is None:
        return scalar_tile(nest, place)
    name = nest.name
    extents = place.extents(nest)
    lanes = _nest_lanes(nest, lane, extents[lane], place, target)
    wanted = tuple(v * lanes for v in (1, 2, 4, 8))
    cols = _size_knob(nest, "cols", lane, wanted, lanes, extents, place)
    others = [x.axis for x in nest.loops if x.axis != lane]
    last = "serial" if place.above or others else place.outer
    loops = [f"{a}:{place.inner}" for a in others] + [f"{lane}.{name}o:{last}"]
    loops += [f"{lane}.{name}u:unroll", f"{lane}.{name}l:lane"]
    actions = (*_lane_splits(nest, lane, lanes, cols.knob), act("bind", nest=name, loops=loops))
    return Tile(actions, (cols.knob,), cols.constraints)


# ---- sizes -------------------------------------------------------------------------------------


def _row_axis(
    others: Sequence[str], extents: Mapping[str, Extent], loads: Sequence[Access]
) -> str | None:
    """The loop to unroll: the longest one; among equals the one that most operands do without."""
    best, key = None, (1, -1)
    for axis in others:
        extent = extents[axis]
        length = extent if isinstance(extent, int) else TRIAL_EXTENT
        mine = (min(length, 16), sum(a.stride(axis) == 0 for a in loads))
        if length > 1 and mine > key:
            best, key = axis, mine
    return best


def _lanes(extent: int, target: Target) -> int:
    """The largest power of two that neither the vector nor the axis exceeds."""
    lanes = 1
    while lanes * 2 <= min(extent, target.lanes):
        lanes *= 2
    return lanes


def _nest_lanes(nest: Nest, lane: str, extent: Extent, place: Place, target: Target) -> int:
    lanes = _lanes(_shortest(lane, extent, place), target)
    block = place.block(lane)
    lengths = [extent] if block is None else block.domain
    if updates_itself(nest):
        while any(isinstance(n, int) and n % lanes for n in lengths):
            lanes //= 2
    return lanes


def sizes_of(wanted: Sequence[int], limit: int, least: int) -> tuple[int, ...]:
    """The wanted sizes that fit, or the least one."""
    fitting = tuple(w for w in wanted if w <= limit)
    return fitting or (min(least, limit),)
