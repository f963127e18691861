"""What a pass over an axis carries from block to block: states of reduces, and how they go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from autosched.ir.node import Node

Finals = Mapping[Node, Node]


class NoRow(Exception):
    """No row fits; the message says what stands in the way."""


class Block(Protocol):
    """One block of the axis: `old` and `new` are states of earlier results by result."""

    axis: str
    extent: int
    old: dict[Node, Node]
    new: dict[Node, Node]

    def add(self, node: Node) -> None:
        """Another reduce over the axis as a state, unless it is one."""

    def values(self, states: Finals) -> dict[Node, Node]:
        """{result: what it is, were the axis to end at these states}."""

    def total(self, body: Node) -> Node:
        """The sum of a body over the block."""

    def counts(self) -> tuple[Node, Node]:
        """Elements before the block, and in it, as int32."""


@dataclass(frozen=True)
class Parts:
    """Two stretches of the axis, one behind the other: states of results by result, those of the
    earlier one, of the later one and of both together, and their numbers of elements (int32)."""

    left: Finals
    right: Finals
    both: Finals
    counts: tuple[Node, Node]


@dataclass(frozen=True)
class Step:
    """The state behind a block; `final` makes the value from the last state and final values,
    `merged` the state of two stretches from those of each."""

    new: Node
    final: Callable[[Node, Finals], Node]
    merged: Callable[[Node, Node, Parts], Node]
