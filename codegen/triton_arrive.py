"""Programs that store a part each, of which the last one to arrive goes on with all parts.

A program counts itself behind its stores: `acq_rel` at the scope of the device orders these before
the count, and what the last one reads behind it. The last one sets the counter to 0 again, for the
next launch: nobody else touches it until then.
"""

from __future__ import annotations

from collections.abc import Sequence

from autosched.codegen.triton_loops import Loops
from autosched.codegen.triton_text import MUL, Unsupported
from autosched.codegen.triton_values import number
from autosched.ir.node import Extent, Node, walk


class Arrivals(Loops):
    """`counter`: the parameter that points at one counter for each of the `tiles`, empty where the
    kernel needs none; `slots`: (axis, distance, trips) of the loops over tiles."""

    def __init__(self) -> None:
        super().__init__()
        self.counter = ""
        self.slots: Sequence[tuple[str, Extent, Extent]] = ()
        self.tiles: Extent = 1
        self.stored: frozenset[Node] = frozenset()  # what the statements at hand store to
        self.rides: dict[Node, Node] = {}  # serial loop to the fold that it becomes part of

    def arrive(self, loop: Node, rest: Sequence[Node]) -> None:
        """The parts of a loop's program, and the rest for the last one."""
        if self.rides:
            raise Unsupported("results of each step in a kernel that merges parts")
        self.statements(loop.src[2:])
        place = " + ".join([self.counter, *self.tile_number()])
        self.last(place, str(number(loop.src[1]) - 1), rest)

    def last(self, place: str, others: str, rest: Sequence[Node]) -> None:
        """The rest, for the program that finds all others counted."""
        arrived = self.scopes.fresh("arrived")
        count = f'tl.atomic_add({place}, 1, sem="acq_rel", scope="gpu")'
        self.scopes.line(f"{arrived} = {count}")
        self.scopes.enter(alone=True)
        self.stored = frozenset(n.src[0] for n in walk(*rest) if n.op == "store")
        self.statements(rest)
        self.scopes.line(f"tl.store({place}, 0)")
        self.scopes.leave(f"if {arrived} == {others}:")

    def alone(self, loop: Node, rest: Sequence[Node]) -> frozenset[Node]:
        """The accesses of a part that may be tensor descriptors: neither parts, which the device
        would have to be told to wait for, nor what the last program alone reads and stores."""
        after = {n for n in walk(*rest) if n.op in ("load", "store")}
        parts = {n.src[0] for n in after if n.op == "load"}
        inside = (n for n in walk(*loop.src[2:]) if n.op in ("load", "store"))
        return frozenset(n for n in inside if n not in after and n.src[0] not in parts)

    def tile_number(self) -> list[str]:
        """The terms of the number of the program's tile."""
        terms = []
        for axis, distance, trips in self.slots:
            at = self.scopes.bound(axis)
            if trips != 1 and at is not None:
                step = f"{at.inside(MUL)} * {self.extent(distance).text}"
                terms.append(at.text if distance == 1 else step)
        return terms


def arrivals(body: Sequence[Node]) -> Node | None:
    """The loop over parts that the statements of a grid start with."""
    first = body[0]
    return first if first.op == "forall" and first.attr[1] in ("arrive", "share") else None
