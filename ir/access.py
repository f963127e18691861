"""How a nest touches memory: strides of its loads and stores along each axis, axes it reduces.

Only numbers come out, so the program must have its sizes bound; sketches look at a trial program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from autosched.ir.extent import as_extent, simplify
from autosched.ir.linear import poly
from autosched.ir.loops import Nest, load_starts
from autosched.ir.node import Node, walk


@dataclass(frozen=True)
class Access:
    """One load or store: its buffer and, for each axis it depends on, elements per step.

    A stride of None says that the position is not linear in that axis.
    """

    handle: Node
    strides: tuple[tuple[str, int | None], ...]

    def stride(self, axis: str) -> int | None:
        return dict(self.strides).get(axis, 0)

    @property
    def is_weight(self) -> bool:
        return self.handle.op == "input" and self.handle.attr[3] == "weight"


def access(handle: Node, starts: Sequence[Node]) -> Access:
    """The access of `handle` at `starts`, row-major."""
    extents = extents_of(handle)
    strides: dict[str, int | None] = {}
    for n, start in enumerate(starts):
        step = prod(extents[n + 1 :])
        for atoms, factor in poly(simplify(start)).items():
            single = len(atoms) == 1 and atoms[0].op == "iota"
            for axis in {a for atom in atoms for a in atom.names}:
                old = strides.get(axis, 0)
                linear = single and old is not None
                strides[axis] = (old or 0) + factor * step if linear else None
    return Access(handle, tuple(sorted(strides.items())))


def extents_of(handle: Node) -> tuple[int, ...]:
    dims = handle.attr[1]
    found = [as_extent(e) for e in ([e for _, e in dims] if handle.op == "input" else dims)]
    return tuple(e if isinstance(e, int) else 1 for e in found)


def loads(nest: Nest) -> tuple[tuple[Node, Access], ...]:
    """Every load below the nest's value, once."""
    return tuple((n, access(n.src[0], load_starts(n))) for n in walk(nest.value) if n.op == "load")


def stored(nest: Nest) -> Access:
    return access(nest.handle, nest.starts)


def reductions(nest: Nest) -> tuple[Node, ...]:
    """The reduces and folds that are not inside another one."""
    out: list[Node] = []
    stack, seen = [nest.value], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op in ("reduce", "fold"):
            out.append(node)
        else:
            stack.extend(node.src)
    return tuple(out)


def bound_axes(node: Node) -> tuple[str, ...]:
    """The axes that a reduce or a fold runs over."""
    return tuple(node.attr[1]) if node.op == "reduce" else (str(node.attr[0]),)
