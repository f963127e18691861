"""Assembly text in, its innermost loops out: for tests that look at what LLVM made of a kernel."""

from __future__ import annotations

import re

_LABEL = re.compile(r"^(\.?\w+):")
_JUMP = re.compile(r"^j\w+\s+(\.L\w+)")


def innermost_loops(asm: str) -> list[list[str]]:
    """Instructions of every loop that contains no other loop, in order of appearance.

    A loop is what lies between a label and a later jump back to it.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    for raw in asm.splitlines():
        line = raw.split("#")[0].strip()
        named = _LABEL.match(line)
        if named:
            labels[named.group(1)] = len(lines)
        elif line and not line.startswith("."):
            lines.append(line)
    spans = []
    for at, line in enumerate(lines):
        jump = _JUMP.match(line)
        if jump and labels.get(jump.group(1), at + 1) <= at:
            spans.append((labels[jump.group(1)], at))
    inner = [
        (a, b)
        for a, b in spans
        if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)
    ]
    return [lines[a : b + 1] for a, b in inner]


def counts(loop: list[str]) -> dict[str, int]:
    """How often each mnemonic stands in a loop, and vector stores to memory as `store`."""
    out: dict[str, int] = {}
    for line in loop:
        name, _, operands = line.partition("\t")
        name = name.split()[0]
        out[name] = out.get(name, 0) + 1
        if name.startswith("vmov") and operands.rstrip().endswith(")"):
            out["store"] = out.get("store", 0) + 1
    return out
