"""The rows of operators that work element by element, with numpy's broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from autosched.ir.extent import simplify
from autosched.ir.frontend.call import Call, Row, Unsupported, wide
from autosched.ir.frontend.tensor import Tensor, as_index, broadcast
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, erf, exp, map_, maximum, minimum, sigmoid, sqrt, where
from autosched.ir.scalar import FLOATS

Formula = Callable[..., Node]


def joined(call: Call, formula: Formula, *tensors: Tensor) -> Tensor:
    nodes, dims = broadcast(call.names, *tensors)
    return Tensor(formula(*nodes), dims)


def _fn(name: str) -> Callable[[Call], Tensor]:
    """A scalar function of all the operands."""

    def build(call: Call) -> Tensor:
        tensors = [call.x(n) for n in range(len(call.inputs))]
        return joined(call, lambda *nodes: map_(name, *nodes), *tensors)

    return build


def _precise(formula: Callable[[Call, Node], Node]) -> Callable[[Call], Tensor]:
    """A formula of one operand, in float32 for half precision: one rounding instead of many."""

    def build(call: Call) -> Tensor:
        x = call.x()
        if x.dtype not in FLOATS:
            raise Unsupported(f"of type {x.dtype}")
        return x.with_node(cast(formula(call, wide(x.node)), x.dtype))

    return build


def compared(name: str, a: Node, b: Node) -> Node:
    """Comparisons of coordinates stay in int32, so that rules can read a mask's borders."""
    i, j = as_index(a), as_index(b)
    if i is not None and j is not None:
        return simplify(map_(name, i, j))
    return map_(name, a, b)


def _compare(name: str) -> Callable[[Call], Tensor]:
    return lambda call: joined(call, partial(compared, name), call.x(0), call.x(1))


def _variadic(name: str, mean: bool = False) -> Callable[[Call], Tensor]:
    def build(call: Call) -> Tensor:
        tensors = [call.x(n) for n in range(len(call.inputs))]
        kind = tensors[0].dtype
        nodes, dims = broadcast(call.names, *tensors)
        out = nodes[0] if name in ("max", "min") else wide(nodes[0])
        for node in nodes[1:]:
            out = map_(name, out, cast(node, out.dtype))
        if mean:
            out = out / len(nodes)
        return Tensor(cast(out, kind), dims)

    return build


def _arith(name: str) -> Callable[[Call], Tensor]:
    def build(call: Call) -> Tensor:
        a, b = call.x(0), call.x(1)
        fn = name
        if name == "div" and a.dtype not in FLOATS:
            fn = "truncdiv"
        if a.dtype == "bool":
            raise Unsupported("of type bool")
        return joined(call, lambda p, q: map_(fn, p, q), a, b)

    return build


# Exponents that have a cheaper and more exact form than a general power.
_POWERS: dict[float, Callable[[Node], Node]] = {
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    0.5: sqrt,
    -0.5: lambda x: map_("rsqrt", x),
    -1.0: lambda x: 1.0 / x,
}


def _pow(call: Call) -> Tensor:
    base, known = call.x(0), call.known(1)
    if known is not None and known.size == 1 and base.rank >= known.ndim:
        simple = _POWERS.get(float(known.reshape(()).item()))
        if simple is not None and (base.dtype in FLOATS or known.reshape(()).item() >= 1):
            return base.with_node(simple(base.node))
    exponent = call.x(1)

    def formula(x: Node, y: Node) -> Node:
        # An integer to a power of the other type goes through float64, as numpy does it.
        kind = x.dtype if x.dtype in FLOATS or y.dtype not in FLOATS else "float64"
        return cast(map_("pow", cast(x, kind), cast(y, kind)), base.dtype)

    return joined(call, formula, base, exponent)


def _mod(call: Call) -> Tensor:
    a, b = call.x(0), call.x(1)
    return joined(call, lambda p, q: map_("fmod" if call.attr("fmod", 0) else "mod", p, q), a, b)


def _clip(call: Call) -> Tensor:
    x = call.x()
    if call.has(1):
        x = joined(call, maximum, x, call.x(1))
    if call.has(2):
        x = joined(call, minimum, x, call.x(2))
    return x


