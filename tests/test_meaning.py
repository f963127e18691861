"""The interpreter against the definition itself: one number at one coordinate, by recursion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autosched.ir import evaluator, stream
from autosched.ir.interp import evaluate, value_of
from autosched.ir.monoid import MONOIDS
from autosched.ir.node import Node, Output, Program, walk
from autosched.ir.ops import (
    buffer,
    carry,
    cast,
    const,
    dot,
    fold,
    forall,
    get,
    input_,
    iota,
    kernel,
    map_,
    maximum,
    minimum,
    reaxis,
    reduce_,
    scan,
    slice_,
    store,
    sum_,
    take,
    where,
)
from autosched.ir.scalar import SCALARS
from autosched.ir.text import parse, to_text

SIZES = {"a": 2, "b": 3, "c": 4, "d": 3}
AXES = tuple(SIZES)
Array = np.ndarray[Any, Any]


def at(node: Node, env: Mapping[str, Any], data: Mapping[str, Array]) -> tuple[Any, ...]:
    """The results of a node where axes read as the numbers in env, and states as functions."""

    def one(source: Node, **more: Any) -> Any:
        return at(source, {**env, **more}, data)[0]

    match node.op:
        case "input":
            return (data[node.attr[0]][tuple(env[a] for a, _ in node.attr[1])],)
        case "const":
            return (node.attr[0],)
        case "iota":
            return (env[node.attr[0]],)
        case "map":
            name = node.attr[0].partition(":")[0]
            return (SCALARS[name].numpy(*[np.asarray(one(s)) for s in node.src]).item(),)
        case "get":
            return (at(node.src[0], env, data)[node.attr[0]],)
        case "take":
            return (one(node.src[0], **{node.attr[0]: one(node.src[1])}),)
        case "reaxis":
            exprs = {a: one(e) for a, e in zip(node.attr[0], node.src[1:])}
            return (one(node.src[0], **exprs),)
        case "slice":
            axis, new, _ = node.attr
            return (one(node.src[0], **{axis: one(node.src[1]) + env[new]}),)
        case "place":
            return (one(node.src[0]),)
        case "reduce":
            monoid, axes = node.attr
            points = itertools.product(*(range(SIZES[a]) for a in axes))
            return _combined(monoid, node, [{**env, **dict(zip(axes, p))} for p in points], data)
        case "dot":
            axes = node.attr[0]
            points = itertools.product(*(range(SIZES[a]) for a in axes))
            envs = [dict(zip(axes, p)) for p in points]
            return (math.fsum(one(node.src[0], **e) * one(node.src[1], **e) for e in envs),)
        case "scan":
            monoid, axis, exclusive, reverse = node.attr
            here, n = env[axis], SIZES[axis]
            steps = range(n - 1, here - 1 + exclusive, -1) if reverse else range(
                here + 1 - exclusive)  # fmt: skip
            return _combined(monoid, node, [{**env, axis: s} for s in steps], data)
        case "carry":
            name, _, axes = node.attr
            return (env["state " + name]({a: env[a] for a, _ in axes}),)
        case "fold":
            return _folded(node, env, data)
    raise AssertionError(node.op)


def _combined(
    monoid: str, node: Node, envs: list[dict[str, Any]], data: Mapping[str, Array]
) -> tuple[Any, ...]:
    spec = MONOIDS[monoid]
    total = tuple(-math.inf if i == "lowest" else i for i in spec.identity)
    for env in envs:
        total = spec.combine(
            lambda fn, *xs: SCALARS[fn].numpy(*xs),
            total,
            tuple(at(s, env, data)[0] for s in node.src),
        )
    return total


def _folded(node: Node, env: Mapping[str, Any], data: Mapping[str, Array]) -> tuple[Any, ...]:
    """States as functions of coordinates, deeper by one step at a time."""
    axis, names, n_intervals, n_outs = node.attr
    bounds = [at(b, env, data)[0] for b in node.src[: 2 * n_intervals]]
    rest = node.src[2 * n_intervals :]
    inits, yields, outs = (
        rest[: len(names)],
        rest[len(names) : 2 * len(names)],
        rest[2 * len(names) :],
    )

    def state_of(source: Node, fixed: Mapping[str, Any]) -> Any:
        memo: dict[Any, Any] = {}

        def read(where_: Mapping[str, Any]) -> Any:
            key = tuple(sorted(where_.items()))
            if key not in memo:
                memo[key] = at(source, {**fixed, **where_}, data)[0]
            return memo[key]

        return read

    states = {"state " + n: state_of(i, env) for n, i in zip(names, inits)}
    stacked: list[Any] = [None] * n_outs
    here = env.get(axis)
    for lo, hi in zip(bounds[::2], bounds[1::2]):
        for t in range(lo, hi):
            inner = {**env, **states, axis: t}
            if n_outs and t == here:
                stacked = [at(o, inner, data)[0] for o in outs]
            states = {"state " + n: state_of(y, inner) for n, y in zip(names, yields)}
    final = [states["state " + n]({}) for n in names]
    return (*final, *stacked)


# ---- random values ----------------------------------------------------------------------------


INPUTS = [
    input_("x", {"a": 2, "b": 3}),
    input_("y", {"c": 4, "b": 3}),
    input_("z", {"d": 3}),
    input_("w", {"d": 3, "a": 2, "c": 4}),
]
RNG = np.random.default_rng(1)
DATA = {n.attr[0]: np.round(RNG.standard_normal([e for _, e in n.attr[1]]), 2) for n in INPUTS}


def index(draw: st.DrawFn, size: int, exclude: str = "") -> Node:
    """An index below `size` over one or two axes."""
    axes = draw(
        st.lists(st.sampled_from([a for a in AXES if a != exclude]), min_size=0, max_size=2)
    )
    total: Node = const(draw(st.integers(0, 3)), "int32")
    for axis in axes:
        total = total + iota(axis, SIZES[axis]) * draw(st.integers(1, 3))
    return total % size


@st.composite
def values(draw: st.DrawFn, depth: int = 4, states: tuple[Node, ...] = ()) -> Node:
    """A float value; `states` are carries that it may read."""
    if depth == 0:
        return draw(st.sampled_from([*INPUTS, *states, *states]))
    kind = draw(st.sampled_from(sorted(_BUILDERS)))
    return _BUILDERS[kind](draw, values(depth=depth - 1, states=states), states)


def _maps(draw: st.DrawFn, below: st.SearchStrategy[Node], _: Any) -> Node:
    fn = draw(st.sampled_from(["add", "sub", "mul", "max", "min"]))
    return map_(fn, draw(below), draw(below))


def _chosen(draw: st.DrawFn, below: st.SearchStrategy[Node], _: Any) -> Node:
    mask = iota("a", 2) * draw(st.integers(0, 2)) + iota("c", 4) >= draw(st.integers(0, 4))
    return where(mask, draw(below), draw(below))


def _reduced(draw: st.DrawFn, below: st.SearchStrategy[Node], _: Any) -> Node:
    value = draw(below)
    if not value.names:
        return value
    axes = draw(st.lists(st.sampled_from(value.names), min_size=1, max_size=2, unique=True))
    return reduce_(draw(st.sampled_from(["sum", "sum", "max"])), axes, value)


def _contracted(draw: st.DrawFn, below: st.SearchStrategy[Node], _: Any) -> Node:
    one, two = draw(below), draw(below)
    shared = sorted(set(one.names) & set(two.names))
    product = one * two
    if not shared:
        return product
    axis = draw(st.sampled_from(shared))
    return draw(st.sampled_from([sum_(axis, product), dot(one, two, axis)]))


def _scanned(draw: st.DrawFn, below: st.SearchStrategy[Node], _: Any) -> Node:
    value = draw(below)
    if not value.names:
        return value
    axis = draw(st.sampled_from(value.names))
    exclusive, reverse = draw(st.booleans()), draw(st.booleans())
    return scan("sum", axis, value, exclusive=exclusive, reverse=reverse)


def _moved(draw: st.DrawFn, below: st.SearchStrategy[Node], _: Any) -> Node:
    value = draw(below)
    if not value.names:
        return value
    axes = draw(st.lists(st.sampled_from(value.names), min_size=1, max_size=2, unique=True))
    return reaxis(value, {a: index(draw, SIZES[a]) for a in axes})


def _taken(draw: st.DrawFn, below: st.SearchStrategy[Node], _: Any) -> Node:
    value = draw(below)
    if not value.names:
        return value
    axis = draw(st.sampled_from(value.names))
    where_ = cast(index(draw, SIZES[axis]), "int64")
    return take(value, axis, where_)


def _sliced(draw: st.DrawFn, below: st.SearchStrategy[Node], _: Any) -> Node:
    value = draw(below)
    if "c" not in value.names:
        return value
    return slice_(value, "c", index(draw, 2, "b"), "b", 3)


def _looped(draw: st.DrawFn, below: st.SearchStrategy[Node], states: tuple[Node, ...]) -> Node:
    axis = draw(st.sampled_from(AXES))
    depth = len(states)
    kept = draw(st.lists(st.sampled_from([a for a in AXES if a != axis]), max_size=2, unique=True))
    name = f"s{depth}"
    own = carry(name, "float32", {a: SIZES[a] for a in kept})
    moved = reaxis(own, {a: index(draw, SIZES[a], axis) for a in kept[:1]}) if draw(
        st.booleans()) else own  # fmt: skip
    term = draw(values(depth=1, states=(*states, own)) if draw(st.booleans()) else below)
    extra = [a for a in term.names if a not in (*kept, axis)]
    term = reduce_("sum", extra, term) if extra else term
    moved_extra = [a for a in moved.names if a not in (*kept, axis)]
    moved = reduce_("max", moved_extra, moved) if moved_extra else moved
    rate = draw(st.sampled_from([1.0, 0.5]))
    spread = sum(
        (cast(iota(a, SIZES[a]), "float32") * 0.0 for a in (*kept, axis)), const(0.0, "float32")
    )
    step = moved * rate + (term + spread)
    size = SIZES[axis]
    varied = kept and moved is own and not term.carries & {name}
    bounds = draw(
        st.sampled_from(
            [
                [(0, size)],
                [(1, size)],
                [(0, 1), (1, size)],
                [(0, minimum(iota(kept[0], SIZES[kept[0]]), size) if varied else size)],
            ]
        )
    )
    init = const(draw(st.sampled_from([0.0, 1.5])), "float32")
    stacked = len(bounds) == 1 and bounds[0] == (0, size) and draw(st.booleans())
    loop = fold(axis, bounds, {name: (init, step)}, [own + step] if stacked else [])
    return get(loop, 1) if stacked else get(loop, 0)


_BUILDERS = {
    "map": _maps, "map2": _maps, "chosen": _chosen, "reduced": _reduced,
    "contracted": _contracted, "scanned": _scanned, "moved": _moved, "taken": _taken,
    "sliced": _sliced, "looped": _looped, "looped2": _looped,
}  # fmt: skip

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def table_of(node: Node) -> Array:
    dims = node.names
    out = np.empty([SIZES[a] for a in dims])
    for point in itertools.product(*(range(SIZES[a]) for a in dims)):
        out[point] = at(node, dict(zip(dims, point)), DATA)[0]
    return out


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=SLOW)
@given(values())
def test_random_values(node: Node) -> None:
    data = {n.attr[0]: DATA[n.attr[0]] for n in walk(node) if n.op == "input"}
    got = value_of(node, data, node.names)
    np.testing.assert_allclose(got, table_of(node), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=SLOW)
@given(values(depth=3), st.data())
def test_random_values_in_loops(node: Node, data: st.DataObject) -> None:
    """The same under loops of every kind: coordinates then are numbers, or vectors."""
    inputs = tuple(n for n in walk(node) if n.op == "input")
    arrays = {n.attr[0]: DATA[n.attr[0]] for n in inputs}
    dims = tuple(data.draw(st.permutations(node.names)))
    out = buffer("out", [SIZES[a] for a in dims], "float32", "output")
    boxed = set(data.draw(st.lists(st.sampled_from(dims), max_size=1))) if dims else set()
    starts = [const(0, "int32") if a in boxed else iota(a, SIZES[a]) for a in dims]
    tiles = [(a, SIZES[a], 1) if a in boxed else None for a in dims]
    nest = store(out, node, starts, tiles)
    for a in data.draw(st.permutations([a for a in dims if a not in boxed])):
        bind = data.draw(st.sampled_from(["grid", "serial", "unroll", "lane"]))
        nest = forall(a, 0, SIZES[a], bind, [nest])
    output = Output("out", dims, "float32", tuple(SIZES[a] for a in dims))
    program = Program("tile", inputs, (output,), (kernel("k", [nest]),))
    assert parse(to_text(program)) == program
    want = value_of(node, arrays, dims)
    lift = evaluator.LIFT_ELEMENTS
    for limit in (lift, 0):
        try:
            evaluator.LIFT_ELEMENTS = limit
            got = evaluate(program, arrays)["out"]
        finally:
            evaluator.LIFT_ELEMENTS = lift
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=SLOW)
@given(values(depth=3), st.integers(1, 12))
def test_random_values_streamed(node: Node, block: int) -> None:
    arrays = {n.attr[0]: DATA[n.attr[0]] for n in walk(node) if n.op == "input"}
    want = value_of(node, arrays, node.names)
    before = stream.BLOCK_ELEMENTS
    try:
        stream.BLOCK_ELEMENTS = block
        got = value_of(node, arrays, node.names)
    finally:
        stream.BLOCK_ELEMENTS = before
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_the_definition_agrees_on_a_known_case() -> None:
    x, y = INPUTS[0], INPUTS[1]
    np.testing.assert_allclose(table_of(sum_("b", x * y)), DATA["x"] @ DATA["y"].T)
    np.testing.assert_allclose(table_of(maximum(x, 0.0)), np.maximum(DATA["x"], 0))
