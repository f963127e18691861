"""Sketches for a target that computes on tiles: an algebra program in, structures with open sizes.

One recipe for every program. Values that are dear and read more often than once are kept in a
kernel of their own, or not; chains of reduces over one axis run in one pass over its blocks, or
not. Within a kernel the axes are told apart by what contractions do with them: an axis of both
operands is a point of the grid, an axis of one operand is cut into blocks, a reduced axis is
walked in blocks or taken whole. Without a contraction, the axis that is contiguous in memory and
one more are blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

from autosched.ir.block_axes import power_of_two
from autosched.ir.elsewhere import moved_states, read_elsewhere
from autosched.ir.extent import as_node, ext_add, ext_mul, ext_product
from autosched.ir.node import Extent, Node, Output, Program, walk
from autosched.ir.ops import kernel_facts
from autosched.ir.rules import cascade, exp2, inline, skip, tile
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.scalar import ITEMSIZE
from autosched.ir.schedule import Knob, Sketch, run_actions
from autosched.ir.target import Target

MATRIX_BLOCKS = (16, 32, 64, 128, 256)
STEP_BLOCKS = (16, 32, 64, 128)  # elements of a reduced axis between two loads
ROW_BLOCKS = (1, 2, 4, 8, 16, 32, 64)
LINE_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# Of an axis that one pass over a chain of reduces walks: with a contraction in it, and without.
PASS_BLOCKS, PASS_LINES = (32, 64, 128), (512, 2048, 8192)
WHOLE = 256  # elements of a matrix axis that stay in one box
LONGEST_SIDE = 512  # of one whose rows are reduced, too: cut, each block would compute all of it
LONG_LINE = 16384  # elements of a row that stay in one box
REGISTER_BYTES = 4 * 255  # of one thread
MAX_LIVE = 2 / 3  # share of the registers that boxes may take; the rest is for addresses
MIN_DOT = 16


def gpu_sketches(program: Program, target: Target) -> tuple[Sketch, ...]:
    """The sketches of an algebra program, those with the fewest passes first."""
    out: dict[tuple[Action, ...], Sketch] = {}
    heads: list[tuple[str, list[Action], Program]] = []
    first = list(exp2.propose(program, target))
    program = run_or_same(program, first)
    for pass_ in passes(program):
        if _fits_a_line(program, pass_["axis"]):
            continue
        cascaded = cascade.apply(program, pass_)
        if not isinstance(cascaded, Illegal):
            heads.append((f"onepass{pass_['block']}.", [*first, pass_], cascaded))
    heads.append(("", first, program))
    for prefix, head, start in heads:
        for sketch in _of_program(start, prefix, head, target):
            out.setdefault(sketch.actions, sketch)
    return tuple(out.values())


def run_or_same(program: Program, actions: Sequence[Action]) -> Program:
    made = run_actions(program, tuple(actions))
    assert not isinstance(made, Illegal), made
    return made


def passes(program: Program) -> list[Action]:
    """Every chain of reduces over one axis that is longer than a block, in blocks of each size."""
    axes: dict[str, tuple[int, bool]] = {}
    for node in walk(*program.body):
        if node.op == "reduce" and len(node.attr[1]) == 1:
            (axis,) = node.attr[1]
            extent = next(e for s in node.src for a, e in s.free if a == axis)
            chain = cascade.chained(program, axis)
            if isinstance(extent, int) and chain:
                dots = any(r.op == "reduce" and _product(r) for r in walk(*chain))
                axes[axis] = (extent, dots)
    return [
        act("cascade", axis=axis, block=block)
        for axis, (extent, dots) in axes.items()
        for block in (PASS_BLOCKS if dots else PASS_LINES)
        if block < extent
    ]


def _fits_a_line(program: Program, axis: str) -> bool:
    """Whether the values along the axis are stored too, and a box holds all of them: then they
    are read once and need no pass of their own."""
    return any(
        o.extents[o.dims.index(axis)] <= LONG_LINE
        for o in program.outputs
        if axis in o.dims
    )


def _of_program(
    program: Program, prefix: str, head: list[Action], target: Target
) -> Iterator[Sketch]:
    must = read_elsewhere(program)
    single = list(_with_kept(program, must, prefix, head, target))
    yield from single
    kept = _apart(inline.dear(program))
    # Several launches pay where one would do a contraction again and again, or can't be.
    if set(kept) - set(must) and (not single or _repeats(program)):
        yield from _with_kept(program, (*must, *kept), f"{prefix}apart.", head, target)


def _with_kept(
    program: Program, wanted: Sequence[Node], name: str, head: list[Action], target: Target
) -> Iterator[Sketch]:
    number = {n: k for k, n in enumerate(tile.candidates(program))}
    keep = tuple(sorted({number[n] for n in wanted}))
    kept = [n for n in walk(*program.body) if n in set(wanted)]
    groups = tile.stages(program, kept)
    ways = [_ways(group, set(kept), n, target) for n, group in enumerate(groups)]
    for k, combo in enumerate(_together(ways)):
        for precision in _precisions(program, target):
            title = f"{name}{k}{precision}"
            sketch = _sketch(title, program, head, keep, combo, precision, target)
            if sketch is None:
                continue
            yield sketch
            uneven = _uneven_axes(program, sketch, len(head))
            if uneven:
                longest = tuple(_longest_first(w, uneven) for w in combo)
                again = _sketch(f"{title}.longest", program, head, keep, longest, precision, target)
                if again is not None:
                    yield again


def _uneven_axes(program: Program, sketch: Sketch, done: int) -> set[str]:
    """The blocked axes along which a loop of the kernels gets longer."""
    opened = run_actions(program, sketch.actions[done:])
    assert not isinstance(opened, Illegal)
    ends = [n.src[1] for n in walk(*opened.body) if n.op == "fold"]
    return {a.removesuffix(".o") for end in ends for a in end.names if a.endswith(".o")}


def _longest_first(way: Way, uneven: set[str]) -> Way:
    """The way with blocks of an uneven axis outermost, the last first: what takes longest does
    not start last."""
    axes, *rest = way.plan
    assert isinstance(axes, tuple)
    moved = [(a, size, tile.REVERSE) for a, size, *how in axes if a in uneven and not how]
    kept = [x for x in axes if x[0] not in {m[0] for m in moved}]
    return Way(((*moved, *kept), *rest), way.knobs)


def _apart(dear: Sequence[Node]) -> tuple[Node, ...]:
    """Of the values that are dear to repeat, those that hold a contraction: the rest is cheap
    beside a launch and a round trip through memory. What a loop's states make stays in the loop."""
    return tuple(
        n
        for n in dear
        if not n.carries
        and any(x.op == "reduce" and _product(x) is not None for x in walk(n))
    )


