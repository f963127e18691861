"""A model's nodes as plain records in, a `ModelGraph` out: the walk over a model.

What only the package that read the model can do (evaluate one node on constants, infer a type,
write a model) comes in through `Foreign`; everything else is here and knows no file format.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from autosched.ir.frontend.call import Call, Result, Row, Unsupported, Value
from autosched.ir.frontend.coverage import flops
from autosched.ir.frontend.islands import Levels, boundary, group
from autosched.ir.frontend.literal import Array, Literals
from autosched.ir.frontend.table import TABLE
from autosched.ir.frontend.tensor import Names, Tensor, squeeze_axes
from autosched.ir.graph import Coverage, GraphValue, Island, ModelError, ModelGraph, Outside
from autosched.ir.node import IRError, Node, walk
from autosched.ir.ops import input_

FOLD_ELEMENTS = 2**20  # results up to this size are computed at import
KNOWN_FLOATS = 2**12  # weights above it are not folded, so that equal ones stay one
EMBED_BYTES = 2**28  # constants of an island above it are handed over as inputs
# What these yield is not a function of their operands.
RANDOM = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
     "Multinomial")
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class OpNode:
    """One node. since: the version of its operator's definition, 0 where there is none;
    captured: outer values that its subgraphs read; bodies: those subgraphs, by attribute;
    source: the node as its reader knows it."""

    name: str
    op: str
    domain: str
    since: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    captured: tuple[str, ...] = ()
    bodies: Mapping[str, Body] = field(default_factory=dict)
    source: Any = None

    def __str__(self) -> str:
        label = f" {self.name!r}" if self.name else ""
        return f"{self.op}{label} (makes {', '.join(o for o in self.outputs if o)})"

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*(i for i in self.inputs if i), *self.captured)))


@dataclass(frozen=True, eq=False)
class Body:
    """A graph inside a node."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    nodes: tuple[OpNode, ...]


@dataclass(frozen=True)
class TensorType:
    dtype: str
    shape: tuple[int, ...]


class Foreign(Protocol):
    """What the walk needs of the package that read the model."""

    def fold(self, node: OpNode, operands: Sequence[Array | None]) -> list[Array] | None:
        """The results of a node whose operands are constants; None where it can't be told."""

    def infer(self, node: OpNode, operands: Mapping[str, Value]) -> list[TensorType | None]:
        """Type and shape of each output, as far as they are known."""

    def allow(self, left: Sequence[tuple[OpNode, str]]) -> None:
        """Looks at the nodes that no row covers, each with the reason, before they become
        islands. Raises: ModelError where they can't."""

    def write_model(
        self,
        nodes: Sequence[OpNode],
        inputs: Sequence[tuple[str, TensorType]],
        outputs: Sequence[str],
        constants: Mapping[str, Array],
    ) -> bytes:
        """A serialised ONNX model of these nodes."""


@dataclass(frozen=True, eq=False)
class Source:
    """A model as its reader delivers it: nodes in an order in which they can run, and the
    table of the operators that they name."""

    inputs: tuple[tuple[str, TensorType, tuple[str, ...]], ...]  # the last: symbols, "" for none
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    nodes: tuple[OpNode, ...]
    table: Mapping[str, Row] = field(default_factory=lambda: TABLE)


@dataclass(frozen=True, eq=False)
class _Left:
    """A node left to onnxruntime."""

    node: OpNode
    level: int
    reason: str
    flops: int


