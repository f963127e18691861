"""Values of a kernel as Triton expressions: maps, coordinates, reductions, scans, renames.

`value(node)` returns an expression for the node and writes the lines that it needs where they
belong. What is used once and short stays inside its user's line; the rest gets a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from autosched.codegen import triton_scalars as scalars
from autosched.codegen.triton_scope import Scopes
from autosched.codegen.triton_text import (
    ATOM,
    BITOR,
    COMPARE,
    NARROW,
    TYPES,
    Unsupported,
    Val,
    literal,
)
from autosched.ir.extent import as_extent, simplify
from autosched.ir.linear import poly
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Axes, Extent, Node
from autosched.ir.ops import carry, map_
from autosched.ir.scalar import FLOATS, ITEMSIZE

INLINE = 56  # a longer expression gets a line and a name of its own
MAX_ELEMENTS = 1 << 20  # of one tensor, Triton's own limit


class Values:
    """Emits values of one kernel at a time."""

    methods: ClassVar[dict[str, str]] = {
        "const": "_const", "iota": "_iota", "carry": "_carry", "get": "_get", "map": "_map",
        "reaxis": "_reaxis", "reduce": "_reduce", "scan": "_scan", "trisolve": "_trisolve",
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
        self.combines: dict[tuple[str, tuple[str, ...]], tuple[str, str]] = {}

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
            return "_".join(stems) + ("" if dims else "_start")
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
        aligned = [self.aligned(v, dims, self.hint(s)) for v, s in zip(operands, node.src)]
        return (scalars.apply(node, aligned, dims, self.use),)

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
        if not index.dims:
            return self.row(val, axis, index)
        if len(index.dims) == 1 and index.dims[0] not in val.dims:
            (new,) = index.dims
            dims = tuple(new if d == axis else d for d in val.dims)
            wide = self.spread(self.aligned(index, dims), dims)
            at = val.dims.index(axis)
            return Val(f"tl.gather({val.text}, {wide.text}, {at})", dims, val.dtype)
        raise Unsupported(f"a computed value is read along {axis} at places that vary along "
                          f"{', '.join(index.dims)}")  # fmt: skip

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
        """One row of a tensor: the sum over rows of which all others are 0."""
        val = self.named(val, "rows")
        at = self.aligned(self.coordinates(axis), val.dims)
        hit = f"{at.text} == {index.inside(BITOR)}"
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

    # ---- reductions -----------------------------------------------------------------------

    def _reduce(self, node: Node) -> tuple[Val, ...]:
        monoid, axes = node.attr
        vals = tuple(scalars.widened(self.value(s)) for s in node.src)
        if any(self.scopes.bound(a) is not None for a in axes):
            raise Unsupported(f"a reduce over {', '.join(axes)}, which a loop around it binds")
        dims = self.joint(vals)
        if len(vals) > 1:
            vals = tuple(self.named(self.spread(v, dims), monoid) for v in vals)
        for axis in [d for d in reversed(dims) if d in axes]:
            vals = self.reduced(monoid, vals, axis)
        return vals

    def reduced(self, monoid: str, vals: tuple[Val, ...], axis: str) -> tuple[Val, ...]:
        """The monoid over one dimension."""
        n = vals[0].dims.index(axis)
        rest = vals[0].dims[:n] + vals[0].dims[n + 1 :]
        if len(vals) == 1:
            (x,) = vals
            text, rank = self.reduce_text(monoid, x, n)
            return (Val(text, rest, x.dtype, rank),)
        combine = self.combine(monoid, tuple(v.dtype for v in vals))
        names = [self.scopes.fresh(f"{monoid}_{i}") for i in range(len(vals))]
        operands = ", ".join(v.text for v in vals)
        self.scopes.line(f"{', '.join(names)} = tl.reduce(({operands}), {n}, {combine})")
        return tuple(Val(name, rest, v.dtype) for name, v in zip(names, vals))

    def reduce_text(self, monoid: str, x: Val, n: int) -> tuple[str, int]:
        floats = x.dtype in FLOATS
        if x.dtype == "bool":
            fn = {"any": "max", "max": "max", "all": "min", "min": "min"}.get(monoid)
            if fn is None:
                raise Unsupported(f"{monoid} of bool")
            return f"tl.{fn}({x.inside(ATOM)}.to(tl.int32), {n}) != 0", COMPARE
        if monoid == "sum":
            return self.as_type(f"tl.sum({x.text}, {n})", x.dtype), ATOM
        if monoid in ("max", "min") and not floats:
            return self.as_type(f"tl.{monoid}({x.text}, {n})", x.dtype), ATOM
        combine = {"max": "nan_max", "min": "nan_min", "prod": "product"}[monoid]
        return f"tl.reduce({x.text}, {n}, {self.use(combine)})", ATOM

    def combine(self, monoid: str, dtypes: tuple[str, ...]) -> str:
        """The name of a function that combines two partial results of the monoid."""
        key = (monoid, dtypes)
        if key not in self.combines:
            name = f"combine_{monoid}" if not any(k[0] == monoid for k in self.combines) else (
                f"combine_{monoid}_{'_'.join(dtypes)}")  # fmt: skip
            self.combines[key] = (name, self.combine_text(name, monoid, dtypes))
        return self.combines[key][0]

    def combine_text(self, name: str, monoid: str, dtypes: tuple[str, ...]) -> str:
        inner = Values()
        inner.helpers = self.helpers
        left, right = (
            tuple(carry(f"{side}{n}", t, {}) for n, t in enumerate(dtypes)) for side in "ab"
        )
        states = {n.attr[0]: Val(n.attr[0], (), n.dtype) for n in (*left, *right)}
        inner.scopes.names.used |= set(states)
        outs = MONOIDS[monoid].combine(map_, left, right)
        inner.count_uses(outs)
        inner.scopes.enter(states=states)
        texts = [inner.value(out).text for out in outs]
        lines = [f'"""Two partial results of {monoid}, the earlier one first, as one."""']
        lines += [*inner.scopes.stack[-1].lines, f"return {', '.join(texts)}"]
        body = "\n".join(f"    {line}" for line in lines)
        return f"@triton.jit\ndef {name}({', '.join(states)}):\n{body}"

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

    # ---- scans ----------------------------------------------------------------------------

    def _scan(self, node: Node) -> tuple[Val, ...]:
        monoid, axis, exclusive, reverse = node.attr
        if self.scopes.bound(axis) is not None:
            raise Unsupported(f"a scan along {axis}, which a loop around it binds")
        vals = tuple(scalars.widened(self.value(s)) for s in node.src)
        dims = self.ordered((*self.joint(vals), *self.tile_dims(node.types[0].axes)))
        limits = [literal(dtype_limit(i, s.dtype), v.dtype)
                  for i, s, v in zip(MONOIDS[monoid].identity, node.src, vals)]  # fmt: skip
        if axis not in dims:
            return tuple(limits) if exclusive else vals
        vals = tuple(self.spread(v, dims) for v in vals)
        got = self.scanned(monoid, vals, dims.index(axis), reverse)
        if not exclusive:
            return got
        return tuple(self.shifted(v, axis, limit, reverse) for v, limit in zip(got, limits))

    def scanned(
        self, monoid: str, vals: tuple[Val, ...], n: int, reverse: bool
    ) -> tuple[Val, ...]:
        tail = ", reverse=True" if reverse else ""
        if len(vals) == 1:
            (x,) = vals
            wide = replace(x, text=f"{x.inside(ATOM)}.to(tl.int32)") if x.dtype == "bool" else x
            if monoid == "sum":
                return (Val(self.as_type(f"tl.cumsum({x.text}, {n}{tail})", x.dtype), x.dims,
                            x.dtype),)  # fmt: skip
            combine = {"max": "nan_max", "any": "nan_max", "min": "nan_min", "all": "nan_min",
                       "prod": "product"}[monoid]  # fmt: skip
            text = f"tl.associative_scan({wide.text}, {n}, {self.use(combine)}{tail})"
            if x.dtype == "bool":
                return (Val(f"{text} != 0", x.dims, "bool", COMPARE),)
            return (Val(text, x.dims, x.dtype),)
        combine = self.combine(monoid, tuple(v.dtype for v in vals))
        vals = tuple(self.named(v, monoid) for v in vals)
        names = [self.scopes.fresh(f"{monoid}_{i}") for i in range(len(vals))]
        operands = ", ".join(v.text for v in vals)
        self.scopes.line(
            f"{', '.join(names)} = tl.associative_scan(({operands}), {n}, {combine}{tail})"
        )
        return tuple(Val(name, v.dims, v.dtype) for name, v in zip(names, vals))

    def shifted(self, val: Val, axis: str, first: Val, reverse: bool) -> Val:
        """The tensor one place later along `axis`, with `first` in front (reverse: behind)."""
        last = self.size(axis) - 1
        at = self.aligned(self.coordinates(axis), val.dims)
        edge = f"{at.text} == {last if reverse else 0}"
        index = f"tl.minimum({at.text} + 1, {last})" if reverse else f"tl.maximum({at.text} - 1, 0)"
        wide = self.named(self.spread(Val(index, (axis,), "int32"), (axis,)) if len(val.dims) == 1
                          else Val(f"tl.broadcast_to({index}, {self.shape(val.dims)})", val.dims,
                                   "int32"), "before")  # fmt: skip
        val = self.named(val, "running")
        n = val.dims.index(axis)
        rest = f"tl.gather({val.text}, {wide.text}, {n})"
        text = f"tl.where({edge}, {scalars.exact(first).text}, {rest})"
        return Val(text, val.dims, val.dtype)

    # ---- triangular solves ----------------------------------------------------------------

    def _trisolve(self, node: Node) -> tuple[Val, ...]:
        """x of (I + strict lower L) x = rhs: row i is rhs[i] less L[i, :i] x[:i], row by row."""
        row, col = node.attr
        lower, rhs = (scalars.widened(self.value(s)) for s in node.src)
        n = self.size(row) if row in self.sizes else 1
        dims = self.ordered((*self.tile_dims(node.axes),))
        if row not in dims or n == 1:
            return (self.spread(rhs, dims),)
        lower = self.named(lower, "lower")
        x = self.scopes.fresh("solved")
        self.scopes.line(f"{x} = {self.spread(rhs, dims).text}")
        at = self.coordinates(row)
        kept = tuple(d for d in lower.dims if d != row)
        i = self.scopes.fresh("step")
        mine = self.aligned(at, lower.dims)
        coefficients = Val(
            f"tl.sum(tl.where({mine.text} == {i}, {lower.text}, 0.0), {lower.dims.index(row)})",
            tuple(row if d == col else d for d in kept), lower.dtype,
        )  # fmt: skip
        here = self.aligned(at, dims)
        name = self.scopes.fresh("coefficients")
        wide = self.aligned(Val(name, coefficients.dims, lower.dtype), dims)
        rest = tuple(d for d in dims if d != row)
        known = Val(
            f"tl.sum(tl.where({here.text} < {i}, {wide.text} * {x}, 0.0), {dims.index(row)})",
            rest, rhs.dtype,
        )  # fmt: skip
        part = self.scopes.fresh("known")
        mine_x = self.aligned(Val(part, rest, rhs.dtype), dims)
        self.scopes.line(f"for {i} in range(1, {n}):")
        self.scopes.line(f"    {name} = {coefficients.text}")
        self.scopes.line(f"    {part} = {known.text}")
        self.scopes.line(f"    {x} = tl.where({here.text} == {i}, {x} - {mine_x.text}, {x})")
        return (Val(x, dims, rhs.dtype),)


def number(extent: Extent) -> int:
    got = as_extent(extent)
    if isinstance(got, Node):
        raise Unsupported("an extent with an unbound knob")
    return got


def _axes_of(node: Node) -> tuple[str, ...]:
    axes = node.attr[1]
    return (axes,) if isinstance(axes, str) else tuple(axes)


_HINTS = {
    "add": "total", "sub": "diff", "mul": "prod", "div": "ratio", "where": "masked",
    "cast": "cast", "neg": "minus", "dot": "dot", "trisolve": "solved", "reaxis": "view",
    "floordiv": "part", "mod": "rest", "load": "tile",
}  # fmt: skip

