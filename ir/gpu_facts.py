"""The facts of a GPU kernel's launch and loops: what each may be and when, one table for all.

A kernel states facts by name (see `ops.kernel`); one that it does not state has its default, which
is what kernels did before the fact was there: old schedules keep their meaning. Sketches ask
`LAUNCHES` and `FURTHER` which facts to leave open; `rules_of` says which combinations make sense,
and which a compiler takes. What fails beyond that is found by building, and learned as data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from autosched.ir.extent import as_node, ext_floordiv, ext_max, ext_mod, ext_mul, ext_product
from autosched.ir.loops import grid_of
from autosched.ir.node import Extent, Node, walk
from autosched.ir.ops import const, kernel_facts

# Bits of the fact "descriptors": which boxes are tensor descriptors. 1 stands for all of them.
EVERY, FIRST, SECOND, STORES, OTHERS = 1, 2, 4, 8, 16
LOADS = FIRST | SECOND
GROUP_ROWS = 64  # of one asynchronous tensor instruction, for four warps
LEAST_PART = 16  # elements of a line of what is stored in parts
CHAIN_STAGES = 2  # steps in flight of several contractions for which other warps load
ODD_STAGES = 3  # steps in flight of one contraction that were not always right


@dataclass(frozen=True)
class Traits:
    """What a kernel is, as far as its facts depend on it.

    contracted: it contracts; looped: in a loop; chained: in a loop that carries a chain of reduces;
    nested: with another loop inside; blocks: axes that the grid walks in blocks of open size;
    ordered: these are its two last loops of several iterations; rows, columns: elements of the
    first and of the last axis of its boxes; eight: products of 8-bit floats; features: of the
    target.
    """

    contracted: bool = False
    looped: bool = False
    chained: bool = False
    nested: bool = False
    blocks: int = 0
    ordered: bool = False
    rows: int = 0
    columns: int = 0
    eight: bool = False
    features: frozenset[str] = frozenset()

    @property
    def boxes(self) -> bool:
        """Whether tensor descriptors are of use."""
        return self.contracted and "tma" in self.features

    @property
    def walked(self) -> bool:
        """Whether a program may do block after block."""
        return self.contracted and self.blocks > 1 and not self.chained

    @property
    def handed(self) -> bool:
        """Whether some warps may load what others contract."""
        return self.asynchronous and self.looped and self.rows > GROUP_ROWS

    @property
    def flat(self) -> bool:
        """Whether rows are fewer than an asynchronous instruction has, and columns are not."""
        return self.asynchronous and self.rows < GROUP_ROWS <= self.columns

    @property
    def asynchronous(self) -> bool:
        return self.boxes and "wgmma" in self.features


Domain = tuple[int, ...]
Test = Callable[[Traits], bool]


def _always(traits: Traits) -> bool:
    return True


def _warps(traits: Traits) -> Domain:
    return (2, 4, 8) if traits.contracted else (1, 2, 4, 8, 16)


def _stages(traits: Traits) -> Domain:
    return (2, 3, 4, 5) if traits.looped and traits.contracted else (2,)


@dataclass(frozen=True)
class Fact:
    """A fact: what it is where a kernel does not state it, what a plain kernel may try, and where
    it means anything."""

    name: str
    default: int
    about: str
    plain: Domain | Callable[[Traits], Domain] = ()
    applies: Test = _always


FACTS: tuple[Fact, ...] = (
    Fact("warps", 4, "of a program", _warps),
    Fact("stages", 1, "steps of a loop in flight", _stages),
    Fact("descriptors", 0, "boxes that are tensor descriptors: 0 none, 1 all, else a sum of 2 "
         "(first operands of contractions), 4 (second ones), 8 (stores), 16 (other loads)",
         (0, 1, LOADS), lambda t: t.boxes),
    Fact("persistent", 0, "programs per multiprocessor that walk over the grid; 0: a plain grid"),
    Fact("group", 0, "iterations of the last but one grid loop that are done together, so that "
         "programs at one time share what they read; 0: one after the other",
         (0, 4, 8, 16), lambda t: t.contracted and t.ordered),
    Fact("snake", 0, "every other group runs backwards along the last grid loop",
         (), lambda t: t.contracted and t.ordered),
    Fact("flatten", 0, "the loop over the grid and the loop inside become one",
         (), lambda t: t.looped),
    Fact("specialise", 0, "warps of their own load what others contract"),
    Fact("registers", 0, "of a thread at most; 0: as many as it wants",
         (0, 128, 168), lambda t: t.contracted and t.chained),
    Fact("epilogue", 1, "parts along its last axis in which a box is stored",
         (1, 2, 4), lambda t: t.boxes and t.blocks > 1 and not t.chained),
    Fact("swap", 0, "contractions are computed transposed"),
    Fact("inner", 0, "steps in flight of loops inside loops; 0: as many as `stages`",
         (0, 2), lambda t: t.contracted and t.nested),
    Fact("promote", 0, "sums of products of 8-bit floats become float32 after each step; 0: they "
         "stay in the tensor core, which keeps fewer bits", (0, 1), lambda t: t.eight),
    Fact("programs", 0, "among which the tiles of the grid are dealt out; 0: a program for each"),
    Fact("shared", 0, "first tiles of which several programs do a part each, where they are dealt"),
    Fact("pieces", 0, "steps of a tile, between which parts are cut, where tiles are dealt"),
)  # fmt: skip
DEFAULTS: Mapping[str, int] = {f.name: f.default for f in FACTS}


@dataclass(frozen=True)
class Launch:
    """A structure of its own, where a fact only pays together with others: what it states instead
    of a plain kernel's facts (nothing, where empty), and where it is of use."""

    states: Mapping[str, Domain] = field(default_factory=dict)
    fits: Test = _always

    def domains(self, traits: Traits) -> dict[str, Domain]:
        """The facts that a kernel states, and the values that each may have."""
        out = {}
        for fact in FACTS:
            plain = fact.plain(traits) if callable(fact.plain) else fact.plain
            domain = self.states.get(fact.name, plain)
            if domain and fact.applies(traits):
                out[fact.name] = domain
        return out


