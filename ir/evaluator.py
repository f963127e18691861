"""Values of nodes: one recursive evaluator of "the value at env" for both levels of the IR.

An environment maps an axis to a `Bound`: an integer array of coordinates whose dimensions have
names of their own. A binder binds its axis to a whole range, a loop to one coordinate, `take` and
`reaxis` to computed ones; a value is then an array over the dimensions of what its axes are bound
to. Results are kept in the frame of the innermost loop that they depend on.

A value in a loop that does not depend on what the loop changes (states, memory) is computed for
all steps at once where that fits into memory, and picked from at each step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autosched.ir.arrays import Named
from autosched.ir.bound import Bound, Env, sizes_of
from autosched.ir.folding import run_fold
from autosched.ir.footprint import depends_on, footprint, mutable, steered_by, summands
from autosched.ir.gather import Dim
from autosched.ir.node import Extent, IRError, Node
from autosched.ir.stream import streamed

LIFT_ELEMENTS = 1 << 23  # a loop's values are computed at once up to this size (64 MiB)


class InterpError(ValueError):
    """A program has no value for these inputs: the message names the node and the cause."""


def state_name(name: str) -> str:
    """The environment's name of a fold state; no axis has a space in its name."""
    return "state " + name


def describe(node: Node) -> str:
    """The node in a few words, for messages."""
    words = [str(a) for a in node.attr if isinstance(a, (str, int, float))]
    return " ".join([node.op, *words, *(f"over {', '.join(t.names)}" for t in node.types[:1])])


