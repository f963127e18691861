"""Loads and stores: boxes as pointers with masks, or as tensor descriptors where those can.

The offset of an access is a sum: scalars, outer loops first, then what varies along tile axes.
Each part is made where its loops are, so that a loop adds one scalar to a tensor made before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from autosched.codegen import triton_scalars as scalars
from autosched.codegen.triton_text import ADD, MUL, Unsupported, Val
from autosched.codegen.triton_values import Values, number
from autosched.ir.extent import simplify
from autosched.ir.linear import Poly, from_poly, poly, range_of
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, iota
from autosched.ir.scalar import ITEMSIZE

MAX_INT32 = 2**31 - 1
MAX_BOX = 256  # of one dimension of a descriptor's block
MAX_RANK = 5


@dataclass(frozen=True)
class Address:
    """Offset in elements: a scalar, and terms (value, factor) that vary along tile axes."""

    scalar: Node | None
    tiles: tuple[tuple[Node, int], ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (*(t for t, _ in self.tiles), *(() if self.scalar is None else (self.scalar,)))


def extents_of(handle: Node) -> tuple[int, ...]:
    dims = handle.attr[1]
    return tuple(number(e) for e in ([e for _, e in dims] if handle.op == "input" else dims))


def strides_of(handle: Node) -> tuple[int, ...]:
    extents = extents_of(handle)
    return tuple(prod(extents[n + 1 :]) for n in range(len(extents)))


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


class Memory(Values):
    """Loads and stores of a kernel."""

    methods: ClassVar[dict[str, str]] = {**Values.methods, "load": "_load"}

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[Node, str] = {}  # names of parameters
        self.addresses: dict[Node, Address] = {}
        self.orders: dict[Node, tuple[str, ...]] = {}  # of dimensions that a load's user wants
        self.bases: dict[Node, set[str]] = {}  # scalar parts of addresses, and of which tensors
        self.use_descriptors = False
        self.made_descriptors: dict[tuple[Node, tuple[int, ...]], str] = {}

    # ---- addresses ------------------------------------------------------------------------

    def address(self, node: Node) -> Address:
        if node not in self.addresses:
            self.addresses[node] = self._address(node)
        return self.addresses[node]

    def _address(self, node: Node) -> Address:
        handle, starts, dims = access_of(node)
        wide = prod(extents_of(handle)) > MAX_INT32
        total: Poly = {}
        for start, dim, stride in zip(starts, dims, strides_of(handle)):
            for mono, c in poly(simplify(_coordinate(start, dim))).items():
                total[mono] = total.get(mono, 0) + c * stride
        groups: dict[int, Poly] = {}
        tiles: list[tuple[Node, int]] = []
        for mono, c in total.items():
            if any(a.op == "iota" and number(a.attr[1]) == 1 for a in mono):
                continue
            axes = {a for atom in mono for a, _ in atom.free}
            if axes - set(self.depths):
                tiles.append((_tile_term(mono, c, wide), c))
            elif c:
                depth = max((self.depths[a] for a in axes), default=0)
                groups.setdefault(depth, {})[mono] = c
        scalar: Node | None = None
        for depth in sorted(groups):
            part = _scalar_sum(groups[depth], wide)
            scalar = part if scalar is None else scalar + part
            self.bases.setdefault(scalar, set()).add(self.tensors[handle])
            (name, *others) = self.bases[scalar]
            self.hints[scalar] = "base" if others else f"{name}_base"
        return Address(scalar, tuple(tiles))

    def operands(self, node: Node) -> Sequence[Node]:
        if node.op not in ("load", "store"):
            return node.src
        mask = mask_of(node)
        value = node.src[1:2] if node.op == "store" else ()
        rest = () if mask is None else (mask, *node.src[-1:]) if node.op == "load" else (mask,)
        return (*value, *rest, *self.address(node).nodes)

    def offsets(self, node: Node, dims: tuple[str, ...]) -> Val | None:
        """The terms along tile axes as a tensor with dimensions in this order."""
        terms = self.address(node).tiles
        if not terms:
            return None
        groups: dict[int, list[tuple[Node, int]]] = {}
        for term in terms:
            groups.setdefault(self.scopes.home(term[0]), []).append(term)
        total: Val | None = None
        for level in sorted(groups):
            with self.scopes.at(level):
                part = self._sum(tuple(groups[level]), dims, node)
            if total is None:
                total = part
            else:
                joined = f"{self.aligned(total, dims).text} + {self.aligned(part, dims).text}"
                total = Val(joined, dims, part.dtype, ADD)
        return total

    def _sum(
        self, terms: tuple[tuple[Node, int], ...], dims: tuple[str, ...], node: Node
    ) -> Val:
        """The sum of terms that belong to one scope, made and named there."""
        vals = [self.value(t) for t, _ in terms]
        own = tuple(d for d in dims if any(d in v.dims for v in vals))
        key = (frozenset(terms), own)
        found = self.scopes.stack[-1].sums.get(key)
        if found is not None:
            return found
        wide = [self.aligned(v, own) for v in vals]
        parts = [v.inside(ADD) if c == 1 else f"{v.inside(MUL)} * {c}"
                 for v, (_, c) in zip(wide, terms)]  # fmt: skip
        out = Val(" + ".join(parts), own, vals[0].dtype, ADD if len(parts) > 1 else MUL)
        if parts == [vals[0].text]:
            out = vals[0]
        out = self.named(out, f"{self.tensors[node.src[0]]}_offs")
        self.scopes.stack[-1].sums[key] = out
        return out

    def pointer(self, node: Node, dims: tuple[str, ...], full: bool) -> Val:
        """The pointers of an access; full: of all dimensions, also where they do not vary."""
        address = self.address(node)
        name = self.tensors[node.src[0]]
        tile = self.offsets(node, dims)
        text = name
        if address.scalar is not None:
            text += f" + {self.value(address.scalar).inside(ADD)}"
        if full and dims and (tile is None or set(tile.dims) != set(dims)):
            zero = Val("0", (), "int32", literal=True) if tile is None else tile
            tile = self.spread(zero, dims)
        if tile is not None:
            text += f" + {self.aligned(tile, dims).inside(ADD)}"
        return Val(text, dims, node.src[0].dtype, ADD)

    # ---- loads ----------------------------------------------------------------------------

    def _load(self, node: Node) -> tuple[Val, ...]:
        dims = self.tile_dims(node.axes)
        order = self.orders.get(node, dims)
        if set(order) != set(dims):
            order = dims
        self.hints[node] = self.tensors[node.src[0]] + ("_tile" if dims else "_value")
        box = self.descriptor_box(node) if self.use_descriptors else None
        if box is not None:
            return (self.box_load(node, box, order),)
        mask = mask_of(node)
        if mask is None:
            return (self._loaded(node, self.pointer(node, order, False), ""),)
        masked = self.oriented(mask, order, "keep")
        fill = self.oriented(node.src[-1], order, "fill")
        pointer = self.pointer(node, order, True)
        tail = f", mask={masked.text}, other={fill.text}"
        return (self._loaded(node, pointer, tail),)

    def _loaded(self, node: Node, pointer: Val, tail: str) -> Val:
        return Val(f"tl.load({pointer.text}{tail})", pointer.dims, node.dtype)

    # ---- stores ---------------------------------------------------------------------------

    def store(self, node: Node) -> None:
        handle, value = node.src[:2]
        mask = mask_of(node)
        val = self.value(value)
        keep = None if mask is None else self.value(mask)
        tiles = [self.value(t) for t, _ in self.address(node).tiles]
        dims = self.joint(tiles)
        lost = [d for v in (val, *([] if keep is None else [keep])) for d in v.dims
                if d not in dims]  # fmt: skip
        if lost:
            raise Unsupported(f"a store to {self.tensors[handle]} whose address does not vary "
                              f"along {', '.join(lost)}")  # fmt: skip
        if not val.literal:
            val = scalars.cast_to(val, handle.dtype, self.use)
        box = self.descriptor_box(node) if self.use_descriptors else None
        if box is not None and not box.masked:
            self.box_store(box, val)
            return
        pointer = self.pointer(node, dims, False)
        tail = "" if keep is None else f", mask={self.aligned(keep, dims, 'keep').text}"
        self.scopes.line(f"tl.store({pointer.text}, {self.aligned(val, dims).text}{tail})")

    # ---- descriptors ----------------------------------------------------------------------

    def descriptor_box(self, node: Node) -> Box | None:
        """The access as a block of a tensor descriptor, or None where it cannot be one."""
        handle, starts, dims = access_of(node)
        extents, strides = extents_of(handle), strides_of(handle)
        size = ITEMSIZE[handle.dtype]
        block, axes, coordinates = [], [], []
        for start, dim in zip(starts, dims):
            spans = isinstance(dim, tuple) and number(dim[1]) > 1
            coordinate = start
            if isinstance(dim, tuple) and spans:
                axis, extent, stride = dim
                if stride != 1 or axis in axes or self.scopes.bound(axis) is not None:
                    return None
                axes.append(axis)
                block.append(number(extent))
            else:
                lone = [a for a, _ in start.free if a not in self.depths]
                tile = self._tile_of(start, lone)
                if tile is None:
                    return None
                coordinate, axis, extent = tile
                if axis:
                    axes.append(axis)
                block.append(extent)
            if any(a not in self.depths for a, _ in coordinate.free):
                return None
            coordinates.append(coordinate)
        fits = (
            bool(axes)
            and len(set(axes)) == len(axes)
            and len(block) <= MAX_RANK
            and max(block) <= MAX_BOX
            and block[-1] * size >= 16
            and all(s * size % 16 == 0 for s in strides[:-1])
            and not any(b & (b - 1) for b in block)
            and set(axes) == set(self.tile_dims(_tile_axes(node)))
        )
        if not fits:
            return None
        return Box(node, tuple(block), tuple(axes), tuple(coordinates),
                   not self._inside(node, extents))  # fmt: skip

    def _tile_of(self, start: Node, tiles: list[str]) -> tuple[Node, str, int] | None:
        """(scalar part, axis, extent) of a start that is a scalar plus at most one tile axis."""
        if not tiles:
            return start, "", 1
        if len(tiles) > 1:
            return None
        terms = poly(simplify(start))
        for mono, c in terms.items():
            if c == 1 and len(mono) == 1 and mono[0].op == "iota" and mono[0].attr[0] == tiles[0]:
                rest = from_poly({m: k for m, k in terms.items() if m != mono}, "int32")
                return rest, tiles[0], number(mono[0].attr[1])
        return None

    def _inside(self, node: Node, extents: tuple[int, ...]) -> bool:
        """Whether the mask says no more than that coordinates are below the buffer's extents, and
        the fill is zero: what a descriptor does by itself."""
        mask = mask_of(node)
        if mask is None:
            return True
        fill = node.src[-1]
        if node.op == "load" and not (fill.op == "const" and not fill.attr[0]):
            return False
        _, starts, dims = access_of(node)
        bounds = [_margin(const(e, "int32"), _coordinate(s, d))
                  for s, d, e in zip(starts, dims, extents)]  # fmt: skip
        return all(_less(part) in bounds for part in _conjunction(mask))

    def descriptor(self, handle: Node, block: tuple[int, ...]) -> str:
        key = (handle, block)
        if key not in self.made_descriptors:
            name = self.tensors[handle]
            parts = (extents_of(handle), strides_of(handle), block)
            text = ", ".join(str(list(p)) for p in parts)
            with self.scopes.at(0):
                made = self.named(Val(f"tl.make_tensor_descriptor({name}, {text})", (), ""),
                                  f"{name}_box")  # fmt: skip
            self.made_descriptors[key] = made.text
        return self.made_descriptors[key]

    def _at(self, box: Box) -> str:
        return ", ".join(self.value(c).text for c in box.coordinates)

    def box_load(self, node: Node, box: Box, order: tuple[str, ...]) -> Val:
        name = self.descriptor(node.src[0], box.block)
        text = f"{name}.load([{self._at(box)}])"
        if len(box.axes) != len(box.block):
            text = f"tl.reshape({text}, {self.shape(box.axes)})"
        val = Val(text, box.axes, node.dtype)
        if box.masked:
            mask, fill = mask_of(node), self.value(node.src[-1])
            assert mask is not None
            dims = self.ordered(box.axes)
            val = self.permuted(val, dims)
            keep = self.aligned(self.value(mask), dims, "keep")
            fill = scalars.tensor(fill) if node.dtype != "float32" else fill
            text = f"tl.where({keep.text}, {val.text}, {self.aligned(fill, dims).text})"
            val = Val(text, dims, node.dtype)
        return self.permuted(val, order)

    def box_store(self, box: Box, val: Val) -> None:
        handle = box.node.src[0]
        if val.literal:
            val = Val(val.text, (), handle.dtype, val.rank, True)
        full = self.spread(val, self.ordered(box.axes))
        text = self.permuted(full, box.axes).text
        if len(box.axes) != len(box.block):
            text = f"tl.reshape({text}, ({', '.join(map(str, box.block))}))"
        name = self.descriptor(handle, box.block)
        self.scopes.line(f"{name}.store([{self._at(box)}], {text})")


@dataclass(frozen=True)
class Box:
    """A load or store through a descriptor: its block, the axes of the block's dimensions that are
    longer than 1, where it starts. masked: a mask says more than the descriptor does."""

    node: Node
    block: tuple[int, ...]
    axes: tuple[str, ...]
    coordinates: tuple[Node, ...]
    masked: bool


def _coordinate(start: Node, dim: object) -> Node:
    if not isinstance(dim, tuple):
        return start
    axis, extent, stride = dim
    return start + cast(iota(axis, extent), start.dtype) * stride


def _tile_axes(node: Node) -> tuple[tuple[str, int], ...]:
    """The tile axes that an access varies along."""
    _, starts, dims = access_of(node)
    found = {a: number(e) for s in starts for a, e in s.axes}
    found |= {d[0]: number(d[1]) for d in dims if isinstance(d, tuple)}
    return tuple(found.items())


def _wide(terms: Poly) -> Poly:
    return {tuple(cast(a, "int64") for a in mono): c for mono, c in terms.items()}


def _scalar_sum(terms: Poly, wide: bool) -> Node:
    mixed = wide or any(a.dtype == "int64" for mono in terms for a in mono)
    return from_poly(_wide(terms) if mixed else terms, "int64" if mixed else "int32")


def _tile_term(mono: tuple[Node, ...], c: int, wide: bool) -> Node:
    """What is multiplied by c in a tensor of offsets; int64 only where the product may not fit."""
    terms: Poly = {mono: 1}
    if all(a.dtype == "int32" for a in mono):
        node = from_poly(terms, "int32")
        high = range_of(node * c)[1]
        if not wide or (high is not None and high <= MAX_INT32):
            return node
    return from_poly(_wide(terms), "int64")


def _conjunction(mask: Node) -> list[Node]:
    if mask.op == "map" and mask.attr[0] == "and":
        return [part for s in mask.src for part in _conjunction(s)]
    return [mask]


def _margin(high: Node, low: Node) -> Poly | None:
    if low.dtype != high.dtype:
        return None
    return poly(simplify(high - low))


def _less(node: Node) -> Poly | bool | None:
    """high - low of a comparison low < high; False where it is none."""
    if node.op != "map" or node.attr[0] not in ("lt", "gt"):
        return False
    low, high = node.src if node.attr[0] == "lt" else node.src[::-1]
    if low.dtype != "int32":
        return False
    return _margin(high, low)