def _repeats(program: Program) -> bool:
    """Whether a kernel for everything does a contraction once for every block of an axis."""
    axes = _axes_of(program.body, set())
    extents = {a: int(str(e)) for o in program.outputs for a, e in zip(o.dims, o.extents)}
    return any(extents.get(a, 0) > WHOLE for a in axes.recomputed & axes.left)


def _together(ways: Sequence[list[Way]]) -> Iterator[tuple[Way, ...]]:
    """Every way of a single kernel; of several kernels the ways side by side, not all products."""
    if len(ways) == 1:
        yield from product(*ways)
        return
    for k in range(max(map(len, ways))):
        yield tuple(w[min(k, len(w) - 1)] for w in ways)


def _precisions(program: Program, target: Target) -> tuple[str, ...]:
    wide = any(n.op == "input" and n.dtype == "float32" for n in walk(*program.body))
    return ("tf32",) if wide and "tf32" in target.features else ("",)


# ---- one kernel --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How one kernel is cut: its plan (see `tile`) and the knobs that it names."""

    plan: tuple[object, ...]
    knobs: tuple[Knob, ...]


@dataclass
class _Axes:
    """What the values of a kernel do with their axes."""

    left: set[str] = field(default_factory=set)  # of one operand of a contraction alone
    shared: set[str] = field(default_factory=set)  # of both operands
    reduced: dict[str, int] = field(default_factory=dict)
    contracted: set[str] = field(default_factory=set)
    recomputed: set[str] = field(default_factory=set)  # some contraction does without the axis
    states: set[str] = field(default_factory=set)  # of folds
    steps: set[str] = field(default_factory=set)  # along which folds run
    inside: set[str] = field(default_factory=set)  # reduced in the body of a fold
    scanned: dict[str, bool] = field(default_factory=dict)  # and whether from the end
    moved: set[str] = field(default_factory=set)  # states are read at other places along them
    ragged: set[str] = field(default_factory=set)  # the bounds of a fold vary along them


