"""ATen overloads without a row that an operator of ONNX computes: onnxruntime runs them between
the kernels, as it does for ONNX models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autosched.ir.frontend.build import OpNode
from autosched.ir.frontend.literal import Array

_UNKNOWN = ("bfloat16", "uint16", "uint32", "uint64")  # types that onnxruntime's kernels lack


@dataclass(frozen=True)
class OnnxNode:
    """A node of an ONNX graph; constants: of its inputs, those that it brings along."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    constants: Mapping[str, Array] = field(default_factory=dict)


def onnx_node(node: OpNode) -> OnnxNode | None:
    """The ONNX operator that computes a node, if there is one."""
    if node.op not in _ISLANDS or any(t.dtype in _UNKNOWN for t in node.attrs["out"]):
        return None
    return _ISLANDS[node.op](node, node.attrs["args"])


def _greatest(
    node: OpNode, count: int, dim: int, largest: bool, outputs: tuple[str, ...]
) -> OnnxNode:
    """The first entries in order, and where they stand; of equals the first comes first."""
    k = f"{node.name} count"
    attrs = {"axis": dim, "largest": int(largest), "sorted": 1}
    return OnnxNode("TopK", (node.inputs[0], k), outputs, attrs, {k: np.array([count])})


def _topk(node: OpNode, args: Sequence[Any]) -> OnnxNode:
    _, k, dim, largest, _ = args
    return _greatest(node, k, dim, largest, node.outputs)


def _sort(node: OpNode, args: Sequence[Any]) -> OnnxNode:
    dim, descending = args[-2:]
    return _greatest(node, node.attrs["out"][0].shape[dim], dim, descending, node.outputs)


def _argsort(node: OpNode, args: Sequence[Any]) -> OnnxNode:
    dim, descending = args[-2:]
    size = node.attrs["out"][0].shape[dim]
    return _greatest(node, size, dim, descending, ("", *node.outputs))


def _scatter(reduction: str) -> Callable[[OpNode, Sequence[Any]], OnnxNode]:
    def build(node: OpNode, args: Sequence[Any]) -> OnnxNode:
        attrs = {"axis": args[1], "reduction": reduction}
        return OnnxNode("ScatterElements", node.inputs, node.outputs, attrs)

    return build


_ISLANDS: Mapping[str, Callable[[OpNode, Sequence[Any]], OnnxNode]] = {
    "aten.topk.default": _topk,
    "aten.sort.default": _sort,
    "aten.sort.stable": _sort,
    "aten.argsort.default": _argsort,
    "aten.argsort.stable": _argsort,
    "aten.scatter.src": _scatter("none"),
    "aten.scatter_add.default": _scatter("add"),
}
