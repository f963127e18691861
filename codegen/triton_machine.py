"""A listing of a kernel's machine code in (nvdisasm's), a uniform register out that it reads and
that nothing has written.

Triton hands its code to ptxas, whose mistakes show neither in PTX nor in Triton's dialects. One of
them can be proved from machine code alone: a register is read that no path from the entry has
written, so that its value is what an earlier kernel left there. Descriptors of tensor cores lie in
uniform registers, which are few; those are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_LABEL = re.compile(r"([.$\w]+):")
_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?(\S+)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\(([.$\w]+)\)")
_UNIFORM = re.compile(r"\bUR(\d+)\b")
_PREDICATE = re.compile(r"!?U?P(?:\d|T)")
# Both factors of a product, as descriptors of 64 bits side by side. A left factor in registers of
# its own stands before them; then the first descriptor is not read.
_FACTORS = re.compile(r"gdesc\[UR(\d+)\]")
_LEFT, _RIGHT = range(2), range(2, 4)
# Work on uniform registers starts with a U, and so do some that have no result in one.
_RESULTLESS = ("UTMA", "UBLK", "UCGABAR", "USETMAXREG")
_RESULTS = ("U", "R2UR", "S2UR", "CS2UR", "VOTEU", "ELECT", "REDUX", "LDCU")
_WIDTHS = (("128", 4), ("64", 2), ("WIDE", 2))  # by what the name of an operation contains
_REGISTERS = 256  # more than there are uniform ones
_INDIRECT = ("BRX", "JMX")


class Instruction(NamedTuple):
    """Of a listing. op: the name with its modifiers; operands: as they are written."""

    op: str
    operands: tuple[str, ...]

    @property
    def text(self) -> str:
        """As listings have it, without the predicate."""
        return f"{self.op} {', '.join(self.operands)}"


def machine_fault_of(listing: str) -> str | None:
    """The first register that is read before anything can have written it, in words; None where
    all that are read may have been written.

    Whatever might write on some path counts (also under a predicate), so that sound code is never
    refused. What is found is a fault for certain.
    """
    code, labels = _parsed(listing)
    for one, written in zip(code, _may_be_written(code, labels), strict=False):
        for register in sorted(reads(one)):
            if written >= 0 and not written >> register & 1:
                return f"the assembler reads register UR{register}, which nothing has written: " \
                       f"{one.text}"  # fmt: skip
    return None


def reads(one: Instruction) -> frozenset[int]:
    """The uniform registers that an instruction is certain to read."""
    result = _result(one)
    found: set[int] = set()
    for n, operand in enumerate(one.operands):
        if factors := _FACTORS.match(operand):
            words = _RIGHT if n > 1 else (*_LEFT, *_RIGHT)
            found.update(int(factors[1]) + word for word in words)
        elif n != result:
            found.update(map(int, _UNIFORM.findall(operand)))
    return frozenset(found)


def writes(one: Instruction) -> frozenset[int]:
    """The uniform registers that an instruction may write."""
    result = _result(one)
    if result is None:
        return frozenset()
    first = int(_UNIFORM.findall(one.operands[result])[0])
    width = next((n for part, n in _WIDTHS if part in one.op), 1)
    return frozenset(range(first, first + width))


def _result(one: Instruction) -> int | None:
    """Which operand is a uniform register that the instruction writes: the first one behind
    predicates, where it has such a result."""
    if "SETP" in one.op or one.op.startswith(_RESULTLESS) or not one.op.startswith(_RESULTS):
        return None
    for n, operand in enumerate(one.operands):
        if not _PREDICATE.fullmatch(operand):
            return n if _UNIFORM.fullmatch(operand) else None
    return None


def _parsed(listing: str) -> tuple[Sequence[Instruction], Mapping[str, int]]:
    """The instructions, and which one stands behind each label."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in map(str.strip, listing.splitlines()):
        if label := _LABEL.fullmatch(line):
            labels[label[1]] = len(code)
        elif found := _LINE.match(line):
            operands = tuple(part.strip() for part in found[3].split(",")) if found[3] else ()
            code.append(Instruction(found[2], operands))
    return code, labels


def _may_be_written(code: Sequence[Instruction], labels: Mapping[str, int]) -> Sequence[int]:
    """Before each instruction, a bit for each register that some path to it writes; -1 where no
    path leads. Paths too many do no harm (more may have been written); one left out would.

    Bits above those of registers say which BSSY was the last of its barrier: where a BSYNC goes on.
    """
    places = [
        [labels[t] for o in one.operands for t in _TARGET.findall(o) if t in labels]
        for one in code
    ]
    returns = [n + 1 for n, one in enumerate(code) if one.op.startswith("CALL")]
    opened: dict[str, dict[int, int]] = {}  # by barrier: what BSSY, its bit
    for n, one in enumerate(code):
        if one.op.startswith("BSSY"):
            opened.setdefault(one.operands[0], {})[n] = 1 << _REGISTERS + n

    def goes_on(at: int, state: int) -> Iterator[int]:
        one = code[at]
        yield at + 1
        if one.op.startswith("BSSY"):
            return
        yield from places[at]
        if one.op.startswith("BSYNC"):
            for n, bit in opened.get(one.operands[0], {}).items():
                yield from places[n] if state & bit else ()
        if one.op.startswith("RET"):
            yield from returns
        if one.op.startswith(_INDIRECT):
            yield from labels.values()

    writing = [sum(1 << r for r in writes(one)) for one in code]
    before = [0, *[-1] * len(code)]
    work = [0]
    while work:
        at = work.pop()
        if at == len(code):
            continue
        after = before[at] | writing[at]
        if code[at].op.startswith("BSSY"):
            mine = opened[code[at].operands[0]]
            after = after & ~sum(mine.values()) | mine[at]
        for place in goes_on(at, after):
            new = after if before[place] < 0 else before[place] | after
            if new != before[place]:
                before[place] = new
                work.append(place)
    return before
