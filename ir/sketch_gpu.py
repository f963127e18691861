"""Sketches for a target that computes on tiles: an algebra program in, structures with open sizes.

One recipe for every program. Values that are dear and read more often than once are kept in a
kernel of their own, or not; chains of reduces over one axis run in one pass over its blocks, or
not. Within a kernel the axes are told apart by what contractions do with them: an axis of both
operands is a point of the grid, an axis of one operand is cut into blocks, a reduced axis is
walked in blocks or taken whole. Without a contraction, the axis that is contiguous in memory and
one more are blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from types import ModuleType

from autosched.ir.block_axes import power_of_two
from autosched.ir.elsewhere import read_elsewhere
from autosched.ir.gpu_axes import KernelAxes, below, factors_of, kernel_axes, product_of
from autosched.ir.gpu_cuts import (
    LONG_LINE,
    LONGEST_SIDE,
    WHOLE,
    knob_over,
    line_cut,
    matrix_cut,
    packed_sizes,
    reduce_sizes,
)
from autosched.ir.gpu_facts import FURTHER, LAUNCHES, Traits
from autosched.ir.gpu_limits import resource_limits
from autosched.ir.node import Node, Output, Program, walk
from autosched.ir.packing import in_outputs, packable
from autosched.ir.products import EIGHT_BITS
from autosched.ir.rules import cascade, exp2, inline, skip, stagger, tile
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.schedule import Knob, Sketch, run_actions
from autosched.ir.target import Target

# Of a table that is made to see whether it is empty.
FEW_ROWS = 10_000
FALLING_GROUPS = (0, 4, 8, 16)  # of the loop around blocks of which the last take longest
# Loops over the blocks that a mask lets through; where more follow each other, one that tests all
# blocks may be the shorter way, for each loop fills and drains a pipeline.
FOLLOWING = 2
# Of an axis that one pass over a chain of reduces walks: with a contraction in it, and without.
PASS_BLOCKS, PASS_LINES = (32, 64, 128), (512, 2048, 8192)


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
                dots = any(r.op == "reduce" and product_of(r) for r in walk(*chain))
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
    if set(kept) - set(must) and (not single or repeats(program)):
        yield from _with_kept(program, (*must, *kept), f"{prefix}apart.", head, target)
        fewer = _first(kept)
        if set(fewer) != set(kept):
            yield from _with_kept(program, (*must, *fewer), f"{prefix}fewer.", head, target)


def _with_kept(
    program: Program, wanted: Sequence[Node], name: str, head: list[Action], target: Target
) -> Iterator[Sketch]:
    number = {n: k for k, n in enumerate(tile.candidates(program))}
    keep = tuple(sorted({number[n] for n in wanted}))
    kept = [n for n in walk(*program.body) if n in set(wanted)]
    groups = tile.stages(program, kept)
    ways = [kernel_ways(group, set(kept), n, target) for n, group in enumerate(groups)]
    for k, combo in enumerate(_together(ways)):
        for precision in precisions(program, target):
            title = f"{name}{k}{precision}"
            sketch, whole = _sketch(title, program, head, keep, combo, precision, target), True
            if sketch is None and _hands_on(combo):
                # Such a loop can't be two: it tests the blocks that no test cuts as well.
                title, whole = f"{title}.tested", False
                sketch = _sketch(title, program, head, keep, combo, precision, target, (), whole)
            if sketch is None:
                continue
            yield sketch
            cuts = [(title, combo)]
            uneven = _uneven_axes(program, sketch, len(head))
            if uneven:
                cuts.append((f"{title}.longest", tuple(_longest_first(w, uneven) for w in combo)))
                falling = (_falling(w, uneven, n) for n, w in enumerate(combo))
                cuts.append((f"{title}.falling", tuple(falling)))
            for named, cut in cuts:
                for further in ((), (stagger,)):
                    if cut is not combo or (further and not _hands_on(combo)):
                        again = _sketch(
                            named, program, head, keep, cut, precision, target, further, whole
                        )
                        if again is not None:
                            yield again
            if whole and _most_loops(program, sketch, len(head)) > FOLLOWING:
                for further in ((), (stagger,)):
                    named = f"{title}.tested"
                    again = _sketch(
                        named, program, head, keep, combo, precision, target, further, False
                    )
                    if again is not None:
                        yield again


def _uneven_axes(program: Program, sketch: Sketch, done: int) -> set[str]:
    """The blocked axes along which a loop of the kernels gets longer."""
    opened = run_actions(program, sketch.actions[done:])
    assert not isinstance(opened, Illegal)
    ends = [n.src[1] for n in walk(*opened.body) if n.op == "fold"]
    return {a.removesuffix(".o") for end in ends for a in end.names if a.endswith(".o")}


def _most_loops(program: Program, sketch: Sketch, done: int) -> int:
    """Loops over one axis that follow each other in a kernel."""
    opened = run_actions(program, sketch.actions[done:])
    assert not isinstance(opened, Illegal)
    axes = [[n.attr[0] for n in walk(k) if n.op == "fold"] for k in opened.body]
    return max((found.count(a) for found in axes for a in found), default=0)


def _longest_first(way: Way, uneven: set[str]) -> Way:
    """The way with blocks of an uneven axis outermost, the last first: what takes longest does
    not start last."""
    axes, *rest = way.plan
    assert isinstance(axes, tuple)
    moved = [(a, size, tile.REVERSE) for a, size, *how in axes if a in uneven and not how]
    kept = [x for x in axes if x[0] not in {m[0] for m in moved}]
    return Way(((*moved, *kept), *rest), way.knobs)


def _falling(way: Way, uneven: set[str], number: int) -> Way:
    """The way with blocks of an uneven axis where they are, the last first, and the loop around
    them in groups: what takes longest starts first within a group, whose operands stay in the
    second level."""
    axes, reduces, facts = way.plan
    turned = tuple((a, size, tile.REVERSE) if a in uneven and not how else (a, size, *how)
                   for a, size, *how in axes)  # fmt: skip
    if turned == axes or any(name == "group" for name, _ in facts):
        return Way((turned, reduces, facts), way.knobs)
    knobs = list(way.knobs)
    group = knob_over(knobs, f"k{number}.group", FALLING_GROUPS)
    return Way((turned, reduces, (*facts, ("group", group))), tuple(knobs))


def _hands_on(combo: Sequence[Way]) -> bool:
    """Whether some warps load for others: no compiler takes such loops in another order, too."""
    return any(("specialise", 1) in facts for _, _, facts in (way.plan for way in combo))


def _apart(dear: Sequence[Node]) -> tuple[Node, ...]:
    """Of the values that are dear to repeat, those that hold a contraction: the rest is cheap
    beside a launch and a round trip through memory. What a loop's states make stays in the loop."""
    return tuple(
        n
        for n in dear
        if not n.carries
        and any(x.op == "reduce" and product_of(x) is not None for x in walk(n))
    )


