"""The rows of reductions, prefix sums, softmax and normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autosched.ir.frontend.call import Call, Result, Row, Unsupported, wide
from autosched.ir.frontend.elementwise import joined
from autosched.ir.frontend.tensor import Dim, Tensor, broadcast, flatten_dim, index_of
from autosched.ir.node import Node
from autosched.ir.ops import (
    cast,
    const,
    exp,
    get,
    log,
    map_,
    reduce_,
    scan,
    sqrt,
    where,
)
from autosched.ir.scalar import FLOATS

MINUS_INF = -math.inf


def axes_of(dims: Sequence[Dim]) -> Dim:
    return tuple(axis for dim in dims for axis in dim)


def size_of(axes: Dim) -> int:
    return math.prod(extent for _, extent in axes)


def sum_over(node: Node, axes: Dim) -> Node:
    """Sum over axes; along one that the node lacks it counts as often as the axis is long."""
    here = [name for name, _ in axes if name in node.names]
    away = size_of(tuple(a for a in axes if a[0] not in node.names))
    out = reduce_("sum", here, node) if here else node
    return out if away == 1 else out * away


def pick_over(monoid: str, node: Node, axes: Dim) -> Node:
    """An idempotent reduction over axes; those that the node lacks change nothing."""
    here = [name for name, _ in axes if name in node.names]
    return reduce_(monoid, here, node) if here else node


def _prod_over(node: Node, axes: Dim) -> Node:
    here = [name for name, _ in axes if name in node.names]
    away = size_of(tuple(a for a in axes if a[0] not in node.names))
    out = reduce_("prod", here, node) if here else node
    return out if away == 1 else map_("pow", out, away)


def mean_over(node: Node, axes: Dim) -> Node:
    total = sum_over(node, axes)
    if node.dtype in FLOATS:
        return total / size_of(axes)
    return map_("truncdiv", total, size_of(axes))


def logsumexp_over(x: Node, axes: Dim) -> Node:
    """max + log(sum(exp(x - max))), also where the max is infinite."""
    top = pick_over("max", x, axes)
    safe = where(map_("isinf", top), const(0, x.dtype), top)
    return safe + log(sum_over(exp(x - safe), axes))


def softmax_over(x: Node, axes: Dim) -> Node:
    """exp(x - max) / sum: NaN along a row that is -inf everywhere, as its definition says."""
    weights = exp(x - pick_over("max", x, axes))
    return weights / sum_over(weights, axes)


# ---- Reduce* ----------------------------------------------------------------------------------

Reducer = Callable[[Node, Dim], Node]
_REDUCERS: dict[str, tuple[tuple[int, ...], Reducer, bool]] = {
    # name: (versions, formula, whether half precision is summed in float32)
    "ReduceSum": ((13,), sum_over, True),
    "ReduceMean": ((13, 18), mean_over, True),
    "ReduceMax": ((13, 18, 20), lambda x, a: pick_over(
        "any" if x.dtype == "bool" else "max", x, a), False),
    "ReduceMin": ((13, 18, 20), lambda x, a: pick_over(
        "all" if x.dtype == "bool" else "min", x, a), False),
    "ReduceProd": ((13, 18), _prod_over, True),
    "ReduceL1": ((13, 18), lambda x, a: sum_over(map_("abs", x), a), True),
    "ReduceL2": ((13, 18), lambda x, a: sqrt(sum_over(x * x, a)), True),
    "ReduceLogSum": ((13, 18, 28), lambda x, a: log(sum_over(x, a)), True),
    "ReduceLogSumExp": ((13, 18, 28), logsumexp_over, True),
    "ReduceSumSquare": ((13, 18), lambda x, a: sum_over(x * x, a), True),
}  # fmt: skip
_FLOAT_ONLY = ("ReduceLogSum", "ReduceLogSumExp", "ReduceL2")


def _axes_attr(call: Call) -> list[int] | None:
    """Axes of a reduction, by version an attribute or the second operand."""
    if call.attr("axes") is not None:
        return [int(a) for a in call.attr("axes")]
    return call.ints(1, "axes")


def _reduction(call: Call) -> Tensor:
    _, formula, accumulate = _REDUCERS[call.op]
    x, axes = call.x(), _axes_attr(call)
    if not axes:
        if call.attr("noop_with_empty_axes", 0):
            return _no_axes(call, x)
        axes = list(range(x.rank))
    at = {x.position(a) for a in axes}
    node = wide(x.node) if accumulate else x.node
    if call.op in _FLOAT_ONLY and x.dtype not in FLOATS:
        node = cast(node, "float64")
    out = cast(formula(node, axes_of([x.dims[a] for a in sorted(at)])), x.dtype)
    if call.attr("keepdims", 1):
        return Tensor(out, tuple(() if n in at else dim for n, dim in enumerate(x.dims)))
    return Tensor(out, tuple(dim for n, dim in enumerate(x.dims) if n not in at))


def _no_axes(call: Call, x: Tensor) -> Tensor:
    """noop_with_empty_axes: nothing is summed, but what is done to each element stays."""
    _, formula, accumulate = _REDUCERS[call.op]
    out = formula(wide(x.node) if accumulate else x.node, ())
    return x.with_node(cast(out, x.dtype))


def _arg(monoid: str) -> Callable[[Call], Tensor]:
    def build(call: Call) -> Tensor:
        x = call.x()
        at = x.position(call.attr("axis", 0))
        axes = x.dims[at]
        index = cast(index_of(axes), "int64")
        last = bool(call.attr("select_last_index", 0))
        if last:
            index = size_of(axes) - 1 - index
        here = [name for name, _ in axes]
        out = get(reduce_(monoid, here, x.node, index), 1) if here else index
        if last and here:
            out = size_of(axes) - 1 - out
        keep = ((),) if call.attr("keepdims", 1) else ()
        return Tensor(out, (*x.dims[:at], *keep, *x.dims[at + 1 :]))

    return build


def _cumulative(monoid: str) -> Callable[[Call], Tensor]:
    def build(call: Call) -> Tensor:
        axis = call.ints(1, "axis")
        assert axis is not None
        x = call.x()
        at = x.position(axis[0])
        x = flatten_dim(call.names, x, at)
        exclusive, reverse = bool(call.attr("exclusive", 0)), bool(call.attr("reverse", 0))
        if not x.dims[at]:
            start = const(0 if monoid == "sum" else 1, x.dtype)
            return x.with_node(start) if exclusive else x
        ((name, _),) = x.dims[at]
        if name not in x.node.names:
            raise Unsupported("along a broadcast dimension")
        out = scan(monoid, name, wide(x.node), exclusive=exclusive, reverse=reverse)
        return x.with_node(cast(out, x.dtype))

    return build


# ---- softmax and normalisation ----------------------------------------------------------------


def _softmax(log_form: bool) -> Callable[[Call], Tensor]:
    def build(call: Call) -> Tensor:
        x = call.x()
        axes = x.dims[x.position(call.attr("axis", -1))]
        node = wide(x.node)
        if log_form:
            shifted = node - pick_over("max", node, axes)
            out = shifted - log(sum_over(exp(shifted), axes))
        else:
            out = softmax_over(node, axes)
        return x.with_node(cast(out, x.dtype))

    return build


def _stash(call: Call) -> str:
    return call.dtype("stash_type", 1)


def _layer_norm(call: Call) -> tuple[Result, ...]:
    x = call.x()
    at = x.position(call.attr("axis", -1))
    kind = _stash(call)
    axes = axes_of(x.dims[at:])
    value = cast(x.node, kind)
    mean = mean_over(value, axes)
    centred = value - mean
    inverse = 1.0 / sqrt(mean_over(centred * centred, axes) + call.attr("epsilon", 1e-5))
    y = joined(call, lambda v, s: v * cast(s, kind), x.with_node(centred * inverse), call.x(1))
    if call.has(2):
        y = joined(call, lambda v, b: v + cast(b, kind), y, call.x(2))
    kept = (*x.dims[:at], *((),) * (x.rank - at))
    return y.with_node(cast(y.node, x.dtype)), Tensor(mean, kept), Tensor(inverse, kept)


def _rms_norm(call: Call) -> Tensor:
    x, scale = call.x(), call.x(1)
    at = x.position(call.attr("axis", -1))
    value = cast(x.node, _stash(call))
    square = mean_over(value * value, axes_of(x.dims[at:]))
    unit = x.with_node(value * (1.0 / sqrt(square + call.attr("epsilon", 1e-5))))
    y = joined(call, lambda v, s: v * cast(s, v.dtype), unit, scale)
    return y.with_node(cast(y.node, scale.dtype))


def _lp_norm(call: Call) -> Tensor:
    x = call.x()
    axes = x.dims[x.position(call.attr("axis", -1))]
    node = wide(x.node)
    if call.attr("p", 2) == 1:
        norm = sum_over(map_("abs", node), axes)
    else:
        norm = sqrt(sum_over(node * node, axes))
    zero = const(0, node.dtype)
    return x.with_node(cast(where(map_("eq", norm, zero), zero, node / norm), x.dtype))


def _batch_norm(call: Call) -> tuple[Result, ...]:
    """By running statistics; in training mode by those of the batch, which then move them."""
    x, training = call.x(), call.attr("training_mode", 0)
    if call.n_outputs > 1 and not training:
        raise Unsupported("with statistics as results")
    vectors = [Tensor(t.node, (*t.dims, *((),) * (x.rank - 2))) for t in map(call.x, range(1, 5))]
    nodes, dims = broadcast(call.names, x, *vectors)
    value, scale, bias, old_mean, old_var = map(wide, nodes)
    mean, var = old_mean, old_var
    if training:
        axes = axes_of((dims[0], *dims[2:]))
        mean = mean_over(value, axes)
        var = mean_over((value - mean) * (value - mean), axes)
    y = (value - mean) * (scale / sqrt(var + call.attr("epsilon", 1e-5))) + bias
    keep = call.attr("momentum", 0.9)
    moved = [
        Tensor(cast(old * keep + new * (1 - keep), call.x(n).dtype), dims[1:2])
        for n, old, new in ((3, old_mean, mean), (4, old_var, var))
    ]
    return Tensor(cast(y, x.dtype), dims), *moved


def _instance_norm(call: Call) -> Tensor:
    x = call.x()
    axes, value = axes_of(x.dims[2:]), wide(x.node)
    centred = value - mean_over(value, axes)
    inverse = 1.0 / sqrt(mean_over(centred * centred, axes) + call.attr("epsilon", 1e-5))
    vectors = [Tensor(t.node, (*t.dims, *((),) * (x.rank - 2))) for t in map(call.x, (1, 2))]
    nodes, dims = broadcast(call.names, x.with_node(centred * inverse), *vectors)
    unit, scale, bias = map(wide, nodes)
    return Tensor(cast(unit * scale + bias, x.dtype), dims)


def _hardmax(call: Call) -> Tensor:
    """1 at the first greatest value, 0 elsewhere."""
    x = call.x()
    axes = x.dims[x.position(call.attr("axis", -1))]
    index = index_of(axes)
    here = [name for name, _ in axes]
    first = get(reduce_("argmax", here, x.node, index), 1) if here else index
    return x.with_node(cast(map_("eq", index, first), x.dtype))


def _global_pool(monoid: str) -> Callable[[Call], Tensor]:
    def build(call: Call) -> Tensor:
        x = call.x()
        axes = axes_of(x.dims[2:])
        node = wide(x.node)
        out = mean_over(node, axes) if monoid == "mean" else pick_over(monoid, node, axes)
        return Tensor(cast(out, x.dtype), (*x.dims[:2], *((),) * (x.rank - 2)))

    return build


ROWS: tuple[Row, ...] = (
    *(Row(op, since, _reduction) for op, (since, _, _) in _REDUCERS.items()),
    Row("ArgMax", (13,), _arg("argmax")),
    Row("ArgMin", (13,), _arg("argmin")),
    Row("CumSum", (11, 14), _cumulative("sum")),
    Row("CumProd", (26,), _cumulative("prod")),
    Row("Softmax", (13,), _softmax(False)),
    Row("LogSoftmax", (13,), _softmax(True)),
    Row("LayerNormalization", (17,), _layer_norm),
    Row("RMSNormalization", (23,), _rms_norm),
    Row("LpNormalization", (1, 22), _lp_norm),
    Row("BatchNormalization", (9, 14, 15), _batch_norm),
    Row("InstanceNormalization", (6, 22), _instance_norm),
    Row("Hardmax", (13,), _hardmax),
    Row("GlobalAveragePool", (1, 22), _global_pool("mean")),
    Row("GlobalMaxPool", (1, 22), _global_pool("max")),
)
