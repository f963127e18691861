"""A CPU tile program in, a C function made of TIR out: one nest a store.

What a store needs is emitted by `tvm_values`; here are the loops around stores, scratch and the
signature. Unrolled and lane loops multiply what a store emits, grid loops run on all threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from autosched.codegen import tvm_api as tir
from autosched.codegen.runtime.arrays import STORAGE
from autosched.codegen.tvm_index import Unsupported, elements, flat_terms
from autosched.codegen.tvm_scope import Scope
from autosched.codegen.tvm_values import Values, read_often, stored_dtype
from autosched.ir.extent import as_extent
from autosched.ir.loops import as_loop
from autosched.ir.node import Node, Program, walk
from autosched.ir.rules.action import Illegal
from autosched.ir.rules.match_dot import as_reduce
from autosched.ir.scalar import ITEMSIZE

# A stack holds the scratch of a task; threads of the runtime have 8 MiB.
MAX_SCRATCH_BYTES = 2 << 20


@dataclass(frozen=True)
class Emitted:
    """The TIR function and the buffers that it takes, in call order."""

    function: Any
    params: tuple[Node, ...]


def emit(program: Program, name: str, features: Sequence[str] = ()) -> Emitted | Illegal:
    """The function of a tile program with all knobs bound; features: LLVM's names of the CPU's."""
    program = program.with_body(*map(as_reduce, program.body))
    foreign = sorted({t.dtype for n in walk(*program.body) for t in n.types} - set(STORAGE))
    if foreign:
        return Illegal("BACKEND", f"no CPU form of {', '.join(foreign)}")
    try:
        return _Emitter(program, {"avx512f", "avx512vl"} <= set(features)).function(name)
    except Unsupported as error:
        return Illegal("BACKEND", str(error))


def is_scratch(node: Node) -> bool:
    return node.op == "buffer" and node.attr[3] == "scratch"


def common_scratch(kernel: Node) -> list[Node]:
    """The scratch that several statements of the kernel use."""
    uses: dict[Node, int] = {}
    for stmt in kernel.src:
        for node in walk(stmt):
            if is_scratch(node):
                uses[node] = uses.get(node, 0) + 1
    return [n for n, count in uses.items() if count > 1]


class _Emitter(Values):
    """The function of one program."""

    def __init__(self, program: Program, scalef: bool) -> None:
        super().__init__(scalef)
        self.program = program

    # ---- the function ---------------------------------------------------------------------

    def function(self, name: str) -> Emitted:
        params = self.params()
        for n, handle in enumerate(params):
            dtype = stored_dtype(handle.dtype)
            self.buffers[handle] = tir.parameter(f"p{n}", dtype, max(elements(handle), 1))
        block = tir.Block()
        for k in self.program.body:
            self.binds = dict(k.attr[1]) if len(k.attr) > 1 else {}
            self.allocate(common_scratch(k), block)
            for stmt in k.src:
                self.statement(stmt, Scope(block, {}))
        buffers = [self.buffers[h] for h in params]
        return Emitted(tir.function(name, buffers, block.stmt()), tuple(params))

    def params(self) -> list[Node]:
        """Inputs and packed buffers that the kernels read, then the outputs."""
        used = {n.src[0] for k in self.program.body for n in walk(k) if n.op == "load"}
        packed = [p.buffer for p in self.program.packs]
        inputs = [h for h in (*self.program.inputs, *packed) if h in used]
        stored = {n.src[0] for k in self.program.body for n in walk(k) if n.op == "store"}
        by_name = {h.attr[0]: h for h in stored if h.attr[3] == "output"}
        return [*inputs, *(by_name[o.name] for o in self.program.outputs)]

    # ---- statements -----------------------------------------------------------------------

    def statement(self, stmt: Node, scope: Scope, top: bool = True) -> None:
        if stmt.op == "store":
            self.store(stmt, scope)
        elif stmt.attr[1] in ("grid", "persistent") and top:
            self.grid(stmt, scope)
        elif stmt.attr[1] in ("grid", "persistent", "serial"):  # within a task all is serial
            self.serial(stmt, scope, top)
        else:
            self.jam(stmt, scope)

    def grid(self, stmt: Node, scope: Scope) -> None:
        """A chain of grid loops as one parallel loop over all their iterations."""
        loops, body = [], (stmt,)
        while len(body) == 1 and body[0].op == "forall" and body[0].attr[1] == "grid":
            loop, body = as_loop(body[0])
            loops.append(loop)
        trips = []
        for loop in loops:
            lo, hi = as_extent(loop.lo), as_extent(loop.hi)
            if isinstance(lo, Node) or isinstance(hi, Node):
                raise Unsupported(f"the grid loop {loop.axis} has no constant bounds")
            trips.append((loop.axis, lo, hi - lo))
        inner = scope.inner()
        self.scratch(body, inner)
        index = tir.var("task")
        left = prod(n for _, _, n in trips)
        at = index
        for axis, lo, n in trips:
            left //= max(n, 1)
            here = tir.binary("floordiv", at, left)
            inner.axes[axis] = inner.block.let(tir.add(here, lo), axis, True) if n > 1 else lo
            at = tir.binary("floormod", at, left) if left > 1 else 0
        for s in body:
            self.statement(s, inner, top=False)
        total = prod(n for _, _, n in trips)
        kind = "parallel" if total > 1 else "serial"
        scope.block.add(tir.loop(index, total, inner.block.stmt(), kind))

    def scratch(self, body: Sequence[Node], scope: Scope) -> None:
        """The scratch buffers below, on the stack of the task."""
        self.allocate([n for n in walk(*body) if is_scratch(n)], scope.block)

    def allocate(self, scratch: Iterable[Node], block: Any) -> None:
        total = 0
        for node in scratch:
            if node not in self.buffers:
                size = elements(node)
                total += size * ITEMSIZE[node.dtype]
                made = tir.local(node.attr[0], stored_dtype(node.dtype), size)
                self.buffers[node] = block.allocate(made)
        if total > MAX_SCRATCH_BYTES:
            raise Unsupported(f"{total} bytes of scratch on a task's stack")

    def serial(self, stmt: Node, scope: Scope, top: bool) -> None:
        loop, body = as_loop(stmt)
        lo, hi = as_extent(loop.lo), as_extent(loop.hi)
        if top:
            self.scratch(body, scope)
        if isinstance(lo, int) and isinstance(hi, int) and hi - lo == 1:
            inner = scope.inner(block=scope.block, axes={**scope.axes, loop.axis: lo})
            for s in body:
                self.statement(s, inner, top)
            return
        index = tir.var(loop.axis.replace(".", "_"))
        inner = scope.inner(axes={**scope.axes, loop.axis: index}, memo={}, done=set())
        start = self.index_value(loop.lo, scope)
        count = self.trips(loop.lo, loop.hi, scope)
        for s in body:
            self.statement(s, inner, top=False)
        scope.block.add(tir.loop(index, count, inner.block.stmt(), "serial", start))

    def jam(self, stmt: Node, scope: Scope) -> None:
        """Unrolled and lane loops around one store: they multiply what the store emits."""
        inner = scope.inner(block=scope.block)
        while stmt.op == "forall":
            loop, body = as_loop(stmt)
            if len(body) != 1:
                raise Unsupported("an unrolled or lane loop around several statements")
            lo, hi = as_extent(loop.lo), as_extent(loop.hi)
            if lo != 0 or not isinstance(hi, int):
                raise Unsupported(f"the {loop.bind} loop {loop.axis} has no constant extent")
            if loop.bind == "lane":
                inner.lane, inner.lanes = loop.axis, hi
            elif loop.bind == "unroll":
                inner.unrolled[loop.axis] = hi
            else:
                raise Unsupported(f"a {loop.bind} loop inside an unrolled one")
            (stmt,) = body
        self.store(stmt, inner)

    def store(self, stmt: Node, scope: Scope) -> None:
        handle, value, *starts = stmt.src
        dims, masked = stmt.attr
        if masked or any(d is not None for d in dims):
            raise Unsupported("a masked store, or one of a box")
        scope = scope.inner(block=scope.block, memo={}, done=set())
        self.shared = read_often(value)
        self.prepare([value, *starts], scope)
        target = self.buffers[handle]
        offsets = flat_terms(handle, starts)
        for point in self.points(scope, scope.unrolled):
            result = self.value(value, scope, point)
            result = self.cast_stored(result, value.dtype)
            base, stride = self.address(offsets, scope, point)
            width = max(tir.lanes_of(result) if not isinstance(result, (int, float)) else 1, 1)
            if scope.lane and stride not in (0, None) and width == 1:
                result, width = tir.splat(result, scope.lanes), scope.lanes
            if width > 1 and stride != 1:
                where = base if stride is None else tir.ramp(base, width, stride)
                scope.block.add(tir.store(target, where, result))
            else:
                scope.block.add(tir.store(target, base, result))