def _axes_of(values: Sequence[Node], stop: set[Node]) -> _Axes:
    out = _Axes()
    below = list(_walk(values, stop))
    bodies = {n for f in below if f.op == "fold" for n in walk(*f.src)}
    contractions: list[set[str]] = []
    for node in below:
        if node.op == "fold":
            out.steps.add(node.attr[0])
            out.moved |= moved_states(node)
            out.ragged |= {a for b in node.src[: 2 * node.attr[2]] for a in b.names}
            out.states |= {a for t in node.types[: len(node.attr[1])] for a, _ in t.axes}
        if node.op == "scan":
            out.scanned[node.attr[1]] = node.attr[3]
        if node.op != "reduce":
            continue
        for s in node.src:
            out.reduced |= {a: int(str(e)) for a, e in s.free if a in node.attr[1]}
        if node in bodies:
            out.inside |= set(node.attr[1])
        pair = _product(node)
        if pair is None:
            continue
        a, b = pair
        out.contracted |= set(node.attr[1])
        out.left |= a ^ b
        out.shared |= a & b
        contractions.append(a | b)
    out.left -= out.shared
    for axes in contractions:
        out.recomputed |= {a for c in contractions for a in c} - axes
    return out


def _walk(values: Sequence[Node], stop: set[Node]) -> Iterator[Node]:
    """Nodes below the values, down to those that have a kernel of their own."""
    seen: set[Node] = set()
    todo = list(values)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if node not in stop or node in values:
            todo.extend(node.src)


def _product(node: Node) -> tuple[set[str], set[str]] | None:
    """The axes of the two operands of a sum of products, without those that are summed."""
    if node.attr[0] != "sum":
        return None
    summed = set(node.attr[1])
    body = node.src[0]
    while body.op == "map" and body.attr[0] == "where" and body.src[2].op == "const":
        body = body.src[1]
    factors = [f for f in _factors(body) if summed & set(f.names)]
    groups: list[set[str]] = []
    for factor in factors:
        axes = set(factor.names) - summed
        if axes not in groups:
            groups.append(axes)
    # Of several factors, those over a subset of another's axes belong to it.
    groups = [g for g in groups if not any(g < other for other in groups)]
    return (groups[0], groups[1]) if len(groups) == 2 else None


def _factors(node: Node) -> list[Node]:
    if node.op == "map" and (node.attr[0] == "mul" or node.attr[0].startswith("cast:")):
        return [f for s in node.src for f in _factors(s)]
    return [node]


