"""A clause of tests and the axis of a loop over blocks in, the steps at which it may hold out.

A test that is affine in the step holds up to some step or from some step on. What else it reads
takes its extremes over a block: of coordinates they are known, of monotone functions of these
too, and of what is loaded for each row (the start of its document, say) they are reduced from the
block, once before the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from autosched.ir.clauses import Clause, parts_of
from autosched.ir.extent import as_node, simplify
from autosched.ir.linear import Monomial, from_poly, poly, range_of
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Node
from autosched.ir.ops import const, map_, maximum, minimum, where

LEAST, MOST = "min", "max"  # monoids that tell the extremes of a block
_ALIKE = ("min", "max")  # functions that rise with each operand


@dataclass(frozen=True)
class Around:
    """What stands around a loop: the loops that it is in and itself; other loops, which run over
    all of their steps; tests without which nothing is stored, of elements that none other reads."""

    axis: str
    loops: Collection[str]
    inner: Collection[str]
    stored: Collection[Node]


@dataclass(frozen=True)
class Span:
    """Steps below one and from another on. At all of `possible` some element may pass, at those of
    `certain` all elements do; None is an end that no test sets."""

    possible: tuple[Node | None, Node | None]
    certain: tuple[Node | None, Node | None]

    @property
    def upper(self) -> bool:
        return self.possible[1] is None

    @property
    def lower(self) -> bool:
        return self.possible[0] is None


@dataclass(frozen=True)
class _Bound:
    """`0 <= slope * step + rest`; rest lies in [least, most] over the elements of a block."""

    slope: int
    least: Node
    most: Node

    def crossing(self, rest: Node) -> Node:
        """slope < 0: the first step at which slope * step + rest < 0; else the first at which it
        is not negative. At least 0."""
        size = abs(self.slope)
        above = rest + size if self.slope < 0 else const(size - 1, "int32") - rest
        return simplify(map_("floordiv", maximum(above, 0), const(size, "int32")))


def span(clause: Clause, end: Node, around: Around) -> Span | None:
    """Where one of the tests holds; None where the clause has no affine test, or another kind."""
    found = [None if test is None else _bound(test, around) for test in clause]
    bounds = [b for b in found if b is not None]
    if len(bounds) < len(found) or not any(b.slope for b in bounds):
        return None
    below = [b for b in bounds if b.slope < 0]
    above = [b for b in bounds if b.slope > 0]
    fixed = [b for b in bounds if not b.slope]
    sides = []
    for part in ("most", "least"):
        low = [b.crossing(getattr(b, part)) for b in below]
        high = [b.crossing(getattr(b, part)) for b in above]
        for b in fixed:  # all steps or none
            every = getattr(b, part) >= 0
            if below:
                low.append(where(every, end, 0))
            else:
                high.append(where(every, 0, end))
        sides.append((_joined(maximum, low), _joined(minimum, high)))
    return Span(*sides)


def _joined(fn: object, ends: Sequence[Node]) -> Node | None:
    return simplify(functools.reduce(fn, ends)) if ends else None  # type: ignore[call-overload]


# ---- one test ----------------------------------------------------------------------------------


def _bound(difference: Node, around: Around) -> _Bound | None:
    terms = _undivided(poly(difference), around.axis)
    slope, rest = 0, {}
    for atoms, factor in terms.items():
        if any(around.axis in dict(n.free) for n in atoms):
            if len(atoms) != 1 or atoms[0].op != "iota":
                return None
            slope = factor
        else:
            rest[atoms] = factor
    least, most = (_extreme(rest, which, around) for which in (LEAST, MOST))
    return None if least is None or most is None else _Bound(slope, least, most)


def _undivided(terms: Mapping[Monomial, int], axis: str) -> Mapping[Monomial, int]:
    """r - x // c >= 0 as (r + 1) c - 1 - x >= 0, and r + x // c >= 0 as r c + x >= 0."""
    varying = [m for m in terms if any(axis in dict(n.free) for n in m)]
    if len(varying) != 1 or len(varying[0]) != 1 or abs(terms[varying[0]]) != 1:
        return terms
    ((atom,),) = varying
    if atom.op != "map" or atom.attr[0] != "floordiv" or atom.src[1].op != "const":
        return terms
    x, size = atom.src
    rest = from_poly({m: c for m, c in terms.items() if m != (atom,)}, "int32")
    if terms[(atom,)] < 0:
        return poly(simplify((rest + 1) * size - 1 - x))
    return poly(simplify(rest * size + x))


# ---- extremes over a block -----------------------------------------------------------------------


def _extreme(terms: Mapping[Monomial, int], which: str, around: Around) -> Node | None:
    """The least or greatest value over the elements of a block."""
    out: Node = const(0, "int32")
    for atoms, factor in terms.items():
        tiles = [n for n in atoms if any(a not in around.loops for a, _ in n.free)]
        if not tiles:
            out = out + from_poly({atoms: factor}, "int32")
            continue
        others = list(atoms)
        others.remove(tiles[0])
        if len(tiles) > 1 or not all(_not_negative(n) for n in others):
            return None
        end = _end(tiles[0], which if factor > 0 else MOST if which == LEAST else LEAST, around)
        if end is None:
            return None
        out = out + from_poly({tuple(others): factor}, "int32") * end
    return simplify(out)


def _not_negative(factor: Node) -> bool:
    least, _ = range_of(factor)
    return least is not None and least >= 0


def _end(at: Node, which: str, around: Around) -> Node | None:
    if at.op == "iota":
        return as_node(0) if which == LEAST else as_node(at.attr[1]) - 1
    known = range_of(at)[0 if which == LEAST else 1]
    if known is not None and not any(a in around.loops for a, _ in at.free):
        return as_node(known)
    if at.op == "map" and at.attr[0] == "floordiv" and at.src[1].op == "const":
        inner = _extreme(poly(at.src[0]), which, around)
        return None if inner is None else map_("floordiv", inner, at.src[1])
    if at.op == "map" and at.attr[0] in _ALIKE:
        parts = [_extreme(poly(s), which, around) for s in at.src]
        if any(p is None for p in parts):
            return None
        return map_(at.attr[0], *(p for p in parts if p is not None))
    return _reduced(at, which, around)


def _reduced(at: Node, which: str, around: Around) -> Node | None:
    """The extreme of whatever the block holds, over the elements that are stored."""
    axes = tuple(a for a, _ in at.free if a not in around.loops)
    if at.carries or {*axes} & {*around.inner}:
        return None
    (identity,) = MONOIDS[which].identity
    rest = const(dtype_limit(identity, at.dtype), at.dtype)
    if at.op == "load" and at.attr[1] and all(t in around.stored for t in parts_of(at.src[-2])):
        at = Node("load", (*at.src[:-1], rest), at.attr)
    return Node("reduce", (at,), (which, axes))
