"""A GPU tile program in, the source of a Triton module and its launches out.

One function a kernel: its programs are the iterations of its grid loops, the innermost fastest;
a persistent grid walks over them. Tile axes are dimensions of tensors, in one order per kernel:
that of the stores first. What a value needs is emitted by `triton_values` and the files it names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from math import prod

from autosched.codegen.runtime.counters import ROLE as COUNTER
from autosched.codegen.triton_arrive import arrivals
from autosched.codegen.triton_boxes import access_of, extents_of
from autosched.codegen.triton_helpers import HELPERS, helper_texts
from autosched.codegen.triton_order import Order
from autosched.codegen.triton_share import Sharing
from autosched.codegen.triton_sizes import OpenSizes, count_of
from autosched.codegen.triton_spec import Launch, Tensor, TritonModule
from autosched.codegen.triton_text import (
    Header,
    Names,
    Unsupported,
    Val,
    literal,
    module_text,
    words,
    wrapped,
)
from autosched.codegen.triton_values import MAX_ELEMENTS, number
from autosched.codegen.triton_views import distinct_axes, resolve
from autosched.ir.extent import as_extent, as_node, ext_product
from autosched.ir.gpu_facts import DEFAULTS, described, rows_of
from autosched.ir.loops import grid_of
from autosched.ir.node import Extent, Node, Program, walk
from autosched.ir.open_extents import Sizes
from autosched.ir.ops import kernel_facts
from autosched.ir.rules.action import Illegal
from autosched.ir.scope import scope_of

__all__ = ["Header", "emit"]


def emit(
    program: Program, header: Header, sizes: Sizes | None = None
) -> TritonModule | Illegal:
    """The module of a tile program whose knobs are all bound, but for those of `sizes`: its open
    extents, which are arguments of the kernels.

    Illegal: BACKEND, with what Triton cannot say.
    """
    try:
        return _Module(program, sizes or Sizes()).module(header)
    except Unsupported as error:
        return Illegal("BACKEND", str(error))


class _Module:
    """The kernels of a program: names that all of them share."""

    def __init__(self, program: Program, sizes: Sizes) -> None:
        self.program = program
        self.kernels = tuple(distinct_axes(resolve(k)) for k in program.body)
        names = Names(HELPERS)
        self.tensors = {h: names.fresh(h.attr[0]) for h in self.handles()}
        self.open = OpenSizes(sizes, names)
        self.functions = [
            names.fresh(f"{k.attr[0]}_kernel" if k.attr[0] in names.used else k.attr[0])
            for k in self.kernels
        ]
        self.counters = {
            k: names.fresh(f"{name}_arrivals")
            for k, name in zip(self.kernels, self.functions) if arrivals(grid_of(k)[1])
        }  # fmt: skip

    def handles(self) -> Iterable[Node]:
        """Inputs and buffers that kernels use: inputs, packed, scratch, then outputs in order."""
        used = {n.src[0]: None for n in walk(*self.kernels) if n.op in ("load", "store")}
        outputs = {h.attr[0]: h for h in used if h.op == "buffer" and h.attr[3] == "output"}
        inputs = [h for h in self.program.inputs if h in used]
        rest = [h for h in used if h not in inputs and h not in outputs.values()]
        lost = [o.name for o in self.program.outputs if o.name not in outputs]
        if lost:
            raise Unsupported(f"the output {lost[0]}, which no kernel stores")
        found = [*inputs, *rest, *(outputs[o.name] for o in self.program.outputs)]
        names = [h.attr[0] for h in found]
        twice = [n for n in names if names.count(n) > 1]
        if twice:
            raise Unsupported(f"two buffers with the name {twice[0]}")
        return found

    def module(self, header: Header) -> TritonModule:
        texts, launches = [], []
        counters: list[Tensor] = []
        helpers: set[str] = set()
        combines: dict[tuple[str, tuple[str, ...]], tuple[str, str]] = {}
        for kernel, name in zip(self.kernels, self.functions):
            emitter = _Kernel(self.tensors, self.open, combines, self.counters.get(kernel, ""))
            text, launch = emitter.kernel(kernel, name)
            if emitter.counter:
                tiles = count_of(emitter.tiles)
                counters.append(Tensor(emitter.counter, "int32", (tiles,), COUNTER))
            texts.append(text)
            launches.append(launch)
            helpers |= emitter.helpers
        shared = [*helper_texts(helpers), *(text for _, text in combines.values())]
        source = module_text(header, shared, texts)
        tensors = [
            Tensor(h.attr[0], h.dtype, tuple(map(count_of, extents_of(h))), _role(h))
            for h in self.tensors
        ]
        return TritonModule(source, (*tensors, *counters), tuple(launches), self.open.rows)


def _role(handle: Node) -> str:
    if handle.op == "input":
        return {"arg": "input", "weight": "weight"}[handle.attr[3]]
    return "scratch" if handle.attr[3] in ("scratch", "shared") else handle.attr[3]


class _Kernel(Sharing):
    """One kernel."""

    def __init__(
        self,
        tensors: dict[Node, str],
        sizes: OpenSizes,
        combines: dict[tuple[str, tuple[str, ...]], tuple[str, str]],
        counter: str,
    ) -> None:
        super().__init__()
        self.open, self.arguments = sizes, sizes.arguments
        self.hints |= sizes.hints
        self.counter = counter
        self.combines = combines
        self.all_tensors = tensors
        self.loaded: frozenset[Node] = frozenset()
        self.swapped = False

    def kernel(self, node: Node, name: str) -> tuple[str, Launch]:
        facts = {n: number(e) for n, e in {**DEFAULTS, **kernel_facts(node)}.items()}
        self.stages, self.inner = facts["stages"], facts["inner"] or facts["stages"]
        self.warps, self.specialise = facts["warps"], facts["specialise"] > 0
        self.parts, self.swapped = facts["epilogue"], facts["swap"] > 0
        self.promote = facts["promote"] > 0
        self.order = Order(facts["group"], facts["snake"] > 0)
        self.boxed = described(node, facts["descriptors"])
        used = {n.src[0] for n in walk(node) if n.op in ("load", "store")}
        self.tensors = {h: t for h, t in self.all_tensors.items() if h in used}
        parameters = [*self.tensors.values(), *([self.counter] if self.counter else [])]
        self.scopes.names = Names((*parameters, *self.arguments.values(), *HELPERS, name))
        grid, body = grid_of(node)
        self.prepare(node, grid, body)
        persistent = any(loop.attr[1] == "persistent" for loop in grid)
        if not persistent:
            self.fixed = frozenset(loop.attr[0] for loop in grid)
        if self.specialise:
            self.rows = rows_of(node)
            self.check_handed(n for n in walk(node) if n.op == "dot")
        trips = [(loop.attr[0], _trips(loop)) for loop in grid]
        self.slots = _strides(trips)
        self.tiles = ext_product(n for _, n in trips)
        merged, dealt = arrivals(body), facts["programs"] > 0
        if merged is not None:
            self.boxed &= self.alone(merged, body[1:])
        if dealt:
            self.tiles = max(facts["shared"], 1)
        elif merged is not None:
            trips.append((merged.attr[0], _trips(merged)))
        self.inside = len(trips) - len(grid)
        total = facts["programs"] if dealt else ext_product(n for _, n in trips)
        many = total != 1
        pid = Val(self.scopes.fresh("pid"), (), "int32")
        if many:
            self.scopes.line(f"{pid.text} = tl.program_id(0)")
        if dealt:
            self.deal(trips, body, facts, pid if many else literal(0, "int32"))
        elif persistent and many:
            tile = Val(self.scopes.fresh("tile"), (), "int32")
            self.hints.setdefault(as_node(total), "tiles")
            span = f"{pid.text}, {self.extent(total).text}, tl.num_programs(0)"
            steps = f"tl.range({span}, flatten=True)" if facts["flatten"] else f"range({span})"
            self.run(trips, body, tile, f"for {tile.text} in {steps}:")
        else:
            self.run(trips, body, pid, "")
        body_lines = [f"    {line}" for line in self.scopes.stack[0].lines]
        read = words("\n".join(body_lines))
        sizes = {n: a for n, a in self.arguments.items() if a in read}
        head = f"def {name}({', '.join((*parameters, *sizes.values()))}):"
        lines = [p for line in (head, *body_lines) for p in wrapped(line)]
        text = "\n".join([_decorator(sizes.values()), *lines])
        names = [h.attr[0] for h in self.tensors] + parameters[len(self.tensors) :]
        launch = Launch(
            name, tuple(names), count_of(total), facts["warps"],
            max(self.stages, 1), max(facts["persistent"], 1) if persistent else 0,
            bool(self.made_descriptors), facts["registers"], tuple(sizes),
        )  # fmt: skip
        return text, launch

    def run(
        self, trips: list[tuple[str, Extent]], body: Sequence[Node], pid: Val, header: str
    ) -> None:
        """The statements of one iteration of the grid, number `pid`."""
        self.scopes.enter({a: literal(0, "int32") for a, _ in trips}, loop=bool(header))
        self.bind_grid(trips, pid.text)
        self.statements(body)
        self.scopes.leave(header)

    def bind_grid(self, trips: Sequence[tuple[str, Extent]], tile: str) -> None:
        """Binds the loops of the grid to their coordinates at a tile."""
        known: dict[str, str] = {}
        for name, text in self.order.lines(trips, tile, self.inside, lambda n: self.extent(n).text):
            text = re.sub(r"{([^}]+)}", lambda at: known[at[1]], text)
            at = self.named(Val(text, (), "int32"), name)
            known[name] = at.text
            if name in self.scopes.stack[-1].axes:
                self.scopes.stack[-1].axes[name] = at

    # ---- facts that emission needs before it starts ---------------------------------------

    def prepare(self, kernel: Node, grid: Sequence[Node], body: Sequence[Node]) -> None:
        for loop in grid:
            self.depths[loop.attr[0]] = 1
        self.nest(body, 1)
        nodes = tuple(n for n in walk(kernel) if n.op not in ("input", "buffer"))
        for node in nodes:
            axes = [x for t in node.types for x in t.axes]
            if node.op in ("load", "store"):
                axes += [(d[0], d[1]) for d in node.attr[0] if d is not None]
            for axis, extent in axes:
                if axis in self.depths or (size := number(extent)) == 1:
                    continue
                if self.sizes.setdefault(axis, size) != size:
                    raise Unsupported(f"the axis {axis} has {self.sizes[axis]} and {size} elements "
                                      "in one kernel")  # fmt: skip
        self.check_binders(nodes)
        self.count_uses(n for n in nodes if n.op == "store")
        self.stored = frozenset(n.src[0] for n in nodes if n.op == "store")
        self.loaded = frozenset(n.src[0] for n in nodes if n.op == "load")
        accesses = [n for n in nodes if n.op in ("load", "store")]
        steers = [s for n in accesses for s in n.src[2 if n.op == "store" else 1 :]]
        self.steering = frozenset(n for n in walk(*steers) if n.op == "load")
        self.find_riders(body)
        self.order_axes(nodes)
        self.order_loads(nodes)
        for node in nodes:
            size = prod(self.sizes.get(a, 1) for t in node.types[:1] for a in t.names)
            if node.op not in ("input", "buffer") and size > MAX_ELEMENTS:
                raise Unsupported(f"a tensor of {size} elements")

    def nest(self, nodes: Sequence[Node], depth: int) -> None:
        """Depths of the axes that serial loops and folds bind."""
        reached: dict[Node, int] = {}
        todo = [(n, depth) for n in nodes]
        while todo:
            node, at = todo.pop()
            if reached.get(node, -1) >= at:
                continue
            reached[node] = at
            inner = at + 1 if node.op in ("fold", "forall") else at
            if inner > at:
                axis = node.attr[0]
                self.depths[axis] = max(self.depths.get(axis, 0), inner)
            todo += [(s, inner) for s in node.src]

    def check_binders(self, nodes: Sequence[Node]) -> None:
        """Axes that loops bind are no tile axes of another operator."""
        for node in nodes:
            if node.op in ("fold", "forall", "kernel"):
                continue
            taken = [a for a, _ in scope_of(node).binds if a in self.depths]
            if taken:
                raise Unsupported(f"a {node.op} over {', '.join(taken)}, which is also a loop")

    def order_axes(self, nodes: Sequence[Node]) -> None:
        """One order of tile axes: as stores lay them out in memory, then as dots want computed
        operands, where those agree; ties as the axes appear."""
        chains = [_stored_axes(n) for n in nodes if n.op == "store"]
        if self.swapped:  # what stores have as rows, contractions make as columns
            tiled = [[a for a in c if a in self.sizes] for c in chains]
            chains = [(*c[:-2], *reversed(c[-2:])) for c in tiled]
        seen = dict.fromkeys(a for chain in chains for a in chain)
        seen |= dict.fromkeys(a for n in nodes for t in n.types for a in t.names)
        axes = [a for a in seen if a not in self.depths]
        self.ranks = {a: n for n, a in enumerate(_merged(axes, chains))}
        for dot in (n for n in reversed(nodes) if n.op == "dot"):
            plan = self.plan(dot)
            if plan.a.op != "load":
                chains.append((*plan.batch, *plan.rows, *plan.depth))
            if plan.b.op != "load":
                chains.append((*plan.batch, *plan.depth, *plan.columns))
            chains.append(plan.out)
            self.ranks = {a: n for n, a in enumerate(_merged(axes, chains))}

    def find_riders(self, body: Sequence[Node]) -> None:
        """Serial loops whose stores read the stacked outputs of a fold over the same axis."""
        for loop in (n for n in walk(*body) if n.op == "forall"):
            axis = loop.attr[0]
            stacks = {
                n.src[0] for n in walk(*loop.src[2:])
                if n.op == "get" and n.src[0].op == "fold" and n.src[0].attr[0] == axis
                and n.attr[0] >= len(n.src[0].attr[1])
            } | {n for n in walk(*loop.src[2:]) if n.op == "fold" and n.attr[0] == axis
                 and n.attr[3] and not n.attr[1]}  # fmt: skip
            if not stacks:
                continue
            if len(stacks) > 1:
                raise Unsupported(f"a loop over {axis} that stores outputs of two folds")
            (fold,) = stacks
            if fold.attr[2] != 1 or fold.src[:2] != loop.src[:2]:
                raise Unsupported(f"a loop over {axis} with other bounds than the fold it stores")
            self.riders[fold] = (*self.riders.get(fold, ()), *loop.src[2:])
            self.rides[loop] = fold

    def order_loads(self, nodes: Sequence[Node]) -> None:
        """Loads that only dots read are laid out as those want them, if they agree."""
        wanted: dict[Node, set[tuple[str, ...]]] = {}

        def want(node: Node, order: tuple[str, ...]) -> None:
            """A map that only one value reads passes the wish on to its operands."""
            wanted.setdefault(node, set()).add(order)
            if node.op == "map" and self.uses.get(node, 1) == 1:
                passed.add(node)
                for source in node.src:
                    want(source, order)

        passed: set[Node] = set()
        for node in (n for n in nodes if n.op == "dot"):
            plan = self.plan(node)
            want(plan.a, (*plan.batch, *plan.rows, *plan.depth))
            want(plan.b, (*plan.batch, *plan.depth, *plan.columns))
        for node in nodes:
            for source in node.src if node.op != "dot" and node not in passed else ():
                wanted.setdefault(source, set()).add(())
        for node, orders in wanted.items():
            if node.op == "load" and len(orders) == 1 and () not in orders:
                (order,) = orders
                self.orders[node] = tuple(a for a in order if a in self.tile_dims(node.axes))

    # ---- statements -----------------------------------------------------------------------

    def statements(self, body: Sequence[Node]) -> None:
        for at, stmt in enumerate(body):
            if stmt in self.rides:
                self.results(self.rides[stmt])
            elif stmt.op == "store":
                self.store_alone(stmt)
            elif stmt.op == "forall" and stmt.attr[1] in ("serial", "unroll"):
                self.serial(stmt)
            elif stmt is arrivals(body):
                self.arrive(stmt, body[at + 1 :])
                return
            else:
                raise Unsupported(f"a {stmt.op} {' '.join(map(str, stmt.attr))} in a program")

    def store_alone(self, stmt: Node) -> None:
        """A store; what it loads from buffers that the kernel stores to is loaded for it."""
        changing = _reading(stmt, self.stored)
        if changing:
            self.scopes.enter(changing=changing)
        self.store(stmt)
        if changing:
            self.scopes.leave()
        if stmt.src[0] in self.loaded:
            self.scopes.line("tl.debug_barrier()")

    def serial(self, stmt: Node) -> None:
        axis = stmt.attr[0]
        lo, hi = (self.value(b) for b in stmt.src[:2])
        if lo.dims or hi.dims:
            raise Unsupported(f"the bounds of the loop over {axis} vary along a tile axis")
        if lo.literal and hi.literal and int(hi.text) - int(lo.text) == 1:
            self.scopes.enter({axis: lo})
            self.statements(stmt.src[2:])
            self.scopes.leave()
            return
        index = self.scopes.fresh(axis)
        self.scopes.enter({axis: Val(index, (), "int32")}, loop=True)
        self.statements(stmt.src[2:])
        span = hi.text if lo.text == "0" else f"{lo.text}, {hi.text}"
        self.scopes.leave(f"for {index} in range({span}):")


def _stored_axes(store: Node) -> tuple[str, ...]:
    """The tile axes of a store in the order of memory."""
    _, starts, dims = access_of(store)
    found: dict[str, None] = {}
    for start, dim in zip(starts, dims):
        found.update(dict.fromkeys(a for a, _ in start.axes))
        if isinstance(dim, tuple):
            found[dim[0]] = None
    return tuple(found)


def _merged(axes: Sequence[str], chains: Iterable[Sequence[str]]) -> list[str]:
    """The axes in an order that obeys every pair of neighbours in the chains, earlier chains first;
    a pair that contradicts those before it does not count."""
    later: dict[str, set[str]] = {a: set() for a in axes}

    def reaches(start: str, goal: str) -> bool:
        return start == goal or any(reaches(a, goal) for a in later[start])

    for chain in chains:
        known = [a for a in chain if a in later]
        for a, b in pairwise(known):
            if not reaches(b, a):
                later[a].add(b)
    out: list[str] = []
    while len(out) < len(axes):
        rest = [a for a in axes if a not in out]
        out.append(next(a for a in rest if not any(a in later[b] for b in rest)))
    return out


def _decorator(sizes: Collection[str]) -> str:
    """One compile serves all values of the sizes, also where they are 1 or multiples of 16."""
    names = ", ".join(f'"{name}"' for name in sizes)
    return f"@triton.jit(do_not_specialize=[{names}])" if sizes else "@triton.jit"


def _trips(loop: Node) -> Extent:
    lo, hi = map(as_extent, loop.src[:2])
    if lo != 0:
        raise Unsupported(f"the grid loop {loop.attr[0]} starts at {lo}")
    return hi


def _strides(trips: Sequence[tuple[str, Extent]]) -> list[tuple[str, Extent, Extent]]:
    """(axis, programs from one iteration to the next, iterations)."""
    return [
        (axis, ext_product(n for _, n in trips[at + 1 :]), n) for at, (axis, n) in enumerate(trips)
    ]


def _reading(stmt: Node, stored: frozenset[Node]) -> frozenset[Node]:
    """The nodes of a statement that depend on memory which the kernel stores to."""
    found: set[Node] = set()
    for node in walk(*stmt.src[1:]):
        if (node.op == "load" and node.src[0] in stored) or any(s in found for s in node.src):
            found.add(node)
    return frozenset(found)
