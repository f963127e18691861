"""The ATen rows of reductions, prefix sums, softmax and normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from autosched.ir.frontend.aten import Aten, Scalar, row
from autosched.ir.frontend.call import Row, Unsupported, wide
from autosched.ir.frontend.elementwise import joined
from autosched.ir.frontend.reduction import axes_of, mean_over, pick_over, size_of, sum_over
from autosched.ir.frontend.tensor import Dim, Tensor, broadcast, reshape
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, map_, sqrt, where

Dims = int | Sequence[int] | None


def _places(x: Tensor, dims: Dims) -> list[int]:
    """The numbers of the dimensions that an argument names: none of them means all."""
    given = [dims] if isinstance(dims, int) else list(dims or ())
    return sorted({x.position(d) for d in given}) if given and x.rank else list(range(x.rank))


def _reduced(
    c: Aten, x: Tensor, dims: Dims, keep: bool, formula: Callable[[Node, Dim], Node]
) -> Tensor:
    """A formula over some dimensions, which go or stay with size 1."""
    at = _places(x, dims)
    out = formula(x.node, axes_of([x.dims[a] for a in at]))
    rest = tuple(() if n in at else dim for n, dim in enumerate(x.dims) if keep or n not in at)
    return Tensor(cast(out, c.dtype), rest)


def _accumulated(formula: Callable[[Node, Dim], Node]) -> Callable[..., Tensor]:
    """A reduction in the type of the result; halves are summed in float32."""

    def build(c: Aten, x: Tensor, dims: Dims = None, keep: object = False, *_: object) -> Tensor:
        x = c.tensor(x)
        return _reduced(c, x.with_node(wide(x.node)), dims, keep is True, formula)

    return build


def _whole(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same over every dimension."""
    return lambda c, x, *_: build(c, x)


def _prod(node: Node, axes: Dim) -> Node:
    here = [name for name, _ in axes if name in node.names]
    away = size_of(tuple(a for a in axes if a[0] not in node.names))
    out = pick_over("prod", node, tuple(a for a in axes if a[0] in here))
    return out if away == 1 else map_("pow", out, away)


def _picked(flag: str, monoid: str) -> Callable[..., Tensor]:
    """The greatest or least value; of truth values whether any or all are true."""

    def build(c: Aten, x: Tensor, dims: Dims = None, keep: bool = False) -> Tensor:
        name = flag if x.dtype == "bool" else monoid
        return _reduced(c, x, dims, keep, lambda node, axes: pick_over(name, node, axes))

    return build


def _truth(monoid: str) -> Callable[..., Tensor]:
    def build(c: Aten, x: Tensor, dims: Dims = None, keep: bool = False) -> Tensor:
        flags = c.tensor(x, "bool")
        return _reduced(c, flags, dims, keep, lambda node, axes: pick_over(monoid, node, axes))

    return build


def _arg(op: str) -> Callable[..., Tensor]:
    def build(c: Aten, x: Tensor, dim: int | None = None, keep: bool = False) -> Tensor:
        if dim is None:
            flat = reshape(c.names, x, (math.prod(x.shape),))
            return reshape(c.names, c.onnx(op, flat, axis=0, keepdims=1)[0], c.shape)
        if not x.rank:
            return Tensor(const(0, "int64"), ())
        return c.onnx(op, x, axis=dim, keepdims=int(keep))[0]

    return build


