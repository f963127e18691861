"""stagger: products of a loop run beside the work of the neighbouring step.

    before:  fold n.o in [lo, hi) from (m, acc):
               s  = dot(Q, K[n.o]);   m' = max(m, reduce max s);   p = exp(s - m')
               yield (m', acc * corr(m, m') + dot(p, V[n.o]))
    after:   fold n.o in [lo, hi) from (m, acc, dot(Q, K[lo]), 0):
               a  = acc + dot(p, V[n.o - 1]);   s' = dot(Q, K[n.o + 1])
               m' = max(m, reduce max s);       p' = exp(s - m')
               yield (m', a * corr(m, m'), s', p')
             and  acc + dot(p, V[hi - 1])  behind it
    args:    axis, of the loop or of the loops that follow each other, in any kernel.
    Illegal: NO_LOOP (no fold over that axis), STACKED (it has a result at every step), READ_BETWEEN
             (states are read between two loops of a chain), NO_PRODUCT (no product of loaded boxes
             feeds a product that is added to a state), SPREAD (loops of a chain add
             products to different states).

On tensor cores that work on their own, the product of the next step overlaps with the
exponentials of this one. It costs the registers of one more box of scores. Two identities make
it, whatever stands between the products: a value that no state feeds may be made a step early and
carried; of a state x' = g(x) + d the sum may be left to the next step, x = y + d, so y' = g(y + d).

A step early beyond the end reads the last block again, and its value is dropped. A step late
before the start reads nothing: its mask fails, so that 0 is multiplied by 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autosched.ir.expand import fresh
from autosched.ir.extent import simplify
from autosched.ir.node import Extent, Node, Program, replace_nodes, walk
from autosched.ir.ops import carry, const, get, iota, maximum, minimum, where
from autosched.ir.rules.action import Action, Illegal, act

EARLY, LATE = "early", "late"


def propose(program: Program, target: object = None) -> tuple[Action, ...]:
    """Every loop that it is legal for."""
    axes = dict.fromkeys(n.attr[0] for n in walk(*program.body) if n.op == "fold")
    out = [act("stagger", axis=axis) for axis in axes]
    return tuple(a for a in out if not isinstance(apply(program, a), Illegal))


def apply(program: Program, action: Action) -> Program | Illegal:
    axis = action["axis"]
    folds = [n for n in walk(*program.body) if n.op == "fold" and n.attr[0] == axis]
    if not folds:
        return Illegal("NO_LOOP", f"no fold runs over {axis}")
    if any(f.attr[3] or f.attr[2] != 1 for f in folds):
        return Illegal("STACKED", f"the loop over {axis} has a result at every step")
    taken = {str(name) for n in walk(*program.body) if n.op == "fold" for name in n.attr[1]}
    table: dict[Node, Node] = {}
    for chain in _chains(folds):
        if _read_between(program, chain):
            why = f"states are read between the loops over {axis}"
            return Illegal("READ_BETWEEN", why)
        made = _staggered(chain, taken)
        if isinstance(made, Illegal):
            return made
        table |= made
    return program.with_body(*(replace_nodes(k, table) for k in program.body))


# ---- chains of loops ----------------------------------------------------------------------------


def _inits(fold: Node) -> tuple[Node, ...]:
    return fold.src[2 : 2 + len(fold.attr[1])]


def _yields(fold: Node) -> tuple[Node, ...]:
    return fold.src[2 + len(fold.attr[1]) :]


def _results(fold: Node) -> tuple[Node, ...]:
    return tuple(get(fold, n) for n in range(len(fold.types)))


def _chains(folds: Sequence[Node]) -> list[list[Node]]:
    """The loops, each with those that go on from its states where it ends."""
    after = {_results(f): f for f in folds}
    follows = {f: after.get(_inits(f)) for f in folds}
    before = {f: b for f, b in follows.items() if b is not None and b.src[1] is f.src[0]}
    out = []
    for last in (f for f in folds if f not in before.values()):
        chain = [last]
        while chain[0] in before:
            chain.insert(0, before[chain[0]])
        out.append(chain)
    return out


def _read_between(program: Program, chain: Sequence[Node]) -> bool:
    """Whether anything but the start of the next loop reads what a loop before it ends with."""
    inner = {r for f in chain[:-1] for r in _results(f)}
    readers = [n for n in walk(*program.body) if n not in chain and n.op != "get"]
    inside = [y for f in chain for y in _yields(f)]
    return any(s in inner for n in readers for s in n.src) or any(
        n in inner for y in inside for n in walk(y)
    )


# ---- one chain ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Late:
    """A state x' = rest(x) + product; the product's operands that this step makes."""

    state: int
    rest: Node
    product: Node

    @property
    def made(self) -> tuple[Node, ...]:
        return tuple(s for s in self.product.src if s.carries)


def _staggered(chain: Sequence[Node], taken: set[str]) -> Mapping[Node, Node] | Illegal:
    """The results of the chain's last loop, by what they are in terms of the new loops."""
    axis, names = chain[0].attr[:2]
    lates = [_lates(f) for f in chain]
    states = [late.state for late in lates[0]]
    if any([late.state for late in found] != states for found in lates):
        return Illegal("SPREAD", f"the loops over {axis} add products to different states")
    earlies = [_earlies(f, [m for late in found for m in late.made])
               for f, found in zip(chain, lates)]  # fmt: skip
    alike = [_most_masked(group) for group in zip(*earlies)]
    if not states or not alike or len({len(e) for e in earlies}) > 1 or None in alike:
        return Illegal("NO_PRODUCT", f"no product of loads feeds a sum in the loop over {axis}")
    lo, hi = chain[0].src[0], chain[-1].src[1]
    ahead = [e for e in alike if e is not None]
    early = _States(EARLY, ahead, axis, taken)
    late = _States(LATE, [m for x in lates[0] for m in x.made], axis, taken)
    attr = (axis, (*names, *early.names, *late.names), 1, 0)
    starts = (*_inits(chain[0]),
              *(_at(e, axis, _within(lo, hi)) for e in ahead),
              *(const(0, c.dtype) for c in late.carries))  # fmt: skip
    made: Node | None = None
    for fold, found, own in zip(chain, lates, earlies):
        step = iota(axis, _steps(fold, axis))
        table = dict(zip(own, early.carries)) | _sums(fold, found, late, step, lo)
        rests = {x.state: x.rest for x in found}
        now = [rests.get(n, y) for n, y in enumerate(_yields(fold))]
        yields = (
            *(replace_nodes(y, table) for y in now),
            *(_at(e, axis, _within(step + 1, hi)) for e in ahead),
            *(replace_nodes(m, table) for x in found for m in x.made),
        )
        inits = starts if made is None else _results(made)
        made = Node("fold", (*fold.src[:2], *inits, *yields), attr)
    assert made is not None
    return _behind(chain[-1], made, lates[-1], late, lo, hi)


