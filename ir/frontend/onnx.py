"""An ONNX file in, a `ModelGraph` out: the only file that imports onnx.

The file is not trusted: every size is checked against what is really there, and weights outside
of it are read only from plain files of its own folder. This file is long because whatever touches
protobuf or a schema stands here, and nothing else does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.inliner
import onnx.numpy_helper
import onnx.shape_inference
from google.protobuf.message import DecodeError

from autosched.ir.frontend.aten_islands import OnnxNode
from autosched.ir.frontend.build import Body, OpNode, Source, TensorType, build_graph
from autosched.ir.frontend.call import DTYPES_BY_NUMBER, Value
from autosched.ir.frontend.external import ExternalData
from autosched.ir.frontend.literal import Array
from autosched.ir.frontend.shapes import InputSpec, bind_shapes
from autosched.ir.frontend.table import OPSETS, TABLE
from autosched.ir.graph import ModelError, ModelGraph

NUMBERS = {name: number for number, name in DTYPES_BY_NUMBER.items()}
ISLAND_OPSET = 21  # of islands that are written here
MAX_MESSAGE = 2**31 - 1  # bytes of one protobuf message
SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def load_model(path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> ModelGraph:
    """The model in the file `path` as one algebra DAG.

    Args: shapes, input name to its static shape; needed for inputs with free dimensions.
    Raises: ModelError for a file that can't be used, with the cause and the way out.
    """
    path = Path(path)
    return import_model(_read(path), path, shapes or {})


def import_model(
    proto: onnx.ModelProto, path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> ModelGraph:
    """`load_model` for a model in memory, which is used up; `path` is where it belongs: external
    data lie beside it, and messages name it."""
    _check_names(path, proto.graph)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    opsets = _opsets(path, proto)
    graph = proto.graph
    external = ExternalData(path.parent)
    constants = {t.name: array_of(t, external) for t in graph.initializer}
    if graph.sparse_initializer:
        raise ModelError(
            f"{path} has sparse weights, which are not supported; make them dense "
            "(onnx.numpy_helper) before tuning"
        )
    for tensor in graph.initializer:
        tensor.ClearField("raw_data")  # `constants` holds them now
    proto = written_out(proto)
    graph = proto.graph
    specs = tuple(_spec(path, info) for info in graph.input if info.name not in constants)
    bound = bind_shapes(specs, shapes)
    symbols = {
        dim: size
        for spec in specs
        for dim, size in zip(spec.dims or (), bound[spec.name])
        if isinstance(dim, str) and dim
    }
    source = Source(
        tuple((s.name, TensorType(s.dtype, bound[s.name]), _symbols(s)) for s in specs),
        tuple(info.name for info in graph.output),
        constants,
        tuple(_op_node(path, node, opsets, external) for node in graph.node),
    )
    return build_graph(source, _OnnxPackage(proto, external, symbols))


# ---- reading ----------------------------------------------------------------------------------


def _read(path: Path) -> onnx.ModelProto:
    try:
        if not path.is_file():
            what = "is a folder or device" if path.exists() else "does not exist"
            raise ModelError(f"{path} {what}; name the .onnx file of the model")
        if path.stat().st_size > MAX_MESSAGE:
            raise ModelError(
                f"{path} has more than 2 GiB, which no ONNX file can; save the model with "
                "external data (onnx.save(model, path, save_as_external_data=True))"
            )
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}") from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{path} is not an ONNX model, or only a part of one; fetch or export it again"
        ) from None
    if not proto.HasField("graph") or not proto.opset_import or not proto.graph.output:
        raise ModelError(
            f"{path} holds no ONNX graph: it is something else, or was cut short; "
            "fetch or export it again"
        )
    return proto


def _check_names(path: Path, graph: onnx.GraphProto) -> None:
    """Names are text; protobuf hands out bytes where a damaged file has something else."""
    tensors = (*graph.initializer, *(t for node in graph.node for t in _tensors(node)))
    names = [
        *(n for node in graph.node for n in (node.name, node.op_type, node.domain)),
        *(n for node in graph.node for n in (*node.input, *node.output)),
        *(a.name for node in graph.node for a in node.attribute),
        *(x.name for x in (*graph.input, *graph.output, *tensors)),
        *(text for t in tensors for e in t.external_data for text in (e.key, e.value)),
        *(d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim),
    ]
    if not all(isinstance(n, str) for n in names):
        raise ModelError(f"{path} has names that are no text: it is damaged; fetch it again")
    for node in graph.node:
        for inner in _graphs(node):
            _check_names(path, inner)


def _tensors(node: onnx.NodeProto) -> list[onnx.TensorProto]:
    """The tensors among the attributes of a node."""
    single = [a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    return [*single, *(t for a in node.attribute for t in a.tensors)]


def _opsets(path: Path, proto: onnx.ModelProto) -> dict[str, int]:
    """Versions of the operator sets by domain; "" is the default one."""
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    version = opsets.get("", OPSETS[0])
    known = min(OPSETS[-1], onnx.defs.onnx_opset_version())
    if version > known:
        raise ModelError(
            f"{path} uses opset {version}, newer than what is known here ({known}); export it "
            f"with opset_version={known}, or update autosched and onnx"
        )
    if version < OPSETS[0]:
        raise ModelError(
            f"{path} uses opset {version}, older than the first known here ({OPSETS[0]}); convert "
            f"it: onnx.save(onnx.version_converter.convert_version(onnx.load(FILE), {OPSETS[0]}), "
            "NEW_FILE)"
        )
    return opsets


def _spec(path: Path, info: onnx.ValueInfoProto) -> InputSpec:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type") or kind.elem_type not in DTYPES_BY_NUMBER:
        named = onnx.helper.printable_type(info.type)
        raise ModelError(
            f"the input {info.name!r} of {path} has the type {named}; inputs must be tensors of "
            f"{', '.join(NUMBERS)}"
        )
    dims = None
    if kind.HasField("shape"):
        dims = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param
            for d in kind.shape.dim
        )
    return InputSpec(info.name, DTYPES_BY_NUMBER[kind.elem_type], dims)


def _symbols(spec: InputSpec) -> tuple[str, ...]:
    """The symbol of each dimension, "" for a number."""
    if spec.dims is None:
        return ("",) * 64
    return tuple(d if isinstance(d, str) else "" for d in spec.dims)


def array_of(tensor: onnx.TensorProto, external: ExternalData) -> Array:
    """The elements of a tensor; those of external data are mapped, not read.

    Raises: ModelError where the bytes are missing or not as many as its shape needs.
    """
    dims = tuple(tensor.dims)
    if any(d < 0 for d in dims):
        raise ModelError(f"weight {tensor.name!r} has the shape {list(dims)}: the file is damaged")
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ModelError(
            f"weight {tensor.name!r} has the unknown type number {tensor.data_type}"
        ) from None
    packed = tensor.data_type in _PACKED
    needed = -(-math.prod(dims) * _PACKED[tensor.data_type] // 8) if packed else (
        math.prod(dims) * dtype.itemsize)  # fmt: skip
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raw = _external_bytes(tensor, external, needed)
    elif tensor.HasField("raw_data"):
        raw = np.frombuffer(tensor.raw_data, np.uint8)
    else:
        raw = None
    if raw is not None and raw.size != needed:
        raise ModelError(
            f"weight {tensor.name!r} of shape {list(dims)} needs {needed} bytes, the file holds "
            f"{raw.size}: it is damaged; fetch or export it again"
        )
    if raw is not None and not packed:
        return raw.view(dtype).reshape(dims)
    try:
        if raw is None:
            return onnx.numpy_helper.to_array(tensor)
        inline = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=dims)
        inline.raw_data = raw.tobytes()
        return onnx.numpy_helper.to_array(inline)
    except ValueError as error:
        raise ModelError(f"weight {tensor.name!r} is damaged: {error}") from None


# Bits of the types that share bytes.
_PACKED = {
    number: bits
    for name, bits in (("UINT4", 4), ("INT4", 4), ("FLOAT4E2M1", 4), ("UINT2", 2), ("INT2", 2))
    if (number := getattr(onnx.TensorProto, name, None)) is not None
}


def _external_bytes(tensor: onnx.TensorProto, external: ExternalData, needed: int) -> Array:
    facts = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(facts.get("offset", 0)), int(facts.get("length", needed))
    except ValueError:
        raise ModelError(
            f"weight {tensor.name!r} has the offset {facts.get('offset')!r} and the length "
            f"{facts.get('length')!r}, which are no numbers: the file is damaged"
        ) from None
    return external.read(tensor.name, facts.get("location", ""), offset, length)


# ---- nodes ------------------------------------------------------------------------------------


def _op_node(
    path: Path, node: onnx.NodeProto, opsets: Mapping[str, int], external: ExternalData
) -> OpNode:
    domain = "" if node.domain == "ai.onnx" else node.domain
    schema = _schema(node.op_type, opsets.get(domain, 1), domain)
    if schema is None and not domain:
        raise ModelError(
            f"{path} uses the operator {node.op_type!r}, which opset {opsets.get('')} does not "
            "have: the file is damaged or was written for another opset"
        )
    wrong = _misfit(node, schema) if schema is not None else ""
    if wrong:
        raise ModelError(
            f"{path}: {node.op_type} {node.name!r} {wrong}; the file is damaged or its exporter "
            "is wrong"
        )
    attrs = {a.name: _attribute(a, external) for a in node.attribute if a.type not in SUBGRAPHS}
    outer: dict[str, None] = {}
    for graph in _graphs(node):
        outer |= dict.fromkeys(_captured(graph))
    return OpNode(
        name=node.name,
        op=node.op_type,
        domain=domain,
        since=schema.since_version if schema is not None else 0,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attrs=attrs,
        captured=tuple(outer),
        bodies={
            a.name: _body(path, a.g, opsets, external)
            for a in node.attribute
            if a.type == onnx.AttributeProto.GRAPH
        },
        source=node,
    )


def _body(
    path: Path, graph: onnx.GraphProto, opsets: Mapping[str, int], external: ExternalData
) -> Body:
    return Body(
        tuple(info.name for info in graph.input),
        tuple(info.name for info in graph.output),
        {t.name: array_of(t, external) for t in graph.initializer},
        tuple(_op_node(path, inner, opsets, external) for inner in graph.node),
    )


def _schema(op: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    """The definition of the operator that the model means, if onnx has it."""
    if not onnx.defs.has(op, domain):
        return None
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


def _misfit(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> str:
    """What is wrong with the operands and attributes of a node, by its definition."""
    if not schema.min_input <= len(node.input) <= schema.max_input:
        return f"has {len(node.input)} operands"
    if not schema.min_output <= len(node.output) <= schema.max_output:
        return f"has {len(node.output)} results"
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for parameter, name in zip(schema.inputs, node.input):
        if parameter.option == single and not name:
            return f"lacks the operand {parameter.name}"
    given = {a.name: a for a in node.attribute}
    for name, wanted in schema.attributes.items():
        if wanted.required and name not in given:
            return f"lacks the attribute {name!r}"
        kind = onnx.AttributeProto.AttributeType.Name(given[name].type) if name in given else ""
        if kind and str(wanted.type) != f"AttrType.{kind}":
            return f"has an attribute {name!r} of another type"
    unknown = sorted(set(given) - set(schema.attributes))
    return f"has the unknown attribute {unknown[0]!r}" if unknown else ""


def _attribute(attribute: onnx.AttributeProto, external: ExternalData) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return array_of(attribute.t, external)
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [v.decode("utf-8", "replace") for v in value]
    return list(value) if attribute.type in _LISTS else value


_LISTS = (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        graph
        for a in node.attribute
        for graph in ([a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs)
        if a.type in SUBGRAPHS
    ]


def _captured(graph: onnx.GraphProto) -> list[str]:
    """Values of outer graphs that this one reads."""
    own = {x.name for group in (graph.input, graph.initializer) for x in group}
    read: list[str] = []
    for node in graph.node:
        read += [n for n in node.input if n]
        for inner in _graphs(node):
            read += _captured(inner)
        own |= set(node.output)
    read += [o.name for o in graph.output]
    return [n for n in dict.fromkeys(read) if n not in own]


# ---- operators that the standard defines by others ---------------------------------------------


def written_out(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with operators that have no row replaced by the standard's own definition of
    them, wherever that consists of operators that have one."""
    versions = {o.domain: o.version for o in proto.opset_import}
    refused: set[tuple[str, str]] = set()
    while defined := sorted(_defined(proto, versions) - refused):
        op = defined[0]
        try:
            inlined = onnx.inliner.inline_selected_functions(
                _spelled_out(proto, op, versions), [op], inline_schema_functions=True
            )
        except RuntimeError:  # the inliner can't tell a type, of an operand left out among others
            refused.add(op)
            continue
        rest = {(n.domain, n.op_type) for n in inlined.graph.node if n.op_type not in TABLE}
        known = {(n.domain, n.op_type) for n in proto.graph.node}
        if rest <= (known - {op}) | _defined(inlined, versions):
            proto = inlined
        else:
            refused.add(op)
    return proto