class Evaluator:
    """Evaluates nodes over given arrays; `memory` maps a handle to (data, known or None).

    known: bools that say which elements were stored; None where all have a value.
    """

    def __init__(
        self, memory: dict[Node, tuple[Any, Any]], xp: Any, rounding: bool = False
    ) -> None:
        self.memory = memory
        self.xp = xp
        self.rounding = rounding
        self.frames: list[dict[Any, Any]] = [{}]
        self.statement = 0  # the level at which memory does not change
        self._uids = itertools.count()
        self._fresh = itertools.count(1000)

    # ---- bindings and frames --------------------------------------------------------------

    @contextmanager
    def frame(self) -> Iterator[int]:
        """A scope whose results are forgotten at its end; yields its level."""
        self.frames.append({})
        try:
            yield len(self.frames) - 1
        finally:
            self.frames.pop()

    def bound(self, named: Named, level: int, **more: Any) -> Bound:
        return Bound(named, next(self._uids), level, **more)

    def whole(self, axis: str, extent: Extent, used: Iterable[Dim] = ()) -> Bound:
        """All coordinates of an axis, along a dimension that is none of `used`."""
        if isinstance(extent, Node):
            raise InterpError(f"axis {axis}: its extent has unbound knobs; use subst first")
        taken = set(used)
        n = next(n for n in itertools.count() if (axis, n) not in taken)
        key = ("whole", axis, extent, n)
        if key not in self.frames[0]:
            self.frames[0][key] = self.bound(self.xp.arange(0, extent, (axis, n)), 0)
        return self.frames[0][key]

    def interval(self, axis: str, lo: int, hi: int, level: int) -> Bound:
        """The coordinates [lo, hi) along a dimension of their own; the same ones if asked again.

        level: of the bounds, so that loops around which change them do not look independent.
        """
        key = ("interval", axis, lo, hi)
        if key not in self.frames[level]:
            dim = (axis, next(self._fresh))
            self.frames[level][key] = self.bound(self.xp.arange(lo, hi, dim), level)
        return self.frames[level][key]

    def step(self, span: Bound, position: int, level: int) -> Bound:
        """One coordinate of an interval."""
        named = self.xp.pick(span.named, span.named.dims[0], position)
        return self.bound(named, level, span=span, position=position)

    def bind_whole(self, axes: Mapping[str, Extent], env: Env, names: Iterable[str]) -> Env:
        """What `names` are bound to in `env`, and every axis of `axes` to its whole range.

        The rest of `env` is left out: its dimensions may have the names of the new ones.
        """
        kept = {n: env[n] for n in names if n in env and n not in axes}
        used = {d for x in kept.values() for d in x.named.dims}
        return {**kept, **{a: self.whole(a, e, used) for a, e in axes.items()}}

    # ---- evaluation -----------------------------------------------------------------------

    def value(self, node: Node, env: Env) -> Bound:
        return self.results(node, env)[0]

    def results(self, node: Node, env: Env) -> tuple[Bound, ...]:
        """The results of a node at env; free axes that env lacks are bound to their whole range."""
        names = depends_on(node)
        missing = {a: e for a, e in node.free if a not in env}
        if missing:
            env = self.bind_whole(missing, env, names)
        try:
            bounds = [env[n] for n in names]
        except KeyError as error:
            raise InterpError(f"{describe(node)}: unbound {error.args[0]}") from error
        level = max([b.level for b in bounds], default=0)
        if mutable(node):
            level = max(level, self.statement)
        key = (node, *[b.uid for b in bounds])
        found = self.frames[level].get(key)
        if found is None:
            found = self._lifted(node, env, bounds, level) or self._computed(node, env, level)
            self.frames[level][key] = found
        return found

    def _computed(self, node: Node, env: Env, level: int) -> tuple[Bound, ...]:
        try:
            got = _METHODS[node.op](self, node, env)
        except (IRError, ValueError, IndexError) as error:
            if isinstance(error, InterpError):
                raise
            raise InterpError(f"{describe(node)}: {error}") from error
        return tuple([x if isinstance(x, Bound) else self.bound(x, level) for x in got])

    def _lifted(
        self, node: Node, env: Env, bounds: list[Bound], level: int
    ) -> tuple[Bound, ...] | None:
        """The results picked from those of all steps of the innermost loop, where that is right:
        nothing else that the node reads changes in the loop."""
        if node.op in ("iota", "const", "carry"):
            return None
        steps = [b for b in bounds if b.span is not None and b.level == level]
        others = [b for b in bounds if b.level == level and b.uid != steps[0].uid] if steps else []
        if not steps or others:
            return None
        step = steps[0]
        if steered_by(node) & {n for n, b in env.items() if b.uid == step.uid}:
            return None
        span = step.span
        assert span is not None
        whole = {n: span if b.uid == step.uid else b for n, b in env.items()}
        sizes = {n: dict(zip(b.named.dims, b.named.data.shape)) for n, b in whole.items()}
        if footprint(node, sizes) > LIFT_ELEMENTS:
            return None
        (dim,) = span.named.dims
        return tuple(
            [
                self.bound(self.xp.pick(x.named, dim, step.position), level)
                for x in self.results(node, whole)
            ]
        )

    # ---- leaves ---------------------------------------------------------------------------

    def _input(self, node: Node, env: Env) -> tuple[Any, ...]:
        _, dims, _, _ = node.attr
        data, known = self._memory(node)
        return (self.xp.read(data, [env[a].named for a, _ in dims], known),)

    def _memory(self, handle: Node) -> tuple[Any, Any]:
        if handle not in self.memory:
            raise InterpError(f"no array for {handle.op} {handle.attr[0]!r}")
        return self.memory[handle]

    def _const(self, node: Node, env: Env) -> tuple[Any, ...]:
        return (self.xp.constant(*node.attr),)

    def _iota(self, node: Node, env: Env) -> tuple[Any, ...]:
        axis, _, dtype = node.attr
        at = env[axis]
        return (at if dtype == "int32" else self.xp.apply(f"cast:{dtype}", dtype, [at.named]),)

    def _knob(self, node: Node, env: Env) -> tuple[Any, ...]:
        raise InterpError(f"knob {node.attr[0]!r} has no value; bind it with subst first")

    def _carry(self, node: Node, env: Env) -> tuple[Any, ...]:
        """The state, read at other coordinates where an operator in the body has rebound them."""
        state = env[state_name(node.attr[0])]
        moved: dict[Dim, Named] = {}
        for axis in node.names:
            home = state.at.get(axis)
            if home is None or env[axis].uid == home.uid:
                continue
            (dim,) = home.named.dims or (None,)
            if dim is None:
                raise InterpError(f"{describe(node)}: read at another {axis} than its own")
            moved[dim] = env[axis].named
        return (self.xp.index(state.named, moved) if moved else state,)

    # ---- values ---------------------------------------------------------------------------

    def _named(self, nodes: Iterable[Node], env: Env) -> list[Named]:
        return [self.value(n, env).named for n in nodes]

    def _map(self, node: Node, env: Env) -> tuple[Any, ...]:
        source, operands = node.src[-1].dtype, self._named(node.src, env)
        return (self.xp.apply(node.attr[0], node.dtype, operands, self.rounding, source),)

    def _take(self, node: Node, env: Env) -> tuple[Any, ...]:
        return self._read_at(node.src[0], {node.attr[0]: self.value(node.src[1], env)}, env)

    def _reaxis(self, node: Node, env: Env) -> tuple[Any, ...]:
        at = {a: self.value(e, env) for a, e in zip(node.attr[0], node.src[1:])}
        return self._read_at(node.src[0], at, env)

    def _slice(self, node: Node, env: Env) -> tuple[Any, ...]:
        axis, new, _ = node.attr
        at = self.xp.apply("add", "int32", [self.value(node.src[1], env).named, env[new].named])
        level = max(env[new].level, self.value(node.src[1], env).level)
        return self._read_at(node.src[0], {axis: self.bound(at, level)}, env)

    def _read_at(self, value: Node, at: Mapping[str, Bound], env: Env) -> tuple[Any, ...]:
        """The value with axes at computed coordinates. What only moves data is evaluated there;
        what computes is evaluated whole, once, and read."""
        if _moves_data(value):
            return (self.value(value, {**env, **at}),)
        axes = {a: value.extent(a) for a in at}
        inner = self.bind_whole(axes, env, depends_on(value))
        got = self.value(value, inner).named
        index = {inner[a].named.dims[0]: b.named for a, b in at.items()}
        return (self.xp.index(got, index),)

    def _reduce(self, node: Node, env: Env) -> tuple[Any, ...]:
        monoid, axes = node.attr
        if monoid == "sum" and node.dtype != "bool":
            return (self.sum_of(node, node.dtype, env),)
        extents = {a: e for s in node.src for a, e in s.axes if a in axes}
        names = [n for s in node.src for n in depends_on(s)]
        inner = self.bind_whole(extents, env, names)
        gone = tuple([inner[a].named.dims[0] for a in axes])
        return self._reduced(node, inner, gone)

    def _reduced(self, node: Node, env: Env, gone: tuple[Dim, ...]) -> tuple[Named, ...]:
        dtypes = [t.dtype for t in node.types]

        def whole(inner: Env) -> tuple[Named, ...]:
            parts = self._with(self._named(node.src, inner), gone, inner)
            return self.xp.reduce(node.attr[0], dtypes, parts, gone)

        return streamed(self, whole, node.src, node.attr[0], dtypes, env, gone)

    def sum_of(self, node: Node, dtype: str, env: Env, axes: tuple[str, ...] = ()) -> Named:
        """A sum of products, as a contraction: the product itself is never made.

        axes: those to sum over besides the node's own; env binds them.
        """
        factors, extents = summands(node, not self.rounding)
        names = [n for f in factors for n in depends_on(f)]
        inner = self.bind_whole(extents, env, names)
        dims = [d for a in (*axes, *extents) for d in inner[a].named.dims]
        gone = tuple(dict.fromkeys(dims))

        def whole(block: Env) -> tuple[Named, ...]:
            parts = self._with(self._named(factors, block), gone, block)
            return (self.xp.contract(dtype, parts, gone),)

        (out,) = streamed(self, whole, factors, "sum", [dtype], inner, gone)
        return out

    def _with(self, parts: list[Named], gone: tuple[Dim, ...], env: Env) -> list[Named]:
        """The operands, the first broadcast along those of the dimensions that all of them lack."""
        absent = tuple([d for d in gone if not any(d in p.dims for p in parts)])
        if not absent:
            return parts
        sizes = sizes_of(env.values()) | dict(zip(parts[0].dims, parts[0].data.shape))
        return [self.xp.spread(parts[0], parts[0].dims + absent, sizes), *parts[1:]]

    def _scan(self, node: Node, env: Env) -> tuple[Any, ...]:
        monoid, axis, exclusive, reverse = node.attr
        extent = dict(node.free)[axis]
        inner = self.bind_whole({axis: extent}, env, depends_on(node))
        (dim,) = inner[axis].named.dims
        parts = self._with(self._named(node.src, inner), (dim,), inner)
        dtypes = [t.dtype for t in node.types]
        got = self.xp.scan(monoid, dtypes, parts, dim, exclusive, reverse)
        if inner[axis].uid == env[axis].uid:
            return got
        return tuple([self.xp.index(x, {dim: env[axis].named}) for x in got])

    def _get(self, node: Node, env: Env) -> tuple[Any, ...]:
        return (self.results(node.src[0], env)[node.attr[0]],)

    def _place(self, node: Node, env: Env) -> tuple[Any, ...]:
        return (self.value(node.src[0], env),)

    def _dot(self, node: Node, env: Env) -> tuple[Any, ...]:
        return (self.sum_of(node, node.dtype, env),)

    def _trisolve(self, node: Node, env: Env) -> tuple[Any, ...]:
        row, col = node.attr
        matrix, rhs = node.src
        axes = {a: matrix.extent(a) for a in (row, col)}
        inner = self.bind_whole(axes, env, (*depends_on(matrix), *depends_on(rhs)))
        dims = [inner[a].named.dims[0] for a in (row, col)]
        parts = self._named(node.src, inner)
        sizes = sizes_of(inner.values())
        full = self._spread_all(parts[0], dims, sizes)
        got = self.xp.trisolve(full, self._spread_all(parts[1], dims[:1], sizes), *dims)
        if inner[row].uid == env[row].uid:
            return (got,)
        return (self.xp.index(got, {dims[0]: env[row].named}),)

    def _spread_all(self, x: Named, dims: Sequence[Dim], sizes: dict[Dim, int]) -> Named:
        absent = tuple([d for d in dims if d not in x.dims])
        sizes = sizes | dict(zip(x.dims, x.data.shape))
        return self.xp.spread(x, x.dims + absent, sizes) if absent else x

    # ---- loads ----------------------------------------------------------------------------

    def address(self, starts: Sequence[Node], dims: Sequence[Any], env: Env) -> list[Named]:
        """The coordinates of a box, one integer array a dimension of the buffer."""
        out = []
        for start, tile in zip(starts, dims):
            at = self.value(start, env).named
            if tile is not None:
                axis, _, stride = tile
                along = env[axis].named
                if stride != 1:
                    factor = self.xp.constant(stride, "int32")
                    along = self.xp.apply("mul", "int32", [along, factor])
                at = self.xp.apply("add", "int32", [at, along])
            out.append(at)
        return out

    def inside(self, node: Node, shape: Sequence[int], at: list[Named], mask: Any) -> None:
        """An error where a coordinate is out of range and the mask does not exclude it."""
        for n, (size, x) in enumerate(zip(shape, at)):
            out = self.xp.outside(x, size)
            if out is None:
                continue
            if mask is not None:
                out = self.xp.apply("and", "bool", [out, mask])
            if self.xp.any(out):
                low, high = self.xp.extremes(x)
                raise InterpError(
                    f"{describe(node)}: {node.src[0].attr[0]!r} dimension {n} of extent {size} "
                    f"is accessed at {low}..{high} without a mask that excludes it"
                )

    def _load(self, node: Node, env: Env) -> tuple[Any, ...]:
        dims, masked = node.attr
        data, known = self._memory(node.src[0])
        at = self.address(node.src[1 : 1 + len(dims)], dims, env)
        mask, fill = self._named(node.src[-2:], env) if masked else (None, None)
        self.inside(node, data.shape, at, mask)
        got = self.xp.read(data, at, known)
        if mask is None:
            return (got,)
        return (self.xp.apply("where", node.dtype, [mask, got, fill]),)

    # ---- folds ----------------------------------------------------------------------------

    def _fold(self, node: Node, env: Env) -> tuple[Any, ...]:
        return run_fold(self, node, env)


def _moves_data(node: Node) -> bool:
    """A leaf, or a leaf read elsewhere: evaluating it twice costs no arithmetic."""
    while node.op in ("reaxis", "take", "slice", "place"):
        node = node.src[0]
    return node.op in ("input", "const", "iota", "load", "carry")


_METHODS: dict[str, Callable[[Evaluator, Node, Env], tuple[Any, ...]]] = {
    "input": Evaluator._input,
    "const": Evaluator._const,
    "iota": Evaluator._iota,
    "knob": Evaluator._knob,
    "carry": Evaluator._carry,
    "map": Evaluator._map,
    "take": Evaluator._take,
    "reaxis": Evaluator._reaxis,
    "slice": Evaluator._slice,
    "reduce": Evaluator._reduce,
    "scan": Evaluator._scan,
    "get": Evaluator._get,
    "place": Evaluator._place,
    "dot": Evaluator._dot,
    "trisolve": Evaluator._trisolve,
    "load": Evaluator._load,
    "fold": Evaluator._fold,
}