def _with_place(value: Callable[..., Tensor], op: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The greatest or least value along a dimension, and where it stands."""

    def build(c: Aten, x: Tensor, dim: int, keep: bool = False) -> tuple[Tensor, Tensor]:
        return value(c, x, dim, keep), _arg(op)(c, x, dim, keep)

    return build


def _moments(x: Tensor, dims: Dims, correction: Scalar | None) -> Callable[[Node, Dim], Node]:
    count = math.prod(x.shape[a] for a in _places(x, dims))
    freedom = max(count - (1 if correction is None else correction), 0)

    def variance(node: Node, axes: Dim) -> Node:
        centred = node - mean_over(node, axes)
        total = sum_over(centred * centred, axes)
        return total / float(freedom) if freedom else total * math.nan

    return variance


def _var(root: bool) -> Callable[..., Tensor]:
    def build(
        c: Aten, x: Tensor, dims: Dims = None, correction: Scalar | None = None,
        keep: bool = False,
    ) -> Tensor:  # fmt: skip
        variance = _moments(x, dims, correction)
        wide_x = x.with_node(wide(x.node))
        return _reduced(c, wide_x, dims, keep,
                        lambda n, a: sqrt(variance(n, a)) if root else variance(n, a))  # fmt: skip

    return build


def _var_mean(root: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def build(
        c: Aten, x: Tensor, dims: Dims = None, correction: Scalar | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        mean = _reduced(c, x.with_node(wide(x.node)), dims, keep, mean_over)
        return _var(root)(c, x, dims, correction, keep), mean

    return build


def _vector_norm(
    c: Aten, x: Tensor, order: Scalar | None = 2, dims: Dims = None, keep: bool = False, *_: object
) -> Tensor:
    x = c.tensor(x)
    size = map_("abs", wide(x.node))
    order = 2 if order is None else order

    def formula(node: Node, axes: Dim) -> Node:
        if math.isinf(order):
            return pick_over("max" if order > 0 else "min", node, axes)
        if order == 0:
            return sum_over(cast(map_("ne", node, 0), node.dtype), axes)
        if order == 1:
            return sum_over(node, axes)
        if order == 2:
            return sqrt(sum_over(node * node, axes))
        return map_("pow", sum_over(map_("pow", node, float(order)), axes), 1.0 / order)

    return _reduced(c, x.with_node(size), dims, keep, formula)


def _cumulative(op: str) -> Callable[..., Tensor]:
    def build(c: Aten, x: Tensor, dim: int, *_: object) -> Tensor:
        x = c.tensor(x)
        return x if not x.rank else c.onnx(op, x, np.array(dim))[0]

    return build


def _softmax(op: str) -> Callable[..., Tensor]:
    def build(c: Aten, x: Tensor, dim: int, *_: object) -> Tensor:
        x = c.tensor(x)
        if not x.rank:
            return x.with_node(const(op == "Softmax", c.dtype))
        return c.onnx(op, x, axis=dim)[0]

    return build


def _safe_softmax(c: Aten, x: Tensor, dim: int, *_: object) -> Tensor:
    """Rows of nothing but -inf are 0, not NaN."""
    x = c.tensor(x)
    out = c.onnx("Softmax", x, axis=dim)[0]
    axes = x.dims[x.position(dim)]
    hidden = map_("eq", pick_over("max", x.node, axes), const(-math.inf, x.dtype))
    return out.with_node(where(hidden, const(0, c.dtype), out.node))


# ---- normalisation -----------------------------------------------------------------------------


def _ones(x: Tensor) -> Tensor:
    return Tensor(const(1, x.dtype), ())


def _layer_norm(
    c: Aten, x: Tensor, shape: Sequence[int], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5, *_: object,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Halves are computed in float32, float64 in itself."""
    stash = 11 if x.dtype == "float64" else 1
    found = c.onnx(
        "LayerNormalization", x, _ones(x) if weight is None else weight, bias, n_outputs=3,
        axis=-len(shape), epsilon=eps, stash_type=stash,
    )  # fmt: skip
    return found[0], found[1], found[2]


_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-23, "bfloat16": 2.0**-23}


