"""Nodes that stay in onnxruntime in, groups that can each run at once out."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field


@dataclass
class Levels:
    """How often a value's history changes sides, between the algebra and onnxruntime.

    Two outside nodes of one level that are connected can run as one: a path that left their
    group and came back would change sides twice and so arrive at a higher level.
    """

    _level: dict[str, int] = field(default_factory=dict)
    _outside: dict[str, bool] = field(default_factory=dict)

    def place(self, inputs: Sequence[str], outputs: Sequence[str], outside: bool) -> int:
        """The level of a node on this side; constants and inputs of the model have none."""
        level = max(
            (self._level[n] + (self._outside[n] != outside) for n in inputs if n in self._level),
            default=0,
        )
        for name in outputs:
            self._level[name], self._outside[name] = level, outside
        return level


def group(
    nodes: Sequence[tuple[int, Sequence[str], Sequence[str]]],
) -> list[list[int]]:
    """Numbers of (level, inputs, outputs) triples, connected ones of a level together.

    The groups are in an order in which they can run, the numbers in each ascending.
    """
    parent = list(range(len(nodes)))

    def find(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    maker = {name: n for n, (_, _, outputs) in enumerate(nodes) for name in outputs}
    for n, (level, inputs, _) in enumerate(nodes):
        for name in inputs:
            if name in maker and nodes[maker[name]][0] == level:
                a, b = sorted((find(maker[name]), find(n)))
                parent[b] = a
    groups: dict[int, list[int]] = {}
    for n in range(len(nodes)):
        groups.setdefault(find(n), []).append(n)
    return sorted(groups.values(), key=lambda g: (nodes[g[0]][0], g))


def boundary(
    members: Sequence[tuple[Sequence[str], Sequence[str]]], used: Set[str]
) -> tuple[list[str], list[str]]:
    """Names that a group reads from elsewhere, and those it makes that are in `used`."""
    made = [name for _, outputs in members for name in outputs if name]
    read = dict.fromkeys(name for inputs, _ in members for name in inputs if name)
    return [n for n in read if n not in set(made)], [n for n in made if n in used]
