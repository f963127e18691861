"""A condition on integers in, its conjunctive form out: clauses of which each is a choice of tests.

    (i >= j and j >= start) or j < sinks   is   (i >= j or j < sinks) and (j >= start or j < sinks)

A test is a difference that must not be negative. Equality and magnitudes are two such tests;
what is none stays as it is, and nothing is known of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from autosched.ir.extent import simplify
from autosched.ir.linear import INDEX_TYPES, from_poly, poly
from autosched.ir.node import Node

Clause = tuple["Node | None", ...]  # differences, one of them not negative; None: anything else
MOST = 64  # clauses of a condition; one with more counts as unknown
UNKNOWN: tuple[Clause, ...] = ((None,),)
# A comparison says that  sign * (a - b) + offset  is not negative.
_SIGNS: Mapping[str, tuple[int, int]] = {"ge": (1, 0), "gt": (1, -1), "le": (-1, 0), "lt": (-1, -1)}
_OPPOSITE: Mapping[str, str] = {"ge": "lt", "lt": "ge", "gt": "le", "le": "gt"}
_DUAL: Mapping[str, str] = {"and": "or", "or": "and"}


def clauses(condition: Node, holds: bool = True) -> tuple[Clause, ...]:
    """All of these hold where the condition does (or where it does not)."""
    fn = condition.attr[0] if condition.op == "map" else ""
    if condition.op == "const":
        return () if condition.attr[0] is holds else ((),)
    if condition.op != "map":
        return UNKNOWN
    if fn == "not":
        return clauses(condition.src[0], not holds)
    if fn in _DUAL:
        parts = [clauses(s, holds) for s in condition.src]
        return _all(parts) if (fn if holds else _DUAL[fn]) == "and" else _any(parts)
    if condition.src[0].dtype not in INDEX_TYPES:
        return UNKNOWN
    if fn in ("eq", "ne"):
        a, b = condition.src
        if (fn == "eq") is holds:
            return _all([_compared("ge", a, b), _compared("le", a, b)])
        return _any([_compared("gt", a, b), _compared("lt", a, b)])
    if fn in _SIGNS:
        return _compared(fn if holds else _OPPOSITE[fn], *condition.src)
    return UNKNOWN


def parts_of(condition: Node) -> Iterator[Node]:
    """The operands of a conjunction, of those inside it too."""
    if condition.op == "map" and condition.attr[0] == "and":
        for s in condition.src:
            yield from parts_of(s)
    else:
        yield condition


def _all(parts: list[tuple[Clause, ...]]) -> tuple[Clause, ...]:
    return tuple(dict.fromkeys(c for p in parts for c in p))


def _any(parts: list[tuple[Clause, ...]]) -> tuple[Clause, ...]:
    count = 1
    for p in parts:
        count *= len(p)
    if count > MOST:
        return UNKNOWN
    joined = (tuple(dict.fromkeys(t for c in pick for t in c)) for pick in product(*parts))
    return tuple(dict.fromkeys(joined))


def _compared(fn: str, a: Node, b: Node) -> tuple[Clause, ...]:
    """A comparison as differences; the magnitude of a value is the greater of it and its
    negative."""
    sign, offset = _SIGNS[fn]
    terms = poly(simplify((a - b) * sign + offset))
    for atoms, factor in terms.items():
        if len(atoms) == 1 and atoms[0].op == "map" and atoms[0].attr[0] == "abs":
            (inner,) = atoms[0].src
            rest = from_poly({m: c for m, c in terms.items() if m != atoms}, a.dtype)
            sides = [_not_negative(rest + inner * c) for c in (factor, -factor)]
            return _all(sides) if factor < 0 else _any(sides)
    return _not_negative(from_poly(terms, a.dtype))


def _not_negative(difference: Node) -> tuple[Clause, ...]:
    difference = simplify(difference)
    if difference.op == "const":
        return () if difference.attr[0] >= 0 else ((),)
    return ((difference,),)
