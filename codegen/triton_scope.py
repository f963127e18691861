"""Where the Triton emitter is: nested scopes with their lines, what is bound and known there.

A value belongs to the innermost scope that it depends on, by an axis, a state or memory that
changes; it is made there once and read by name in all scopes inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from autosched.codegen.triton_text import Names, Val
from autosched.ir.node import Node


@dataclass
class Scope:
    """A block of lines.

    axes: bound here to scalars; states: fold states, by name; changing: nodes that read memory
    which the statement of this scope may find changed; alone: whatever is made here or inside
    stays here, for the scopes around go without it.
    """

    axes: dict[str, Val] = field(default_factory=dict)
    states: dict[str, Val] = field(default_factory=dict)
    changing: frozenset[Node] = frozenset()
    lines: list[str] = field(default_factory=list)
    memo: dict[Node, tuple[Val, ...]] = field(default_factory=dict)
    sums: dict[tuple[object, ...], Val] = field(default_factory=dict)  # of offsets
    loop: bool = False
    alone: bool = False
    names: list[str] = field(default_factory=list)  # of the lines here

    def holds(self, node: Node, free: frozenset[str]) -> bool:
        """Whether the node depends on what this scope binds."""
        return (
            not free.isdisjoint(self.axes)
            or not node.carries.isdisjoint(self.states)
            or node in self.changing
        )


class Scopes:
    """The stack of scopes; lines go to the last one."""

    def __init__(self) -> None:
        self.stack = [Scope()]
        self.names = Names()
        self.hidden = 0  # how many scopes inside the last one are open
        self._free: dict[Node, frozenset[str]] = {}

    def free(self, node: Node) -> frozenset[str]:
        """The axes that a value depends on; of one result of a loop, those of all its results."""
        if node not in self._free:
            own = frozenset(a for a, _ in node.free)
            hidden = [self.free(s) - {a for a, _ in s.free} for s in node.src]
            if node.op == "get":
                hidden.append(self.free(node.src[0]))
            bound = {node.attr[0]} if node.op in ("fold", "forall") else frozenset()
            self._free[node] = own | (frozenset().union(*hidden) - bound)
        return self._free[node]

    def home(self, node: Node) -> int:
        """The level that a node's value belongs to."""
        free = self.free(node)
        for level in range(len(self.stack) - 1, 0, -1):
            if self.stack[level].alone or self.stack[level].holds(node, free):
                return level
        return 0

    def known(self, node: Node) -> tuple[Val, ...] | None:
        for scope in reversed(self.stack):
            if node in scope.memo:
                return scope.memo[node]
        return None

    def keep(self, node: Node, values: tuple[Val, ...]) -> None:
        self.stack[-1].memo[node] = values

    def fresh(self, wanted: str) -> str:
        """A name for a line at this level."""
        scope = self.stack[-1]
        name = self.names.fresh(wanted, scope.loop and not self.hidden)
        scope.names.append(name)
        return name

    def line(self, text: str) -> None:
        self.stack[-1].lines.append(text)

    @property
    def level(self) -> int:
        return len(self.stack) - 1

    @contextmanager
    def at(self, level: int) -> Iterator[None]:
        """With the scopes inside `level` out of sight: what is made there knows nothing of them."""
        inside = self.stack[level + 1 :]
        del self.stack[level + 1 :]
        self.hidden += len(inside)
        try:
            yield
        finally:
            self.stack += inside
            self.hidden -= len(inside)

    def bound(self, axis: str) -> Val | None:
        for scope in reversed(self.stack):
            if axis in scope.axes:
                return scope.axes[axis]
        return None

    def state(self, name: str) -> Val | None:
        for scope in reversed(self.stack):
            if name in scope.states:
                return scope.states[name]
        return None

    def enter(
        self,
        axes: Mapping[str, Val] | None = None,
        states: Mapping[str, Val] | None = None,
        changing: Iterable[Node] = (),
        loop: bool = False,
        alone: bool = False,
    ) -> None:
        scope = Scope(dict(axes or {}), dict(states or {}), frozenset(changing))
        scope.loop, scope.alone = loop, alone
        self.stack.append(scope)

    def leave(self, header: str = "") -> None:
        """Close the innermost scope; with a header its lines become a block, else they follow."""
        scope = self.stack.pop()
        indent = "    " if header else ""
        if scope.loop:
            self.names.released.update(scope.names)
        else:
            self.stack[-1].names += scope.names
        if header and scope.lines:
            self.line(header)
        for text in scope.lines:
            self.line(indent + text)
