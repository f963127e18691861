"""exp2: exponentials in base 2, with the factor log2(e) folded into what scales their argument.

    before:  exp(s * c - max j (s * c))
    after:   exp2((s - max j s) * (c log2 e))
    args:    none.
    Illegal: NOT_ALGEBRA, NO_EXP (no exponential of a floating value).

Devices compute 2^x; e^x costs them a multiplication more for each element. A positive factor passes
through maxima and choices between a value and an infinity: where both sides of a difference have
it, it is applied once, behind the difference, and the maximum is of the bare values. Else log2(e)
goes into the argument, where it joins the constants that it meets.
"""

from __future__ import annotations

import math

from autosched.ir.follows import is_moderate
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import const, map_, where
from autosched.ir.rules.action import Action, Illegal, act

LOG2_E = 1 / math.log(2)
_BOTH = ("add", "sub", "max", "min", "neg")  # a positive factor of all operands is one of theirs
_FREE = ("max", "min", "neg")  # also of huge fills, which become infinite
_ORDERED = ("max", "min")  # monoids through which a positive factor passes


def propose(program: Program, target: object = None) -> tuple[Action, ...]:
    action = act("exp2")
    return () if isinstance(apply(program, action), Illegal) else (action,)


def apply(program: Program, action: Action) -> Program | Illegal:
    if program.level != "algebra":
        return Illegal("NOT_ALGEBRA", "exp2 rewrites algebra programs")
    memo: dict[Node, Node] = {}
    scaled: dict[Node, Node] = {}
    found = False
    for node in walk(*program.body):
        src = tuple(memo[s] for s in node.src)
        memo[node] = node if src == node.src else Node(node.op, src, node.attr)
        if node.op == "map" and node.attr[0] == "exp":
            memo[node] = map_("exp2", _difference(src[0]) or _scaled(src[0], scaled))
            found = True
    if not found:
        return Illegal("NO_EXP", "the program has no exponential")
    return program.with_body(*(memo[b] for b in program.body))


def _difference(node: Node) -> Node | None:
    """(a - b) * (c log2 e), where `node` is a*c - b*c for a factor c > 0 that both share."""
    if node.op != "map" or node.attr[0] != "sub":
        return None
    (a, c), (b, d) = map(_bare, node.src)
    if c is None or c != d:
        return None
    return (a - b) * (c * LOG2_E)


def _bare(node: Node) -> tuple[Node, float | None]:
    """(x, c) where the node is x*c with c > 0, and c is no part of x; c is None where any fits."""
    fn = node.attr[0] if node.op == "map" else ""
    if node.op == "const" and abs(node.attr[0]) == math.inf:
        return node, None
    if fn in ("mul", "div") and node.src[1].op == "const" and node.src[1].attr[0] > 0:
        c = node.src[1].attr[0]
        return node.src[0], c if fn == "mul" else 1.0 / c
    if fn == "where":
        test, *sides = node.src
        (a, c), (b, d) = map(_bare, sides)
        if c is None or d is None or c == d:
            return where(test, a, b), d if c is None else c
    if node.op == "reduce" and node.attr[0] in _ORDERED:
        a, c = _bare(node.src[0])
        return Node("reduce", (a,), node.attr), c
    return node, 1.0


def _scaled(node: Node, memo: dict[Node, Node]) -> Node:
    """`node` times log2(e), by the fewest operations."""
    if node not in memo:
        memo[node] = _times(node, memo)
    return memo[node]


def _times(node: Node, memo: dict[Node, Node]) -> Node:
    if node.op == "const":
        return const(node.attr[0] * LOG2_E, node.dtype)
    if node.op == "reduce" and node.attr[0] in _ORDERED:
        return Node("reduce", (_scaled(node.src[0], memo),), node.attr)
    if node.op == "reaxis":
        return Node("reaxis", (_scaled(node.src[0], memo), *node.src[1:]), node.attr)
    fn = node.attr[0] if node.op == "map" else ""
    if fn in _BOTH and (fn in _FREE or all(map(is_moderate, node.src))):
        return map_(fn, *(_scaled(s, memo) for s in node.src))
    if fn == "where":
        return map_(fn, node.src[0], *(_scaled(s, memo) for s in node.src[1:]))
    if fn in ("mul", "div"):
        for k, other in ((1, 0), (0, 1)):
            if node.src[k].op == "const" and (fn == "mul" or k == 1):
                c = node.src[k].attr[0]
                factor = c * LOG2_E if fn == "mul" else LOG2_E / c
                return node.src[other] * factor
    return node * LOG2_E