def _ways(
    group: Sequence[tuple[Output, Node]], kept: set[Node], number: int, target: Target
) -> list[Way]:
    values = [v for _, v in group]
    axes = _axes_of(values, kept)
    dims = max((o.dims for o, _ in group), key=len)
    extents = {a: int(str(e)) for o, _ in group for a, e in zip(o.dims, o.extents)}
    dims = (*dims, *(a for a in extents if a not in dims))
    # What one pass has walked is walked again, block by block, where its results are stored.
    again = {a for a in dims if any(s.startswith(f"{a}.") for s in axes.steps)} - {*axes.reduced}
    if axes.contracted & set(axes.reduced):
        cut = [c for c in (_matrix_cut(dims, extents, axes, big) for big in (True, False)) if c]
    else:
        cut = [_line_cut(dims, extents, axes)]
    # Reduces of reduces, all of them whole, would make one box of all their axes.
    crowded = prod(power_of_two(e) for e in axes.reduced.values()) > LONG_LINE
    ways = []
    for sizes in {tuple(c.items()): c for c in cut}.values():
        knobs: list[Knob] = []
        walked = dict.fromkeys(again, tile.SERIAL)
        walked |= {a: tile.BACKWARD if back else tile.SERIAL for a, back in axes.scanned.items()}
        plan_axes: list[list[int | str]] = []
        for a in dims:
            size = _knob(knobs, f"k{number}.{a}", sizes[a])
            serial = a in walked and size not in (0, 1, tile.STEP)
            plan_axes.append([a, size, *([walked[a]] if serial else [])])
        reduces = [
            [a, _knob(knobs, f"k{number}.sum.{a}", _reduce_sizes(a, e, axes, crowded))]
            for a, e in sorted(axes.reduced.items())
        ]
        facts = [
            ["warps", _knob(knobs, f"k{number}.warps", _warps(axes))],
            ["stages", _knob(knobs, f"k{number}.stages", _stages(axes, reduces))],
        ]
        if axes.contracted and "tma" in target.features:
            facts.append(["descriptors", _knob(knobs, f"k{number}.descriptors", (0, 1))])
        orders = [plan_axes]
        blocks = [x for x in plan_axes if isinstance(x[1], str) and x[1].startswith("$")]
        if axes.contracted and len(blocks) > 1:
            first, last = (plan_axes.index(x) for x in (blocks[0], blocks[-1]))
            swapped = list(plan_axes)
            swapped[first], swapped[last] = swapped[last], swapped[first]
            orders.append(swapped)
        launches = [facts]
        if axes.contracted and not axes.steps and len(blocks) > 1:
            launches.append([*facts, ["persistent", 1]])
        ways += [
            Way(tuple(tuple(map(tuple, part)) for part in (order, reduces, launch)), tuple(knobs))
            for launch in launches
            for order in orders
        ]
    return ways


Sizes = tuple[int, ...] | int | str


def _knob(knobs: list[Knob], name: str, sizes: Sizes) -> int | str:
    """A size of the plan: a number, or the knob over several."""
    if isinstance(sizes, (int, str)):
        return sizes
    if len(sizes) == 1:
        return sizes[0]
    knobs.append(Knob(name, sizes))
    return f"${name}"


def _matrix_cut(
    dims: Sequence[str], extents: dict[str, int], axes: _Axes, blocked: bool
) -> dict[str, Sizes]:
    """Blocks along one axis of each operand, points along what both have.

    blocked: an axis of fewer elements than a tensor core's tile is a block all the same; else a
    point, and the contraction a sum of products.
    """
    free = [a for a in dims if a in axes.left and a not in axes.shared]
    sides = _sides(free, extents)
    out: dict[str, Sizes] = {}
    for axis in dims:
        extent = extents[axis]
        if axis in axes.steps:
            out[axis] = tile.STEP
        elif axis in axes.scanned:
            out[axis] = 0 if extent <= LONG_LINE else _up_to(LINE_BLOCKS, extent)
        elif axis in axes.ragged:
            out[axis] = 1
        elif _stays_whole(axis, extent, axes):
            out[axis] = 0
        elif axis in sides and extent > 1 and (blocked or extent >= MIN_DOT):
            out[axis] = _up_to(MATRIX_BLOCKS, extent)
        else:
            out[axis] = 1
    return out


