"""Kept values of an algebra program in, one kernel of nests out, in dependence order.

Every kept value and every output gets a nest. A fold becomes a serial loop over its steps: its
states live in scratch, the loop holds the nests of the body and of the new states, and stacked
results are stored at the step.

    S = fold t from 0: yield f(S, x[t]);  stack g(S)
    ->  forall d: store S[d] = 0
        forall t: { forall d: store out[t, d] = g(S)[d];  forall d: store S[d] = f(S, x[t])[d] }

A new state overwrites the old one where nothing reads the old one any more, and at its own
coordinates alone; else it gets a buffer of its own and is copied at the end of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autosched.ir.expand import Expander, Home, fresh
from autosched.ir.extent import as_node
from autosched.ir.loops import as_nest, buffers_read, load_starts
from autosched.ir.node import Extent, IRError, Node, Program, walk
from autosched.ir.ops import buffer, forall, get, iota, kernel, load, store

Dims = tuple[str, ...]


def lower(program: Program, kept: Sequence[Node]) -> Program:
    """The tile program in which the `kept` values, the folds and the outputs have buffers."""
    return _Lowering(program, kept).program_()


def fold_parts(node: Node) -> tuple[tuple[Node, ...], ...]:
    """(bounds, initial states, new states, stacked results) of a fold."""
    _, names, n_intervals, _ = node.attr
    first, n = 2 * n_intervals, len(names)
    src = node.src
    return src[:first], src[first : first + n], src[first + n : first + 2 * n], src[first + 2 * n :]


def fold_body(node: Node) -> set[Node]:
    """What depends on the step or the state of a fold, and so can't live outside of it.

    Another fold over an axis of the same name, which needs neither, is whole before this one
    starts: its steps are its own, and what is stacked along them is read.
    """
    axis, names, _, _ = node.attr
    _, _, yields, outs = fold_parts(node)
    found: set[Node] = set()
    stack = [*yields, *outs]
    while stack:
        n = stack.pop()
        if n not in found and (n.carries & set(names) or axis in dict(n.free)) and not (
            n.op == "fold" and _apart(n, axis, names)
        ):
            found.add(n)
            stack.extend(n.src)
    return found


def _apart(node: Node, axis: str, names: Sequence[str]) -> bool:
    """Whether a fold over `axis` needs no step of another one, nor its states."""
    bounds, inits, _, _ = fold_parts(node)
    start = {a for n in (*bounds, *inits) for a, _ in n.free}
    return node.attr[0] == axis and axis not in start and not node.carries & set(names)


def owners(program: Program) -> dict[Node, Node | None]:
    """{value: the innermost fold in whose body it is}; None where several folds share it."""
    folds = [n for n in walk(*program.body) if n.op == "fold"]
    bodies = {f: fold_body(f) - _also_outside(f, folds, program) for f in folds}
    out: dict[Node, Node | None] = {}
    for f in reversed(folds):  # outer folds first
        for n in bodies[f]:
            inside = n in out and out[n] is not None and f in bodies[out[n]]
            out[n] = f if n not in out or inside else None
    return out


def _also_outside(fold: Node, folds: Sequence[Node], program: Program) -> set[Node]:
    """Other folds that something beside this one reads, too, and that need none of its states:
    they are made before it, at all of its steps."""
    states = set(fold.attr[1])
    free = {f for f in folds if f is not fold and not f.carries & states}
    if not free:
        return set()
    seen: set[Node] = set()
    stack = list(program.body)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            bounds, inits, _, _ = fold_parts(fold) if node is fold else (node.src, (), (), ())
            stack.extend((*bounds, *inits))
    return free & seen


@dataclass(frozen=True)
class _Frame:
    """What surrounds a statement: homes of values, coordinates of steps, names of their loops."""

    homes: Mapping[Node, Home]
    steps: Mapping[str, Node]

    @property
    def pins(self) -> tuple[tuple[str, Node], ...]:
        return tuple(sorted(self.steps.items()))


class _Lowering:
    """Writes statements consumers first, because a kept value takes the axis names of its first
    reader: a loop can be shared by two nests only where it has one name in both."""

    def __init__(self, program: Program, kept: Sequence[Node]) -> None:
        self.source = program
        self.owner = owners(program)
        self.order = axis_order(program)
        self.names: dict[Node, dict[str, str]] = {}
        chosen = set(kept)
        self.items = [n for n in walk(*program.body) if n in chosen or n.op == "fold"]
        self.numbers = {n: i for i, n in enumerate(self.items)}
        self.direct = {
            value: (buffer(o.name, o.extents, o.dtype, "output"), o.dims)
            for o, value in zip(program.outputs, program.body)
            if self._is_stacked(value) and set(o.dims) == set(value.names)
        }

    def program_(self) -> Program:
        source = self.source
        frame = _Frame(self._homes(None, {}), {})
        body: list[Node] = []
        for value, out in reversed(list(zip(source.body, source.outputs))):
            handle = buffer(out.name, out.extents, out.dtype, "output")
            if self.direct.get(value, (None,))[0] is handle:
                continue
            env = {a: iota(a, e) for a, e in zip(out.dims, out.extents)}
            body.append(self._nest(value, out.dims, env, handle, frame))
        body = [*self._items(None, frame), *body[::-1]]
        return Program("tile", source.inputs, source.outputs, (kernel("main", body),))

    @staticmethod
    def _is_stacked(value: Node) -> bool:
        """Whether a value is just a stacked result of a fold."""
        fold = value.src[0] if value.op == "get" else value
        index = value.attr[0] if value.op == "get" else 0
        return fold.op == "fold" and index >= len(fold.attr[1]) and not value.carries

    # ---- homes ----------------------------------------------------------------------------

    def _homes(self, owner: Node | None, steps: Mapping[str, Node]) -> dict[Node, Home]:
        """Homes of what is made in the body of `owner`."""
        homes: dict[Node, Home] = {}
        pins = tuple(sorted(steps.items()))
        for node in self.items:
            if self.owner.get(node) is not owner:
                continue
            number = self.numbers[node]
            if node.op != "fold":
                homes[node] = self._home(node, f"t{number}", "scratch", steps, pins)
                continue
            n_states = len(node.attr[1])
            for k in range(len(node.types)):
                value = get(node, k)
                if value in self.direct:
                    homes[value] = Home(*self.direct[value])
                    continue
                name = f"s{number}.{k}" if k < n_states else f"o{number}.{k - n_states}"
                homes[value] = self._home(value, name, "scratch", steps, pins)
        return homes

    def _home(
        self,
        value: Node,
        name: str,
        where: str,
        steps: Mapping[str, Node],
        pins: tuple[tuple[str, Node], ...],
    ) -> Home:
        dims = tuple(a for a in value.names if a not in steps)
        dims = tuple(sorted(dims, key=lambda a: self.order.get(a, len(self.order))))
        extents = [value.extent(a) for a in dims] or [1]
        return Home(buffer(name, extents, value.dtype, where), dims, pins)

    # ---- statements -----------------------------------------------------------------------

    def _items(self, owner: Node | None, frame: _Frame) -> list[Node]:
        """The statements that make what belongs to the body of `owner`."""
        out: list[Node] = []
        for node in reversed([n for n in self.items if self.owner.get(n) is owner]):
            if node.op == "fold":
                out[:0] = self._fold(node, frame)
                continue
            home = frame.homes[node]
            env = self._env(home.dims, node, [node], frame)
            homes = {k: v for k, v in frame.homes.items() if k is not node}
            inner = _Frame(homes, frame.steps)
            out.insert(0, self._nest(node, home.dims, env, home.handle, inner))
        return out

    def _env(
        self, dims: Iterable[str], like: Node, readers: Sequence[Node], frame: _Frame
    ) -> dict[str, Node]:
        """A coordinate for each axis, named as the first reader of a value names it."""
        extents = {a: e for t in like.types for a, e in t.axes}
        wanted: dict[str, str] = {}
        for reader in readers:
            for axis, name in self.names.get(reader, {}).items():
                if name not in wanted.values():
                    wanted.setdefault(axis, name)
        named = {a: wanted.get(a, a) for a in dims}
        steps = {str(at.attr[0]) for at in frame.steps.values()}
        if len(set(named.values())) < len(named) or steps & set(named.values()):
            named = {a: fresh(a, steps) for a in named}
        return {a: iota(n, extents[a]) for a, n in named.items()}

    def _nest(
        self, value: Node, dims: Dims, env: Mapping[str, Node], handle: Node, frame: _Frame
    ) -> Node:
        at = {**frame.steps, **env}
        loops = {str(x.attr[0]) for x in at.values() if x.op == "iota"}
        expanded = Expander(frame.homes, self.names, loops).at(value, at)
        origin = [as_node(0)] * len(handle.attr[1])
        return _loops(dims, env, store(handle, expanded, [env[a] for a in dims] or origin))

    def _fold(self, node: Node, frame: _Frame) -> list[Node]:
        axis, names, n_intervals, _ = node.attr
        bounds, inits, yields, outs = fold_parts(node)
        if any(b.free for b in bounds):
            raise IRError(f"the fold over {axis} has bounds that vary")
        results = [get(node, k) for k in range(len(node.types))]
        every = {a: None for r in results for a in r.names if a != axis and a not in frame.steps}
        env = self._env(every, node, results, frame)
        extent = _extent_of(node, axis)
        taken = {str(x.attr[0]) for x in (*env.values(), *frame.steps.values())}
        step = iota(fresh(axis, taken), extent)
        steps = {**frame.steps, axis: step}
        n = len(names)
        states = {_carry_of(node, name): frame.homes[r] for name, r in zip(names, results)}
        homes = {**frame.homes, **states, **self._homes(node, steps)}
        inner = _Frame({k: v for k, v in homes.items() if k is not None}, steps)
        homes_of = [frame.homes[r] for r in results]
        new = [self._nest(y, h.dims, env, h.handle, inner) for y, h in zip(yields, homes_of[:n])]
        stacked = [self._stack(out, axis, h, env, inner) for out, h in zip(outs, homes_of[n:])]
        made = self._items(node, inner)
        body = [*made, *stacked, *_in_place(new)]
        start = [self._nest(i, h.dims, env, h.handle, frame) for i, h in zip(inits, homes_of[:n])]
        loops = [
            forall(step.attr[0], bounds[2 * k], bounds[2 * k + 1], "serial", body)
            for k in range(n_intervals)
        ]
        return [*start, *loops]

    def _stack(
        self, out: Node, axis: str, home: Home, env: Mapping[str, Node], frame: _Frame
    ) -> Node:
        """The store of a stacked result at the step."""
        own = tuple(a for a in home.dims if a != axis)
        at = {**frame.steps, **env}
        loops = {str(x.attr[0]) for x in at.values() if x.op == "iota"}
        value = Expander(frame.homes, self.names, loops).at(out, at)
        return _loops(own, env, store(home.handle, value, [at[a] for a in home.dims]))


def _loops(dims: Dims, env: Mapping[str, Node], stmt: Node) -> Node:
    for axis in reversed(dims):
        name, extent, _ = env[axis].attr
        stmt = forall(name, 0, as_node(extent), "serial", [stmt])
    return stmt


def _carry_of(node: Node, name: str) -> Node | None:
    """The state as the body reads it; None where it is never read."""
    _, _, yields, outs = fold_parts(node)
    found = [n for n in walk(*yields, *outs) if n.op == "carry" and n.attr[0] == name]
    return found[0] if found else None


def _extent_of(node: Node, axis: str) -> Extent:
    bounds, _, yields, outs = fold_parts(node)
    for value in (*yields, *outs):
        if axis in dict(value.free):
            return dict(value.free)[axis]
    last = bounds[-1]
    return int(last.attr[0]) if last.op == "const" else last


def _in_place(stores: list[Node]) -> list[Node]:
    """The new states in an order in which each may overwrite the old one; copies where none is."""
    left = list(stores)
    body: list[Node] = []
    copies: list[Node] = []
    while left:
        free = [s for s in left if _may_overwrite(s, [o for o in left if o is not s])]
        stmt = free[0] if free else left[0]
        left.remove(stmt)
        if free:
            body.append(stmt)
            continue
        nest = as_nest(stmt)
        assert nest is not None
        name, extents, dtype, home = nest.handle.attr
        spare = buffer(f"{name}.new", extents, dtype, home)
        at = nest.starts
        body.append(_rebuilt(stmt, store(spare, nest.value, at)))
        copies.append(_rebuilt(stmt, store(nest.handle, load(spare, at), at)))
    return [*body, *copies]


def _may_overwrite(stmt: Node, others: Sequence[Node]) -> bool:
    """Whether no other statement reads the state, and this one only where it stores it."""
    inner = stmt
    while inner.op == "forall":
        inner = inner.src[2]
    handle, starts = inner.src[0], inner.src[2:]
    if any(handle in buffers_read(o) for o in others):
        return False
    reads = [n for n in walk(inner.src[1]) if n.op == "load" and n.src[0] is handle]
    return all(load_starts(n) == starts for n in reads)


def _rebuilt(stmt: Node, inner: Node) -> Node:
    """The loops of `stmt` around another store."""
    if stmt.op != "forall":
        return inner
    return Node("forall", (*stmt.src[:2], _rebuilt(stmt.src[2], inner)), stmt.attr)


def axis_order(program: Program) -> dict[str, int]:
    """Outputs first in memory order, then inputs: the order of axes in scratch."""
    names: dict[str, int] = {}
    for out in program.outputs:
        for axis in out.dims:
            names.setdefault(axis, len(names))
    for node in walk(*program.body):
        for axis, _ in node.free:
            names.setdefault(axis, len(names))
    return names
