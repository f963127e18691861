"""skip: a loop over blocks of a masked axis runs over those blocks that the mask lets through.

    before:  fold n.o in [0, N):           body with  where(i.o*BM + i.i >= n.o*BN + n.i, s, -inf)
    after:   fold n.o in [0, full):        body with  s
             fold n.o in [full, end):      body with  where(..., s, -inf), from the states so far
             full = (i.o*BM + 1) // BN     end = (i.o*BM + BM - 1) // BN + 1
    args:    axis, of the loops in all kernels; whole, whether blocks that no test cuts get a loop
             of their own, without the tests.
    Illegal: NO_LOOP (no fold over that axis), STACKED (it has a result at every step), NO_MASK (no
             test of positions is affine in the axis), NOT_NEUTRAL (a block that the mask empties
             changes a state, so that none can be skipped).

Any number of tests bound the loop from either side: causal, windows, prefixes, the end of an axis,
the start of a row's document as an array holds it. Where one of several tests suffices, the
furthest bounds the loop; where one holds up to some step and another from some step on, the loop
leaves out the steps between.
A row that is masked whole keeps its initial states, which is what all its empty blocks make of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from autosched.ir.clauses import clauses, parts_of
from autosched.ir.extent import as_extent, simplify
from autosched.ir.follows import what_follows
from autosched.ir.node import Node, Program, replace_nodes, walk
from autosched.ir.ops import abs_, const, eq, get, maximum, minimum, where
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.scalar import FLOATS
from autosched.ir.spans import Around, Span, span

_TRUE, _FALSE = const(True, "bool"), const(False, "bool")


@dataclass(frozen=True)
class _Test:
    """A part of a condition: spans that all hold where it does; `known`: and where they do, it."""

    node: Node
    spans: tuple[Span, ...]
    known: bool


def propose(program: Program, target: object = None) -> tuple[Action, ...]:
    """Every loop that tests bound or split."""
    out = [
        act("skip", axis=fold.attr[0], whole=True)
        for fold in _folds(program)
        if _tests(fold, _around(program, fold))
    ]
    # With blocks as wide as the mask there may be nothing to skip: the loop then stays.
    made = {a: apply(program, a) for a in out}
    return tuple(a for a, p in made.items() if not isinstance(p, Illegal) and p != program)


def apply(program: Program, action: Action) -> Program | Illegal:
    axis, whole = action["axis"], bool(action.get("whole", True))
    found = [f for f in _folds(program) if f.attr[0] == axis]
    if not found:
        return Illegal("NO_LOOP", f"no fold runs over {axis}")
    made: dict[Node, Node] = {}
    refused: Illegal | None = None
    for fold in found:
        shorter = _shortened(fold, _around(program, fold), whole)
        if isinstance(shorter, Illegal):
            refused = refused or shorter
        else:
            made[fold] = shorter
    if not made and refused is not None:
        return refused
    results = {get(f, n): get(s, n) for f, s in made.items() for n in range(len(f.types))}
    table = made | results
    return program.with_body(*(replace_nodes(k, table) for k in program.body))


def _shortened(fold: Node, around: Around, whole: bool) -> Node | Illegal:
    axis = fold.attr[0]
    if fold.attr[3]:
        return Illegal("STACKED", f"the loop over {axis} has a result at every step")
    tests = _tests(fold, around)
    if not tests:
        return Illegal("NO_MASK", f"no test of positions bounds the loop over {axis}")
    emptying = [t for t in tests if _is_neutral(fold, t)]
    if not emptying and not whole:
        return Illegal("NOT_NEUTRAL", f"what is left out changes a state of the loop over {axis}")
    return _bounded(fold, emptying, [t for t in tests if t.known] if whole else [])


# ---- tests ------------------------------------------------------------------------------------


def _folds(program: Program) -> list[Node]:
    """The loops of one interval, but for those that go on where another one over the axis ends."""
    folds = [n for n in walk(*program.body) if n.op == "fold" and n.attr[2] == 1]
    parts = {
        x for n in folds for init in _inits(n) for x in init.src
        if init.op == "get" and x.op == "fold" and x.attr[0] == n.attr[0]
        for x in (x, n)
    }  # fmt: skip
    return [n for n in folds if n not in parts]


def _around(program: Program, fold: Node) -> Around:
    """The loops around a fold, and the rows that are stored."""
    axis = fold.attr[0]
    bound = {n.attr[0] for n in walk(*program.body) if n.op in ("forall", "fold")}
    loops = bound & {axis, *(a for a, _ in fold.free)}
    return Around(axis, loops, bound - loops, _stored(program, loops))


def _stored(program: Program, loops: Collection[str]) -> frozenset[Node]:
    """Tests in the mask of every store, of axes along which no element reads another."""
    nodes = list(walk(*program.body))
    mixed: set[str] = set()
    for n in nodes:
        if n.op in ("reduce", "dot"):
            mixed |= {*(n.attr[1] if n.op == "reduce" else n.attr[0])}
        elif n.op == "scan":
            mixed.add(n.attr[1])
        elif n.op in ("reaxis", "slice", "trisolve"):
            mixed |= {a for s in n.src for a in s.names}
    masks = [{*parts_of(n.src[-1])} if n.attr[1] else set() for n in nodes if n.op == "store"]
    common = set.intersection(*masks) if masks else set()
    return frozenset(t for t in common if not {a for a, _ in t.free} & mixed)


def _yields(fold: Node) -> tuple[Node, ...]:
    n = len(fold.attr[1])
    return fold.src[2 + n : 2 + 2 * n]


def _tests(fold: Node, around: Around) -> list[_Test]:
    """The parts of conditions of choices and masks in the body that depend on the step."""
    out: dict[Node, _Test] = {}
    for node in walk(*_yields(fold)):
        for condition in _conditions(node):
            for part in parts_of(condition):
                if around.axis in dict(part.free) and part not in out:
                    found = [span(c, fold.src[1], around) for c in clauses(part)]
                    spans = tuple(s for s in found if s is not None)
                    if spans:
                        out[part] = _Test(part, spans, len(spans) == len(found))
    return list(out.values())


def _conditions(node: Node) -> Iterator[Node]:
    if node.op == "map" and node.attr[0] == "where":
        yield node.src[0]
    if node.op == "load" and node.attr[1]:
        yield node.src[-2]


# ---- what a test that fails everywhere does -----------------------------------------------------


def _is_neutral(fold: Node, test: _Test) -> bool:
    """Whether a step at which the test fails for all elements leaves every state as it is."""
    names = fold.attr[1]
    found = [what_follows(y, {test.node: _FALSE}) for y in _yields(fold)]
    carries = {n for y in found for n in walk(y) if n.op == "carry" and n.dtype in FLOATS}
    cases: list[list[Node]] = [found]
    for x in sorted(carries, key=lambda n: str(n.attr[0])):
        cases = [[what_follows(y, case) for y in ys] for ys in cases for case in _cases(x, ys)]
    return all(
        y.op == "carry" and y.attr[0] == name for ys in cases for name, y in zip(names, ys)
    )


def _cases(x: Node, values: Sequence[Node]) -> list[dict[Node, Node]]:
    """A state is a number, or -inf: what the tests that corrections make of it say then. (Where it
    is NaN or inf, its row is NaN whatever follows.)"""
    low = eq(x, const(float("-inf"), x.dtype))
    bounded = abs_(x) < float("inf")
    if low not in set(walk(*values)) and bounded not in set(walk(*values)):
        return [{}]
    return [{low: _FALSE, bounded: _TRUE}, {low: _TRUE, bounded: _FALSE}]


# ---- loops -------------------------------------------------------------------------------------


def _bounded(fold: Node, emptying: Sequence[_Test], split: Sequence[_Test]) -> Node:
    """The loop within the steps that no test empties; those that no test cuts on their own."""
    lo, hi = fold.src[:2]
    spans = [s for t in emptying for s in t.spans]
    for s in spans:
        if s.upper:
            hi = minimum(hi, _end(s.possible[0]))
        elif s.lower:
            lo = maximum(lo, _end(s.possible[1]))
    lo, hi = simplify(lo), simplify(hi)
    gap = next((s for s in spans if not s.upper and not s.lower), None)
    # Steps of a second gap are tested, and those of a gap that has to be looked into too.
    split = [t for t in split if all(s.upper or s.lower or s is gap for s in t.spans)]
    first, last = lo, hi
    for t in split:
        for s in t.spans:
            if s.upper:
                last = minimum(last, _end(s.certain[0]))
            elif s.lower:
                first = maximum(first, _end(s.certain[1]))
    if gap is None:
        first = simplify(minimum(first, hi)) if first is not lo else lo
        last = simplify(maximum(last, first)) if last is not hi else hi
        if not split or as_extent(simplify(last - first)) == 0:
            return fold if (lo, hi) == fold.src[:2] else _over(fold, lo, hi, fold.src[2:])
        return _chain(fold, [lo, first, last, hi], split)
    return _with_gap(fold, (lo, hi), (first, last), gap, split)


def _with_gap(
    fold: Node,
    within: tuple[Node, Node],
    cut: tuple[Node, Node],
    gap: Span,
    split: Sequence[_Test],
) -> Node:
    """The loop without the steps of the gap; those behind it are counted on without it."""
    (lo, hi), (first, last) = within, cut
    start = simplify(minimum(maximum(_end(gap.possible[0]), lo), hi))
    behind = simplify(minimum(maximum(_end(gap.possible[1]), start), hi))
    left_out = behind - start
    step = next(n for n in walk(*_yields(fold)) if n.op == "iota" and n.attr[0] == fold.attr[0])
    moved = {step: step + where(step < start, 0, left_out)}
    count = len(fold.attr[1])
    yields = tuple(replace_nodes(y, moved) for y in _yields(fold))
    closer = Node("fold", (*fold.src[: 2 + count], *yields), fold.attr)
    end = simplify(hi - left_out)
    if not split:
        return _over(closer, lo, end, closer.src[2:])
    tests = [replace(t, node=replace_nodes(t.node, moved)) for t in split]
    low = simplify(minimum(maximum(first, lo), start))
    low_end = simplify(maximum(minimum(minimum(last, _end(gap.certain[0])), start), low))
    high = simplify(minimum(maximum(maximum(first, _end(gap.certain[1])), behind), hi))
    high_end = simplify(maximum(minimum(last, hi), high))
    high, high_end = simplify(high - left_out), simplify(high_end - left_out)
    return _chain(closer, [lo, low, low_end, high, high_end, end], tests)


def _end(step: Node | None) -> Node:
    assert step is not None
    return step


def _chain(fold: Node, ends: Sequence[Node], tests: Sequence[_Test]) -> Node:
    """Loops from one end to the next, each from the states of the one before; in every second
    one the tests hold."""
    holds = {t.node: _TRUE for t in tests}
    whole = _settled(fold, holds)
    out: Node | None = None
    for n, (start, end) in enumerate(pairwise(ends)):
        if start is end or as_extent(simplify(end - start)) == 0:
            continue
        inits = _inits(fold)
        if out is not None:
            inits = tuple(get(out, k) for k in range(len(inits)))
        out = _over(fold, start, end, (*inits, *(whole if n % 2 else _yields(fold))))
    assert out is not None
    return out


def _inits(fold: Node) -> tuple[Node, ...]:
    return fold.src[2 : 2 + len(fold.attr[1])]


def _over(fold: Node, lo: Node, hi: Node, rest: Sequence[Node]) -> Node:
    return Node("fold", (lo, hi, *rest), fold.attr)


def _settled(fold: Node, table: Mapping[Node, Node]) -> tuple[Node, ...]:
    """The new states with tests that hold: choices are made, masks are dropped."""
    memo: dict[Node, Node] = dict(table)
    for node in walk(*_yields(fold)):
        if node in memo:
            continue
        src = tuple(memo[s] for s in node.src)
        if node.op == "reduce" and not {*node.attr[1]} <= {a for s in src for a in s.names}:
            src = node.src  # without the test nothing is left that varies along the axis
        made = node if src == node.src else Node(node.op, src, node.attr)
        if node.op == "map" and node.attr[0] == "where" and src[0] is _TRUE:
            made = src[1]
        elif node.op == "map" and node.attr[0] == "and" and _TRUE in src:
            made = src[1] if src[0] is _TRUE else src[0]
        elif node.op == "load" and node.attr[1] and src[-2] is _TRUE:
            made = Node("load", src[:-2], (node.attr[0], False))
        memo[node] = made
    return tuple(memo[y] for y in _yields(fold))
