"""Stages in, what it costs or saves to compute them together out: axes, bytes, microseconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import networkx as nx

from autosched.ir.count import nbytes
from autosched.ir.node import Node
from autosched.ir.stages import Stage, same_axes
from autosched.ir.target import Target

# Time to start a parallel region and wait for its end (an estimate for a few cores).
LAUNCH_US = 5.0
BLOCK_ROWS = 64  # rows of the common axes that share one pass over the other operands
SCRATCH_ROWS = 16  # rows of a block whose intermediate values must fit the L2 cache
# Rows of the common axes for each core. A multiprocessor shares one row out to all its lanes, and a
# launch costs more than idle ones: there a quarter of them suffices.
ROWS_PER_CORE = {"cpu": 4.0, "gpu": 0.25}
SMALL_WORK = 65536.0  # weighted operations below which one core is as good as all
# Bandwidth of each cache, in multiples of the memory's: estimates for server cores.
L2_SPEED, L3_SPEED = 12.0, 4.0
SIMPLE_SHARE = 0.25  # share of the peak rate that maps reach


# ---- axes that stages have in common -----------------------------------------------------------

AxisOf = Mapping[int, str]  # stage -> its name of a common axis


def common_axes(members: Sequence[Stage]) -> tuple[AxisOf, ...]:
    """The axes that every member has, and reads from the other members at its own coordinate."""
    inside = {s.index: s for s in members}
    same = nx.Graph()
    links: list[tuple[Stage, Stage, dict[str, str]]] = []
    for stage in members:
        same.add_nodes_from((stage.index, axis) for axis, _ in stage.node.free)
        for handle, producer in stage.sources.items():
            if producer in inside:
                names = same_axes(stage, handle)
                links.append((inside[producer], stage, names))
                same.add_edges_from(((producer, a), (stage.index, b)) for a, b in names.items())
    out = []
    for found in nx.connected_components(same):
        names_of = dict(found)
        if len(found) != len(members) or len(names_of) != len(members):
            continue
        if all(names.get(names_of[p.index]) == names_of[c.index] for p, c, names in links):
            out.append(names_of)
    order = {axis: n for n, axis in enumerate(members[-1].dims)}
    return tuple(sorted(out, key=lambda names: order[names[members[-1].index]]))


def _volume(stage: Stage, axes: Iterable[str]) -> int:
    sizes = dict(stage.node.free)
    return math.prod(int(str(sizes[a])) for a in axes)


def common_volume(members: Sequence[Stage], common: Sequence[AxisOf]) -> int:
    last = members[-1]
    return _volume(last, (names[last.index] for names in common))


def keeps_cores_busy(members: Sequence[Stage], common: Sequence[AxisOf], target: Target) -> bool:
    """Whether the common axes give every core some blocks, or the work is too small to share."""
    if sum(s.cost for s in members) <= SMALL_WORK:
        return True
    return common_volume(members, common) >= ROWS_PER_CORE[target.kind] * target.cores


def scratch_bytes(members: Sequence[Stage], common: Sequence[AxisOf]) -> float:
    """Bytes of the values that members pass to each other, for one block of rows."""
    inside = {s.index: s for s in members}
    used = {p for s in members for p in s.sources.values() if p in inside}
    points = common_volume(members, common)
    total = sum(nbytes(inside[p].node) for p in used)
    return total / points * min(SCRATCH_ROWS, points)


# ---- what is saved and what is paid ------------------------------------------------------------


def move_us(size: float, working_set: float, target: Target) -> float:
    """Microseconds to move `size` bytes where `working_set` bytes per core live."""
    if working_set <= target.l1_bytes / 2:
        return 0.0
    if working_set <= target.l2_bytes:
        speed = L2_SPEED
    else:
        speed = L3_SPEED if working_set <= target.l3_bytes / target.cores else 1.0
    return size / (target.dram_gbs * speed * 1e3)


def saved_us(
    members: Sequence[Stage], group_of: Mapping[int, int], outside: set[int], target: Target
) -> float:
    """Microseconds less for values that need not be stored, or not be read again.

    `outside`: the stages whose value others need too. Kernels that need not be started count
    where more bytes vanish than are stored: else a chain only takes freedom from its parts.
    """
    inside = {s.index: s for s in members}
    crossing: dict[int, set[int]] = {}
    for stage in members:
        for producer in stage.sources.values():
            if producer in inside and group_of[producer] != group_of[stage.index]:
                crossing.setdefault(producer, set()).add(group_of[stage.index])
    vanish = sum(nbytes(s.node) for s in members if s.index not in outside)
    stored = sum(nbytes(s.node) for s in members if s.index in outside)
    launches = len({group_of[i] for i in inside}) - 1
    total = launches * LAUNCH_US if vanish > stored else 0.0
    for producer, readers in crossing.items():
        size = nbytes(inside[producer].node)
        passes = len(readers) + (producer not in outside)
        # At least the second level: another core may have written what one reads.
        level = max(size / target.cores, target.l1_bytes)
        total += move_us(passes * size, level, target)
    return total


def reread_us(members: Sequence[Stage], common: Sequence[AxisOf], target: Target) -> float:
    """Microseconds more for operands of contractions that are read again for every block of the
    common axes that they do not have."""
    points = common_volume(members, common)
    rows = max(1, min(BLOCK_ROWS, points // (4 * target.cores)))
    inside = {s.index for s in members}
    total = 0.0
    for stage in members:
        if not stage.is_contraction:
            continue
        here = [names[stage.index] for names in common]
        for handle, reads in stage.reads.items():
            if stage.sources.get(handle) in inside:
                continue
            touched = {a for env in reads for e in env.values() for a in e.names}
            lacking = _volume(stage, (a for a in here if a not in touched))
            has = _volume(stage, (a for a in here if a in touched))
            again = max(0.0, lacking / rows - 1)
            size = nbytes(handle)
            total += move_us(size * again, size / max(1, min(has, size)), target)
    return total


def recompute_us(stage: Stage, users: Sequence[Stage], target: Target) -> float:
    """Microseconds to compute a map again at every point of the loops that read it."""
    points = 0.0
    for user in users:
        spaces = [nbytes(s) for loop in user.loops for s in loop.src] or [nbytes(user.node)]
        points += max(spaces) / max(1, nbytes(stage.node))
    return stage.cost * points / (target.peak() * SIMPLE_SHARE * 1e3)


def store_us(node: Node, target: Target) -> float:
    """Microseconds to store a value in a kernel of its own and to read it again."""
    return LAUNCH_US + move_us(2 * nbytes(node), nbytes(node) / target.cores, target)
