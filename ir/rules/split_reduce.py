"""split_reduce: reduces over one axis in parts, each by another program, and a merge of the parts.

    before:  y[m,n] = f(sum k x[m,k] w[k,n])
    after:   sums[p,m,n] = fold k.blk in [p*B//P, (p+1)*B//P) from 0:
                               acc + sum k.in x[m, k.blk*block + k.in] w[k.blk*block + k.in, n]
             y[m,n] = f(fold p from 0: acc + sums[p,m,n])
    args:    axis; block, elements of a block (a number); parts P, a number or a knob; the axis has
             B blocks, and no part is empty while P <= B.
    Illegal: NOT_ALGEBRA, NO_REDUCE (none over that axis alone), TOO_BIG (the block is longer than
             the axis, or there are more parts than blocks), NO_CORRECTION (a dependence between
             the reduces that `corrections` has no row for; the reason says which).

Reduces that depend on each other become one pass first, as `cascade` makes it; its states are
merged by the rows that correct them: split softmax attention comes out of this. The parts are
merged one by one in the order of the axis, so that the same schedule gives the same bits and ties
are broken as in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autosched.ir.expand import fresh
from autosched.ir.extent import as_node, ext_cdiv
from autosched.ir.monoid import MONOIDS
from autosched.ir.node import Extent, Node, Program, replace_nodes, walk
from autosched.ir.ops import carry, fold, get, iota, map_, minimum
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.rules.cascade import Pass
from autosched.ir.rules.states import NoRow, Parts

LONG = 512  # elements of an axis from which parts may pay
BLOCKS = (64, 128)
PARTS = (2, 4, 8)


def propose(program: Program, target: object = None) -> tuple[Action, ...]:
    """Every long reduced axis, in a few numbers of parts."""
    if program.level != "algebra":
        return ()
    axes = {r.attr[1][0]: _extent(r) for r in _reduces(program)}
    out = [
        act("split_reduce", axis=axis, block=block, parts=parts)
        for axis, extent in axes.items()
        if isinstance(extent, int) and extent >= LONG
        for block in BLOCKS
        for parts in PARTS
    ]
    return tuple(a for a in out if not isinstance(apply(program, a), Illegal))


def apply(program: Program, action: Action) -> Program | Illegal:
    axis, block, parts = action["axis"], int(action["block"]), action.size("parts")

    def even(blocks: Extent) -> Pieces | Illegal:
        if isinstance(blocks, int) and isinstance(parts, int) and parts > blocks:
            return Illegal("TOO_BIG", f"{axis} has {blocks} blocks, not {parts} parts")
        return Pieces(parts, *_interval(part_axis(axis), parts, blocks), as_node(parts))

    return in_pieces(program, axis, block, even)


@dataclass(frozen=True)
class Pieces:
    """How blocks are cut: `most` pieces, of which piece `part` has the blocks from lo to hi, both
    over the axis of the parts; of these pieces the first `count` are merged."""

    most: Extent
    lo: Node
    hi: Node
    count: Node


def in_pieces(
    program: Program, axis: str, block: int, cut: Callable[[Extent], Pieces | Illegal]
) -> Program | Illegal:
    """The program with the reduces over an axis in pieces. cut: of so many blocks."""
    if program.level != "algebra":
        return Illegal("NOT_ALGEBRA", "reduces are split in algebra programs")
    found = [r for r in _reduces(program) if r.attr[1] == (axis,)]
    found = [r for r in found if _extent(r) == _extent(found[0])]
    if not found:
        return Illegal("NO_REDUCE", f"no reduce runs over {axis} alone")
    extent = _extent(found[0])
    if isinstance(extent, int) and block > extent:
        return Illegal("TOO_BIG", f"{axis} has {extent} elements, a block {block}")
    taken = {a for n in walk(*program.body) for a, _ in n.free}
    pieces = cut(ext_cdiv(extent, block))
    if isinstance(pieces, Illegal):
        return pieces
    outer, inner = fresh(f"{axis}.blk", taken), fresh(f"{axis}.in", taken)
    pass_ = Pass(axis, extent, block, outer, inner, first=pieces.lo)
    try:
        for node in found:
            pass_.add(node)
    except NoRow as reason:
        return Illegal("NO_CORRECTION", str(reason))
    table = pass_.values(_merged(pass_, pieces.hi, part_axis(axis), pieces.count))
    return program.with_body(*(replace_nodes(b, table) for b in program.body))


def partial_states(program: Program, axis: str) -> tuple[Node, ...]:
    """The states of the parts into which the rule has split the reduces over an axis: what another
    kernel merges."""
    part = part_axis(axis)
    return tuple(
        n
        for n in walk(*program.body)
        if len(n.types) == 1 and not n.carries and part in n.names and _is_state(n)
    )


def part_axis(axis: str) -> str:
    """The axis along which the parts of `axis` are numbered."""
    return f"part.{axis}"


def _interval(part: str, parts: Extent, blocks: Extent) -> tuple[Node, Node]:
    """The blocks of each part, their numbers as even as can be."""
    number = iota(part, parts)
    lo, hi = (at * as_node(blocks) // as_node(parts) for at in (number, number + 1))
    return lo, hi


def _merged(pass_: Pass, hi: Node, part: str, count: Node) -> dict[Node, Node]:
    """{result of a reduce: its state behind all parts, merged one by one}."""
    lo = pass_.first
    right = pass_.results(hi)
    before = lo * pass_.block
    here = minimum(hi * pass_.block, as_node(pass_.extent)) - before
    left = {r: carry(f"all{k}", r.dtype, dict(r.axes)) for k, r in enumerate(pass_.old)}
    both: dict[Node, Node] = {}
    sides = Parts(left, right, both, (before, here))
    for result in pass_.old:
        if result in both:
            continue
        if result in pass_.steps:
            both[result] = pass_.steps[result].merged(left[result], right[result], sides)
        else:
            both |= _combined(result, left, right)
    inits = [init for init, _ in pass_.states.values()]
    states = {
        f"all{k}": (init, both[r]) for k, (r, init) in enumerate(zip(pass_.old, inits, strict=True))
    }
    loop = fold(part, [(0, count)], states)
    return {r: get(loop, k) for k, r in enumerate(pass_.old)}


def _combined(
    result: Node, left: Mapping[Node, Node], right: Mapping[Node, Node]
) -> dict[Node, Node]:
    """All components of a monoid that depends on no other result."""
    node = result.src[0] if result.op == "get" else result
    results = [get(node, k) for k in range(len(node.types))]
    spec = MONOIDS[node.attr[0]]
    new = spec.combine(map_, tuple(left[r] for r in results), tuple(right[r] for r in results))
    return dict(zip(results, new, strict=True))


def _is_state(node: Node) -> bool:
    """Whether a value is a state of a fold whose bounds it varies with."""
    loop = node.src[0] if node.op == "get" else node
    if loop.op != "fold":
        return False
    index = node.attr[0] if node.op == "get" else 0
    return index < len(loop.attr[1]) and any(
        b.free for b in loop.src[: 2 * loop.attr[2]]
    )


def _reduces(program: Program) -> list[Node]:
    return [
        n for n in walk(*program.body) if n.op == "reduce" and len(n.attr[1]) == 1 and not n.carries
    ]


def _extent(node: Node) -> Extent:
    return next(e for s in node.src for a, e in s.free if a == node.attr[1][0])
