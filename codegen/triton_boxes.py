"""Which loads and stores are blocks of a tensor descriptor: strides, sizes and masks that fit.

A descriptor reads zero outside its buffer and writes nothing there. A mask that says no more than
that is dropped; where a test of the whole box fails, the box is one beyond the buffer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from operator import and_

from autosched.codegen.triton_sizes import is_multiple
from autosched.codegen.triton_values import number
from autosched.ir.extent import as_extent, as_node, ext_mul, ext_product, simplify
from autosched.ir.linear import Poly, from_poly, poly
from autosched.ir.node import Extent, Node, walk
from autosched.ir.ops import cast, iota, where
from autosched.ir.scalar import ITEMSIZE

MAX_INT32 = 2**31 - 1
MAX_BOX = 256  # elements of one dimension of a block
MAX_RANK = 5
ALIGNMENT = 16  # bytes, of strides and of a block's innermost row


def extents_of(handle: Node) -> tuple[Extent, ...]:
    dims = handle.attr[1]
    return tuple(as_extent(e) for e in ([e for _, e in dims] if handle.op == "input" else dims))


def strides_of(handle: Node) -> tuple[Extent, ...]:
    extents = extents_of(handle)
    return tuple(ext_product(extents[n + 1 :]) for n in range(len(extents)))


def access_of(node: Node) -> tuple[Node, tuple[Node, ...], tuple[object, ...]]:
    """(handle, starts, dims) of a load or store."""
    first = 2 if node.op == "store" else 1
    dims = node.attr[0]
    return node.src[0], node.src[first : first + len(dims)], dims


def mask_of(node: Node) -> Node | None:
    """The mask of a load or store; None where it has none or is always true."""
    if not node.attr[1]:
        return None
    mask = node.src[-1] if node.op == "store" else node.src[-2]
    return None if mask.op == "const" and mask.attr[0] else mask


@dataclass(frozen=True)
class Box:
    """A load or store through a descriptor: its block, the axes of the block's dimensions that are
    longer than 1, where it starts. masked: a mask says more than the descriptor does.

    extents, strides: of the tensor that the descriptor speaks of; base: (coordinate, stride) of
    the dimensions that its address accounts for.
    """

    node: Node
    block: tuple[int, ...]
    axes: tuple[str, ...]
    coordinates: tuple[Node, ...]
    masked: bool
    extents: tuple[Extent, ...]
    strides: tuple[Extent, ...]
    base: tuple[tuple[Node, Extent], ...] = ()


def terms_of(node: Node) -> Poly:
    """An index expression as a polynomial; what is loaded in it stays the node that it is."""
    loaded = any(n.op == "load" for n in walk(node))
    return poly(node if loaded else simplify(node))


def coordinate(start: Node, dim: object) -> Node:
    if not isinstance(dim, tuple):
        return start
    axis, extent, stride = dim
    return start + cast(iota(axis, extent), start.dtype) * stride


def _tile_axes(node: Node, loops: Container[str]) -> set[str]:
    """The tile axes longer than 1 that an access varies along."""
    _, starts, dims = access_of(node)
    found = {a: e for s in starts for a, e in s.axes}
    found |= {d[0]: d[1] for d in dims if isinstance(d, tuple)}
    return {a for a, e in found.items() if a not in loops and number(e) > 1}


def box_of(
    node: Node, loops: Container[str], fixed: Container[str] = (),
    value: Callable[[Extent], int] = number,
) -> Box | None:  # fmt: skip
    """The access as a block of a tensor descriptor, or None where it cannot be one.

    loops: the axes that loops bind; fixed: those of them that a program has one value of; value:
    of an extent that is open.
    """
    handle, starts, dims = access_of(node)
    extents, strides = extents_of(handle), strides_of(handle)
    size = ITEMSIZE[handle.dtype]
    if handle.dtype == "bool":
        return None
    block, axes, coordinates = [], [], []
    for start, dim in zip(starts, dims):
        spans = isinstance(dim, tuple) and number(dim[1]) > 1
        at = start
        if isinstance(dim, tuple) and spans:
            axis, extent, stride = dim
            if stride != 1 or axis in axes or axis in loops:
                return None
            axes.append(axis)
            block.append(number(extent))
        else:
            lone = [a for a, _ in start.free if a not in loops]
            tile = _tile_of(start, lone)
            if tile is None:
                return None
            at, axis, extent = tile
            if axis:
                axes.append(axis)
            block.append(extent)
        if any(a not in loops for a, _ in at.free) or at.dtype != "int32":
            return None
        coordinates.append(at)
    guards, inside, tested = _inside(node, extents, loops)
    fits = (
        # A box of one line gains nothing, and on Hopper such a kernel ended with misaligned
        # addresses or stores beyond the buffer (Triton 3.6, several one-line boxes in a kernel).
        sum(b > 1 for b in block) >= 2
        and len(set(axes)) == len(axes)
        and len(block) <= MAX_RANK
        and max(block) <= MAX_BOX
        and block[-1] * size >= ALIGNMENT
        and all(c * size % ALIGNMENT == 0 for c in terms_of(coordinates[-1]).values())
        and all(is_multiple(ext_mul(s, size), ALIGNMENT) for s in strides[:-1])
        and not any(b & (b - 1) for b in block)
        and set(axes) == _tile_axes(node, loops)
    )
    if not fits:
        return None
    found = tuple(map(_Dim, extents, strides, block, coordinates, tested))
    base = [d for d in found[:-1] if d.point and _known(d.at, fixed)]
    kept = _joined(tuple(d for d in found if d not in base), value)
    if guards:
        outside = where(functools.reduce(and_, guards), kept[0].at, as_node(kept[0].extent))
        kept = (replace(kept[0], at=outside), *kept[1:])
    return Box(
        node, tuple(d.size for d in kept), tuple(axes), tuple(d.at for d in kept), not inside,
        tuple(d.extent for d in kept), tuple(d.stride for d in kept),
        tuple((d.at, d.stride) for d in base),
    )  # fmt: skip


@dataclass(frozen=True)
class _Dim:
    """A dimension of a box. tested: the mask may keep it from going beyond the extent."""

    extent: Extent
    stride: Extent
    size: int
    at: Node
    tested: bool

    @property
    def point(self) -> bool:
        return self.size == 1 and not self.tested


def _joined(dims: tuple[_Dim, ...], value: Callable[[Extent], int]) -> tuple[_Dim, ...]:
    """The dimensions with each point joined to its right neighbour, where one step of the outer
    dimension is all of the inner one."""
    out: list[_Dim] = []
    for dim in dims:
        outer = out[-1] if out else None
        if (
            outer is not None and outer.point and not dim.tested
            and outer.stride == ext_mul(dim.extent, dim.stride)
            and value(ext_mul(outer.extent, dim.extent)) <= MAX_INT32
        ):  # fmt: skip
            out.pop()
            at = simplify(outer.at * as_node(dim.extent) + dim.at)
            dim = replace(dim, extent=ext_mul(outer.extent, dim.extent), at=at)
        out.append(dim)
    return tuple(out)


def _known(at: Node, fixed: Container[str]) -> bool:
    """Whether a program has one value of it."""
    return not at.carries and all(a in fixed for a, _ in at.free)


def _tile_of(start: Node, tiles: list[str]) -> tuple[Node, str, int] | None:
    """(scalar part, axis, extent) of a start that is a scalar plus at most one tile axis."""
    if not tiles:
        return start, "", 1
    if len(tiles) > 1:
        return None
    terms = terms_of(start)
    for mono, c in terms.items():
        if c == 1 and len(mono) == 1 and mono[0].op == "iota" and mono[0].attr[0] == tiles[0]:
            rest = from_poly({m: k for m, k in terms.items() if m != mono}, "int32")
            return rest, tiles[0], number(mono[0].attr[1])
    return None


def _inside(
    node: Node, extents: tuple[Extent, ...], loops: Container[str]
) -> tuple[list[Node], bool, list[bool]]:
    """The tests of the whole box in the mask; whether the rest says no more than that coordinates
    are below the buffer's extents, and the fill is zero: what a descriptor does; and of each
    dimension whether the mask may keep it from going beyond its extent."""
    mask = mask_of(node)
    if mask is None:
        return [], True, [False] * len(extents)
    fill = node.src[-1]
    if node.op == "load" and not (fill.op == "const" and not fill.attr[0]):
        return [], False, [True] * len(extents)
    _, starts, dims = access_of(node)
    bounds = [_margin(as_node(e), coordinate(s, d))
              for s, d, e in zip(starts, dims, extents)]  # fmt: skip
    rest = [part for part in _conjunction(mask) if _less(part) not in bounds]
    if any(a not in loops for part in rest for a, _ in part.free):
        return [], False, [True] * len(extents)
    parts = [_less(part) for part in _conjunction(mask)]
    return rest, True, [bound in parts for bound in bounds]


def _conjunction(mask: Node) -> list[Node]:
    if mask.op == "map" and mask.attr[0] == "and":
        return [part for s in mask.src for part in _conjunction(s)]
    return [mask]


def _margin(high: Node, low: Node) -> Poly | None:
    if low.dtype != high.dtype:
        return None
    return terms_of(high - low)


def _less(node: Node) -> Poly | bool | None:
    """high - low of a comparison low < high; False where it is none."""
    if node.op != "map" or node.attr[0] not in ("lt", "gt"):
        return False
    low, high = node.src if node.attr[0] == "lt" else node.src[::-1]
    if low.dtype != "int32":
        return False
    return _margin(high, low)
