"""cascade: reduces over one axis that depend on each other become one pass over its blocks.

    before:  m = max j s[j];  l = sum j exp(s[j] - m);  o = sum j exp(s[j] - m) * v[j] / l
    after:   (m, l, o) = fold j.blk from (-inf, 0, 0):
                 m' = max(m, max j.in s);  c = exp(m - m');  p = exp(s - m')
                 yield (m', l * c + sum j.in p, o * c + sum j.in p * v)
             and  o / l  behind it
    args:    axis; block, elements of a block (a number).
    Illegal: NOT_ALGEBRA, NO_CHAIN (no two reduces over the axis depend on each other, or read a
             result along it that both need), TOO_BIG,
             NO_CORRECTION (a dependence that `corrections` has no row for; the reason says which).

Nothing here knows attention: what may stand around the exponential (masks, biases, caps, products
with values, divisions by other results) follows from which factors depend on earlier results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autosched.ir.expand import fresh
from autosched.ir.extent import as_node, ext_cdiv, ext_mod, ext_sub
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Extent, Node, Program, replace_nodes, walk
from autosched.ir.ops import (
    carry,
    cast,
    const,
    fold,
    get,
    iota,
    map_,
    minimum,
    reaxis,
    reduce_,
    where,
)
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.rules.corrections import corrected
from autosched.ir.rules.states import NoRow, Step

LONG = 512  # elements of an axis from which one pass may pay
BLOCKS = (64, 128)
_ZERO = const(0, "int32")


def propose(program: Program, target: object = None) -> tuple[Action, ...]:
    """Every chain over a long axis, in blocks that leave room for other operands in cache."""
    if program.level != "algebra":
        return ()
    axes = {a: e for r in _reduces(program) for a, e in [(r.attr[1][0], _extent(r))]}
    out = [
        act("cascade", axis=axis, block=block)
        for axis, extent in axes.items()
        if isinstance(extent, int) and extent >= LONG
        for block in BLOCKS
    ]
    return tuple(a for a in out if not isinstance(apply(program, a), Illegal))


def apply(program: Program, action: Action) -> Program | Illegal:
    if program.level != "algebra":
        return Illegal("NOT_ALGEBRA", "cascade rewrites algebra programs")
    axis, block = action["axis"], int(action["block"])
    chain = chained(program, axis)
    if not chain:
        why = f"no two reduces over {axis} depend on each other or on one result along it"
        return Illegal("NO_CHAIN", why)
    extent = _extent(chain[0])
    if isinstance(extent, int) and block > extent:
        return Illegal("TOO_BIG", f"{axis} has {extent} elements, a block {block}")
    taken = {a for n in walk(*program.body) for a, _ in n.free}
    pass_ = Pass(axis, extent, block, fresh(f"{axis}.blk", taken), fresh(f"{axis}.in", taken))
    try:
        for node in chain:
            pass_.add(node)
    except NoRow as reason:
        return Illegal("NO_CORRECTION", str(reason))
    table = pass_.finals()
    return program.with_body(*(replace_nodes(b, table) for b in program.body))


def chained(program: Program, axis: str) -> tuple[Node, ...]:
    """Reduces over `axis` alone that read another one, are read by one, or read the same result
    along the axis as another one; sources first."""
    found = [r for r in _reduces(program) if r.attr[1] == (axis,)]
    found = [r for r in found if _extent(r) == _extent(found[0])]
    below = {r: set(walk(*r.src)) for r in found}
    along = {r: {n for n in below[r] if n.op == "reduce" and axis in dict(n.free)}
             for r in found}  # fmt: skip

    def linked(r: Node, s: Node) -> bool:
        return r in below[s] or s in below[r] or bool(along[r] & along[s])

    return tuple(r for r in found if any(linked(r, s) for s in found if s is not r))


def _reduces(program: Program) -> list[Node]:
    return [
        n for n in walk(*program.body) if n.op == "reduce" and len(n.attr[1]) == 1 and not n.carries
    ]


def _extent(node: Node) -> Extent:
    return next(e for s in node.src for a, e in s.free if a == node.attr[1][0])


@dataclass
class Pass:
    """The fold as it grows; `old` and `new` are states by result, before and behind a block."""

    axis: str
    extent: Extent
    block: int
    outer: str
    inner: str
    states: dict[str, tuple[Node, Node]] = field(default_factory=dict)
    old: dict[Node, Node] = field(default_factory=dict)
    new: dict[Node, Node] = field(default_factory=dict)
    steps: dict[Node, Step] = field(default_factory=dict)
    moved: dict[Node, Node] = field(default_factory=dict)
    named: int = 0
    first: Node = _ZERO  # the block that the pass starts with

    def add(self, node: Node) -> None:
        """The states of one more reduce, and of those that its correction asks for."""
        spec = MONOIDS[node.attr[0]]
        results = [get(node, k) for k in range(len(node.types))]
        if results[0] in self.old:
            return
        names = [f"{node.attr[0]}{self.named + k}" for k in range(len(results))]
        self.named += len(results)
        old = [carry(n, r.dtype, dict(r.axes)) for n, r in zip(names, results)]
        if any(n in self.old for n in walk(*node.src)):
            step = corrected(node, old[0], self)
            self.steps[results[0]] = step
            new = [step.new]
        else:
            ids = [dtype_limit(i, s.dtype) for i, s in zip(spec.identity, node.src)]
            block = reduce_(
                node.attr[0], self.inner, *map(self._filled, map(self._moved, node.src), ids)
            )
            parts = tuple(get(block, k) for k in range(len(results)))
            new = list(spec.combine(map_, tuple(old), parts))
        for k, (name, result) in enumerate(zip(names, results)):
            start = const(dtype_limit(spec.identity[k], result.dtype), result.dtype)
            self.states[name] = (start, new[k])
            self.old[result], self.new[result] = old[k], new[k]

    def finals(self) -> dict[Node, Node]:
        """{result of a reduce: its value from the last states}."""
        return self.values(self.results(as_node(self.blocks)))

    def results(self, end: Node) -> dict[Node, Node]:
        """{result of a reduce: its state behind the blocks from the first to `end`}."""
        loop = fold(self.outer, [(self.first, end)], self.states)
        return {result: get(loop, k) for k, result in enumerate(self.old)}

    def values(self, states: Mapping[Node, Node]) -> dict[Node, Node]:
        """{result: its value, were the axis to end at these states}."""
        out: dict[Node, Node] = {}
        for result, state in states.items():
            out[result] = self.steps[result].final(state, out) if result in self.steps else state
        return out

    # ---- one block ------------------------------------------------------------------------

    @property
    def blocks(self) -> Extent:
        return ext_cdiv(self.extent, self.block)

    @property
    def ragged(self) -> bool:
        """Whether the last block may lie beyond the end of the axis in part."""
        return ext_mod(self.extent, self.block) != 0

    @property
    def _start(self) -> Node:
        return iota(self.outer, self.blocks) * self.block

    def total(self, body: Node) -> Node:
        moved = self._moved(body)
        if self.inner not in moved.names:
            moved = moved + cast(iota(self.inner, self.block) * 0, moved.dtype)
        return get(reduce_("sum", self.inner, self._filled(moved, 0.0)))

    def counts(self) -> tuple[Node, Node]:
        left = minimum(as_node(self.extent) - self._start, self.block)
        before = (iota(self.outer, self.blocks) - self.first) * self.block
        if self.first is _ZERO:
            before = self._start
        return before, left if self.ragged else as_node(self.block)

    def _filled(self, value: Node, identity: float) -> Node:
        """`value` in the block, the identity behind the end of the axis."""
        if not self.ragged:
            return value
        at = self._start + iota(self.inner, self.block)
        return where(at < as_node(self.extent), value, identity)

    def _moved(self, root: Node) -> Node:
        """`root` with the axis read at the block's elements, down to what is stored."""
        at = self._start + iota(self.inner, self.block)
        if self.ragged:
            at = minimum(at, as_node(ext_sub(self.extent, 1)))
        for node in walk(root):
            if node in self.moved:
                continue
            if self.axis not in dict(node.free):
                self.moved[node] = node
            elif node.op == "iota":
                self.moved[node] = cast(at, node.attr[2])
            elif node.op in ("input", "fold", "scan") or not all(
                self.axis in dict(s.free) or s in self.moved for s in node.src
            ):
                self.moved[node] = self._read(node, at)
            elif node.op == "take" and node.attr[0] == self.axis:
                value, index = node.src
                self.moved[node] = Node("take", (value, self.moved[index]), node.attr)
            elif node.op == "reaxis" and self.axis in node.attr[0]:
                exprs = [self.moved[e] for e in node.src[1:]]
                self.moved[node] = Node("reaxis", (node.src[0], *exprs), node.attr)
            elif node.op == "reduce" and self.axis in node.attr[1]:
                self.moved[node] = self._read(node, at)
            else:
                src = tuple(self.moved[s] for s in node.src)
                self.moved[node] = Node(node.op, src, node.attr)
        return self.moved[root]

    def _read(self, node: Node, at: Node) -> Node:
        if len(node.types) != 1:
            raise NoRow(f"a {node.op} of several results along the axis")
        return reaxis(node, {self.axis: at})
