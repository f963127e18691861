"""Sketches for a CPU: an algebra program in, structures with open sizes out.

One recipe for every program. The nests of an `inline` choice share as many outer loops as the
rules allow; of these, the axis that most operands do without is cut into blocks, and so is an
axis along which a nest has its lanes. Within a block each nest is traversed by a tile of its own
(see `tiles`). Reduces of one nest that share an operand are joined first. Where nothing else
applies, loops as they stand make the last sketch, so that every program has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

from autosched.ir import access as acc
from autosched.ir.extent import as_extent, ext_add, ext_cdiv, ext_mul, ext_product
from autosched.ir.loops import Loop, Nest, nests
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import knob
from autosched.ir.rules import bind, cascade, inline, join, trim
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.rules.place import MAX_PACK_GROWTH
from autosched.ir.scalar import ITEMSIZE
from autosched.ir.schedule import Knob, Sketch, run_actions
from autosched.ir.target import Target
from autosched.ir.tiles import TRIAL_EXTENT, Place, Tile, lane_axis, sizes_of, tiles

BLOCKS = (1, 2, 4, 8, 16, 32, 64, 128)
LANE_BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # vectors
SMALL_WORK = 200_000  # scalar operations below which one thread may be faster than a launch
MAX_VARIANTS = 8


def cpu_sketches(program: Program, target: Target) -> tuple[Sketch, ...]:
    out: dict[tuple[Action, ...], Sketch] = {}
    for sketch in _of_program(program, [], "", target):
        out.setdefault(sketch.actions, sketch)
    for pass_ in cascade.propose(program, target):
        cascaded = cascade.apply(program, pass_)
        assert not isinstance(cascaded, Illegal), cascaded
        for sketch in _of_program(cascaded, [pass_], f"onepass{pass_['block']}.", target):
            out.setdefault(sketch.actions, sketch)
    return tuple(out.values())


def _of_program(
    program: Program, head: list[Action], prefix: str, target: Target
) -> Iterator[Sketch]:
    for choice in inline.propose(program, target):
        staged = inline.apply(program, choice)
        if isinstance(staged, Illegal):
            continue
        for joins in _joins(staged):
            joined = run_actions(staged, joins)
            assert not isinstance(joined, Illegal)
            name = f"{prefix}joined." if joins else prefix
            yield from _of_choice(joined, [*head, choice, *joins], name, target)


def _joins(staged: Program) -> list[list[Action]]:
    """Joined where a nest has its lanes on a loop of its own, and as it stands."""
    found = [
        act("join", nest=n.name)
        for k in staged.body
        for _, n in nests(k)
        if len(join.joinable(n.value)) > 1
    ]
    return [found, []] if found else [[]]


def _of_choice(staged: Program, head: list[Action], prefix: str, target: Target) -> list[Sketch]:
    found = [n for _, n in nests(staged.body[0])]
    if any(as_extent(x.hi) == 0 for n in found for x in n.loops):
        return _plain(head, prefix)
    shared = shared_axes(staged, found) if len(found) > 1 else ()
    made: list[Sketch | None] = []
    if shared:
        made = _fused(staged, head, prefix, found, shared, target)
    else:
        made = _separate(staged, head, prefix, found, target)
    kept = [s for s in made if s is not None]
    return kept or _plain(head, prefix)


def _plain(head: list[Action], prefix: str) -> list[Sketch]:
    """Every loop serial, as `inline` leaves them: slow, and right for any program."""
    return [Sketch(f"{prefix}plain", tuple(head), ())]


# ---- loops that nests share --------------------------------------------------------------------


def shared_axes(staged: Program, found: Sequence[Nest]) -> tuple[str, ...]:
    """Axes of the last nest that all nests may run in one loop, in its memory order.

    A nest without a reduce may do without the axis: it then stands before the loop.
    """
    out: list[str] = []
    for axis in found[-1].axes:
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
        if _extent(found, axis) == 1:
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


def _lane_axes(found: Sequence[Nest], shared: Sequence[str], target: Target) -> list[str]:
    """Shared axes along which nests would have their lanes: these are cut into vectors."""
    heavy = [n for n in found if acc.reductions(n)] or list(found)
    wanted = {lane for n in heavy if (lane := lane_axis(n, Place(), target)) and _streams(n, lane)}
    return [a for a in shared if a in wanted]


def _streams(nest: Nest, lane: str) -> bool:
    """Whether lanes along `lane` gather nothing that can't be packed."""
    return all(a.is_weight or a.stride(lane) in (0, 1) for _, a in acc.loads(nest))


def _block_plans(
    found: Sequence[Nest], shared: tuple[str, ...], target: Target
) -> list[tuple[Knob, ...]]:
    """Which shared axes are cut into blocks, and the sizes; each knob is called by its axis."""
    lanes = _lane_axes(found, shared, target)
    fixed = tuple(Knob(a, _lane_blocks(_extent(found, a), target)) for a in lanes)
    others = [a for a in shared if a not in lanes]
    axis = block_axis(found, others)
    if axis is None:
        return [fixed]
    rows = Knob(axis, sizes_of(BLOCKS, _extent(found, axis), 1))
    return [(*fixed, rows)]


def _lane_blocks(extent: int, target: Target) -> tuple[int, ...]:
    fits = extent <= LANE_BLOCKS[-1] * target.lanes and extent % target.lanes == 0
    whole = (extent,) if fits else ()
    sizes = sizes_of([v * target.lanes for v in LANE_BLOCKS], extent, extent)
    return tuple(sorted({*sizes, *whole}))


