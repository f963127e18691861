"""Whether a program obeys the specification (`spec`, `spec_tile`) of its level.

`problems(program)` lists what breaks a rule, `verify(program)` raises it. What a node can check
about its operands alone is checked where nodes are made (`ops`); these rows are about programs.
"""

from __future__ import annotations

from dataclasses import dataclass

from autosched.ir.node import IRError, Program
from autosched.ir.spec import COMMON_ROWS, Row, View, where_text
from autosched.ir.spec_tile import TILE_ROWS

__all__ = ["ROWS", "Problem", "VerifyError", "problems", "verify"]

ROWS: tuple[Row, ...] = (*COMMON_ROWS, *TILE_ROWS)


@dataclass(frozen=True)
class Problem:
    """A broken rule: its code, where, and what is wrong there."""

    code: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.code} at {self.where}: {self.message}"


class VerifyError(IRError):
    """A program that breaks rules of the IR: a bug of whatever made it."""

    def __init__(self, found: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, found)))
        self.problems = found


def problems(program: Program, concrete: bool = False) -> tuple[Problem, ...]:
    """Every broken rule. concrete: no knob may be left open."""
    if program.level not in ("algebra", "tile"):
        return (Problem("LEVEL", "program", f"unknown level {program.level!r}"),)
    view = View(program, concrete)
    return tuple(
        Problem(row.code, where_text(where), message)
        for row in ROWS
        if row.level in ("both", program.level)
        for where, message in row.check(view)
    )


def verify(program: Program, concrete: bool = False) -> None:
    """Raises VerifyError with every problem; returns where there is none."""
    found = problems(program, concrete)
    if found:
        raise VerifyError(found)
