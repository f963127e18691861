"""Named values in, an algebra program out: how a person or an importer writes a definition."""

from __future__ import annotations

from autosched.ir.node import IRError, Node, Output, Program, walk


def algebra(**outputs: tuple[str, Node]) -> Program:
    """The program of `name=("b h i e", value)`: each output's axes in memory order, outermost
    first, and its value. Inputs are found in the values, in the order in which they appear.

    Raises: IRError where a value has other axes than those that its output names.
    """
    for name, (dims, value) in outputs.items():
        if set(dims.split()) != set(value.names):
            raise IRError(f"output {name!r} names the axes {dims!r}, its value has {value.names}")
    roots = tuple(value for _, value in outputs.values())
    described = tuple(
        Output(name, tuple(dims.split()), value.dtype,
               tuple(value.extent(a) for a in dims.split()))
        for name, (dims, value) in outputs.items()
    )  # fmt: skip
    inputs = tuple(n for n in walk(*roots) if n.op == "input")
    return Program("algebra", inputs, described, roots)
