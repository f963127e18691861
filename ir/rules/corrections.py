"""How a sum over blocks follows when an earlier result that it reads changes: the table of rows.

A row takes a reduce whose body reads results of earlier reduces over the same axis, and says its
new state, from the old one and from the block, and what the state means in the end. r stands for
those results, r' for them behind the block; c and g(r) do not vary along the axis.

moments   sum j (x[j] - s/n)^2,  s = sum j x[j]:  the update of Chan, Golub and LeVeque (1979);
          and sum j (x[j] - s/n) y[j], whose update has the mean of y, too.
constant  sum j f(j) g(r), sum j f(j) / g(r):  the factor stands outside of the sum, in the end.
shifted   sum j f(j) exp(c (a[j] - g(r))):  the state is  S = sum j f(j) exp(c (a[j] - m))  with
          m = max j a[j], a state of its own where the definition has none:
          S' = S exp(c (m - m')) + block, and in the end  S exp(c (m - g(r))).
          Facts: an infinite m reads as 0: all exponentials are then exp(c a), never that of
          inf - inf; while m is -inf, every a so far is, and they are 0 for c > 0. In the end the
          last factor says what the definition makes of it: NaN where g(r) is m, else 0 or inf.
          A softmax row is NaN everywhere or nowhere, so that  where(isnan(p), 0, p)  in the body,
          p = exp(a - g(r)) / l  with  l  the sum of that exponential, is a test of l in the end.
drifting  sum j f(j) (x[j] - g(r)):  D' = D + (g(r) - g(r')) F + block  with  F = sum j f(j), a
          state of its own. Fact: a g(r) that is no finite number reads as 0; in the end it makes
          the sum NaN or infinite, as it does in the definition (which of the two may differ).

Any product of these factors has a row; a body may have one difference (drifting) at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from autosched.ir.follows import is_moderate
from autosched.ir.node import Node, replace_nodes, walk
from autosched.ir.ops import (
    abs_,
    cast,
    const,
    iota,
    isnan,
    map_,
    max_,
    maximum,
    sum_,
    where,
)
from autosched.ir.rules.states import Block, Finals, NoRow, Parts, Step


def corrected(node: Node, old: Node, block: Block) -> Step:
    """The step of a reduce by the first row that fits. Raises: NoRow."""
    if node.attr[0] != "sum":
        raise NoRow(f"a {node.attr[0]} of values that depend on an earlier result")
    factors = _Factors(block)
    inside = factors.inside(node.src[0])
    step = _moments(factors, inside, old) or _product(factors, inside, old)
    return factors.outside(step)


# ---- a body as factors -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shift:
    """exp(scale * (a - level)); fn is exp or exp2; top is the maximum of a."""

    fn: str
    top: Node
    level: Node  # g(r)
    scale: Node | None  # 1 if None

    def at(self, a: Node, b: Node) -> Node:
        """exp(scale * (a - b)): for each element a multiply-add, unless a huge fill may be among
        them: such a product is infinite, or rounds to another one than the fill of the row."""
        c = self.scale
        if c is None:
            return map_(self.fn, a - b)
        return map_(self.fn, a * c - b * c if is_moderate(a) else (a - b) * c)


@dataclass(frozen=True)
class _Difference:
    """x - level, the one difference of a body."""

    x: Node
    level: Node


@dataclass
class _Factors:
    """A body as a part inside the sum and the factors beside it.

    The only results in that part are maxima: the references of its exponentials.
    """

    block: Block
    shifts: list[_Shift] = field(default_factory=list)  # one as often as it is a factor
    drifts: list[_Difference] = field(default_factory=list)
    outer: list[tuple[str, Node]] = field(default_factory=list)
    tests: list[Node] = field(default_factory=list)  # NaN there makes the sum 0

    def depends(self, node: Node) -> bool:
        return any(n in self.block.old for n in walk(node))

    def varies(self, node: Node) -> bool:
        return self.block.axis in dict(node.free)

    def inside(self, node: Node) -> Node:
        """The part of `node` that is summed; what it says about the rest is noted."""
        if not self.depends(node):
            return node
        if not self.varies(node):
            self.outer.append(("mul", node))
            return const(1.0, node.dtype)
        fn = node.attr[0] if node.op == "map" else node.op
        if fn == "mul":
            return _times(*(self.inside(s) for s in node.src))
        if fn == "neg":
            return map_("neg", self.inside(node.src[0]))
        if fn == "div":
            return self._quotient(*node.src)
        if fn == "where":
            return self._choice(node)
        if fn in ("exp", "exp2"):
            return self._exponential(node)
        if fn in ("sub", "add"):
            return self._difference(node)
        raise NoRow(f"{fn} of a value that depends on an earlier result")

    def _quotient(self, above: Node, below: Node) -> Node:
        if not self.depends(below):
            return map_("div", self.inside(above), below)
        if self.varies(below):
            raise NoRow("a division by what varies with an earlier result and the axis")
        self.outer.append(("div", below))
        return self.inside(above)

    def _choice(self, node: Node) -> Node:
        test, yes, no = node.src
        if not self.depends(test):
            for kept, other in ((yes, no), (no, yes)):
                if _is_zero(other):
                    inner = self.inside(kept)
                    zero = const(0.0, node.dtype)
                    return where(test, inner, zero) if kept is yes else where(test, zero, inner)
            raise NoRow("a choice between two values of which none is 0")
        guard = test.op == "map" and test.attr[0] == "isnan" and test.src[0] is no
        if not (guard and _is_zero(yes)):
            raise NoRow("a test of a value that depends on an earlier result")
        self.tests.append(self._row_total(no))
        return self.inside(no)

    def _row_total(self, p: Node) -> Node:
        """The sum whose NaN says that the softmax row p is NaN: p = e / (sum of e)."""
        if p.op == "map" and p.attr[0] == "div":
            e, total = p.src
            if total in self.block.old and total.op == "reduce" and total.src == (e,):
                return total
        raise NoRow("a NaN test of what is no row divided by its sum")

    def _difference(self, node: Node) -> Node:
        """x - g or g - x or x + g as a factor."""
        fn, (x, level) = node.attr[0], node.src
        if self.depends(x):
            x, level = level, x
        if self.depends(x) or self.varies(level):
            raise NoRow(f"{fn} of two values that vary with an earlier result")
        self.drifts.append(_Difference(x, level if fn == "sub" else -level))
        return const(-1.0 if fn == "sub" and x is not node.src[0] else 1.0, node.dtype)

    def _exponential(self, node: Node) -> Node:
        a, level, scale = self._shifted(node.src[0], None)
        top = max_(self.block.axis, a)
        self.block.add(top)
        found = _Shift(node.attr[0], top, level, scale)
        self.shifts.append(found)
        return found.at(a, top)

    def _shifted(self, arg: Node, scale: Node | None) -> tuple[Node, Node, Node | None]:
        """(a, g, c) where arg is c (a - g)."""
        fn = arg.attr[0] if arg.op == "map" else arg.op
        if fn in ("mul", "div"):
            x, c = arg.src
            if fn == "mul" and not (self.depends(x) and self.varies(x)):
                x, c = c, x
            if self.depends(c) or not self.varies(x):
                raise NoRow("an exponential of a product with an earlier result")
            if self.varies(c):
                raise NoRow("an exponential of a difference by a factor that varies along the axis")
            c = c if fn == "mul" else 1.0 / c
            return self._shifted(x, c if scale is None else scale * c)
        if fn not in ("sub", "add"):
            raise NoRow(f"an exponential of {fn} of a value that depends on an earlier result")
        a, level = arg.src
        if fn == "add" and self.depends(a):
            a, level = level, a
        if self.depends(a):
            raise NoRow("an exponential of a value less what varies along the axis")
        if self.varies(level):
            raise NoRow("an exponential shifted by a value that varies along the axis")
        return a, level if fn == "sub" else -level, scale

    def outside(self, step: Step) -> Step:
        """The step with the factors that stand outside of the sum."""

        def final(state: Node, finals: Finals) -> Node:
            table = dict(finals)
            state = step.final(state, finals)
            for fn, factor in self.outer:
                state = map_(fn, state, replace_nodes(factor, table))
            for test in self.tests:
                state = where(isnan(table[test]), 0.0, state)
            return state

        return Step(step.new, final, step.merged)


def _times(a: Node, b: Node) -> Node:
    """a * b; one constant where both are."""
    if a.op == "const" and b.op == "const":
        return const(a.attr[0] * b.attr[0], a.dtype)
    return a * b


def _is_zero(node: Node) -> bool:
    return node.op == "const" and node.attr[0] == 0


# ---- constant, shifted, drifting ---------------------------------------------------------------


def _product(factors: _Factors, inside: Node, old: Node) -> Step:
    """The step of a sum of f(j) times exponentials times at most one difference."""
    if len(factors.drifts) > 1:
        raise NoRow("a product of two differences from earlier results")
    block, shifts = factors.block, factors.shifts
    drift = _Drift(factors, inside, factors.drifts[0]) if factors.drifts else None

    def moved(state: Node, before: Finals, behind: Finals) -> Node:
        """The state in terms of the references that earlier results now make."""
        state = state if drift is None else state + drift.correction(before, behind)
        for shift in shifts:
            state = state * _correction(shift, before, behind)
        return state

    def merged(left: Node, right: Node, parts: Parts) -> Node:
        return moved(left, parts.left, parts.both) + moved(right, parts.right, parts.both)

    running = {s.top: _or_zero(block.new[s.top]) for s in shifts}
    body = replace_nodes(inside, running)
    body = body if drift is None else body * drift.here

    def final(state: Node, finals: Finals) -> Node:
        table = dict(finals)
        state = state if drift is None else drift.final(state, table)
        for shift in shifts:
            top = table[shift.top]
            if shift.level is shift.top:  # 1, or NaN where the maximum is no number
                state = where(_is_finite(top), state, state + shift.at(top, top))
            else:
                last = shift.at(_or_zero(top), replace_nodes(shift.level, table))
                state = state * last
        return state

    return Step(moved(old, block.old, block.new) + block.total(body), final, merged)


def _correction(shift: _Shift, before: Finals, behind: Finals) -> Node:
    """exp(c (m - m')); 1 as long as m is no number, and reads as 0."""
    top = before[shift.top]
    factor = shift.at(top, _or_zero(behind[shift.top]))
    return where(_is_finite(top), factor, 1.0)


class _Drift:
    """The difference of a body: what it is in the block, and how its reference moves."""

    def __init__(self, factors: _Factors, inside: Node, difference: _Difference) -> None:
        self.block, self.level = factors.block, difference.level
        self.weights = sum_(self.block.axis, _along(inside, self.block))  # F
        self.block.add(self.weights)
        self.here = difference.x - self._reference(self.block.new)

    def _reference(self, states: Finals) -> Node:
        return _or_zero(replace_nodes(self.level, self.block.values(states)))

    def correction(self, before: Finals, behind: Finals) -> Node:
        moved = self._reference(before) - self._reference(behind)
        return moved * before[self.weights]

    def final(self, state: Node, table: dict[Node, Node]) -> Node:
        """What the definition makes of a reference that is no number."""
        level = replace_nodes(self.level, table)
        return where(_is_finite(level), state, state - level * table[self.weights])


def _along(body: Node, block: Block) -> Node:
    """The body, made to vary along the axis: a constant counts once for each element."""
    if block.axis in dict(body.free):
        return body
    return body + cast(iota(block.axis, block.extent) * 0, body.dtype)


def _is_finite(x: Node) -> Node:
    return abs_(x) < math.inf


def _or_zero(x: Node) -> Node:
    """A reference, or 0 where it is no number: nothing is then inf - inf."""
    return where(_is_finite(x), x, 0.0)


# ---- moments -----------------------------------------------------------------------------------


def _moments(factors: _Factors, inside: Node, old: Node) -> Step | None:
    """The step of a sum of (x - mean of x) y; y is x where the difference is squared."""
    block, drifts = factors.block, factors.drifts
    total = None if factors.shifts or not drifts else _total_of(drifts[0], block)
    if total is None:
        return None
    x = drifts[0].x
    if len(drifts) == 1:
        y, sign = _along(inside, block), 1.0
    elif drifts == drifts[:1] * 2 and inside.op == "const":
        y, sign = x, inside.attr[0]
    else:
        return None
    other = sum_(block.axis, y)
    block.add(other)
    before, here = (cast(n, x.dtype) for n in block.counts())
    mean_x, mean_y = (block.total(v) / here for v in (x, y))
    earlier = maximum(before, 1.0)
    apart_x = mean_x - block.old[total] / earlier
    apart_y = mean_y - block.old[other] / earlier
    spread = block.total((x - mean_x) * (y - mean_y))
    new = spread + apart_x * apart_y * (before * here / (before + here))

    def merged(left: Node, right: Node, parts: Parts) -> Node:
        n, m = (cast(count, x.dtype) for count in parts.counts)
        apart = [
            parts.right[s] / maximum(m, 1.0) - parts.left[s] / maximum(n, 1.0)
            for s in (total, other)
        ]
        between = apart[0] * apart[1] * (n * m / maximum(n + m, 1.0))
        return left + right + (between if sign == 1.0 else between * sign)

    new = old + (new if sign == 1.0 else new * sign)
    return Step(new, lambda state, finals: state, merged)


def _total_of(difference: _Difference, block: Block) -> Node | None:
    """The sum s of x where a difference is x - s/n and n the extent of the axis."""
    mean = difference.level
    if mean.op != "map" or mean.attr[0] not in ("mul", "div"):
        return None
    total, c = mean.src if mean.src[1].op == "const" else mean.src[::-1]
    if c.op != "const" or total not in block.old or total.op != "reduce":
        return None
    n = 1.0 / c.attr[0] if mean.attr[0] == "mul" and c.attr[0] else c.attr[0]
    is_mean = total.attr[0] == "sum" and total.src[0] is difference.x
    return total if is_mean and math.isclose(n, block.extent, rel_tol=1e-6) else None
