"""The nodes of a torch.fx graph in, those of the walk over a model out, without torch itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from autosched.ir.frontend.aten import SINCE, Ref
from autosched.ir.frontend.build import OpNode, TensorType
from autosched.ir.frontend.exported import op_name, place, refusal
from autosched.ir.graph import ModelError

FxNode: TypeAlias = Any  # torch.fx.Node and GraphModule, of which only attributes are read
GraphModule: TypeAlias = Any
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
          "uint64", "uint32", "uint16", "uint8", "bool")  # fmt: skip
_KEPT_CALLS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # only their graphs matter


def is_node(value: Any) -> bool:
    return hasattr(value, "all_input_nodes")


def is_tensor(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "stride")


def is_overload(target: Any) -> bool:
    return hasattr(target, "_schema")


def type_of(value: Any, where: str) -> TensorType:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(
            f"{where} is of type {value.dtype}; tensors must be of {', '.join(DTYPES)}"
        )
    if not all(type(size) is int for size in value.shape):
        raise ModelError(
            f"{where} has a size that depends on the values of tensors, and kernels are tuned for "
            "sizes; write that with torch.where or masks, or tune the parts before and after it"
        )
    return TensorType(dtype, tuple(value.shape))


@dataclass(eq=False)
class NodeReader:
    """Reads the nodes of a program and of the graphs inside it.

    common: the type in which the first two operands of a node meet, by torch's rules.
    """

    name: str
    common: Callable[[FxNode], str]
    nodes: list[OpNode] = field(default_factory=list)

    def visit(
        self, module: GraphModule, values: dict[FxNode, str], scope: str
    ) -> list[Any]:
        """Reads the nodes of a graph; the names of what it returns, None for no tensor."""
        parts: dict[FxNode, list[str]] = {}
        for node in module.graph.nodes:
            if node.op == "call_function" and node.users:  # others check sizes and types
                self._call(module, node, values, parts, scope)
        (returned,) = module.graph.output_node().args
        return [values.get(v) if is_node(v) else None for v in returned]

    def _call(
        self, module: GraphModule, node: FxNode,
        values: dict[FxNode, str], parts: dict[FxNode, list[str]], scope: str,
    ) -> None:  # fmt: skip
        label = op_name(node.target)
        if label == "getitem":
            whole, index = node.args
            values[node] = parts[whole][index]
            return
        if label in _KEPT_CALLS:
            parts[node] = self._inlined(module, node, values, f"{scope}{node.name}/")
            return
        found = node.meta.get("val")
        several = isinstance(found, (tuple, list))
        results = list(found) if isinstance(found, (tuple, list)) else [found]
        if not is_overload(node.target) or not all(r is None or is_tensor(r) for r in results):
            raise ModelError(refusal(self.name, [(node, "yields no tensors")]))
        where = f"the result of {label}{place(node)}"
        out = tuple(type_of(r, where) for r in results if r is not None)
        names = [f"{scope}{node.name}:{n}" if several else f"{scope}{node.name}"
                 for n in range(len(results))]  # fmt: skip
        if several:
            parts[node] = names
            used = {user.args[1] for user in node.users if op_name(user.target) == "getitem"}
        else:
            values[node] = names[0]
            used = {0}
        reads: list[str] = []
        args = [_argument(a, values, reads) for a in _arguments(node)]
        attrs = {"args": args, "out": out, "common": self.common(node), "used": used}
        self.add(label, reads, names, attrs, node)

    def add(self, op: str, reads: list[str], names: list[str], attrs: Mapping[str, Any],
             node: FxNode | None) -> None:  # fmt: skip
        self.nodes.append(
            OpNode(names[0], op, "", SINCE, tuple(reads), tuple(names), attrs, source=node)
        )

    def _inlined(
        self, module: GraphModule, node: FxNode,
        values: dict[FxNode, str], scope: str,
    ) -> list[Any]:  # fmt: skip
        """The nodes of a graph that is called under another mode of gradients or of casts."""
        at = next(n for n, a in enumerate(node.args) if is_node(a))
        flags, called, given = node.args[:at], node.args[at], node.args[at + 1 :]
        if op_name(node.target) == "wrap_with_autocast" and flags[2] is not False:
            why = "casts by autocast inside the module; give it one type before exporting"
            raise ModelError(refusal(self.name, [(node, why)]))
        inner = getattr(module, str(called.target))
        places = inner.graph.find_nodes(op="placeholder")
        own = {p: values[g] for p, g in zip(places, given, strict=True)
               if is_node(g)}  # fmt: skip
        return self.visit(inner, own, scope)


def _arguments(node: FxNode) -> Iterator[Any]:
    """Every argument of a call in the schema's order, defaults filled in."""
    given = list(node.args)
    for n, argument in enumerate(node.target._schema.arguments):
        if not argument.kwarg_only and n < len(given):
            yield given[n]
        elif argument.name in node.kwargs:
            yield node.kwargs[argument.name]
        else:
            yield argument.default_value if argument.has_default_value() else None


def _argument(value: Any, values: Mapping[FxNode, str], reads: list[str]) -> Any:
    """An argument with its tensors as numbers of operands, which are added to `reads`."""
    if is_node(value):
        reads.append(values[value])
        return Ref(len(reads) - 1)
    if isinstance(value, (list, tuple)):
        return [_argument(v, values, reads) for v in value]
    return value
