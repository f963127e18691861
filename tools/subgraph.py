"""Parts of an ONNX model in by the values at their ends, models of their own out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper
import onnx.inliner

from autosched.tools.parts import Graph, Op, Part


class OnnxModel(Graph):
    """An ONNX file by its nodes and the names between them."""

    def __init__(self, path: Path) -> None:
        proto = onnx.load(str(path), load_external_data=False)
        self._proto = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
        self._folder = path.parent
        graph = self._proto.graph
        self._nodes: Sequence[Any] = graph.node
        self._stored = {t.name: t for t in graph.initializer}
        self.inputs = tuple(i.name for i in graph.input if i.name not in self._stored)
        ops = [Op(tuple(_reads(node)), tuple(node.output)) for node in graph.node]
        super().__init__(ops, self._stored)

    def with_every_output(self) -> bytes:
        """The model with all values that depend on its inputs as outputs, without its weights'
        external data."""
        graph = self._proto.graph
        own = list(graph.output)
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.variables)
        text: bytes = self._proto.SerializeToString()
        del graph.output[:]
        graph.output.extend(own)  # a copy of the model would be gigabytes where this is a list
        return text

    def part(
        self, given: Iterable[str], wanted: Sequence[str], arrays: Mapping[str, np.ndarray]
    ) -> Part | None:
        """What makes `wanted` from `given`; None where nothing is left of it.

        arrays: the values of one run, for all names that depend on the inputs.
        """
        cut = self.cut(given, wanted)
        if cut is None:
            return None
        feeds = {n: arrays[n] for n in cut.outside if n not in self._stored}
        tensors = [self._tensor(n) for n in cut.outside if n in self._stored]
        return Part(self._model(cut.ops, feeds, wanted, tensors), feeds, cut.count)

    def _tensor(self, name: str) -> Any:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self._stored[name])
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(self._folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        return tensor

    def _model(
        self, kept: Sequence[int], feeds: Mapping[str, np.ndarray], wanted: Sequence[str],
        tensors: Sequence[Any],
    ) -> bytes:  # fmt: skip
        number = onnx.helper.np_dtype_to_tensor_dtype
        inputs = [
            onnx.helper.make_tensor_value_info(name, number(a.dtype), a.shape)
            for name, a in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
        nodes = [self._nodes[n] for n in kept]
        graph = onnx.helper.make_graph(nodes, "part", inputs, outputs, tensors)
        model = onnx.helper.make_model(
            graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version
        )
        return bytes(model.SerializeToString())


def _reads(node: Any) -> list[str]:
    """The values a node reads, those of its subgraphs too."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for graph in graphs:
            own = {x.name for x in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                names += [name for name in _reads(inner) if name not in own]
                own.update(inner.output)
            names += [o.name for o in graph.output if o.name not in own]
    return names
