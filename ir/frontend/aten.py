"""What a row of the ATen table is: a function of an overload's arguments, in the schema's order.

Nothing here imports torch. Most rows say what they compute by rows of ONNX's operators, which
`Aten.onnx` calls, or by the same helpers; so both importers mean the same by the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from autosched.ir.frontend.build import TensorType
from autosched.ir.frontend.call import HALVES, Call, Result, Row, Unsupported, Value
from autosched.ir.frontend.elementwise import joined, to_dtype
from autosched.ir.frontend.literal import Array, Literals
from autosched.ir.frontend.table import TABLE as ONNX
from autosched.ir.frontend.tensor import Names, Tensor
from autosched.ir.node import Node
from autosched.ir.ops import cast, const

Scalar: TypeAlias = "bool | int | float"
Operand: TypeAlias = "Tensor | bool | int | float"
SINCE = 1  # overloads have no versions: a changed one gets another name


@dataclass(frozen=True)
class Ref:
    """The place of a tensor among an argument list: the number of an operand of the node."""

    n: int


@dataclass(frozen=True)
class Aten:
    """One node, beside its arguments. out: what torch says of its results; common: the type in
    which its operands meet."""

    call: Call
    out: tuple[TensorType, ...]
    common: str

    @property
    def names(self) -> Names:
        return self.call.names

    @property
    def literals(self) -> Literals:
        return self.call.literals

    @property
    def shape(self) -> tuple[int, ...]:
        return self.out[0].shape

    @property
    def dtype(self) -> str:
        return self.out[0].dtype

    def onnx(
        self, op: str, *operands: Tensor | Array | None, n_outputs: int = 1, **attrs: Any
    ) -> tuple[Tensor, ...]:
        """What an operator of ONNX, in its latest version, makes of the operands."""
        row = ONNX[op]
        values = tuple(
            None if x is None else Value(f"{op}:{n}", known=x) if isinstance(x, np.ndarray)
            else Value(f"{op}:{n}", tensor=x) for n, x in enumerate(operands)
        )  # fmt: skip
        call = Call(op, row.since[-1], values, attrs, n_outputs, self.names, self.literals)
        made = row.build(call)
        found = made if isinstance(made, tuple) else (made,)
        if not all(isinstance(x, Tensor) for x in found[:n_outputs]):
            raise Unsupported(f"{op} yields no tensor here")
        return tuple(x for x in found if isinstance(x, Tensor))

    def tensor(self, x: Operand, dtype: str | None = None) -> Tensor:
        """An argument as a tensor of a type (the result's by default); numbers are constants."""
        kind = dtype or self.dtype
        if not isinstance(x, Tensor):
            return Tensor(const(x, kind), ())
        return x.with_node(to_dtype(x.node, kind))

    def joined(self, formula: Callable[..., Node], *operands: Operand) -> Tensor:
        """A formula of the operands in the type of the result. A number beside halves is not
        rounded to them: the formula is computed in float32 then, and its value rounded."""
        tensors = [self.tensor(x) for x in operands]
        if self.dtype not in HALVES or all(isinstance(x, Tensor) for x in operands):
            return joined(self.call, formula, *tensors)
        wide = [self.tensor(x, "float32") for x in operands]
        out = joined(self.call, formula, *wide)
        return out.with_node(cast(out.node, self.dtype))


Builder: TypeAlias = "Callable[..., Result | tuple[Result, ...]]"


def row(name: str, build: Builder) -> Row:
    """The row of an overload. build: gets the node as an `Aten`, then every argument of its
    schema in order, tensors as `Tensor`s."""
    return Row(f"aten.{name}", (SINCE,), partial(_build, build))


def _build(build: Builder, call: Call) -> Result | tuple[Result, ...]:
    node = Aten(call, call.attrs["out"], call.attrs["common"])
    made = build(node, *(_resolved(a, call) for a in call.attrs["args"]))
    for number, result in enumerate(made if isinstance(made, tuple) else (made,)):
        if result is None and number in call.attrs["used"]:
            raise Unsupported(f"with its result {number}, which is not computed here")
    return made


def _resolved(value: Any, call: Call) -> Any:
    if isinstance(value, Ref):
        return call.x(value.n)
    if isinstance(value, list):
        return [_resolved(v, call) for v in value]
    return value
