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

Any number of tests bound the loop from either side: causal, windows, prefixes, the end of an axis.
Where one of several tests suffices, the furthest bounds the loop.
A row that is masked whole keeps its initial states, which is what all its empty blocks make of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autosched.ir.extent import as_extent, as_node, simplify
from autosched.ir.follows import conjuncts, what_follows
from autosched.ir.linear import from_poly, poly, range_of
from autosched.ir.node import Node, Program, replace_nodes, walk
from autosched.ir.ops import abs_, const, eq, get, map_, maximum, minimum
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.scalar import FLOATS

_TRUE, _FALSE = const(True, "bool"), const(False, "bool")
# A test says that  sign * (a - b) + offset  is not negative.
_SIGNS: Mapping[str, tuple[int, int]] = {"ge": (1, 0), "gt": (1, -1), "le": (-1, 0), "lt": (-1, -1)}


@dataclass(frozen=True)
class _Bound:
    """`0 <= slope * step + rest`; rest lies in [least, most] over the elements of a block."""

    slope: int
    least: Node
    most: Node

    def crossing(self, rest: Node) -> Node:
        """slope < 0: the first step at which slope * step + rest < 0; else the first at which it
        is not negative. At least 0."""
        size = abs(self.slope)
        above = rest + size if self.slope < 0 else const(size - 1, "int32") - rest
        return simplify(map_("floordiv", maximum(above, 0), const(size, "int32")))


@dataclass(frozen=True)
class _Test:
    """A test that holds where any of its bounds does; all of them bound the same end."""

    node: Node
    bounds: tuple[_Bound, ...]

    @property
    def upper(self) -> bool:
        return self.bounds[0].slope < 0

    def possible(self) -> Node:
        """The end (upper) or the start of the steps at which some element may pass."""
        return self._outermost([b.crossing(b.most) for b in self.bounds])

    def certain(self) -> Node:
        """The end or start of the steps at which all elements pass by one of the bounds."""
        return self._outermost([b.crossing(b.least) for b in self.bounds])

    def _outermost(self, ends: Sequence[Node]) -> Node:
        return simplify(functools.reduce(maximum if self.upper else minimum, ends))


