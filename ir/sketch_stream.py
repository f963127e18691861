"""Sketches whose tiles are dealt out to a fixed number of programs: an algebra program in,
structures out.

They are for contractions of a few waves of tiles, the last of which is not full. What is left over
is cut between programs, so that all end at the same time (see `stream` and `share`). How many
programs, and whether a whole wave is shared beside it, are knobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from autosched.ir.extent import as_node, ext_cdiv, ext_product
from autosched.ir.gpu_axes import kernel_axes, product_of
from autosched.ir.node import Extent, Node, Program, walk
from autosched.ir.ops import knob
from autosched.ir.rules import exp2, split_reduce, tile
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.schedule import Knob, Sketch, run_actions
from autosched.ir.shares import shared_tiles
from autosched.ir.sketch_gpu import Way, kernel_ways, precisions, run_or_same
from autosched.ir.sketch_split import (
    closed,
    facts_of,
    made_of,
    merge_of,
    plain,
    reduced_axes,
    steps_of,
    with_domains,
    with_parts_last,
)
from autosched.ir.target import Target

LEAST, MOST = 0.25, 8.0  # waves of large boxes between which a last wave weighs
LARGE, SIDE, LONG = 128, 64, 512  # a large box, the least side of one, and a long axis
PER_CORE, WAVES = (1, 2), (0, 1)  # programs of a multiprocessor; whole waves that are shared
# Of programs that are dealt large boxes: few warps would hold them, and no other program wants
# their registers.
_DEALT = {"registers": (0,), "warps": (4, 8), "stages": (3, 4)}
EPILOGUE = (1, 2)  # parts in which such a box is stored


def stream_sketches(program: Program, target: Target) -> tuple[Sketch, ...]:
    """The sketches whose tiles are dealt out; none where there are too few or many waves."""
    first = list(exp2.propose(program, target))
    program = run_or_same(program, first)
    found = (s for a in _axes(program, target) for s in _of_axis(program, first, *a, target))
    return tuple({sketch.actions: sketch for sketch in found}.values())


def _axes(program: Program, target: Target) -> Iterator[tuple[str, int]]:
    """The contracted axes along which tiles may be cut, and the elements of a step."""
    for axis, extent, found in reduced_axes(program):
        long = isinstance(extent, int) and extent >= LONG and any(map(product_of, found))
        if long and LEAST <= _large_boxes(found) / target.cores <= MOST:
            yield axis, steps_of(found)[0]


def _large_boxes(reduces: Sequence[Node]) -> int:
    """How many large boxes the results have; none where a side of them is short: then memory
    decides, not the last wave."""
    axes = kernel_axes(reduces, set())
    extents = {a: int(str(e)) for n in reduces for a, e in n.types[0].axes}
    outer = {a: e for a, e in extents.items() if a not in axes.reduced}
    if any(e < SIDE for a, e in outer.items() if a in axes.left - axes.recomputed):
        return 0
    return prod(-(-e // LARGE) if a in axes.left else e for a, e in outer.items())


def _of_axis(
    program: Program, first: Sequence[Action], axis: str, block: int, target: Target
) -> Iterator[Sketch]:
    # The kernels are told apart, and cut, with any number of parts.
    opened = run_actions(program, [act("split_reduce", axis=axis, block=block, parts="$programs")])
    if isinstance(opened, Illegal):
        return
    states = split_reduce.partial_states(opened, axis)
    kept = [n for n in walk(*opened.body) if n in set(states)]
    groups = tile.stages(opened, kept, joined=True)
    if len(groups) != 2:
        return
    extents = {a: e for n in walk(*program.body) for a, e in n.free}
    part = split_reduce.part_axis(axis)
    ways = [w for w in kernel_ways(closed(groups[0]), set(kept), 0, target) if plain(w)]
    for precision in precisions(program, target):
        for n, way in enumerate(ways):
            dealt = _dealt(with_parts_last(way, part, _DEALT), part, extents, target)
            if dealt is None:
                continue
            tiles = [list(box) for box in dealt.boxes]
            group = dict(facts_of(dealt.way)).get("group", 0)
            cut = act("stream", axis=axis, block=block, tiles=tiles, programs="$programs",
                      waves="$waves", group=group)  # fmt: skip
            streamed = run_actions(program, [cut])
            if isinstance(streamed, Illegal):
                continue
            plans = (dealt.way.plan, merge_of(dealt.way, part).plan)
            tiled = act("tile", parts=axis, plans=plans, narrow=True, precision=precision,
                        joined=True)  # fmt: skip
            blocks = ext_cdiv(extents[axis], block)
            share = act("share", axis=part, blocks=blocks, programs="$programs", waves="$waves")
            name = f"stream.{axis}{block}.{n}{precision}"
            made = made_of(
                name, streamed, [*first, cut], tiled, [share], dealt.knobs, target, dealt.limits
            )
            if made is not None and len(next(iter(made.table().values()))):
                yield made


@dataclass(frozen=True)
class _Dealt:
    """A way with its boxes (axis, size) outermost first, its knobs, and what these must obey."""

    way: Way
    boxes: tuple[tuple[str, int | str], ...]
    knobs: tuple[Knob, ...]
    limits: tuple[Node, ...]


def _dealt(way: Way, part: str, extents: Mapping[str, Extent], target: Target) -> _Dealt | None:
    """The way for programs that are dealt its tiles; nothing where a program does more at once
    than boxes, or where boxes are small."""
    sides = {f"$k0.{axis}" for axis, *_ in way.plan[0]}
    large = {
        k.name: tuple(d for d in k.domain if f"${k.name}" not in sides or d >= SIDE)
        for k in way.knobs
    }
    if not all(large.values()):
        return None
    way = with_domains(way, large)
    boxes: list[tuple[str, int | str]] = []
    for axis, size, *how in way.plan[0]:
        if how or size == tile.STEP:
            return None
        if axis != part and size != 0:
            boxes.append((str(axis), size if isinstance(size, str) else int(str(size))))
    own = [Knob("programs", tuple(target.cores * n for n in PER_CORE), "programs"),
           Knob("waves", WAVES, "waves")]  # fmt: skip
    if "tma" in target.features and sum(isinstance(size, str) for _, size in boxes) > 1:
        axes, reduces, facts = way.plan
        parts = Knob("k0.epilogue", EPILOGUE, "parts")
        own.append(parts)
        way = Way((axes, reduces, (*facts, ("epilogue", f"${parts.name}"))), way.knobs)
    tiles = ext_product(ext_cdiv(extents[a], _size(size)) for a, size in boxes)
    left = as_node(shared_tiles(tiles, knob("programs"), knob("waves")))
    few = as_node(tiles) <= as_node(int(MOST * 2 * target.cores))
    return _Dealt(way, tuple(boxes), (*own, *way.knobs), (left > 0, few))


def _size(size: int | str) -> Extent:
    return knob(size[1:]) if isinstance(size, str) else size
