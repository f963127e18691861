"""Positions in flat buffers: index expressions of the IR as sums of terms, and terms as TIR.

A term is a number times a product of atoms (coordinates, and index expressions that are no sum);
the constant term has no atoms. Sums keep their constant last, so that neighbouring accesses share
the variable part of their address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

from autosched.codegen import tvm_api as tir
from autosched.ir.extent import as_extent
from autosched.ir.linear import poly, simplify_map
from autosched.ir.node import Node

Expr = Any
Terms: TypeAlias = "tuple[tuple[int, tuple[Node, ...]], ...]"
MAX_INDEX = 2**31 - 1


class Unsupported(ValueError):
    """A tile program that this backend cannot say; the schedule is recorded as illegal."""


def elements(handle: Node) -> int:
    return prod(extents_of(handle))


def extents_of(handle: Node) -> tuple[int, ...]:
    """The extents of an input or buffer; the emitter takes numbers only."""
    dims = handle.attr[1]
    found = [as_extent(e) for e in ([e for _, e in dims] if handle.op == "input" else dims)]
    if any(isinstance(e, Node) for e in found):
        raise Unsupported(f"{handle.attr[0]} has a symbolic extent")
    return tuple(int(e) for e in found)


def terms_of(node: Node) -> Terms:
    """An integer expression as terms."""
    return tuple((factor, atoms) for atoms, factor in poly(_shorter(node, {})).items())


def _shorter(node: Node, memo: dict[Node, Node]) -> Node:
    """Arithmetic simplified above what it reads: a loop's result is found by the node of its loop,
    which simplifying inside of it would change."""
    if node.op != "map":
        return node
    if node not in memo:
        src = tuple(_shorter(s, memo) for s in node.src)
        memo[node] = simplify_map(node if src == node.src else Node("map", src, node.attr))
    return memo[node]


def flat_terms(handle: Node, starts: Sequence[Node]) -> Terms:
    """The row-major offset of an access."""
    extents = extents_of(handle)
    if prod(extents) > MAX_INDEX:
        raise Unsupported(f"{handle.attr[0]} has more than 2**31 elements")
    total: dict[tuple[Node, ...], int] = {}
    for n, start in enumerate(starts):
        stride = prod(extents[n + 1 :])
        for factor, atoms in terms_of(start):
            total[atoms] = total.get(atoms, 0) + factor * stride
    return tuple((factor, atoms) for atoms, factor in total.items() if factor)


def split_lane(terms: Terms, on_lane: Callable[[Node], bool]) -> tuple[Terms, int | None]:
    """The terms that are the same in all lanes, and the step from lane to lane.

    The step is None where the offset is not linear in the lane: then every lane has its own.
    """
    stride = 0
    fixed = []
    for factor, atoms in terms:
        if not any(map(on_lane, atoms)):
            fixed.append((factor, atoms))
        elif len(atoms) == 1 and atoms[0].op == "iota":
            stride += factor
        else:
            return terms, None
    return tuple(fixed), stride


def sum_terms(terms: Terms, atom: Callable[[Node], Expr]) -> Expr:
    """The value of terms: an int where all atoms are, else a scalar or vector expression."""
    number, total = 0, None
    for factor, atoms in terms:
        part: Expr = factor
        for a in atoms:
            part = _times(part, atom(a))
        if isinstance(part, int):
            number += part
        else:
            total = part if total is None else tir.add(*_widened(total, part))
    if total is None:
        return number
    return tir.add(*_widened(total, number)) if number else total


def _times(a: Expr, b: Expr) -> Expr:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if isinstance(a, int) and tir.lanes_of(b) == 1:
        return tir.mul(b, a)
    return tir.mul(*_widened(a, b))


def _widened(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    lanes = [1 if isinstance(x, int) else tir.lanes_of(x) for x in (a, b)]
    if lanes[0] < lanes[1]:
        return tir.splat(a, lanes[1]), b
    return (a, tir.splat(b, lanes[0])) if lanes[1] < lanes[0] else (a, b)