def propose(program: Program, target: object = None) -> tuple[Action, ...]:
    """Every loop that tests bound or split."""
    out = [
        act("skip", axis=fold.attr[0], whole=True)
        for fold in _folds(program)
        if _tests(fold, _loops(program, fold))
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
        shorter = _shortened(fold, _loops(program, fold), whole)
        if isinstance(shorter, Illegal):
            refused = refused or shorter
        else:
            made[fold] = shorter
    if not made and refused is not None:
        return refused
    results = {get(f, n): get(s, n) for f, s in made.items() for n in range(len(f.types))}
    table = made | results
    return program.with_body(*(replace_nodes(k, table) for k in program.body))


def _shortened(fold: Node, loops: set[str], whole: bool) -> Node | Illegal:
    axis = fold.attr[0]
    if fold.attr[3]:
        return Illegal("STACKED", f"the loop over {axis} has a result at every step")
    tests = _tests(fold, loops)
    if not tests:
        return Illegal("NO_MASK", f"no test of positions bounds the loop over {axis}")
    emptying = [t for t in tests if _is_neutral(fold, t)]
    if not emptying and not whole:
        return Illegal("NOT_NEUTRAL", f"what is left out changes a state of the loop over {axis}")
    return _bounded(fold, emptying, tests if whole else [])


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


def _loops(program: Program, fold: Node) -> set[str]:
    """The loops around a fold; those inside it run over all of their steps, as boxes do."""
    bound = {n.attr[0] for n in walk(*program.body) if n.op in ("forall", "fold")}
    return bound & {fold.attr[0], *(a for a, _ in fold.free)}


def _yields(fold: Node) -> tuple[Node, ...]:
    n = len(fold.attr[1])
    return fold.src[2 + n : 2 + 2 * n]


def _tests(fold: Node, loops: set[str]) -> list[_Test]:
    """The tests of choices and masks in the body that depend on the step."""
    out: dict[Node, _Test] = {}
    for node in walk(*_yields(fold)):
        for condition in _conditions(node):
            for test in conjuncts(condition):
                made = _affine(test, fold.attr[0], loops)
                if made is not None:
                    out[test] = made
    return list(out.values())


def _conditions(node: Node) -> Iterator[Node]:
    if node.op == "map" and node.attr[0] == "where":
        yield node.src[0]
    if node.op == "load" and node.attr[1]:
        yield node.src[-2]


def _affine(test: Node, axis: str, loops: set[str]) -> _Test | None:
    bounds = tuple(_bound(t, axis, loops) for t in _disjuncts(test))
    if None in bounds or len({b.slope < 0 for b in bounds if b is not None}) != 1:
        return None
    return _Test(test, tuple(b for b in bounds if b is not None))


def _disjuncts(test: Node) -> list[Node]:
    if test.op == "map" and test.attr[0] == "or":
        return [t for s in test.src for t in _disjuncts(s)]
    return [test]


def _bound(test: Node, axis: str, loops: set[str]) -> _Bound | None:
    if test.op != "map" or test.attr[0] not in _SIGNS or test.src[0].dtype != "int32":
        return None
    sign, offset = _SIGNS[test.attr[0]]
    a, b = test.src if sign > 0 else test.src[::-1]
    terms = poly(simplify(a - b + offset))
    slope, rest = 0, {}
    for atoms, factor in terms.items():
        if any(axis in dict(n.free) for n in atoms):
            if len(atoms) != 1 or atoms[0].op != "iota":
                return None
            slope = factor
        else:
            rest[atoms] = factor
    least, most = (_extreme(rest, loops, s) for s in (-1, 1))
    if slope == 0 or least is None or most is None:
        return None
    return _Bound(slope, least, most)


def _extreme(terms: Mapping[tuple[Node, ...], int], loops: set[str], sign: int) -> Node | None:
    """The greatest (sign 1) or least value over the elements of a block."""
    out: Node = const(0, "int32")
    for atoms, factor in terms.items():
        tiles = [n for n in atoms if any(a not in loops for a, _ in n.free)]
        if not tiles:
            out = out + from_poly({atoms: factor}, "int32")
            continue
        ends = _ends(tiles[0], loops) if len(tiles) == 1 else None
        if ends is None:
            return None
        others = list(atoms)
        others.remove(tiles[0])
        end = ends[1 if (factor > 0) == (sign > 0) else 0]
        out = out + from_poly({tuple(others): factor}, "int32") * end
    return simplify(out)


def _ends(at: Node, loops: set[str]) -> tuple[Node, Node] | None:
    """The least and the greatest value over a block of an expression of its coordinates alone."""
    if at.op == "iota":
        return as_node(0), as_node(at.attr[1]) - 1
    lo, hi = range_of(at)
    if lo is None or hi is None or any(a in loops for a, _ in at.free):
        return None
    return as_node(lo), as_node(hi)


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
    for t in emptying:
        if t.upper:
            hi = minimum(hi, t.possible())
        else:
            lo = maximum(lo, t.possible())
    lo, hi = simplify(lo), simplify(hi)
    first, last = lo, hi
    for t in split:
        if t.upper:
            last = minimum(last, t.certain())
        else:
            first = maximum(first, t.certain())
    first = simplify(minimum(first, hi)) if first is not lo else lo
    last = simplify(maximum(last, first)) if last is not hi else hi
    if not split or as_extent(simplify(last - first)) == 0:
        return fold if (lo, hi) == fold.src[:2] else _over(fold, lo, hi, fold.src[2:])
    whole = {t.node: _TRUE for t in split}
    parts = [(lo, first, {}), (first, last, whole), (last, hi, {})]
    out: Node | None = None
    for start, end, table in parts:
        if start is end:
            continue
        rest = fold.src[2:] if not table else (*_inits(fold), *_settled(fold, table))
        if out is not None:
            count = len(fold.attr[1])
            rest = (*(get(out, n) for n in range(count)), *rest[count:])
        out = _over(fold, start, end, rest)
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