def _stays_whole(axis: str, extent: int, axes: _Axes) -> bool:
    """Whether an axis is read at other places too, or cutting it would repeat a contraction."""
    if axis in axes.moved or (axis in axes.states and axis in axes.inside):
        return True
    if axis in axes.left:
        most = LONGEST_SIDE if axis in axes.reduced else WHOLE if axis in axes.recomputed else 0
        return extent <= most
    return axis in axes.reduced


def _sides(free: Sequence[str], extents: dict[str, int]) -> set[str]:
    """The last axis and the longest of the others: one for rows, one for columns."""
    if not free:
        return set()
    last = free[-1]
    others = [a for a in free if a != last]
    return {last, *([max(others, key=lambda a: extents[a])] if others else [])}


def _line_cut(dims: Sequence[str], extents: dict[str, int], axes: _Axes) -> dict[str, Sizes]:
    """A box along the contiguous axis, or along what is reduced, and some rows of another."""
    out: dict[str, Sizes] = {}
    for axis in dims:
        extent = extents[axis]
        if axis in axes.steps:
            out[axis] = tile.STEP
        elif axis in axes.ragged:
            out[axis] = 1
        elif axis in axes.moved:
            out[axis] = 0
        elif axis in axes.reduced or axis in axes.scanned:
            out[axis] = 0 if extent <= LONG_LINE else _up_to(LINE_BLOCKS, extent)
        elif axis == dims[-1]:
            short = power_of_two(extent) < LINE_BLOCKS[0]
            out[axis] = power_of_two(extent) if short else _up_to(LINE_BLOCKS, extent)
        else:
            out[axis] = 1
    rows = [a for a in dims if out[a] == 1 and extents[a] > 1 and a not in axes.ragged]
    if rows:
        longest = max(rows, key=lambda a: extents[a])
        out[longest] = _up_to(ROW_BLOCKS, extents[longest])
    return out


def _reduce_sizes(axis: str, extent: int, axes: _Axes, crowded: bool) -> Sizes:
    if axis in axes.contracted and axis not in axes.inside:
        if extent <= MIN_DOT:
            return 0
        return _up_to(STEP_BLOCKS, extent)
    if axis in axes.contracted:
        return 0 if extent <= WHOLE else _up_to(STEP_BLOCKS, extent)
    if extent > LONG_LINE:
        return _up_to(LINE_BLOCKS, extent)
    return _up_to(STEP_BLOCKS, extent) if crowded and extent > MIN_DOT else 0


def _up_to(sizes: Sequence[int], extent: int) -> Sizes:
    """The sizes that the axis fills, with the first that covers it."""
    cover = power_of_two(extent)
    fits = tuple(s for s in sizes if s <= cover)
    return fits or (sizes[0],)


def _warps(axes: _Axes) -> tuple[int, ...]:
    return (2, 4, 8) if axes.contracted else (1, 2, 4, 8, 16)


def _stages(axes: _Axes, reduces: Sequence[Sequence[object]]) -> tuple[int, ...]:
    looped = axes.steps or any(size != 0 for _, size in reduces)
    return (2, 3, 4, 5) if looped and axes.contracted else (2,)


# ---- constraints -------------------------------------------------------------------------------


def _sketch(
    name: str,
    program: Program,
    head: list[Action],
    keep: Sequence[int],
    combo: Sequence[Way],
    precision: str,
    target: Target,
) -> Sketch | None:
    plans = tuple(w.plan for w in combo)
    action = act("tile", keep=tuple(keep), plans=plans, narrow=True, precision=precision)
    opened = run_actions(program, [action])
    if isinstance(opened, Illegal):
        return None
    actions = [*head, action]
    for shorter in skip.propose(opened, target):
        made = run_actions(opened, [shorter])
        assert not isinstance(made, Illegal), made
        actions, opened = [*actions, shorter], made
    knobs = tuple(k for w in combo for k in w.knobs)
    limits = [c for k in opened.body for c in resource_limits(k, target)]
    unique = tuple(sorted({c for c in limits if c.op != "const"}, key=repr))
    if any(c.op == "const" and not c.attr[0] for c in limits):
        return None
    return Sketch(name, tuple(actions), knobs, unique)


