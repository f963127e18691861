"""The ATen rows that work element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from autosched.ir.frontend.aten import Aten, Operand, Scalar, row
from autosched.ir.frontend.call import Row, Unsupported, wide
from autosched.ir.frontend.elementwise import compared, gelu, joined, softplus, swish, to_dtype
from autosched.ir.frontend.movement import part
from autosched.ir.frontend.tensor import Tensor
from autosched.ir.node import Node
from autosched.ir.ops import (
    cast,
    const,
    erf,
    exp,
    log,
    map_,
    maximum,
    minimum,
    sigmoid,
    sqrt,
    where,
)
from autosched.ir.scalar import FLOATS

Formula = Callable[..., Node]


def _unary(formula: Formula) -> Callable[..., Tensor]:
    """A formula of one tensor and parameters, in the result's type; halves go by float32."""

    def build(c: Aten, x: Tensor, *parameters: object) -> Tensor:
        node = wide(to_dtype(x.node, c.dtype))
        return x.with_node(cast(formula(node, *parameters), c.dtype))

    return build


def _expm1(x: Node) -> Node:
    """exp(x) - 1 without cancellation near 0."""
    return map_("tanh", x * 0.5) * (exp(x) + 1.0)


def _sign(x: Node) -> Node:
    """0 for NaN too."""
    return where(x > 0, const(1, x.dtype), where(x < 0, const(-1, x.dtype), const(0, x.dtype)))


def _trunc(x: Node) -> Node:
    return where(x < 0, map_("ceil", x), map_("floor", x)) if x.dtype in FLOATS else x


def _elu(x: Node, alpha: float, scale: float, input_scale: float) -> Node:
    below = _expm1(x if input_scale == 1 else x * input_scale) * float(alpha * scale)
    return where(x <= 0.0, below, x if scale == 1 else x * float(scale))


def _softplus(x: Node, beta: float, threshold: float) -> Node:
    scaled = x if beta == 1 else x * float(beta)
    smooth = softplus(scaled)
    return where(scaled > float(threshold), x, smooth if beta == 1 else smooth / float(beta))


def _between(x: Node, low: Scalar | None, high: Scalar | None) -> Node:
    x = x if low is None else maximum(x, low)
    return x if high is None else minimum(x, high)


def _softshrink(x: Node, bound: float) -> Node:
    return where(x > bound, x - bound, where(x < -bound, x + bound, x * 0.0))


def _hard_sigmoid(x: Node) -> Node:
    return _between(x + 3.0, 0.0, 6.0) / 6.0


_SAME = ("neg", "abs", "exp", "exp2", "log", "log2", "log1p", "sqrt", "rsqrt", "erf", "tanh",
         "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh",
         "atanh")  # fmt: skip
_WHOLE = ("floor", "ceil", "round")
_UNARY: dict[str, Formula] = {
    **{f"{fn}.default": partial(map_, fn) for fn in _SAME},
    "sign.default": _sign,
    "sgn.default": _sign,
    "erfc.default": lambda x: 1.0 - erf(x),
    "expm1.default": _expm1,
    "log10.default": lambda x: log(x) * (1.0 / math.log(10.0)),
    "trunc.default": _trunc,
    "frac.default": lambda x: x - _trunc(x),
    "reciprocal.default": lambda x: 1.0 / x,
    "square.default": lambda x: x * x,
    "positive.default": lambda x: x,
    "relu.default": lambda x: maximum(x, 0),
    "relu6.default": lambda x: _between(x, 0, 6),
    "sigmoid.default": sigmoid,
    "silu.default": swish,
    "gelu.default": gelu,
    "mish.default": lambda x: x * map_("tanh", softplus(x)),
    "log_sigmoid.default": lambda x: -softplus(-x),
    "elu.default": _elu,
    "celu.default": lambda x, alpha: where(x <= 0.0, _expm1(x / float(alpha)) * float(alpha), x),
    "selu.default": lambda x: _elu(x, 1.6732632423543772, 1.0507009873554805, 1.0),
    "leaky_relu.default": lambda x, slope: where(x > 0.0, x, x * float(slope)),
    "hardswish.default": lambda x: x * _hard_sigmoid(x),
    "hardsigmoid.default": _hard_sigmoid,
    "hardtanh.default": _between,
    "softplus.default": _softplus,
    "softshrink.default": _softshrink,
    "hardshrink.default": lambda x, bound: where(map_("abs", x) <= float(bound), x * 0.0, x),
    "threshold.default": lambda x, bound, value: where(x <= bound, const(value, x.dtype), x),
    "softsign.default": lambda x: x / (map_("abs", x) + 1.0),
    "tanhshrink.default": lambda x: x - map_("tanh", x),
    "deg2rad.default": lambda x: x * (math.pi / 180.0),
    "rad2deg.default": lambda x: x * (180.0 / math.pi),
}  # fmt: skip


