"""Starts and dimensions of a box in, where it lies along each dimension of its buffer out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autosched.ir.extent import as_node, simplify
from autosched.ir.linear import poly
from autosched.ir.node import Extent, Node, walk


@dataclass(frozen=True)
class Place:
    """Position along one dimension: strides over axes, and a rest that is not linear in them.

    loaded: the position is itself read from memory.
    """

    extent: Extent
    strides: tuple[tuple[str, Extent], ...]
    rest: Node | None
    rest_axes: tuple[str, ...]
    loaded: bool


def reads_memory(node: Node) -> bool:
    """Whether a position, mask or bound is data; others cost next to nothing."""
    return any(n.op in ("load", "input") for n in walk(node))


def places(
    handle: Node, starts: Sequence[Node], dims: Sequence[tuple[str, Extent, int] | None]
) -> tuple[Place, ...]:
    """One `Place` for each dimension of the buffer or input."""
    extents = [e for _, e in handle.attr[1]] if handle.op == "input" else handle.attr[1]
    return tuple(_place(e, s, d) for e, s, d in zip(extents, starts, dims))


def _place(extent: Extent, start: Node, dim: tuple[str, Extent, int] | None) -> Place:
    """A position as strides over axes and the rest."""
    strides: dict[str, Node] = {}

    def add(axis: str, step: Node) -> None:
        strides[axis] = strides[axis] + step if axis in strides else step

    rest: Node | None = None
    loaded = reads_memory(start)
    if dim is not None:
        add(dim[0], as_node(dim[2]))
    if loaded:
        rest = start
    else:
        for atoms, factor in poly(simplify(start)).items():
            moving = [a for a in atoms if a.names]
            if not moving:
                continue
            if len(moving) == 1 and moving[0].op == "iota":
                step = as_node(factor)
                for atom in atoms:
                    step = step if atom is moving[0] else step * atom
                add(moving[0].attr[0], step)
                continue
            term = as_node(factor)
            for atom in atoms:
                term = term * atom
            rest = term if rest is None else rest + term
    kept = tuple((a, _closed(s)) for a, s in sorted(strides.items()))
    return Place(extent, kept, rest, rest.names if rest is not None else (), loaded)


def _closed(node: Node) -> Extent:
    short = simplify(node)
    return int(short.attr[0]) if short.op == "const" else short
