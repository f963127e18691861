"""A product under a sum, over tile axes, in; the `dot` of two boxes that it is, or None, out.

Factors that share axes beside the summed one make one operand. What lies beyond the end of the
summed axis is zero in both operands, so that nothing there, an infinity neither, reaches the sum.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from autosched.ir.node import Node, walk
from autosched.ir.ops import cast, const, dot, where
from autosched.ir.scalar import FLOATS, ITEMSIZE

NARROW = ("bfloat16", "float16", "float8_e4m3", "float8_e5m2")
EIGHT_BITS = frozenset(("float8_e4m3", "float8_e5m2"))  # which tensor cores multiply by each other
ACCUMULATORS = {"int8": "int32", "uint8": "int32", "float64": "float64"}


@dataclass(frozen=True)
class DotTypes:
    """How operands are multiplied.

    narrow: a computed float32 operand beside one stored in a narrow type is rounded to that type,
    as attention kernels do with the weights of a row. precision: of float32 products ("" exact).
    """

    narrow: bool = True
    precision: str = ""


def as_dot(
    body: Node, axis: str, inside: Node | None, tiles: Collection[str], types: DotTypes
) -> Node | None:
    """The dot over `axis` that sums `body`, with `inside` as the test for the end of the axis."""
    while body.op == "map" and body.attr[0] == "where" and _is_zero(body.src[2]):
        test = body.src[0]
        if set(test.names) & set(tiles) - {axis}:
            break
        # What is left out is left out of both operands.
        inside = test if inside is None or inside is test else inside & test
        body = body.src[1]
    pair = _operands(_factors(body), axis, frozenset(tiles))
    if pair is None:
        return None
    operands = tuple(functools.reduce(lambda a, b: a * b, group) for group in pair)
    a, b = _typed(operands, types)
    if a.dtype != b.dtype and not {a.dtype, b.dtype} <= EIGHT_BITS:
        return None
    if inside is not None:
        a, b = (x if _vanishes(x, inside) else where(inside, x, const(0, x.dtype)) for x in (a, b))
    acc = ACCUMULATORS.get(a.dtype, "float32")
    return dot(a, b, axis, acc, types.precision if a.dtype == "float32" else "")


def _factors(node: Node) -> list[Node]:
    """The factors of a product; a widening cast of a product of integers is one of factors."""
    if node.op == "map" and node.attr[0] == "mul":
        return [f for s in node.src for f in _factors(s)]
    return [node]


def _operands(
    factors: Sequence[Node], axis: str, tiles: frozenset[str]
) -> tuple[list[Node], list[Node]] | None:
    """The factors in two groups that have no tile axis in common but `axis`, and both have it."""
    groups: list[tuple[set[str], list[Node]]] = []
    loose: list[Node] = []
    for factor in factors:
        axes = set(factor.names) & tiles
        if axis not in axes:
            loose.append(factor)
            continue
        own = axes - {axis}
        touched = [g for g in groups if g[0] & own]
        merged = (set.union(own, *(g[0] for g in touched)), [f for g in touched for f in g[1]])
        merged[1].append(factor)
        groups = [g for g in groups if g not in touched]
        groups.append(merged)
    free = [g for g in groups if not g[0]]  # along the summed axis alone
    groups = [g for g in groups if g[0]]
    if len(groups) != 2:
        return None
    for _, extra in free:
        groups[0][1].extend(extra)
    for factor in loose:
        axes = set(factor.names) & tiles
        fits = [g for g in groups if axes <= g[0]]
        if not fits:
            return None
        fits[0][1].append(factor)
    return groups[0][1], groups[1][1]


def _typed(operands: tuple[Node, ...], types: DotTypes) -> tuple[Node, Node]:
    """The operands in the type in which they are multiplied."""
    stored = tuple(map(_stored, operands))
    kinds = [x.dtype for x in stored]
    if kinds[0] == kinds[1]:
        if kinds[0] == "float32" and types.narrow:
            kind = _common_kind(stored)
            if kind is not None:
                return cast(stored[0], kind), cast(stored[1], kind)
        return stored[0], stored[1]
    if EIGHT_BITS.issuperset(kinds):
        return stored[0], stored[1]
    if types.narrow:
        for x, y in (stored, stored[::-1]):
            if x.dtype in NARROW and ITEMSIZE[x.dtype] == 2 and y.dtype == "float32":
                return cast(stored[0], x.dtype), cast(stored[1], x.dtype)
    return operands[0], operands[1]


def _stored(x: Node) -> Node:
    """What was widened, as it was: products of narrow values are exact in the wider type."""
    if x.op == "map" and x.attr[0] in ("cast:float32", "cast:int32"):
        inner = x.src[0]
        if inner.dtype in NARROW or inner.dtype in ("int8", "uint8"):
            return inner if x.dtype == ("float32" if inner.dtype in FLOATS else "int32") else x
    return x


def _common_kind(operands: Sequence[Node]) -> str | None:
    """The narrow type of every floating value that is loaded for the operands, if it is one."""
    kinds = {n.dtype for n in walk(*operands) if n.op == "load" and n.dtype in FLOATS}
    (kind,) = kinds if len(kinds) == 1 else ("",)
    return kind if kind in NARROW and ITEMSIZE[kind] == 2 else None


def _vanishes(x: Node, inside: Node) -> bool:
    """Whether `x` is 0 wherever `inside` is false."""
    if x.op == "load" and x.attr[1]:
        mask, fill = x.src[-2:]
        return _conjuncts(inside) <= _conjuncts(mask) and _is_zero(fill)
    if x.op == "map" and x.attr[0].startswith("cast:"):
        return _vanishes(x.src[0], inside)
    if x.op == "map" and x.attr[0] == "where":
        known = _conjuncts(inside) <= _conjuncts(x.src[0])
        return _is_zero(x.src[2]) and (known or _vanishes(x.src[1], inside))
    return False


def _is_zero(node: Node) -> bool:
    return node.op == "const" and node.attr[0] == 0


def _conjuncts(test: Node) -> set[Node]:
    if test.op == "map" and test.attr[0] == "and":
        return _conjuncts(test.src[0]) | _conjuncts(test.src[1])
    return {test}
