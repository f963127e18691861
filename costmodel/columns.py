"""Extents over knobs in, float64 columns over table rows out, each node evaluated once.

A value without knobs is a Python float, so that facts shared by all rows cost nothing. Only
operations that IEEE 754 fixes are used, hence a row's values do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from autosched.costmodel.structure import Loop, Structure
from autosched.ir.extent import as_node, evaluate_extent, simplify
from autosched.ir.node import Extent, Node, replace_nodes, walk

Column: TypeAlias = Any  # a float, or a float64 array with one entry a row


class Columns:
    """The knob columns of some rows and the values of extents over them."""

    def __init__(self, knobs: Mapping[str, np.ndarray]) -> None:
        self.knobs = {name: np.asarray(c, np.int64) for name, c in knobs.items() if name}
        self.memo: dict[Node, Column] = {}

    def value(self, extent: Extent) -> Column:
        """A closed extent as a float or a column."""
        if not isinstance(extent, Node):
            return float(extent)
        if extent not in self.memo:
            self.memo[extent] = _real(evaluate_extent(extent, self.knobs))
        return self.memo[extent]

    def product(self, extents: Iterable[Extent]) -> Column:
        out: Column = 1.0
        for extent in extents:
            out = out * self.value(extent)
        return out

    def at(self, node: Node, axes: Mapping[str, Any]) -> Column:
        """An index expression at integer coordinates of its axes."""
        return _real(evaluate_extent(node, {**self.knobs, **axes}))


def _real(value: Any) -> Column:
    return value.astype(np.float64) if isinstance(value, np.ndarray) else float(value)


def whole(column: Column) -> Any:
    """A column of whole numbers as coordinates: int or int64."""
    return column.astype(np.int64) if isinstance(column, np.ndarray) else int(column)


def trips(loops: Sequence[Loop], columns: Columns) -> list[Column]:
    """Mean trips of every loop; parents come before their children.

    Bounds that follow the coordinates of other loops are averaged by Simpson's rule over these
    loops' first, middle and last trips: exact for triangles and trapezoids. Steps of tiles that
    are dealt out are those of all parts of a tile, shared by as many as tiles have in the mean.
    """
    out: list[Column] = []
    lengths: dict[str, Column] = {}
    shares: list[Loop] = []
    for loop in loops:
        if loop.kind in ("share", "kept"):
            shares.append(loop)
        n = _trips(loop, columns, lengths, shares)
        out.append(n)
        lengths[loop.axis] = n
    return out


def _trips(
    loop: Loop, columns: Columns, lengths: Mapping[str, Column], shares: Sequence[Loop]
) -> Column:
    if loop.kind in ("last", "kept"):  # of all programs, some
        return _ratio(loop.lo, loop.hi, columns)
    if loop.kind == "share":
        return _ratio(loop.hi, loop.lo, columns)
    if loop.loaded:
        return columns.value(loop.extent)
    if loop.lo.op == "const" and loop.hi.op == "const":
        return float(max(loop.hi.attr[0] - loop.lo.attr[0], 0))
    axes = {n.attr[0] for n in walk(loop.lo, loop.hi) if n.op == "iota"}
    if not axes:
        return np.maximum(columns.value(loop.hi) - columns.value(loop.lo), 0.0)
    if _is_share(loop):
        (axis,) = axes
        count = np.maximum(lengths.get(axis, 1.0), 1.0)
        return columns.at(loop.hi, {axis: whole(count - 1.0)}) / count
    merged = [x for x in shares if x.extent is simplify(loop.hi)]
    if merged:  # what is kept of all tiles
        share, kept = merged
        return _ratio(kept.lo, share.lo, columns)
    dealt = next((x for x in shares if x.kind == "share" and x.axis in axes), None)
    total: Column = 0.0
    for share_of, weight in ((0.0, 1.0), (0.5, 4.0), (1.0, 1.0)):
        around = axes | ({a for a, _ in as_node(dealt.extent).free} if dealt else set())
        env = {a: whole(np.floor((lengths.get(a, 1.0) - 1.0) * share_of)) for a in around}
        if dealt is None:
            span = columns.at(loop.hi, env) - columns.at(loop.lo, env)
            total = total + weight * np.maximum(span, 0.0)
        else:
            total = total + weight * _of_parts(loop, columns, env, dealt)
    return total / 6.0 if dealt is None else total / 6.0 / lengths[dealt.axis]


def _ratio(a: Node, b: Node, columns: Columns) -> Column:
    return np.maximum(columns.value(a), 1.0) / np.maximum(columns.value(b), 1.0)


def _of_parts(loop: Loop, columns: Columns, env: Mapping[str, Any], dealt: Loop) -> Column:
    """Trips of a loop in all parts of a tile together."""
    parts = columns.at(as_node(dealt.extent), env)
    total: Column = 0.0
    for part in range(int(np.max(parts))):
        here = {**env, dealt.axis: part}
        span = columns.at(loop.hi, here) - columns.at(loop.lo, here)
        total = total + np.where(part < parts, np.maximum(span, 0.0), 0.0)
    return total


def _is_share(loop: Loop) -> bool:
    """Whether the loop is from  n * steps // parts  to  (n + 1) * steps // parts,  a share of
    steps, n the coordinate of one loop around."""
    if loop.lo.op != "map" or loop.lo.attr[0] != "floordiv":
        return False
    at = [n for n in walk(loop.lo) if n.op == "iota"]
    if len(at) != 1:
        return False
    return simplify(replace_nodes(loop.lo, {at[0]: at[0] + 1})) is simplify(loop.hi)


def share_of_thread(
    structure: Structure, counts: list[Column], threads: int
) -> tuple[list[Column], dict[int, Column]]:
    """(trips as the busiest thread runs them, tasks of each region).

    The iterations of a chain of grid loops are dealt out in contiguous pieces, inner loops whole.
    """
    own = list(counts)
    tasks: dict[int, Column] = {
        n: 1.0 for n, loop in enumerate(structure.loops) if loop.kind == "region"
    }
    grids: dict[int, list[int]] = {n: [] for n in tasks}
    for n, loop in enumerate(structure.loops):
        if loop.kind == "grid":
            region = structure.chain(n)[-1]
            grids[region].append(n)
            tasks[region] = tasks[region] * counts[n]
    for region, chain in grids.items():
        left = np.ceil(tasks[region] / threads)
        for n in reversed(chain):
            own[n] = np.minimum(counts[n], left)
            left = left / np.maximum(own[n], 1.0)
    return own, tasks