def _first(kept: Sequence[Node]) -> tuple[Node, ...]:
    """Of kept values that hold contractions, those that do one themselves: what the others make of
    them is done where it is read."""
    out: list[Node] = []
    for value in kept:  # sources come first
        seen: set[Node] = set()
        todo = [value]
        while todo:
            node = todo.pop()
            if node not in seen and node not in out:
                seen.add(node)
                todo.extend(node.src)
        if any(n.op == "reduce" and product_of(n) is not None for n in seen):
            out.append(value)
    return tuple(out)


def repeats(program: Program) -> dict[str, str]:
    """{axis: why a kernel for everything does a contraction once for every block of it}."""
    axes = kernel_axes(program.body, set())
    extents = {a: int(str(e)) for o in program.outputs for a, e in zip(o.dims, o.extents)}
    rows = {a: e for a, e in extents.items() if a in axes.left & set(axes.reduced)}
    again = {a: e for a, e in extents.items() if a in axes.recomputed & axes.left}
    return {
        a: f"each block of {a} would contract anew what {does}: of {e} elements a box holds {most}"
        for group, most, does in ((again, WHOLE, "does not depend on it"),
                                  (rows, LONGEST_SIDE, "it is reduced with"))
        for a, e in group.items() if e > most
    }  # fmt: skip


