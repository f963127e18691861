"""The facts of a GPU kernel's launch and loops: what each may be and when, one table for all.

A kernel states facts by name (see `ops.kernel`); one that it does not state has its default, which
is what kernels did before the fact was there: old schedules keep their meaning. Sketches ask
`ways_of` which facts to leave open, `limits_of` says which combinations a compiler takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from autosched.ir.node import Node, walk

# Bits of the fact "descriptors": which boxes are tensor descriptors. 1 stands for all of them.
EVERY, FIRST, SECOND, STORES, OTHERS = 1, 2, 4, 8, 16
LOADS = FIRST | SECOND
GROUP_ROWS = 64  # of one asynchronous tensor instruction, for four warps


@dataclass(frozen=True)
class Traits:
    """What a kernel is, as far as its facts depend on it.

    contracted: it contracts; looped: in a loop; chained: in a loop with states that one pass over a
    chain of reduces carries; blocks: axes that the grid walks in blocks; rows: elements of the
    shorter one; ordered: no other grid loop lies between or behind these blocks; eight: products of
    8-bit floats.
    """

    contracted: bool = False
    looped: bool = False
    chained: bool = False
    blocks: int = 0
    rows: int = 0
    ordered: bool = False
    eight: bool = False
    features: frozenset[str] = frozenset()

    @property
    def boxes(self) -> bool:
        """Whether tensor descriptors are of use."""
        return self.contracted and "tma" in self.features


Domain = tuple[int, ...]


@dataclass(frozen=True)
class Fact:
    """A fact: what it is where a kernel does not state it, and what a plain kernel may try."""

    name: str
    default: int
    about: str
    plain: Callable[[Traits], Domain] = lambda traits: ()


def _warps(traits: Traits) -> Domain:
    return (2, 4, 8) if traits.contracted else (1, 2, 4, 8, 16)


def _stages(traits: Traits) -> Domain:
    return (2, 3, 4, 5) if traits.looped and traits.contracted else (2,)


def _boxes(traits: Traits) -> Domain:
    return (0, 1, LOADS) if traits.boxes else ()


def _groups(traits: Traits) -> Domain:
    return (0, 4, 8, 16) if traits.contracted and traits.blocks > 1 and traits.ordered else ()


def _parts(traits: Traits) -> Domain:
    return (1, 2, 4) if traits.boxes and traits.blocks > 1 else ()


def _registers(traits: Traits) -> Domain:
    return (0, 128, 168) if traits.chained else ()


def _promoted(traits: Traits) -> Domain:
    return (0, 1) if traits.eight else ()


FACTS: tuple[Fact, ...] = (
    Fact("warps", 4, "of a program", _warps),
    Fact("stages", 1, "steps of a loop in flight", _stages),
    Fact("descriptors", 0, "boxes that are tensor descriptors: 0 none, 1 all, else a sum of 2 "
         "(first operands of contractions), 4 (second ones), 8 (stores), 16 (other loads)", _boxes),
    Fact("persistent", 0, "programs per multiprocessor that walk over the grid; 0: a plain grid"),
    Fact("group", 0, "iterations of the last but one grid loop that are done together, so that "
         "programs at one time share what they read; 0: one after the other", _groups),
    Fact("snake", 0, "every other group runs backwards along the last grid loop"),
    Fact("flatten", 0, "the loop over the grid and the loop inside become one"),
    Fact("specialise", 0, "warps of their own load what others contract"),
    Fact("registers", 0, "of a thread at most; 0: as many as it wants", _registers),
    Fact("epilogue", 1, "parts along its last axis in which a box is stored", _parts),
    Fact("swap", 0, "contractions are computed transposed"),
    Fact("inner", 0, "steps in flight of loops inside loops; 0: as many as `stages`"),
    Fact("promote", 0, "sums of products of 8-bit floats become float32 after each step; 0: they "
         "stay in the tensor core, which keeps fewer bits", _promoted),
)  # fmt: skip
DEFAULTS: Mapping[str, int] = {f.name: f.default for f in FACTS}


@dataclass(frozen=True)
class Launch:
    """A structure of its own, where a fact only pays together with others: what it states instead
    of a plain kernel's facts, and where it is of use."""

    states: Mapping[str, Domain] = field(default_factory=dict)
    fits: Callable[[Traits], bool] = lambda traits: True


def _grouped(traits: Traits) -> bool:
    return traits.contracted and traits.blocks > 1


def _specialised(traits: Traits) -> bool:
    """Producers and consumers need boxes to hand over, and two groups of rows."""
    return traits.boxes and traits.looped and "wgmma" in traits.features


PLAIN = Launch()
PERSISTENT = Launch({"persistent": (1,)}, lambda t: _grouped(t) and not t.chained)
LAUNCHES: tuple[Launch, ...] = (
    PLAIN,
    PERSISTENT,
)


# ---- which accesses are boxes ------------------------------------------------------------------

_MOVES = ("reaxis", "take", "slice", "place")


def fed_by(operand: Node) -> Iterator[Node]:
    """The loads whose boxes, converted or masked, an operand of a contraction is."""
    stack = [operand]
    while stack:
        node = stack.pop()
        if node.op == "load":
            yield node
        elif node.op in ("map", *_MOVES):
            candidates = node.src if node.op == "map" else node.src[:1]
            stack.extend(s for s in candidates if node.op != "map" or {*node.names} <= {*s.names})


def described(kernel: Node, bits: int) -> frozenset[Node]:
    """The loads and stores of a kernel that the fact "descriptors" names."""
    nodes = [n for n in walk(kernel) if n.op in ("load", "store", "dot")]
    roles = {FIRST: {n for d in nodes if d.op == "dot" for n in fed_by(d.src[0])},
             SECOND: {n for d in nodes if d.op == "dot" for n in fed_by(d.src[1])},
             STORES: {n for n in nodes if n.op == "store"}}  # fmt: skip
    accesses = {n for n in nodes if n.op != "dot"}
    roles[OTHERS] = accesses.difference(*roles.values())
    if bits == EVERY:
        return frozenset(accesses)
    return frozenset().union(*(found for bit, found in roles.items() if bits & bit))
