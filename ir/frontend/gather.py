"""The rows that read at integer values: embeddings, page tables, picked rows."""

from __future__ import annotations

from collections.abc import Hashable

from autosched.ir.extent import simplify
from autosched.ir.frontend.call import Call, Row
from autosched.ir.frontend.tensor import (
    Names,
    Tensor,
    as_index,
    flatten_dim,
    index_of,
    narrow,
    unify,
    view,
)
from autosched.ir.graph import ModelError
from autosched.ir.linear import range_of
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, map_, maximum, minimum, take, where


def read_at(value: Node, axis: str, extent: int, index: Node) -> Node:
    """`value` where `axis` reads as `index`; negative indices count from the end.

    An index that run-time data decide is kept inside the axis, so that no kernel made of this
    reads beyond its memory: what ONNX leaves undefined yields the nearest entry here.
    """
    at = as_index(index)
    if at is not None:
        lo, hi = range_of(at)
        if hi is not None and hi < 0:
            at, lo, hi = simplify(at + extent), (lo or 0) + extent, hi + extent
        if lo is not None and hi is not None and lo >= 0 and hi < extent:
            return view(value, {axis: at})
    wrapped = where(index < 0, index + extent, index)
    return take(value, axis, minimum(maximum(wrapped, 0), extent - 1))


def _index(x: Tensor) -> Tensor:
    return x if x.dtype in ("int32", "int64") else x.with_node(cast(x.node, "int64"))


def rows_at(names: Names, data: Tensor, index: Tensor, at: int) -> Tensor:
    """`data` with dimension `at` replaced by the dimensions of `index`, as numpy.take."""
    data, index = flatten_dim(names, data, at), _index(index)
    labels: list[Hashable] = [("data", n) for n in range(data.rank)]
    marks: list[Hashable] = [("index", n) for n in range(index.rank)]
    (value, where_), axes = unify(names, (data, labels), (index, marks))
    for name, extent in axes["data", at]:
        if name in value.names:
            value = read_at(value, name, extent, where_)
    out = [*labels[:at], *marks, *labels[at + 1 :]]
    return Tensor(value, tuple(axes[label] for label in out))


def _gather(call: Call) -> Tensor:
    data = call.x(0)
    return rows_at(call.names, data, call.x(1), data.position(call.attr("axis", 0)))


def _gather_elements(call: Call) -> Tensor:
    data, index = call.x(0), _index(call.x(1))
    at = data.position(call.attr("axis", 0))
    data = flatten_dim(call.names, data, at)
    for n, size in enumerate(index.shape):
        if n != at:
            data = narrow(call.names, data, n, 0, size)
    labels: list[Hashable] = list(range(data.rank))
    own = [("along",) if n == at else n for n in labels]
    (value, where_), axes = unify(call.names, (data, own), (index, labels))
    for name, extent in axes["along",]:
        if name in value.names:
            value = read_at(value, name, extent, where_)
    return Tensor(value, tuple(axes[n] for n in labels))


def _gather_nd(call: Call) -> Tensor:
    data, index = call.x(0), _index(call.x(1))
    batch = call.attr("batch_dims", 0)
    depth = index.shape[-1]
    if batch + depth > data.rank:
        raise ModelError(f"{depth} indices into a tensor of rank {data.rank}")
    for n in range(batch, batch + depth):
        data = flatten_dim(call.names, data, n)
    index = flatten_dim(call.names, index, index.rank - 1)
    shared: list[Hashable] = list(range(batch))
    labels = [*shared, *(("data", n) for n in range(batch, data.rank))]
    marks = [*shared, *(("index", n) for n in range(batch, index.rank))]
    (value, where_), axes = unify(call.names, (data, labels), (index, marks))
    for n in range(depth):
        at = {name: const(n, "int32") for name, _ in axes[marks[-1]]}
        for name, extent in axes["data", batch + n]:
            if name in value.names:
                value = read_at(value, name, extent, view(where_, at))
    out = [*marks[:-1], *labels[batch + depth :]]
    return Tensor(value, tuple(axes[label] for label in out))


def _tensor_scatter(call: Call) -> Tensor:
    """A cache in which the entries from an index on are new; each sample has its own index."""
    past, update = call.x(0), call.x(1)
    at = past.position(call.attr("axis", -2))
    size, count = past.shape[at], update.shape[at]
    update = flatten_dim(call.names, update, at)
    labels: list[Hashable] = list(range(past.rank))
    own = [("new",) if n == at else n for n in labels]
    start = call.x(2) if call.has(2) else Tensor(const(0, "int32"), ((),))
    (old, new, first), axes = unify(call.names, (past, labels), (update, own), (start, [0]))
    step = cast(index_of(axes[at]), first.dtype) - first
    if call.attr("mode", "linear") == "circular":
        step = map_("mod", step, size)
    for name, extent in axes["new",]:
        new = take(new, name, minimum(maximum(step, 0), extent - 1))
    node = where((step >= 0) & (step < count), new, old)
    return Tensor(node, tuple(axes[n] for n in labels))


def _reverse_sequence(call: Call) -> Tensor:
    """The first entries along one dimension in the other order, as many as each sample says."""
    x, at, batch = call.x(0), call.attr("time_axis", 0), call.attr("batch_axis", 1)
    x = flatten_dim(call.names, x, at)
    labels: list[Hashable] = list(range(x.rank))
    (value, length), axes = unify(call.names, (x, labels), (call.x(1), [batch]))
    for name, extent in axes[at]:
        here = cast(index_of(((name, extent),)), length.dtype)
        value = read_at(value, name, extent, where(here < length, length - 1 - here, here))
    return Tensor(value, tuple(axes[n] for n in labels))


ROWS: tuple[Row, ...] = (
    Row("TensorScatter", (24,), _tensor_scatter),
    Row("ReverseSequence", (10, 28), _reverse_sequence),
    Row("Gather", (13,), _gather),
    Row("GatherElements", (13,), _gather_elements),
    Row("GatherND", (13,), _gather_nd),
)