class _States:
    """New states for values of a loop: a name and a carry for each."""

    def __init__(
        self, wanted: str, values: Sequence[Node], axis: str, taken: set[str]
    ) -> None:
        self.names: list[str] = []
        self.carries: list[Node] = []
        for value in values:
            name = fresh(wanted, taken)
            taken.add(name)
            self.names.append(name)
            kept = {a: e for a, e in value.axes if a != axis}
            self.carries.append(carry(name, value.dtype, kept))


def _carries(fold: Node) -> dict[int, Node]:
    """The carry of each state that the loop reads, by the state's number."""
    number = {name: n for n, name in enumerate(fold.attr[1])}
    found = (n for n in walk(*_yields(fold)) if n.op == "carry" and n.attr[0] in number)
    return {number[str(n.attr[0])]: n for n in found}


def _lates(fold: Node) -> list[_Late]:
    """The states to which the loop adds a product that depends on its states."""
    out = []
    for n, step in enumerate(_yields(fold)):
        if step.op != "map" or step.attr[0] != "add":
            continue
        for product, rest in (step.src, step.src[::-1]):
            # With one operand from memory the other one is this step's own.
            if product.op == "dot" and sum(bool(s.carries) for s in product.src) == 1:
                out.append(_Late(n, rest, product))
                break
    return out


