"""Stages of a model in, groups of them out: what one kernel computes together.

The criteria are facts of the algebra and of the target: which axes all stages of a group run
over (they become the outer loops), what is stored and read less, what is read again for every
block of those axes, whether a block's values fit the cache, whether cores stay busy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from autosched.ir.count import factors, nbytes
from autosched.ir.node import Node
from autosched.ir.stages import Stage, same_axes
from autosched.ir.target import Target
from autosched.ir.views import walk_values

# Time to start a parallel region and wait for its end (an estimate for a few cores).
LAUNCH_US = 5.0
BLOCK_ROWS = 64  # rows of the common axes that share one pass over the other operands
SCRATCH_ROWS = 16  # rows of a block whose intermediate values must fit the L2 cache
SMALL_WORK = 65536.0  # weighted operations below which one core is as good as all
# Bandwidth of each cache, in multiples of the memory's: estimates for server cores.
L2_SPEED, L3_SPEED = 12.0, 4.0
MIN_GAIN_US = 1.0  # a chain of contractions must win more than this
SIMPLE_SHARE = 0.25  # share of the peak rate that maps reach


@dataclass(frozen=True)
class Options:
    """What may be fused.

    siblings: equal contractions of one input (Q, K and V) become one task.
    rows_after_contraction: row statistics (a norm) join the contraction that feeds them.
    chains_of_weights: contractions with constant operands join chains, too. Those operands are
        packed once for a tile of their own, so that a chain takes more from them.
    maps_into_consumers: a map that one contraction reads, with no part twice, joins it.
    max_contractions: how many contractions, one after the other, a group may hold.
    """

    siblings: bool = True
    chains_of_weights: bool = False
    maps_into_consumers: bool = False
    rows_after_contraction: bool = False
    max_contractions: int = 2
    max_siblings: int = 4


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
    return common_volume(members, common) >= 4 * target.cores


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


# ---- groups ------------------------------------------------------------------------------------


class Groups:
    """A partition of stages and islands whose quotient graph has no cycle.

    Nodes of `graph` are stage indices, and -1 - n for island n.
    """

    def __init__(self, stages: Sequence[Stage], graph: nx.DiGraph, target: Target) -> None:
        self.stages = stages
        self.target = target
        self.group_of: dict[int, int] = {n: n for n in graph}
        self.members: dict[int, list[int]] = {n: [n] for n in graph}
        self.quotient: nx.DiGraph = graph.copy()
        self.graph = graph
        self.constant: set[int] = set()  # stages made of weights alone, computed once
        for stage in stages:
            known = (i in self.constant for i in stage.sources.values())
            leaves = (v.attr[3] == "weight" for v in stage.reads if v not in stage.sources)
            if all(known) and all(leaves):
                self.constant.add(stage.index)

    def of(self, group: int) -> list[Stage]:
        return [self.stages[i] for i in sorted(self.members[group])]

    def union(self, groups: Iterable[int]) -> list[Stage]:
        return [self.stages[i] for i in sorted(i for g in set(groups) for i in self.members[g])]

    def joinable(self, groups: Iterable[int]) -> bool:
        """Whether no value would go from the groups to another group or island and back, and
        nothing that is constant would be computed in every call."""
        merged = set(groups)
        if len({s.index in self.constant for s in self.union(merged)}) > 1:
            return False
        seen: set[int] = set()
        stack = [s for g in merged for s in self.quotient.successors(g) if s not in merged]
        while stack:
            here = stack.pop()
            if here in merged:
                return False
            if here not in seen:
                seen.add(here)
                stack.extend(self.quotient.successors(here))
        return True

    def join(self, groups: Iterable[int]) -> int:
        """Makes one group of several; the caller has asked `joinable`."""
        merged = sorted(set(groups))
        into = merged[0]
        for g in merged[1:]:
            for i in self.members[g]:
                self.group_of[i] = into
            self.members[into] += self.members.pop(g)
            before = [p for p in self.quotient.predecessors(g) if p != into]
            after = [s for s in self.quotient.successors(g) if s != into]
            self.quotient.remove_node(g)
            self.quotient.add_edges_from((p, into) for p in before)
            self.quotient.add_edges_from((into, s) for s in after)
        return into

    def needed_outside(self, members: Sequence[Stage]) -> set[int]:
        """The members whose value must be stored, were the members one group."""
        inside = {s.index for s in members}
        return {
            s.index for s in members
            if s.roots or any(user not in inside for user in self.graph.successors(s.index))
        }  # fmt: skip

    def contractions(self, groups: Iterable[int]) -> int:
        return sum(s.is_contraction for s in self.union(groups))

    def fits(self, members: Sequence[Stage]) -> bool:
        """Whether the members can run block by block over axes that they have in common."""
        if any(s.is_recurrence for s in members):
            return False
        common = common_axes(members)
        if not keeps_cores_busy(members, common, self.target):
            return False
        cache = self.target.l2_bytes if self.target.kind == "cpu" else self.target.l1_bytes
        return scratch_bytes(members, common) <= cache


def fuse(groups: Groups, options: Options) -> None:
    """Joins groups: rows, then chains of contractions, then maps into their only consumer."""
    _join_rows(groups, options)
    _join_chains(groups, options)
    if options.maps_into_consumers:
        _join_maps(groups)


def _join_rows(groups: Groups, options: Options) -> None:
    """A reduce or map joins the producer of what it reads row by row: norms, softmax."""
    for stage in groups.stages:
        if stage.is_contraction or stage.is_recurrence:
            continue
        for producer in sorted(set(stage.sources.values()), reverse=True):
            pair = {groups.group_of[producer], groups.group_of[stage.index]}
            if len(pair) == 1 or not groups.joinable(pair):
                continue
            if groups.contractions(pair) and not (
                options.rows_after_contraction
                or (len(groups.members[groups.group_of[stage.index]]) == 1
                    and _is_epilogue(groups.stages[producer], stage))
            ):  # fmt: skip
                continue
            if groups.fits(groups.union(pair)):
                groups.join(pair)


def _is_epilogue(producer: Stage, stage: Stage) -> bool:
    """Whether a map has exactly the axes of a value that it reads at its own coordinate."""
    handle = next(h for h, p in stage.sources.items() if p == producer.index)
    axes = {a for a, _ in producer.node.free}
    same = same_axes(stage, handle)
    return not stage.loops and set(same) == axes and set(same.values()) == set(stage.node.names)


def _join_chains(groups: Groups, options: Options) -> None:
    """A contraction joins an earlier one where that saves more than it costs: attention."""
    chains = []
    for stage in groups.stages:
        if stage.is_contraction:
            for first in _contractions_before(groups, stage):
                between = nx.descendants(groups.graph, first) & nx.ancestors(
                    groups.graph, stage.index
                )
                chain = sorted({first, stage.index, *between})
                gain = _gain(groups, chain, options)
                if gain > MIN_GAIN_US:
                    chains.append((-gain, chain))
    for _, chain in sorted(chains):
        if _gain(groups, chain, options) > MIN_GAIN_US:
            groups.join(groups.group_of[i] for i in chain)


def _contractions_before(groups: Groups, stage: Stage) -> list[int]:
    """The contractions whose values reach `stage` through other stages, none of them one."""
    seen: set[int] = set()
    found: list[int] = []
    stack = list(stage.sources.values())
    while stack:
        here = stack.pop()
        if here in seen:
            continue
        seen.add(here)
        if groups.stages[here].is_contraction:
            found.append(here)
        else:
            stack.extend(groups.stages[here].sources.values())
    return sorted(found)


def _gain(groups: Groups, chain: Sequence[int], options: Options) -> float:
    """Microseconds won by making one group of a chain; 0 where that is not possible."""
    if any(i < 0 for i in chain):
        return 0.0  # an island lies between
    merged = {groups.group_of[i] for i in chain}
    if len(merged) == 1 or groups.contractions(merged) > options.max_contractions:
        return 0.0
    members = groups.union(merged)
    if not options.chains_of_weights and any(map(_has_weight_factor, members)):
        return 0.0
    if not groups.joinable(merged) or not groups.fits(members):
        return 0.0
    outside = groups.needed_outside(members)
    common = common_axes(members)
    saved = saved_us(members, groups.group_of, outside, groups.target)
    return saved - reread_us(members, common, groups.target)


def _has_weight_factor(stage: Stage) -> bool:
    """Whether a factor of a contraction is a function of weights alone."""
    for loop in stage.loops:
        for factor in factors(loop) or ():
            leaves = [n for n in walk_values(factor) if n.op == "input"]
            if leaves and all(n.attr[3] == "weight" for n in leaves):
                return True
    return False


def _join_maps(groups: Groups) -> None:
    """A map that one group alone reads joins it if that group's blocks need no part of it twice:
    rotary embedding of queries."""
    for stage in reversed(groups.stages):
        group = groups.group_of[stage.index]
        if stage.loops or stage.roots or len(groups.members[group]) > 1:
            continue
        users = {groups.group_of[u] for u in groups.graph.successors(stage.index)}
        if len(users) != 1 or min(users) < 0 or not groups.joinable((group, *users)):
            continue
        (user,) = users
        old, new = groups.of(user), groups.union((group, user))
        before = common_volume(old, common_axes(old))
        if common_volume(new, common_axes(new)) == before and groups.fits(new):
            groups.join((group, user))


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
