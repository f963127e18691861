"""Kernel signatures and plans as frozen data; plain JSON in and out.

A kernel is a C function `int32 symbol(void *arg0, void *arg1, ..., int32 extent0, ...)`: one
pointer for each KernelArg in order, to a dense row-major buffer of any alignment, then the
extents. It returns 0, and everything it writes was allocated by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NATIVE, TRITON = "native", "triton"  # the code of a kernel: a C function, Triton functions
ROLES = ("input", "weight", "packed", "output", "workspace")
# An index expression over packed coordinates: ("axis", n), ("const", n) or (op, left, right).
INDEX_OPS = ("add", "mul", "min", "max", "floordiv", "mod", "axis", "const")
Index = tuple[Any, ...]


@dataclass(frozen=True)
class PackSpec:
    """How a packed buffer is filled: packed[c] = source[index[0](c), index[1](c), ...]."""

    source: str  # operand that is laid out anew
    source_dtype: str
    source_shape: tuple[int, ...]
    dims: tuple[int, ...]  # extents of the packed buffer
    index: tuple[Index, ...]  # one expression for each dimension of the source


@dataclass(frozen=True)
class KernelArg:
    """One pointer argument of a kernel."""

    name: str
    role: str  # one of ROLES
    dtype: str
    shape: tuple[int, ...]
    pack: PackSpec | None = None  # exactly where the role is "packed"


@dataclass(frozen=True)
class Value:
    """A named dense buffer of a plan."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One call of a plan: a kernel by key or an island by name, one of the two.

    `args` are names of values or weights. For a kernel: one for each KernelArg that is no
    workspace, in call order, a packed argument by the name of its raw weight. For an island:
    its inputs, then its outputs, in the order of the island's graph.
    """

    kernel: str | None
    island: str | None
    args: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A whole model as calls in order.

    `values` are the buffers that steps write and `inputs` those that the caller gives; an
    output is a value, an input or a weight. `aliases` maps a value that is another one's
    bytes under another shape (a reshape) to that other one. `islands` are ONNX files. `call` is
    how a torch module was called (see `face`), None for models of files.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    islands: Mapping[str, bytes] = field(default_factory=dict)
    constants: tuple[Value, ...] = ()  # weights that steps or outputs name
    aliases: Mapping[str, str] = field(default_factory=dict)
    call: Mapping[str, Any] | None = None


def tupled(value: Any) -> Any:
    """JSON's lists, at any depth, as tuples."""
    return tuple(tupled(v) for v in value) if isinstance(value, (list, tuple)) else value


def arg_to_json(arg: KernelArg) -> dict[str, Any]:
    """A KernelArg as plain data; `arg_from_json` undoes it."""
    out: dict[str, Any] = {
        "name": arg.name, "role": arg.role, "dtype": arg.dtype, "shape": list(arg.shape)
    }  # fmt: skip
    if arg.pack is not None:
        out["pack"] = pack_to_json(arg.pack)
    return out


def arg_from_json(data: Mapping[str, Any]) -> KernelArg:
    """The KernelArg that `arg_to_json` wrote."""
    pack = data.get("pack")
    spec = None if pack is None else PackSpec(**{k: tupled(v) for k, v in pack.items()})
    return KernelArg(data["name"], data["role"], data["dtype"], tupled(data["shape"]), spec)


def pack_to_json(spec: PackSpec) -> dict[str, Any]:
    """A PackSpec as plain data (tuples, which JSON writes as lists)."""
    return {
        "source": spec.source, "source_dtype": spec.source_dtype,
        "source_shape": spec.source_shape, "dims": spec.dims, "index": spec.index,
    }  # fmt: skip


def value_to_json(value: Value) -> dict[str, Any]:
    """A Value as plain data; `value_from_json` undoes it."""
    return {"name": value.name, "dtype": value.dtype, "shape": list(value.shape)}


def value_from_json(data: Mapping[str, Any]) -> Value:
    """The Value that `value_to_json` wrote."""
    return Value(data["name"], data["dtype"], tupled(data["shape"]))


def plan_to_json(plan: Plan, island_files: Mapping[str, str]) -> dict[str, Any]:
    """A Plan as plain data, its islands by the files that hold them."""
    call = {} if plan.call is None else {"call": plan.call}
    return {
        **call,
        "inputs": [value_to_json(v) for v in plan.inputs],
        "outputs": [value_to_json(v) for v in plan.outputs],
        "values": [value_to_json(v) for v in plan.values],
        "constants": [value_to_json(v) for v in plan.constants],
        "aliases": dict(plan.aliases),
        "islands": dict(island_files),
        "steps": [
            {"kernel": s.kernel, "island": s.island, "args": list(s.args)} for s in plan.steps
        ],
    }


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """The Plan that `plan_to_json` wrote, without the bytes of its islands."""
    def values(key: str) -> tuple[Value, ...]:
        return tuple(value_from_json(v) for v in data[key])

    steps = tuple(Step(s["kernel"], s["island"], tuple(s["args"])) for s in data["steps"])
    return Plan(
        values("inputs"), values("outputs"), values("values"), steps, {},
        values("constants"), dict(data["aliases"]), data.get("call"),
    )  # fmt: skip


def operands(args: tuple[KernelArg, ...]) -> tuple[Value, ...]:
    """What a caller of a kernel passes: inputs, weights and the raw form of packed arguments."""
    seen: dict[str, Value] = {}
    for arg in args:
        if arg.pack is not None:
            pack = arg.pack
            seen.setdefault(pack.source, Value(pack.source, pack.source_dtype, pack.source_shape))
        elif arg.role in ("input", "weight"):
            seen.setdefault(arg.name, Value(arg.name, arg.dtype, arg.shape))
    return tuple(seen.values())
