"""Rewriting one integer scalar function into a shorter equal one, by polynomials and ranges.

A polynomial is {monomial: coefficient}; a monomial is a sorted tuple of atoms: nodes that are no
sum, difference or product. The constant term belongs to the empty monomial.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

from autosched.ir.node import Extent, Node
from autosched.ir.ops import const, map_

INDEX_TYPES = ("int32", "int64")
Monomial = tuple[Node, ...]
Poly = dict[Monomial, int]
Range = tuple[int | None, int | None]  # inclusive; None is unknown
UNKNOWN: Range = (None, None)


def simplify_map(node: Node) -> Node:
    """An equal node for a `map` whose operands are simplified already."""
    if node.attr[0] in _LOGIC:
        return _LOGIC[node.attr[0]](node)
    if not node.src or node.src[0].dtype not in INDEX_TYPES:
        return node
    if node.attr[0] in _COMPARE:
        return _compare(node)
    return _RULES[node.attr[0]](node) if node.attr[0] in _RULES else node


# ---- polynomials ------------------------------------------------------------------------------


def poly(node: Node) -> Poly:
    """The node as a polynomial over its atoms."""
    if node.op == "const":
        return {(): node.attr[0]} if node.attr[0] else {}
    fn = node.attr[0] if node.op == "map" else ""
    if fn in ("add", "sub"):
        return _added(poly(node.src[0]), poly(node.src[1]), 1 if fn == "add" else -1)
    if fn == "neg":
        return _added({}, poly(node.src[0]), -1)
    if fn == "mul":
        return _multiplied(poly(node.src[0]), poly(node.src[1]))
    return {(node,): 1}


def _added(a: Poly, b: Poly, sign: int = 1) -> Poly:
    out = dict(a)
    for mono, coefficient in b.items():
        out[mono] = out.get(mono, 0) + sign * coefficient
    return {m: c for m, c in out.items() if c}


def _multiplied(a: Poly, b: Poly) -> Poly:
    out: Poly = {}
    for m, c in a.items():
        for n, d in b.items():
            mono = tuple(sorted(m + n, key=order))
            out[mono] = out.get(mono, 0) + c * d
    return {m: c for m, c in out.items() if c}


@functools.lru_cache(maxsize=1 << 12)  # atoms that hold others share most of what is below them
def order(node: Node) -> tuple[str, ...]:
    """A sort key of an atom that depends on its structure alone."""
    here = (node.op, *(str(a) for a in node.attr if not isinstance(a, (tuple, Node))))
    return here + tuple(part for s in node.src for part in order(s))


def from_poly(terms: Poly, dtype: str) -> Node:
    """The node of a polynomial: products in a fixed order, what is subtracted last."""
    ordered = sorted(terms.items(), key=lambda t: (t[0] == (), [order(a) for a in t[0]]))
    out: Node | None = None
    for mono, c in [t for t in ordered if t[1] > 0] + [t for t in ordered if t[1] < 0]:
        if out is None:
            out = _term(mono, c, dtype)
        elif c > 0:
            out = out + _term(mono, c, dtype)
        else:
            out = out - _term(mono, -c, dtype)
    return const(0, dtype) if out is None else out


def _term(mono: Monomial, c: int, dtype: str) -> Node:
    if not mono:
        return const(c, dtype)
    out = mono[0]
    for atom in mono[1:]:
        out = out * atom
    return out if c == 1 else out * c


# ---- ranges -----------------------------------------------------------------------------------


def range_of(node: Node) -> Range:
    """Least and greatest value of an index expression, as far as its structure tells."""
    if node.op == "const":
        return node.attr[0], node.attr[0]
    if node.op == "iota":
        return 0, _minus_one(_greatest(node.attr[1]))
    if node.op == "knob":
        return 0, None
    if node.op != "map" or node.dtype not in INDEX_TYPES:
        return UNKNOWN
    fn = node.attr[0]
    if fn in ("add", "sub", "mul", "neg"):
        return _poly_range(poly(node))
    ranges = [range_of(s) for s in node.src]
    return _RANGES[fn](*ranges) if fn in _RANGES else UNKNOWN


def _minus_one(x: int | None) -> int | None:
    return None if x is None else x - 1


def _greatest(extent: Extent) -> int | None:
    return range_of(extent)[1] if isinstance(extent, Node) else extent


def _poly_range(terms: Poly) -> Range:
    lo: int | None = 0
    hi: int | None = 0
    for mono, c in terms.items():
        low, high = _monomial_range(mono)
        ends = (low, high) if c > 0 else (high, low)
        lo = None if lo is None or ends[0] is None else lo + c * ends[0]
        hi = None if hi is None or ends[1] is None else hi + c * ends[1]
    return lo, hi


def _monomial_range(mono: Monomial) -> Range:
    if len(mono) == 1:
        return range_of(mono[0])
    lo, hi = 1, 1
    known = True
    for atom in mono:
        low, high = range_of(atom)
        if low is None or low < 0:
            return UNKNOWN
        lo *= low
        known = known and high is not None
        hi *= high if high is not None else 1
    return lo, hi if known else None


def _difference_range(a: Node, b: Node) -> Range:
    """The range of a - b, where coordinates along open extents may cancel against those."""
    terms = _added(poly(a), poly(b), -1)
    lo, hi = _poly_range(terms)
    if lo is None:
        lo = _poly_range(_at_ends(terms, -1))[0]
    if hi is None:
        hi = _poly_range(_at_ends(terms, 1))[1]
    return lo, hi


def _at_ends(terms: Poly, sign: int) -> Poly:
    """What bounds the terms from above (sign 1) or below: of each monomial that has no bound of
    its own the coordinates at the end of their axes where that bounds it, else at 0."""
    out: Poly = {}
    todo = list(terms.items())
    while todo:
        mono, c = todo.pop()
        inner = next((a for a in mono if a.op == "iota"), None)
        if inner is None or None not in _monomial_range(mono):
            out[mono] = out.get(mono, 0) + c
            continue
        rest = list(mono)
        rest.remove(inner)
        if any((range_of(a)[0] or 0) < 0 or range_of(a)[0] is None for a in rest):
            return {mono: c}
        if c * sign > 0:
            end: Extent = inner.attr[1]
            last = _added(poly(end) if isinstance(end, Node) else {(): end}, {(): -1})
            todo += _multiplied(last, {tuple(rest): c}).items()
    return {m: c for m, c in out.items() if c}


def _floordiv_range(a: Range, b: Range) -> Range:
    if a[0] is None or a[0] < 0:
        return UNKNOWN
    least, most = max(b[0] or 1, 1), b[1]
    return (a[0] // most if most else 0), (None if a[1] is None else a[1] // least)


def _mod_range(a: Range, b: Range) -> Range:
    top = _minus_one(b[1])
    if a[0] is not None and a[0] >= 0 and a[1] is not None:
        top = a[1] if top is None else min(top, a[1])
    return 0, top


def _lattice(pick: Callable[..., int], strict: int) -> Callable[[Range, Range], Range]:
    """Range of min (strict 1: one known upper end suffices) or of max (strict 0)."""

    def join(a: Range, b: Range) -> Range:
        ends: list[int | None] = []
        for end in (0, 1):
            known = [r[end] for r in (a, b) if r[end] is not None]
            enough = 1 if end == strict else 2
            ends.append(pick(known) if len(known) >= enough else None)
        return ends[0], ends[1]

    return join


def _where_range(_: Range, a: Range, b: Range) -> Range:
    lows, highs = [r[0] for r in (a, b)], [r[1] for r in (a, b)]
    lo = None if None in lows else min(x for x in lows if x is not None)
    return lo, None if None in highs else max(x for x in highs if x is not None)


_RANGES: Mapping[str, Callable[..., Range]] = {
    "floordiv": _floordiv_range,
    "mod": _mod_range,
    "min": _lattice(min, 1),
    "max": _lattice(max, 0),
    "where": _where_range,
}


# ---- rules ------------------------------------------------------------------------------------


def _linear(node: Node) -> Node:
    return from_poly(poly(node), node.dtype)


def _divide(dividend: Poly, divisor: Node) -> tuple[Poly, Poly]:
    """(quotient, rest): dividend = quotient * divisor + rest, as far as whole terms go."""
    d = poly(divisor)
    if len(d) != 1:
        return ({(): 1}, {}) if dividend == d else ({}, dividend)
    ((unit, c),) = d.items()
    quotient: Poly = {}
    rest: Poly = {}
    for mono, k in dividend.items():
        left = _without(mono, unit)
        if left is not None and k % c == 0:
            quotient[left] = k // c
        else:
            rest[mono] = k
    return quotient, rest


def _without(mono: Monomial, unit: Monomial) -> Monomial | None:
    left = list(mono)
    for atom in unit:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def _fits(rest: Poly, divisor: Node) -> bool:
    """0 <= rest < divisor for certain."""
    lo, hi = _poly_range(rest)
    if lo is None or lo < 0:
        return False
    if divisor.op == "const":
        return hi is not None and hi < divisor.attr[0]
    ((mono, c),) = rest.items() if len(rest) == 1 else [((), 0)]
    inner = mono[0] if len(mono) == 1 and c == 1 else None
    if inner is None:
        return not rest
    if inner.op == "iota":
        return inner.attr[1] is divisor
    return inner.op == "map" and inner.attr[0] == "mod" and inner.src[1] is divisor


def _positive(divisor: Node) -> bool:
    return divisor.op != "const" or divisor.attr[0] > 0


def _floordiv(node: Node) -> Node:
    a, b = node.src
    if not _positive(b):
        return node
    quotient, rest = _divide(poly(a), b)
    if not rest or _fits(rest, b):
        return from_poly(quotient, node.dtype)
    if rest == {(): -1}:
        return from_poly(_added(quotient, {(): -1}), node.dtype)
    return from_poly(_added(quotient, poly(_floordiv_rest(rest, b, node.dtype))), node.dtype)


def _floordiv_rest(rest: Poly, b: Node, dtype: str) -> Node:
    if b.op == "const":
        factors = [c for mono, c in rest.items() if mono]
        common = math.gcd(b.attr[0], *factors)
        if common > 1:  # floor((g x + k) / g d) = floor((x + floor(k / g)) / d)
            rest = {m: c // common for m, c in rest.items() if c // common}
            return _floordiv(map_("floordiv", from_poly(rest, dtype), b.attr[0] // common))
        if not any(rest):
            return const(rest.get((), 0) // b.attr[0], dtype)
        coarse = _without_small(rest, b.attr[0])
        if coarse != rest:
            return _floordiv_rest(coarse, b, dtype)
    inner = from_poly(rest, dtype)
    nested = inner.op == "map" and inner.attr[0] == "floordiv"
    if nested and b.op == "const" and inner.src[1].op == "const":
        return map_("floordiv", inner.src[0], inner.src[1].attr[0] * b.attr[0])
    return map_("floordiv", inner, b)


def _without_small(rest: Poly, divisor: int) -> Poly:
    """floor((g x + y) / g d) = floor(x / d) where 0 <= y < g: the dividend without such a y."""
    for step in sorted({math.gcd(c, divisor) for c in rest.values()} - {1}, reverse=True):
        small = {m: c for m, c in rest.items() if c % step}
        lo, hi = _poly_range(small)
        if small and lo is not None and lo >= 0 and hi is not None and hi < step:
            return {m: c for m, c in rest.items() if m not in small}
    return rest


def _mod(node: Node) -> Node:
    a, b = node.src
    if not _positive(b):
        return node
    _, rest = _divide(poly(a), b)
    if b.op == "const":
        rest = {m: c for m, c in ((m, c % b.attr[0] if not m else c) for m, c in rest.items()) if c}
        if not any(rest):
            return const(rest.get((), 0) % b.attr[0], node.dtype)
    return from_poly(rest, node.dtype) if _fits(rest, b) else map_(
        "mod", from_poly(rest, node.dtype), b
    )  # fmt: skip


def _min_max(node: Node) -> Node:
    a, b = node.src
    lo, hi = _difference_range(a, b)
    less = node.attr[0] == "min"
    if hi is not None and hi <= 0:
        return a if less else b
    if lo is not None and lo >= 0:
        return b if less else a
    return node


_RULES: Mapping[str, Callable[[Node], Node]] = {
    "add": _linear, "sub": _linear, "neg": _linear, "mul": _linear,
    "floordiv": _floordiv, "mod": _mod, "min": _min_max, "max": _min_max,
}  # fmt: skip

# What the sign of a - b decides: (true if, false if) as tests of the range of the difference.
_COMPARE: Mapping[str, tuple[Callable[[int, int], bool], Callable[[int, int], bool]]] = {
    "lt": (lambda lo, hi: hi < 0, lambda lo, hi: lo >= 0),
    "le": (lambda lo, hi: hi <= 0, lambda lo, hi: lo > 0),
    "gt": (lambda lo, hi: lo > 0, lambda lo, hi: hi <= 0),
    "ge": (lambda lo, hi: lo >= 0, lambda lo, hi: hi < 0),
    "eq": (lambda lo, hi: lo == hi == 0, lambda lo, hi: hi < 0 or lo > 0),
    "ne": (lambda lo, hi: hi < 0 or lo > 0, lambda lo, hi: lo == hi == 0),
}
_FAR = 1 << 62


def _compare(node: Node) -> Node:
    lo, hi = _difference_range(*node.src)
    ends = (-_FAR if lo is None else lo, _FAR if hi is None else hi)
    for answer, test in zip((True, False), _COMPARE[node.attr[0]]):
        if test(*ends):
            return const(answer, "bool")
    return node


def _and_or(node: Node) -> Node:
    if node.dtype != "bool":
        return node
    absorbing = node.attr[0] == "or"
    for one, other in (node.src, node.src[::-1]):
        if one.op == "const":
            return one if one.attr[0] is absorbing else other
    return node.src[0] if node.src[0] is node.src[1] else node


def _not(node: Node) -> Node:
    (x,) = node.src
    return const(not x.attr[0], "bool") if x.op == "const" and x.dtype == "bool" else node


def _where(node: Node) -> Node:
    cond, yes, no = node.src
    if cond.op == "const":
        return yes if cond.attr[0] else no
    return yes if yes is no else node


_LOGIC: Mapping[str, Callable[[Node], Node]] = {
    "and": _and_or, "or": _and_or, "not": _not, "where": _where,
}  # fmt: skip
