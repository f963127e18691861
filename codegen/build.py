"""A definition and a schedule in, a compiled kernel with its signature out, or why there is none.

`lower` replays the schedule and emits the function; `compile_kernels` puts many of them in one
shared library, which takes half the time of a library each. A library holds plain C functions
`int32 symbol(void *arg0, ...)`, one pointer an argument, as `runtime.spec` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from autosched.codegen import tvm_api
from autosched.codegen.runtime.pack import pack as apply_pack
from autosched.codegen.runtime.spec import Index, KernelArg, PackSpec
from autosched.codegen.tvm import emit
from autosched.codegen.tvm_index import extents_of
from autosched.ir.node import Node, Pack, Program
from autosched.ir.rules.action import Illegal
from autosched.ir.rules.place import MAX_PACK_GROWTH
from autosched.ir.schedule import Schedule, replay
from autosched.ir.target import Target

__all__ = [
    "BuiltKernel", "Lowered", "Request", "apply_pack", "compile_kernel", "compile_kernels",
    "lower", "pack_spec", "signature",
]  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What to compile: an algebra program by a schedule, as the C function `symbol`."""

    program: Program
    schedule: Schedule
    symbol: str


@dataclass(frozen=True)
class Lowered:
    """A kernel before compilation: its tile program, the function to compile, its signature."""

    symbol: str
    tile: Program
    args: tuple[KernelArg, ...]
    function: Any = field(repr=False, compare=False)

    @property
    def source(self) -> str:
        """The function as TVMScript, for people; takes some 50 ms to write."""
        text: str = self.function.script()
        return text


@dataclass(frozen=True)
class BuiltKernel:
    """A compiled kernel; `library` may hold others too.

    args: in call order; source: TVMScript, empty unless it was asked for.
    """

    symbol: str
    library: bytes = field(repr=False)
    args: tuple[KernelArg, ...]
    source: str = field(repr=False, default="")


def lower(request: Request, target: Target) -> Lowered | Illegal:
    """Replays the schedule and emits the kernel. Illegal: of a rule, BACKEND or PACK."""
    tile = replay(request.program, request.schedule)
    if isinstance(tile, Illegal):
        return tile
    emitted = emit(tile, request.symbol, target.features)
    if isinstance(emitted, Illegal):
        return emitted
    args = signature(tile, emitted.params)
    if isinstance(args, Illegal):
        return args
    return Lowered(request.symbol, tile, args, emitted.function)


def compile_lowered(kernels: Sequence[Lowered], target: Target) -> bytes:
    """One shared library with all the kernels, whose symbols must differ."""
    where = tvm_api.target(target.arch, target.features)
    return tvm_api.build([k.function for k in kernels], where)


def compile_kernels(
    requests: Sequence[Request], target: Target, sources: bool = False
) -> tuple[BuiltKernel | Illegal, ...]:
    """Compiles all requests that are legal into one library; a result for each, in order.

    sources: also write the TVMScript of each.
    """
    lowered = [lower(request, target) for request in requests]
    legal = [k for k in lowered if isinstance(k, Lowered)]
    library = compile_lowered(legal, target) if legal else b""
    return tuple(
        k if isinstance(k, Illegal)
        else BuiltKernel(k.symbol, library, k.args, k.source if sources else "")
        for k in lowered
    )  # fmt: skip


def compile_kernel(
    program: Program, schedule: Schedule, target: Target, symbol: str
) -> BuiltKernel | Illegal:
    """One kernel in a library of its own, with its source."""
    (built,) = compile_kernels([Request(program, schedule, symbol)], target, sources=True)
    return built


# ---- signatures --------------------------------------------------------------------------------


def signature(tile: Program, params: Sequence[Node]) -> tuple[KernelArg, ...] | Illegal:
    """The arguments of a tile program's kernel, one for each buffer that it is passed."""
    packs = {pack.buffer: pack for pack in tile.packs}
    args = []
    for handle in params:
        name, dtype, shape = str(handle.attr[0]), handle.dtype, extents_of(handle)
        if handle.op == "input":
            role = "weight" if handle.attr[3] == "weight" else "input"
            args.append(KernelArg(name, role, dtype, shape))
        elif handle in packs:
            spec = pack_spec(packs[handle])
            if isinstance(spec, Illegal):
                return spec
            args.append(KernelArg(name, "packed", dtype, shape, spec))
        else:
            args.append(KernelArg(name, "output", dtype, shape))
    return tuple(args)


def pack_spec(pack: Pack) -> PackSpec | Illegal:
    """How a packed operand is filled. Illegal PACK: a value that is no plain read of a weight."""
    read = pack.value
    if read.op != "load" or read.src[0].op != "input" or read.attr[1] or any(read.attr[0]):
        return Illegal("PACK", f"{pack.buffer.attr[0]} is packed from more than a plain read")
    source = read.src[0]
    dims, shape = extents_of(pack.buffer), extents_of(source)
    if prod(dims) > MAX_PACK_GROWTH * max(prod(shape), 1):
        times = prod(dims) / max(prod(shape), 1)
        return Illegal("PACK", f"{pack.buffer.attr[0]} holds {source.attr[0]} {times:.1f} times")
    order = {axis: n for n, axis in enumerate(pack.dims)}
    index = []
    for start in read.src[1:]:
        expr = _index(start, order)
        if isinstance(expr, Illegal):
            return expr
        index.append(expr)
    return PackSpec(str(source.attr[0]), source.dtype, shape, dims, tuple(index))


_SAME_OPS = ("add", "mul", "min", "max", "floordiv", "mod")


def _index(node: Node, order: dict[str, int]) -> Index | Illegal:
    """An index expression over iotas as the data of a PackSpec; order: axis to its position."""
    if node.op == "const":
        return ("const", int(node.attr[0]))
    if node.op == "iota" and node.attr[0] in order:
        return ("axis", order[node.attr[0]])
    if node.op != "map":
        return Illegal("PACK", f"a packed operand is indexed by {node.op}")
    parts: list[Index] = []
    for s in node.src:
        part = _index(s, order)
        if isinstance(part, Illegal):
            return part
        parts.append(part)
    fn = node.attr[0]
    if fn in _SAME_OPS:
        return (fn, *parts)
    if fn == "sub":
        return ("add", parts[0], ("mul", parts[1], ("const", -1)))
    if fn == "neg":
        return ("mul", parts[0], ("const", -1))
    return Illegal("PACK", f"a packed operand is indexed by {fn}")
