"""Dots on tensor cores: which axes are rows, columns and contracted, and operands laid out so.

A dot that `tl.dot` cannot take (short contractions, no rows or no columns, types without a tensor
core) is the sum of products that it means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from autosched.codegen import triton_scalars as scalars
from autosched.codegen.triton_memory import Memory
from autosched.codegen.triton_text import MUL, TYPES, Val
from autosched.ir.node import Node
from autosched.ir.products import EIGHT_BITS
from autosched.ir.scalar import ITEMSIZE

# Operand type: accumulators that tl.dot has for it.
NATIVE: dict[str, tuple[str, ...]] = {
    "float16": ("float32", "float16"), "bfloat16": ("float32",), "float32": ("float32",),
    "float64": ("float64",), "int8": ("int32",),
    "float8_e4m3": ("float32",), "float8_e5m2": ("float32",),
}  # fmt: skip
LEAST_BYTES = 32  # of a contracted row, and 16 elements
LEAST_DEPTH = 16


@dataclass(frozen=True)
class Plan:
    """The axes of a dot by role; a and b are its operands, turned so that rows come first."""

    a: Node
    b: Node
    batch: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    depth: tuple[str, ...]
    native: bool

    @property
    def out(self) -> tuple[str, ...]:
        return (*self.batch, *self.rows, *self.columns)

    @property
    def flat(self) -> bool:
        """Whether some group of axes has to become one dimension."""
        groups = (self.rows, self.columns, self.depth)
        return len(self.batch) > 1 or any(len(g) != 1 for g in groups)


class Dots(Memory):
    """Dots of a kernel."""

    methods: ClassVar[dict[str, str]] = {**Memory.methods, "dot": "_dot"}
    promote = False  # sums of products of 8 bits leave the tensor core after each dot

    def _dot(self, node: Node) -> tuple[Val, ...]:
        plan = self.plan(node)
        if not plan.native:
            return (self.products(node, plan),)
        return (self.permuted(self.dotted(node, plan, None), self.ordered(plan.out)),)

    def plan(self, node: Node) -> Plan:
        a, b = node.src
        axes, acc = node.attr[:2]
        ours, theirs = (self.tile_dims(s.axes) for s in (a, b))
        depth = tuple(d for d in ours if d in axes)
        batch = tuple(d for d in ours if d in theirs and d not in axes)
        rows = tuple(d for d in ours if d not in theirs)
        columns = tuple(d for d in theirs if d not in ours)
        if rows and columns and self.ordered((*rows, *columns))[0] in columns:
            a, b, rows, columns = b, a, columns, rows
        kind = self.operand_type(node)
        length = prod(self.size(d) for d in depth)
        enough = length >= LEAST_DEPTH and length * ITEMSIZE[kind] >= LEAST_BYTES
        native = bool(rows and columns and depth) and enough and acc in NATIVE.get(kind, ())
        return Plan(a, b, batch, rows, columns, depth, native)

    def operand_type(self, node: Node) -> str:
        """The type that operands are multiplied in: float32 where they have two, of which only
        those of 8 bits go together as they are."""
        kinds = {s.dtype for s in node.src}
        mixed = len(kinds) > 1 and not kinds <= EIGHT_BITS
        return "float32" if mixed else node.src[0].dtype

    def operand(self, node: Node, dims: tuple[str, ...], kind: str) -> Val:
        """An operand in the wanted order."""
        kind = node.dtype if {kind, node.dtype} <= EIGHT_BITS else kind
        val = self.oriented(node, dims, "operand")
        if val.literal:  # a product takes tensors alone
            own = self.tile_dims(node.axes)
            val = self.spread(val, tuple(d for d in dims if d in own))
        return scalars.cast_to(val, kind, self.use)

    def dotted(self, node: Node, plan: Plan, acc: Val | None) -> Val:
        kind = self.operand_type(node)
        a = self.operand(plan.a, (*plan.batch, *plan.rows, *plan.depth), kind)
        b = self.operand(plan.b, (*plan.batch, *plan.depth, *plan.columns), kind)
        if plan.flat:
            a = self.merged(a, (plan.batch, plan.rows, plan.depth))
            b = self.merged(b, (plan.batch, plan.depth, plan.columns))
        if plan.a.op == "carry" and not plan.batch and ITEMSIZE[plan.a.dtype] == 2:
            a = replace(a, text=f"{self.use('in_registers')}({a.text})")
        words = [a.text, b.text]
        if acc is not None:
            words.append(acc.text)
        if kind == "float32":
            precision = (node.attr[2] if len(node.attr) > 2 else "") or "ieee"
            words.append(f'input_precision="{precision}"')
        if self.promote and kind in EIGHT_BITS:
            words.append(f"max_num_imprecise_acc={prod(self.size(d) for d in plan.depth)}")
        if node.attr[1] != "float32":
            words.append(f"out_dtype={TYPES[node.attr[1]]}")
        text = f"tl.dot({', '.join(words)})"
        if plan.flat:
            text = f"tl.reshape({text}, {self.shape(plan.out)})"
        return Val(text, plan.out, node.dtype)

    def merged(self, val: Val, groups: tuple[tuple[str, ...], ...]) -> Val:
        """Each group of neighbouring dimensions as one; an empty first group is no dimension."""
        sizes = [prod(self.size(d) for d in g) for g in groups if g or g is not groups[0]]
        return replace(val, text=f"tl.reshape({val.text}, ({', '.join(map(str, sizes))}))")

    def products(self, node: Node, plan: Plan) -> Val:
        vals = [self.value(s) for s in (plan.a, plan.b)]
        acc = node.attr[1] if node.attr[1] not in ("float16", "bfloat16") else "float32"
        vals = [scalars.cast_to(v, acc, self.use) for v in vals]
        dims = self.joint(vals)
        a, b = (self.aligned(v, dims) for v in vals)
        out = Val(f"{a.inside(MUL)} * {b.inside(MUL + 1)}", dims, acc, MUL)
        for axis in reversed([d for d in dims if d in plan.depth]):
            n = out.dims.index(axis)
            rest = out.dims[:n] + out.dims[n + 1 :]
            text, rank = self.reduce_text("sum", out, n)
            out = Val(text, rest, acc, rank)
        return out

    def fused(self, node: Node) -> Val | None:
        """A sum with a dot in it: the dot adds to the other operand."""
        if node.attr[0] != "add":
            return None
        for dot, other in (node.src, node.src[::-1]):
            if dot.op != "dot" or self.uses.get(dot, 1) > 1 or self.scopes.known(dot) is not None:
                continue
            plan = self.plan(dot)
            if not plan.native or plan.flat or plan.out != self.ordered(plan.out):
                continue
            if self.scopes.home(dot) != self.scopes.level or other is dot:
                continue
            acc = self.value(other)
            if acc.literal and float(acc.text) == 0 and acc.dtype == dot.dtype:
                return self.dotted(dot, plan, None)
            if acc.dims == plan.out and acc.dtype == dot.dtype:
                return self.dotted(dot, plan, acc)
        return None
