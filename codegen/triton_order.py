"""The number of a program in, its coordinates along the loops of the grid out, as text.

The last loop is the fastest. With groups, the two last ones are walked in groups of several
iterations of the last but one: within a group that loop is the fastest, so that programs that run
at the same time lie in a block of the grid, and share what they read along both. A snake walks
every other group from its end, where the one before it has just been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autosched.ir.extent import ext_mod, ext_mul, ext_product, ext_sub
from autosched.ir.node import Extent


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

    def lines(
        self, trips: Sequence[tuple[str, Extent]], program: str, inside: int = 0,
        text: Callable[[Extent], str] = str,
    ) -> list[Line]:  # fmt: skip
        """The coordinates of all loops (axis, iterations) that have more than one iteration.

        A text names the coordinates and helpers of earlier lines in braces. inside: how many of
        the last loops belong to one place of the grid, and take no part in its order. text: of a
        count of iterations.
        """
        cut = len(trips) - inside
        moving = [(axis, n) for axis, n in trips[:cut] if _moves(n)]
        within = [(axis, n) for axis, n in trips[cut:] if _moves(n)]
        total = ext_product(n for _, n in trips)
        if len(moving) < 2 or not (self.group or self.snake):
            return _plain([*moving, *within], total, program, text)
        (outer, rows), (inner, columns) = moving[-2:]
        below = ext_product(n for _, n in within)
        block = ext_mul(rows, columns)
        above = _plain(moving[:-2], total, program, text, ext_mul(block, below))
        local = program if below == 1 else f"{program} // {text(below)}"
        local = local if len(moving) == 2 else f"{local} % {text(block)}"
        size = max(self.group, 1)
        size = min(size, rows) if isinstance(rows, int) else size
        grouped = self._grouped(outer, rows, inner, columns, size, local, text)
        return [*above, *grouped, *_plain(within, total, program, text)]

    def _grouped(
        self, outer: str, rows: Extent, inner: str, columns: Extent, size: int, local: str,
        text: Callable[[Extent], str],
    ) -> list[Line]:  # fmt: skip
        within = local if local.isidentifier() else "{part}"
        lines = [] if within == local else [Line("part", local)]
        if size == 1:
            lines.append(Line(outer, f"{within} // {text(columns)}"))
            at, group = f"{within} % {text(columns)}", f"{{{outer}}}"
        elif size == rows:  # one group: the last loop is the slower one
            lines.append(Line(outer, f"{within} % {size}"))
            return [*lines, Line(inner, f"{within} // {size}")]
        else:
            places = text(ext_mul(size, columns))
            lines.append(Line("group", f"{within} // {places}"))
            lines.append(Line("place", f"{within} % {places}"))
            group, tall = "{group}", str(size)
            if ext_mod(rows, size) != 0:  # the last group has fewer
                rest = f"{text(rows)} - {{group}} * {size}"
                lines.append(Line("tall", f"tl.minimum({size}, {rest})"))
                tall = "{tall}"
            lines.append(Line(outer, f"{{group}} * {size} + {{place}} % {tall}"))
            at = f"{{place}} // {tall}"
        if not self.snake:
            return [*lines, Line(inner, at)]
        lines.append(Line("forth", at))
        back = f"tl.where({group} % 2 == 1, {text(ext_sub(columns, 1))} - {{forth}}, {{forth}})"
        return [*lines, Line(inner, back)]


def _moves(trips: Extent) -> bool:
    return not isinstance(trips, int) or trips > 1


def _plain(
    moving: Sequence[tuple[str, Extent]], total: Extent, program: str,
    text: Callable[[Extent], str], below: Extent = 1,
) -> list[Line]:  # fmt: skip
    """Coordinates with the last loop fastest; below: programs of one iteration of all of them."""
    lines = []
    for at, (axis, n) in enumerate(moving):
        stride = ext_mul(below, ext_product(m for _, m in moving[at + 1 :]))
        line = program if stride == 1 else f"{program} // {text(stride)}"
        lines.append(Line(axis, line if ext_mul(stride, n) == total else f"{line} % {text(n)}"))
    return lines
