"""A definition of one size in, that of its class out: extents that a schedule cuts are open.

    before:  y[m, n] = sum k x[m, k] w[k, n]      m=4096, n=11008, k=512
    after:   the same,  m = 128 $m.by128, n = 256 $n.by256, k = 64 $k.by64      with (32, 43, 8)

An open extent is a *size* times its *unit*. The size is a knob that no schedule binds: kernels get
it as an argument, so that one source and one compile serve every shape of the class. The unit is
what the class knows: blocks that divide the extent (their masks go) and up to 16 elements where
addresses want alignment. It stands in the expression itself, so that nothing has to be told of it.

What to call:

    found = open_replay(program, schedule)     # the tile program and its sizes, or Illegal
    module = emit(found.tile, header, found.sizes)
    class_key(program, schedule)               # equal for workloads that one build may serve

Schedules, sketches, tables and features stay those of the closed program. An axis stays closed
where its extent decides what a box is (whole axes, blocks that cover it), where a scan or a part of
a loop runs along it, and where it is 1. What else a definition derives from an extent (1/n of a
mean, an offset of positions) stays the number that it is, and is a part of the class.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autosched.ir.extent import as_node
from autosched.ir.node import Extent, Node, Output, Program, walk
from autosched.ir.ops import iota, knob
from autosched.ir.rules.action import Action, Illegal
from autosched.ir.rules.tile import PACKED
from autosched.ir.schedule import Schedule, replay

ALIGNED = 16  # elements: what the widest loads of the narrowest types want
MAX_INT32 = 2**31 - 1
# Rules that keep to what extents say; a schedule with others is for its own size alone.
_COMPARISONS = frozenset(("lt", "le", "gt", "ge"))
_RULES = frozenset(("exp2", "cascade", "split_reduce", "tile", "skip", "stagger", "arrive"))
_IN_BLOCKS = frozenset(("cascade", "split_reduce"))  # along the axis that they name


@dataclass(frozen=True)
class Size:
    """An open extent: `unit` times the value of the knob `name`.

    tensor, dim: an input and its dimension of this extent, from which a call learns the value.
    """

    name: str
    unit: int
    tensor: str
    dim: int


@dataclass(frozen=True)
class Sizes:
    """The open extents of a program, and the values with which it is one workload's again."""

    open: tuple[Size, ...] = ()
    values: tuple[int, ...] = ()

    def knobs(self) -> dict[str, int]:
        """The values by name, as `subst` takes them."""
        return {size.name: value for size, value in zip(self.open, self.values)}


@dataclass(frozen=True)
class Opened:
    """A program with open extents; `extent.subst(program, sizes.knobs())` closes it again."""

    program: Program
    sizes: Sizes


@dataclass(frozen=True)
class OpenTile:
    """What a schedule makes of an opened program."""

    program: Program
    tile: Program
    sizes: Sizes


def open_replay(program: Program, schedule: Schedule) -> OpenTile | Illegal:
    """The tile program of the class of a workload under a schedule.

    Illegal: what `replay` says of the program itself. Where only its open form has no blocks, the
    tile program is that of the one size, and no size is open.
    """
    opened = opened_for(program, schedule)
    tile = replay(opened.program, schedule)
    if isinstance(tile, Program):
        return OpenTile(opened.program, tile, opened.sizes)
    closed = replay(program, schedule)
    return closed if isinstance(closed, Illegal) else OpenTile(program, closed, Sizes())


def opened_for(program: Program, schedule: Schedule) -> Opened:
    """The program with all extents open that a schedule leaves free."""
    actions = [a.bind(dict(schedule.knobs)) for a in schedule.actions]
    if any(a.rule not in _RULES for a in actions):
        return Opened(program, Sizes())
    return generalise(program, units(program, actions))


def class_key(program: Program, schedule: Schedule) -> str:
    """32 hex digits: workloads with the same one get the same source from the same schedule."""
    opened = opened_for(program, schedule)
    facts = json.dumps([class_facts(program, opened), schedule.to_json()], sort_keys=True)
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def class_facts(program: Program, opened: Opened) -> dict[str, Any]:
    """What workloads of a class have in common, as JSON: the definition with its closed extents
    and constants, the units of the open ones, and the values too long for 32-bit offsets."""
    return {
        "definition": opened.program.key,
        "names": [str(n.attr[0]) for n in program.inputs] + [o.name for o in program.outputs],
        "units": {size.name: size.unit for size in opened.sizes.open},
        "long": [n for n, value in enumerate(walk(*program.body)) if _is_long(value)],
    }


