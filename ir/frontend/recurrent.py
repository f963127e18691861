"""The rows of recurrences: states carried along the time axis, as one `fold`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autosched.ir.frontend.call import Call, Result, Row, wide
from autosched.ir.frontend.reduction import axes_of, sum_over
from autosched.ir.frontend.tensor import Dim, Names, Tensor, flatten_dim, reshape, unify
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


ROWS: tuple[Row, ...] = (Row("LinearAttention", (27,), _linear_attention),)
