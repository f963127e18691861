"""The values of a CPU tile program as TIR: scalars, vectors, and loops that carry registers.

Every value is emitted at a *point*: the loop variables of the enclosing foralls, a number for each
unrolled axis, and all lanes of the lane axis at once. A value that does not depend on an unrolled
axis is emitted once for all its numbers; one that does not depend on the lane stays scalar. So a
register tile, a broadcast and a vector load follow from which axes a value is free in, and no
operator is known by name here.

A `fold` or a `reduce` becomes a loop whose states are registers: one buffer a state and point,
which LLVM promotes. A `reduce` over a lane or unrolled axis folds those registers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from autosched.codegen import tvm_api as tir
from autosched.codegen.tvm_index import (
    Terms,
    Unsupported,
    flat_terms,
    split_lane,
    sum_terms,
    terms_of,
)
from autosched.codegen.tvm_scalar import Scalars
from autosched.codegen.tvm_scope import Scope
from autosched.ir.extent import as_extent
from autosched.ir.monoid import MONOIDS
from autosched.ir.node import Node, walk
from autosched.ir.ops import get
from autosched.ir.recurrence import as_fold

Expr = Any
Point = Mapping[str, int]


def stored_dtype(dtype: str) -> str:
    """The type of a buffer's elements: a bool takes a byte."""
    return "uint8" if dtype == "bool" else dtype


def is_position(node: Node, memo: dict[Node, bool]) -> bool:
    """Whether a value is made of coordinates and constants alone, and of nothing loaded."""
    if node not in memo:
        leaf = node.op in ("iota", "const")
        memo[node] = leaf or (node.op == "map" and all(is_position(s, memo) for s in node.src))
    return memo[node]


def read_often(*roots: Node) -> set[Node]:
    """What several values below the roots read."""
    uses = Counter(s for n in walk(*roots) for s in set(n.src))
    return {n for n, count in uses.items() if count > 1}


