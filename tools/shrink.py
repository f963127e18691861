"""A program and a test that it fails in, a smaller program that still fails out.

Steps, tried from the boldest to the mildest until none helps: fewer outputs, an operand in place
of an output, a fresh input in place of a value, an operand in place of a value, shorter axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from autosched.ir.expand import fresh
from autosched.ir.node import Axes, IRError, Node, Output, Program, walk
from autosched.ir.ops import input_
from autosched.ir.verify import problems

Fails = Callable[[Program], bool]
TRIES = 300


def shrunk(program: Program, fails: Fails, tries: int = TRIES) -> Program:
    """The smallest program that was found to fail within that many tests."""
    seen = {program}
    progress = True
    while progress:
        progress = False
        for candidate in smaller(program):
            if candidate in seen or size(candidate) >= size(program):
                continue
            if not tries:
                return program
            seen.add(candidate)
            tries -= 1
            if fails(candidate):
                program, progress = candidate, True
                break
    return program


def size(program: Program) -> tuple[int, int]:
    """(values, elements of inputs and the sum of all extents)."""
    nodes = list(walk(*program.body))
    axes = {axis for n in nodes for axis in n.free}
    return len(nodes) + len(program.body), sum(int(str(e)) for _, e in axes)


def smaller(program: Program) -> Iterator[Program]:
    """Programs that are one step smaller, as far as the step leaves a program."""
    for step in (_fewer_outputs, _operand_outputs, _cut, _bypassed, _shorter):
        for candidate in step(program):
            if candidate is not None and not problems(candidate):
                yield candidate


# ---- steps -------------------------------------------------------------------------------------


def _fewer_outputs(program: Program) -> Iterator[Program | None]:
    if len(program.body) > 1:
        for out, node in zip(program.outputs, program.body):
            yield _of((out,), (node,))


def _operand_outputs(program: Program) -> Iterator[Program | None]:
    if len(program.body) > 1:
        return
    for node in program.body[0].src:
        if len(node.types) == 1 and node.op not in ("const", "input") and not node.carries:
            dims = tuple(a for a, _ in node.axes)
            extents = tuple(e for _, e in node.axes)
            yield _of((Output("y0", dims, node.dtype, extents),), (node,))


def _cut(program: Program) -> Iterator[Program | None]:
    """From the last values on, whose going takes most along."""
    name = fresh("cut", {str(n.attr[0]) for n in program.inputs})
    for node in reversed(list(walk(*program.body))):
        own = node.op in ("map", "reduce", "take", "reaxis", "scan", "get")
        if own and len(node.types) == 1 and not node.carries and node not in program.body:
            yield _replaced(program, {node: input_(name, dict(node.axes), node.dtype)})


def _bypassed(program: Program) -> Iterator[Program | None]:
    for node in reversed(list(walk(*program.body))):
        if len(node.types) != 1 or node.carries:
            continue
        for source in node.src:
            if len(source.types) == 1 and (source.dtype, source.axes) == (node.dtype, node.axes):
                yield _replaced(program, {node: source})


def _shorter(program: Program) -> Iterator[Program | None]:
    axes = dict.fromkeys(axis for n in walk(*program.body) for axis in n.free)
    for name, extent in axes:
        whole = int(str(extent))
        for length in dict.fromkeys((1, 2, whole // 2, whole - 1)):
            if 0 < length < whole:
                yield _resized(program, (name, whole), length)


# ---- rebuilding --------------------------------------------------------------------------------


def _of(outputs: tuple[Output, ...], body: tuple[Node, ...]) -> Program:
    inputs = tuple(n for n in walk(*body) if n.op == "input")
    return Program("algebra", inputs, outputs, body)


def _replaced(program: Program, table: Mapping[Node, Node]) -> Program | None:
    memo: dict[Node, Node] = {}
    try:
        for node in walk(*program.body):
            src = tuple(memo[s] for s in node.src)
            new = node if src == node.src else Node(node.op, src, node.attr)
            memo[node] = table.get(node, new)
    except IRError:
        return None
    return _of(program.outputs, tuple(memo[b] for b in program.body))


def _resized(program: Program, axis: tuple[str, int], length: int) -> Program | None:
    """The program with an axis of that name and extent shorter wherever a value has it."""

    def changed(axes: Axes) -> Axes:
        return tuple((a, length if (a, e) == axis else e) for a, e in axes)

    memo: dict[Node, Node] = {}
    try:
        for node in walk(*program.body):
            attr = node.attr
            if node.op == "input":
                attr = (attr[0], changed(attr[1]), *attr[2:])
            elif node.op == "iota" and attr[:2] == axis:
                attr = (attr[0], length, *attr[2:])
            elif node.op == "carry":
                attr = (*attr[:2], changed(attr[2]))
            memo[node] = Node(node.op, tuple(memo[s] for s in node.src), attr)
    except IRError:
        return None
    outputs = tuple(
        replace(o, extents=tuple(e for _, e in changed(tuple(zip(o.dims, o.extents)))))
        for o in program.outputs
    )
    return _of(outputs, tuple(memo[b] for b in program.body))
