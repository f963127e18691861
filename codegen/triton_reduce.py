"""Reductions, scans and triangular solves of a kernel, by the monoid table.

What `tl` has no reduction for, or one that means something else with NaN, is reduced by a combining
function that is written from the table's own formula.

A thread reduces its elements one after the other, each waiting for the one before. It holds long
parts of the rows that tensor cores make, and nothing else of its program runs meanwhile: such rows
are first reduced to a part of their length, element by element.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from autosched.codegen import triton_scalars as scalars
from autosched.codegen.triton_text import ATOM, COMPARE, Unsupported, Val, literal
from autosched.codegen.triton_values import Values
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Node
from autosched.ir.ops import carry, map_
from autosched.ir.scalar import FLOATS

LONG_ROW, PARTS = 64, 4  # a row of so many elements is reduced in parts side by side
WARP_ROWS = 16  # of a product, with all of their columns, that one warp holds at least


class Reductions(Values):
    """Reductions of a kernel."""

    methods: ClassVar[dict[str, str]] = {
        **Values.methods, "reduce": "_reduce", "scan": "_scan", "trisolve": "_trisolve",
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.combines: dict[tuple[str, tuple[str, ...]], tuple[str, str]] = {}  # name and text
        self.warps = 4  # of a program
        self.specialise = False  # warps of their own load: the compiler slices no 3 dimensions

    # ---- reductions -----------------------------------------------------------------------

    def _reduce(self, node: Node) -> tuple[Val, ...]:
        monoid, axes = node.attr
        vals = tuple(scalars.widened(self.value(s)) for s in node.src)
        if any(self.scopes.bound(a) is not None for a in axes):
            raise Unsupported(f"a reduce over {', '.join(axes)}, which a loop around it binds")
        dims = self.joint(vals)
        if len(vals) > 1:
            vals = tuple(self.named(self.spread(v, dims), monoid) for v in vals)
        elif self.in_threads(node, vals[0]):
            return (self.side_by_side(monoid, vals[0]),)
        for axis in [d for d in reversed(dims) if d in axes]:
            vals = self.reduced(monoid, vals, axis)
        return vals

    def in_threads(self, node: Node, x: Val) -> bool:
        """Whether long rows of a product are reduced, whole ones of which warps hold."""
        if self.specialise or len(x.dims) != 2 or node.attr[1] != x.dims[1:]:
            return False
        if x.dtype != "float32":
            return False
        rows, columns = map(self.size, x.dims)
        return columns >= LONG_ROW and rows >= WARP_ROWS * self.warps and _of_product(node.src[0])

    def side_by_side(self, monoid: str, x: Val) -> Val:
        """Rows reduced in parts: their elements at equal places, and then what that leaves."""
        (rows, columns), kept = map(self.size, x.dims), x.dims[:1]
        parts = f"tl.reshape({x.text}, ({rows}, {PARTS}, {columns // PARTS}))"
        first, _ = self.reduce_text(monoid, replace(x, text=parts, rank=ATOM), 1)
        text, rank = self.reduce_text(monoid, replace(x, text=first, rank=ATOM), 1)
        return Val(text, kept, x.dtype, rank)

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
        if monoid == "sum" and floats and len(x.dims) > 2 and x.dtype != "float64":
            return f"tl.reduce({x.text}, {n}, {self.use('plus')})", ATOM
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


def _of_product(value: Node) -> bool:
    """Whether it is made, element by element, of what a contraction made in this step or the one
    before. A product of two values is not: its sum may become a contraction itself."""
    if value.op == "map" and value.attr[0] != "mul":
        return any(map(_of_product, value.src))
    return value.op in ("dot", "carry") and len(value.axes) > 1
