"""Indices of `reaxis` in, their structure out: renamings, digits of a number, substitution.

An index is an int32 function of coordinates; `extent.simplify` makes it short, this file tells
what it means for the memory behind the axis.
"""

from __future__ import annotations

from collections.abc import Mapping

from autosched.ir.extent import simplify
from autosched.ir.linear import from_poly, poly
from autosched.ir.node import Extent, Node
from autosched.ir.ops import cast, iota

Env = Mapping[str, Node]  # axis -> the index it is read at


def tidy(index: Node) -> Node:
    """`simplify`, and m * (x // m) + x % m becomes x."""
    index = simplify(index)
    terms = poly(index)
    for mono, c in terms.items():
        if len(mono) != 1 or mono[0].op != "map" or mono[0].attr[0] != "mod":
            continue
        value, divisor = mono[0].src
        whole = (simplify(value // divisor),)
        if divisor.op != "const" or terms.get(whole) != c * divisor.attr[0]:
            continue
        rest = {m: n for m, n in terms.items() if m not in (mono, whole)}
        for m, n in poly(value).items():
            rest[m] = rest.get(m, 0) + c * n
        return tidy(from_poly({m: n for m, n in rest.items() if n}, "int32"))
    return index


def substitute(node: Node, env: Env) -> Node:
    """A function of coordinates (maps over iotas and constants) with its axes read at `env`."""
    if not any(axis in env for axis, _ in node.free):
        return node
    if node.op == "iota":
        return cast(env[node.attr[0]], node.attr[2])
    return Node(node.op, tuple(substitute(s, env) for s in node.src), node.attr)


def reindex(index: Node, env: Env) -> Node:
    """The shortest form of an int32 index whose own axes are read at `env`."""
    return tidy(substitute(index, env))


def along(values: tuple[Node, ...], axes: Mapping[str, Extent]) -> tuple[Node, ...]:
    """The operands of a reduce or scan, the first made to vary, by nothing, along those of the
    axes that all of them lack: a shorter index may have lost one."""
    have = {a for v in values for a, _ in v.free}
    first = values[0]
    for axis, extent in axes.items():
        if axis not in have:
            nothing = cast(iota(axis, extent) * 0, first.dtype)
            first = Node("map", (first, nothing), ("or" if first.dtype == "bool" else "add",))
    return (first, *values[1:])


def is_identity(value: Node, axis: str, index: Node) -> bool:
    """Whether reading `axis` of `value` at `index` reads it as it is."""
    return index.op == "iota" and index.attr[:2] == (axis, dict(value.free)[axis])


def renaming(node: Node) -> dict[str, str] | None:
    """{old: new} where a reaxis only renames axes, one to one and whole; else None."""
    if node.op != "reaxis":
        return None
    value, *exprs = node.src
    out: dict[str, str] = {}
    for axis, expr in zip(node.attr[0], exprs):
        if expr.op != "iota" or expr.attr[1] != value.extent(axis):
            return None
        out[axis] = expr.attr[0]
    kept = set(value.names) - set(out)
    return out if len({*out.values(), *kept}) == len(value.names) else None


def digits(index: Node, extent: int) -> tuple[tuple[str, int], ...] | None:
    """The axes that an index counts through from 0 to extent - 1, outermost first, each once:
    (("h", 12), ("d", 32)) of h*32 + d with extent 384; None where it is no such number."""
    terms = sorted(poly(index).items(), key=lambda term: -term[1])
    weight, out = extent, []
    for mono, c in terms:
        if len(mono) != 1 or mono[0].op != "iota":
            return None
        axis, size, _ = mono[0].attr
        if not isinstance(size, int) or c <= 0 or c * size != weight:
            return None
        weight = c
        out.append((axis, size))
    return tuple(out) if weight == 1 and out else None