def _rms_norm(
    c: Aten, x: Tensor, shape: Sequence[int], weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:  # fmt: skip
    y = c.onnx(
        "RMSNormalization", x, _ones(x) if weight is None else weight, axis=-len(shape),
        epsilon=_EPSILON[x.dtype] if eps is None else eps,
        stash_type=11 if x.dtype == "float64" else 1,
    )[0]  # fmt: skip
    return c.tensor(y)


def _per_channel(c: Aten, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """x * scale + shift with a number of both for each entry of dimension 1."""
    tail: tuple[Dim, ...] = ((),) * (x.rank - 2)
    if scale is not None:
        x = joined(c.call, lambda v, s: v * cast(s, v.dtype), x,
                   Tensor(scale.node, (*scale.dims, *tail)))  # fmt: skip
    if shift is not None:
        x = joined(c.call, lambda v, s: v + cast(s, v.dtype), x,
                   Tensor(shift.node, (*shift.dims, *tail)))  # fmt: skip
    return x


def _grouped(c: Aten, x: Tensor, groups: int, eps: float) -> Tensor:
    """Each sample's groups of channels with mean 0 and variance 1, in float32 for halves."""
    shape = x.shape
    x = reshape(c.names, x, (shape[0], groups, shape[1] // groups, *shape[2:]))
    axes, value = axes_of(x.dims[2:]), wide(x.node)
    centred = value - mean_over(value, axes)
    inverse = 1.0 / sqrt(mean_over(centred * centred, axes) + eps)
    return reshape(c.names, x.with_node(centred * inverse), shape)


def _group_norm(
    c: Aten, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *_: object,
) -> Tensor:  # fmt: skip
    return c.tensor(_per_channel(c, _grouped(c, x, groups, eps), weight, bias))


def _instance_norm(
    c: Aten, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, by_sample: bool, momentum: float, eps: float, *_: object,
) -> Tensor:  # fmt: skip
    if not by_sample:
        return _batch_norm(c, x, weight, bias, mean, var, eps)
    return c.tensor(_per_channel(c, _grouped(c, x, x.shape[1], eps), weight, bias))


def _batch_norm(
    c: Aten, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    if mean is None or var is None:
        raise Unsupported("by the statistics of the batch")
    scale, offset = (x if x is not None else Tensor(const(d, "float32"), ((),))
                     for x, d in ((weight, 1), (bias, 0)))  # fmt: skip
    nodes, dims = broadcast(c.names, scale, offset, mean, var)
    s, b, m, v = map(wide, nodes)
    factor = s / sqrt(v + eps)
    out = _per_channel(c, x.with_node(wide(x.node)), Tensor(factor, dims),
                       Tensor(b - m * factor, dims))  # fmt: skip
    return c.tensor(out)


def _batch_norm_row(
    c: Aten, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, training: bool, momentum: float, eps: float, *_: object,
) -> Tensor:  # fmt: skip
    if training:
        raise Unsupported("in training mode")
    return _batch_norm(c, x, weight, bias, mean, var, eps)


def _batch_norm_inference(
    c: Aten, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, momentum: float, eps: float,
) -> tuple[Tensor, None, None]:  # fmt: skip
    return _batch_norm(c, x, weight, bias, mean, var, eps), None, None


_SUM, _MEAN = _accumulated(sum_over), _accumulated(mean_over)
_PROD = _accumulated(_prod)
_MAX, _MIN = _picked("any", "max"), _picked("all", "min")
_ANY, _ALL = _truth("any"), _truth("all")


def _log_sum_exp(c: Aten, x: Tensor, dims: Dims, keep: bool = False) -> Tensor:
    at = np.array(_places(x, dims))
    return c.onnx("ReduceLogSumExp", c.tensor(x), at, keepdims=int(keep))[0]


def _nonzero_count(c: Aten, x: Tensor, dims: Dims = None) -> Tensor:
    return _SUM(c, x.with_node(cast(map_("ne", x.node, 0), "int64")), dims)


ROWS: tuple[Row, ...] = (
    row("sum.default", _whole(_SUM)),
    row("sum.dim_IntList", _SUM),
    row("mean.default", _whole(_MEAN)),
    row("mean.dim", _MEAN),
    row("prod.default", _whole(_PROD)),
    row("prod.dim_int", _PROD),
    row("amax.default", _MAX),
    row("amin.default", _MIN),
    row("max.default", _MAX),
    row("min.default", _MIN),
    row("max.dim", _with_place(_MAX, "ArgMax")),
    row("min.dim", _with_place(_MIN, "ArgMin")),
    row("argmax.default", _arg("ArgMax")),
    row("argmin.default", _arg("ArgMin")),
    *(row(f"any.{kind}", _ANY) for kind in ("default", "dim", "dims")),
    *(row(f"all.{kind}", _ALL) for kind in ("default", "dim", "dims")),
    row("var.correction", _var(False)),
    row("std.correction", _var(True)),
    row("var_mean.correction", _var_mean(False)),
    row("std_mean.correction", _var_mean(True)),
    row("logsumexp.default", _log_sum_exp),
    row("linalg_vector_norm.default", _vector_norm),
    row("norm.ScalarOpt_dim", _vector_norm),
    row("norm.Scalar", _vector_norm),
    row("count_nonzero.dim_IntList", _nonzero_count),
    row("count_nonzero.default", _nonzero_count),
    row("cumsum.default", _cumulative("CumSum")),
    row("cumprod.default", _cumulative("CumProd")),
    row("softmax.int", _softmax("Softmax")),
    row("_softmax.default", _softmax("Softmax")),
    row("log_softmax.int", _softmax("LogSoftmax")),
    row("_log_softmax.default", _softmax("LogSoftmax")),
    row("_safe_softmax.default", _safe_softmax),
    row("layer_norm.default", lambda *args: _layer_norm(*args)[0]),
    row("native_layer_norm.default", _layer_norm),
    row("rms_norm.default", _rms_norm),
    row("_fused_rms_norm.default", lambda *args: (_rms_norm(*args), None)),
    row("group_norm.default", _group_norm),
    row("instance_norm.default", _instance_norm),
    row("batch_norm.default", _batch_norm_row),
    row("_native_batch_norm_legit_no_training.default", _batch_norm_inference),
)  # fmt: skip
