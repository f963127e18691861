"""The rows of quantisation: integers, with a scale and a zero point for all, a channel, a block."""

from __future__ import annotations

from autosched.ir.frontend.call import Call, Result, Row, Unsupported
from autosched.ir.frontend.contraction import matmul
from autosched.ir.frontend.elementwise import joined
from autosched.ir.frontend.tensor import Dim, Tensor, flatten_dim, index_of, view
from autosched.ir.frontend.window import convolved
from autosched.ir.monoid import dtype_limit
from autosched.ir.node import Node
from autosched.ir.ops import cast, map_, maximum, minimum


def _beside(call: Call, n: int, x: Tensor) -> Tensor:
    """Operand `n`, a scale or a zero point, as it broadcasts with `x`."""
    value, block = call.x(n), call.attr("block_size", 0)
    at = x.position(call.attr("axis", 1)) if value.rank and value.shape != (1,) else 0
    if value.shape in ((), (1,)):
        return Tensor(value.node, ())
    if not block:
        return _channel(value, at, x.rank)
    value = flatten_dim(call.names, value, at)
    new = call.names.axis("q", x.shape[at])
    node = view(value.node, {a: index_of(new) // block for a, _ in value.dims[at]})
    return Tensor(node, (*value.dims[:at], new, *value.dims[at + 1 :]))


def _channel(value: Tensor, at: int, rank: int) -> Tensor:
    """A vector along dimension `at` of a tensor of that rank; a scalar broadcasts as it is."""
    if value.rank != 1:
        return value
    tail: tuple[Dim, ...] = ((),) * (rank - 1 - at)
    return Tensor(value.node, (*value.dims, *tail))


def _saturated(value: Node, dtype: str) -> Node:
    """The nearest integer of a type, ties to even."""
    low, high = dtype_limit("lowest", dtype), dtype_limit("highest", dtype)
    return cast(minimum(maximum(map_("round", value), low), high), dtype)


def _quantize(call: Call) -> Tensor:
    x, scale = call.x(0), _beside(call, 1, call.x(0))
    dtype = call.x(2).dtype if call.has(2) else "uint8"
    if call.attr("output_dtype", 0):
        dtype = call.dtype("output_dtype")
    kind = call.dtype("precision") if call.attr("precision", 0) else scale.dtype
    y = joined(call, lambda v, s: map_("round", cast(v, kind) / cast(s, kind)), x, scale)
    y = y.with_node(cast(y.node, "float32"))
    if call.has(2):
        y = joined(call, lambda v, z: v + cast(z, v.dtype), y, _beside(call, 2, x))
    return y.with_node(_saturated(y.node, dtype))


def _dequantize(call: Call) -> Tensor:
    x, scale = call.x(0), _beside(call, 1, call.x(0))
    dtype = call.dtype("output_dtype") if call.attr("output_dtype", 0) else scale.dtype
    y = x.with_node(cast(x.node, "float32"))
    if call.has(2):
        y = joined(call, lambda v, z: v - cast(z, v.dtype), y, _beside(call, 2, x))
    return joined(call, lambda v, s: cast(v * cast(s, v.dtype), dtype), y, scale)


# ---- contractions of integers -------------------------------------------------------------------


def _centred(call: Call, n: int, zero: int, at: int | None) -> Tensor:
    """Operand `n` in int32 less its zero point, a vector of which lies along dimension `at`."""
    x = call.x(n)
    wide = x.with_node(cast(x.node, "int32"))
    if not call.has(zero):
        return wide
    point = call.x(zero)
    if at is not None and point.shape != (1,):
        point = _channel(point, at % x.rank, x.rank)
    return joined(call, lambda v, z: v - cast(z, "int32"), wide, point)


def _matmul_integer(call: Call) -> Tensor:
    return matmul(call.names, _centred(call, 0, 2, -2), _centred(call, 1, 3, None))


def _conv_integer(call: Call) -> Tensor:
    return convolved(call, _centred(call, 0, 2, None), _centred(call, 1, 3, 0))


def _requantized(call: Call, y: Tensor, at: int) -> Tensor:
    """Integer sums of operands 0 and 3 by their scales as what operands 6 and 7 say."""
    dtype = call.x(7).dtype
    own, other, out = (_channel(call.x(n), at, y.rank) for n in (1, 4, 6))
    ratio = joined(call, lambda a, b, c: cast(a * b / c, "float32"), own, other, out)

    def formula(v: Node, s: Node, z: Node) -> Node:
        return _saturated(cast(v, "float32") * s + cast(z, "float32"), dtype)

    return joined(call, formula, y, ratio, _channel(call.x(7), at, y.rank))


def _qlinear_matmul(call: Call) -> Result:
    a, b = _centred(call, 0, 2, -2), _centred(call, 3, 5, None)
    if any(call.x(n).shape not in ((), (1,)) for n in (1, 4, 6, 7)):
        raise Unsupported("with a scale for each row or column")
    y = matmul(call.names, a, b)
    return _requantized(call, y, y.rank - 1)


def _qlinear_conv(call: Call) -> Result:
    bias = call.x(8) if call.has(8) else None
    y = convolved(call, _centred(call, 0, 2, None), _centred(call, 3, 5, 0), bias)
    return _requantized(call, y, 1)


_TYPES = (13, 19, 21, 23, 24, 25, 28)  # versions that added types, blocks and precisions
ROWS: tuple[Row, ...] = (
    Row("QuantizeLinear", _TYPES, _quantize),
    Row("DequantizeLinear", _TYPES, _dequantize),
    Row("MatMulInteger", (10,), _matmul_integer),
    Row("ConvInteger", (10,), _conv_integer),
    Row("QLinearMatMul", (10, 21), _qlinear_matmul),
    Row("QLinearConv", (10,), _qlinear_conv),
)