def _is_long(value: Node) -> bool:
    return any(math.prod(e for _, e in t.axes) > MAX_INT32 for t in value.types)


# ---- which extents -----------------------------------------------------------------------------


def units(program: Program, actions: Sequence[Action]) -> dict[str, int]:
    """{axis: unit} of the axes that may be open under a schedule whose knobs are bound.

    Linked axes, of which one is read as the other, have one unit.
    """
    extents = _extents(program)
    blocks, whole = _cuts(actions, extents)
    links = _links(program, extents)
    fixed = whole | _walked(program)
    out: dict[str, int] = {}
    for group in links:
        (extent,) = {e for a in group for e in extents[a]} if all(
            len(extents[a]) == 1 for a in group) else (1,)  # fmt: skip
        sizes = {b for a in group for b in blocks.get(a, ())}
        if extent <= 1 or fixed & group or not any(_source(program, a) for a in group):
            continue
        divisors = [b for b in sizes if extent % b == 0]
        if any(_aligns(program, a, fixed) for a in group):
            divisors.append(math.gcd(extent, ALIGNED))
        out |= dict.fromkeys(group, math.lcm(*divisors))
    return out


def _cuts(
    actions: Sequence[Action], extents: Mapping[str, set[int]]
) -> tuple[dict[str, set[int]], set[str]]:
    """({axis: sizes of its blocks}, axes that one box holds somewhere)."""
    blocks: dict[str, set[int]] = {}
    whole: set[str] = set()
    for action in actions:
        if action.rule in _IN_BLOCKS:
            blocks.setdefault(action["axis"], set()).add(int(action["block"]))
        for axes, reduces, _ in action["plans"] if action.rule == "tile" else ():
            whole |= {a for a, size in reduces if size >= max(extents.get(a, {size + 1}))}
            for axis, size, *how in (*axes, *reduces):
                if size == 0 or (how and how[0] in PACKED):
                    whole.add(axis)
                elif isinstance(size, int) and size > 1:
                    blocks.setdefault(axis, set()).add(size)
    return blocks, whole


def _extents(program: Program) -> dict[str, set[int]]:
    """The extents that each axis name has in the program; several where a name serves twice."""
    found: dict[str, set[int]] = {}
    for axis, extent in _mentions(program):
        found.setdefault(axis, set()).add(extent)
    return found


def _mentions(program: Program) -> Iterator[tuple[str, int]]:
    for node in walk(*program.body, *program.inputs):
        if node.op in ("input", "carry"):
            yield from node.attr[1 if node.op == "input" else 2]
        elif node.op == "iota":
            yield node.attr[:2]
    for out in program.outputs:
        yield from zip(out.dims, out.extents)


def _links(program: Program, extents: Mapping[str, set[int]]) -> list[frozenset[str]]:
    """The axes in groups of one size: of two axes of one extent the one is read at the coordinate
    of the other, or their coordinates are compared. A causal mask of as many queries as keys
    bounds loops by either, which has to be known to be the same."""
    group = {a: {a} for a in extents}
    for axis, other in _related(program):
        if len(extents[axis]) == 1 and extents[axis] == extents[other]:
            joined = group[axis] | group[other]
            group |= dict.fromkeys(joined, joined)
    return list(dict.fromkeys(map(frozenset, group.values())))


def _related(program: Program) -> Iterator[tuple[str, str]]:
    for node in walk(*program.body):
        if node.op == "reaxis":
            yield from ((a, at.attr[0]) for a, at in zip(node.attr[0], node.src[1:])
                        if at.op == "iota")  # fmt: skip
        elif node.op == "map" and node.attr[0] in _COMPARISONS and node.src[0].dtype == "int32":
            yield from itertools.combinations(sorted(_positions(node)), 2)


def _positions(node: Node) -> set[str]:
    """The axes whose coordinates a test is of."""
    inner = list(walk(node))
    if any(n.op not in ("map", "iota", "const") for n in inner):
        return set()
    return {str(n.attr[0]) for n in inner if n.op == "iota"}