def _together(ways: Sequence[list[Way]]) -> Iterator[tuple[Way, ...]]:
    """Every way of a single kernel; of several kernels the ways side by side, not all products."""
    if len(ways) == 1:
        yield from product(*ways)
        return
    for k in range(max(map(len, ways))):
        yield tuple(w[min(k, len(w) - 1)] for w in ways)


def precisions(program: Program, target: Target) -> tuple[str, ...]:
    """How contractions of float32 may be multiplied; empty: as the types say."""
    wide = any(n.op == "input" and n.dtype == "float32" for n in walk(*program.body))
    return ("tf32",) if wide and "tf32" in target.features else ("",)


# ---- one kernel --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How one kernel is cut: its plan (see `tile`) and the knobs that it names."""

    plan: tuple[tuple[tuple[object, ...], ...], ...]
    knobs: tuple[Knob, ...]


def kernel_ways(
    group: Sequence[tuple[Output, Node]], kept: set[Node], number: int, target: Target
) -> list[Way]:
    """The ways to cut the kernel of these values, number `number`; knobs bear the number."""
    values = [v for _, v in group]
    extents = {a: int(str(e)) for o, _ in group for a, e in zip(o.dims, o.extents)}
    axes = in_outputs(kernel_axes(values, kept), values, kept, extents)
    dims = max((o.dims for o, _ in group), key=len)
    dims = (*dims, *(a for a in extents if a not in dims))
    # What one pass has walked is walked again, block by block, where its results are stored.
    again = {a for a in dims if any(s.startswith(f"{a}.") for s in axes.steps)} - {*axes.reduced}
    packs: tuple[dict[str, int], ...] = ()
    if axes.contracted & set(axes.reduced):
        cut = [c for c in (matrix_cut(dims, extents, axes, big) for big in (True, False)) if c]
        packs = packed_sizes(packable(values, kept, {a: extents[a] for a in dims}), extents, axes)
    else:
        cut = [line_cut(dims, extents, axes)]
    # Reduces of reduces, all of them whole, would make one box of all their axes.
    crowded = prod(power_of_two(e) for e in axes.reduced.values()) > LONG_LINE
    ways: list[Way] = []
    further: list[Way] = []
    beside = {a: box for box, pack in zip(tile.PACKED, packs) for a in pack}
    joined = [matrix_cut(dims, extents, axes, True, dict(x for p in packs for x in p.items()))]
    plain = list({tuple(c.items()): c for c in cut}.values())
    for sizes, boxes in [*((c, {}) for c in plain), *((c, beside) for c in joined if packs)]:
        knobs: list[Knob] = []
        walked = dict.fromkeys(again, tile.SERIAL)
        walked |= {a: tile.BACKWARD if back else tile.SERIAL for a, back in axes.scanned.items()}
        plan_axes: list[list[int | str]] = []
        for a in dims:
            size = knob_over(knobs, f"k{number}.{a}", sizes[a])
            serial = a in walked and size not in (0, 1, tile.STEP)
            how = boxes.get(a, walked[a] if serial else "")
            plan_axes.append([a, size, *([how] if how else [])])
        steps = {a: reduce_sizes(a, e, axes, crowded, a in dims)
                 for a, e in sorted(axes.reduced.items())}  # fmt: skip
        reduces = [[a, knob_over(knobs, f"k{number}.sum.{a}", s)] for a, s in steps.items()]
        orders = [plan_axes]
        blocks = [x for x in plan_axes if isinstance(x[1], str) and x[1].startswith("$")]
        if axes.contracted and len(blocks) > 1:
            first, last = (plan_axes.index(x) for x in (blocks[0], blocks[-1]))
            swapped = list(plan_axes)
            swapped[first], swapped[last] = swapped[last], swapped[first]
            orders.append(swapped)
        traits = _traits(axes, plan_axes, reduces, extents, _eight_bits(values, kept), target)
        for launches, found in ((LAUNCHES, ways), (FURTHER, further)):
            for launch in (x for x in launches if x.fits(traits)):
                own = list(knobs)
                facts = [
                    [name, knob_over(own, f"k{number}.{name}", domain)]
                    for name, domain in launch.domains(traits).items()
                ]
                parts = [(order, reduces, facts) for order in orders]
                found += [
                    Way(tuple(tuple(map(tuple, x)) for x in part), tuple(own)) for part in parts
                ]
    return [*ways, *further]