# Warps of their own for loads: Triton 3.6 does it on Hopper for programs of four warps, which
# become two groups that contract and one that loads, and neither flattens such loops nor stores
# their results in parts.
SPECIALISED: Mapping[str, Domain] = {
    "specialise": (1,), "warps": (4,), "stages": (2, 3, 4), "descriptors": (1, LOADS),
    "epilogue": (), "registers": (),
}  # fmt: skip
WALKING: Mapping[str, Domain] = {"persistent": (1,), "group": (0, 8, 16)}
# Names of sketches are numbers: those that were there first come first.
LAUNCHES: tuple[Launch, ...] = (
    Launch(),
    Launch({**WALKING, "flatten": (0, 1), "snake": (0, 1)}, lambda t: t.walked),
)
FURTHER: tuple[Launch, ...] = (
    Launch(SPECIALISED, lambda t: t.handed),
    Launch({**SPECIALISED, **WALKING}, lambda t: t.handed and t.walked),
    Launch({"swap": (1,), "epilogue": ()}, lambda t: t.flat),
)


# ---- which combinations make sense, and which a compiler takes ---------------------------------


def stores_boxes(facts: Mapping[str, Extent]) -> Extent:
    """1 where stores are descriptors."""
    bits = facts["descriptors"]
    return ext_max(ext_mod(bits, 2), ext_mod(ext_floordiv(bits, STORES), 2))


def rules_of(kernel: Node) -> list[Node]:
    """What the facts of a kernel must obey."""
    facts = {**DEFAULTS, **kernel_facts(kernel)}
    parts, group = facts["epilogue"], facts["group"]
    trips = [n.src[1] for n in grid_of(kernel)[0]]
    several = [n for n in trips if not (n.op == "const" and n.attr[0] <= 1)]
    out: list[Node] = []
    if parts != 1:
        out.append((as_node(parts) <= 1) | (as_node(stores_boxes(facts)) > 0))
        out += [as_node(ext_mul(parts, LEAST_PART)) <= as_node(n) for n in _last_sizes(kernel)]
    if group != 0 and len(several) > 1:
        # A group of all iterations is the other order of the loops.
        outer, inner = several[-2:]
        out.append((as_node(group) < 1) | ((as_node(group) < outer) & (inner > 1)))
    if facts["specialise"] != 0:
        out += _specialised(kernel, facts["stages"])
        # Descriptors of batches whose rows have a tail are made in the loop of a program that
        # walks: such kernels ran for ever on an H200, or read where no memory is.
        if facts["persistent"] != 0 and len(several) > 2:
            out.append(const(False, "bool"))
    if facts["swap"] != 0:
        for rows, columns in _sides(kernel):
            out += [as_node(rows) < GROUP_ROWS, as_node(columns) >= GROUP_ROWS]
    return out