def _earlies(fold: Node, made: Sequence[Node]) -> list[Node]:
    """The outermost products along the loop that no state feeds and that `made` is made of."""
    found = [
        n for n in walk(*made)
        if n.op == "dot" and not n.carries and fold.attr[0] in {a for a, _ in n.free}
    ]  # fmt: skip
    inner = {x for n in found for s in n.src for x in walk(s)}
    return [n for n in found if n not in inner]


def _most_masked(group: Sequence[Node]) -> Node | None:
    """Of the same product in several loops the one with the most masks: it may be read anywhere.
    None where they differ in more."""
    if len({_unmasked(n) for n in group}) > 1:
        return None
    return max(group, key=lambda n: sum(x.op == "load" and x.attr[1] for x in walk(n)))


def _unmasked(value: Node) -> Node:
    memo: dict[Node, Node] = {}
    for node in walk(value):
        src = tuple(memo[s] for s in node.src)
        if node.op == "load" and node.attr[1]:
            memo[node] = Node("load", src[:-2], (node.attr[0], False))
        else:
            memo[node] = node if src == node.src else Node(node.op, src, node.attr)
    return memo[value]


def _steps(fold: Node, axis: str) -> Extent:
    """The steps of the loop's axis, as its coordinate has them."""
    return next(n.attr[1] for n in walk(*_yields(fold)) if n.op == "iota" and n.attr[0] == axis)


def _at(value: Node, axis: str, step: Node) -> Node:
    """The value at another step."""
    memo: dict[Node, Node] = {}
    for node in walk(value):
        if node.op == "iota" and node.attr[0] == axis:
            memo[node] = step
            continue
        src = tuple(memo[s] for s in node.src)
        if node.op == "load":
            src = tuple(simplify(s) if s.dtype in ("int32", "bool") else s for s in src)
        memo[node] = node if src == node.src else Node(node.op, src, node.attr)
    return memo[value]


def _within(step: Node, hi: Node) -> Node:
    """The step, or the last one, or the first where there is none."""
    return simplify(maximum(minimum(step, hi - 1), const(0, "int32")))


def _sums(
    fold: Node, found: Sequence[_Late], late: _States, step: Node, lo: Node
) -> dict[Node, Node]:
    """The states as they were, by their carries: with what the step before left to add."""
    own = _carries(fold)
    previous = simplify(maximum(step - 1, const(0, "int32")))
    held = iter(late.carries)
    out: dict[Node, Node] = {}
    for x in found:
        product = _product(x, fold.attr[0], held, previous, lo < step)
        if x.state in own:
            out[own[x.state]] = own[x.state] + product
    return out


def _product(x: _Late, axis: str, held: Iterator[Node], step: Node, there: Node) -> Node:
    """The product at an earlier step, of what was carried and what is loaded there."""
    operands = tuple(
        next(held) if s.carries else _guarded(_at(s, axis, step), there)
        for s in x.product.src
    )
    return Node("dot", operands, x.product.attr)


def _guarded(value: Node, there: Node) -> Node:
    """The value, or 0 where the test fails; what is loaded as it is is not read there."""
    if value.op == "map" and value.attr[0].startswith("cast:"):
        return Node("map", (_guarded(value.src[0], there),), value.attr)
    if value.op != "load":
        return where(there, value, const(0, value.dtype))
    if there.op == "const" and there.attr[0]:
        return value
    if value.attr[1]:
        *rest, mask, fill = value.src
        return Node("load", (*rest, there & mask, fill), value.attr)
    return Node("load", (*value.src, there, const(0, value.dtype)), (value.attr[0], True))


def _behind(
    last: Node, made: Node, found: Sequence[_Late], late: _States, lo: Node, hi: Node
) -> Mapping[Node, Node]:
    """What the results of the chain are now: the last products are still to be added."""
    results = _results(made)
    first = len(made.types) - len(late.carries)
    held = iter(results[first:])
    end = simplify(maximum(hi - 1, const(0, "int32")))
    out = dict(zip(_results(last), results))
    for x in found:
        product = _product(x, last.attr[0], held, end, simplify(lo < hi))
        out[get(last, x.state)] = results[x.state] + product
    return out
