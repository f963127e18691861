"""Algebra values at blocks of coordinates: from a value over axes to a box over tile axes.

`Blocks.at(node, env)` is the value of `node` where each of its axes reads as `env[axis]`, an int32
expression over loops and tile axes. Inputs become masked loads, a reduce runs over a box of its
axis, or over boxes in a loop; a fold stays a loop whose states are boxes. What lies beyond the end
of an axis is computed from zeros and never reaches a reduce or a store.

    sum k x[m,k] w[k,n]   at m = m.o*BM + m.i, n = n.o*BN + n.i, k in blocks of BK:
    fold k.o from 0:  acc + sum k.i { load x[m, k.o*BK + k.i]  *  load w[k.o*BK + k.i, n] }
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autosched.ir.block_axes import BlockAxes
from autosched.ir.expand import Home, fresh
from autosched.ir.extent import as_extent, as_node, ext_cdiv, is_extent, simplify
from autosched.ir.linear import range_of
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Extent, IRError, Node, walk
from autosched.ir.ops import (
    Dim,
    carry,
    cast,
    const,
    fold,
    get,
    iota,
    load,
    map_,
    maximum,
    minimum,
    reaxis,
    where,
)
from autosched.ir.products import DotTypes, as_dot
from autosched.ir.scans import as_fold

Env = Mapping[str, Node]


class NoBlock(Exception):
    """A value that has no form over boxes; the message says why."""


def closed(axis: str, extent: Extent) -> int:
    """The extent of an axis that is to be one box."""
    if isinstance(extent, Node):
        raise NoBlock(f"the axis {axis} has an open extent, so no box can hold all of it")
    return extent


_OPEN = const(-1, "int32")  # the coordinate of an axis for which a loop has yet to choose one


@dataclass(frozen=True)
class Serial:
    """An axis that one program walks block by block: (the loop, its trips, last block first)."""

    loop: str
    trips: Extent
    backward: bool


class _ElsewhereError(Exception):
    """A state is read at coordinates where the loop being expanded does not make it."""

    def __init__(self, state: str, axis: str, at: Node) -> None:
        super().__init__(f"the state {state} is read at other places along {axis} than it is made")
        self.state, self.axis, self.at = state, axis, at


@dataclass(frozen=True)
class _Pin:
    """A state of a fold that is being expanded: its new name, and where it is made."""

    state: str
    coords: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class _Bound:
    """What holds where `test` does: `clamped`, that is min(at, end - 1), is `at`."""

    clamped: Node
    at: Node
    test: Node


@dataclass
class Blocks(BlockAxes):
    """Expands values of one kernel.

    sizes: block by reduced axis, 0 or absent for the whole axis at once.
    homes: where values made by earlier kernels are stored.
    own: the coordinates of the kernel's own axes, which states of folds share.
    steps: loops over the steps of folds. serial: axes that one program walks block by block, with
    the loop, and whether the last block comes first.
    """

    sizes: Mapping[str, Extent]
    homes: Mapping[Node, Home]
    dots: DotTypes
    own: dict[str, Node] = field(default_factory=dict)
    steps: set[str] = field(default_factory=set)
    serial: dict[str, Serial] = field(default_factory=dict)
    memo: dict[tuple[object, ...], Node] = field(default_factory=dict)
    states: set[str] = field(default_factory=set)
    pins: Mapping[str, _Pin] = field(default_factory=dict)
    bounds: tuple[_Bound, ...] = ()

    # ---- values -------------------------------------------------------------------------------

    def at(self, node: Node, env: Env) -> Node:
        """`node` at `env`, which must cover its free axes."""
        missing = [a for a, _ in node.free if a not in env]
        if missing:
            raise IRError(f"no coordinate for the axes {missing} of {node.op}")
        here = {a: env[a] for a, _ in node.free}
        states = tuple(self.pins[c] for c in sorted(node.carries) if c in self.pins)
        along = {a for e in here.values() for a, _ in e.free}
        known = tuple(b for b in self.bounds if along & {a for a, _ in b.at.free})
        key = (node, tuple(here.items()), states, known)
        if key not in self.memo:
            self.memo[key] = self._at(node, here)
        return self.memo[key]

    def _at(self, node: Node, env: dict[str, Node]) -> Node:
        home = self.homes.get(node)
        if home is not None:
            return self.read(home.handle, [env[d] for d in home.dims])
        match node.op:
            case "input":
                return self.read(node, [env[axis] for axis, _ in node.attr[1]])
            case "iota":
                return cast(self._unclamped(env[node.attr[0]]), node.attr[2])
            case "reaxis":
                axes = dict(zip(node.attr[0], (self._position(e, env) for e in node.src[1:])))
                return self.at(node.src[0], {**env, **axes})
            case "take":
                index = cast(self._position(node.src[1], env), "int32")
                return self.at(node.src[0], {**env, node.attr[0]: index})
            case "reduce":
                return self._reduce(node, env)
            case "fold":
                return self._result(node, 0, env)
            case "scan":
                return self._scanned(node, 0, env)
            case "carry":
                return self._carry(node, env)
            case "get":
                return self._get(node, env)
            case "map" if node.attr[0] == "where":
                return self._choice(node, env)
            case "map" | "const" | "knob":
                made = Node(node.op, tuple(self.at(s, env) for s in node.src), node.attr)
                return self._unclamped(made) if made.dtype == "int32" else made
        raise NoBlock(f"a {node.op} has no form over boxes")

    def _choice(self, node: Node, env: dict[str, Node]) -> Node:
        """A choice by `at < end`: inside of it, a position clamped to end - 1 is not clamped."""
        test = self.short(self.at(node.src[0], env))
        if test.op == "const":
            return self.at(node.src[1] if test.attr[0] else node.src[2], env)
        bound = _bound(test)
        outside = self.bounds
        if bound is not None and bound not in outside:
            self.bounds = (*outside, bound)
        yes = self.at(node.src[1], env)
        self.bounds = outside
        return where(test, yes, self.at(node.src[2], env))

    def _get(self, node: Node, env: dict[str, Node]) -> Node:
        (source,), (index,) = node.src, node.attr
        if source.op == "fold":
            return self._result(source, index, env)
        if source.op == "scan":
            return self._scanned(source, index, env)
        return get(self.at(source, env), index)

    def read(self, handle: Node, starts: list[Node]) -> Node:
        """The elements at `starts`, and 0 where a coordinate lies beyond the end of its axis."""
        starts = [self.short(s) for s in starts]
        tests = self._needed(starts)
        starts = [self._unclamped(s) for s in starts]
        mask = self.conditions(*starts)
        for test in tests:
            mask = test if mask is None else mask & test
        fill = const(0, handle.dtype)
        starts, dims = self.boxed(starts)
        return load(handle, starts, dims, mask, fill if mask is not None else None)

    def boxed(self, places: Sequence[Node]) -> tuple[list[Node], list[Dim | None]]:
        """Starts and dimensions of an access: a place along one tile axis alone is a box; whatever
        else it is, is a gather."""
        starts: list[Node] = []
        dims: list[Dim | None] = []
        for n, place in enumerate(places):
            box = self._along(place)
            others = {a for m, s in enumerate(places) if m != n for a, _ in s.free}
            alone = box is not None and box[1] not in others
            starts.append(box[0] if box is not None and alone else place)
            dims.append((box[1], box[2], 1) if box is not None and alone else None)
        return starts, dims

    def _position(self, node: Node, env: Env) -> Node:
        """A position as it is written: `read` drops its clamps, and masks what they were for."""
        outside, self.bounds = self.bounds, ()
        at = self.at(node, env)
        self.bounds = outside
        return at

    def _needed(self, exprs: Sequence[Node]) -> list[Node]:
        """The tests that the clamps in the expressions stand for."""
        inside = set(walk(*exprs))
        return [b.test for b in self.bounds if b.clamped in inside]

    def _unclamped(self, at: Node) -> Node:
        """The position without clamps that the tests around it make needless; loads of positions
        that were clamped are masked by these tests."""
        at = self.short(at)
        memo = {b.clamped: b.at for b in self.bounds}
        if not memo:
            return at
        for node in walk(at):
            if node in memo:
                continue
            src = tuple(memo[s] for s in node.src)
            made = node if src == node.src else Node(node.op, src, node.attr)
            if node.op == "load" and made is not node:
                made = _masked(made, self._needed(node.src[1:]))
            memo[node] = made
        return self.short(memo[at])

    # ---- reduces ------------------------------------------------------------------------------

    def _reduce(self, node: Node, env: dict[str, Node]) -> Node:
        monoid, axes = node.attr
        if len(axes) > 1:
            if len(node.src) > 1:
                raise NoBlock(f"a {monoid} of several components over {len(axes)} axes")
            inner = Node("reduce", node.src, (monoid, axes[1:]))
            return self._reduce(Node("reduce", (inner,), (monoid, axes[:1])), env)
        (axis,) = axes
        extent = next(e for s in node.src for a, e in s.free if a == axis)
        size = self.sizes.get(axis, 0)
        inside = {a for s in node.src for a, _ in s.free} - {axis}
        taken = {a for x in inside for a, _ in env[x].free}
        fits = isinstance(size, int) and isinstance(extent, int) and size >= extent
        if size == 0 or fits:
            at = self.whole(axis, closed(axis, extent), taken)
            return self._box_reduce(node, {**env, axis: at}, self.box(at))
        outer, at = self.blocked(axis, extent, size, "reduce", taken)
        part = self._box_reduce(node, {**env, axis: at}, self.box(at))
        return self._accumulate(node, part, outer, ext_cdiv(extent, size))

    def _box_reduce(self, node: Node, env: Env, name: str) -> Node:
        """The reduce over one box; what is beyond the end of the axis counts as the identity."""
        monoid, (axis,) = node.attr
        if monoid == "sum":
            bare = self._with_axis(self.at(node.src[0], env), env[axis], name)
            found = as_dot(bare, name, self.valid.get(name), self.tiles, self.dots)
            if found is not None:
                return cast(found, node.dtype)
        return Node("reduce", self._filled(node, monoid, env, axis, name), (monoid, (name,)))

    def _filled(
        self, node: Node, monoid: str, env: Env, axis: str, name: str
    ) -> tuple[Node, ...]:
        """The operands of a reduce or scan over one box of an axis, the identity beyond its end."""
        values = tuple(self._with_axis(self.at(s, env), env[axis], name) for s in node.src)
        inside = self.valid.get(name)
        if inside is None:
            return values
        ids = [dtype_limit(i, v.dtype) for i, v in zip(MONOIDS[monoid].identity, values)]
        return tuple(where(inside, v, const(i, v.dtype)) for v, i in zip(values, ids))

    @staticmethod
    def _with_axis(value: Node, at: Node, name: str) -> Node:
        """A constant under a sum counts as often as the axis has elements."""
        if name in value.names:
            return value
        if value.dtype == "bool":
            return value | (at < 0)
        return value + cast(at * 0, value.dtype)

    def _accumulate(self, node: Node, part: Node, outer: str, trips: Extent) -> Node:
        monoid = node.attr[0]
        spec = MONOIDS[monoid]
        parts = tuple(get(part, k) for k in range(len(node.types)))
        names = [self._state(monoid) for _ in parts]
        old = tuple(carry(n, p.dtype, self.boxes(p)) for n, p in zip(names, parts))
        new = spec.combine(map_, old, parts)
        starts = [const(dtype_limit(i, p.dtype), p.dtype) for i, p in zip(spec.identity, parts)]
        states = {n: (s, y) for n, s, y in zip(names, starts, new)}
        return fold(outer, [(0, as_node(trips))], states)

    def _state(self, wanted: str) -> str:
        name = fresh(wanted, self.states)
        self.states.add(name)
        return name

    # ---- folds --------------------------------------------------------------------------------

    def _result(self, node: Node, index: int, env: dict[str, Node]) -> Node:
        """A result of a fold at `env`; axes along which the loop has to make all of it are read
        there from the whole box."""
        axis = node.attr[0]
        loop, coords = self._fold(node, env)
        moved = {
            self.box(coords[a]): self._within(env[a], coords[a])
            for a, _ in node.types[index].axes
            if a != axis and env[a] is not coords[a]
        }
        return reaxis(get(loop, index), moved)

    def _fold(self, node: Node, env: dict[str, Node]) -> tuple[Node, dict[str, Node]]:
        """The loop of a fold and the coordinates that it is made at. Axes that `env` lacks are
        those of the kernel; where it has none of that name, the one place that the steps read.
        Axes that are read at several places, or where `env` varies with the step, are whole."""
        axis, names = node.attr[:2]
        extents = {a: e for kind in node.types for a, e in kind.axes if a != axis}
        step = iota(self.name(f"{axis}.s", axis, self._steps(node)), self._steps(node))
        if axis in env and env[axis] is not step:
            raise NoBlock(f"the loop over {axis} is read at another step than the one it is at")
        coords = {}
        for a, e in {**extents, **{a: 0 for a in env if a != axis}}.items():
            at = env.get(a, self.own.get(a, _OPEN))
            varies = step.attr[0] in dict(at.free)
            coords[a] = self.whole(a, closed(a, e)) if varies else at
        while True:
            try:
                made = self._fold_at(node, coords, step)
            except _ElsewhereError as wish:
                if wish.state not in names:
                    raise
                a = wish.axis
                free = coords[a] is _OPEN and not self._inner(wish.at, step)
                coords[a] = wish.at if free else self.whole(a, closed(a, extents[a]))
                continue
            left = [a for a, at in coords.items() if at is _OPEN]
            if not left:
                return made, coords
            coords |= {a: self.whole(a, closed(a, extents[a])) for a in left}

    def _fold_at(self, node: Node, coords: dict[str, Node], step: Node) -> Node:
        _, names, n_intervals, _ = node.attr
        n = len(names)
        bounds, rest = node.src[: 2 * n_intervals], node.src[2 * n_intervals :]
        inits, yields, outs = rest[:n], rest[n : 2 * n], rest[2 * n :]
        key = (node, tuple(sorted(((a, id(e)) for a, e in coords.items()))))
        if key not in self.memo:
            taken = set(self.states)
            pins = {
                name: _Pin(self._state(name), tuple((a, coords[a]) for a, _ in kind.axes))
                for name, kind in zip(names, node.types)
            }
            lo_hi = [self.at(b, coords) for b in bounds]
            if any(self.boxes(b) for b in lo_hi):
                raise NoBlock(f"the bounds of the loop over {step.attr[0]} vary within a box")
            starts = [self.at(i, coords) for i in inits]
            outside, self.pins = self.pins, {**self.pins, **pins}
            inner = {**coords, node.attr[0]: step}
            try:
                steps = [self.at(y, inner) for y in yields]
                stacked = [self.at(o, inner) for o in outs]
            except _ElsewhereError:
                self.states = taken
                raise
            finally:
                self.pins = outside
            made = {p.state: pair for p, *pair in zip(pins.values(), starts, steps)}
            pairs = list(zip(lo_hi[::2], lo_hi[1::2]))
            self.memo[key] = fold(step.attr[0], pairs, made, stacked)
        return self.memo[key]

    def _carry(self, node: Node, env: dict[str, Node]) -> Node:
        """A state inside the body of its fold: a box over the tile axes of its coordinates."""
        name, dtype, axes = node.attr
        if name not in self.pins:
            raise NoBlock(f"the state {name} is read outside of its loop")
        pin = self.pins[name]
        extents = dict(axes)
        moved = {}
        for a, at in pin.coords:
            if a in env and env[a] is not at:
                if at is not self.whole(a, closed(a, extents[a])):
                    raise _ElsewhereError(name, a, env[a])
                moved[self.box(at)] = self._within(env[a], at)
        boxes = {a: e for _, at in pin.coords for a, e in self.boxes(at).items()}
        return reaxis(carry(pin.state, dtype, boxes), moved)

    def _inner(self, at: Node, step: Node) -> bool:
        """Whether a coordinate is known inside of a loop alone."""
        outer = {a for own in self.own.values() for a, _ in own.free}
        return bool(at.carries or step.attr[0] in dict(at.free) or set(at.names) - outer)

    def _within(self, at: Node, box: Node) -> Node:
        """A coordinate that is inside of a box, also where nothing valid is read."""
        last = self.tiles[self.box(box)]
        assert isinstance(last, int)
        if at.op == "iota" and at.attr[1] == last:
            return at
        lo, hi = range_of(at)
        at = at if lo is not None and lo >= 0 else maximum(at, 0)
        return at if hi is not None and hi < last else minimum(at, last - 1)

    # ---- scans --------------------------------------------------------------------------------

    def _scanned(self, node: Node, index: int, env: dict[str, Node]) -> Node:
        """A result of a scan at `env`: of the loop over its steps, of a loop over blocks, or of a
        box of its whole axis, whichever `env` is at."""
        _, axis, _, reverse = node.attr
        at = env[axis]
        if at.op == "iota" and at.attr[0] in self.steps:
            return self.at(as_fold(node)[index], env)
        found = self.serial.get(axis)
        if found is not None and at is self.own.get(axis) and found.backward == reverse:
            return get(self._block_scan(node, env, found), len(node.types) + index)
        taken = {a for x, e in env.items() if x != axis for a, _ in e.free}
        box = self.whole(axis, closed(axis, node.types[0].extent(axis)), taken)
        made = self._box_scan(node, {**env, axis: box}, self.box(box))
        if box is at:
            return get(made, index)
        return reaxis(get(made, index), {self.box(box): self._within(at, box)})

    def _box_scan(self, node: Node, env: Env, name: str) -> Node:
        """The scan of one box; what is beyond the end of the axis counts as the identity."""
        monoid, axis, exclusive, reverse = node.attr
        values = self._filled(node, monoid, env, axis, name)
        return Node("scan", values, (monoid, name, exclusive, reverse))

    def _block_scan(self, node: Node, env: Env, serial: Serial) -> Node:
        """The loop over blocks of a scan, stacked: what came before, with the scan of the block."""
        monoid, axis, *_ = node.attr
        spec = MONOIDS[monoid]
        name = self.box(env[axis])
        inner = self._box_scan(node, env, name)
        values = self._filled(node, monoid, env, axis, name)
        whole = Node("reduce", values, (monoid, (name,)))
        count = range(spec.arity)
        names = [self._state(monoid) for _ in values]
        old = tuple(
            carry(n, t.dtype, {a: e for a, e in t.axes if a in self.tiles})
            for n, t in zip(names, whole.types)
        )
        joined = [tuple(get(x, k) for k in count) for x in (whole, inner)]
        order = [(p, old) if serial.backward else (old, p) for p in joined]
        new, outs = (spec.combine(map_, *pair) for pair in order)
        ids = [const(dtype_limit(i, v.dtype), v.dtype) for i, v in zip(spec.identity, values)]
        states = {n: (s, y) for n, s, y in zip(names, ids, new)}
        return fold(serial.loop, [(0, as_node(serial.trips))], states, outs)

    def _along(self, start: Node) -> tuple[Node, str, Extent] | None:
        """(s, axis, size) where `start` is s + the coordinate of one tile axis."""
        terms = _terms(start)
        tiles = [t for t in terms if t.op == "iota" and t.attr[0] in self.tiles]
        if len(tiles) != 1 or tiles[0].dtype != "int32":
            return None
        axis, size, _ = tiles[0].attr
        rest = [t for t in terms if t is not tiles[0]]
        if any(axis in dict(t.free) for t in rest):
            return None
        return functools.reduce(lambda a, b: a + b, rest) if rest else as_node(0), axis, size

    @staticmethod
    def _steps(node: Node) -> Extent:
        """The extent of a fold's axis."""
        axis = node.attr[0]
        for s in node.src[2 * node.attr[2] :]:
            if axis in dict(s.free):
                return dict(s.free)[axis]
        last = node.src[2 * node.attr[2] - 1]
        if not is_extent(last):
            raise NoBlock(f"nothing tells how long the loop over {axis} is")
        return as_extent(last)


def _masked(read: Node, tests: Sequence[Node]) -> Node:
    """The load with tests added to its mask."""
    dims, masked = read.attr
    starts = read.src[1 : 1 + len(dims)]
    mask, fill = read.src[-2:] if masked else (None, const(0, read.dtype))
    for test in tests:
        mask = test if mask is None else mask & test
    return load(read.src[0], starts, dims, mask, fill if mask is not None else None)


def _bound(test: Node) -> _Bound | None:
    if test.op != "map" or test.attr[0] != "lt":
        return None
    at, end = test.src
    if at.dtype != "int32" or not at.free or not is_extent(end):
        return None
    clamped = simplify(minimum(at, end - 1))
    if clamped.op == "const":  # as any other number that is equal to it
        return None
    return _Bound(clamped, at, test)


def _terms(node: Node) -> list[Node]:
    if node.op == "map" and node.attr[0] == "add":
        return [t for s in node.src for t in _terms(s)]
    return [node]