def _whole(name: str) -> Callable[..., Tensor]:
    """Whole numbers stay as they are."""

    def build(c: Aten, x: Tensor) -> Tensor:
        return x if x.dtype not in FLOATS else x.with_node(map_(name, x.node))

    return build


def _test(formula: Formula) -> Callable[..., Tensor]:
    """A test of floating-point numbers; of others it is false."""

    def build(c: Aten, x: Tensor) -> Tensor:
        node = formula(x.node) if x.dtype in FLOATS else const(False, "bool")
        return x.with_node(node)

    return build


def _finite(c: Aten, x: Tensor) -> Tensor:
    if x.dtype not in FLOATS:
        return x.with_node(const(True, "bool"))
    return x.with_node(map_("not", map_("isnan", x.node) | map_("isinf", x.node)))


def _infinite(sign: str) -> Formula:
    return lambda x: map_("isinf", x) & map_(sign, x, 0)


# ---- two operands ------------------------------------------------------------------------------


def _binary(name: str, truth: str = "") -> Callable[..., Tensor]:
    """truth: the function that does it for truth values."""

    def build(c: Aten, a: Operand, b: Operand) -> Tensor:
        if c.dtype == "bool":
            if not truth:
                raise Unsupported("of type bool")
            return c.joined(partial(map_, truth), a, b)
        return c.joined(partial(map_, name), a, b)

    return build


def _scaled(name: str, swapped: bool = False) -> Callable[..., Tensor]:
    """a + alpha * b and a - alpha * b."""

    def build(c: Aten, a: Operand, b: Operand, alpha: Scalar) -> Tensor:
        a, b = (b, a) if swapped else (a, b)
        if c.dtype == "bool":
            return c.joined(partial(map_, "or"), a, b)
        if alpha == 1:
            return c.joined(partial(map_, name), a, b)
        if not isinstance(b, Tensor):
            return c.joined(partial(map_, name), a, b * alpha)
        return c.joined(lambda x, y, s: map_(name, x, y * s), a, b, alpha)

    return build


_ROUNDINGS: dict[str | None, Formula] = {
    None: lambda quotient: quotient, "floor": partial(map_, "floor"), "trunc": _trunc
}  # fmt: skip


def _div(c: Aten, a: Operand, b: Operand, rounding: str | None = None) -> Tensor:
    if c.dtype in FLOATS:
        return c.joined(lambda x, y: _ROUNDINGS[rounding](x / y), a, b)
    whole = {"floor": "floordiv", "trunc": "truncdiv"}
    if rounding not in whole:
        raise Unsupported(f"of whole numbers with a result of type {c.dtype}")
    return c.joined(partial(map_, whole[rounding]), a, b)


def _floor_divide(c: Aten, a: Operand, b: Operand) -> Tensor:
    return _div(c, a, b, "floor")


def _remainder(c: Aten, a: Operand, b: Operand) -> Tensor:
    return c.joined(partial(map_, "mod"), a, b)


