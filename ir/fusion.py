"""Stages of a model in, groups of them out: what one kernel computes together.

The criteria are facts of the algebra and of the target: which axes all stages of a group run
over (they become the outer loops), what is stored and read less, what is read again for every
block of those axes, whether a block's values fit the cache, whether cores stay busy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from autosched.ir.count import factors, nbytes
from autosched.ir.gains import (
    common_axes,
    common_volume,
    keeps_cores_busy,
    reread_us,
    saved_us,
    scratch_bytes,
)
from autosched.ir.stages import Stage, same_axes
from autosched.ir.target import Target
from autosched.ir.views import walk_values

MIN_GAIN_US = 1.0  # a chain of contractions must win more than this


@dataclass(frozen=True)
class Options:
    """What may be fused.

    siblings: equal contractions of one input (Q, K and V) become one task.
    rows_after_contraction: row statistics (a norm) join the contraction that feeds them.
    chains_of_weights: contractions with constant operands join chains, too. Those operands are
        packed once for a tile of their own, so that a chain takes more from them.
    maps_into_consumers: a map that one contraction reads, with no part twice, joins it.
    max_contractions: how many contractions a group may hold, one after the other.
    """

    siblings: bool = True
    chains_of_weights: bool = False
    maps_into_consumers: bool = False
    rows_after_contraction: bool = False
    max_contractions: int = 2
    max_siblings: int = 4


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

    def depth(self, members: Sequence[Stage]) -> int:
        """How many contractions of the members follow one another at most."""
        deep: dict[int, int] = {}
        for s in members:
            deep[s.index] = depth_of(s, deep)
        return max(deep.values(), default=0)

    def fits(self, members: Sequence[Stage]) -> bool:
        """Whether the members can run block by block over axes that they have in common."""
        if any(s.is_recurrence for s in members):
            return False
        common = common_axes(members)
        if not keeps_cores_busy(members, common, self.target):
            return False
        cache = self.target.l2_bytes if self.target.kind == "cpu" else self.target.l1_bytes
        return scratch_bytes(members, common) <= cache


def depth_of(stage: Stage, deep: Mapping[int, int]) -> int:
    """How many contractions follow one another up to a stage, from those up to its sources.

    What only the epilogue of a contraction reads does not come before it: it may be made beside.
    """
    found = [deep[p] for p in stage.sources.values() if p in deep]
    if stage.is_contraction:
        below = set(walk_values(*(s for loop in stage.loops for s in loop.src)))
        fed = [deep[p] for v, p in stage.sources.items() if p in deep and v in below]
        found.append(max(fed, default=0) + 1)
    return max(found, default=0)


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
            found = [_family(groups, stage, options)]
            for first in _contractions_before(groups, stage):
                between = nx.descendants(groups.graph, first) & nx.ancestors(
                    groups.graph, stage.index
                )
                found.append(sorted({first, stage.index, *between}))
            chains += [(-gain, c) for c in found if (gain := _gain(groups, c, options))]
    for _, chain in sorted(chains):
        if _gain(groups, chain, options) > MIN_GAIN_US:
            groups.join(groups.group_of[i] for i in chain)


def _family(groups: Groups, first: Stage, options: Options) -> list[int]:
    """A contraction, all that is made of it up to the last contractions that may follow, and
    the other contractions that are read in between alone: two products under one softmax, two
    sums of one. What loops over the results of the last is left out, unless less is stored then.
    """
    inside = {first.index: 1}  # stage: contractions up to there
    while _may_follow(first, options):
        near = {u for i in inside for u in groups.graph.successors(i) if u >= 0}
        size = len(inside)
        for stage in (groups.stages[i] for i in sorted(near - set(inside))):
            depth = depth_of(stage, inside)
            if depth <= options.max_contractions and _may_follow(stage, options):
                inside[stage.index] = depth
        inside |= dict.fromkeys(_beside(groups, inside, options), 1)
        if len(inside) == size:
            break
    whole = sorted(inside)
    return whole if _shrinks(groups, whole) else _without_rows(groups, whole, options)


def _beside(groups: Groups, inside: Mapping[int, int], options: Options) -> list[int]:
    """The contractions that stages inside alone read, and that read none of these."""
    before = {p for i in inside for p in groups.graph.predecessors(i) if p >= 0} - set(inside)
    out = []
    for stage in (groups.stages[i] for i in sorted(before)):
        apart = not stage.roots and not set(stage.sources.values()) & set(inside)
        alone = set(groups.graph.successors(stage.index)) <= set(inside)
        if apart and alone and stage.is_contraction and _may_follow(stage, options):
            out.append(stage.index)
    return out


def _may_follow(stage: Stage, options: Options) -> bool:
    if stage.is_recurrence:
        return False
    return not stage.is_contraction or options.chains_of_weights or not _has_weight_factor(stage)


def _shrinks(groups: Groups, chain: Sequence[int]) -> bool:
    """Whether more bytes of values vanish in a chain than it stores."""
    members = [groups.stages[i] for i in chain]
    outside = groups.needed_outside(members)
    stored = sum(nbytes(s.node) for s in members if s.index in outside)
    return sum(nbytes(s.node) for s in members) > 2 * stored


def _without_rows(groups: Groups, chain: Sequence[int], options: Options) -> list[int]:
    """A chain without the loops that follow its last contractions, and what is made of them."""
    members = [groups.stages[i] for i in chain]
    last = {
        s.index for s in members
        if s.is_contraction and not any(
            groups.stages[i].is_contraction
            for i in nx.descendants(groups.graph, s.index) if i in chain
        )
    }  # fmt: skip
    gone: set[int] = set()
    for s in members:
        before = set(s.sources.values())
        rows = bool(s.loops) and not s.is_contraction and not options.rows_after_contraction
        if before & gone or (rows and before & last):
            gone.add(s.index)
    return [i for i in chain if i not in gone]


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
    members = groups.union(merged)
    if len(merged) == 1 or groups.depth(members) > options.max_contractions:
        return 0.0
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
