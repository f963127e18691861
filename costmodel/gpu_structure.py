"""Symbolic tile program of a GPU in, its loops, boxes and contractions out: `GpuStructure`.

One walk over every kernel. A value is a box over its free axes that no loop around it binds, made
in the innermost loop that it depends on, by axis or by state. Sizes stay nodes over knobs, so that
one structure serves all rows of a table. No operator is known by name here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from autosched.costmodel.gpu_machine import CHAIN_CYCLES, special_parts
from autosched.costmodel.gpu_places import Place, reads_memory
from autosched.costmodel.gpu_places import places as places_of
from autosched.costmodel.structure import Loop, Sizes
from autosched.ir.extent import (
    as_extent,
    as_node,
    ext_add,
    ext_cdiv,
    ext_product,
    ext_sub,
    simplify,
)
from autosched.ir.gpu_facts import DEFAULTS, fed_by
from autosched.ir.linear import INDEX_TYPES
from autosched.ir.loops import Loop as LoopNode
from autosched.ir.loops import as_loop
from autosched.ir.node import Axes, Extent, IRError, Node, Program, walk
from autosched.ir.ops import kernel_facts
from autosched.ir.scalar import FLOATS, ITEMSIZE, SCALARS, split_name
from autosched.ir.shares import Shares

LEAVES = frozenset(("const", "iota", "carry", "knob", "buffer", "input"))
# What moves a value or reads it elsewhere, without arithmetic of its own.
MOVES = frozenset(("reaxis", "take", "slice", "place"))
LAST = "last"  # a loop around what one of several programs does, the last one to arrive
SHARE, KEPT = "share", "kept"  # around parts of tiles, and around what is stored of some of them


@dataclass(frozen=True)
class GpuKernel:
    """A launch: `root` is its outermost loop, `grid` the loops over programs, outermost first;
    facts: all of `gpu_facts`, by name."""

    name: str
    root: int
    grid: tuple[int, ...]
    facts: tuple[tuple[str, Extent], ...]

    def fact(self, name: str) -> Extent:
        return dict(self.facts)[name]


@dataclass(frozen=True)
class BoxOps:
    """`count` operations for each point of a box.

    needs: the loops that the value depends on, outermost (the kernel) first: it is made in the
    innermost of them that has more than one trip. kind: "arith" | "int" | "move" | "mufu"
    (evaluations by the special-function unit).
    """

    needs: tuple[int, ...]
    kind: str
    box: Sizes
    count: float


@dataclass(frozen=True)
class Dot:
    """A contraction: rows x columns x depth, `batch` times; needs as of BoxOps.

    dtype is that of the operands, precision "" where float32 stays float32; loaded says of each
    operand whether it comes from memory as it is, or is computed first; early: nothing of its step
    reads it, so that it runs beside the rest of the step.
    """

    needs: tuple[int, ...]
    rows: Sizes
    columns: Sizes
    depth: Sizes
    batch: Sizes
    dtype: str
    precision: str
    loaded: tuple[bool, bool]
    early: bool


@dataclass(frozen=True)
class Held:
    """A box that threads keep in registers: a "state" of a fold, a "value", or the computed
    "rows" or "columns" of a contraction; width: bytes of an element."""

    loop: int
    role: str
    box: Sizes
    width: int


@dataclass(frozen=True)
class BoxAccess:
    """A load or store of a box; needs as of BoxOps.

    staged: loads that a loop fetches ahead, because a contraction of the same loop reads them;
    shared: what a contraction reads, so that it lies in shared memory.
    """

    needs: tuple[int, ...]
    handle: Node
    places: tuple[Place, ...]
    box: Axes
    stores: bool
    masked: bool
    staged: bool
    shared: bool

    @property
    def loop(self) -> int:
        return self.needs[-1]

    @property
    def itemsize(self) -> int:
        return max(ITEMSIZE[self.handle.dtype], 1)


@dataclass(frozen=True)
class Chain:
    """The longest path through one iteration of `loop`: cycles of operations, loads in a row
    that are not fetched ahead, and whether others are."""

    loop: int
    cycles: float
    loads: int
    staged: bool


@dataclass(frozen=True)
class GpuStructure:
    """Kernels, their loops (parents before children), and what these do."""

    kernels: tuple[GpuKernel, ...]
    loops: tuple[Loop, ...]
    ops: tuple[BoxOps, ...]
    dots: tuple[Dot, ...]
    held: tuple[Held, ...]
    operands: tuple[Held, ...]  # computed operands of contractions, which pass shared memory
    accesses: tuple[BoxAccess, ...]
    chains: tuple[Chain, ...]

    def chain(self, loop: int) -> tuple[int, ...]:
        """The loop and all that enclose it, innermost first."""
        return tuple(_ancestors(self.loops, loop))


def _ancestors(loops: Sequence[Loop], loop: int) -> Iterator[int]:
    while loop >= 0:
        yield loop
        loop = loops[loop].parent


def gpu_structure(program: Program) -> GpuStructure:
    """The structure of a tile program; knobs may be open. Raises IRError for algebra."""
    if program.level != "tile":
        raise IRError("features are of tile programs")
    walker = _Walker()
    kernels = tuple(walker.kernel(k) for k in program.body)
    return GpuStructure(
        kernels,
        tuple(walker.loops),
        tuple(BoxOps(*key, count) for key, count in walker.ops.items()),
        tuple(walker.dots),
        tuple(walker.held),
        tuple(walker.operands),
        tuple(walker.accesses),
        tuple(walker.chains()),
    )


@dataclass(frozen=True)
class _Scope:
    """Which loop each axis and each fold state belongs to; `within`: loops that whatever is made
    here depends on."""

    loop: int
    axes: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    within: tuple[int, ...] = ()

    def inside(self, loop: int, axis: str, states: Iterable[str] = ()) -> _Scope:
        carried = {**self.states, **dict.fromkeys(states, loop)}
        return _Scope(loop, {**self.axes, axis: loop}, carried, self.within)


class _Walker:
    def __init__(self) -> None:
        self.loops: list[Loop] = []
        self.ops: Counter[tuple[tuple[int, ...], str, Sizes]] = Counter()
        self.dots: list[Dot] = []
        self.held: list[Held] = []
        self.operands: list[Held] = []
        self.accesses: list[BoxAccess] = []
        self.root = 0
        self.facts: dict[str, Extent] = {}
        self.done: set[tuple[Node, int]] = set()
        # Of values by node and home: longest path that leads there inside their loop.
        self.depth: dict[tuple[Node, int], tuple[float, int]] = {}
        self.fetched: set[int] = set()  # loops with staged loads
        self.fed: set[Node] = set()  # loads that contractions read
        self.early: set[Node] = set()  # contractions that are states of the next step
        self.in_place: set[Node] = set()

    def add_loop(
        self, axis: str, kind: str, parent: int, bounds: Sequence[Node], body: Sequence[Node] = ()
    ) -> int:
        lo, hi = bounds
        loaded = reads_memory(lo) or reads_memory(hi)
        extent = _stand_in(axis, lo, body) if loaded else hi
        self.loops.append(Loop(axis, kind, parent, lo, hi, extent, loaded))
        return len(self.loops) - 1

    # ---- statements -----------------------------------------------------------------------

    def kernel(self, node: Node) -> GpuKernel:
        self.root = self.add_loop("", "kernel", -1, (as_node(0), as_node(1)))
        self.facts = {**DEFAULTS, **kernel_facts(node)}
        self.fed = {n for d in walk(*node.src) if d.op == "dot" for s in d.src for n in fed_by(s)}
        self.early = {d for n in walk(*node.src) if n.op == "fold" for d in _beside(n)}
        self.statements(node.src, _Scope(self.root))
        grid = tuple(n for n in range(self.root, len(self.loops)) if self.loops[n].kind == "grid")
        return GpuKernel(
            node.attr[0],
            self.root,
            grid,
            tuple(sorted(self.facts.items())),
        )

    def statement(self, stmt: Node, scope: _Scope) -> None:
        if stmt.op == "store":
            self.store(stmt, scope)
            return
        loop, body = as_loop(stmt)
        if loop.bind == SHARE:
            self.share(loop, body, scope)
            return
        kind = "grid" if loop.bind in ("grid", "persistent", "arrive") else "serial"
        self.values([s for s in (loop.lo, loop.hi) if reads_memory(s)], scope)
        number = self.add_loop(loop.axis, kind, scope.loop, (loop.lo, loop.hi), body)
        self.statements(body, scope.inside(number, loop.axis))

    def statements(self, body: Sequence[Node], scope: _Scope) -> None:
        """Statements one after the other; those behind a loop whose last program goes on with
        them are done by one of its programs."""
        for at, stmt in enumerate(body):
            self.statement(stmt, scope)
            if stmt.op == "forall" and stmt.attr[1] in ("arrive", SHARE):
                counts = stmt.src[:2] if stmt.attr[1] == "arrive" else self.dealt(scope)[:2]
                self.loops.append(Loop("", LAST, scope.loop, *counts, as_extent(counts[1])))
                last = len(self.loops) - 1
                self.statements(body[at + 1 :], replace(scope, loop=last, within=(last,)))
                return

    def share(self, loop: LoopNode, body: Sequence[Node], scope: _Scope) -> None:
        """The parts of tiles that are dealt out. Those that are all of a tile are not stored."""
        tiles, parts, stored = self.dealt(scope)
        count = simplify(loop.hi)
        number, kept = len(self.loops), len(self.loops) + 1
        self.loops.append(Loop(loop.axis, SHARE, scope.loop, tiles, parts, count))
        self.loops.append(Loop("", KEPT, number, stored, parts, count))
        inside = scope.inside(number, loop.axis)
        self.statements(body, replace(inside, loop=kept))

    def dealt(self, scope: _Scope) -> tuple[Node, Node, Node]:
        """The tiles of a grid whose tiles are dealt out, their parts, and how many are stored."""
        around = [self.loops[n] for n in _ancestors(self.loops, scope.loop)]
        tiles = ext_product(as_extent(x.hi) for x in around if x.kind == "grid")
        shares = Shares(*(self.facts[name] for name in ("pieces", "programs", "shared")))
        cuts = ext_sub(shares.sharing, 1)
        return as_node(tiles), as_node(ext_add(tiles, cuts)), as_node(ext_add(shares.shared, cuts))

    def store(self, stmt: Node, scope: _Scope) -> None:
        handle, value, *rest = stmt.src
        self.values([value, *filter(reads_memory, rest)], scope)
        dims, masked = stmt.attr
        starts = rest[: len(dims)]
        axes = {a: e for s in (value, *starts) for a, e in s.free}
        axes |= {d[0]: d[1] for d in dims if d is not None}
        box = self.box(tuple(axes.items()), scope)
        places = places_of(handle, starts, dims)
        around = tuple(sorted(_ancestors(self.loops, scope.loop)))
        self.accesses.append(BoxAccess(around, handle, places, box, True, masked, False, False))

    # ---- values -----------------------------------------------------------------------------

    def needs(self, node: Node, scope: _Scope) -> tuple[int, ...]:
        """The loops that the node depends on, by axis or by state, outermost first."""
        # The results of a fold that are stacked along its axis are made at its steps.
        own = node.attr[0] if node.op == "fold" else None
        loops = {scope.axes[a] for a, _ in node.free if a in scope.axes and a != own}
        loops |= {scope.states[c] for c in node.carries if c in scope.states}
        return tuple(sorted({self.root, *scope.within, *loops}))

    def home(self, node: Node, scope: _Scope) -> int:
        """The innermost loop that the node depends on: where it is made, or hoisted to."""
        return self.needs(node, scope)[-1]

    def box(self, axes: Axes, scope: _Scope) -> Axes:
        return tuple((a, e) for a, e in axes if a not in scope.axes)

    def sizes(self, node: Node, scope: _Scope) -> Sizes:
        return tuple(e for _, e in self.box(node.free, scope))

    def values(self, roots: Sequence[Node], scope: _Scope) -> None:
        """Accounts for what the roots need and is not made yet, operands first."""
        stack = [(root, False) for root in reversed(roots)]
        while stack:
            node, ready = stack.pop()
            if node.op in LEAVES or not node.types or _is_coordinate(node):
                continue
            key = (node, self.home(node, scope))
            if ready:
                self.value(node, key[1], scope)
            elif key not in self.done:
                self.done.add(key)
                stack.append((node, True))
                stack.extend((s, False) for s in reversed(_operands(node)))

    def value(self, node: Node, home: int, scope: _Scope) -> None:
        before = [self.depth.get((s, home), (0.0, 0)) for s in node.src]
        cycles = max((c for c, _ in before), default=0.0)
        loads = max((n for _, n in before), default=0)
        if node.op == "fold":
            self.fold(node, scope)
        elif node.op == "load":
            loads += 1 - self.load(node, home, scope)
        elif node.op == "dot":
            self.dot(node, home, scope)
        elif node.op != "get":
            self.compute(node, home, scope)
        if node.op not in ("fold", "get", "load"):
            cycles += CHAIN_CYCLES.get(_cost_class(node), CHAIN_CYCLES["arith"])
        self.depth[node, home] = (cycles, loads)

    def compute(self, node: Node, home: int, scope: _Scope) -> None:
        """Operations of a value that is computed point by point, and the registers it takes."""
        over = node.src[0] if node.op in ("reduce", "scan") else node
        box = self.sizes(over, scope)
        for kind, count in _operations(node):
            self.ops[self.needs(node, scope), kind, box] += count  # type: ignore[assignment]
        if node not in self.in_place:
            for kind_ in node.types:
                self.held.append(
                    Held(home, "value", self.sizes(node, scope), max(ITEMSIZE[kind_.dtype], 1))
                )

    def load(self, node: Node, home: int, scope: _Scope) -> bool:
        """Accounts for a load; whether its loop fetches it ahead."""
        dims, masked = node.attr
        starts = node.src[1 : 1 + len(dims)]
        shared = node in self.fed
        # Parts are fetched ahead, too: their merge does nothing but read.
        staged = (shared or bool(scope.within)) and self.loops[home].kind == "fold"
        if staged:
            self.fetched.add(home)
        needs = self.needs(node, scope)
        box = self.box(node.free, scope)
        places = places_of(node.src[0], starts, dims)
        self.accesses.append(
            BoxAccess(needs, node.src[0], places, box, False, masked, staged, shared)
        )
        # What a merge reads of large parts is added element by element.
        if not shared and not (scope.within and self.facts["programs"] != 0):
            self.held.append(
                Held(home, "value", tuple(e for _, e in box), max(ITEMSIZE[node.dtype], 1))
            )
        return staged

    def dot(self, node: Node, home: int, scope: _Scope) -> None:
        axes, _, *precision = node.attr
        a, b = (dict(self.box(s.free, scope)) for s in node.src)
        self.dots.append(
            Dot(
                self.needs(node, scope),
                tuple(e for n, e in a.items() if n not in b),
                tuple(e for n, e in b.items() if n not in a),
                tuple(a[n] for n in axes if n in a),
                tuple(e for n, e in a.items() if n in b and n not in axes),
                node.src[0].dtype,
                precision[0] if precision else "",
                (_as_loaded(node.src[0]), _as_loaded(node.src[1])),
                node in self.early,
            )
        )
        for role, s in zip(("rows", "columns"), node.src):
            if not _as_loaded(s) and not (role == "rows" and s.op == "carry"):
                width = max(ITEMSIZE[s.dtype], 1)
                self.operands.append(Held(home, role, self.sizes(s, scope), width))
        if node not in self.in_place:
            self.held.append(Held(home, "value", self.sizes(node, scope), ITEMSIZE[node.dtype]))

    def fold(self, node: Node, scope: _Scope) -> None:
        """The loops of a fold, one for each of its intervals.

        Where a serial loop over the same axis encloses it, that loop stores what the steps yield:
        they are one loop.
        """
        axis, names, n_intervals, _ = node.attr
        bounds, rest = node.src[: 2 * n_intervals], node.src[2 * n_intervals :]
        bodies = rest[len(names) :]
        around = scope.axes.get(axis)
        for k in range(n_intervals):
            if around is None:
                outer = self.home(node, scope)
                number = self.add_loop(axis, "fold", outer, bounds[2 * k : 2 * k + 2], bodies)
            else:
                number = around
                self.loops[number] = replace(self.loops[number], kind="fold")
            inner = scope.inside(number, axis, names)
            # States that contractions take as they are wait while what makes them is not there.
            handed = {s.attr[0] for n in walk(*bodies) if n.op == "dot"
                      for s in n.src if s.op == "carry"}  # fmt: skip
            for name, kind, step in zip(names, node.types, bodies):
                box = tuple(e for a, e in kind.axes if a not in inner.axes)
                if name not in handed:
                    self.held.append(Held(number, "state", box, ITEMSIZE[kind.dtype]))
                same = {s for s in step.src if self.sizes(s, inner) == self.sizes(step, inner)}
                sums = {d for s in same if s.op == "map" for d in s.src if d.op == "dot"}
                self.in_place |= {step, *same, *sums}
            self.values(bodies, inner)

    def chains(self) -> Iterator[Chain]:
        longest: dict[int, tuple[float, int]] = {}
        for (_, home), (cycles, loads) in self.depth.items():
            c, n = longest.get(home, (0.0, 0))
            longest[home] = (max(c, cycles), max(n, loads))
        for loop, (cycles, loads) in sorted(longest.items()):
            yield Chain(loop, cycles, loads, loop in self.fetched)


def _beside(fold: Node) -> Iterator[Node]:
    """The contractions that are a state of the next step, or that are added to one as it was and
    wait for nothing but memory."""
    names = fold.attr[1]
    for name, step in zip(names, fold.src[2 * fold.attr[2] + len(names) :]):
        if step.op == "dot":
            yield step
        elif step.op == "map" and step.attr[0] == "add":
            held = [s for s in step.src if s.op == "carry" and s.attr[0] == name]
            dots = (s for s in step.src if s.op == "dot")
            yield from (d for d in dots if held and all(map(_as_loaded, d.src)))


def _stand_in(axis: str, lo: Node, body: Sequence[Node]) -> Extent:
    """Trips of a loop whose bounds memory holds: the axis is taken to be shared evenly by the
    intervals, where they start at loaded places too, else to be walked whole."""
    whole = next((n.extent(axis) for n in walk(*body) if n.types and _has_axis(n, axis)), None)
    if whole is None:
        raise IRError(f"nothing tells the extent of axis {axis!r}")
    sharers = ext_product([e for _, e in lo.free]) if reads_memory(lo) else 1
    return ext_cdiv(whole, sharers)


def _has_axis(node: Node, axis: str) -> bool:
    return len(node.types) == 1 and axis in node.names


def _operands(node: Node) -> tuple[Node, ...]:
    """What must be made before the node; of addresses and masks only what memory holds."""
    if node.op == "load":
        return tuple(filter(reads_memory, node.src[1:]))
    if node.op in ("reaxis", "slice"):
        return (node.src[0], *filter(reads_memory, node.src[1:]))
    if node.op == "fold":
        n_bounds = 2 * node.attr[2]
        bounds = filter(reads_memory, node.src[:n_bounds])
        return (*bounds, *node.src[n_bounds : n_bounds + len(node.attr[1])])
    return node.src


def _as_loaded(operand: Node) -> bool:
    while operand.op in ("place", "reaxis"):
        operand = operand.src[0]
    return operand.op == "load"


def _cost_class(node: Node) -> str:
    if node.op != "map":
        return node.op
    return SCALARS[split_name(node.attr[0])[0]].cost


def _is_coordinate(node: Node) -> bool:
    """Integers made of coordinates alone: addresses, which compilers move out of loops."""
    return node.op == "map" and node.dtype in INDEX_TYPES and not reads_memory(node)


def _operations(node: Node) -> list[tuple[str, float]]:
    """(kind, operations for each point) of one value."""
    if node.op in ("reduce", "scan"):
        steps = 1.0 if node.op == "reduce" else 5.0
        return [("arith", steps * len(node.src))]
    if node.op in MOVES:
        return [("move", 1.0)]
    if node.op != "map":
        return [("arith", 1.0)]
    fn = split_name(node.attr[0])[0]
    cost = SCALARS[fn].cost
    if cost == "special":
        mufu, arith = special_parts(fn)
        return [("mufu", mufu), ("arith", arith)]
    if cost == "arith" and node.src[-1].dtype not in FLOATS:
        return [("int", 1.0)]
    return [(cost, 1.0)]
