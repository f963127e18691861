"""Static facts of nodes that the interpreter steers by: what decides a value, how large it gets."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TypeVar

from autosched.ir.gather import Dim
from autosched.ir.node import Extent, Node
from autosched.ir.scalar import FLOATS
from autosched.ir.scope import bound_axes, state_readers

R = TypeVar("R")
AxisSet = frozenset[tuple[str, Extent]]
MAX_SHAPES = 32  # per node; beyond it the smaller ones are forgotten, the estimate gets rougher


def _per_node(fn: Callable[[Node], R]) -> Callable[[Node], R]:
    """`fn` with its results kept as long as the nodes live; they must hold no nodes."""
    kept: weakref.WeakKeyDictionary[Node, R] = weakref.WeakKeyDictionary()

    def call(node: Node) -> R:
        found = kept.get(node)
        if found is None:
            found = kept[node] = fn(node)
        return found

    return call


@_per_node
def depends_on(node: Node) -> tuple[str, ...]:
    """The names in an environment that decide the value of a node: axes, then states."""
    return (*(a for a, _ in node.free), *("state " + c for c in sorted(node.carries)))


@_per_node
def mutable(node: Node) -> bool:
    """Whether a value reads memory that kernels store to."""
    if node.op == "load" and node.src[0].op == "buffer":
        return node.src[0].attr[3] != "packed"
    return any(mutable(s) for s in node.src)


@_per_node
def steered_by(node: Node) -> frozenset[str]:
    """Axes on which the bounds of loops inside a node depend."""
    found = frozenset[str]().union(*[steered_by(s) for s in node.src])
    if found and node.op in ("reaxis", "take", "slice"):
        found |= {a for a, _ in node.free}  # an axis of the loop may be one of these, renamed
    count = 2 * node.attr[2] if node.op == "fold" else 2 if node.op == "forall" else 0
    return found.union(a for bound in node.src[:count] for a, _ in bound.free)


@_per_node
def rebound(fold: Node) -> frozenset[str]:
    """Axes at which a fold's body reads a state elsewhere than at the fold's own coordinate."""
    readers = list(state_readers(fold))
    inner = [rebound(n) for n in readers if n.op == "fold"]  # those evaluate such axes whole
    return frozenset(a for n in readers for a in bound_axes(n)).union(*inner)


def summands(node: Node, wide: bool) -> tuple[list[Node], dict[str, Extent]]:
    """(factors, summed axes) of a sum or dot: the sum over the axes of the factors' product.

    wide: casts between floats to 32 and 64 bits are the identity.
    """
    axes: dict[str, Extent] = {}
    while True:
        if node.op == "reduce" and node.attr[0] == "sum":
            axes.update((a, node.src[0].extent(a)) for a in node.attr[1])
            node = node.src[0]
        elif node.op == "dot":
            joined = dict(node.src[0].axes) | dict(node.src[1].axes)
            axes.update((a, joined[a]) for a in node.attr[0])
            exact = all(s.dtype in FLOATS for s in node.src)
            return [f for s in node.src for f in (_factors(s) if exact else [s])], axes
        elif wide and _widens(node):
            node = node.src[0]
        else:
            return _factors(node), axes


def _widens(node: Node) -> bool:
    wide = node.op == "map" and node.attr[0] in ("cast:float32", "cast:float64")
    return wide and node.src[0].dtype in FLOATS


def _factors(node: Node) -> list[Node]:
    if node.op == "map" and node.attr[0] == "mul":
        return [f for s in node.src for f in _factors(s)]
    return [node]


@_per_node
def shapes(node: Node) -> frozenset[AxisSet]:
    """The largest axis sets among all arrays that evaluating the node makes."""
    sums = node.op == "dot" or (node.op == "reduce" and node.attr[0] == "sum")
    below = summands(node, True)[0] if sums else list(node.src)
    found = {frozenset(t.axes) for t in node.types}
    for source in below:
        found |= shapes(source)
    largest: list[AxisSet] = []
    for axes in sorted(found, key=lambda s: (-len(s), sorted(a for a, _ in s))):
        if len(largest) < MAX_SHAPES and not any(axes <= other for other in largest):
            largest.append(axes)
    return frozenset(largest)


def footprint(node: Node, sizes: Mapping[str, Mapping[Dim, int]]) -> int:
    """Elements of the largest array made for a node, its axes bound to arrays of these sizes."""
    worst = 0
    for axes in shapes(node):
        dims: dict[Dim, int] = {}
        for axis, extent in axes:
            own = extent if isinstance(extent, int) else 1
            dims.update(sizes.get(axis, {(axis, -1): own}))
        count = 1
        for n in dims.values():
            count *= n
        worst = max(worst, count)
    return worst
