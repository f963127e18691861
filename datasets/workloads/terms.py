"""Inputs, outputs and scalar formulas that many definitions share.

Inputs of any float type are read as float32 and results are stored in the type of the inputs,
so that a definition says once what its arithmetic is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    abs_,
    carry,
    cast,
    const,
    erf,
    exp,
    fold,
    get,
    input_,
    iota,
    map_,
    max_,
    maximum,
    minimum,
    reaxis,
    reduce_,
    rsqrt,
    sigmoid,
    sum_,
    tanh,
    where,
)
from autosched.ir.scalar import FLOATS

F32 = "float32"
Extents = Mapping[str, int]


def inputs(sizes: Extents, dtype: str, kind: str = "arg", **dims: str) -> tuple[Node, ...]:
    """One input for each `name="b h t d"`: floats as float32 values, integers as they are."""
    made = (
        input_(name, {a: sizes[a] for a in axes.split()}, dtype, kind)
        for name, axes in dims.items()
    )
    return tuple(cast(x, F32) if dtype in FLOATS else x for x in made)


def weights(sizes: Extents, dtype: str, **dims: str) -> tuple[Node, ...]:
    """`inputs` that are constants of the compiled program."""
    return inputs(sizes, dtype, "weight", **dims)


def results(dtype: str, **outputs: tuple[str, Node]) -> Program:
    """The program of `name=("b h t e", value)`, float32 values stored as `dtype`."""
    stored = {
        name: (dims, cast(value, dtype) if value.dtype == F32 else value)
        for name, (dims, value) in outputs.items()
    }
    return algebra(**stored)


def number(value: float) -> Node:
    return const(value, F32)


# ---- scalar formulas -----------------------------------------------------------------------


def relu(x: Node) -> Node:
    return maximum(x, 0.0)


def silu(x: Node) -> Node:
    return x * sigmoid(x)


def gelu(x: Node) -> Node:
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Node) -> Node:
    """The approximation of gelu by tanh, as Gemma and GPT-2 use it."""
    return 0.5 * x * (1.0 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def softplus(x: Node) -> Node:
    """log(1 + exp(x)), without overflow."""
    return relu(x) + map_("log1p", exp(-abs_(x)))


def log_sigmoid(x: Node) -> Node:
    return -softplus(-x)


def elu_plus_one(x: Node) -> Node:
    return where(x > 0.0, x + 1.0, exp(minimum(x, 0.0)))


# ---- along an axis ---------------------------------------------------------------------------


def size(x: Node, axes: str) -> float:
    return float(math.prod(int(x.extent(a)) for a in axes.split()))


def mean(axes: str, x: Node) -> Node:
    return sum_(axes.split(), x) / size(x, axes)


def norm(axes: str, x: Node) -> Node:
    return map_("sqrt", sum_(axes.split(), x * x))


def unit_length(axes: str, x: Node, eps: float = 1e-6) -> Node:
    return x * rsqrt(sum_(axes.split(), x * x) + eps)


def rmsnorm(axes: str, x: Node, eps: float = 1e-6) -> Node:
    return x * rsqrt(mean(axes, x * x) + eps)


def softmax(axis: str, x: Node) -> Node:
    p = exp(x - max_(axis, x))
    return p / sum_(axis, p)


def argmax(axis: str, x: Node) -> Node:
    """The first place of the largest value along an axis."""
    return get(reduce_("argmax", axis, x, iota(axis, x.extent(axis))), 1)


def argmin(axis: str, x: Node) -> Node:
    return get(reduce_("argmin", axis, x, iota(axis, x.extent(axis))), 1)


def spread(x: Node, axis: str, extent: int) -> Node:
    """x at every place of an axis that it does not have."""
    return where(iota(axis, extent) >= 0, x, 0.0)


def flip(x: Node, axis: str) -> Node:
    last = int(x.extent(axis)) - 1
    return reaxis(x, {axis: last - iota(axis, last + 1)})


def shift(x: Node, axis: str) -> Node:
    """Row n of the result is row n - 1 of x; row 0 is zero."""
    at = iota(axis, x.extent(axis))
    return where(at > 0, reaxis(x, {axis: maximum(at - 1, 0)}), 0.0)


# ---- recurrences -----------------------------------------------------------------------------

Step = Callable[[Node], Node]


def state(name: str, sizes: Extents, dims: str) -> Node:
    """The state `name` inside a recurrence, over the axes `dims`."""
    return carry(name, F32, {a: sizes[a] for a in dims.split()})


def recurrence(
    axis: str, sizes: Extents, dims: str, step: Step, read: Step, start: Node | None = None
) -> tuple[Node, Node]:
    """(what `read` sees of each new state along `axis`, the last state).

    dims: the state's axes; start: the state before the first step, zeros if not given.
    """
    new = step(state("S", sizes, dims))
    begin = number(0.0) if start is None else start
    loop = fold(axis, [(0, sizes[axis])], {"S": (begin, new)}, [read(new)])
    return get(loop, 1), get(loop, 0)


def recurrences(
    axis: str, size: int, states: Mapping[str, tuple[Node, Node]], outs: Sequence[Node]
) -> tuple[Node, ...]:
    """What `outs` are at each step of a recurrence of several states {name: (start, next)}."""
    loop = fold(axis, [(0, size)], states, outs)
    return tuple(get(loop, len(states) + n) for n in range(len(outs)))


def linear_step(k: Node, v: Node, g: Node | None = None) -> Step:
    """S becomes exp(g) S + k v."""
    return lambda S: (S if g is None else exp(g) * S) + k * v


def delta_step(k: Node, v: Node, beta: Node, g: Node | None = None) -> Step:
    """S becomes exp(g) S, and then what it says of k moves towards v by beta."""

    def step(S: Node) -> Node:
        kept = S if g is None else exp(g) * S
        return kept + k * (beta * (v - sum_("d", k * kept)))

    return step


def query(q: Node, scale: float = 1.0) -> Step:
    """Reads the row q of a state over d and e."""
    return lambda S: sum_("d", q * S) * scale