def resource_limits(kernel: Node, target: Target) -> list[Node]:
    """What a kernel's boxes must obey: registers of its threads, shared memory of its block."""
    facts = kernel_facts(kernel)
    threads = ext_mul(facts.get("warps", 4), target.lanes)
    nodes = list(walk(*kernel.src))
    loops = _loop_axes(nodes)
    limits: list[Node] = []
    room = ext_mul(threads, int(REGISTER_BYTES * MAX_LIVE))
    for held in _register_bytes(nodes, loops):
        limits.append(as_node(held) <= as_node(room))
    stages = facts.get("stages", 2)
    kept: Extent = 0
    for store in (n for n in nodes if n.op == "store"):
        # A store through a descriptor leaves from shared memory.
        kept = ext_add(kept, ext_mul(_bytes(store.src[1], loops), facts.get("descriptors", 0)))
    for node in nodes:
        if node.op == "fold":
            staged = ext_mul(_staged_bytes(node, loops), stages)
            if staged != 0:
                limits.append(as_node(ext_add(staged, kept)) <= target.l1_bytes)
    for node in nodes:
        if node.op == "dot":
            operands = [_bytes(s, loops) for s in node.src]
            limits.append(as_node(ext_add(*operands)) <= target.l1_bytes)
    return limits


def _loop_axes(nodes: Sequence[Node]) -> set[str]:
    """Axes that are coordinates of loops, not of boxes."""
    return {n.attr[0] for n in nodes if n.op in ("forall", "fold")}


def _bytes(value: Node, loops: set[str]) -> Extent:
    sizes = ext_product([e for a, e in value.axes if a not in loops])
    return ext_mul(sizes, max(ITEMSIZE[value.dtype], 1))


def _register_bytes(nodes: Sequence[Node], loops: set[str]) -> list[Extent]:
    """The states of each fold together, and every box that a dot or a reduce makes or reads."""
    out: list[Extent] = []
    in_dots = {s for n in nodes if n.op == "dot" for s in n.src}
    for node in nodes:
        if node.op == "fold":
            total: Extent = 0
            for kind in node.types[: len(node.attr[1])]:
                boxes = [e for a, e in kind.axes if a not in loops]
                total = ext_add(total, ext_mul(ext_product(boxes), ITEMSIZE[kind.dtype]))
            dots = [n for n in walk(*node.src) if n.op == "dot" and n.carries == frozenset()]
            widest = [_bytes(d, loops) for d in dots if node.attr[0] in d.names]
            # A product that feeds another one is live beside the states.
            inner = [w for d, w in zip(dots, widest) if any(d in walk(s) for s in in_dots)]
            for w in inner[:1]:
                total = ext_add(total, w)
            out.append(total)
        elif node.op == "reduce":
            out += [_bytes(s, loops) for s in node.src]
        elif node.op == "dot":
            out.append(_bytes(node, loops))
        elif node.op == "store":
            out.append(_bytes(node.src[1], loops))
    return [o for o in out if isinstance(o, Node) or o > 0]


def _staged_bytes(fold: Node, loops: set[str]) -> Extent:
    """Bytes of the boxes that dots of the loop read anew at each of its steps."""
    axis = fold.attr[0]
    total: Extent = 0
    seen: set[Node] = set()
    for node in walk(*fold.src[2 * fold.attr[2] :]):
        if node.op != "dot":
            continue
        for load in (n for s in node.src for n in walk(s) if n.op == "load"):
            if load not in seen and axis in load.names:
                seen.add(load)
                total = ext_add(total, _bytes(load, loops))
    return total