def _pow(c: Aten, base: Operand, exponent: Operand) -> Tensor:
    if not isinstance(exponent, Tensor):
        return c.onnx("Pow", c.tensor(base), np.array(exponent))[0]
    return c.onnx("Pow", c.tensor(base), c.tensor(exponent))[0]


def _compare(name: str) -> Callable[..., Tensor]:
    def build(c: Aten, a: Operand, b: Operand) -> Tensor:
        both = (c.tensor(x, c.common) for x in (a, b))
        return joined(c.call, partial(compared, name), *both)

    return build


def _logical(name: str) -> Callable[..., Tensor]:
    def build(c: Aten, *operands: Operand) -> Tensor:
        flags = [c.tensor(x, "bool") for x in operands]
        return joined(c.call, partial(map_, name), *flags)

    return build


def _bitwise_not(c: Aten, x: Tensor) -> Tensor:
    return x.with_node(map_("not" if x.dtype == "bool" else "bitnot", x.node))


def _clamp(c: Aten, x: Tensor, low: Operand | None = None, high: Operand | None = None) -> Tensor:
    out = c.tensor(x)
    if low is not None:
        out = c.joined(maximum, out, low)
    return out if high is None else c.joined(minimum, out, high)


# ---- three operands ----------------------------------------------------------------------------


def _where(c: Aten, cond: Tensor, yes: Operand, no: Operand) -> Tensor:
    return joined(c.call, where, c.tensor(cond, "bool"), c.tensor(yes), c.tensor(no))


def _masked_fill(c: Aten, x: Tensor, mask: Tensor, value: Operand) -> Tensor:
    return joined(c.call, where, mask, c.tensor(value), x)


def _addcmul(c: Aten, x: Tensor, a: Tensor, b: Tensor, value: Scalar) -> Tensor:
    return c.joined(lambda s, p, q, f: s + p * q * f, x, a, b, value)


def _addcdiv(c: Aten, x: Tensor, a: Tensor, b: Tensor, value: Scalar) -> Tensor:
    return c.joined(lambda s, p, q, f: s + p / q * f, x, a, b, value)


def _lerp(c: Aten, a: Tensor, b: Tensor, weight: Operand) -> Tensor:
    return c.joined(lambda x, y, w: x + (y - x) * w, a, b, weight)


def _glu(c: Aten, x: Tensor, dim: int) -> Tensor:
    at = x.position(dim)
    half = x.shape[at] // 2
    a, b = (part(c.names, x, at, n * half, half) for n in (0, 1))
    out = joined(c.call, lambda p, q: wide(p) * sigmoid(wide(q)), a, b)
    return out.with_node(cast(out.node, c.dtype))


def _prelu(c: Aten, x: Tensor, slope: Tensor) -> Tensor:
    """One slope for all, or one for each entry of dimension 1."""
    if slope.rank == 1 and x.rank > 1:
        slope = Tensor(slope.node, (*slope.dims, *((),) * (x.rank - 2)))
    return joined(c.call, lambda v, s: where(v > 0, v, v * s), x, slope)


def _hypot(c: Aten, a: Tensor, b: Tensor) -> Tensor:
    return c.joined(lambda x, y: sqrt(x * x + y * y), a, b)


# ---- types and copies --------------------------------------------------------------------------


def _typed(c: Aten, x: Tensor, *_: object) -> Tensor:
    """The same elements in the type of the result: casts, copies, and dropout when it is off."""
    return c.tensor(x)


def _log_sigmoid_forward(c: Aten, x: Tensor) -> tuple[Tensor, None]:
    return _unary(_UNARY["log_sigmoid.default"])(c, x), None


_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_BITS = (("bitwise_and", "bitand", "and"), ("bitwise_or", "bitor", "or"),
         ("bitwise_xor", "bitxor", "xor"), ("bitwise_left_shift", "shl", ""),
         ("bitwise_right_shift", "shr", ""), ("__lshift__", "shl", ""),
         ("__rshift__", "shr", ""), ("__and__", "bitand", "and"),
         ("__or__", "bitor", "or"), ("__xor__", "bitxor", "xor"))  # fmt: skip
