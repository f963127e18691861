"""Algebra nodes in, how many floating-point operations they are out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autosched.ir.node import Axes, Node
from autosched.ir.ops import join_axes
from autosched.ir.scalar import FLOATS


def _elements(axes: Axes) -> int:
    return math.prod(extent for _, extent in axes if isinstance(extent, int))


def flops(roots: Sequence[Node]) -> int:
    """One per element of a scalar function and per element reduced: a multiply-add is two.

    Index arithmetic is not counted, nor is what only moves elements; a value that several
    consumers read counts once.
    """
    total, seen, todo = 0, set[Node](), list(roots)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "map" and node.dtype in FLOATS and not node.attr[0].startswith("cast:"):
            total += _elements(node.axes)
        elif node.op in ("reduce", "scan"):
            total += _elements(join_axes(*(s.axes for s in node.src)))
        todo.extend(node.src[:1] if node.op in ("reaxis", "take") else node.src)
    return total