def _walked(program: Program) -> set[str]:
    """The axes along which prefixes are made, or states are carried over a part of the axis."""
    nodes = list(walk(*program.body))
    partly = {n.attr[0] for n in nodes if n.op == "fold" and not _from_end_to_end(n)}
    return partly | {n.attr[1] for n in nodes if n.op == "scan"}


def _from_end_to_end(loop: Node) -> bool:
    """Whether the loop runs over the whole of its axis, as far as its body says how long it is."""
    axis, _, n_intervals, _ = loop.attr
    lo, hi = loop.src[:2]
    if n_intervals != 1 or lo.op != "const" or lo.attr[0] or hi.op != "const":
        return False
    extents = {e for n in walk(*loop.src[2:]) for a, e in n.free if a == axis}
    return extents <= {hi.attr[0]}


def _source(program: Program, axis: str) -> tuple[str, int] | None:
    """The first input with the axis, and its place there."""
    for node in program.inputs:
        dims = [a for a, _ in node.attr[1]]
        if axis in dims:
            return str(node.attr[0]), dims.index(axis)
    return None


def _aligns(program: Program, axis: str, fixed: set[str]) -> bool:
    """Whether addresses are aligned only where multiples of the axis' extent are: it is the last
    of a tensor, or in a stride whose other closed factors are not enough."""
    tensors = [list(n.attr[1]) for n in program.inputs]
    tensors += [list(zip(o.dims, o.extents)) for o in program.outputs]
    for dims in tensors:
        names = [a for a, _ in dims]
        if axis not in names:
            continue
        *behind, (last, extent) = dims[names.index(axis) :]
        known = math.prod(e for a, e in (*behind, (last, extent)) if a in fixed)
        known *= 1 if last in fixed else math.gcd(extent, ALIGNED)
        if last == axis or (names[0] != axis and known % ALIGNED):
            return True
    return False


# ---- opening -----------------------------------------------------------------------------------


def generalise(program: Program, wanted: Mapping[str, int]) -> Opened:
    """The program with the extents of these axes open, {axis: unit}; axes that are linked share a
    size. Units divide their extents."""
    extents = _extents(program)
    table: dict[str, Extent] = {}
    sizes: dict[Size, int] = {}
    for group in _links(program, extents):
        members = [a for a in extents if a in group and a in wanted]
        found = next((s for a in members if (s := _source(program, a)) is not None), None)
        if found is None:
            continue
        (extent,) = extents[members[0]]
        unit = wanted[members[0]]
        size = Size(f"{members[0]}.{f'by{unit}' if unit > 1 else 'size'}", unit, *found)
        sizes[size] = extent // unit
        value = knob(size.name) if unit == 1 else knob(size.name) * unit
        table |= dict.fromkeys(members, value)
    if not table:
        return Opened(program, Sizes())
    return Opened(_with_extents(program, table), Sizes(tuple(sizes), tuple(sizes.values())))


def _with_extents(program: Program, table: Mapping[str, Extent]) -> Program:
    """The program with the extents of axes exchanged, wherever nodes mention them."""
    memo: dict[Node, Node] = {}
    for node in walk(*program.body, *program.inputs):
        src = tuple(memo[s] for s in node.src)
        memo[node] = _with_attr(node, src, table)
    outputs = tuple(
        Output(o.name, o.dims, o.dtype, tuple(table.get(a, e) for a, e in zip(o.dims, o.extents)))
        for o in program.outputs
    )
    return replace(
        program, inputs=tuple(memo[n] for n in program.inputs), outputs=outputs,
        body=tuple(memo[n] for n in program.body),
    )  # fmt: skip


def _with_attr(node: Node, src: tuple[Node, ...], table: Mapping[str, Extent]) -> Node:
    if node.op == "iota" and node.attr[0] in table:
        return iota(node.attr[0], table[node.attr[0]], node.attr[2])
    attr = node.attr
    if node.op == "fold" and attr[0] in table and attr[2] == 1:
        src = (src[0], as_node(table[attr[0]]), *src[2:])
    if node.op in ("input", "carry"):
        at = 1 if node.op == "input" else 2
        dims = tuple((a, table.get(a, e)) for a, e in attr[at])
        attr = (*attr[:at], dims, *attr[at + 1 :])
    return node if src == node.src and attr == node.attr else Node(node.op, src, attr)
