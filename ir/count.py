"""Algebra program in, its work out: floating-point operations, special functions, bytes.

Facts of the definition, not of a schedule: every value is computed once at its own axes, every
input element that is needed is read once, every output element is written once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autosched.ir.monoid import MONOIDS
from autosched.ir.node import Axes, IRError, Node, Program
from autosched.ir.scalar import FLOATS, ITEMSIZE, SCALARS, split_name
from autosched.ir.views import operands, walk_values

# What one evaluation costs, in simple operations of the vector unit: cycles for 16 lanes of the
# polynomials of codegen/vecmath.py on one Zen 4 core, rounded; without an entry in the first two
# rows, estimates. `div` and `sqrt` are instructions of low throughput.
SPECIAL_COST: Mapping[str, float] = {
    "sqrt": 10, "rsqrt": 16, "exp": 10, "exp2": 8, "log": 22, "log2": 22,
    "tanh": 15, "erf": 16, "sin": 34, "cos": 34, "pow": 88,
    "div": 8, "log1p": 40, "tan": 70,
}  # fmt: skip
_OTHER_SPECIAL = 24.0
_CLASS_COST = {"arith": 1.0, "int": 1.0, "move": 1.0}
# Operations to combine two states of a monoid with several components.
_COMBINE_COST = {"argmax": 3, "argmin": 3, "logsumexp": 26, "moments": 12}


@dataclass(frozen=True)
class Work:
    """flops: additions, multiplications and the like, two for a multiply-add; contraction_flops:
    the part of them inside contractions; special: exp, div, ... evaluated; weighted: flops plus
    special functions by their cost; read_bytes and write_bytes: inputs and outputs once."""

    flops: int
    contraction_flops: int
    special: int
    weighted: float
    read_bytes: int
    write_bytes: int

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.write_bytes


def volume(axes: Axes, without: Iterable[str] = ()) -> int:
    """Number of points of the box over `axes`, except those named in `without`."""
    gone = set(without)
    sizes = [extent for axis, extent in axes if axis not in gone]
    if not all(isinstance(s, int) for s in sizes):
        raise IRError(f"the extents {sizes} are not numbers yet")
    return math.prod(s for s in sizes if isinstance(s, int))


def nbytes(node: Node) -> int:
    """Bytes of all results of a node over their free axes."""
    return sum(ITEMSIZE[t.dtype] * volume(t.axes) for t in node.types)


def scalar_cost(fn: str) -> float:
    """Cost of one evaluation of a scalar function, in simple operations."""
    name = split_name(fn)[0]
    cost = SCALARS[name].cost
    return SPECIAL_COST.get(name, _OTHER_SPECIAL) if cost == "special" else _CLASS_COST[cost]


def body_axes(node: Node) -> Axes:
    """The axes of the loop nest that computes a reduce or scan, bound ones included."""
    return tuple(sorted({axis for s in node.src for axis in s.free}, key=lambda a: a[0]))


def _strip(node: Node) -> Node:
    while node.op == "map" and split_name(node.attr[0])[0] == "cast":
        node = node.src[0]
    return node


def factors(node: Node) -> tuple[Node, Node] | None:
    """The two factors of a contraction, reduce(sum, a * b), each reused along axes of the other.

    Both have an axis that the other lacks, or one of them is read again for every element of
    the other: then it is a product of a matrix with a vector. Anything else is None.
    """
    if node.op != "reduce" or node.attr[0] != "sum":
        return None
    body = _strip(node.src[0])
    if body.op != "map" or body.attr[0] != "mul":
        return None
    a, b = body.src
    bound = set(node.attr[1])
    if set(a.names) == set(b.names) or not (bound & set(a.names) and bound & set(b.names)):
        return None
    return a, b


def node_cost(node: Node) -> float:
    """Weighted operations to compute a node once from its operands."""
    if node.op == "map":
        return scalar_cost(node.attr[0]) * volume(node.axes)
    if node.op in ("reduce", "scan"):
        return _combine_cost(node.attr[0]) * volume(body_axes(node))
    return 0.0


def _combine_cost(monoid: str) -> float:
    return float(_COMBINE_COST.get(monoid, MONOIDS[monoid].arity))


def _fold_steps(values: Iterable[Node]) -> dict[str, tuple[str, int]]:
    """Axis and number of steps of the fold that carries each state."""
    out: dict[str, tuple[str, int]] = {}
    for node in values:
        if node.op == "fold":
            axis, names = node.attr[:2]
            steps = volume(tuple((a, e) for a, e in body_axes(node) if a == axis))
            out |= dict.fromkeys(names, (axis, steps))
    return out


def _repeats(node: Node, steps: Mapping[str, tuple[str, int]]) -> int:
    """How often a value is computed at each of its points: once a step where it reads a state."""
    loops = {steps[name] for name in node.carries if name in steps}
    return math.prod(n for axis, n in loops if axis not in dict(node.free))


def read_once(program: Program) -> dict[Node, int]:
    """Bytes of every input that the program needs: of a gather only what can be reached."""
    whole = {node: nbytes(node) for node in program.inputs}
    reached: dict[Node, int] = {}
    for node in walk_values(*program.body):
        for source in operands(node):
            if source.op == "input":
                part = nbytes(node) if node.op in ("reaxis", "take") else whole[source]
                reached[source] = reached.get(source, 0) + part
    for root in program.body:
        if root.op == "input":
            reached[root] = whole[root]
    return {n: min(whole[n], reached.get(n, 0)) for n in program.inputs}


def count(program: Program) -> Work:
    """The work of an algebra program with known extents."""
    flops = special = in_contractions = 0
    weighted = 0.0
    values = list(walk_values(*program.body))
    steps = _fold_steps(values)
    products = {_strip(n.src[0]) for n in values if factors(n)}
    for node in values:
        times = _repeats(node, steps)
        weighted += times * node_cost(node)
        if node.op == "map" and node.dtype in (*FLOATS, "bool"):
            points = times * volume(node.axes)
            kind = SCALARS[split_name(node.attr[0])[0]].cost
            special += points if kind == "special" else 0
            flops += points if kind == "arith" and node.src[0].dtype in FLOATS else 0
            in_contractions += points if node in products else 0
        elif node.op in ("reduce", "scan") and node.types[0].dtype in FLOATS:
            points = times * volume(body_axes(node))
            flops += points
            in_contractions += points if factors(node) else 0
    written = sum(
        ITEMSIZE[o.dtype] * volume(tuple(zip(o.dims, o.extents))) for o in program.outputs
    )
    return Work(
        flops, in_contractions, special, weighted, sum(read_once(program).values()), written
    )