def _traits(
    axes: KernelAxes,
    plan_axes: Sequence[Sequence[int | str]],
    reduces: Sequence[Sequence[int | str]],
    extents: Mapping[str, int],
    eight: bool,
    target: Target,
) -> Traits:
    """What the facts of a kernel depend on."""
    several = [x for x in plan_axes if x[1] not in (0, tile.STEP) and extents[str(x[0])] > 1]
    blocks = [x for x in several if str(x[1]).startswith("$")]
    sides = [extents[str(a)] for a, size, *_ in plan_axes if size not in (1, tile.STEP)]
    cut = [a for a, size in reduces if size != 0]
    return Traits(
        contracted=bool(axes.contracted),
        looped=bool(axes.steps or cut),
        chained=bool(axes.steps),
        nested=bool(axes.steps and {*cut} & axes.inside),
        blocks=len(blocks),
        ordered=len(blocks) > 1 and blocks[-2:] == several[-2:],
        rows=sides[0] if len(sides) > 1 else 0,
        columns=sides[-1] if len(sides) > 1 else 0,
        eight=eight,
        features=frozenset(target.features),
    )


def _sketch(
    name: str,
    program: Program,
    head: list[Action],
    keep: Sequence[int],
    combo: Sequence[Way],
    precision: str,
    target: Target,
    further: Sequence[ModuleType] = (),
    whole: bool = True,
) -> Sketch | None:
    """further: rules for the loops, each of which must find something to do; whole: blocks that no
    test cuts have loops of their own."""
    plans = tuple(w.plan for w in combo)
    action = act("tile", keep=tuple(keep), plans=plans, narrow=True, precision=precision)
    opened = run_actions(program, [action])
    if isinstance(opened, Illegal):
        return None
    actions = [*head, action]
    for rule in (skip, *further):
        proposed = rule.propose(opened, target)
        if rule in further and not proposed:
            return None
        for step in proposed:
            if rule is skip and not whole:
                step = act("skip", axis=step["axis"], whole=False)
            made = run_actions(opened, [step])
            if isinstance(made, Illegal) and not whole:
                continue  # nothing but whole blocks is to be had: the loop stays
            assert not isinstance(made, Illegal), made
            actions, opened = [*actions, step], made
    knobs = tuple(k for w in combo for k in w.knobs)
    limits = [c for k in opened.body for c in resource_limits(k, target)]
    unique = tuple(sorted({c for c in limits if c.op != "const"}, key=repr))
    if any(c.op == "const" and not c.attr[0] for c in limits):
        return None
    name = ".".join((name, *(_short_name(rule) for rule in further)))
    made = Sketch(name, tuple(actions), knobs, unique)
    # What is cheap to look at is offered only where something is legal.
    if made.size() <= FEW_ROWS and not len(next(iter(made.table().values()))):
        return None
    return made


def _short_name(rule: ModuleType) -> str:
    return rule.__name__.rpartition(".")[2]


def _eight_bits(values: Sequence[Node], kept: set[Node]) -> bool:
    """Whether products of 8-bit floats are summed."""
    pairs = [factors_of(n) for n in below(values, kept) if n.op == "reduce"]
    kinds = [[{x.dtype for f in side for x in walk(f) if x.op == "input"} for side in pair]
             for pair in pairs if pair is not None]  # fmt: skip
    return any(all(side and side <= EIGHT_BITS for side in pair) for pair in kinds)