def _last_sizes(kernel: Node) -> Iterator[Extent]:
    """Elements of the last axis of the boxes that are stored."""
    for stmt in (n for n in walk(*kernel.src) if n.op == "store"):
        sizes = [d[1] for d in stmt.attr[0] if d is not None]
        if len(sizes) > 1:
            yield sizes[-1]


def _specialised(kernel: Node, stages: Extent) -> list[Node]:
    """Triton 3.6 on Hopper asserts, or does nothing, unless all contractions of the kernel stand in
    one loop over one interval. Two groups contract, each at least 64 rows of what comes first in
    memory: of fewer, both do all, or the compiler asserts. With several contractions in the loop
    (attention) and more than two steps in flight, groups of rows were NaN on an H200; with one
    and three steps, rows or columns of some tiles in 8 of 764 schedules (two and four: of none in
    294 and 750)."""
    folds = [n for n in walk(*kernel.src) if n.op == "fold"]
    loops = [f for f in folds if any(n.op == "dot" for n in walk(*f.src[2 * f.attr[2] :]))]
    inside = {n for f in loops for n in walk(*f.src[2 * f.attr[2] :])}
    outside = [n for n in walk(*kernel.src) if n.op == "dot" and n not in inside]
    if len(loops) != 1 or loops[0].attr[2] != 1 or outside:
        return [const(False, "bool")]
    out = [as_node(rows) >= 2 * GROUP_ROWS for rows, _ in _sides(kernel)]
    if sum(n.op == "dot" for n in inside) > 1:
        out.append(as_node(stages) <= CHAIN_STAGES)
    else:
        out.append((as_node(stages) < ODD_STAGES) | (as_node(stages) > ODD_STAGES))
    return out


def rows_of(kernel: Node) -> frozenset[str]:
    """The axes of the rows of contractions, along which groups of warps share them."""
    return frozenset(a for _, rows, _ in turned(kernel) for a in rows)


def _sides(kernel: Node) -> Iterator[tuple[Extent, Extent]]:
    """(rows, columns) of each contraction: how many elements."""
    for _, rows, columns in turned(kernel):
        yield ext_product(rows.values()), ext_product(columns.values())


def turned(kernel: Node) -> Iterator[tuple[Node, dict[str, Extent], dict[str, Extent]]]:
    """Each contraction, its operand of rows first, with the axes of its rows and of its columns:
    rows are what comes first where results are stored."""
    order: dict[str, int] = {}
    for stmt in (n for n in walk(*kernel.src) if n.op == "store"):
        dims = stmt.attr[0]
        for start, dim in zip(stmt.src[2 : 2 + len(dims)], dims):
            for axis in (*(a for a, _ in start.free), *([dim[0]] if dim is not None else [])):
                order.setdefault(axis, len(order))
    loops = {n.attr[0] for n in walk(*kernel.src) if n.op in ("forall", "fold")}
    for node in (n for n in walk(*kernel.src) if n.op == "dot"):
        a, b = (dict(s.axes) for s in node.src)
        ours = {n: e for n, e in a.items() if n not in b and n not in loops}
        theirs = {n: e for n, e in b.items() if n not in a and n not in loops}
        first = [min((order.get(n, len(order)) for n in side), default=len(order) + 1)
                 for side in (ours, theirs)]  # fmt: skip
        if first[0] <= first[1]:
            yield node, ours, theirs
        else:
            yield Node("dot", node.src[::-1], node.attr), theirs, ours


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