def _where(call: Call) -> Tensor:
    return joined(call, where, call.x(0), call.x(1), call.x(2))


def to_dtype(node: Node, dtype: str) -> Node:
    """ONNX's Cast: anything but zero is true."""
    if dtype == "bool" and node.dtype != "bool":
        return map_("ne", node, 0)
    return cast(node, dtype)


def _cast(call: Call) -> Tensor:
    x = call.x()
    return x.with_node(to_dtype(x.node, call.dtype("to")))


def _bitcast(call: Call) -> Tensor:
    """A bool has the bits of the uint8 0 or 1, whatever a register holds it in."""
    x, dtype = call.x(), call.dtype("to")
    node = cast(x.node, "uint8") if x.dtype == "bool" else x.node
    kind = "uint8" if dtype == "bool" else dtype
    node = node if node.dtype == kind else map_(f"bitcast:{kind}", node)
    return x.with_node(to_dtype(node, dtype))


def _cast_like(call: Call) -> Tensor:
    x = call.x()
    return x.with_node(to_dtype(x.node, call.x(1).dtype))


def _bitshift(call: Call) -> Tensor:
    left = call.attr("direction") == "LEFT"
    return joined(call, lambda p, q: map_("shl" if left else "shr", p, q), call.x(0), call.x(1))


def _isinf(call: Call) -> Tensor:
    x = call.x()
    found = map_("isinf", x.node)
    if not call.attr("detect_positive", 1):
        found = found & (x.node < 0)
    if not call.attr("detect_negative", 1):
        found = found & (x.node > 0)
    return x.with_node(found)


def _relu(call: Call) -> Tensor:
    x = call.x()
    return x.with_node(maximum(x.node, 0))


def _prelu(call: Call) -> Tensor:
    return joined(call, lambda x, s: where(x < 0, x * s, x), call.x(0), call.x(1))


def _swiglu(call: Call) -> Tensor:
    alpha, gate = call.attr("alpha", 1.0), call.x(0)

    def formula(a: Node, b: Node) -> Node:
        return cast(swish(wide(a), alpha) * wide(b), gate.dtype)

    return joined(call, formula, gate, call.x(1))


def swish(x: Node, alpha: float = 1.0) -> Node:
    return x * sigmoid(x if alpha == 1.0 else x * alpha)


def softplus(x: Node) -> Node:
    """log(1 + exp(x)) without overflow."""
    return maximum(x, 0.0) + map_("log1p", exp(-map_("abs", x)))


def gelu(x: Node, approximate: str) -> Node:
    if approximate == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * (map_("tanh", inner) + 1.0)
    return x * 0.5 * (erf(x * math.sqrt(0.5)) + 1.0)


def _elu(alpha: float, x: Node, scale: float = 1.0) -> Node:
    out = where(x < 0.0, (exp(x) - 1.0) * alpha, x)
    return out if scale == 1.0 else out * scale


def _shrink(c: Call, x: Node) -> Node:
    bias, bound = c.attr("bias", 0.0), c.attr("lambd", 0.5)
    return where(x < -bound, x + bias, where(x > bound, x - bias, const(0, x.dtype)))


def _hard_sigmoid(c: Call, x: Node) -> Node:
    line = x * c.attr("alpha", 0.2) + c.attr("beta", 0.5)
    return maximum(minimum(line, 1.0), 0.0)