class Values:
    """Emits values into the block of a scope; scalef: the target has AVX-512."""

    def __init__(self, scalef: bool) -> None:
        self.scalef = scalef
        self.buffers: dict[Node, Any] = {}
        self.binds: dict[str, str] = {}
        self.indices: dict[Node, Terms] = {}
        self.positions: dict[Node, bool] = {}
        self.shared: set[Node] = set()  # what several values of a statement read

    # ---- points -----------------------------------------------------------------------------

    @staticmethod
    def points(scope: Scope, axes: Mapping[str, int]) -> Iterable[dict[str, int]]:
        names = list(axes)
        for numbers in product(*(range(axes[a]) for a in names)):
            yield dict(zip(names, numbers))

    def unrolled_axes(self, node: Node, scope: Scope) -> dict[str, int]:
        """The unrolled axes that a value is free in, with their extents."""
        found = {}
        for axis, extent in node.free:
            if axis in scope.unrolled:
                found[axis] = scope.unrolled[axis]
            elif self.binds.get(axis) == "unroll" and axis not in scope.axes:
                found[axis] = int(as_extent(extent))
        return found

    def lane_of(self, node: Node, scope: Scope) -> tuple[str | None, int]:
        found: list[tuple[str, int]] = []
        for axis, extent in node.free:
            if axis == scope.lane:
                found.append((axis, scope.lanes))
            elif self.binds.get(axis) == "lane" and axis not in scope.axes:
                found.append((axis, int(as_extent(extent))))
        if len(found) > 1:
            raise Unsupported(f"a value over two lane axes, {found[0][0]} and {found[1][0]}")
        return found[0] if found else (None, 1)

    # ---- values -----------------------------------------------------------------------------

    def value(self, node: Node, scope: Scope, point: Point) -> Expr:
        """The node at a point: a scalar, or a vector where it is free in the lane axis."""
        axes = self.unrolled_axes(node, scope)
        key = (node, tuple((a, point[a]) for a in axes))
        if key not in scope.memo:
            result = self.compute(node, scope, point)
            if node.dtype == "bool" and tir.lanes_of(result) > 1:
                # Masks stay expressions, which are compiled where they are used, unless several
                # values use them: then an expression would grow with each.
                result = scope.block.mask(result) if node in self.shared else result
                scope.memo[key] = result
            else:
                position = is_position(node, self.positions)
                scope.memo[key] = scope.block.let(result, node.op, position)
        return scope.memo[key]

    def compute(self, node: Node, scope: Scope, point: Point) -> Expr:
        match node.op:
            case "const":
                return tir.const(node.attr[0], node.attr[1])
            case "iota":
                return self.coordinate(node, scope, point)
            case "map":
                operands = [self.value(s, scope, point) for s in node.src]
                positions = is_position(node, self.positions)
                scalars = Scalars(scope.block, self.scalef, positions)
                return scalars.apply(node.attr[0], operands, [s.dtype for s in node.src])
            case "load":
                return self.load(node, scope, point)
            case "carry":
                axes = self.unrolled_axes(node, scope)
                at = tuple((a, point[a]) for a in axes)
                buffer, lanes = scope.states[node.attr[0]][at]
                return self.loaded(tir.load(buffer, 0, lanes), node.dtype)
            case "get" if node.src[0].op in ("fold", "reduce"):
                raise Unsupported("a loop result is read before its loop")
            case "reduce":
                return self.in_registers(node, scope, point)
            case _:
                raise Unsupported(f"no CPU form of {node.op}")

    def coordinate(self, node: Node, scope: Scope, point: Point) -> Expr:
        axis, _, dtype = node.attr
        if axis in point:
            return tir.const(point[axis], dtype)
        if axis in scope.axes:
            at = scope.axes[axis]
            return tir.const(at, dtype) if isinstance(at, int) else tir.cast(at, dtype)
        _, lanes = self.lane_of(node, scope)
        return tir.ramp(tir.const(0, dtype), lanes)

    def in_registers(self, node: Node, scope: Scope, point: Point) -> Expr:
        """A reduce over axes in registers: unrolled ones by combining, lanes by halves."""
        monoid, axes = node.attr
        spec = MONOIDS[monoid]
        if self.is_loop(node):
            raise Unsupported("a loop result is read before its loop")
        if len(node.src) != 1:
            raise Unsupported(f"{monoid} over registers")
        (source,) = node.src

        scalars = Scalars(scope.block, self.scalef)

        def combine(a: Expr, b: Expr) -> Expr:
            return spec.combine(
                lambda fn, *xs: scalars.apply(fn, xs, [tir.scalar_of(x) for x in xs]), (a,), (b,)
            )[0]

        unrolled = {a: e for a, e in self.unrolled_axes(source, scope).items() if a in axes}
        total = None
        for inner in self.points(scope, unrolled):
            part = self.value(source, scope, {**point, **inner})
            total = part if total is None else scope.block.let(combine(total, part))
        assert total is not None
        lane, lanes = self.lane_of(source, scope)
        if lane in axes:
            if isinstance(total, (int, float)) or tir.lanes_of(total) == 1:
                total = tir.splat(total, lanes)
            total = tir.reduce_lanes(scope.block, combine, total)
        return total

    # ---- loops that carry registers -----------------------------------------------------------

    def prepare(self, roots: Sequence[Node], scope: Scope) -> None:
        """Emits the loops that the roots read, so that their results are values here."""
        for node in self.loops_below(roots, scope):
            loop = as_fold(node) if node.op == "reduce" else node
            self.shared |= read_often(loop)
            self.run_fold(node, loop, scope)

    def loops_below(self, roots: Sequence[Node], scope: Scope) -> list[Node]:
        """Folds and serial reduces outside of other loops' bodies, each after what it needs."""
        out: list[Node] = []
        seen: set[Node] = set()

        def visit(node: Node) -> None:
            if node in seen:
                return
            seen.add(node)
            if self.is_loop(node):
                before = node.src[: 2 * node.attr[2] + len(node.attr[1])] \
                    if node.op == "fold" else ()  # fmt: skip
                for s in before:
                    visit(s)
                if node not in scope.done:
                    out.append(node)
                return
            for s in self.parts(node):
                visit(s)

        for root in roots:
            visit(root)
        return out

    def parts(self, node: Node) -> Sequence[Node]:
        """What a node's expression is made of: of a load, what its simplified address is."""
        if node.op != "load":
            return node.src
        return [atom for _, atoms in self.terms(node) for atom in atoms]

    def is_loop(self, node: Node) -> bool:
        if node.op == "fold":
            return True
        return node.op == "reduce" and not all(a in self.binds for a in node.attr[1])

    def run_fold(self, node: Node, loop: Node, scope: Scope) -> None:
        """`loop` is the fold of `node`; its results become the values of node's projections."""
        axis, names, n_intervals, n_outs = loop.attr
        if n_outs:
            raise Unsupported("a fold with stacked outputs inside a nest")
        n, first = len(names), 2 * n_intervals
        bounds, inits = loop.src[:first], loop.src[first : first + n]
        yields = loop.src[first + n :]
        states: dict[str, dict[Any, Any]] = {}
        kinds = [self.state_kind(loop, k, scope) for k in range(n)]
        for name, init, (axes, lanes) in zip(names, inits, kinds):
            states[name] = {}
            for point in self.points(scope, axes):
                at = tuple(point.items())
                start = self.value(init, scope, point)
                buffer = scope.block.allocate(tir.local("acc", stored_dtype(init.dtype), lanes))
                if lanes > 1 and tir.lanes_of(start) == 1:
                    start = tir.splat(start, lanes)
                scope.block.add(tir.store(buffer, 0, self.cast_stored(start, init.dtype)))
                states[name][at] = (buffer, lanes)
        for k in range(n_intervals):
            self.run_interval(axis, bounds[2 * k : 2 * k + 2], names, yields, states, kinds, scope)
        for k, (name, (axes, lanes)) in enumerate(zip(names, kinds)):
            reader = node if len(node.types) == 1 else get(node, k)
            for point in self.points(scope, axes):
                at = tuple(point.items())
                buffer, _ = states[name][at]
                value = self.loaded(tir.load(buffer, 0, lanes), node.types[k].dtype)
                scope.memo[(reader, at)] = scope.block.let(value, "state")
        scope.done.add(node)

    def state_kind(self, loop: Node, k: int, scope: Scope) -> tuple[dict[str, int], int]:
        reader = get(loop, k)
        _, lanes = self.lane_of(reader, scope)
        return self.unrolled_axes(reader, scope), lanes

    def run_interval(
        self,
        axis: str,
        bounds: Sequence[Node],
        names: Sequence[str],
        yields: Sequence[Node],
        states: dict[str, dict[Any, Any]],
        kinds: Sequence[tuple[dict[str, int], int]],
        scope: Scope,
    ) -> None:
        count = self.trips(bounds[0], bounds[1], scope)
        start = self.index_value(bounds[0], scope)
        if count == 0:
            return
        single = count == 1 and isinstance(start, int)
        index = start if single else tir.var(axis.replace(".", "_"))
        # What reads an outer axis or state of a name that is bound here has another value here.
        kept = {
            key: value for key, value in scope.memo.items()
            if axis not in dict(key[0].free) and not key[0].carries & set(names)
        }  # fmt: skip
        done = {n for n in scope.done if axis not in dict(n.free) and not n.carries & set(names)}
        inner = scope.inner(
            axes={**scope.axes, axis: index}, states={**scope.states, **states}, memo=kept,
            done=done,
        )  # fmt: skip
        self.prepare(yields, inner)
        results = []
        for name, step, (axes, lanes) in zip(names, yields, kinds):
            for point in self.points(inner, axes):
                value = self.value(step, inner, point)
                if lanes > 1 and tir.lanes_of(value) == 1:
                    value = tir.splat(value, lanes)
                buffer, _ = states[name][tuple(point.items())]
                results.append((buffer, inner.block.let(self.cast_stored(value, step.dtype))))
        for buffer, value in results:
            inner.block.add(tir.store(buffer, 0, value))
        body = inner.block.stmt()
        scope.block.add(body if single else tir.loop(index, count, body, "serial", start))

    # ---- memory -------------------------------------------------------------------------------

    def load(self, node: Node, scope: Scope, point: Point) -> Expr:
        dims, masked = node.attr
        if masked or any(d is not None for d in dims):
            raise Unsupported("a masked load, or one of a box")
        handle = node.src[0]
        _, lanes = self.lane_of(node, scope)
        base, stride = self.address(self.terms(node), scope, point)
        buffer = self.buffers[handle]
        if stride is None or stride == 0 or lanes == 1:
            value = tir.load(buffer, base)
        elif stride == 1:
            value = tir.load(buffer, base, lanes)
        else:
            value = tir.load(buffer, tir.ramp(base, lanes, stride))
        return self.loaded(value, handle.dtype)

    def terms(self, node: Node) -> Terms:
        """The offset of a load."""
        if node not in self.indices:
            self.indices[node] = flat_terms(node.src[0], node.src[1 : 1 + len(node.attr[0])])
        return self.indices[node]

    @staticmethod
    def loaded(value: Expr, dtype: str) -> Expr:
        """What was loaded, as a value of `dtype`: a bool is stored as a byte."""
        if dtype != "bool":
            return value
        return tir.binary("ne", value, tir.const(0, tir.with_lanes("uint8", tir.lanes_of(value))))

    @staticmethod
    def cast_stored(value: Expr, dtype: str) -> Expr:
        return tir.cast(value, "uint8") if dtype == "bool" else value

    def address(self, terms: Terms, scope: Scope, point: Point) -> tuple[Expr, int | None]:
        """(scalar offset, elements from one lane to the next), or (offset vector, None)."""
        fixed, stride = split_lane(terms, lambda a: self.lane_of(a, scope)[0] is not None)
        used = terms if stride is None else fixed
        return sum_terms(used, lambda a: self.atom(a, scope, point)), stride

    def atom(self, atom: Node, scope: Scope, point: Point) -> Expr:
        if atom.op == "iota":
            axis = atom.attr[0]
            if axis in point:
                return point[axis]
            if axis in scope.axes:
                return scope.axes[axis]
        return self.value(atom, scope, point)

    # ---- positions ----------------------------------------------------------------------------

    def trips(self, lo: Node, hi: Node, scope: Scope) -> Expr:
        """hi - lo, not below zero."""
        a, b = self.index_value(lo, scope), self.index_value(hi, scope)
        if isinstance(a, int) and isinstance(b, int):
            return max(b - a, 0)
        return tir.binary("max", tir.sub(b, a), 0)

    def index_value(self, node: Node, scope: Scope) -> Expr:
        return sum_terms(terms_of(node), lambda a: self.atom(a, scope, {}))