def _fused(
    staged: Program,
    head: list[Action],
    prefix: str,
    found: list[Nest],
    shared: tuple[str, ...],
    target: Target,
) -> list[Sketch | None]:
    made: list[Sketch | None] = []
    for plan in _block_plans(found, shared, target):
        cut = {k.name: Knob(f"block.{k.name}", k.domain) for k in plan}
        splits = [act("split", axis=a, size=f"${k.name}") for a, k in cut.items()]
        trial = run_actions(
            staged,
            [act("split", axis=a, size=min(TRIAL_EXTENT, max(k.domain))) for a, k in cut.items()],
        )
        assert not isinstance(trial, Illegal), trial
        blocks = {f"{a}.i": k for a, k in cut.items()}
        counts = {
            f"{a}.o": ext_cdiv(_extent(found, a), knob(k.name)) for a, k in cut.items()
        }
        whole = [a for a in shared if a not in cut]
        for inner in ("serial", "grid"):
            if (inner == "serial" and not whole) or (inner == "grid" and whole and not cut):
                continue
            share = act(
                "bind",
                loops=[f"{a}:grid" for a in whole] + [f"{a}.o:{inner}" for a in cut],
            )
            bound = bind.apply(trial, share)
            if isinstance(bound, Illegal):
                continue
            places = [
                (nest, Place(tuple(x.axis for x in above), inner, blocks, counts=counts))
                for above, nest in _by_name(bound.body[0])
            ]
            ways = [tiles(nest, place, target) for nest, place in places]
            for n, combo in enumerate(_combine(ways)):
                name = f"{prefix}fused.{inner}.{n}"
                actions = [*head, *splits, share]
                made.append(_sketch(name, actions, len(head), [*cut.values()], combo, staged,
                                    target))  # fmt: skip
    return made


def _by_name(kernel: Node) -> list[tuple[tuple[Loop, ...], Nest]]:
    """One nest for each name: a state of a fold has a nest that starts it and one that makes the
    next, over the same loops; what is done to one is done to both, so that the latter decides."""
    return list({nest.name: (above, nest) for above, nest in nests(kernel)}.values())


def _combine(ways: list[list[Tile]]) -> list[tuple[Tile, ...]]:
    return list(product(*ways))[:MAX_VARIANTS]


def _separate(
    staged: Program, head: list[Action], prefix: str, found: list[Nest], target: Target
) -> list[Sketch | None]:
    """Each nest on its own: one nest, or nests that share nothing."""
    made: list[Sketch | None] = []
    small = sum(_work(n) for n in found) <= SMALL_WORK
    for order in ("columns", "rows"):
        for outer in ("grid", "serial") if small else ("grid",):
            ways = [
                tiles(n, Place(tuple(x.axis for x in above), outer, None, order), target)
                for above, n in _by_name(staged.body[0])
            ]
            for k, combo in enumerate(_combine(ways)):
                name = f"{prefix}{order}.{outer}.{k}"
                made.append(_sketch(name, head, len(head), [], combo, staged, target))
    return made


def _sketch(
    name: str,
    head: Sequence[Action],
    done: int,
    knobs: Sequence[Knob],
    combo: Sequence[Tile],
    staged: Program,
    target: Target,
) -> Sketch | None:
    """A sketch of `head` and the tiles' actions, of which `done` have made `staged` already."""
    actions = [*head, *(a for t in combo for a in t.actions)]
    every = {k.name: k for k in (*knobs, *(k for t in combo for k in t.knobs))}
    constraints = {c for t in combo for c in t.constraints}
    opened = run_actions(staged, tuple(actions[done:]))
    if isinstance(opened, Illegal):
        return None
    for _, nest in _by_name(opened.body[0]):
        cut = act("trim", nest=nest.name)
        shorter = trim.apply(opened, cut)
        if not isinstance(shorter, Illegal):
            actions, opened = [*actions, cut], shorter
    constraints |= _scratch_fits(opened, target) | _packs_fit(opened)
    ordered = tuple(sorted(constraints, key=lambda c: repr(c)))
    return Sketch(name, tuple(actions), tuple(every.values()), ordered)


def _scratch_fits(program: Program, target: Target) -> set[Node]:
    """The scratch of a task stays within the second-level cache."""
    total: int | Node = 0
    for node in walk(*program.body):
        if node.op == "buffer" and node.attr[3] == "scratch":
            total = ext_add(total, ext_mul(ext_product(node.attr[1]), ITEMSIZE[node.dtype]))
    return {total <= target.l2_bytes} if isinstance(total, Node) else set()


def _packs_fit(program: Program) -> set[Node]:
    """What is packed is not kept more often than it pays."""
    out = set()
    for pack in program.packs:
        source = acc.extents_of(pack.value.src[0])
        limit = MAX_PACK_GROWTH * max(prod(source), 1)
        held = ext_product(pack.buffer.attr[1])
        out |= {held <= limit} if isinstance(held, Node) else set()
    return out


# ---- sizes -------------------------------------------------------------------------------------


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
        bound = acc.bound_axes(r)
        for s in r.src:
            for axis, e in s.free:
                if axis in bound and isinstance(e, int):
                    inner = max(inner, e)
    return total * inner