@dataclass(eq=False)
class _Walk:
    foreign: Foreign
    table: Mapping[str, Row]
    names: Names = field(default_factory=Names)
    env: dict[str, Value] = field(default_factory=dict)
    levels: Levels = field(default_factory=Levels)
    left: list[_Left] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.literals = Literals(self.names)

    # ---- one node -----------------------------------------------------------------------------

    def visit(self, node: OpNode) -> None:
        for name in node.reads:
            if name not in self.env:
                raise ModelError(
                    f"{node} reads {name!r}, which nothing before it makes: the file is damaged "
                    "or was cut short; fetch or export it again"
                )
        try:
            results = self._results(node, self.env)
        except Unsupported as why:
            self._leave(node, str(why))
            return
        except IRError as why:
            self._leave(node, f"its operands do not fit the algebra: {why}")
            return
        except ModelError as why:
            raise ModelError(f"{node}: {why}") from None
        run_time = [name for name in node.reads if self.env[name].known is None]
        self.levels.place(run_time, node.outputs, outside=False)
        for name, result in zip(node.outputs, results):
            if name and result is not None:
                self.env[name] = _value(name, result)

    def _results(self, node: OpNode, env: Mapping[str, Value]) -> Sequence[Result]:
        operands = tuple(env[name] if name else None for name in node.inputs)
        constant = (
            all(v is None or v.known is not None for v in operands)
            and not node.captured
            and node.op not in RANDOM
        )
        empty = any(v is not None and v.known is not None and not v.known.size for v in operands)
        if constant and (empty or not self._has_row(node)):
            folded = self.foreign.fold(node, [v.known if v else None for v in operands])
            if folded is not None:
                return folded
        try:
            results = self._built(node, operands, env)
        except Unsupported:
            arrays = [v.known if v else None for v in operands]
            folded = self.foreign.fold(node, arrays) if constant else None
            if folded is None:
                raise
            return folded
        if not constant or any(isinstance(r, np.ndarray) for r in results):
            return results
        if sum(math.prod(r.shape) for r in results if r is not None) > FOLD_ELEMENTS:
            return results
        folded = self.foreign.fold(node, [v.known if v else None for v in operands])
        return results if folded is None else folded

    def _has_row(self, node: OpNode) -> bool:
        row = self.table.get(node.op)
        return row is not None and not node.domain and node.since in row.since

    def _built(
        self, node: OpNode, operands: tuple[Value | None, ...], env: Mapping[str, Value]
    ) -> Sequence[Result]:
        row = self.table.get(node.op)
        if node.domain or row is None:
            raise Unsupported("not in the operator table")
        if node.since not in row.since:
            raise Unsupported(f"its version {node.since} is unknown")
        bodies = {
            name: partial(self._inside, body, env, f"{node.outputs[0]}/{name}/")
            for name, body in node.bodies.items()
        }
        call = Call(
            node.op, node.since, operands, node.attrs, len(node.outputs), self.names,
            self.literals, bodies,
        )  # fmt: skip
        made = row.build(call)
        return made if isinstance(made, tuple) else (made,)

    def _inside(
        self, body: Body, outer: Mapping[str, Value], scope: str, given: Sequence[Result]
    ) -> list[Tensor]:
        """What a graph inside a node makes of its inputs; it may read the outer values too.

        scope: makes names of two such graphs different, as literals want them.
        """
        env = dict(outer)
        env |= {n: _constant(scope + n, a) for n, a in body.constants.items()}
        env |= {n: _value(scope + n, x) for n, x in zip(body.inputs, given, strict=True)}
        for node in body.nodes:
            for name, result in zip(node.outputs, self._results(node, env)):
                if name and result is not None:
                    env[name] = _value(scope + name, result)
        return [self._tensor(env[name]) for name in body.outputs]

    def _tensor(self, value: Value) -> Tensor:
        if value.tensor is not None:
            return value.tensor
        if value.constant is None:
            raise Unsupported(f"makes {value.name}, which is not a tensor of known shape and type")
        return self.literals.tensor(value.constant, value.name)

    def _leave(self, node: OpNode, reason: str) -> None:
        run_time = [name for name in node.reads if self.env[name].known is None]
        level = self.levels.place(run_time, node.outputs, outside=True)
        types = self.foreign.infer(node, self.env)
        self.left.append(_Left(node, level, reason, _estimate(node, self.env, types)))
        for name, kind in zip(node.outputs, types):
            if not name:
                continue
            if kind is None:
                self.env[name] = Value(name)
                continue
            axes = tuple((self.names.fresh(f"{name}_{n}"), s) for n, s in enumerate(kind.shape))
            made = input_(name, dict(axes), kind.dtype)
            self.env[name] = _value(name, squeeze_axes(made, axes), made)

    # ---- the whole ----------------------------------------------------------------------------

    def graph_value(self, name: str) -> GraphValue:
        value = self.env[name]
        if value.tensor is None and value.constant is None:
            raise self._opaque(name)
        tensor = value.tensor
        if tensor is None:
            assert value.constant is not None
            tensor = self.literals.tensor(value.constant, name)
        dims = tuple(axis for axis, _ in tensor.axes)
        extents = tuple(extent for _, extent in tensor.axes)
        return GraphValue(name, tensor.node, dims, extents, tensor.shape)

    def _opaque(self, name: str) -> ModelError:
        maker = next((str(x.node) for x in self.left if name in x.node.outputs), "nothing")
        return ModelError(
            f"{name!r} must be a tensor of a common type and of a shape that is known before the "
            f"model runs, since kernels are tuned for shapes, but {maker} yields something else; "
            "cut the model before that"
        )

    def islands(self, read: Set[str]) -> tuple[Island, ...]:
        """Groups of the nodes left out; `read` are the values that the algebra reads."""
        triples = [(x.level, x.node.reads, x.node.outputs) for x in self.left]
        groups = group(triples)
        place = {x: g for g, members in enumerate(groups) for x in members}
        used = set(read)
        maker = {name: n for n, x in enumerate(self.left) for name in x.node.outputs if name}
        for n, item in enumerate(self.left):
            for name in item.node.reads:
                if name in maker and place[maker[name]] != place[n]:
                    used.add(name)
        return tuple(
            self._island(g, [self.left[n].node for n in members], used)
            for g, members in enumerate(groups)
        )

    def _island(self, number: int, nodes: Sequence[OpNode], used: Set[str]) -> Island:
        read, made = boundary([(n.reads, n.outputs) for n in nodes], used)
        constants: dict[str, Array] = {}
        inputs: list[GraphValue] = []
        room = EMBED_BYTES
        for name in read:
            array = self.env[name].constant
            small = self.env[name].known is not None
            if array is not None and (small or array.nbytes <= room):
                constants[name] = array
                room -= array.nbytes
            else:
                inputs.append(self.graph_value(name))
        types = [(v.name, TensorType(v.node.dtype, v.shape)) for v in inputs]
        model = self.foreign.write_model(nodes, types, made, constants)
        outputs = []
        for name in made:
            node = self.env[name].source
            if node is None:
                raise self._opaque(name)
            outputs.append(node)
        ops = tuple(sorted({n.op for n in nodes}))
        return Island(f"island{number}", tuple(inputs), tuple(outputs), ops, model)


