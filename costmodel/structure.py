"""Symbolic tile program of a CPU in, its loops, operations and accesses out: `Structure`.

One walk in the order in which code is emitted: every forall and fold is a loop, every value is
computed in the innermost loop that it depends on, once for each number of the unrolled axes that
it is free in, and in vectors where it is free in the lane. Sizes stay nodes over knobs, so that
one Structure serves all rows of a table. No operator is known by name here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autosched.costmodel.machine import LATENCY, SPECIAL_LATENCY
from autosched.ir.count import scalar_cost
from autosched.ir.extent import as_node, simplify
from autosched.ir.linear import poly
from autosched.ir.loops import as_loop, load_starts
from autosched.ir.monoid import MONOIDS
from autosched.ir.node import Extent, IRError, Node, Program, walk
from autosched.ir.ops import carry, get, map_
from autosched.ir.scalar import FLOATS, ITEMSIZE, SCALARS, split_name

Sizes = tuple[Extent, ...]  # their product is meant


@dataclass(frozen=True)
class Loop:
    """A loop of the emitted code; `parent` is its number in the Structure, -1 for a region.

    kind: "region" (a top-level statement, one trip), "grid", "serial", "fold", "last" (what one
    of the programs of a grid loop does), "share" (parts of tiles, of which tiles have more or
    fewer) or "kept" (what is done for some parts alone). extent is the bound that stands in for
    `hi` where bounds are loaded values, and the number of those programs. Of the last three kinds,
    lo and hi count what there is in all: trips are a mean, hi for lo or lo of hi.
    """

    axis: str
    kind: str
    parent: int
    lo: Node
    hi: Node
    extent: Extent
    loaded: bool = False
    chain_cycles: float = 0.0  # of a fold: the longest chain from a state to its next value


@dataclass(frozen=True)
class Ops:
    """`count` operations of one kind, in each iteration of `loop`, for each of `points`.

    kind: "fma" | "arith" | "special" (count is weighted) | "int" | "move" | "fold_lanes".
    lanes: None for scalar operations, else the extent of the lane axis. width: bytes a lane.
    """

    loop: int
    kind: str
    points: Sizes
    lanes: Extent | None
    width: int
    count: float


@dataclass(frozen=True)
class Registers:
    """States of a fold: a register for each of `points` and vector of lanes."""

    loop: int
    points: Sizes
    lanes: Extent | None


@dataclass(frozen=True)
class Index:
    """Position along one dimension: sum of coefficient * axis, and a rest that is not linear.

    rest_axes are the axes of the rest; loaded says that the position is itself read from memory.
    """

    extent: Extent
    strides: tuple[tuple[str, int], ...]
    rest: Node | None
    rest_axes: tuple[str, ...]
    loaded: bool


@dataclass(frozen=True)
class Access:
    """A load or store in each iteration of `loop`; inner holds its unrolled and lane axes.

    along: how lanes lie in memory: "scalar", "vector", "strided" or "gather".
    """

    loop: int
    handle: Node
    index: tuple[Index, ...]
    inner: tuple[tuple[str, Extent], ...]
    points: Sizes
    lanes: Extent | None
    along: str
    stores: bool
    feeds_vectors: bool

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.handle.dtype]


@dataclass(frozen=True)
class Structure:
    """All loops (parents before children), what they execute, and the buffers they touch."""

    loops: tuple[Loop, ...]
    ops: tuple[Ops, ...]
    registers: tuple[Registers, ...]
    accesses: tuple[Access, ...]
    scratch: tuple[tuple[int, Node], ...]  # (region, buffer)
    packed: tuple[Node, ...]

    def chain(self, loop: int) -> tuple[int, ...]:
        """The loop and all that enclose it, innermost first."""
        out = []
        while loop >= 0:
            out.append(loop)
            loop = self.loops[loop].parent
        return tuple(out)


def structure(program: Program) -> Structure:
    """The structure of a tile program; knobs may be open. Raises IRError for GPU tiles."""
    if program.level != "tile":
        raise IRError("features are of tile programs")
    walker = _Walker()
    for kernel in program.body:
        walker.binds = dict(kernel.attr[1]) if len(kernel.attr) > 1 else {}
        for stmt in kernel.src:
            walker.region(stmt)
    return Structure(
        tuple(walker.loops),
        tuple(Ops(*key, count) for key, count in walker.ops.items()),
        tuple(walker.registers),
        tuple(walker.accesses),
        tuple(walker.scratch),
        tuple(p.buffer for p in program.packs),
    )


@dataclass
class _Scope:
    """Where code goes: the innermost loop, what axes and states belong to, what is computed."""

    loop: int
    axes: dict[str, int]
    unrolled: dict[str, Extent] = field(default_factory=dict)
    lane: tuple[str, Extent] | None = None
    states: dict[str, int] = field(default_factory=dict)
    done: set[Node] = field(default_factory=set)

    def inner(self, loop: int, **changes: dict[str, int]) -> _Scope:
        return replace(self, loop=loop, done=set(self.done), **changes)  # type: ignore[arg-type]


class _Walker:
    def __init__(self) -> None:
        self.loops: list[Loop] = []
        self.ops: Counter[tuple[int, str, Sizes, Extent | None, int]] = Counter()
        self.registers: list[Registers] = []
        self.accesses: list[Access] = []
        self.scratch: list[tuple[int, Node]] = []
        self.binds: dict[str, str] = {}
        self.uses: Counter[Node] = Counter()

    def add_loop(self, axis: str, kind: str, parent: int, lo: Node, hi: Node) -> int:
        loaded = _reads_memory(lo) or _reads_memory(hi)
        extent: Extent = hi.attr[0] if hi.op == "const" else hi
        self.loops.append(Loop(axis, kind, parent, lo, hi, extent, loaded))
        return len(self.loops) - 1

    # ---- statements -----------------------------------------------------------------------

    def region(self, stmt: Node) -> None:
        root = self.add_loop("", "region", -1, as_node(0), as_node(1))
        for node in walk(stmt):
            if node.op == "buffer" and node.attr[3] == "scratch":
                self.scratch.append((root, node))
        self.statement(stmt, _Scope(root, {}))

    def statement(self, stmt: Node, scope: _Scope) -> None:
        if stmt.op == "store":
            self.store(stmt, scope)
            return
        loop, body = as_loop(stmt)
        if loop.bind in ("unroll", "lane"):
            extent: Extent = loop.hi.attr[0] if loop.hi.op == "const" else loop.hi
            inner = replace(scope, unrolled=dict(scope.unrolled))
            if loop.bind == "lane":
                inner.lane = (loop.axis, extent)
            else:
                inner.unrolled[loop.axis] = extent
        else:
            kind = "serial" if loop.bind == "serial" else "grid"
            number = self.add_loop(loop.axis, kind, scope.loop, loop.lo, loop.hi)
            inner = scope.inner(number, axes={**scope.axes, loop.axis: number})
            self.account(filter(_reads_memory, (loop.lo, loop.hi)), scope)
        for s in body:
            self.statement(s, inner)

    def store(self, stmt: Node, scope: _Scope) -> None:
        handle, value, *rest = stmt.src
        if any(d is not None for d in stmt.attr[0]):
            raise IRError("a box in a CPU tile program")
        scope = replace(scope, done=set())
        self.uses = Counter(s for n in walk(stmt) for s in n.src)
        needed = [value, *(r for r in rest if _reads_memory(r))]
        self.prepare(needed, scope)
        self.account(needed, scope)
        axes = dict(scope.unrolled)
        lane = scope.lane
        inner = (*axes.items(), *((lane,) if lane else ()))
        self.accesses.append(
            self.access(scope.loop, handle, tuple(rest[: len(stmt.attr[0])]), inner,
                        lane, stores=True, feeds=lane is not None)
        )  # fmt: skip

    # ---- loops that carry registers ---------------------------------------------------------

    def is_loop(self, node: Node) -> bool:
        if node.op == "fold":
            return True
        return node.op == "reduce" and not all(a in self.binds for a in node.attr[1])

    def prepare(self, roots: Sequence[Node], scope: _Scope) -> None:
        """Enters the folds and serial reduces below the roots, each after what it needs."""
        seen: set[Node] = set()

        def visit(node: Node) -> None:
            if node in seen or node in scope.done:
                return
            seen.add(node)
            if not self.is_loop(node):
                for s in node.src:
                    visit(s)
                return
            if node.op == "fold":
                for s in node.src[: 2 * node.attr[2] + len(node.attr[1])]:
                    visit(s)
            self.enter(node, scope)

        for root in roots:
            visit(root)

    def enter(self, node: Node, scope: _Scope) -> None:
        """The loops of a fold or reduce; afterwards its results are values of the scope."""
        if node.op == "fold":
            axis, names, n_intervals, _ = node.attr
            first = 2 * n_intervals
            inits, yields = node.src[first : first + len(names)], node.src[first + len(names) :]
            self.account([*filter(_reads_memory, node.src[:first]), *inits], scope)
            for k in range(n_intervals):
                self.interval((axis,), [node.src[2 * k : 2 * k + 2]], names, yields, scope, node)
        else:
            monoid, axes = node.attr
            spec = MONOIDS[monoid]
            names = tuple(f"{monoid}{k}" for k in range(spec.arity))
            states = tuple(carry(n, s.dtype, dict(node.free)) for n, s in zip(names, node.src))
            yields = spec.combine(map_, states, node.src)
            extents = {a: e for s in node.src for a, e in s.free}
            bounds = [(as_node(0), as_node(extents[a])) for a in axes]
            self.interval(axes, bounds, names, yields, scope, node)
        scope.done.add(node)
        if len(node.types) > 1 or node.op == "fold":
            scope.done.update(get(node, k) for k in range(len(node.types)))

    def interval(
        self,
        axes: Sequence[str],
        bounds: Sequence[Sequence[Node]],
        names: Sequence[str],
        yields: Sequence[Node],
        scope: _Scope,
        node: Node,
    ) -> None:
        number, inner = scope.loop, scope
        for axis, (lo, hi) in zip(axes, bounds):
            number = self.add_loop(axis, "fold", number, lo, hi)
            states = {**inner.states, **dict.fromkeys(names, number)}
            inner = inner.inner(number, axes={**inner.axes, axis: number}, states=states)
        self.prepare(yields, inner)
        self.account(yields, inner)
        chain = self.chain_cycles(yields[: len(names)], set(names))
        self.loops[number] = replace(self.loops[number], chain_cycles=chain)
        for k in range(len(names)):
            free = node.types[k].axes
            points = tuple(self.unrolled_axes(free, scope).values())
            lane = self.lane_of(free, scope)
            self.registers.append(Registers(number, points, lane[1] if lane else None))

    def chain_cycles(self, yields: Sequence[Node], names: set[str]) -> float:
        """Latency of the longest path from a state of the fold to a next state."""
        done: dict[Node, float] = {}
        for node in walk(*yields):
            if not node.carries & names:
                continue
            if node.op == "carry":
                done[node] = 0.0
            elif node.op == "map":
                before = max((done[s] for s in node.src if s in done), default=0.0)
                done[node] = before + _latency(node, self.fused(node))
            else:
                done[node] = max((done[s] for s in node.src if s in done), default=0.0)
        return max((done.get(y, 0.0) for y in yields), default=0.0)

    # ---- values ------------------------------------------------------------------------------

    def account(self, roots: Iterable[Node], scope: _Scope) -> None:
        """Counts what it takes to compute the roots, except for what is done already."""
        stack = [r for r in roots if r.types]
        while stack:
            node = stack.pop()
            if node in scope.done or node.op in ("const", "iota", "carry", "knob", "buffer"):
                continue
            scope.done.add(node)
            if node.op == "map":
                stack.extend(self.map(node, scope))
            elif node.op == "load":
                self.load(node, scope)
                positions = node.src[1:]
                stack.extend(filter(_reads_memory, positions))
            elif node.op == "reduce":
                self.fold_registers(node, scope)
                stack.extend(node.src)
            elif node.op == "get":
                stack.extend(node.src)
            else:
                raise IRError(f"{node.op} in a CPU tile program")

    def home(self, node: Node, scope: _Scope) -> int:
        """The innermost loop that the node depends on: where it is computed, or hoisted to."""
        region = scope.loop
        while self.loops[region].parent >= 0:
            region = self.loops[region].parent
        loops = [scope.axes[a] for a, _ in node.free if a in scope.axes]
        loops += [scope.states[c] for c in node.carries if c in scope.states]
        return max(loops, default=region)

    def unrolled_axes(self, free: Iterable[tuple[str, Extent]], scope: _Scope) -> dict[str, Extent]:
        out: dict[str, Extent] = {}
        for axis, extent in free:
            if axis in scope.unrolled:
                out[axis] = scope.unrolled[axis]
            elif self.binds.get(axis) == "unroll" and axis not in scope.axes:
                out[axis] = extent
        return out

    def lane_of(
        self, free: Iterable[tuple[str, Extent]], scope: _Scope
    ) -> tuple[str, Extent] | None:
        for axis, extent in free:
            if scope.lane and axis == scope.lane[0]:
                return scope.lane
            if self.binds.get(axis) == "lane" and axis not in scope.axes:
                return axis, extent
        return None

    def count(
        self, node: Node, scope: _Scope, kind: str, cost: float, over: Node | None = None
    ) -> None:
        free = (over or node).free
        lane = self.lane_of(free, scope)
        points = tuple(self.unrolled_axes(free, scope).values())
        width = max(4, ITEMSIZE[node.types[0].dtype])
        key = (self.home(over or node, scope), kind, points, lane[1] if lane else None, width)
        self.ops[key] += cost  # type: ignore[assignment]

    def fused(self, node: Node) -> Node | None:
        """The product that an addition swallows into a multiply-add, if it has no other use."""
        if node.op != "map" or node.attr[0] not in ("add", "sub") or node.dtype not in FLOATS:
            return None
        for s in node.src:
            if s.op == "map" and s.attr[0] == "mul" and self.uses[s] <= 1:
                return s
        return None

    def map(self, node: Node, scope: _Scope) -> list[Node]:
        """Counts one map; returns the operands still to be counted."""
        if not node.free and not node.carries:
            return []  # folded at compile time
        product = self.fused(node)
        if product is not None and product not in scope.done:
            self.count(node, scope, "fma", 1.0)
            return [s for s in node.src if s is not product] + list(product.src)
        self.count(node, scope, _kind(node), scalar_cost(node.attr[0]))
        return list(node.src)

    def fold_registers(self, node: Node, scope: _Scope) -> None:
        """A reduce over unrolled and lane axes: one combine less than points, then by halves."""
        lane = self.lane_of(node.src[0].free, scope)
        if lane is not None and lane[0] in node.attr[1]:
            self.count(node, scope, "fold_lanes", 1.0, over=node.src[0])
        else:
            self.count(node, scope, "arith", 1.0, over=node.src[0])

    # ---- memory --------------------------------------------------------------------------------

    def load(self, node: Node, scope: _Scope) -> None:
        if any(d is not None for d in node.attr[0]):
            raise IRError("a box in a CPU tile program")
        lane = self.lane_of(node.free, scope)
        unrolled = self.unrolled_axes(node.free, scope)
        inner = (*unrolled.items(), *((lane,) if lane else ()))
        feeds = scope.lane is not None or any(b == "lane" for b in self.binds.values())
        self.accesses.append(
            self.access(self.home(node, scope), node.src[0], load_starts(node), inner, lane,
                        stores=False, feeds=feeds)
        )  # fmt: skip

    def access(
        self,
        loop: int,
        handle: Node,
        starts: tuple[Node, ...],
        inner: tuple[tuple[str, Extent], ...],
        lane: tuple[str, Extent] | None,
        *,
        stores: bool,
        feeds: bool,
    ) -> Access:
        dims = [e for _, e in handle.attr[1]] if handle.op == "input" else handle.attr[1]
        index = tuple(_index(e, s) for e, s in zip(dims, starts))
        free = {a for s in starts for a, _ in s.free}
        used = lane if lane and lane[0] in free else None
        points = tuple(e for a, e in inner if a in free and (lane is None or a != lane[0]))
        along = "scalar" if used is None else _along(index, used[0])
        kept = tuple(item for item in inner if item[0] in free)
        return Access(
            loop, handle, index, kept, points, used[1] if used else None, along, stores, feeds
        )


def _reads_memory(node: Node) -> bool:
    """Whether a position or bound is data; all others are what strength reduction makes free."""
    return any(n.op == "load" for n in walk(node))


def _kind(node: Node) -> str:
    cost = SCALARS[split_name(node.attr[0])[0]].cost
    return "int" if cost == "arith" and node.src[-1].dtype not in FLOATS else cost


def _latency(node: Node, product: Node | None) -> float:
    if product is not None:
        return LATENCY["fma"]
    kind = _kind(node)
    return SPECIAL_LATENCY * scalar_cost(node.attr[0]) if kind == "special" else LATENCY[kind]


def _index(extent: Extent, start: Node) -> Index:
    """A position as linear terms over axes and the rest."""
    if _reads_memory(start):
        return Index(extent, (), start, start.names, True)
    strides: dict[str, int] = {}
    rest: Node | None = None
    for atoms, factor in poly(simplify(start)).items():
        if len(atoms) == 1 and atoms[0].op == "iota":
            strides[atoms[0].attr[0]] = strides.get(atoms[0].attr[0], 0) + factor
        elif any(a.names for a in atoms):
            term: Node = atoms[0]
            for atom in atoms[1:]:
                term = term * atom
            term = term * factor if factor != 1 else term
            rest = term if rest is None else rest + term
    return Index(extent, tuple(sorted(strides.items())), rest, rest.names if rest else (), False)


def _along(index: Sequence[Index], lane: str) -> str:
    """How consecutive lanes lie in memory, row-major; what is not linear is gathered."""
    if any(lane in i.rest_axes for i in index):
        return "gather"
    steps: Mapping[int, int] = {n: dict(i.strides).get(lane, 0) for n, i in enumerate(index)}
    moving = [n for n, step in steps.items() if step]
    if not moving:
        return "scalar"
    behind = index[moving[0] + 1 :]
    unit = moving == [moving[0]] and abs(steps[moving[0]]) == 1 and all(
        i.extent == 1 for i in behind
    )  # fmt: skip
    return "vector" if unit else "strided"
