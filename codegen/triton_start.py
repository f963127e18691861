"""The new states of a loop's step in, what its lines start with out.

Tensor cores work on a product by themselves, while the lines after it run. Two things let the
compiler leave it so: nothing else of the step reads the product, and its registers are free when
it starts, which are those of the state that it replaces. Else its accumulators are copied, and all
products of the kernel wait for each other (ptxas says so: C7514).
"""

from __future__ import annotations

from collections.abc import Sequence

from autosched.ir.node import Node, walk
from autosched.ir.scalar import SCALARS, split_name


def first_lines(names: Sequence[str], yields: Sequence[Node]) -> list[Node]:
    """The values that come first, in order: sums of a state and a product of loads and states;
    what the last lines make of the states that other such products replace; these products."""
    products = {
        name: value for name, value in zip(names, yields)
        if value.op == "dot" and all(map(_at_hand, value.src))
    }  # fmt: skip
    if not products:
        return []
    nodes = [n for n in walk(*yields) if n not in products.values()]
    sums = [n for n in nodes if _is_sum(n) and n not in yields]
    replaced = {n for n in nodes if n.op == "carry" and n.attr[0] in products}
    return [*sums, *_made_of(replaced, yields), *products.values()]


def _is_sum(node: Node) -> bool:
    """state + product"""
    if node.op != "map" or node.attr[0] != "add":
        return False
    parts = [s for s in node.src if s.op == "dot" and all(map(_at_hand, s.src))]
    return len(parts) == 1 and any(s.op == "carry" for s in node.src)


def _at_hand(value: Node) -> bool:
    """Whether it is a state or something in memory, as it is or in another type."""
    while value.op == "map" and value.attr[0].startswith("cast:"):
        (value,) = value.src
    return value.op in ("carry", "load")


def _made_of(states: set[Node], yields: Sequence[Node]) -> list[Node]:
    """What is made of the states by simple arithmetic, up to where it is reduced or goes into a
    dear function: once these values are there, nothing reads the states any more."""
    simple = set(states)
    ends: dict[Node, None] = {}
    for node in walk(*yields):
        taken = [s for s in node.src if s in simple]
        if not taken:
            continue
        if node.op == "map" and SCALARS[split_name(node.attr[0])[0]].cost != "special":
            simple.add(node)
        elif node.op == "reduce":
            ends[node] = None
        else:
            ends.update(dict.fromkeys(s for s in taken if s not in states))
    ends.update(dict.fromkeys(y for y in yields if y in simple and y not in states))
    return list(ends)