def _spelled_out(
    proto: onnx.ModelProto, op: tuple[str, str], versions: Mapping[str, int]
) -> onnx.ModelProto:
    """The model with what a definition of an operator reads: every attribute, and the types of
    constants."""
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    schema = _schema(op[1], versions.get(op[0], 1), op[0])
    assert schema is not None
    defaults = {name: a.default_value for name, a in schema.attributes.items()}
    for node in out.graph.node:
        if (node.domain, node.op_type) == op:
            given = {a.name for a in node.attribute}
            node.attribute.extend(
                d for name, d in defaults.items() if d.name and name not in given
            )
    out.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in out.graph.initializer
    )
    return out


def _defined(proto: onnx.ModelProto, versions: Mapping[str, int]) -> set[tuple[str, str]]:
    """The operators of a model without a row that the standard defines by others."""
    found = {(n.domain, n.op_type) for n in proto.graph.node if n.op_type not in TABLE}
    return {(d, op) for d, op in found if _has_body(_schema(op, versions.get(d, 1), d))}


def _has_body(schema: Any) -> bool:  # onnx's stubs know neither attribute
    return schema is not None and (
        schema.has_function or schema.has_context_dependent_function
    )


def write_nodes(
    nodes: Sequence[OnnxNode], inputs: Sequence[tuple[str, TensorType]],
    outputs: Sequence[tuple[str, TensorType]], constants: Mapping[str, Array],
) -> bytes:  # fmt: skip
    """A serialised model of operators that no ONNX file had."""
    info = onnx.helper.make_tensor_value_info
    tensors = {name: a for node in nodes for name, a in node.constants.items()} | dict(constants)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(n.op, n.inputs, n.outputs, **n.attrs) for n in nodes], "island",
        [info(name, NUMBERS[t.dtype], t.shape) for name, t in inputs],
        [info(name, NUMBERS[t.dtype], t.shape) for name, t in outputs],
        [onnx.numpy_helper.from_array(a, name) for name, a in tensors.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", ISLAND_OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


# ---- what the walk needs of this package ------------------------------------------------------


class _OnnxPackage:
    """`build.Foreign` on the onnx package, for the nodes of one model."""

    def __init__(
        self, proto: onnx.ModelProto, external: ExternalData, symbols: Mapping[str, int]
    ) -> None:
        self._opsets = list(proto.opset_import)
        self._ir_version = proto.ir_version
        self._external = external
        self._types: dict[str, onnx.TypeProto] = {}
        self._declared = {
            info.name: _with_sizes(info.type, symbols)
            for infos in (proto.graph.value_info, proto.graph.output)
            for info in infos
            if info.type.HasField("tensor_type")
        }

    def fold(self, node: OpNode, operands: Sequence[Array | None]) -> list[Array] | None:
        from onnx.reference import ReferenceEvaluator

        given = {n: a for n, a in zip(node.inputs, operands) if n and a is not None}
        inputs = [onnx.ValueInfoProto(name=n) for n in given]
        outputs = [onnx.ValueInfoProto(name=n) for n in node.outputs if n]
        model = self._model([node], inputs, outputs, {})
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(model).run(None, given)
        except Exception:  # whatever it can't do stays a node, and onnxruntime has the last word
            return None
        found = iter(results)
        made = [next(found) if n else None for n in node.outputs]
        if any(m is not None and not isinstance(m, np.ndarray | np.generic) for m in made):
            return None
        return [np.asarray(m) for m in made]

    def infer(self, node: OpNode, operands: Mapping[str, Value]) -> list[TensorType | None]:
        infos, constants = [], {}
        for name in node.reads:
            value = operands[name]
            if value.known is not None and name not in node.captured:
                constants[name] = value.known
            elif value.shape is not None:
                dtype = value.tensor.dtype if value.tensor else None
                number = (
                    NUMBERS[dtype]
                    if dtype
                    else onnx.helper.np_dtype_to_tensor_dtype(value.constant.dtype)
                )
                infos.append(onnx.helper.make_tensor_value_info(name, number, value.shape))
            elif name in self._types:
                infos.append(onnx.ValueInfoProto(name=name, type=self._types[name]))
        outputs = [onnx.ValueInfoProto(name=n) for n in node.outputs if n]
        model = self._model([node], infos, outputs, constants)
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except onnx.shape_inference.InferenceError:
            inferred = onnx.GraphProto()
        found = {
            info.name: info.type
            for info in (*inferred.output, *inferred.value_info)
            if info.type.WhichOneof("value")
        }
        out = []
        for name in node.outputs:
            options = [t for t in (found.get(name), self._declared.get(name)) if t is not None]
            kinds = [_static(t) for t in options]
            best = next((n for n, k in enumerate(kinds) if k is not None), 0)
            if name and options:
                self._types[name] = options[best]
            out.append(kinds[best] if kinds else None)
        return out

    def allow(self, left: Sequence[tuple[OpNode, str]]) -> None:
        """onnxruntime runs whatever it is."""

    def write_model(
        self,
        nodes: Sequence[OpNode],
        inputs: Sequence[tuple[str, TensorType]],
        outputs: Sequence[str],
        constants: Mapping[str, Array],
    ) -> bytes:
        infos = [
            onnx.helper.make_tensor_value_info(name, NUMBERS[kind.dtype], kind.shape)
            for name, kind in inputs
        ]
        made = [
            onnx.ValueInfoProto(name=name, type=self._types.get(name, onnx.TypeProto()))
            for name in outputs
        ]
        return bytes(self._model(nodes, infos, made, constants).SerializeToString())

    def _model(
        self,
        nodes: Sequence[OpNode],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        constants: Mapping[str, Array],
    ) -> onnx.ModelProto:
        tensors = [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()]
        protos = [onnx.NodeProto.FromString(n.source.SerializeToString()) for n in nodes]
        for proto in protos:
            self._bring_in(proto)
        graph = onnx.helper.make_graph(protos, "island", inputs, outputs, tensors)
        return onnx.helper.make_model(
            graph, opset_imports=self._opsets, ir_version=self._ir_version
        )

    def _bring_in(self, node: onnx.NodeProto) -> None:
        """External tensors inside a node's attributes and subgraphs become part of it."""
        self._inline(_tensors(node))
        for graph in _graphs(node):
            self._inline(graph.initializer)
            for inner in graph.node:
                self._bring_in(inner)

    def _inline(self, tensors: Sequence[onnx.TensorProto]) -> None:
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(array_of(tensor, self._external), tensor.name)
                )


def _with_sizes(kind: onnx.TypeProto, symbols: Mapping[str, int]) -> onnx.TypeProto:
    """The type with the sizes of its symbols put in."""
    out = onnx.TypeProto()
    out.CopyFrom(kind)
    for dim in out.tensor_type.shape.dim:
        if dim.dim_param in symbols:
            dim.dim_value = symbols[dim.dim_param]
    return out


def _static(kind: onnx.TypeProto) -> TensorType | None:
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    if tensor.elem_type not in DTYPES_BY_NUMBER:
        return None
    if not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return TensorType(
        DTYPES_BY_NUMBER[tensor.elem_type], tuple(d.dim_value for d in tensor.shape.dim)
    )
