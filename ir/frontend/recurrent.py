"""The rows of recurrences: states carried along the time axis, as one `fold`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autosched.ir.frontend.call import Call, Result, Row, wide
from autosched.ir.frontend.reduction import axes_of, sum_over
from autosched.ir.frontend.tensor import (
    Dim,
    Names,
    Tensor,
    flatten_dim,
    index_of,
    narrow,
    reshape,
    unify,
    view,
)  # fmt: skip
from autosched.ir.graph import ModelError
from autosched.ir.node import Node
from autosched.ir.ops import carry, cast, const, exp, fold, get

Nodes = Sequence[Node]


def recurrence(
    names: Names,
    time: Dim,
    states: Sequence[tuple[Node, Dim]],
    step: Callable[[Nodes], tuple[Nodes, Nodes]],
) -> tuple[Nodes, Nodes]:
    """The last states, and what each step puts out, stacked along `time`.

    Args: time, one axis, or none for a single step; states, the first of each with its axes;
        step, the next states and what is put out, of the states before.
    """
    if not time:
        return step([start for start, _ in states])
    ((axis, extent),) = time
    carries = [carry(names.fresh("state"), s.dtype, dict(axes)) for s, axes in states]
    following, outs = step(carries)
    table = {
        c.attr[0]: (start, after)
        for c, (start, _), after in zip(carries, states, following, strict=True)
    }
    loop = fold(axis, [(0, extent)], table, outs)
    results = [get(loop, n) for n in range(len(states) + len(outs))]
    return results[: len(states)], results[len(states) :]


def _split(call: Call, n: int, *sizes: int) -> Tensor:
    """Operand `n`, [batch, time, hidden], with `hidden` cut into sizes; time is one axis."""
    x = call.x(n)
    if x.rank != 3 or x.shape[2] != math.prod(sizes):
        raise ModelError(f"operand {n} has the shape {x.shape}, wants (batch, time, {sizes})")
    x = flatten_dim(call.names, x, 1)
    return reshape(call.names, x, (*x.shape[:2], *sizes))


def _linear_attention(call: Call) -> tuple[Result, ...]:
    """S = decay * S + key * u, u = value or beta * (value - key * decay * S); query * S."""
    heads, groups = call.attr("q_num_heads"), call.attr("kv_num_heads")
    if heads % groups:
        raise ModelError(f"{heads} query heads do not divide among {groups} key heads")
    size, width = call.x(0).shape[2] // heads, call.x(2).shape[2] // groups
    terms = {
        "query": (_split(call, 0, groups, heads // groups, size), "btgrd"),
        "key": (_split(call, 1, groups, size), "btgd"),
        "value": (_split(call, 2, groups, width), "btge"),
    }
    if call.has(3):
        terms["state"] = (call.x(3), "bgde")
    if call.has(4):
        one = call.x(4).shape[2] == groups
        decay = _split(call, 4, groups) if one else _split(call, 4, groups, size)
        terms["decay"] = (decay, "btg" if one else "btgd")
    if call.has(5):
        terms["beta"] = (_split(call, 5, call.x(5).shape[2]), "btg")
    nodes, axes = unify(call.names, *terms.values())
    of = {name: wide(node) for name, node in zip(terms, nodes)}
    scale = call.attr("scale", 0.0) or 1.0 / math.sqrt(size)
    rule = call.attr("update_rule", "gated_delta")

    def step(states: Nodes) -> tuple[Nodes, Nodes]:
        (state,) = states
        if rule in ("gated", "gated_delta"):
            state = state * exp(of["decay"])
        added = of["value"]
        if rule in ("delta", "gated_delta"):
            added = (added - sum_over(state * of["key"], axes["d"])) * of["beta"]
        state = state + of["key"] * added
        return [state], [sum_over(of["query"] * state, axes["d"]) * scale]

    start = of.get("state", const(0, of["key"].dtype))
    kept = [axes[label] for label in "bgde"]
    (state,), (y,) = recurrence(call.names, axes["t"], [(start, axes_of(kept))], step)
    hidden = axes_of([axes[label] for label in "gre"])
    kind = call.x(3).dtype if call.has(3) else call.x(0).dtype
    out = Tensor(cast(y, call.x(0).dtype), (axes["b"], axes["t"], hidden))
    return out, Tensor(cast(state, kind), tuple(kept))


# ---- any body -----------------------------------------------------------------------------------


def _scan(call: Call) -> tuple[Result, ...]:
    """A graph applied step by step to slices of the last operands; the first ones are states."""
    count = call.attr("num_scan_inputs")
    operands = [call.x(n) for n in range(len(call.inputs))]
    starts, scanned = operands[:-count], operands[-count:]
    axes = call.attr("scan_input_axes", [0] * count)
    back = call.attr("scan_input_directions", [0] * count)
    lengths = {x.shape[x.position(axis)] for x, axis in zip(scanned, axes)}
    if len(lengths) != 1:
        raise ModelError(f"its operands have {sorted(lengths)} steps")
    # A name of its own: a body may read the whole of what it also gets step by step.
    time = call.names.axis("step", lengths.pop())
    slices = [
        _at_step(call.names, x, x.position(axis), time, bool(b))
        for x, axis, b in zip(scanned, axes, back)
    ]
    shapes: list[Tensor] = []

    def step(states: Nodes) -> tuple[Nodes, Nodes]:
        now = [x.with_node(s) for x, s in zip(starts, states, strict=True)]
        made = call.bodies["body"]([*now, *slices])
        shapes[:] = made[len(starts) :]
        after = [like(call.names, m, x.dims) for m, x in zip(made, starts)]
        return after, [x.node for x in shapes]

    carried = [(x.node, x.axes) for x in starts]
    last, stacked = recurrence(call.names, time, carried, step)
    out_axes = call.attr("scan_output_axes", [0] * len(shapes))
    out_back = call.attr("scan_output_directions", [0] * len(shapes))
    outs = [
        _stacked(call.names, x.with_node(node), axis, time, bool(b))
        for x, node, axis, b in zip(shapes, stacked, out_axes, out_back, strict=True)
    ]
    return *(x.with_node(node) for x, node in zip(starts, last)), *outs


def _at_step(names: Names, x: Tensor, at: int, time: Dim, back: bool) -> Tensor:
    """The slice of `x` along dimension `at` that the current step reads."""
    x = flatten_dim(names, x, at)
    here = index_of(time)
    if back:
        here = x.shape[at] - 1 - here
    node = view(x.node, {name: here for name, _ in x.dims[at]})
    return Tensor(node, (*x.dims[:at], *x.dims[at + 1 :]))


def _stacked(names: Names, x: Tensor, axis: int, time: Dim, back: bool) -> Tensor:
    """What the steps put out as one tensor, along a new dimension."""
    at = axis % (x.rank + 1)
    whole = Tensor(x.node, (*x.dims[:at], time, *x.dims[at:]))
    size = whole.shape[at]
    return narrow(names, whole, at, size - 1, size, -1) if back else whole


def like(names: Names, x: Tensor, dims: tuple[Dim, ...]) -> Node:
    """`x` over exactly the axes of `dims`, which has its shape."""
    if x.dims == dims:
        return x.node
    for n in range(x.rank):
        x = flatten_dim(names, x, n)
    if x.shape != Tensor(x.node, dims).shape:
        raise ModelError(f"a state of shape {Tensor(x.node, dims).shape} becomes one of {x.shape}")
    return view(x.node, {a: index_of(new) for old, new in zip(x.dims, dims) for a, _ in old})


_SCANS = (11, 16, 19, 21, 23, 24, 25)  # versions that only added types
ROWS: tuple[Row, ...] = (
    Row("LinearAttention", (27,), _linear_attention),
    Row("Scan", _SCANS, _scan),
)
