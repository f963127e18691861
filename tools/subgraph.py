"""Parts of an ONNX model in by the values at their ends, models of their own out.

A part is what lies between values that are given and values that are wanted. Views at its ends
(transposes, reshapes) belong to whoever reads them, so that neighbouring parts share no node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper
import onnx.inliner


@dataclass(frozen=True)
class Part:
    """A model of its own: serialised, and the arrays that its inputs take."""

    model: bytes
    feeds: Mapping[str, np.ndarray]
    nodes: int


class OnnxModel:
    """An ONNX file by its nodes and the names between them."""

    def __init__(self, path: Path) -> None:
        proto = onnx.load(str(path), load_external_data=False)
        self._proto = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
        self._folder = path.parent
        graph = self._proto.graph
        self._nodes: Sequence[Any] = graph.node
        self._stored = {t.name: t for t in graph.initializer}
        self.inputs = tuple(i.name for i in graph.input if i.name not in self._stored)
        self._maker = {name: n for n, node in enumerate(graph.node) for name in node.output if name}
        self._users: dict[str, set[int]] = {}
        for n, node in enumerate(graph.node):
            for name in _reads(node):
                self._users.setdefault(name, set()).add(n)
        self._constant = self._constants()

    def _constants(self) -> set[str]:
        """Names whose values do not depend on the model's inputs."""
        known = set(self._stored)
        for node in self._nodes:
            if all(name in known for name in _reads(node)):
                known.update(node.output)
        return known

    def order(self, name: str) -> int:
        """When a value is made: -1 for inputs and constants of the file."""
        return self._maker.get(name, -1)

    def with_every_output(self) -> bytes:
        """The model with all values that depend on its inputs as outputs, without its weights'
        external data."""
        graph = self._proto.graph
        own = list(graph.output)
        names = (name for name in self._maker if name not in self._constant)
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        text: bytes = self._proto.SerializeToString()
        del graph.output[:]
        graph.output.extend(own)  # a copy of the model would be gigabytes where this is a list
        return text

    @property
    def constants(self) -> tuple[str, ...]:
        """Values that the model computes from its weights alone."""
        return tuple(n for n in self._maker if n in self._constant)

    def first(self, names: Iterable[str]) -> set[str]:
        """Of equal values, those that are not made from another of them."""
        group = set(names)
        return {
            name for name in group
            if name not in self._maker or not group & set(_reads(self._nodes[self._maker[name]]))
        }  # fmt: skip

    def part(
        self, given: Iterable[str], wanted: Sequence[str], arrays: Mapping[str, np.ndarray]
    ) -> Part | None:
        """What makes `wanted` from `given`; None where nothing is left of it.

        arrays: the values of one run, for all names that depend on the inputs.
        """
        ends = set(given)
        behind = self._behind(ends, wanted)
        kept = self._between(ends, behind) or behind
        kept = self._exclusive(kept, set(wanted))
        made = {name for n in kept for name in self._nodes[n].output}
        if not kept or not set(wanted) <= made:
            return None
        count = len(kept)
        kept = self._with_constants(kept)
        made |= {name for n in kept for name in self._nodes[n].output}
        read = [name for n in sorted(kept) for name in _reads(self._nodes[n]) if name not in made]
        outside = list(dict.fromkeys(read))
        feeds = {n: arrays[n] for n in outside if n not in self._stored}
        tensors = [self._tensor(n) for n in outside if n in self._stored]
        return Part(self._model(kept, feeds, wanted, tensors), feeds, count)

    def _with_constants(self, kept: set[int]) -> set[int]:
        """The nodes, and those that make what they read from the file's constants alone."""
        out = set(kept)
        stack = [name for n in kept for name in _reads(self._nodes[n])]
        while stack:
            name = stack.pop()
            n = self._maker.get(name)
            if name in self._constant and n is not None and n not in out:
                out.add(n)
                stack.extend(_reads(self._nodes[n]))
        return out

    def _behind(self, ends: set[str], wanted: Sequence[str]) -> set[int]:
        found: set[int] = set()
        stack = list(wanted)
        while stack:
            name = stack.pop()
            n = self._maker.get(name)
            if n is None or n in found or name in ends or name in self._constant:
                continue
            found.add(n)
            stack.extend(_reads(self._nodes[n]))
        return found

    def _between(self, ends: set[str], behind: set[int]) -> set[int]:
        """Of the nodes behind the wanted values those that depend on the given ones."""
        reached = set(ends)
        out: set[int] = set()
        for n in sorted(behind):
            if reached & set(_reads(self._nodes[n])):
                out.add(n)
                reached.update(self._nodes[n].output)
        return out

    def _exclusive(self, kept: set[int], wanted: set[str]) -> set[int]:
        """Without what other parts of the model use too: a mask that all layers share."""
        while True:
            shared = {
                n for n in kept
                if not wanted & set(self._nodes[n].output)
                and any(self._users.get(o, set()) - kept for o in self._nodes[n].output)
            }  # fmt: skip
            if not shared:
                return kept
            kept = kept - shared
            made_for = {name for n in kept for name in _reads(self._nodes[n])} | wanted
            while idle := {n for n in kept if not made_for & set(self._nodes[n].output)}:
                kept = kept - idle
                made_for = {name for n in kept for name in _reads(self._nodes[n])} | wanted

    def _tensor(self, name: str) -> Any:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self._stored[name])
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(self._folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        return tensor

    def _model(
        self, kept: set[int], feeds: Mapping[str, np.ndarray], wanted: Sequence[str],
        tensors: Sequence[Any],
    ) -> bytes:  # fmt: skip
        number = onnx.helper.np_dtype_to_tensor_dtype
        inputs = [
            onnx.helper.make_tensor_value_info(name, number(a.dtype), a.shape)
            for name, a in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
        nodes = [self._nodes[n] for n in sorted(kept)]
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
