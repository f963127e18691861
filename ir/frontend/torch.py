"""A torch.export program in, a `ModelGraph` out: the only file of `ir` that imports torch.

A module is exported with fixed shapes, its graph is made functional, and operators without a row
in the ATen table are replaced by what torch defines them by, as long as there is such a definition.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from autosched.ir.frontend.aten import Ref
from autosched.ir.frontend.aten_islands import onnx_node
from autosched.ir.frontend.aten_table import SAME, TABLE
from autosched.ir.frontend.build import OpNode, Source, TensorType, build_graph
from autosched.ir.frontend.call import Value
from autosched.ir.frontend.exported import (
    digest,
    export_failure,
    leaf,
    op_name,
    quietly,
    refusal,
    result_names,
    tree,
)
from autosched.ir.frontend.fx import NodeReader, type_of
from autosched.ir.frontend.literal import Array
from autosched.ir.frontend.onnx import write_nodes
from autosched.ir.frontend.pt2 import write_plain
from autosched.ir.graph import ModelError, ModelGraph

ROUNDS = 6  # of replacing operators by their definitions


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A program as the compiler has it.

    call: how the module is called, as plain JSON: the trees of its arguments and of its result,
    whose leaves name inputs and outputs of the graph (see codegen.runtime.face).
    digest: of graph and weights; exported: as torch made it; program: functional, with the
    operators that the graph was made of, whose nodes are called as values of the graph are.
    """

    name: str
    graph: ModelGraph
    call: Mapping[str, Any]
    digest: str
    exported: ExportedProgram = field(repr=False)
    program: ExportedProgram = field(repr=False)

    def save(self, path: Path) -> Path:
        """Writes the exported program to a file that `read_program` reads."""
        torch.export.save(self.exported, path)
        return path


def read_program(path: Path) -> ExportedProgram:
    """The program in a .pt2 file, no code of which is run.

    Raises: ModelError for what is no such file, or can't be loaded without running code.
    """
    with tempfile.TemporaryFile(suffix=".pt2") as plain:
        write_plain(path, plain)
        plain.seek(0)
        try:
            with quietly():
                return torch.export.load(plain)
        except Exception as error:  # torch's errors of reading share no base class
            raise ModelError(
                f"{path} can't be loaded by torch {torch.__version__} ({type(error).__name__}: "
                f"{str(error)[:200]}); save it with this version"
            ) from error


def import_module(
    module: torch.nn.Module | ExportedProgram, inputs: Sequence[Any] | None = None,
    keywords: Mapping[str, Any] | None = None, name: str = "",
) -> TorchModel:  # fmt: skip
    """A module or a program as one algebra DAG.

    Args: inputs, keywords: what the module is called with; of a program only needed where its
        shapes are free.
    Raises: ModelError for what can't be used, with the cause and the way out.
    """
    if isinstance(module, ExportedProgram):
        name = name or "exported program"
        exported, parameters = _fixed(module, inputs, keywords, name), _positions(module)
    elif isinstance(module, torch.nn.Module):
        name = name or type(module).__name__
        exported = _exported(module, inputs, keywords, name)
        parameters = _parameters(module)
    else:
        raise ModelError(
            f"a model is an ONNX file, a torch.nn.Module or a torch.export.ExportedProgram, "
            f"not {type(module).__name__}"
        )
    program = _functional(exported, name)
    reading = _Reading(program, name)
    source = reading.source()
    graph = build_graph(source, _TorchPackage(name))
    call = {"parameters": parameters, **reading.call()}
    return TorchModel(name, graph, call, digest(source), exported, program)


# ---- exporting ---------------------------------------------------------------------------------


def _exported(
    module: torch.nn.Module, inputs: Sequence[Any] | None, keywords: Mapping[str, Any] | None,
    name: str,
) -> ExportedProgram:  # fmt: skip
    if inputs is None and not keywords:
        raise ModelError(
            f"{name} needs example inputs, since kernels are tuned for shapes: "
            "autosched.tune(module, (x, mask), ...) with the arguments of a call"
        )
    given = () if inputs is None else inputs
    if isinstance(given, torch.Tensor):
        given = (given,)
    if not isinstance(given, (tuple, list)):
        raise ModelError(
            f"the example inputs of {name} must be a tuple of its arguments, not "
            f"{type(given).__name__}; keyword arguments go into example_kwargs"
        )
    try:
        with torch.no_grad(), quietly():
            return torch.export.export(module, tuple(given), dict(keywords or {}), strict=False)
    except Exception as error:  # torch's errors of tracing share no base class
        raise ModelError(export_failure(name, error)) from error


