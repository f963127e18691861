"""Small ONNX models from text, and an executor of imported graphs: interp, with the islands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime

from autosched.ir.frontend.onnx import import_model, load_model
from autosched.ir.graph import GraphValue, ModelGraph
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Output, Program, walk

Arrays = dict[str, Any]


def parsed(body: str, opset: int = 21, extra: str = "") -> onnx.ModelProto:
    """A model from ONNX's text form: `agraph (float[2, 3] x) => (float[2, 3] y) { ... }`."""
    head = f'<ir_version: 10, opset_import: ["" : {opset}{extra}]>'
    return onnx.parser.parse_model(f"{head}\n{body}")


def with_weights(model: onnx.ModelProto, **weights: np.ndarray) -> onnx.ModelProto:
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def imported(model: onnx.ModelProto, **shapes: tuple[int, ...]) -> ModelGraph:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    return import_model(copy, Path("model.onnx"), shapes)


def program_of(values: Sequence[GraphValue]) -> Program:
    roots = tuple(v.node for v in values)
    outputs = tuple(Output(v.name, v.dims, v.node.dtype, v.extents) for v in values)
    inputs = tuple(n for n in walk(*roots) if n.op == "input")
    return Program("algebra", inputs, outputs, roots)


def values_of(values: Sequence[GraphValue], known: Mapping[str, Any]) -> Arrays:
    """The values by name and in their shapes, from arrays of every input."""
    program = program_of(values)
    got = evaluate(program, {n.attr[0]: known[n.attr[0]] for n in program.inputs})
    return {v.name: np.asarray(got[v.name]).reshape(v.shape) for v in values}


def run_graph(graph: ModelGraph, feed: Mapping[str, Any]) -> Arrays:
    """The outputs of an imported model: algebra by interp, islands by onnxruntime."""
    known = {name: weight.load() for name, weight in graph.weights.items()} | dict(feed)
    for island in graph.islands:
        session = onnxruntime.InferenceSession(island.model)
        given = values_of(island.inputs, known)
        types = {v.name: v.node.dtype for v in island.inputs}
        given = {name: np.asarray(a).astype(types[name]) for name, a in given.items()}
        names = [node.attr[0] for node in island.outputs]
        known |= dict(zip(names, session.run(names, given)))
    return values_of(graph.outputs, known)


def onnxruntime_of(model: onnx.ModelProto | Path, feed: Mapping[str, Any]) -> Arrays:
    source = model if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed))))


def nodes_of(graph: ModelGraph, op: str) -> list[Node]:
    return [n for n in walk(*(v.node for v in graph.outputs)) if n.op == op]


def maps_of(graph: ModelGraph) -> list[str]:
    return [n.attr[0] for n in nodes_of(graph, "map")]


__all__ = [
    "imported", "load_model", "maps_of", "nodes_of", "onnxruntime_of", "parsed", "program_of",
    "run_graph", "saved", "values_of", "with_weights",
]  # fmt: skip
