"""What Triton's compiler made of a kernel in, a known fault of the compiler out.

Such kernels compile and may even be right by luck. They are refused like those that don't compile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

MOST_BUFFERED = 2  # steps in flight that several products of warps of their own were right with

_WAIT = re.compile(r"ttng\.warp_group_dot_wait (%[\w#]+)")
_PART = re.compile(r"(\s*)partition\d+\(")
_MADE = re.compile(r'(%\w+) = "?([\w.]+)"? ?(.*)')
_VALUE = re.compile(r"%[\w#]+")
_ATTRIBUTES = re.compile(r"\{[^{}]*\}")
_BUFFERS = re.compile(r"ttg\.memdesc_index .* : !ttg\.memdesc<(\d+)x\d+x\d+x")


def fault_of(ttgir: str) -> str | None:
    """A fault in Triton's GPU dialect, in words; None where none is known."""
    lines = ttgir.splitlines()
    return _waits_twice(lines) or _moves_twice(lines) or _buffers_deep(lines)


def _waits_twice(lines: Sequence[str]) -> str | None:
    """Two waits for one product (Triton 3.6, when the sum of a loop is wanted in two layouts behind
    it): machine code then copies the registers of the sum before the first wait, while tensor
    cores still write them. On an H200 such a kernel was wrong in every run.
    """
    waited: set[str] = set()
    for line in lines:
        text = line.strip()
        if text.startswith("}") or text.endswith("{"):  # another region
            waited.clear()
            continue
        for value in _WAIT.findall(text)[:1]:
            if value in waited:
                return f"the compiler waits twice for the product {value}: its registers are " \
                       "copied while tensor cores still write them"  # fmt: skip
            waited.add(value)
    return None


def _moves_twice(lines: Sequence[str]) -> str | None:
    """Groups of warps that share the rows of a box differ in the ranges of their rows, and in the
    coordinates of their descriptors. Where they differ in another number, which they spread over
    rows as it is, Triton 3.6 moved by a coordinate what the range moves already: on an H200 rows
    were left out or masked wrongly.
    """
    first: frozenset[str] | None = None
    for part in _parts(lines):
        spread = _spread(part, lines)
        if first is not None and spread != first:
            return "the compiler moves a group of warps twice: " \
                   f"{', '.join(sorted(spread ^ first))}"  # fmt: skip
        first = spread
    return None


def _buffers_deep(lines: Sequence[str]) -> str | None:
    """Several products in the loop of a group of warps for which others load more than two steps
    ahead (attention): whole groups of rows were NaN on an H200, in each such kernel of some size.
    No reason is known."""
    for part in _parts(lines):
        products = sum("ttng.warp_group_dot " in line for line in part)
        deep = max((int(n) for line in part for n in _BUFFERS.findall(line)), default=0)
        if products > 1 and deep > MOST_BUFFERED:
            return f"{products} products of warps for which others load {deep} steps ahead are " \
                   "wrong"  # fmt: skip
    return None


def _parts(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """The lines of each group of warps that others load for."""
    for n, line in enumerate(lines):
        if opened := _PART.match(line):
            ends = (m for m in range(n + 1, len(lines)) if lines[m].startswith(f"{opened[1]}}}"))
            yield lines[n + 1 : next(ends, len(lines))]


def _spread(part: Sequence[str], lines: Sequence[str]) -> frozenset[str]:
    """The scalars that a group makes tensors of, as formulas."""
    made: dict[str, str] = {}
    spread = []
    # What stands around the groups are constants; their own names come last.
    constants = (line for line in lines if "arith.constant" in line)
    for line in (*constants, *part):
        found = _MADE.match(line.strip())
        if found is None or line.rstrip().endswith("{"):
            continue
        name, op, rest = found.groups()
        text = _ATTRIBUTES.sub("", rest.split(" : ")[0]).strip()
        if op == "tt.splat":
            spread.append(text)
        made[name] = text if op == "arith.constant" else f"{op.split('.')[-1]}({text})"
    known: dict[str, str] = {}
    return frozenset(_formula(s, made, known) for s in spread)


def _formula(text: str, made: Mapping[str, str], known: dict[str, str]) -> str:
    """The text with what its values are made of in their place; `?` is made elsewhere."""
    def spelled(found: re.Match[str]) -> str:
        name = found[0]
        if name not in known:
            known[name] = _formula(made[name], made, known) if name in made else "?"
        return known[name]

    return _VALUE.sub(spelled, text)
