"""Sketches whose long reduces are done in parts: an algebra program in, structures out.

They are for kernels with fewer programs than the device has room for: products with few rows,
queries of a step of decoding, a few long rows. The reduced axis is walked in blocks, and the
blocks are shared by several programs; their results are merged by a kernel of its own, or by the
program that arrives last (see `split_reduce` and `arrive`). The number of parts is a knob.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from autosched.ir.gpu_axes import kernel_axes, product_of
from autosched.ir.gpu_cuts import packed_sizes
from autosched.ir.gpu_limits import resource_limits
from autosched.ir.node import Extent, Node, Program, walk
from autosched.ir.packing import packable
from autosched.ir.rules import exp2, skip, split_reduce, tile
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.rules.tile import Group
from autosched.ir.scalar import ITEMSIZE
from autosched.ir.schedule import Knob, Sketch, run_actions
from autosched.ir.sketch_gpu import Way, kernel_ways, precisions, run_or_same
from autosched.ir.target import Target

PARTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
LONG, LONG_ROW = 512, 8192  # elements of an axis that pay for parts: of a contraction, or of a row
TALL, ROWS = 128, 4  # elements of an axis that one program takes, where there are enough
ROOM = 2  # programs of a multiprocessor below which more are of use
MOST = 16  # and above which they are not
BLOCK_BYTES = (128, 256, 512)  # of a row that a step of a contraction reads
LINES = (1024, 4096)  # elements of a row at a time where nothing is contracted
# Facts that the few programs of a merge, or of a part, have no use for.
_MERGE = {"warps": (4,), "stages": (2,)}
_MERGED_BLOCKS = (1, 4, 128, 256)
# Of a part: its tile is small, and its neighbours share nothing.
_PART = {"group": (0,), "epilogue": (1,), "registers": (0,)}


def split_sketches(program: Program, target: Target) -> tuple[Sketch, ...]:
    """The sketches with an axis in parts; none where the programs fill the device."""
    first = list(exp2.propose(program, target))
    program = run_or_same(program, first)
    out: dict[tuple[Action, ...], Sketch] = {}
    for cut in cuts(program, target):
        for sketch in _of_cut(program, first, cut, target):
            out.setdefault(sketch.actions, sketch)
    return tuple(out.values())


# ---- which axes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """An axis in blocks of this many elements, and into how many parts it may be split."""

    axis: str
    block: int
    parts: tuple[int, ...]


def cuts(program: Program, target: Target) -> Iterator[Cut]:
    """The axes along which parts may pay."""
    for axis, extent, found in reduced_axes(program):
        contracted = any(product_of(n) is not None for n in found)
        if not isinstance(extent, int) or extent < (LONG if contracted else LONG_ROW):
            continue
        programs = _programs(program, found, contracted)
        if contracted and programs >= ROOM * target.cores:
            programs //= _rows_of_a_box(program, found)
        if programs >= ROOM * target.cores:
            continue
        most = max(MOST * target.cores // programs, PARTS[0])
        for block in steps_of(found) if contracted else LINES:
            parts = tuple(p for p in PARTS if p <= min(most, extent // block))
            if parts:
                yield Cut(axis, block, parts)


def reduced_axes(program: Program) -> Iterator[tuple[str, Extent, list[Node]]]:
    """The axes that are reduced by themselves, their extents and the reduces over each."""
    reduces: dict[str, list[Node]] = {}
    for node in walk(*program.body):
        if node.op == "reduce" and len(node.attr[1]) == 1 and not node.carries:
            reduces.setdefault(node.attr[1][0], []).append(node)
    for axis, found in reduces.items():
        yield axis, next(e for s in found[0].src for a, e in s.free if a == axis), found


def _programs(program: Program, reduces: Sequence[Node], contracted: bool) -> int:
    """About how many programs there are without parts."""
    axes = kernel_axes(reduces, set())
    extents = {a: int(str(e)) for n in reduces for a, e in n.types[0].axes}
    outer = {a: e for a, e in extents.items() if a not in axes.reduced}
    if not contracted:
        return max(prod(outer.values()) // ROWS, 1)
    whole = axes.left & axes.recomputed
    return prod(
        1 if a in whole and e <= 2 * TALL else -(-e // TALL) if a in axes.left else e
        for a, e in outer.items()
    )


def _rows_of_a_box(program: Program, reduces: Sequence[Node]) -> int:
    """How many programs become one where axes share a box, as the heads of a group do."""
    extents = {a: int(str(e)) for o in program.outputs for a, e in zip(o.dims, o.extents)}
    groups = packable(program.body, set(), extents)
    packs = packed_sizes(groups, extents, kernel_axes(reduces, set()))
    return max((prod(sizes.values()) for sizes in packs), default=1)


def steps_of(reduces: Sequence[Node]) -> tuple[int, ...]:
    """Elements of a contracted axis that a step reads."""
    inputs = [n for n in walk(*reduces) if n.op == "input" and n.dtype in ITEMSIZE]
    width = max((ITEMSIZE[n.dtype] for n in inputs), default=4)
    return tuple(max(size // width, 32) for size in BLOCK_BYTES)


# ---- sketches ----------------------------------------------------------------------------------


def _of_cut(
    program: Program, first: Sequence[Action], cut: Cut, target: Target
) -> Iterator[Sketch]:
    split = act("split_reduce", axis=cut.axis, block=cut.block, parts="$parts")
    opened = run_actions(program, [split])
    if isinstance(opened, Illegal):
        return
    states = split_reduce.partial_states(opened, cut.axis)
    number = {n: k for k, n in enumerate(tile.candidates(opened))}
    keep = tuple(sorted(number[n] for n in states))
    kept = [n for n in walk(*opened.body) if n in set(states)]
    groups = tile.stages(opened, kept, joined=True)
    if len(groups) != 2:
        return
    part = split_reduce.part_axis(cut.axis)
    found = kernel_ways(closed(groups[0]), set(kept), 0, target)
    ways = [with_parts_last(w, part) for w in found if plain(w)]
    merges = [_small(w) for w in kernel_ways(groups[1], set(kept), 1, target)[:1]]
    parts = Knob("parts", cut.parts, "programs")
    for precision in precisions(program, target):
        for n, way in enumerate(ways):
            for how, rest in (("arrive", merge_of(way, part)), ("apart", *merges)):
                name = f"split.{cut.axis}{cut.block}.{how}.{n}{precision}"
                tiled = act("tile", keep=keep, plans=(way.plan, rest.plan), narrow=True,
                            precision=precision, joined=True)  # fmt: skip
                knobs = (parts, *way.knobs, *rest.knobs)
                merged = [act("arrive", axis=part)] if how == "arrive" else []
                made = made_of(name, opened, [*first, split], tiled, merged, knobs, target)
                if made is not None:
                    yield made


def made_of(
    name: str,
    program: Program,
    head: Sequence[Action],
    tiled: Action,
    merged: Sequence[Action],
    knobs: tuple[Knob, ...],
    target: Target,
    further: Sequence[Node] = (),
) -> Sketch | None:
    """The sketch of some actions. merged: how the kernels become one; further: constraints."""
    opened = run_actions(program, [tiled])
    if isinstance(opened, Illegal):
        return None
    actions = [*head, tiled]
    for step in (*skip.propose(opened, target), *merged):
        made = run_actions(opened, [step])
        if isinstance(made, Illegal):
            return None
        actions, opened = [*actions, step], made
    limits = [c for k in opened.body for c in resource_limits(k, target)]
    if any(c.op == "const" and not c.attr[0] for c in limits):
        return None
    unique = tuple(sorted({c for c in (*limits, *further) if c.op != "const"}, key=repr))
    return Sketch(name, tuple(actions), knobs, unique)


def closed(group: Group) -> Group:
    """The group with each open extent as 1: whatever it is, a program has one place along it."""
    return [
        (replace(o, extents=tuple(e if isinstance(e, int) else 1 for e in o.extents)), v)
        for o, v in group
    ]


def plain(way: Way) -> bool:
    """Whether the programs of a way have one tile each, and do all of it by themselves."""
    facts = dict(facts_of(way))
    return not any(facts.get(name) for name in ("persistent", "flatten", "specialise"))


def facts_of(way: Way) -> tuple[tuple[str, int | str], ...]:
    facts = way.plan[2]
    assert isinstance(facts, tuple)
    return facts


def with_parts_last(
    way: Way, part: str, domains: Mapping[str, tuple[int, ...]] = _PART
) -> Way:
    """The way with the parts of a tile side by side, each a program of its own. domains: of the
    facts that have another one than a kernel without parts."""
    axes, *rest = way.plan
    assert isinstance(axes, tuple)
    moved = (*(x for x in axes if x[0] != part), (part, 1))
    facts = {k.name: domains.get(k.name.rpartition(".")[2], k.domain) for k in way.knobs}
    return with_domains(Way((moved, *rest), way.knobs), facts)


def merge_of(way: Way, part: str) -> Way:
    """What a merge of the tiles of a way looks like."""
    axes, _, facts = way.plan
    assert isinstance(axes, tuple)
    return Way((tuple(x for x in axes if x[0] != part), (), facts), ())


def _small(way: Way) -> Way:
    """The way with few choices: a merge takes a small part of the time."""
    domains = {k.name: k.domain for k in way.knobs}
    table: dict[str, tuple[int, ...]] = {}
    for name, domain in domains.items():
        fact = name.rpartition(".")[2]
        wanted = _MERGE.get(fact, _MERGED_BLOCKS)
        table[name] = tuple(d for d in domain if d in wanted) or domain[:1]
    return with_domains(way, table)


def with_domains(way: Way, table: Mapping[str, tuple[int, ...]]) -> Way:
    """The way with other domains of its knobs; a knob of one value is that number."""
    fixed = {f"${n}": d[0] for n, d in table.items() if len(d) == 1}

    def filled(x: object) -> object:
        if isinstance(x, tuple):
            return tuple(map(filled, x))
        return fixed.get(x, x) if isinstance(x, str) else x

    plan = filled(way.plan)
    assert isinstance(plan, tuple)
    knobs = (replace(k, domain=table.get(k.name, k.domain)) for k in way.knobs)
    return Way(plan, tuple(k for k in knobs if len(k.domain) > 1))