def _value(name: str, result: Result, source: Node | None = None) -> Value:
    """A result as a value; a tensor without elements is known whatever made it."""
    if isinstance(result, np.ndarray):
        return Value(name, known=result)
    assert isinstance(result, Tensor)
    if 0 in result.shape:
        return Value(name, np.zeros(result.shape, np.dtype(result.dtype)), result, source=source)
    return Value(name, None, result, source=source)


def _constant(name: str, array: Array) -> Value:
    """Small constants and integers take part in folding; larger weights are only read."""
    limit = FOLD_ELEMENTS if array.dtype.kind in "biuUSO" else KNOWN_FLOATS
    return Value(name, array if array.size <= limit else None, stored=array)


def _estimate(node: OpNode, env: Mapping[str, Value], types: Sequence[TensorType | None]) -> int:
    """Operations of a node outside: contractions by their weights, others one per element."""
    made = sum(math.prod(t.shape) for t in types if t is not None)
    weight = env[node.inputs[1]] if len(node.inputs) > 1 and node.inputs[1] else None
    shape = weight.shape if weight is not None else None
    if shape and node.op in ("Conv", "ConvInteger", "FusedConv") and len(shape) > 2:
        return 2 * made * math.prod(shape[1:])
    if shape and "MatMul" in node.op and len(shape) > 1:
        return 2 * made * shape[-2]
    if shape and node.op in ("LSTM", "GRU", "RNN") and env[node.inputs[0]].shape:
        steps = (env[node.inputs[0]].shape or (1,))[:2]
        return 2 * math.prod(steps) * (math.prod(shape) + math.prod(shape[:2]) * shape[1])
    return made


def build_graph(source: Source, foreign: Foreign) -> ModelGraph:
    """The model as one algebra DAG; nodes that no row of the table covers become islands."""
    state = _Walk(foreign, source.table)
    inputs = []
    symbols: dict[str, str] = {}
    for name, kind, dims in source.inputs:
        axes: dict[str, int] = {}
        for n, (symbol, size) in enumerate(zip(dims, kind.shape)):
            axis = symbols.get(symbol)
            if axis is None or axis in axes:
                axis = state.names.fresh(symbol or f"{name}_{n}")
            if symbol:
                symbols.setdefault(symbol, axis)
            axes[axis] = size
        node = input_(name, axes, kind.dtype)
        inputs.append(node)
        state.env[name] = _value(name, squeeze_axes(node, tuple(axes.items())), node)
    for name, array in source.constants.items():
        state.env[name] = _constant(name, array)
    for op in source.nodes:
        state.visit(op)
    foreign.allow([(x.node, x.reason) for x in state.left])
    for name in source.outputs:
        if name not in state.env:
            raise ModelError(f"nothing makes the output {name!r}: the file is damaged")
    outputs = tuple(state.graph_value(name) for name in source.outputs)
    outside = {x.node for x in state.left}
    read = {name for op in source.nodes if op not in outside for name in op.reads}
    islands = state.islands(read | set(source.outputs))
    roots = [v.node for v in outputs] + [v.node for i in islands for v in i.inputs]
    used = {n.attr[0] for n in walk(*roots) if n.op == "input" and n.attr[3] == "weight"}
    weights = {k: w for k, w in state.literals.weights.items() if k in used}
    ours = flops(roots)
    theirs = sum(x.flops for x in state.left)
    counts = Counter((x.node.op, x.reason) for x in state.left)
    coverage = Coverage(
        ours, ours + theirs, tuple(Outside(op, n, why) for (op, why), n in sorted(counts.items()))
    )
    return ModelGraph(tuple(inputs), outputs, islands, weights, coverage)
