"""Loads and stores: boxes as pointers with masks, or as tensor descriptors where those can.

The offset of an access is a sum: scalars, outer loops first, then what varies along tile axes.
Each part is made where its loops are, so that a loop adds one scalar to a tensor made before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from autosched.codegen import triton_scalars as scalars
from autosched.codegen.triton_boxes import (
    ALIGNMENT,
    MAX_INT32,
    Box,
    access_of,
    box_of,
    coordinate,
    extents_of,
    mask_of,
    strides_of,
    terms_of,
)
from autosched.codegen.triton_reduce import Reductions
from autosched.codegen.triton_sizes import OpenSizes
from autosched.codegen.triton_text import ADD, MUL, Names, Unsupported, Val
from autosched.ir.extent import ext_mul, ext_product
from autosched.ir.gpu_facts import fed_by
from autosched.ir.linear import Poly, from_poly, poly
from autosched.ir.node import Extent, Node
from autosched.ir.open_extents import Sizes
from autosched.ir.ops import cast
from autosched.ir.scalar import ITEMSIZE


@dataclass(frozen=True)
class Address:
    """Offset in elements: a scalar, and terms (value, factor) that vary along tile axes."""

    scalar: Node | None
    tiles: tuple[tuple[Node, Extent], ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        factors = (c for _, c in self.tiles if isinstance(c, Node))
        scalars = () if self.scalar is None else (self.scalar,)
        return (*(t for t, _ in self.tiles), *factors, *scalars)


class Memory(Reductions):
    """Loads and stores of a kernel."""

    methods: ClassVar[dict[str, str]] = {**Reductions.methods, "load": "_load"}

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[Node, str] = {}  # names of parameters
        self.open = OpenSizes(Sizes(), Names())
        self.addresses: dict[Node, Address] = {}
        self.orders: dict[Node, tuple[str, ...]] = {}  # of dimensions that a load's user wants
        self.bases: dict[Node, set[str]] = {}  # scalar parts of addresses, and of which tensors
        # Loads that other addresses and masks come from: Triton pipelines them as pointers alone.
        self.steering: frozenset[Node] = frozenset()
        self.parts = 1  # in which a box is stored
        self.boxed: frozenset[Node] = frozenset()  # loads and stores that are to be descriptors
        self.fixed: frozenset[str] = frozenset()  # loop axes that a program has one value of
        self.made_descriptors: dict[tuple[object, ...], str] = {}
        self.rows: frozenset[str] = frozenset()  # axes along which groups of warps share boxes
        self.unknown: Val | None = None

    # ---- addresses ------------------------------------------------------------------------

    def address(self, node: Node) -> Address:
        if node not in self.addresses:
            self.addresses[node] = self._address(node)
        return self.addresses[node]

    def _address(self, node: Node) -> Address:
        handle, starts, dims = access_of(node)
        wide = self.is_wide(handle)
        strides = strides_of(handle)
        for stride in strides:
            if isinstance(stride, Node):
                self.hints.setdefault(stride, f"{self.tensors[handle]}_stride")
        total = _by_stride(zip(map(coordinate, starts, dims), strides))
        groups: dict[int, dict[Extent, Poly]] = {}
        tiles: list[tuple[Node, Extent]] = []
        for stride, mono, c in ((s, m, c) for s, terms in total.items() for m, c in terms.items()):
            if any(a.op == "iota" and a.attr[1] == 1 for a in mono):
                continue
            axes = {a for atom in mono for a, _ in atom.free}
            if axes - set(self.depths):
                tiles.append(self._tile_term(mono, c, stride, wide))
            elif c:
                depth = max((self.depths[a] for a in axes), default=0)
                groups.setdefault(depth, {}).setdefault(stride, {})[mono] = c
        scalar: Node | None = None
        for depth in sorted(groups):
            part = _scalar_sum(groups[depth], wide)
            scalar = part if scalar is None else scalar + part
            self.bases.setdefault(scalar, set()).add(self.tensors[handle])
            (name, *others) = self.bases[scalar]
            self.hints[scalar] = "base" if others else f"{name}_base"
        return Address(scalar, tuple(tiles))

    def is_wide(self, handle: Node) -> bool:
        """Whether an offset into the tensor may not fit in 32 bits."""
        return self.open.value(ext_product(extents_of(handle))) > MAX_INT32

    def _tile_term(
        self, mono: tuple[Node, ...], c: int, stride: Extent, wide: bool
    ) -> tuple[Node, Extent]:
        """(what is multiplied, by what) in a tensor of offsets; int64 only where the product may
        not fit."""
        factor = ext_mul(c, stride)
        if all(a.dtype == "int32" for a in mono):
            node = from_poly({mono: 1}, "int32")
            high = self.open.most(node * c)
            fits = high is not None and high * self.open.value(stride) <= MAX_INT32
            if not wide or fits:
                return node, factor
        node = from_poly(_wide({mono: 1}), "int64")
        return node, _widened(factor) if wide and isinstance(factor, Node) else factor

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
        groups: dict[int, list[tuple[Node, Extent]]] = {}
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
        self, terms: tuple[tuple[Node, Extent], ...], dims: tuple[str, ...], node: Node
    ) -> Val:
        """The sum of terms that belong to one scope, made and named there."""
        vals = [self.value(t) for t, _ in terms]
        own = tuple(d for d in dims if any(d in v.dims for v in vals))
        key = (frozenset(terms), own)
        found = self.scopes.stack[-1].sums.get(key)
        if found is not None:
            return found
        wide = [self.aligned(v, own, self.hint(t)) for v, (t, _) in zip(vals, terms)]
        parts = [v.inside(ADD) if c == 1 else f"{v.inside(MUL)} * {self.extent(c).text}"
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
        box = self.box(node)
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
        terms = self.address(node).tiles
        dims = self.ordered(d for t, _ in terms for d in self.tile_dims(t.axes))
        axes = (*value.axes, *(() if mask is None else mask.axes))
        lost = [d for d in self.tile_dims(axes) if d not in dims]
        if lost:
            raise Unsupported(f"a store to {self.tensors[handle]} whose address does not vary "
                              f"along {', '.join(lost)}")  # fmt: skip
        if not val.literal:
            val = scalars.cast_to(val, handle.dtype, self.use)
        box = self.box(node)
        if box is not None and not box.masked:
            self.box_store(box, val)
            return
        pointer = self.pointer(node, dims, False)
        tail = "" if mask is None else f", mask={self.oriented(mask, dims, 'keep').text}"
        self.scopes.line(f"tl.store({pointer.text}, {self.aligned(val, dims).text}{tail})")

    # ---- descriptors ----------------------------------------------------------------------

    def box(self, node: Node) -> Box | None:
        """The access as a box, where it is one and is to be a descriptor."""
        if node not in self.boxed or node in self.steering:
            return None
        return box_of(node, self.depths, self.fixed, self.open.value)

    def check_handed(self, dots: Iterable[Node]) -> None:
        """Warps of their own load boxes alone: with pointers Triton 3.6 asserts."""
        for load in dict.fromkeys(n for d in dots for s in d.src for n in fed_by(s)):
            if self.box(load) is None:
                raise Unsupported(f"warps that load {self.tensors[load.src[0]]} by pointers")

    def descriptor(self, box: Box) -> str:
        """The name of a box's descriptor, which is made once: for all programs of a multiprocessor
        in turn where its address is the tensor's."""
        handle = box.node.src[0]
        key = (handle, box.block, box.extents, box.strides, box.base)
        if key not in self.made_descriptors:
            name = address = self.tensors[handle]
            with self.scopes.at(1 if box.base else 0):
                wide = self.is_wide(handle)
                if box.base:
                    base = _scalar_sum(_by_stride(box.base), wide)
                    address += f" + {self.value(base).inside(ADD)}"
                strides = [_widened(s) if wide and isinstance(s, Node) else s for s in box.strides]
                parts = (box.extents, strides, box.block)
                text = ", ".join(f"[{', '.join(self.extent(e).text for e in p)}]" for p in parts)
                made = self.named(Val(f"tl.make_tensor_descriptor({address}, {text})", (), ""),
                                  f"{name}_box")  # fmt: skip
            self.made_descriptors[key] = made.text
        return self.made_descriptors[key]

    def _at(self, box: Box) -> str:
        axes = iter(box.axes)
        along = [next(axes) if size > 1 else "" for size in box.block]
        return ", ".join(
            (self.apart(c) if axis in self.rows else self.value(c)).text
            for axis, c in zip(along, box.coordinates)
        )

    def apart(self, at: Node) -> Val:
        """A coordinate that nothing else is made of. Where groups of warps share a box's rows,
        Triton 3.6 moves the second group's coordinate, and with it the tensors that are made of
        the same value: tests of rows. Those move by their ranges already."""
        with self.scopes.at(self.scopes.home(at)):
            sums, key = self.scopes.stack[-1].sums, (at, "apart")
            if key not in sums:
                own, zero = self.value(at), self.zero()
                zero = replace(zero, text=f"{own.inside(ADD)} + {zero.text}", rank=ADD)
                sums[key] = self.named(zero, f"{own.text}_at" if own.is_name else "at")
        return sums[key]

    def zero(self) -> Val:
        """A 0 that the compiler does not know."""
        if self.unknown is None:
            with self.scopes.at(0):
                self.unknown = self.named(Val("tl.program_id(1)", (), "int32"), "zero")
        return self.unknown

    def box_load(self, node: Node, box: Box, order: tuple[str, ...]) -> Val:
        name = self.descriptor(box)
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
        full = self.permuted(self.spread(val, self.ordered(box.axes)), box.axes)
        count = self.parts_of(box)
        width = box.block[-1] // count
        for n, text in enumerate(self.halves(full.text, full.dims, count)):
            part = box
            if count > 1:
                at = (*box.coordinates[:-1], box.coordinates[-1] + n * width)
                part = replace(box, block=(*box.block[:-1], width), coordinates=at)
            if len(part.axes) != len(part.block):
                text = f"tl.reshape({text}, ({', '.join(map(str, part.block))}))"
            self.scopes.line(f"{self.descriptor(part)}.store([{self._at(part)}], {text})")

    def parts_of(self, box: Box) -> int:
        """In how many parts along its last axis a box is stored."""
        most = box.block[-1] * ITEMSIZE[box.node.src[0].dtype] // ALIGNMENT
        return min(self.parts, most) if len(box.axes) > 1 and box.block[-1] > 1 else 1

    def halves(self, text: str, dims: tuple[str, ...], count: int, below: int = 1) -> list[str]:
        """A tensor of these dimensions, the last one `below` times shorter, in `count` parts along
        that one, a power of two: halves of halves."""
        if count == 1:
            return [text]
        *rows, columns = (self.size(d) for d in dims)
        shape = ", ".join(map(str, (*rows, 2, columns // below // 2)))
        order = ", ".join(map(str, (*range(len(rows)), len(rows) + 1, len(rows))))
        left, right = self.scopes.fresh("left"), self.scopes.fresh("right")
        turned = f"tl.permute(tl.reshape({text}, ({shape})), ({order}))"
        self.scopes.line(f"{left}, {right} = tl.split({turned})")
        return [x for half in (left, right) for x in self.halves(half, dims, count // 2, below * 2)]


def _wide(terms: Poly) -> Poly:
    return {tuple(cast(a, "int64") for a in mono): c for mono, c in terms.items()}


def _by_stride(places: Iterable[tuple[Node, Extent]]) -> dict[Extent, Poly]:
    """Coordinates times strides: polynomials by stride, those of all strides that are numbers
    multiplied and together at 1."""
    out: dict[Extent, Poly] = {}
    for at, stride in places:
        terms = out.setdefault(stride if isinstance(stride, Node) else 1, {})
        for mono, c in terms_of(at).items():
            terms[mono] = terms.get(mono, 0) + (c if isinstance(stride, Node) else c * stride)
    return out


def _widened(extent: Node) -> Node:
    return from_poly(_wide(poly(extent)), "int64")


def _scalar_sum(groups: Mapping[Extent, Poly], wide: bool) -> Node:
    """The sum of polynomials times their strides."""
    mixed = wide or any(a.dtype == "int64" for p in groups.values() for mono in p for a in mono)
    out: Node | None = None
    for stride, terms in groups.items():
        part = from_poly(_wide(terms) if mixed else terms, "int64" if mixed else "int32")
        if isinstance(stride, Node):
            part = part * (_widened(stride) if mixed else stride)
        out = part if out is None else out + part
    assert out is not None
    return out
