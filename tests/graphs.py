"""Model graphs written with the algebra builders, and a runner of partitions on the interpreter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autosched.ir.graph import Coverage, GraphValue, Island, ModelGraph, WeightRef
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Output, Program
from autosched.ir.ops import (
    cast,
    const,
    eq,
    erf,
    exp,
    input_,
    iota,
    isnan,
    max_,
    reaxis,
    rename,
    sigmoid,
    sqrt,
    sum_,
    take,
    where,
)  # fmt: skip
from autosched.ir.partition import IslandStep, Partition
from autosched.ir.views import walk_values

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Model:
    """Collects the inputs, weights and values of one model; axes get names of their own."""

    seed: int = 0
    inputs: dict[str, Node] = field(default_factory=dict)
    weights: dict[str, WeightRef] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    names: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def axis(self, hint: str) -> str:
        self.names += 1
        return f"{hint}_{self.names}"

    def arg(
        self, name: str, dims: Mapping[str, int], dtype: str = "float32", high: int = 2
    ) -> Node:
        node = input_(name, dims, dtype)
        self.inputs[name] = node
        shape = tuple(dims.values())
        if dtype.startswith("float"):
            self.arrays[name] = self.rng.standard_normal(shape).astype(dtype)
        else:
            self.arrays[name] = self.rng.integers(0, high, shape).astype(dtype)
        return node

    def weight(self, dims: Mapping[str, int]) -> Node:
        name = f"weight {len(self.weights)}"
        shape = tuple(dims.values())
        data = (self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype("float32")
        digest = hashlib.sha256(data.tobytes()).hexdigest()
        self.weights[name] = WeightRef(name, "float32", shape, digest, data)
        self.arrays[name] = data
        return input_(name, dims, "float32", "weight")

    def graph(
        self, outputs: Mapping[str, tuple[Node, Sequence[str]]], islands: Sequence[Island] = ()
    ) -> ModelGraph:
        return ModelGraph(
            tuple(self.inputs.values()),
            tuple(value(name, node, dims) for name, (node, dims) in outputs.items()),
            tuple(islands), self.weights, Coverage(0, 0),
        )  # fmt: skip

    # ---- layers; values are over a batch axis (or none), a row axis and a column axis

    def linear(self, x: Node, inner: str, width: int, bias: bool = True) -> tuple[Node, str]:
        """x @ w + b over a new column axis."""
        out = self.axis("n")
        depth = x.extent(inner)
        assert isinstance(depth, int)
        y = sum_(inner, x * self.weight({inner: depth, out: width}))
        return (y + self.weight({out: width}) if bias else y), out

    def layernorm(self, x: Node, axis: str) -> Node:
        n = float(str(x.extent(axis)))
        d = x - sum_(axis, x) / n
        scale, shift = (self.weight({axis: int(n)}) for _ in range(2))
        return d / sqrt(sum_(axis, d * d) / n + 1e-5) * scale + shift

    def rmsnorm(self, x: Node, axis: str) -> Node:
        n = float(str(x.extent(axis)))
        return x * (1.0 / sqrt(sum_(axis, x * x) / n + 1e-6)) * self.weight({axis: int(n)})


def value(name: str, node: Node, dims: Sequence[str]) -> GraphValue:
    sizes = dict(node.free)
    extents = tuple(int(str(sizes[d])) for d in dims)
    return GraphValue(name, node, tuple(dims), extents, extents)


def gelu(x: Node) -> Node:
    return x * 0.5 * (erf(x / 2.0**0.5) + 1.0)


def softmax(x: Node, axis: str) -> Node:
    p = exp(x - max_(axis, x))
    p = p / sum_(axis, p)
    return where(isnan(p), 0.0, p)


def attention(
    m: Model, q: Node, k: Node, v: Node, cols: tuple[str, str, str], rows: str, heads: int,
    mask: Node | None = None, key_heads: int = 0,
) -> tuple[Node, str, str]:  # fmt: skip
    """Attention of projections over (rows, columns), split into heads by views.

    mask: over the row axis, which then is that of keys. Returns o over (row, head, size).
    """
    size = int(str(q.extent(cols[0]))) // heads
    length = int(str(q.extent(rows)))
    groups = heads // (key_heads or heads)
    i, j, x, h, d, e = (m.axis(a) for a in "ijxhde")
    head = iota(h, heads)
    kv_head = head if groups == 1 else head // groups
    q = reaxis(q, {rows: iota(i, length), cols[0]: head * size + iota(d, size)})
    k = reaxis(k, {rows: iota(j, length), cols[1]: kv_head * size + iota(d, size)})
    v = reaxis(v, {rows: iota(x, length), cols[2]: kv_head * size + iota(e, size)})
    s = sum_(d, q * size**-0.25 * (k * size**-0.25))
    if mask is not None:
        s = s + rename(mask, {rows: j})
    return sum_(x, rename(softmax(s, j), {j: x}) * v), h, e


def rope(m: Model, x: Node, rows: str, col: str, heads: int, cos: Node, sin: Node) -> Node:
    """x[rows, heads * size] turned by cos and sin over (rows, half a size)."""
    size = int(str(x.extent(col))) // heads
    half = size // 2
    n = iota(col, size * heads)
    at = n % size
    low, high = at < half, reaxis(x, {col: (n // size) * size + (at + half) % size})
    angle = {next(a for a in cos.names if a != rows): at % half}
    return x * reaxis(cos, angle) + where(low, -high, high) * reaxis(sin, angle)


def encoder_layer(m: Model, x: Node, rows: str, col: str, heads: int, mask: Node | None) -> Node:
    """One BERT layer; the result is over the same axes as x."""
    q, k, v = (m.linear(x, col, int(str(x.extent(col)))) for _ in range(3))
    o, h, e = attention(m, q[0], k[0], v[0], (q[1], k[1], v[1]), rows, heads, mask)
    i = next(a for a in o.names if a not in x.names and a not in (h, e))
    o = rename(o, {i: rows})
    width = int(str(x.extent(col)))
    out = m.axis("n")
    size = int(str(o.extent(e)))
    c = m.axis("c")
    merged = reaxis(o, {h: iota(c, width) // size, e: iota(c, width) % size})
    y = sum_(c, merged * m.weight({c: width, out: width})) + m.weight({out: width})
    x = m.layernorm(rename(y, {out: col}) + x, col)
    z, f = m.linear(x, col, 4 * width)
    z, last = m.linear(gelu(z), f, width)
    return m.layernorm(rename(z, {last: col}) + x, col)


def swiglu(m: Model, x: Node, col: str, width: int) -> Node:
    f = m.axis("f")
    depth = int(str(x.extent(col)))
    gate, up = (sum_(col, x * m.weight({col: depth, f: width})) for _ in range(2))
    out = m.axis("n")
    return rename(sum_(f, gate * sigmoid(gate) * up * m.weight({f: width, out: depth})), {out: col})


def embedding(m: Model, rows: str, length: int, vocabulary: int, width: int) -> tuple[Node, str]:
    """Token rows plus position rows."""
    v, p, col = m.axis("v"), m.axis("p"), m.axis("c")
    ids = m.arg("ids", {rows: length}, "int64", vocabulary)
    tokens = take(m.weight({v: vocabulary, col: width}), v, ids)
    positions = m.weight({p: 2 * length, col: width})
    return tokens + take(positions, p, cast(iota(rows, length), "int64")), col


def additive_mask(m: Model, rows: str, length: int) -> Node:
    keep = m.arg("keep", {rows: length}, "int64", 2)
    return where(eq(keep, const(1, "int64")), const(0.0, "float32"), const(-1e9, "float32"))


# ---- running -----------------------------------------------------------------------------------


def run_graph(graph: ModelGraph, arrays: Arrays, islands: Mapping[str, Any] = {}) -> Arrays:
    """The outputs of a whole graph, islands computed by the functions given."""
    arrays = dict(arrays)
    for island in graph.islands:
        found = [_values((v,), arrays)[v.name] for v in island.inputs]
        for node, data in zip(island.outputs, islands[island.name](*found)):
            arrays[str(node.attr[0])] = data
    return _values(graph.outputs, arrays)


def _values(values: Sequence[GraphValue], arrays: Arrays) -> Arrays:
    nodes = tuple(v.node for v in values)
    inputs = tuple(n for n in walk_values(*nodes) if n.op == "input")
    outputs = tuple(Output(v.name, v.dims, v.node.dtype, v.extents) for v in values)
    given = {str(n.attr[0]): arrays[str(n.attr[0])] for n in inputs}
    return evaluate(Program("algebra", inputs, outputs, nodes), given)


def run_partition(part: Partition, arrays: Arrays, islands: Mapping[str, Any] = {}) -> Arrays:
    """Every value after all steps, each task evaluated by the interpreter."""
    arrays = dict(arrays)
    for step in part.steps:
        if isinstance(step, IslandStep):
            found = [arrays[name] for name in step.inputs]
            arrays |= dict(zip(step.outputs, islands[step.name](*found)))
            continue
        program = part.task(step.task).program
        given = {
            str(node.attr[0]): arrays[name].reshape([e for _, e in node.attr[1]])
            for node, name in zip(program.inputs, step.inputs)
        }
        results = evaluate(program, given)
        for output, name in zip(program.outputs, step.outputs):
            arrays[name] = results[output.name].reshape(part.values[name].extents)
    return arrays
