"""What a row of an operator table is, and what its builder gets to see of one node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from autosched.ir.frontend.literal import Array, Literals
from autosched.ir.frontend.tensor import Names, Tensor
from autosched.ir.node import Node
from autosched.ir.ops import cast

# Numbers of ONNX's TensorProto.DataType that the algebra has.
DTYPES_BY_NUMBER: dict[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
HALVES = ("float16", "bfloat16")


class Unsupported(Exception):
    """This node is not for the algebra; the reason goes into the coverage line."""


@dataclass(frozen=True, eq=False)
class Value:
    """One value of a model. known: its elements, where they are constants that take part in
    folding; tensor: the expression for it; stored: the elements of a weight; source: the `input`
    node through which it enters. With none of them only onnxruntime knows it."""

    name: str
    known: Array | None = None
    tensor: Tensor | None = None
    stored: Array | None = None
    source: Node | None = None

    @property
    def constant(self) -> Array | None:
        return self.known if self.known is not None else self.stored

    @property
    def shape(self) -> tuple[int, ...] | None:
        if self.tensor is not None:
            return self.tensor.shape
        return None if self.constant is None else self.constant.shape


Result: TypeAlias = "Tensor | Array | None"


@dataclass(frozen=True, eq=False)
class Call:
    """One node with its operands; `since` is the version of its operator's definition.

    bodies: what each graph among its attributes makes of operands.
    """

    op: str
    since: int
    inputs: tuple[Value | None, ...]
    attrs: Mapping[str, Any]
    n_outputs: int
    names: Names
    literals: Literals
    bodies: Mapping[str, Callable[[Sequence[Tensor]], list[Tensor]]] = field(default_factory=dict)

    def has(self, n: int) -> bool:
        return n < len(self.inputs) and self.inputs[n] is not None

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    def _input(self, n: int) -> Value:
        value = self.inputs[n] if n < len(self.inputs) else None
        if value is None:
            raise Unsupported(f"input {n} is missing")
        return value

    def x(self, n: int = 0) -> Tensor:
        """Operand `n` as a tensor."""
        value = self._input(n)
        if value.tensor is not None:
            return value.tensor
        if value.constant is None:
            raise Unsupported(f"reads {value.name}, which is not a tensor of known shape and type")
        return self.literals.tensor(value.constant, value.name)

    def known(self, n: int) -> Array | None:
        """Operand `n` where it is there and a constant."""
        return self._input(n).known if self.has(n) else None

    def ints(self, n: int, what: str) -> list[int] | None:
        """Operand `n` as integers; None where it is absent, refused where it is no constant."""
        if not self.has(n):
            return None
        known = self.known(n)
        if known is None:
            raise Unsupported(f"its {what} is computed at run time")
        return [int(v) for v in np.asarray(known).reshape(-1)]

    def dtype(self, attr: str, default: int | None = None) -> str:
        """The type that an integer attribute names."""
        number = self.attr(attr, default)
        if number not in DTYPES_BY_NUMBER:
            raise Unsupported(f"its type number {number} is not one of ours")
        return DTYPES_BY_NUMBER[number]


@dataclass(frozen=True)
class Row:
    """One operator: since: the definitions we know; build: what it computes, in algebra."""

    op: str
    since: tuple[int, ...]
    build: Callable[[Call], Result | tuple[Result, ...]]


def wide(node: Node) -> Node:
    """Half precision as float32, in which sums are accumulated; other types as they are."""
    return cast(node, "float32") if node.dtype in HALVES else node
