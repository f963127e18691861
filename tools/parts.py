"""A graph of operators in, the operators of a part of it out, by the values at the part's ends.

A part is what lies between values that are given and values that are wanted. Views at its ends
(transposes, reshapes) belong to whoever reads them, so that neighbouring parts share no node.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Part:
    """A model of its own: serialised, as a file with that suffix, and the arrays that its inputs
    take."""

    model: bytes
    feeds: Mapping[str, np.ndarray]
    nodes: int
    suffix: str = ".onnx"


class Parts(Protocol):
    """A model that parts can be cut out of."""

    def order(self, name: str) -> int:
        """When a value is made: -1 for inputs and constants."""

    def first(self, names: Iterable[str]) -> set[str]:
        """Of equal values, those that are not made from another of them."""

    def part(
        self, given: Iterable[str], wanted: Sequence[str], arrays: Mapping[str, np.ndarray]
    ) -> Part | None:
        """What makes `wanted` from `given`; None where nothing is left of it.

        arrays: the values of one run, for all names that depend on the inputs.
        """


@dataclass(frozen=True)
class Op:
    """The names that an operator reads and makes."""

    reads: tuple[str, ...]
    makes: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """ops: numbers of operators, ascending; count: without those that only prepare constants;
    outside: what they read and none of them makes."""

    ops: tuple[int, ...]
    count: int
    outside: tuple[str, ...]


class Graph:
    """Operators in an order in which they can run; stored: names of constants."""

    def __init__(self, ops: Sequence[Op], stored: Iterable[str]) -> None:
        self._ops = ops
        self._maker = {name: n for n, op in enumerate(ops) for name in op.makes if name}
        self._users: dict[str, set[int]] = {}
        for n, op in enumerate(ops):
            for name in op.reads:
                self._users.setdefault(name, set()).add(n)
        self._constant = self._constants(stored)

    def _constants(self, stored: Iterable[str]) -> set[str]:
        """Names whose values do not depend on the model's inputs."""
        known = set(stored)
        for op in self._ops:
            if all(name in known for name in op.reads):
                known.update(op.makes)
        return known

    def order(self, name: str) -> int:
        """When a value is made: -1 for inputs and constants of the file."""
        return self._maker.get(name, -1)

    @property
    def constants(self) -> tuple[str, ...]:
        """Values that the model computes from its weights alone."""
        return tuple(n for n in self._maker if n in self._constant)

    @property
    def variables(self) -> tuple[str, ...]:
        """Values that depend on the model's inputs."""
        return tuple(n for n in self._maker if n not in self._constant)

    def first(self, names: Iterable[str]) -> set[str]:
        """Of equal values, those that are not made from another of them."""
        group = set(names)
        return {
            name for name in group
            if name not in self._maker or not group & set(self._ops[self._maker[name]].reads)
        }  # fmt: skip

    def cut(self, given: Iterable[str], wanted: Sequence[str]) -> Cut | None:
        """What makes `wanted` from `given`; None where nothing is left of it."""
        ends = set(given)
        behind = self._behind(ends, wanted)
        kept = self._between(ends, behind) or behind
        kept = self._exclusive(kept, set(wanted))
        if not kept or not set(wanted) <= self._made(kept):
            return None
        count = len(kept)
        kept = self._with_constants(kept)
        made = self._made(kept)
        ops = tuple(sorted(kept))
        read = [name for n in ops for name in self._ops[n].reads if name not in made]
        return Cut(ops, count, tuple(dict.fromkeys(read)))

    def _made(self, ops: Iterable[int]) -> set[str]:
        return {name for n in ops for name in self._ops[n].makes}

    def _with_constants(self, kept: set[int]) -> set[int]:
        """The nodes, and those that make what they read from the file's constants alone."""
        out = set(kept)
        stack = [name for n in kept for name in self._ops[n].reads]
        while stack:
            name = stack.pop()
            n = self._maker.get(name)
            if name in self._constant and n is not None and n not in out:
                out.add(n)
                stack.extend(self._ops[n].reads)
        return out

    def _behind(self, ends: Container[str], wanted: Sequence[str]) -> set[int]:
        found: set[int] = set()
        stack = list(wanted)
        while stack:
            name = stack.pop()
            n = self._maker.get(name)
            if n is None or n in found or name in ends or name in self._constant:
                continue
            found.add(n)
            stack.extend(self._ops[n].reads)
        return found

    def _between(self, ends: set[str], behind: set[int]) -> set[int]:
        """Of the nodes behind the wanted values those that depend on the given ones."""
        reached = set(ends)
        out: set[int] = set()
        for n in sorted(behind):
            if reached & set(self._ops[n].reads):
                out.add(n)
                reached.update(self._ops[n].makes)
        return out

    def _exclusive(self, kept: set[int], wanted: set[str]) -> set[int]:
        """Without what other parts of the model use too: a mask that all layers share."""
        while True:
            shared = {
                n for n in kept
                if not wanted & set(self._ops[n].makes)
                and any(self._users.get(o, set()) - kept for o in self._ops[n].makes)
            }  # fmt: skip
            if not shared:
                return kept
            kept = kept - shared
            made_for = {name for n in kept for name in self._ops[n].reads} | wanted
            while idle := {n for n in kept if not made_for & set(self._ops[n].makes)}:
                kept = kept - idle
                made_for = {name for n in kept for name in self._ops[n].reads} | wanted
