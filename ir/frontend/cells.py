"""The rows of RNN, GRU and LSTM: one recurrence each, which differ in what a cell does."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from autosched.ir.frontend.call import Call, Result, Row, Unsupported, wide
from autosched.ir.frontend.movement import concat
from autosched.ir.frontend.recurrent import recurrence
from autosched.ir.frontend.reduction import axes_of, sum_over
from autosched.ir.frontend.tensor import (
    Dim,
    Tensor,
    Term,
    flatten_dim,
    index_of,
    narrow,
    transpose,
    unify,
    view,
)  # fmt: skip
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, iota, map_, maximum, sigmoid, where

_ACTIVATIONS: Mapping[str, Callable[[Node], Node]] = {
    "sigmoid": sigmoid,
    "tanh": lambda x: map_("tanh", x),
    "relu": lambda x: maximum(x, 0),
}


@dataclass(frozen=True)
class Parts:
    """One direction's operands, over axes of their own, at one time step.

    given: by gate, what the input and the biases of both sides add up to, apart from each other;
    again: by gate, what the recurrent weights make of a vector of the hidden size; peep: the
    weights that look at the cell, if any; act: the activations f, g, h.
    """

    given: Sequence[Node]
    again: Sequence[Callable[[Node], Node]]
    bias: Sequence[Node]
    peep: Sequence[Node]
    act: Sequence[Callable[[Node], Node]]

    def gate(self, n: int, hidden: Node) -> Node:
        return self.given[n] + self.again[n](hidden) + self.bias[n]


Cell = Callable[[Call, Parts, Sequence[Node]], Sequence[Node]]


def _rnn(call: Call, p: Parts, states: Sequence[Node]) -> Sequence[Node]:
    return [p.act[0](p.gate(0, states[0]))]


def _gru(call: Call, p: Parts, states: Sequence[Node]) -> Sequence[Node]:
    (hidden,) = states
    update, reset = (p.act[0](p.gate(n, hidden)) for n in (0, 1))
    if call.attr("linear_before_reset", 0):
        recalled = reset * (p.again[2](hidden) + p.bias[2])
    else:
        recalled = p.again[2](reset * hidden) + p.bias[2]
    return [(1.0 - update) * p.act[1](p.given[2] + recalled) + update * hidden]


def _lstm(call: Call, p: Parts, states: Sequence[Node]) -> Sequence[Node]:
    hidden, cell = states
    enter, leave, forget, new = (p.gate(n, hidden) for n in range(4))
    if p.peep:
        enter, forget = enter + p.peep[0] * cell, forget + p.peep[2] * cell
    enter, forget = p.act[0](enter), p.act[0](forget)
    if call.attr("input_forget", 0):
        forget = 1.0 - enter
    after = forget * cell + enter * p.act[1](new)
    if p.peep:
        leave = leave + p.peep[1] * after
    return [p.act[0](leave) * p.act[2](after), after]


_WAYS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def _row(gates: int, defaults: Sequence[str], cell: Cell) -> Callable[[Call], tuple[Result, ...]]:
    n_states = 2 if gates == 4 else 1

    def build(call: Call) -> tuple[Result, ...]:
        if call.attr("clip") is not None or call.attr("activation_alpha") is not None:
            raise Unsupported("with activations that have parameters")
        ways = _WAYS[call.attr("direction", "forward")]
        sides = [
            _one_way(call, n, back, gates, defaults, n_states, cell) for n, back in enumerate(ways)
        ]
        out: list[Tensor] = []
        for made in zip(*sides):
            at = 1 if not out else 0
            both = concat(call.names, [_new_dim(x, at) for x in made], at)
            out.append(_in_layout(call, both))
        return tuple(out)

    return build


def _one_way(
    call: Call, n: int, back: bool, gates: int, defaults: Sequence[str], n_states: int, cell: Cell
) -> list[Tensor]:
    """[time, batch, hidden] of all steps, then [batch, hidden] of each state."""
    names, dtype = call.names, call.x(0).dtype
    own, axes = _operands(call, n, back, gates, n_states)
    parts = _parts(own, axes, gates, _activations(call, n, defaults))
    zero = const(0, parts.given[0].dtype)
    kept = axes_of((axes["b"], axes["h"]))
    states = [(own.get(f"start{s}", zero), kept) for s in range(n_states)]
    here, length = index_of(axes["t"]), own.get("length")
    if back:
        here = call.x(0).shape[1 if call.attr("layout", 0) else 0] - 1 - here

    def step(now: Sequence[Node]) -> tuple[Sequence[Node], Sequence[Node]]:
        after = cell(call, parts, now)
        if length is None:
            return after, after[:1]
        inside = cast(here, length.dtype) < length
        return [where(inside, a, b) for a, b in zip(after, now)], [where(inside, after[0], zero)]

    last, (y,) = recurrence(names, axes["t"], states, step)
    dims = (axes["t"], axes["b"], axes["h"])
    steps = Tensor(cast(y, dtype), dims)
    if back:
        steps = narrow(names, steps, 0, steps.shape[0] - 1, steps.shape[0], -1)
    return [steps, *(Tensor(cast(s, dtype), dims[1:]) for s in last)]


def _operands(
    call: Call, n: int, back: bool, gates: int, n_states: int
) -> tuple[dict[str, Node], dict[Hashable, Dim]]:
    """One direction's operands by name, weights and biases gate by gate, over common axes:
    t, b, i (input), h (hidden) and k (hidden as what is summed over)."""
    x = call.x(0)
    x = flatten_dim(call.names, transpose(x, (1, 0, 2)) if call.attr("layout", 0) else x, 0)
    if back:
        x = narrow(call.names, x, 0, x.shape[0] - 1, x.shape[0], -1)
    hidden = call.x(2).shape[2]
    terms: dict[str, Term] = {"x": (x, "tbi")}
    vectors = (("inner", 1, gates, "hi"), ("again", 2, gates, "hk"), ("bias", 3, 2 * gates, "h"),
               ("peep", 7, 3, "h"))  # fmt: skip
    for name, at, count, labels in vectors:
        if call.has(at):
            whole = _of(call, at, n)
            terms |= {f"{name}{g}": (_cut(call, whole, g, hidden), labels) for g in range(count)}
    for s in range(n_states):
        if call.has(5 + s):
            terms[f"start{s}"] = (_start(call, 5 + s, n), "bh")
    if call.has(4):
        terms["length"] = (call.x(4), "b")
    nodes, axes = unify(call.names, *terms.values())
    return {name: wide(node) for name, node in zip(terms, nodes)}, axes


def _parts(
    own: Mapping[str, Node], axes: Mapping[Hashable, Dim], gates: int,
    act: Sequence[Callable[[Node], Node]],
) -> Parts:  # fmt: skip
    zero = const(0, own["x"].dtype)
    over = {a: iota(b, e) for (a, e), (b, _) in zip(axes["h"], axes["k"])}

    def recalled(weight: Node) -> Callable[[Node], Node]:
        return lambda v: sum_over(weight * view(v, over), axes["k"])

    return Parts(
        [sum_over(own["x"] * own[f"inner{g}"], axes["i"]) + own.get(f"bias{g}", zero)
         for g in range(gates)],
        [recalled(own[f"again{g}"]) for g in range(gates)],
        [own.get(f"bias{gates + g}", zero) for g in range(gates)],
        [own[f"peep{g}"] for g in range(3)] if "peep0" in own else [],
        act,
    )  # fmt: skip


def _of(call: Call, at: int, n: int) -> Tensor:
    """Operand `at` of direction `n`, which is its first dimension."""
    x = narrow(call.names, call.x(at), 0, n, 1)
    return Tensor(x.node, x.dims[1:])


def _start(call: Call, at: int, n: int) -> Tensor:
    x = call.x(at)
    x = narrow(call.names, transpose(x, (1, 0, 2)) if call.attr("layout", 0) else x, 0, n, 1)
    return flatten_dim(call.names, Tensor(x.node, x.dims[1:]), 1)


def _cut(call: Call, x: Tensor, gate: int, hidden: int) -> Tensor:
    """The part of one gate, [hidden, ...], each dimension one axis."""
    x = narrow(call.names, x, 0, gate * hidden, hidden)
    for n in range(x.rank):
        x = flatten_dim(call.names, x, n)
    return x


def _activations(
    call: Call, n: int, defaults: Sequence[str]
) -> list[Callable[[Node], Node]]:
    chosen = call.attr("activations") or [*defaults, *defaults]
    wanted = [a.lower() for a in chosen[n * len(defaults) : (n + 1) * len(defaults)]]
    if unknown := [a for a in wanted if a not in _ACTIVATIONS]:
        raise Unsupported(f"with the activation {unknown[0]}")
    return [_ACTIVATIONS[a] for a in wanted]


def _new_dim(x: Tensor, at: int) -> Tensor:
    none: Dim = ()
    return Tensor(x.node, (*x.dims[:at], none, *x.dims[at:]))


def _in_layout(call: Call, x: Tensor) -> Tensor:
    """[time, direction, batch, hidden], or without time; batch goes first where asked for."""
    if not call.attr("layout", 0):
        return x
    return transpose(x, (2, 0, 1, 3) if x.rank == 4 else (1, 0, 2))


ROWS: tuple[Row, ...] = (
    Row("RNN", (7, 14, 22), _row(1, ("Tanh",), _rnn)),
    Row("GRU", (7, 14, 22), _row(3, ("Sigmoid", "Tanh"), _gru)),
    Row("LSTM", (7, 14, 22), _row(4, ("Sigmoid", "Tanh", "Tanh"), _lstm)),
)
