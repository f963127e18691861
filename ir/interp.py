"""The meaning of a program: its outputs as arrays, from its inputs, at either level of the IR.

Floating values are computed in float64 and are not rounded on the way, except by casts to types
narrower than float32; `rounding` also rounds to float32, and inputs and stores to their types.
Integers and booleans are exact and wrap as their type does. Contractions go to BLAS; operands
too large for memory are streamed in blocks.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy

from autosched.ir import evaluator
from autosched.ir.arrays import NUMPY, Named
from autosched.ir.bound import Bound, Env
from autosched.ir.evaluator import Evaluator, InterpError, describe
from autosched.ir.footprint import depends_on, footprint, steered_by
from autosched.ir.node import Extent, Node, Output, Program, walk

__all__ = ["InterpError", "evaluate", "value_of"]

VECTORS = ("lane", "unroll")  # loops whose iterations are always evaluated together
DEEP = 50_000  # Python frames: evaluation recurses along the depth of the graph


def evaluate(
    program: Program, inputs: Mapping[str, Any], xp: Any = numpy, rounding: bool = False
) -> dict[str, Any]:
    """The outputs of a program by name, each in the memory order of its `dims`.

    Args:
        inputs: input name to array, shaped as the input's dims.
        xp: numpy, or an object with the methods of `arrays.NumpyArrays`.
        rounding: round to the storage types at inputs, casts and stores.
    Raises: InterpError that names the node: an input that is missing or misshapen, a knob that
        is not bound, an element that is read out of range, stale or never stored.
    """
    machine = _machine(program.inputs, inputs, xp, rounding)
    with _deep_recursion():
        if program.level == "tile":
            return _Tile(machine, program).run()
        values = [machine.value(node, {}).named for node in program.body]
        return {o.name: _delivered(machine, o, v) for o, v in zip(program.outputs, values)}


@dataclass(frozen=True)
class Evaluating:
    """An algebra program under evaluation: its outputs at any coordinates, one after the other."""

    program: Program
    machine: Evaluator

    def outputs(self, names: Sequence[str], env: Env) -> dict[str, Any]:
        """Outputs by name, each as long along an axis of `env` as what the axis is bound to there,
        which has that axis for its dimension."""
        roots = zip(self.program.outputs, self.program.body, strict=True)
        chosen = {o: body for o, body in roots if o.name in names}
        with _deep_recursion():
            values = {o: self.machine.value(body, env).named for o, body in chosen.items()}
            return {o.name: _delivered(self.machine, _shortened(o, env), v)
                    for o, v in values.items()}  # fmt: skip


def evaluating(program: Program, inputs: Mapping[str, Any], xp: Any = numpy) -> Evaluating:
    """As `evaluate`, for a program of the algebra level."""
    return Evaluating(program, _machine(program.inputs, inputs, xp, False))


def _shortened(output: Output, env: Env) -> Output:
    extents = [env[a].named.data.shape[0] if a in env else e
               for a, e in zip(output.dims, output.extents)]  # fmt: skip
    return replace(output, extents=tuple(extents))


def value_of(
    node: Node,
    inputs: Mapping[str, Any],
    dims: Sequence[str],
    xp: Any = numpy,
    rounding: bool = False,
) -> Any:
    """The value of a bare node as an array over its free axes in the order `dims`."""
    handles = [n for n in walk(node) if n.op == "input"]
    machine = _machine(handles, inputs, xp, rounding)
    with _deep_recursion():
        named = machine.value(node, {}).named
    extents = tuple(node.extent(a) for a in dims)
    return _delivered(machine, Output("value", tuple(dims), node.dtype, extents), named)


def _machine(
    handles: Sequence[Node], inputs: Mapping[str, Any], xp: Any, rounding: bool
) -> Evaluator:
    arrays = NUMPY if xp is numpy else xp
    memory: dict[Node, tuple[Any, Any]] = {}
    for handle in handles:
        name, dims, dtype, _ = handle.attr
        if name not in inputs:
            raise InterpError(f"input {name!r} is missing; given: {sorted(inputs)}")
        data = arrays.load(inputs[name], dtype, rounding)
        want = tuple(_concrete(e, f"input {name!r}") for _, e in dims)
        if tuple(data.shape) != want:
            raise InterpError(f"input {name!r} has shape {tuple(data.shape)}, wants {want}")
        memory[handle] = (data, None)
    return Evaluator(memory, arrays, rounding)


def _concrete(extent: Extent, owner: str) -> int:
    if isinstance(extent, Node):
        raise InterpError(f"{owner}: its extent has unbound knobs; use subst first")
    return extent


def _delivered(machine: Evaluator, output: Output, named: Named) -> Any:
    """The named array in memory order, every element checked to have a value."""
    sizes = {
        (a, 0): _concrete(e, f"output {output.name!r}") for a, e in zip(output.dims, output.extents)
    }
    if set(named.dims) - set(sizes):
        raise InterpError(f"output {output.name!r} has axes {named.dims} besides {output.dims}")
    full = machine.xp.spread(named, tuple(sizes), sizes)
    if full.bad is not None:
        _complain(machine, f"output {output.name!r}", ~full.bad, "reads out of range")
    data = machine.xp.cast(full.data, output.dtype, machine.rounding)
    return machine.xp.copy(data)


def _complain(machine: Evaluator, owner: str, good: Any, cause: str) -> None:
    where, count = machine.xp.first(~good)
    raise InterpError(f"{owner}: {count} elements have no value, the first at {where}: {cause}")


@contextmanager
def _deep_recursion() -> Iterator[None]:
    """The limit belongs to all threads: the first one in raises it, the last one out restores."""
    with _depth.lock:
        if not _depth.inside:
            _depth.before = sys.getrecursionlimit()
            sys.setrecursionlimit(max(_depth.before, DEEP))
        _depth.inside += 1
    try:
        yield
    finally:
        with _depth.lock:
            _depth.inside -= 1
            if not _depth.inside:
                sys.setrecursionlimit(_depth.before)


@dataclass
class _Depth:
    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0
    before: int = 0


_depth = _Depth()


# ---- tile level -------------------------------------------------------------------------------


class _Tile:
    """Runs the statements of a tile program over buffers that start out poisoned."""

    def __init__(self, machine: Evaluator, program: Program) -> None:
        self.machine, self.program = machine, program
        for pack in program.packs:
            self._pack(pack.buffer, pack.dims, pack.value)
        for node in walk(*program.body):
            if node.op == "buffer" and node not in machine.memory:
                extents = tuple(_concrete(e, describe(node)) for e in node.attr[1])
                machine.memory[node] = machine.xp.memory(extents, node.attr[2])

    def _pack(self, buffer: Node, dims: tuple[str, ...], value: Node) -> None:
        machine = self.machine
        extents = tuple(_concrete(e, describe(buffer)) for e in buffer.attr[1])
        sizes = dict(zip([(a, 0) for a in dims], extents))
        named = machine.value(value, {}).named
        full = machine.xp.spread(named, tuple(sizes), sizes)
        known = None if full.bad is None else ~full.bad
        data = machine.xp.cast(full.data, buffer.attr[2], machine.rounding)
        machine.memory[buffer] = (data, known)

    def run(self) -> dict[str, Any]:
        for kernel in self.program.body:
            self._run(kernel, {})
        return {o.name: self._output(o) for o in self.program.outputs}

    def _output(self, output: Output) -> Any:
        found = [
            n for n in self.machine.memory if n.attr[0] == output.name and n.op == "buffer"
            and n.attr[3] == "output"
        ]  # fmt: skip
        if not found:
            raise InterpError(f"output {output.name!r}: no kernel stores to it")
        data, known = self.machine.memory[found[0]]
        if not known.all():
            _complain(self.machine, f"output {output.name!r}", known, "never stored")
        return data

    def _run(self, node: Node, env: Env) -> None:
        if node.op not in _STATEMENTS:
            raise InterpError(f"{describe(node)} is not a statement")
        _STATEMENTS[node.op](self, node, env)

    def _kernel(self, node: Node, env: Env) -> None:
        for statement in node.src:
            self._run(statement, env)

    def _forall(self, node: Node, env: Env) -> None:
        axis, bind = node.attr
        low, high = (self.machine.value(b, env) for b in node.src[:2])
        if low.named.dims or high.named.dims:
            raise InterpError(f"{describe(node)}: its bounds vary along a vectorised axis")
        lo, hi = int(low.named.data), int(high.named.data)
        if lo >= hi:
            return
        span = self.machine.interval(axis, lo, hi, max(low.level, high.level))
        if axis not in steered_by(node) and (bind in VECTORS or self._fits(node, env, span)):
            for statement in node.src[2:]:
                self._run(statement, {**env, axis: span})
            return
        shared = _communicates(node)
        before = {b: self.machine.xp.copy(self.machine.memory[b][1]) for b in shared}
        after = dict(before)
        for position in range(hi - lo):
            for b in shared:  # what another iteration stored is not there for this one
                data, _ = self.machine.memory[b]
                self.machine.memory[b] = (data, self.machine.xp.copy(before[b]))
            with self.machine.frame() as level:
                step = self.machine.step(span, position, level)
                for statement in node.src[2:]:
                    self._run(statement, {**env, axis: step})
            for b in shared:
                after[b] = after[b] | self.machine.memory[b][1]
        for b in shared:
            self.machine.memory[b] = (self.machine.memory[b][0], after[b])

    def _fits(self, node: Node, env: Env, span: Bound) -> bool:
        """All iterations at once: nothing that is stored here is read here, and memory suffices."""
        whole = {**env, node.attr[0]: span}
        sizes = {n: dict(zip(b.named.dims, b.named.data.shape)) for n, b in whole.items()}
        stores = [n for n in walk(node) if n.op == "store"]
        small = all(footprint(s, sizes) <= evaluator.LIFT_ELEMENTS for s in stores)
        return small and not _communicates(node)

    def _store(self, node: Node, env: Env) -> None:
        dims, masked = node.attr
        handle, value, *rest = node.src
        machine = self.machine
        extents = {d[0]: d[1] for d in dims if d is not None}
        names = [n for s in node.src[1:] for n in depends_on(s)]
        inner = machine.bind_whole(extents, env, names)
        outer = machine.statement
        with machine.frame() as level:
            machine.statement = level
            try:
                got = machine.value(value, inner).named
                at = machine.address(rest[: len(dims)], dims, inner)
                mask = machine.value(rest[-1], inner).named if masked else None
                self._write(node, handle, got, at, mask)
            finally:
                machine.statement = outer

    def _write(
        self, node: Node, handle: Node, value: Named, at: list[Named], mask: Named | None
    ) -> None:
        machine = self.machine
        _, _, dtype, home = handle.attr
        data, known = machine.memory[handle]
        machine.inside(node, data.shape, at, mask)
        if home == "output" and value.bad is not None:
            bad = Named(value.bad, value.dims)
            wrong = bad if mask is None else machine.xp.apply("and", "bool", [bad, mask])
            if machine.xp.any(wrong):
                raise InterpError(f"{describe(node)}: {handle.attr[0]!r} gets a value that was "
                                  "read out of range, stale or before it was stored")  # fmt: skip
        stored = Named(machine.xp.cast(value.data, dtype, machine.rounding), value.dims, value.bad)
        try:
            machine.xp.write(data, known, at, stored, mask)
        except ValueError as error:
            raise InterpError(f"{describe(node)} {handle.attr[0]!r}: {error}") from error


def _communicates(loop: Node) -> tuple[Node, ...]:
    """Buffers that are both stored and loaded in a loop."""
    nodes = list(walk(loop))
    stored = {n.src[0] for n in nodes if n.op == "store"}
    loaded = {n.src[0] for n in nodes if n.op == "load"}
    return tuple(n for n in nodes if n in stored and n in loaded)


_STATEMENTS: dict[str, Callable[[_Tile, Node, Env], None]] = {
    "kernel": _Tile._kernel,
    "forall": _Tile._forall,
    "store": _Tile._store,
}