def _fixed(
    program: ExportedProgram, inputs: Sequence[Any] | None, keywords: Mapping[str, Any] | None,
    name: str,
) -> ExportedProgram:  # fmt: skip
    """The program with sizes for all dimensions."""
    free = [n.name for n in program.graph.nodes if n.op == "placeholder" and _is_free(n)]
    if not free:
        return program
    if inputs is None and not keywords:
        raise ModelError(
            f"the input {free[0]!r} of {name} has dimensions without a size, and kernels are tuned "
            "for sizes: give example inputs, or export without dynamic_shapes"
        )
    return _exported(program.module(), inputs, keywords, name)


def _is_free(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt):
        return True
    return isinstance(value, torch.Tensor) and not all(type(s) is int for s in value.shape)


def _functional(program: ExportedProgram, name: str) -> ExportedProgram:
    """The program without in-place operators, and with operators of the table where torch can
    define others by them."""
    try:
        with torch.no_grad(), quietly():
            program = program.run_decompositions({})
            known = torch.export.default_decompositions()
            for _ in range(ROUNDS):
                lacking = {t for t in _targets(program) if op_name(t) not in TABLE}
                defined = {t: known[t] for t in lacking if t in known}
                if not defined:
                    break
                program = program.run_decompositions(defined)
    except Exception as error:  # torch's errors of tracing share no base class
        raise ModelError(export_failure(name, error)) from error
    return program


def _targets(program: ExportedProgram) -> set[Any]:
    return {
        node.target
        for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
        and not _is_random(node.target)
    }  # fmt: skip


def _is_random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


# ---- arrays and types --------------------------------------------------------------------------


def to_array(tensor: torch.Tensor) -> Array:
    """A tensor's elements, in its own memory where that is dense and on the CPU."""
    dense = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    if dense.dtype == torch.bfloat16:
        return dense.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return dense.numpy()


def to_tensor(array: Array) -> torch.Tensor:
    """An array as a tensor of the same type, in memory of its own."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


# ---- reading -----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Reading:
    """The graph of a program as the walk wants it."""

    program: ExportedProgram
    name: str
    inputs: list[tuple[str, TensorType, tuple[str, ...]]] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    _leaves: list[str | None] = field(default_factory=list)  # outputs, None for plain values

    def __post_init__(self) -> None:
        self.reader = NodeReader(self.name, _common)

    def source(self) -> Source:
        self._check_writes()
        values: dict[torch.fx.Node, str] = {}
        names = {node.name for node in self.program.graph.nodes}
        specs = self.program.graph_signature.input_specs
        for node, spec in zip(self.program.graph.find_nodes(op="placeholder"), specs, strict=True):
            if not isinstance(spec.arg, TensorArgument):
                continue
            kind = type_of(node.meta["val"], f"{spec.target or node.name!r} of {self.name}")
            if spec.kind == InputKind.USER_INPUT:
                values[node] = node.name
                self.inputs.append((node.name, kind, ("",) * len(kind.shape)))
            else:
                label = str(spec.target)
                values[node] = label if label not in names else node.name
                self.constants[values[node]] = to_array(self._stored(str(spec.target)))
        made = self.reader.visit(self.program.graph_module, values, "")
        self._leaves = self._result_names()
        for name, value in zip(self._leaves, made, strict=True):
            if name is not None:
                self.reader.add(SAME, [value], [name], {}, None)
        return Source(
            tuple(self.inputs), tuple(self.outputs), self.constants, tuple(self.reader.nodes), TABLE
        )

    def _stored(self, target: str) -> torch.Tensor:
        found = self.program.state_dict.get(target)
        found = self.program.constants.get(target) if found is None else found
        if not isinstance(found, torch.Tensor):
            raise ModelError(f"{self.name} lacks the value of {target!r}: export it again")
        return found

    def _check_writes(self) -> None:
        """A package computes a function: what the module would keep must be a result."""
        for spec in self.program.graph_signature.output_specs:
            if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT):
                what = spec.target or "an input"
                raise ModelError(
                    f"{self.name} writes to {what!r} when it is called, and kernels only compute "
                    "results: in training mode call module.eval() first; else return the new "
                    "value as an output, and pass the old one as an input"
                )

    # ---- how it is called ---------------------------------------------------------------------

    def _result_names(self) -> list[str | None]:
        """A name for each result that is a tensor; None for the others."""
        spec = self.program.call_spec.out_spec
        leaves = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        paths, _ = pytree.tree_flatten_with_path(leaves)
        tensors = [isinstance(s.arg, TensorArgument)
                   for s in self.program.graph_signature.output_specs]  # fmt: skip
        taken = {name for name, _, _ in self.inputs}
        taken |= {n for node in self.reader.nodes for n in node.outputs}
        self.outputs = result_names([p for (p, _), t in zip(paths, tensors, strict=True) if t],
                                    taken)  # fmt: skip
        names = iter(self.outputs)
        return [next(names) if t else None for t in tensors]

    def call(self) -> dict[str, Any]:
        """The trees of arguments and result, as plain JSON."""
        signature, spec = self.program.graph_signature, self.program.call_spec
        given = [
            leaf(s.arg, s.arg.name if isinstance(s.arg, TensorArgument) else None, self.name)
            for s in signature.input_specs if s.kind == InputKind.USER_INPUT
        ]  # fmt: skip
        made = [leaf(s.arg, name, self.name)
                for s, name in zip(signature.output_specs, self._leaves, strict=True)]
        args, kwargs = pytree.tree_unflatten(given, spec.in_spec)
        result = pytree.tree_unflatten(made, spec.out_spec)
        return {
            "args": [tree(x, self.name) for x in args],
            "kwargs": {k: tree(x, self.name) for k, x in kwargs.items()},
            "result": tree(result, self.name),
        }


def _common(node: torch.fx.Node) -> str:
    """The type in which the first two operands meet."""
    both: list[Any] = [a.meta["val"] if isinstance(a, torch.fx.Node) else a for a in node.args[:2]]
    fit = all(isinstance(b, (torch.Tensor, bool, int, float)) for b in both)
    if len(both) < 2 or not fit or not any(isinstance(b, torch.Tensor) for b in both):
        return ""
    return str(torch.result_type(*both)).removeprefix("torch.")


def _parameters(module: torch.nn.Module) -> list[str]:
    """The names under which positional arguments may be given too."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    found = inspect.signature(module.forward).parameters.values()
    return [p.name for p in found if p.kind in kinds]


