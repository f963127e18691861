"""How a sum over blocks follows when an earlier result that it reads changes: the table of rows.

A row takes a reduce whose body reads results of earlier reduces over the same axis, and says its
new state, from the old one and from the block, and what the state means in the end. Two rows:

shifted  sum j f(j) exp(a[j] - g(m)),  m = max j a[j]:   l' = l * exp(g(m) - g(m')) + block.
         Facts: while m is -inf, every a so far is, so that the sum is 0: no correction is needed,
         and both exponentials read 0 (never exp(-inf - -inf)). If m is -inf in the end, the sum is
         what its definition makes of it: 0 * n, or NaN where g(-inf) is -inf.
         Divisions and products by earlier results alone stand outside of the sum.
         A softmax row is NaN everywhere or nowhere, so that  where(isnan(p), 0, p)  in the body,
         p = exp(a - g(m)) / l  with  l  the sum of that exponential, is a test of l in the end.
moments  sum j (x[j] - s/n)^2,  s = sum j x[j]:  the update of Chan, Golub and LeVeque (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from autosched.ir.node import Node, replace_nodes, walk
from autosched.ir.ops import cast, const, eq, get, isnan, map_, maximum, where

Finals = Mapping[Node, Node]


class NoRow(Exception):
    """No row fits; the message says what stands in the way."""


class Block(Protocol):
    """One block of the axis: `old` and `new` are states of earlier results by result."""

    axis: str
    extent: int
    old: dict[Node, Node]
    new: dict[Node, Node]

    def total(self, body: Node) -> Node:
        """The sum of a body over the block."""

    def counts(self) -> tuple[Node, Node]:
        """Elements before the block, and in it, as int32."""


@dataclass(frozen=True)
class Step:
    """The state behind a block; `final` makes the value from the last state and final values."""

    new: Node
    final: Callable[[Node, Finals], Node]


def corrected(node: Node, old: Node, block: Block) -> Step:
    """The step of a reduce by the first row that fits. Raises: NoRow."""
    if node.attr[0] != "sum":
        raise NoRow(f"a {node.attr[0]} of values that depend on an earlier result")
    step = _moments(node.src[0], old, block)
    return step if step is not None else _shifted(node.src[0], old, block)


# ---- shifted -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shift:
    """exp(a - g(m)) for m the maximum of a; fn is exp or exp2."""

    fn: str
    top: Node  # m
    level: Node  # g(m)


@dataclass
class _Factors:
    """A body as a part inside the sum and factors of earlier results outside of it."""

    block: Block
    shifts: dict[_Shift, None] = field(default_factory=dict)
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
            return map_("mul", *(self.inside(s) for s in node.src))
        if fn == "neg":
            return map_("neg", self.inside(node.src[0]))
        if fn == "div":
            return self._quotient(*node.src)
        if fn == "where":
            return self._choice(node)
        if fn in ("exp", "exp2"):
            return self._exponential(node)
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

    def _exponential(self, node: Node) -> Node:
        fn, (arg,) = node.attr[0], node.src
        level, scale = self._level(arg)
        a, shift = self._split(arg, scale)
        tops = [n for n in walk(shift) if n in self.block.old]
        if len(tops) != 1 or tops[0].op != "reduce" or tops[0].attr[0] != "max":
            raise NoRow("an exponential shifted by something else than a maximum")
        if tops[0].src[0] is not level:
            raise NoRow("an exponential shifted by the maximum of another value")
        found = _Shift(fn, tops[0], shift)
        self.shifts[found] = None
        return map_(fn, a - self._safe(found))

    def _level(self, arg: Node) -> tuple[Node, float]:
        """(a, c) where arg is (a - g) * c."""
        scale = 1.0
        while arg.op == "map" and arg.attr[0] in ("mul", "div"):
            x, c = arg.src
            if x.op == "const" and arg.attr[0] == "mul":
                x, c = c, x
            if c.op != "const" or c.attr[0] <= 0:
                break
            scale = scale * c.attr[0] if arg.attr[0] == "mul" else scale / c.attr[0]
            arg = x
        if arg.op != "map" or arg.attr[0] != "sub" or self.depends(arg.src[0]):
            raise NoRow("an exponential of something else than a difference")
        if self.varies(arg.src[1]):
            raise NoRow("an exponential shifted by a value that varies along the axis")
        return arg.src[0], scale

    def _split(self, arg: Node, scale: float) -> tuple[Node, Node]:
        """(c * a, c * g) where arg is (a - g) * c."""
        while arg.attr[0] != "sub":
            arg = next(s for s in arg.src if s.op != "const")
        a, g = arg.src
        return (a, g) if scale == 1.0 else (a * scale, g * scale)

    def _safe(self, shift: _Shift) -> Node:
        """g(m') where it is finite in m', else 0: exp then reads 0, as every a is -inf."""
        new = self.block.new
        dead = eq(new[shift.top], -math.inf)
        return where(dead, 0.0, replace_nodes(shift.level, dict(new)))

    def correction(self, shift: _Shift) -> Node:
        """exp(g(m) - g(m')), and 0 before the first element above -inf."""
        old = self.block.old
        before = replace_nodes(shift.level, dict(old))
        factor = map_(shift.fn, before - self._safe(shift))
        return where(eq(old[shift.top], -math.inf), 0.0, factor)


def _shifted(body: Node, old: Node, block: Block) -> Step:
    factors = _Factors(block)
    inside = factors.inside(body)
    new = old
    for shift in factors.shifts:
        new = new * factors.correction(shift)

    def final(state: Node, finals: Finals) -> Node:
        table = dict(finals)
        for shift in factors.shifts:
            top = table[shift.top]
            dead = map_(shift.fn, top - replace_nodes(shift.level, table))
            state = where(eq(top, -math.inf), state + dead, state)
        for fn, factor in factors.outer:
            state = map_(fn, state, replace_nodes(factor, table))
        for test in factors.tests:
            state = where(isnan(table[test]), 0.0, state)
        return state

    return Step(new + block.total(inside), final)


def _is_zero(node: Node) -> bool:
    return node.op == "const" and node.attr[0] == 0


# ---- moments -----------------------------------------------------------------------------------


def _moments(body: Node, old: Node, block: Block) -> Step | None:
    x, total = _centred(body, block)
    if x is None or total is None:
        return None
    before, here = (cast(n, x.dtype) for n in block.counts())
    part = block.total(x)
    centred = x - part / here
    spread = block.total(centred * centred)
    delta = part / here - block.old[total] / maximum(before, 1.0)
    new = old + spread + delta * delta * (before * here / (before + here))
    return Step(new, lambda state, finals: state)


def _centred(body: Node, block: Block) -> tuple[Node | None, Node | None]:
    """(x, its sum s) where body is (x - s/n)^2 and n the extent of the axis."""
    nothing = (None, None)
    if body.op != "map" or body.attr[0] != "mul" or body.src[0] is not body.src[1]:
        return nothing
    difference = body.src[0]
    if difference.op != "map" or difference.attr[0] != "sub":
        return nothing
    x, mean = difference.src
    if mean.op != "map" or mean.attr[0] not in ("mul", "div"):
        return nothing
    total, c = mean.src if mean.src[1].op == "const" else mean.src[::-1]
    if c.op != "const" or total not in block.old or total.op != "reduce":
        return nothing
    n = 1.0 / c.attr[0] if mean.attr[0] == "mul" and c.attr[0] else c.attr[0]
    is_mean = total.attr[0] == "sum" and get(total).src[0] is x
    close = math.isclose(n, block.extent, rel_tol=1e-6)
    return (x, total) if is_mean and close else nothing
