"""Values of a kernel as Triton expressions: maps, coordinates, names, views of computed values.

`value(node)` returns an expression for the node and writes the lines that it needs where they
belong. What is used once and short stays inside its user's line; the rest gets a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from autosched.codegen import triton_scalars as scalars
from autosched.codegen.triton_scope import Scopes
from autosched.codegen.triton_text import (
    ATOM,
    BITOR,
    NARROW,
    TYPES,
    Unsupported,
    Val,
    literal,
)
from autosched.ir.extent import as_extent, simplify
from autosched.ir.linear import poly
from autosched.ir.node import Axes, Extent, Node
from autosched.ir.scalar import FLOATS, ITEMSIZE

INLINE = 56  # a longer expression gets a line and a name of its own
LONG, SHORT = 80, 24  # a long one is made of names instead of operands that are not short
MAX_ELEMENTS = 1 << 20  # of one tensor, Triton's own limit


class Values:
    """Emits values of one kernel at a time."""

    methods: ClassVar[dict[str, str]] = {
        "const": "_const", "knob": "_knob", "iota": "_iota", "carry": "_carry", "get": "_get",
        "map": "_map", "reaxis": "_reaxis",
    }  # fmt: skip

    def __init__(self) -> None:
        self.scopes = Scopes()
        self.uses: dict[Node, int] = {}
        self.ranks: dict[str, int] = {}  # the one order of tile axes in tensors
        self.sizes: dict[str, int] = {}
        self.depths: dict[str, int] = {}  # of the axes that loops bind
        self.hints: dict[Node, str] = {}
        self.direct: Node | None = None  # what the line being written is for
        self.helpers: set[str] = set()
        self.arguments: Mapping[str, str] = {}  # of the kernel, by open extent

    # ---- values and names -----------------------------------------------------------------

    def value(self, node: Node) -> Val:
        return self.results(node)[0]

    def results(self, node: Node) -> tuple[Val, ...]:
        found = self.scopes.known(node)
        if found is not None:
            return found
        here, home = self.scopes.level, self.scopes.home(node)
        method = self.methods.get(node.op)
        if method is None:
            raise Unsupported(f"a {node.op} has no Triton form here")
        with self.scopes.at(home):
            got: tuple[Val, ...] = getattr(self, method)(node)
            if len(got) == 1 and not self.stays_inline(node, got[0], here == home):
                got = (self.named(got[0], self.hint(node, got[0].dims)),)
            self.scopes.keep(node, got)
        return got

    def stays_inline(self, node: Node, val: Val, same_scope: bool) -> bool:
        if val.is_name or val.literal:
            return True
        if self.uses.get(node, 1) > 1 or not same_scope:
            return False
        return node is self.direct or (node.op != "load" and len(val.text) <= INLINE)

    def named(self, val: Val, hint: str) -> Val:
        """The value by name, on a line of its own unless it has one."""
        if val.is_name:
            return val
        name = self.scopes.fresh(hint)
        self.scopes.line(f"{name} = {val.text}")
        return Val(name, val.dims, val.dtype)

    def hint(self, node: Node, dims: tuple[str, ...] = ("",)) -> str:
        """A name that says what the node is."""
        if node in self.hints:
            return self.hints[node]
        stems = dict.fromkeys(a.split(".")[0] for a, _ in node.free)
        if node.op == "map" and node.dtype == "bool":
            return f"in_{'_'.join(stems)}" if 0 < len(stems) < 3 else "keep"
        if node.op == "map" and node.dtype in ("int32", "int64") and 0 < len(stems) < 3:
            part = _HINTS.get(node.attr[0], "start") if node.attr[0] in _PARTS else "start"
            return "_".join(stems) + ("" if dims else f"_{part}")
        if node.op in ("reduce", "scan"):
            return f"{node.attr[0]}_{'_'.join(_axes_of(node))}"
        if node.op == "map":
            return _HINTS.get(node.attr[0].split(":")[0], node.attr[0].split(":")[0])
        return _HINTS.get(node.op, node.op)

    def use(self, helper: str) -> str:
        self.helpers.add(helper)
        return helper

    # ---- dimensions -----------------------------------------------------------------------

    def size(self, axis: str) -> int:
        return self.sizes[axis]

    def tile_dims(self, axes: Axes) -> tuple[str, ...]:
        """The axes that are dimensions of a tensor here, in the kernel's order."""
        found = [a for a, e in axes if a not in self.depths and number(e) != 1]
        return self.ordered(found)

    def ordered(self, axes: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(dict.fromkeys(axes), key=lambda a: (self.ranks.get(a, 0), a)))

    def shape(self, dims: Sequence[str]) -> str:
        sizes = [str(self.size(d)) for d in dims]
        return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"

    def aligned(self, val: Val, dims: tuple[str, ...], hint: str = "wide") -> Val:
        """The value with its dimensions in the order of `dims`, of length 1 where it lacks one."""
        if val.dims == dims or not val.dims:
            return val
        wanted = tuple(d for d in dims if d in val.dims)
        if wanted != val.dims:
            val = self.permuted(val, wanted)
        if wanted == dims:
            return val
        at = ", ".join(":" if d in val.dims else "None" for d in dims)
        if val.rank < ATOM:
            val = self.named(val, hint)
        return Val(f"{val.text}[{at}]", dims, val.dtype)

    def oriented(self, node: Node, dims: tuple[str, ...], hint: str = "wide") -> Val:
        """The value of a node aligned to `dims`; a map that would have to be transposed is made of
        operands in that order instead."""
        own = self.tile_dims(node.axes)
        turned = tuple(d for d in dims if d in own) != own
        alone = self.uses.get(node, 1) == 1 or node.dtype == "bool"
        if not (turned and alone and node.op == "map" and self.scopes.known(node) is None):
            return self.aligned(self.value(node), dims, hint)
        here, home = self.scopes.level, self.scopes.home(node)
        kept = tuple(d for d in dims if d in own)
        with self.scopes.at(home):
            operands = [self.oriented(s, kept) for s in node.src]
            val = scalars.apply(node, operands, kept, self.use)
            if len(val.text) > INLINE or home != here:
                val = self.named(val, self.hint(node, kept))
        return self.aligned(val, dims, hint)

    def permuted(self, val: Val, dims: tuple[str, ...]) -> Val:
        if val.dims == dims:
            return val
        order = [val.dims.index(d) for d in dims]
        if order == [1, 0]:
            return Val(f"tl.trans({val.text})", dims, val.dtype)
        return Val(f"tl.permute({val.text}, {', '.join(map(str, order))})", dims, val.dtype)

    def spread(self, val: Val, dims: tuple[str, ...]) -> Val:
        """The value with exactly these dimensions, all of full length."""
        if not dims:
            return val
        if not val.dims:
            kind = TYPES[val.dtype]
            if val.literal and val.text in ("0.0", "0"):
                return Val(f"tl.zeros({self.shape(dims)}, {kind})", dims, val.dtype)
            return Val(f"tl.full({self.shape(dims)}, {val.text}, {kind})", dims, val.dtype)
        out = self.aligned(val, dims)
        if set(val.dims) == set(dims):
            return out
        return Val(f"tl.broadcast_to({out.text}, {self.shape(dims)})", dims, val.dtype)

    def joint(self, vals: Iterable[Val]) -> tuple[str, ...]:
        return self.ordered(d for v in vals for d in v.dims)

    # ---- leaves ---------------------------------------------------------------------------

    def _const(self, node: Node) -> tuple[Val, ...]:
        return (literal(*node.attr),)

    def _knob(self, node: Node) -> tuple[Val, ...]:
        if node.attr[0] not in self.arguments:
            raise Unsupported(f"the unbound knob {node.attr[0]}")
        return (Val(self.arguments[node.attr[0]], (), "int32"),)

    def extent(self, extent: Extent) -> Val:
        """An extent as a number or a name."""
        if not isinstance(extent, Node):
            return literal(extent, "int32")
        with self.scopes.at(0):
            made = self.named(self.value(extent), self.hint(extent))
            self.scopes.keep(extent, (made,))
        return made

    def _iota(self, node: Node) -> tuple[Val, ...]:
        axis, extent, dtype = node.attr
        at = self.scopes.bound(axis)
        if at is None and number(extent) == 1:
            at = literal(0, "int32")
        if at is None:
            if dtype != "int32":
                at = self.value(Node("iota", (), (axis, extent, "int32")))
            else:
                size = number(extent)
                if size & (size - 1):
                    raise Unsupported(f"axis {axis} of extent {size}, which is no power of two")
                return (self.named(Val(f"tl.arange(0, {size})", (axis,), "int32"), axis),)
        if at.literal:
            return (literal(int(at.text), dtype),)
        return (scalars.cast_to(at, dtype, self.use),)

    def _carry(self, node: Node) -> tuple[Val, ...]:
        state = self.scopes.state(node.attr[0])
        if state is None:
            raise Unsupported(f"the state {node.attr[0]!r} is read outside its fold")
        return (state,)

    def _get(self, node: Node) -> tuple[Val, ...]:
        return (self.results(node.src[0])[node.attr[0]],)

    # ---- maps -----------------------------------------------------------------------------

    def _map(self, node: Node) -> tuple[Val, ...]:
        fused = self.fused(node)
        if fused is not None:
            return (fused,)
        operands = [self.value(s) for s in node.src]
        dims = self.joint(operands)
        out = self.applied(node, operands, dims)
        if len(out.text) > LONG:
            operands = [v if v.literal or len(v.text) < SHORT else self.named(v, self.hint(s))
                        for v, s in zip(operands, node.src)]  # fmt: skip
            out = self.applied(node, operands, dims)
        return (out,)

    def applied(self, node: Node, operands: Sequence[Val], dims: tuple[str, ...]) -> Val:
        aligned = [self.aligned(v, dims, self.hint(s)) for v, s in zip(operands, node.src)]
        return scalars.apply(node, aligned, dims, self.use)

    def fused(self, node: Node) -> Val | None:
        """A sum with a dot as its accumulator; see `triton_dots`."""
        return None

    # ---- views of computed values ---------------------------------------------------------

    def _reaxis(self, node: Node) -> tuple[Val, ...]:
        """A computed value read at other coordinates: renamed, gathered, split or one row of it."""
        val = self.value(node.src[0])
        source = node.src[0]
        renames: dict[str, str] = {}
        for axis, expr in zip(node.attr[0], node.src[1:]):
            if axis not in val.dims:
                if number(source.extent(axis)) != 1:
                    raise Unsupported(f"the loop axis {axis} of a value is read elsewhere")
                continue
            if expr.op == "iota" and expr.attr[1] == source.extent(axis):
                renames[axis] = expr.attr[0]
                continue
            val = self.reread(val, axis, expr)
        done = tuple(renames.get(d, d) for d in val.dims)
        if len(set(done)) != len(done):
            raise Unsupported(f"a value of {', '.join(val.dims)} read along its diagonal")
        return (val.with_dims(done),)

    def reread(self, val: Val, axis: str, expr: Node) -> Val:
        """The value with the dimension `axis` read at the coordinates `expr`."""
        parts = self.split_of(axis, expr)
        if parts is not None:
            at = val.dims.index(axis)
            dims = (*val.dims[:at], *parts, *val.dims[at + 1 :])
            return Val(f"tl.reshape({val.text}, {self.shape(dims)})", dims, val.dtype)
        index = self.value(expr)
        news = tuple(d for d in index.dims if d == axis or d not in val.dims)
        if not news:
            return self.row(val, axis, index)
        if len(news) == 1:
            (new,) = news
            dims = tuple(new if d == axis else d for d in val.dims)
            wide = self.spread(index, dims)
            at = val.dims.index(axis)
            return Val(f"tl.gather({val.text}, {wide.text}, {at})", dims, val.dtype)
        raise Unsupported(f"a computed value is read along {axis} at places that vary along "
                          f"{', '.join(news)}")  # fmt: skip

    def split_of(self, axis: str, expr: Node) -> tuple[str, ...] | None:
        """The axes (outer first) that an axis is made of: expr = outer * size + inner ..."""
        terms = poly(simplify(expr))
        found = []
        for mono, c in terms.items():
            if len(mono) != 1 or mono[0].op != "iota" or self.scopes.bound(mono[0].attr[0]):
                return None
            found.append((c, mono[0].attr[0], number(mono[0].attr[1])))
        found.sort(reverse=True)
        below = 1
        for c, _, extent in reversed(found):
            if c != below:
                return None
            below *= extent
        return tuple(a for _, a, _ in found) if below == self.size(axis) and found else None

    def row(self, val: Val, axis: str, index: Val) -> Val:
        """One row of a tensor, or another one at every place of its other dimensions: the sum over
        rows of which all others are 0."""
        val = self.named(val, "rows")
        at = self.aligned(self.coordinates(axis), val.dims)
        hit = f"{at.text} == {self.aligned(index, val.dims).inside(BITOR)}"
        n = val.dims.index(axis)
        dims = val.dims[:n] + val.dims[n + 1 :]
        if val.dtype == "bool":
            return Val(f"tl.max(({hit}) & {val.text}, {n})", dims, "bool")
        zero = "0.0" if val.dtype in FLOATS else "0"
        text = f"tl.sum(tl.where({hit}, {val.text}, {zero}), {n})"
        if val.dtype in NARROW:
            text = f"tl.sum(tl.where({hit}, {val.text}.to(tl.float32), 0.0), {n})"
            return Val(text, dims, "float32")
        return Val(self.as_type(text, val.dtype), dims, val.dtype)

    def as_type(self, text: str, dtype: str) -> str:
        """A sum of small integers, which `tl.sum` widens, in its own type again."""
        small = dtype not in FLOATS and ITEMSIZE[dtype] < 4
        return f"{text}.to({TYPES[dtype]})" if small else text

    def coordinates(self, axis: str) -> Val:
        return self.value(Node("iota", (), (axis, self.size(axis), "int32")))

    # ---- uses -----------------------------------------------------------------------------

    def count_uses(self, roots: Iterable[Node]) -> None:
        """How many operands of others each node is."""
        seen: set[Node] = set()
        todo = list(roots)
        for root in todo:
            self.uses[root] = self.uses.get(root, 0) + 1
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            for s in self.operands(node):
                self.uses[s] = self.uses.get(s, 0) + 1
                todo.append(s)

    def operands(self, node: Node) -> Sequence[Node]:
        """The nodes whose values the emitter reads for this one."""
        return node.src


def number(extent: Extent) -> int:
    got = as_extent(extent)
    if isinstance(got, Node):
        raise Unsupported("an extent with an unbound knob")
    return got


def _axes_of(node: Node) -> tuple[str, ...]:
    axes = node.attr[1]
    return (axes,) if isinstance(axes, str) else tuple(axes)


_PARTS = ("floordiv", "truncdiv", "mod", "fmod")
_HINTS = {
    "add": "total", "sub": "diff", "mul": "prod", "div": "ratio", "where": "masked",
    "cast": "cast", "neg": "minus", "dot": "dot", "trisolve": "solved", "reaxis": "view",
    "floordiv": "part", "mod": "rest", "load": "tile",
}  # fmt: skip

