"""The number of a program in, its coordinates along the loops of the grid out, as text.

The last loop is the fastest. With groups, the two last ones are walked in groups of several
iterations of the last but one: within a group that loop is the fastest, so that programs that run
at the same time lie in a block of the grid, and share what they read along both. A snake walks
every other group from its end, where the one before it has just been.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple


class Line(NamedTuple):
    """One line to write: a name that is wanted, and its text with {names} of earlier lines."""

    name: str
    text: str


@dataclass(frozen=True)
class Order:
    """group: iterations of the last but one loop that are done together, 0 for one; snake: every
    other group backwards."""

    group: int = 0
    snake: bool = False

    def lines(self, trips: Sequence[tuple[str, int]], program: str, inside: int = 0) -> list[Line]:
        """The coordinates of all loops (axis, iterations) that have more than one iteration.

        A text names the coordinates and helpers of earlier lines in braces. inside: how many of
        the last loops belong to one place of the grid, and take no part in its order.
        """
        cut = len(trips) - inside
        moving = [(axis, n) for axis, n in trips[:cut] if n > 1]
        within = [(axis, n) for axis, n in trips[cut:] if n > 1]
        total = prod(n for _, n in trips)
        if len(moving) < 2 or not (self.group or self.snake):
            return _plain([*moving, *within], total, program)
        (outer, rows), (inner, columns) = moving[-2:]
        below = prod(n for _, n in within)
        block = rows * columns
        above = _plain(moving[:-2], total, program, block * below)
        local = program if below == 1 else f"{program} // {below}"
        local = local if len(moving) == 2 else f"{local} % {block}"
        size = min(max(self.group, 1), rows)
        grouped = self._grouped(outer, rows, inner, columns, size, local)
        return [*above, *grouped, *_plain(within, total, program)]

    def _grouped(
        self, outer: str, rows: int, inner: str, columns: int, size: int, local: str
    ) -> list[Line]:
        within = local if local.isidentifier() else "{part}"
        lines = [] if within == local else [Line("part", local)]
        if size == 1:
            lines.append(Line(outer, f"{within} // {columns}"))
            at, group = f"{within} % {columns}", f"{{{outer}}}"
        elif size == rows:  # one group: the last loop is the slower one
            lines.append(Line(outer, f"{within} % {rows}"))
            return [*lines, Line(inner, f"{within} // {rows}")]
        else:
            lines.append(Line("group", f"{within} // {size * columns}"))
            lines.append(Line("place", f"{within} % {size * columns}"))
            group, tall = "{group}", str(size)
            if rows % size:  # the last group has fewer
                lines.append(Line("tall", f"tl.minimum({size}, {rows} - {{group}} * {size})"))
                tall = "{tall}"
            lines.append(Line(outer, f"{{group}} * {size} + {{place}} % {tall}"))
            at = f"{{place}} // {tall}"
        if not self.snake:
            return [*lines, Line(inner, at)]
        lines.append(Line("forth", at))
        back = f"tl.where({group} % 2 == 1, {columns - 1} - {{forth}}, {{forth}})"
        return [*lines, Line(inner, back)]


def _plain(
    moving: Sequence[tuple[str, int]], total: int, program: str, below: int = 1
) -> list[Line]:
    """Coordinates with the last loop fastest; below: programs of one iteration of all of them."""
    lines = []
    for at, (axis, n) in enumerate(moving):
        stride = below * prod(m for _, m in moving[at + 1 :])
        text = program if stride == 1 else f"{program} // {stride}"
        lines.append(Line(axis, f"{text} % {n}" if stride * n < total else text))
    return lines
