"""What the values of a kernel do with their axes: values in, a table of roles out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from autosched.ir.elsewhere import moved_states
from autosched.ir.node import Node, walk


@dataclass
class KernelAxes:
    """What the values of a kernel do with their axes."""

    left: set[str] = field(default_factory=set)  # of one operand of a contraction alone
    shared: set[str] = field(default_factory=set)  # of both operands
    reduced: dict[str, int] = field(default_factory=dict)
    contracted: set[str] = field(default_factory=set)
    recomputed: set[str] = field(default_factory=set)  # some contraction does without the axis
    states: set[str] = field(default_factory=set)  # of folds
    steps: set[str] = field(default_factory=set)  # along which folds run
    inside: set[str] = field(default_factory=set)  # reduced in the body of a fold
    scanned: dict[str, bool] = field(default_factory=dict)  # and whether from the end
    moved: set[str] = field(default_factory=set)  # states are read at other places along them
    ragged: set[str] = field(default_factory=set)  # the bounds of a fold vary along them


def kernel_axes(values: Sequence[Node], stop: set[Node]) -> KernelAxes:
    out = KernelAxes()
    nodes = list(below(values, stop))
    bodies = {n for f in nodes if f.op == "fold" for n in walk(*f.src)}
    contractions: list[set[str]] = []
    for node in nodes:
        if node.op == "fold":
            out.steps.add(node.attr[0])
            out.moved |= moved_states(node)
            out.ragged |= {a for b in node.src[: 2 * node.attr[2]] for a in b.names}
            out.states |= {a for t in node.types[: len(node.attr[1])] for a, _ in t.axes}
        if node.op == "scan":
            out.scanned[node.attr[1]] = node.attr[3]
        if node.op != "reduce":
            continue
        for s in node.src:
            out.reduced |= {a: int(str(e)) for a, e in s.free if a in node.attr[1]}
        if node in bodies:
            out.inside |= set(node.attr[1])
        pair = product_of(node)
        if pair is None:
            continue
        a, b = pair
        out.contracted |= set(node.attr[1])
        out.left |= a ^ b
        out.shared |= a & b
        contractions.append(a | b)
    out.left -= out.shared
    for axes in contractions:
        out.recomputed |= {a for c in contractions for a in c} - axes
    return out


def below(values: Sequence[Node], stop: set[Node]) -> Iterator[Node]:
    """Nodes below the values, without those that have a kernel of their own."""
    seen: set[Node] = set()
    todo = list(values)
    while todo:
        node = todo.pop()
        if node in seen or (node in stop and node not in values):
            continue
        seen.add(node)
        yield node
        todo.extend(node.src)


def product_of(node: Node) -> tuple[set[str], set[str]] | None:
    """The axes of the two operands of a sum of products, without those that are summed."""
    pair = factors_of(node)
    if pair is None:
        return None
    summed = set(node.attr[1])
    a, b = (set().union(*(f.names for f in side)) - summed for side in pair)
    return a, b


def factors_of(node: Node) -> tuple[list[Node], list[Node]] | None:
    """The factors of the two operands of a sum of products that depend on what is summed."""
    if node.attr[0] != "sum":
        return None
    summed = set(node.attr[1])
    body = node.src[0]
    while body.op == "map" and body.attr[0] == "where" and body.src[2].op == "const":
        body = body.src[1]
    axes = {f: frozenset(f.names) - summed for f in _factors(body) if summed & set(f.names)}
    # Of several factors, those over a subset of another's axes belong to it.
    groups = [g for g in dict.fromkeys(axes.values()) if not any(g < o for o in axes.values())]
    if len(groups) != 2:
        return None
    first = [f for f, own in axes.items() if own <= groups[0]]
    return first, [f for f in axes if f not in first]


def _factors(node: Node) -> list[Node]:
    if node.op == "map" and (node.attr[0] == "mul" or node.attr[0].startswith("cast:")):
        return [f for s in node.src for f in _factors(s)]
    return [node]