def _positions(program: ExportedProgram) -> list[str]:
    """The same of a program, as far as its inputs tell."""
    args = pytree.tree_unflatten(
        [s.arg for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT],
        program.call_spec.in_spec,
    )[0]
    return [getattr(a, "name", "") for a in args]


# ---- what has no row ---------------------------------------------------------------------------


class _TorchPackage:
    """`build.Foreign` on torch, for the nodes of one program."""

    def __init__(self, name: str) -> None:
        self._name = name

    def fold(self, node: OpNode, operands: Sequence[Array | None]) -> list[Array] | None:
        if node.op == SAME:
            return [a for a in operands if a is not None]
        if node.source is None or _is_random(node.source.target):
            return None
        tensors = [None if a is None else to_tensor(a) for a in operands]
        schema = node.source.target._schema.arguments
        values = [_filled(a, tensors) for a in node.attrs["args"]]
        args = [v for v, s in zip(values, schema) if not s.kwarg_only]
        kwargs = {s.name: v for v, s in zip(values, schema) if s.kwarg_only}
        with torch.no_grad():
            made = node.source.target(*args, **kwargs)
        results = list(made) if isinstance(made, (tuple, list)) else [made]
        return [to_array(r) for r in results]

    def infer(self, node: OpNode, operands: Mapping[str, Value]) -> list[TensorType | None]:
        found: list[TensorType | None] = list(node.attrs["out"])
        return found + [None] * (len(node.outputs) - len(found))

    def write_model(
        self, nodes: Sequence[OpNode], inputs: Sequence[tuple[str, TensorType]],
        outputs: Sequence[str], constants: Mapping[str, Array],
    ) -> bytes:  # fmt: skip
        types = {n: t for node in nodes for n, t in zip(node.outputs, node.attrs["out"])}
        written = [found for found in map(onnx_node, nodes) if found is not None]
        return write_nodes(written, inputs, [(n, types[n]) for n in outputs], constants)

    def allow(self, left: Sequence[tuple[OpNode, str]]) -> None:
        left = [(n, why) for n, why in left if onnx_node(n) is None]
        random = any(_is_random(n.source.target) for n, _ in left)
        reasons = [
            (n.source, "draws random numbers" if _is_random(n.source.target) else why)
            for n, why in left
        ]
        if random:
            raise ModelError(
                refusal(self._name, reasons) + "\nRandom numbers are mostly those of dropout in "
                "training mode: call module.eval() before exporting"
            )
        if left:
            raise ModelError(refusal(self._name, reasons))


def _filled(value: Any, tensors: Sequence[torch.Tensor | None]) -> Any:
    """An argument with its tensors, on the CPU."""
    if isinstance(value, Ref):
        return tensors[value.n]
    if isinstance(value, list):
        return [_filled(v, tensors) for v in value]
    return torch.device("cpu") if isinstance(value, torch.device) else value
