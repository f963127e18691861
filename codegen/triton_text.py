"""Pieces of Triton text: values with their tile axes, unique names, wrapped lines, module heads.

A `Val` is an expression whose tensor dimensions are named; scalars have none.
"""

from __future__ import annotations

import builtins
import json
import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

WIDTH = 98
# How tightly Python binds: an operand with a lower rank stands in parentheses.
ATOM, UNARY, MUL, ADD, SHIFT, BITAND, BITXOR, BITOR, COMPARE = 100, 14, 12, 11, 10, 9, 8, 7, 6

TYPES: dict[str, str] = {
    "float64": "tl.float64", "float32": "tl.float32", "float16": "tl.float16",
    "bfloat16": "tl.bfloat16", "float8_e4m3": "tl.float8e4nv", "float8_e5m2": "tl.float8e5",
    "bool": "tl.int1",
    **{t: f"tl.{t}" for t in ("int64", "int32", "int16", "int8",
                              "uint64", "uint32", "uint16", "uint8")},
}  # fmt: skip
NARROW = frozenset(("float16", "bfloat16", "float8_e4m3", "float8_e5m2"))


class Unsupported(ValueError):
    """A tile program that Triton cannot say; the schedule is recorded as illegal."""


@dataclass(frozen=True)
class Header:
    """What a module says about itself: the algebra's text, the schedule, what made it."""

    title: str
    definition: str = ""
    schedule: Mapping[str, Any] = field(default_factory=dict)
    provenance: str = ""


@dataclass(frozen=True)
class Val:
    """An expression.

    dims: tile axes, one for each dimension of the tensor, in order.
    dtype: the type in which it is held: narrow floats are widened by arithmetic.
    rank: of the outermost operator; literal: a Python number.
    """

    text: str
    dims: tuple[str, ...]
    dtype: str
    rank: int = ATOM
    literal: bool = False

    def inside(self, rank: int) -> str:
        """The text as an operand of an operator of this rank."""
        return self.text if self.rank >= rank else f"({self.text})"

    @property
    def is_name(self) -> bool:
        return self.text.isidentifier()

    def with_dims(self, dims: Iterable[str]) -> Val:
        return replace(self, dims=tuple(dims))


def literal(value: float | bool, dtype: str) -> Val:
    """A number as Python writes it."""
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return Val(f'float("{value}")', (), dtype, ATOM, True)
    text = repr(value)
    return Val(text, (), dtype, UNARY if text.startswith("-") else ATOM, True)


def words(text: str) -> frozenset[str]:
    """The identifiers in a text."""
    return frozenset(re.findall(r"[A-Za-z_]\w*", text))


class Names:
    """Unique Python names: the wanted one, or it with a number."""

    TAKEN = frozenset((*keyword.kwlist, *dir(builtins), "tl", "triton", "libdevice"))

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.used = set(taken)
        self.released: set[str] = set()  # of loops that have ended

    def fresh(self, wanted: str, again: bool = False) -> str:
        """again: a name of a loop that has ended may come again, in lines that follow it."""
        free = self.released if again else frozenset()
        base = re.sub(r"\W+", "_", wanted).strip("_") or "value"
        base = f"v{base}" if base[0].isdigit() else base
        if base in self.TAKEN:
            base = f"{base}_"
        name, n = base, 1
        while name in self.used and name not in free:
            n += 1
            name = f"{base}_{n}" if not base.endswith("_") else f"{base}{n}"
        self.used.add(name)
        self.released.discard(name)
        return name


# ---- lines ------------------------------------------------------------------------------------


def wrapped(line: str) -> list[str]:
    """The line, broken where it is too long: behind commas of its longest bracket, or at operators
    outside brackets where those hold less than half of it."""
    if len(line) <= WIDTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    head, equals, value = line.partition(" = ")
    inside = not (equals and head.strip().isidentifier())
    head, value = (indent, line.strip()) if inside else (f"{head}{equals}", value)
    found = _outer_bracket(value)
    if found is None or 2 * (found[1] - found[0]) < len(value):
        parts = [p for part in _split(value) for p in wrapped(f"{indent}    {part}")]
        if len(parts) < 2:
            return [line]
        return [p[4:] for p in parts] if inside else [f"{head}(", *parts, f"{indent})"]
    start, end = found
    if not value[start + 1 : end].strip():
        return [line]
    lines = [f"{head}{value[: start + 1]}"]
    for part in _split(value[start + 1 : end]):
        lines += wrapped(f"{indent}    {part}")
    return [*lines, f"{indent}{value[end:]}"]


def _outer_bracket(line: str) -> tuple[int, int] | None:
    """The longest bracket at the outermost depth."""
    depth, start, best = 0, 0, None
    for at, char in enumerate(line):
        if char in "([":
            if depth == 0:
                start = at
            depth += 1
        elif char in ")]":
            depth -= 1
            if depth == 0 and (best is None or at - start > best[1] - best[0]):
                best = (start, at)
    return best


def _split(text: str) -> list[str]:
    """Arguments, each with its comma; a single one at its outermost operators."""
    for sep in (", ", " + ", " & ", " | ", " * "):
        parts, depth, last = [], 0, 0
        for at, char in enumerate(text):
            depth += (char in "([") - (char in ")]")
            if depth == 0 and text.startswith(sep, at):
                parts.append(text[last : at + 1].rstrip() if sep == ", " else text[last:at])
                last = at + 2 if sep == ", " else at + 1
        parts.append(text[last:] + ("," if sep == ", " and parts else ""))
        if len(parts) > 1:
            return [p.strip() for p in parts]
    return [text]


# ---- the module -------------------------------------------------------------------------------


def module_text(header: Header, helpers: Iterable[str], kernels: Iterable[str]) -> str:
    """The whole source of a module."""
    lines = [header.title.rstrip(".") + "."]
    for title, text in (
        ("Definition", header.definition.strip("\n")),
        ("Schedule", json.dumps(header.schedule, sort_keys=True) if header.schedule else ""),
    ):
        if text:
            lines += ["", f"{title}:", *_folded(text)]
    if header.provenance:
        lines += ["", header.provenance.strip()]
    doc = "\n".join(lines).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    head = f'"""{doc}\n"""\n\nimport triton\nimport triton.language as tl\n'
    return "\n\n".join([head, *(f"{text.strip()}\n" for text in (*helpers, *kernels))])


def _folded(text: str) -> list[str]:
    """Indented lines, long ones broken at spaces."""
    out = []
    for line in text.splitlines():
        room = WIDTH - 4
        while len(line) > room and (cut := line.rfind(" ", 1, room)) > 0:
            out.append(f"    {line[:cut]}")
            line = "  " + line[cut + 1 :]
        out.append(f"    {line}".rstrip())
    return out
