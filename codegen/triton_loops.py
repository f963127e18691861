"""Folds as loops: states in variables, several intervals one after another, stacked outputs stored
where they are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from autosched.codegen import triton_scalars as scalars
from autosched.codegen.triton_dots import Dots
from autosched.codegen.triton_start import first_lines
from autosched.codegen.triton_text import ADD, NARROW, Unsupported, Val, literal, words
from autosched.ir.extent import simplify
from autosched.ir.node import Node, Type, walk
from autosched.ir.ops import get


class Loops(Dots):
    """Folds of a kernel; `riders` are the statements that read a fold's stacked outputs."""

    methods: ClassVar[dict[str, str]] = {**Dots.methods, "fold": "_fold"}

    def __init__(self) -> None:
        super().__init__()
        self.stages = self.inner = 1  # steps in flight, and of loops inside loops
        self.riders: dict[Node, tuple[Node, ...]] = {}
        self.owners: dict[str, Node] = {}  # the fold that a state's variable was made for

    def statements(self, body: Sequence[Node]) -> None:
        raise NotImplementedError

    def _fold(self, node: Node) -> tuple[Val, ...]:
        axis, names, n_intervals, n_outs = node.attr
        bounds, inits = node.src[: 2 * n_intervals], node.src[2 * n_intervals :][: len(names)]
        states = [self.value(i) for i in inits]
        if n_outs and node not in self.riders:
            raise Unsupported(f"the stacked outputs of a fold over {axis} are not stored by a "
                              "serial loop over it")  # fmt: skip
        for low, high in zip(bounds[::2], bounds[1::2]):
            trips = simplify(high - low) if low.dtype == high.dtype else high
            count = trips.attr[0] if trips.op == "const" else None
            if count is not None and count <= 0:
                continue
            if count == 1 and not _goes_on(node):
                states = self.once(node, self.value(low), states)
            else:
                states = self.loop(node, low, high, states)
        return (*states, *[Val("", (), kind.dtype) for kind in node.types[len(names) :]])

    def once(self, node: Node, at: Val, states: list[Val]) -> list[Val]:
        """The body at one step, without a loop."""
        axis, names = node.attr[:2]
        states = [s if s.literal or s.is_name else self.named(s, n) for s, n in zip(states, names)]
        self.scopes.enter({axis: at}, dict(zip(names, states)))
        yields = self.body(node)
        yields = [y if y.literal else self.named(y, n) for y, n in zip(yields, names)]
        self.scopes.leave()
        return yields

    def loop(self, node: Node, low: Node, high: Node, states: list[Val]) -> list[Val]:
        axis, names, n_intervals, _ = node.attr
        inits = node.src[2 * n_intervals :]
        lo, hi = self.value(low), self.value(high)
        if lo.dims or hi.dims:
            raise Unsupported(f"the bounds of a fold over {axis} vary along a tile axis")
        if _goes_on(node):
            # A loop that surely has a step, and adds to sums of a loop that may have none, becomes
            # one with the way around that loop; the accumulators then have two origins, and ptxas
            # makes all products wait for each other (it says so: C7515).
            hi = Val(f"{hi.inside(ADD)} - {self.zero().text}", (), "int32", ADD)
        held = [
            self.variable(node, name, state, init, kind, is_cast(step, kind.dtype))
            for name, state, init, kind, step in zip(
                names, states, inits, node.types, inits[len(names) :]
            )
        ]
        index = self.scopes.fresh(axis)
        self.scopes.enter({axis: Val(index, (), "int32")}, dict(zip(names, held)), loop=True)
        self.assign(held, [
            self.fitted(y, h) for y, h in zip(self.body(node), held)
        ])  # fmt: skip
        options = self.options(node)
        if options:
            self.scopes.leave(f"for {index} in tl.range({lo.text}, {hi.text}, {options}):")
        else:
            span = hi.text if lo.text == "0" else f"{lo.text}, {hi.text}"
            self.scopes.leave(f"for {index} in range({span}):")
        return held

    def options(self, node: Node) -> str:
        """What the compiler is told of a loop."""
        stages = self.inner if self.depths[node.attr[0]] > 2 else self.stages
        told = [f"num_stages={stages}"] if stages > 1 else []
        steps = tuple(walk(*node.src[2 * node.attr[2] :]))
        contracts = any(n.op == "dot" for n in steps)
        if self.specialise and contracts and not any(n.op == "fold" for n in steps):
            told.append("warp_specialize=True")
        return ", ".join(told)

    def body(self, node: Node) -> list[Val]:
        """The yields of one step, and the statements that store its outputs."""
        _, names, n_intervals, _ = node.attr
        rest = node.src[2 * n_intervals + len(names) :]
        yields = []
        for name, step in zip(names, rest):
            self.hints.setdefault(step, f"new_{name}")
        for first in first_lines(names, rest[: len(names)]):
            self.scopes.keep(first, (self.named(self.value(first), self.hint(first)),))
        for step in rest[: len(names)]:
            self.direct = step
            yields.append(self.value(step))
        if node in self.riders:
            for n, out in enumerate(rest[len(names) :]):
                whole = get(node, len(names) + n)
                self.scopes.keep(whole, (self.value(out),))
            self.statements(self.riders[node])
        return yields

    def variable(
        self, fold: Node, name: str, state: Val, init: Node, result: Type, rounded: bool
    ) -> Val:
        """The variable of a state, set to its start; one that nobody else reads is taken over.

        rounded: each step rounds it to its type, so that nothing is lost when it is held in it.
        """
        kind = "float32" if result.dtype in NARROW and not rounded else result.dtype
        dims = self.tile_dims(result.axes)
        owner = self.owners.get(state.text)
        if state.literal:
            state = literal(_number(state), kind) if state.dtype != kind else state
        last = init.op == "get" and self.uses.get(init, 1) == 1 and init.src[0] is owner
        if owner is fold or (last and state.dims == dims and state.dtype == kind):
            self.owners[state.text] = fold
            return state
        started = self.spread(state, dims)
        if not dims and state.literal:
            started = scalars.tensor(state)
        started = scalars.cast_to(started, kind, self.use)
        var = self.scopes.fresh(name)
        self.scopes.line(f"{var} = {started.text}")
        self.owners[var] = fold
        return Val(var, dims, kind)

    def fitted(self, val: Val, held: Val) -> Val:
        """A yield with the dimensions and type of its state's variable."""
        if val.literal:
            val = scalars.tensor(Val(val.text, (), held.dtype, val.rank, True)) if (
                not held.dims) else Val(val.text, (), held.dtype, val.rank, True)  # fmt: skip
        return self.spread(scalars.cast_to(val, held.dtype, self.use), held.dims)

    def assign(self, held: list[Val], yields: list[Val]) -> None:
        """All states at once: one is overwritten after the last yield that reads it."""
        todo = [(h.text, y) for h, y in zip(held, yields) if h.text != y.text]
        while todo:
            free = [n for n, (name, _) in enumerate(todo)
                    if not any(name in words(y.text) for m, (_, y) in enumerate(todo) if m != n)]
            if not free:
                name, y = todo[0]
                todo[0] = (name, self.named(y, f"next_{name}"))
                if todo[0][1].text == y.text:  # another state's old value: keep it aside
                    aside = self.scopes.fresh(f"last_{y.text}")
                    self.scopes.line(f"{aside} = {y.text}")
                    todo[0] = (name, Val(aside, y.dims, y.dtype))
                continue
            name, y = todo.pop(free[0])
            self.scopes.line(f"{name} = {y.text}")


def _goes_on(fold: Node) -> bool:
    """Whether products go on from those of another loop. Behind that loop, outside one of its own,
    the compiler may want the sum in two layouts, and then waits for it twice (`triton_faults`)."""
    inits = fold.src[2 * fold.attr[2] :][: len(fold.attr[1])]
    return any(i.op == "get" and i.src[0].op == "fold" for i in inits) and any(
        n.op == "dot" for n in walk(*fold.src)
    )


def is_cast(value: Node, dtype: str) -> bool:
    return value.op == "map" and value.attr[0] == f"cast:{dtype}"


def _number(val: Val) -> float:
    return float(val.text.removeprefix('float("').removesuffix('")'))