_FORMULAS: dict[str, tuple[tuple[int, ...], Callable[[Call, Node], Node]]] = {
    "Sigmoid": ((13,), lambda c, x: sigmoid(x)),
    "HardSigmoid": ((6, 22), _hard_sigmoid),
    "HardSwish": ((14, 22), lambda c, x: x * maximum(minimum(x / 6.0 + 0.5, 1.0), 0.0)),
    "Elu": ((6, 22), lambda c, x: _elu(c.attr("alpha", 1.0), x)),
    "Celu": ((12, 28), lambda c, x: where(
        x < 0.0, (exp(x / c.attr("alpha", 1.0)) - 1.0) * c.attr("alpha", 1.0), x)),
    "Selu": ((6, 22), lambda c, x: _elu(
        c.attr("alpha", 1.6732632423543772), x, c.attr("gamma", 1.0507009873554805))),
    "LeakyRelu": ((6, 16), lambda c, x: where(x < 0.0, x * c.attr("alpha", 0.01), x)),
    "ThresholdedRelu": ((10, 22), lambda c, x: where(x > c.attr("alpha", 1.0), x, 0.0)),
    "Shrink": ((9,), _shrink),
    "Softplus": ((1, 22), lambda c, x: softplus(x)),
    "Softsign": ((1, 22), lambda c, x: x / (map_("abs", x) + 1.0)),
    "Mish": ((18, 22), lambda c, x: x * map_("tanh", softplus(x))),
    "Gelu": ((20,), lambda c, x: gelu(x, c.attr("approximate", "none"))),
    "Swish": ((24,), lambda c, x: swish(x, c.attr("alpha", 1.0))),
    "Reciprocal": ((13,), lambda c, x: 1.0 / x),
}  # fmt: skip

# Operators that are one scalar function: name, versions, our name.
_SCALARS: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("Neg", (13,), "neg"), ("Abs", (13,), "abs"), ("Sqrt", (13,), "sqrt"), ("Exp", (13,), "exp"),
    ("Log", (13,), "log"), ("Erf", (13,), "erf"), ("Tanh", (13,), "tanh"), ("Sign", (13,), "sign"),
    ("Floor", (13,), "floor"), ("Ceil", (13,), "ceil"), ("Round", (11, 22), "round"),
    ("Sin", (7, 22), "sin"), ("Cos", (7, 22), "cos"), ("Tan", (7, 22), "tan"),
    ("Asin", (7, 22), "asin"), ("Acos", (7, 22), "acos"), ("Atan", (7, 22), "atan"),
    ("Sinh", (9, 22), "sinh"), ("Cosh", (9, 22), "cosh"), ("Asinh", (9, 22), "asinh"),
    ("Acosh", (9, 22), "acosh"), ("Atanh", (9, 22), "atanh"),
    ("And", (7,), "and"), ("Or", (7,), "or"), ("Xor", (7,), "xor"), ("Not", (1,), "not"),
    ("BitwiseAnd", (18,), "bitand"), ("BitwiseOr", (18,), "bitor"),
    ("BitwiseXor", (18,), "bitxor"), ("BitwiseNot", (18,), "bitnot"), ("IsNaN", (13, 20), "isnan"),
)  # fmt: skip

_COMPARISONS: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("Equal", (13, 19), "eq"), ("Greater", (13,), "gt"), ("GreaterOrEqual", (12, 16), "ge"),
    ("Less", (13,), "lt"), ("LessOrEqual", (12, 16), "le"),
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    *(Row(op, since, _compare(fn)) for op, since, fn in _COMPARISONS),
    *(Row(op, since, _fn(fn)) for op, since, fn in _SCALARS),
    *(Row(op, since, _precise(formula)) for op, (since, formula) in _FORMULAS.items()),
    *(Row(op, (13, 14), _arith(fn))
      for op, fn in (("Add", "add"), ("Sub", "sub"), ("Mul", "mul"), ("Div", "div"))),
    Row("Sum", (13,), _variadic("add")),
    Row("Mean", (13,), _variadic("add", mean=True)),
    Row("Max", (13,), _variadic("max")),
    Row("Min", (13,), _variadic("min")),
    Row("Pow", (13, 15), _pow),
    Row("Mod", (13, 28), _mod),
    Row("Clip", (13,), _clip),
    Row("Relu", (13, 14), _relu),
    Row("PRelu", (9, 16), _prelu),
    Row("SwiGLU", (28,), _swiglu),
    Row("Where", (9, 16), _where),
    Row("Cast", (13, 19, 21, 23, 24, 25, 28), _cast),
    Row("CastLike", (15, 19, 21, 23, 24, 25), _cast_like),
    Row("BitCast", (26,), _bitcast),
    Row("BitShift", (11, 28), _bitshift),
    Row("IsInf", (10, 20), _isinf),
)  # fmt: skip