_TYPED = (
    "clone.default", "contiguous.default", "alias.default", "detach.default", "detach_.default",
    "lift_fresh_copy.default", "lift_fresh.default", "lift.default", "_to_copy.default",
    "to.dtype", "to.dtype_layout", "to.device", "to.other", "to.prim_Device", "type_as.default",
    "_conj.default", "resolve_conj.default", "resolve_neg.default",
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    *(row(name, _unary(formula)) for name, formula in _UNARY.items()),
    *(row(f"{name}.default", _whole(name)) for name in _WHOLE),
    *(row(name, _typed) for name in _TYPED),
    *(row(f"{name}.{kind}", _compare(name))
      for name in _COMPARISONS for kind in ("Tensor", "Scalar")),
    *(row(f"{name}.{kind}", _binary(fn, truth)) for name, fn, truth in _BITS
      for kind in ("Tensor", "Scalar", "Scalar_Tensor", "Tensor_Scalar")),
    *(row(f"logical_{name}.default", _logical(name)) for name in ("and", "or", "xor", "not")),
    *(row(f"add.{kind}", _scaled("add")) for kind in ("Tensor", "Scalar")),
    *(row(f"sub.{kind}", _scaled("sub")) for kind in ("Tensor", "Scalar")),
    *(row(f"rsub.{kind}", _scaled("sub", swapped=True)) for kind in ("Tensor", "Scalar")),
    *(row(f"mul.{kind}", _binary("mul", "and")) for kind in ("Tensor", "Scalar")),
    *(row(f"div.{kind}", _div) for kind in ("Tensor", "Scalar", "Tensor_mode", "Scalar_mode")),
    *(row(f"floor_divide.{kind}", _floor_divide) for kind in ("default", "Scalar")),
    *(row(f"remainder.{kind}", _remainder) for kind in ("Tensor", "Scalar", "Scalar_Tensor")),
    *(row(f"fmod.{kind}", _binary("fmod")) for kind in ("Tensor", "Scalar")),
    *(row(f"pow.{kind}", _pow) for kind in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")),
    *(row(f"{name}.{kind}", _binary(name[:3], truth)) for kind in ("default", "other")
      for name, truth in (("maximum", "or"), ("minimum", "and"), ("max", "or"), ("min", "and"))
      if (kind == "other") == (len(name) == 3)),
    *(row(f"clamp.{kind}", _clamp) for kind in ("default", "Tensor")),
    *(row(f"clamp_min.{kind}", _clamp) for kind in ("default", "Tensor")),
    *(row(f"clamp_max.{kind}", lambda c, x, high: _clamp(c, x, None, high))
      for kind in ("default", "Tensor")),
    *(row(f"where.{kind}", _where) for kind in ("self", "Scalar", "ScalarSelf", "ScalarOther")),
    *(row(f"masked_fill.{kind}", _masked_fill) for kind in ("Scalar", "Tensor")),
    *(row(f"lerp.{kind}", _lerp) for kind in ("Scalar", "Tensor")),
    row("bitwise_not.default", _bitwise_not),
    row("isnan.default", _test(partial(map_, "isnan"))),
    row("isinf.default", _test(partial(map_, "isinf"))),
    row("isposinf.default", _test(_infinite("gt"))),
    row("isneginf.default", _test(_infinite("lt"))),
    row("isfinite.default", _finite),
    row("addcmul.default", _addcmul),
    row("addcdiv.default", _addcdiv),
    row("glu.default", _glu),
    row("prelu.default", _prelu),
    row("_prelu_kernel.default", _prelu),
    row("hypot.default", _hypot),
    row("log_sigmoid_forward.default", _log_sigmoid_forward),
)  # fmt: skip
