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
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from autosched.ir.expand import Home, fresh
from autosched.ir.extent import as_node, ext_cdiv, simplify
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Extent, IRError, Node, replace_nodes, walk
from autosched.ir.ops import carry, cast, const, fold, get, iota, load, map_, minimum, where
from autosched.ir.products import DotTypes, as_dot

Env = Mapping[str, Node]


class NoBlock(Exception):
    """A value that has no form over boxes; the message says why."""


def power_of_two(extent: int) -> int:
    """The least power of two that covers the extent."""
    return 1 << max(extent - 1, 0).bit_length()


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
class Blocks:
    """Expands values of one kernel.

    sizes: block by reduced axis, 0 or absent for the whole axis at once.
    homes: where values made by earlier kernels are stored.
    own: the coordinates of the kernel's own axes, which states of folds share.
    tiles: extents of the tile axes in use. valid: the condition under which a tile axis lies
    inside of its own axis; one without a row always does. claims: what a name stands for.
    """

    sizes: Mapping[str, Extent]
    homes: Mapping[Node, Home]
    dots: DotTypes
    own: dict[str, Node] = field(default_factory=dict)
    tiles: dict[str, Extent] = field(default_factory=dict)
    valid: dict[str, Node] = field(default_factory=dict)
    claims: dict[str, tuple[object, ...]] = field(default_factory=dict)
    memo: dict[tuple[object, ...], Node] = field(default_factory=dict)
    states: set[str] = field(default_factory=set)
    pins: Mapping[str, _Pin] = field(default_factory=dict)
    bounds: tuple[_Bound, ...] = ()

    # ---- axes ---------------------------------------------------------------------------------

    def name(self, wanted: str, *claim: object, taken: Collection[str] = ()) -> str:
        """`wanted`, or it with a number, that stands for nothing else and is not `taken`."""
        others = {n for n, c in self.claims.items() if c != claim}
        found = fresh(wanted, {*others, *taken})
        self.claims[found] = claim
        return found

    def block(self, extent: int, size: Extent, name: str, start: Node) -> Node:
        """The coordinates start + [0, size) of an axis, and their condition in `valid`."""
        self.tiles[name] = size
        at = simplify(start + iota(name, size))
        inside = simplify(at < extent)
        if not (inside.op == "const" and inside.attr[0]):
            self.valid[name] = inside
        return at

    def whole(self, axis: str, extent: int, taken: Collection[str] = ()) -> Node:
        """All coordinates of an axis as one box."""
        size = power_of_two(extent)
        name = self.name(f"{axis}.t", axis, extent, taken=taken)
        return self.block(extent, size, name, as_node(0))

    def blocked(
        self, axis: str, extent: int, size: Extent, kind: str, taken: Collection[str] = (),
        reverse: bool = False,
    ) -> tuple[str, Node]:  # fmt: skip
        """(the loop over blocks, the coordinates of a block) of an axis; kind: whose loop it is;
        reverse: the last block comes first."""
        trips = ext_cdiv(extent, size)
        outer = self.name(f"{axis}.o", axis, extent, size, kind, taken=taken)
        name = self.name(f"{axis}.i", axis, extent, size, kind, taken=taken)
        number = iota(outer, trips)
        if reverse:
            number = as_node(trips) - 1 - number
        return outer, self.block(extent, size, name, number * as_node(size))

    def box(self, at: Node) -> str:
        """The one tile axis of a block's coordinates."""
        (name,) = [a for a, _ in at.free if a in self.tiles]
        return name

    def boxes(self, value: Node) -> dict[str, Extent]:
        """The axes of a value that are tiles, not loops."""
        return {a: e for a, e in value.axes if a in self.tiles}

    def conditions(self, *exprs: Node) -> Node | None:
        """Whether all coordinates that the expressions depend on lie inside of their axes."""
        axes = sorted({a for e in exprs for a, _ in e.free})
        tests = [self.valid[a] for a in axes if a in self.valid]
        return functools.reduce(lambda a, b: a & b, tests) if tests else None

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
            return self.read(home.handle, [env[d] for d in home.dims] or [as_node(0)])
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
            case "fold" | "scan":
                return self._single(node, env)
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
        test = simplify(self.at(node.src[0], env))
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
        return get(self._fold(source, env) if source.op == "fold" else self.at(source, env), index)

    def _single(self, node: Node, env: dict[str, Node]) -> Node:
        if node.op == "scan":
            raise NoBlock("a scan must be written as a fold first")
        return get(self._fold(node, env), 0)

    def read(self, handle: Node, starts: list[Node]) -> Node:
        """The elements at `starts`, and 0 where a coordinate lies beyond the end of its axis."""
        starts = [simplify(s) for s in starts]
        tests = [b.test for b in self.bounds if any(b.clamped in set(walk(s)) for s in starts)]
        starts = [self._unclamped(s) for s in starts]
        mask = self.conditions(*starts)
        for test in tests:
            mask = test if mask is None else mask & test
        fill = const(0, handle.dtype)
        # A position along one tile axis alone is a box; whatever else it is, is a gather.
        dims: list[tuple[str, Extent, int] | None] = []
        for n, start in enumerate(starts):
            box = self._along(start)
            others = {a for m, s in enumerate(starts) if m != n for a, _ in s.free}
            if box is None or box[1] in others:
                dims.append(None)
                continue
            starts[n], axis, size = box
            dims.append((axis, size, 1))
        return load(handle, starts, dims, mask, fill if mask is not None else None)

    def _position(self, node: Node, env: Env) -> Node:
        """A position as it is written: `read` drops its clamps, and masks what they were for."""
        outside, self.bounds = self.bounds, ()
        at = self.at(node, env)
        self.bounds = outside
        return at

    def _unclamped(self, at: Node) -> Node:
        """The position without clamps that the tests around it make needless."""
        at = simplify(at)
        table = {b.clamped: b.at for b in self.bounds}
        return simplify(replace_nodes(at, table)) if table else at

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
        if not isinstance(extent, int):
            raise NoBlock(f"the axis {axis} has an open extent")
        size = self.sizes.get(axis, 0)
        inside = {a for s in node.src for a, _ in s.free} - {axis}
        taken = {a for x in inside for a, _ in env[x].free}
        if isinstance(size, int) and (size == 0 or size >= extent):
            at = self.whole(axis, extent, taken)
            return self._box_reduce(node, {**env, axis: at}, self.box(at))
        outer, at = self.blocked(axis, extent, size, "reduce", taken)
        part = self._box_reduce(node, {**env, axis: at}, self.box(at))
        return self._accumulate(node, part, outer, ext_cdiv(extent, size))

    def _box_reduce(self, node: Node, env: Env, name: str) -> Node:
        """The reduce over one box; what is beyond the end of the axis counts as the identity."""
        monoid = node.attr[0]
        spec = MONOIDS[monoid]
        values = tuple(self._with_axis(self.at(s, env), env[node.attr[1][0]], name)
                       for s in node.src)  # fmt: skip
        inside = self.valid.get(name)
        if monoid == "sum":
            found = as_dot(values[0], name, inside, self.tiles, self.dots)
            if found is not None:
                return cast(found, node.dtype)
        if inside is not None:
            ids = [dtype_limit(i, v.dtype) for i, v in zip(spec.identity, values)]
            values = tuple(where(inside, v, const(i, v.dtype)) for v, i in zip(values, ids))
        return Node("reduce", values, (monoid, (name,)))

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

    def _fold(self, node: Node, env: dict[str, Node]) -> Node:
        """The loop of a fold for the boxes at `env`. Axes of states that `env` lacks are those of
        the kernel, and whole where it has none of that name."""
        axis, names, n_intervals, _ = node.attr
        n = len(names)
        bounds, rest = node.src[: 2 * n_intervals], node.src[2 * n_intervals :]
        inits, yields, outs = rest[:n], rest[n : 2 * n], rest[2 * n :]
        extent = self._steps(node)
        coords = {a: e for a, e in env.items() if a != axis}
        for a, e in (item for kind in node.types for item in kind.axes if item[0] != axis):
            if a not in coords:
                coords[a] = self.own[a] if a in self.own else self.whole(a, int(str(e)))
        step = iota(self.name(f"{axis}.s", axis, extent), extent)
        if axis in env and env[axis] is not step:
            raise NoBlock(f"the loop over {axis} is read at another step than the one it is at")
        key = (node, tuple(sorted(((a, id(e)) for a, e in coords.items()))))
        if key not in self.memo:
            pins = {
                name: _Pin(self._state(name), tuple((a, coords[a]) for a, _ in kind.axes))
                for name, kind in zip(names, node.types)
            }
            lo_hi = [self.at(b, coords) for b in bounds]
            starts = [self.at(i, coords) for i in inits]
            outside, self.pins = self.pins, {**self.pins, **pins}
            inner = {**coords, axis: step}
            steps = [self.at(y, inner) for y in yields]
            stacked = [self.at(o, inner) for o in outs]
            self.pins = outside
            made = {p.state: pair for p, *pair in zip(pins.values(), starts, steps)}
            pairs = list(zip(lo_hi[::2], lo_hi[1::2]))
            self.memo[key] = fold(step.attr[0], pairs, made, stacked)
        return self.memo[key]

    def _carry(self, node: Node, env: dict[str, Node]) -> Node:
        """A state inside the body of its fold: a box over the tile axes of its coordinates."""
        name, dtype, _ = node.attr
        if name not in self.pins:
            raise NoBlock(f"the state {name} is read outside of its loop")
        pin = self.pins[name]
        for a, at in pin.coords:
            if a in env and env[a] is not at:
                raise NoBlock(f"the state {name} is read at other places along {a} than it is made")
        boxes = {a: e for _, at in pin.coords for a, e in self.boxes(at).items()}
        return carry(pin.state, dtype, boxes)

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
        if last.op != "const":
            raise NoBlock(f"nothing tells how long the loop over {axis} is")
        return int(last.attr[0])


def _bound(test: Node) -> _Bound | None:
    if test.op != "map" or test.attr[0] != "lt" or test.src[1].op != "const":
        return None
    at, end = test.src
    if at.dtype != "int32" or not at.free:
        return None
    return _Bound(simplify(minimum(at, end.attr[0] - 1)), at, test)


def _terms(node: Node) -> list[Node]:
    if node.op == "map" and node.attr[0] == "add":
        return [t for s in node.src for t in _terms(s)]
    return [node]
