"""Parts of a torch program in by the values at their ends, callables that run them eagerly out.

A part is written as the names of its nodes and of its ends; whoever runs it takes the nodes from
the program's file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputSpec, TensorArgument
from torch.utils import _pytree as pytree

from autosched.ir.frontend.torch import TorchModel, import_module, read_program, to_array, to_tensor
from autosched.tools.parts import Graph, Op, Part

SUFFIX = ".torch"  # of a part's file
VIEW = torch.ops.aten.view.default


class TorchGraph(Graph):
    """A program by its nodes and the names between them."""

    def __init__(self, model: TorchModel, file: Path) -> None:
        self._program, self._file = model.program, file
        ends = ("placeholder", "output")
        self._nodes = [node for node in model.program.graph.nodes if node.op not in ends]
        specs = model.program.graph_signature.input_specs
        self._stored = {s.arg.name for s in specs if s.target is not None}
        ops = [Op(tuple(n.name for n in node.all_input_nodes), (node.name,))
               for node in self._nodes]  # fmt: skip
        super().__init__(ops, self._stored)

    def every_value(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All values of one run by name, inputs included; those of bfloat16 as float32."""
        found: dict[str, np.ndarray] = {}
        kept = {*inputs, *self.variables}

        class Recorder(torch.fx.Interpreter):
            def run_node(self, node: torch.fx.Node) -> Any:
                result = super().run_node(node)
                several = isinstance(result, (tuple, list))
                for n, value in enumerate(result if several else [result]):
                    if isinstance(value, torch.Tensor) and node.name in kept:
                        wide = value.float() if value.dtype == torch.bfloat16 else value
                        found[f"{node.name}:{n}" if several else node.name] = to_array(wide)
                return result

        with torch.no_grad():
            Recorder(self._program.graph_module).run(*_arguments(self._program, inputs))
        return found

    def part(
        self, given: Iterable[str], wanted: Sequence[str], arrays: Mapping[str, np.ndarray]
    ) -> Part | None:
        """As tools.parts.Parts has it; feeds of bfloat16 are float32."""
        cut = self.cut(given, wanted)
        if cut is None:
            return None
        fed = [n for n in cut.outside if n not in self._stored]
        if not all(n in arrays for n in fed):
            return None  # a tuple of several results lies between
        text = json.dumps({"program": str(self._file), "wanted": list(wanted), "fed": fed,
                           "nodes": [self._nodes[n].name for n in cut.ops]})  # fmt: skip
        return Part(text.encode(), {n: arrays[n] for n in fed}, cut.count, SUFFIX)


def _arguments(program: ExportedProgram, inputs: Mapping[str, np.ndarray]) -> list[Any]:
    """What the flat graph takes: weights, then inputs."""
    specs = program.graph_signature.input_specs
    places = program.graph.find_nodes(op="placeholder")
    return [_given(program, spec, node, inputs) for spec, node in zip(specs, places, strict=True)]


def _given(
    program: ExportedProgram, spec: InputSpec, node: torch.fx.Node, inputs: Mapping[str, np.ndarray]
) -> Any:
    """A weight, an input, or the plain value that an argument had."""
    if spec.target is not None:
        return _stored(program, spec.target)
    if isinstance(spec.arg, TensorArgument):
        return _input(inputs[spec.arg.name], node)
    return getattr(spec.arg, "value", None)


def _input(array: np.ndarray, node: torch.fx.Node) -> torch.Tensor:
    """An array as a tensor of the type and strides that its node has: bfloat16 may come as bits or
    as float32."""
    like, made = node.meta["val"], to_tensor(array)
    values = made.view(like.dtype) if made.dtype == torch.uint16 else made.to(like.dtype)
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).copy_(values)


def _stored(program: ExportedProgram, target: str) -> Any:
    found = program.state_dict.get(target)
    return program.constants[target] if found is None else found


# ---- sides of a race --------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _opened(file: str) -> TorchModel:
    return import_module(read_program(Path(file)))


def part_side(file: Path, inputs: str) -> Callable[[], object]:
    """One eager run of a part, its inputs ready."""
    facts = json.loads(file.read_text())
    program = _opened(facts["program"]).program
    root, graph = program.graph_module, torch.fx.Graph()
    known: dict[str, torch.fx.Node] = {}
    feeds = []
    with np.load(inputs, allow_pickle=False) as arrays:
        for node in program.graph.nodes:
            if node.name in facts["fed"]:
                known[node.name] = graph.placeholder(node.name)
                feeds.append(_input(arrays[node.name], node))
    names = {node.name: node for node in program.graph.nodes}
    targets = {s.arg.name: s.target for s in program.graph_signature.input_specs}

    def made(node: torch.fx.Node) -> torch.fx.Node:
        if node.name not in known:  # a weight
            setattr(root, f"part_{node.name}", _stored(program, str(targets[node.name])).detach())
            known[node.name] = graph.get_attr(f"part_{node.name}")
        return known[node.name]

    for name in facts["nodes"]:
        known[name] = graph.node_copy(names[name], made)
        if known[name].target == VIEW:  # of what may lie otherwise here than in the whole
            known[name].target = torch.ops.aten.reshape.default
    graph.output(tuple(known[name] for name in facts["wanted"]))
    module = torch.fx.GraphModule(root, graph)
    return lambda: _run(module, feeds, {})


def eager(file: str, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """One run of a program's file as torch runs it."""
    return _called(read_program(Path(file)).module(), file, inputs)


def compiled(file: str, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """The same by torch.compile."""
    return _called(torch.compile(read_program(Path(file)).module()), file, inputs)


def run_eagerly(model: TorchModel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What torch answers, by output name; bfloat16 as float32."""
    with torch.no_grad():
        flat = model.program.graph_module(*_arguments(model.program, inputs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    names = [value.name for value in model.graph.outputs]
    return {n: to_array(x.float() if x.dtype == torch.bfloat16 else x)
            for n, x in zip(names, tensors, strict=True)}  # fmt: skip


def _called(
    module: Callable[..., Any], file: str, inputs: Mapping[str, np.ndarray]
) -> Callable[[], object]:
    program = _opened(file).program
    flat = _arguments(program, inputs)[-program.call_spec.in_spec.num_leaves :]
    args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
    return lambda: _run(module, args, kwargs)


def _run(module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    with torch.inference_mode():
        return module(*args, **kwargs)
