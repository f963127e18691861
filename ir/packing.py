"""Which axes of a kernel may share the rows of one box: values in, groups of axes out.

A row of a contraction's box belongs to one operand alone: the other is read once for all rows. An
axis of both operands has such rows too where one operand varies with it slowly: scores of q[h, i]
and k[h // r, j] have the r heads of a group beside the queries i.

    grains    q: {h: 1, i: 1}    k: {h: r, j: 1}      (0, that is absent: does not depend on it)
    rows      h in blocks of r, and i
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from autosched.ir.extent import simplify
from autosched.ir.gpu_axes import KernelAxes, factors_of
from autosched.ir.index import substitute
from autosched.ir.node import Node, walk
from autosched.ir.ops import iota

Grains = Mapping[str, int]  # axis: the greatest known g such that only axis // g counts
Env = Mapping[str, Node]
BOUND = "~"  # before the names of axes that a loop binds: no output has them


def packable(
    values: Sequence[Node], stop: set[Node], extents: Mapping[str, int]
) -> tuple[dict[str, int], ...]:
    """Groups of output axes that lie on the same side of every contraction they are part of.

    Args: values of a kernel; stop, those that other kernels store; extents of the output axes.
    Returns: {axis: elements of it that share what the other side reads}, for each group.
    """
    alone: dict[str, int] = {}  # elements of an axis along which one operand stays the same
    beside: dict[str, set[str]] = {}
    mixed: set[str] = set()  # along which both operands of some contraction move
    for pair in _contractions(values, stop, extents):
        owns: list[str] = []
        for mine, other in (pair, pair[::-1]):
            own = {a: n for a in mine if (n := _members(mine[a], other.get(a, 0), extents[a])) > 1}
            for a, n in own.items():
                alone[a] = math.gcd(alone.get(a, n), n)
                beside[a] = beside.get(a, set(own)) & set(own)
            owns += own
        mixed |= {*pair[0], *pair[1]} - set(owns)
    groups: dict[frozenset[str], dict[str, int]] = {}
    for a in extents:
        if a in alone and a not in mixed:
            group = frozenset(b for b in beside[a] if b not in mixed)
            groups.setdefault(group, {})[a] = alone[a]
    return tuple(g for names, g in groups.items() if set(g) == names)


def in_outputs(
    axes: KernelAxes, values: Sequence[Node], stop: set[Node], extents: Mapping[str, int]
) -> KernelAxes:
    """The axes with those of the outputs that contractions are read along through views."""
    pairs = [(set(a), set(b)) for a, b in _contractions(values, stop, extents)]
    shared = set().union(axes.shared, *(a & b for a, b in pairs))
    left = set().union(axes.left, *(a ^ b for a, b in pairs))
    return replace(axes, shared=shared, left=left - shared)


def _members(mine: int, other: int, extent: int) -> int:
    """How many neighbours along an axis see the same of the other operand."""
    if other == 0:
        return extent
    return other // mine if other % mine == 0 else 1


def _contractions(
    values: Sequence[Node], stop: set[Node], extents: Mapping[str, int]
) -> list[tuple[Grains, Grains]]:
    """The grains of both operands of every contraction, along the axes of the outputs."""
    memo: dict[Node, Grains] = {}
    sides: list[tuple[Grains, Grains]] = []
    seen: set[tuple[Node, tuple[tuple[str, Node], ...]]] = set()
    own: Env = {a: iota(a, e) for a, e in extents.items()}
    todo = [(v, own) for v in values]
    while todo:
        node, env = todo.pop()
        bound = _bound(node)
        here = {a: env[a] for a, _ in node.free if a in env}
        inner = {**here, **{a: iota(f"{BOUND}{a}", e) for s in node.src for a, e in s.free
                            if a in bound}}  # fmt: skip
        key = (node, tuple(sorted(here.items(), key=lambda item: item[0])))
        if key in seen or (node in stop and node not in values):
            continue
        seen.add(key)
        pair = factors_of(node) if node.op == "reduce" else None
        if pair is not None:
            a, b = (_joined([_at(grains(f, memo), inner) for f in side]) for side in pair)
            sides.append((_only(a, extents), _only(b, extents)))
        moved = {}
        if node.op == "reaxis":
            moved = {a: substitute(e, here) for a, e in zip(node.attr[0], node.src[1:])}
        todo += [(s, {**inner, **moved}) for s in node.src[: 1 if moved else None]]
    return sides


def _only(found: Grains, names: Container[str]) -> Grains:
    return {a: g for a, g in found.items() if a in names}


def _bound(node: Node) -> tuple[str, ...]:
    if node.op == "reduce":
        return tuple(node.attr[1])
    return (node.attr[0],) if node.op in ("fold", "take") else ()


def _at(found: Grains, env: Env) -> Grains:
    """Grains of a value along the axes that its own are read at; bound axes drop out."""
    return _joined([_coarser(env[a], g) for a, g in found.items() if a in env])


def _joined(many: Sequence[Grains]) -> dict[str, int]:
    return {a: math.gcd(*(g.get(a, 0) for g in many)) for a in {a: 0 for g in many for a in g}}


def grains(node: Node, memo: dict[Node, Grains] | None = None) -> Grains:
    """How coarsely a value depends on each of its axes."""
    memo = {} if memo is None else memo
    for n in walk(node):
        if n not in memo:
            memo[n] = _grains(n, memo)
    return memo[node]


def _grains(node: Node, memo: Mapping[Node, Grains]) -> Grains:
    src = [memo[s] for s in node.src]
    match node.op:
        case "map" if node.attr[0] == "floordiv" and _is_count(node.src[1]):
            return _coarser(node.src[0], node.src[1].attr[0])
        case "map" | "reduce" | "take":
            kept = [{a: g for a, g in src[0].items() if a != node.attr[0]}, *src[1:]]
            found = _joined(kept if node.op == "take" else src)
        case "reaxis":
            moved = dict(zip(node.attr[0], node.src[1:]))
            found = _joined([
                _coarser(moved[a], g) if a in moved else {a: g} for a, g in src[0].items()
            ])  # fmt: skip
        case _:
            found = {a: 1 for t in node.types for a in t.names}
    names = {a for t in node.types for a in t.names}
    return {a: g for a, g in found.items() if a in names}


def _coarser(at: Node, grain: int) -> Grains:
    """The grains of at // grain, an index expression."""
    short = simplify(at // grain) if grain > 1 else simplify(at)
    step = 1
    if short.op == "map" and short.attr[0] == "floordiv" and _is_count(short.src[1]):
        short, step = short.src[0], short.src[1].attr[0]
    if short.op == "iota":
        return {short.attr[0]: step}
    return dict.fromkeys(short.names, 1)


def _is_count(node: Node) -> bool:
    return node.op == "const" and not isinstance(node.attr[0], float) and node.attr[0] > 0
