"""A whole imported model as one algebra DAG, with its weights, its islands and its coverage.

Every importer yields a `ModelGraph`; the partition cuts it into tasks and the runtime runs it.
Memory is row-major everywhere. `dims` of a value name its axes from the outermost to the
innermost; ONNX dimensions of size 1 have no axis, and a dimension that several axes make up
(heads and head size, say) has one axis for each, which is the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autosched.ir.node import Node


class ModelError(Exception):
    """A model that cannot be used: what is wrong and the way out, in words for its user."""


@dataclass(frozen=True)
class GraphValue:
    """A tensor that leaves the algebra: `node` stored in the order of `dims`.

    extents: one per axis of `dims`. `node` may lack an axis of `dims`: it is constant along it.
    shape: the tensor's shape for the user; the product of `shape` is the product of `extents`.
    """

    name: str
    node: Node
    dims: tuple[str, ...]
    extents: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Island:
    """A part of the model that onnxruntime runs.

    inputs: values to hand over, each reshaped to its `shape`; outputs: `input` nodes (kind
    "arg") that the algebra goes on with, one axis per dimension; model: a serialised ONNX model
    with those inputs and outputs, by name; op_types: what is in it, sorted.
    """

    name: str
    inputs: tuple[GraphValue, ...]
    outputs: tuple[Node, ...]
    op_types: tuple[str, ...]
    model: bytes = field(repr=False)


@dataclass(frozen=True)
class WeightRef:
    """A constant tensor, read when needed: external data stays mapped until it is touched.

    shape: without dimensions of size 1, one entry per axis of the `input` node of this name.
    digest: SHA-256 of type, shape and bytes; one digest appears once in a model.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    data: np.ndarray[Any, Any] = field(repr=False, compare=False)

    def load(self) -> np.ndarray[Any, Any]:
        """The values, read-only; bfloat16 and float8 in the types of ml_dtypes."""
        return self.data


@dataclass(frozen=True)
class Outside:
    """`count` nodes of one operator that run in onnxruntime, and why."""

    op: str
    count: int
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Floating-point operations of the model (a multiply-add is two), ours and all."""

    our_flops: int
    total_flops: int
    outside: tuple[Outside, ...] = ()

    @property
    def share(self) -> float:
        return self.our_flops / self.total_flops if self.total_flops else 1.0

    def line(self) -> str:
        """One line for the user: the share, then every operator outside with its reason."""
        text = f"{self.share:.1%} of {self.total_flops / 1e9:.3g} GFLOP are ours"
        if not self.outside:
            return text
        parts = (f"{o.op} x{o.count} ({o.reason})" for o in self.outside)
        return f"{text}; in onnxruntime: {', '.join(parts)}"


@dataclass(frozen=True)
class ModelGraph:
    """inputs: `input` nodes of kind "arg" with the model's own names and shapes, dims of size 1
    included; outputs: what the model yields; islands: in an order in which they can run."""

    inputs: tuple[Node, ...]
    outputs: tuple[GraphValue, ...]
    islands: tuple[Island, ...]
    weights: Mapping[str, WeightRef]
    coverage: Coverage
