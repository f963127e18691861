"""inline: choose which values get a buffer; every other producer goes into its consumers.

    before:  y[m,n] = x[m,n] - mean[m];  mean[m] = reduce sum c ...          (algebra)
    after:   forall m:            store mean[m] = reduce sum c ...           (tile, one nest each)
             forall m: forall n:  store y[m,n]  = load x[m,n] - load mean[m]
    args:    keep, the numbers of the candidates (see `candidates`) that get a buffer.
    Illegal: NOT_ALGEBRA, NO_SUCH_CANDIDATE, VARYING_BOUNDS (a fold over an interval that is not
             the same for all).

A value that is not kept is computed again at every place that reads it: free where the consumer
runs over the same axes (an epilogue, a prologue), a factor of the consumer's other axes where not.
`propose` keeps what the algebra says is dear to repeat. Folds become loops over statements, and
scans are folds (see `lower`).
"""

from __future__ import annotations

from math import prod

from autosched.ir.lower import fold_parts, lower, owners
from autosched.ir.node import Axes, Node, Program, walk
from autosched.ir.ops import join_axes
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.scalar import SCALARS, split_name
from autosched.ir.scans import without_scans


def candidates(program: Program) -> tuple[Node, ...]:
    """The values that may get a buffer: maps and reduces that are not a program output."""
    outs = set(program.body)
    owner = owners(program)
    return tuple(
        n
        for n in walk(*program.body)
        if n not in outs
        and len(n.types) == 1
        and (n.op in ("map", "reduce") or (n.op == "get" and n.src[0].op == "reduce"))
        and not (n.carries and owner.get(n) is None)
    )


def is_dear(node: Node) -> bool:
    """Whether computing the value anew costs more than reading it: a reduce or special function."""
    if node.op in ("reduce", "get"):
        return True
    return any(
        n.op == "map" and SCALARS[split_name(n.attr[0])[0]].cost == "special" for n in _local(node)
    )


def _local(node: Node) -> list[Node]:
    """The maps that compute `node` from loads, reduces and other kept values."""
    out, stack = [], [node]
    while stack:
        n = stack.pop()
        if n.op == "map":
            out.append(n)
            stack.extend(n.src)
    return out


class _Elements:
    """How many elements a value has over the whole run, the steps of its folds included."""

    def __init__(self, program: Program) -> None:
        self.owner = owners(program)

    def axes(self, node: Node, axes: Axes) -> dict[str, int]:
        """The axes with those of the folds in whose bodies the node is."""
        out = {a: _int(e) for a, e in axes}
        fold = self.owner.get(node)
        while fold is not None:
            out |= bound_extents(fold)
            fold = self.owner.get(fold)
        return out

    def is_number(self, node: Node) -> bool:
        """Whether the node is a map of a step alone, for which no buffer pays."""
        return node.op == "map" and set(node.names) <= set(self.axes(node, ()))

    def __call__(self, node: Node, axes: Axes) -> float:
        return float(prod(self.axes(node, axes).values()))


def recomputation(program: Program) -> dict[Node, float]:
    """How often each candidate's elements are computed if dear candidates above it are kept.

    Uses in one nest under the same loops share one computation; so what counts is the distinct
    contexts of a value: the nest that reads it, and the axes it runs over there.
    """
    elements = _Elements(program)
    contexts: dict[Node, dict[tuple[Node, frozenset[str]], float]] = {}

    def nest(root: Node, like: Node, axes: Axes) -> dict[tuple[Node, frozenset[str]], float]:
        return {(root, frozenset(elements.axes(like, axes))): elements(like, axes)}

    for root in program.body:
        contexts.setdefault(root, {}).update(nest(root, root, root.axes))
    result: dict[Node, float] = {}
    cands = set(candidates(program))
    for node in reversed(list(walk(*program.body))):
        mine = contexts.get(node, {})
        if node.op == "fold":
            steps = bound_extents(node)
            for operand, axes, stepped in _fold_nests(node):
                every = join_axes(axes, steps.items()) if stepped else axes
                contexts.setdefault(operand, {}).update(nest(operand, node, every))
            continue
        if node in cands:
            result[node] = sum(mine.values()) / max(elements(node, node.axes), 1)
            if result[node] > 1 and is_dear(node):
                mine = nest(node, node, node.axes)
        bound = bound_extents(node)
        inner = {
            (root, axes | set(bound)): count * prod(bound.values())
            for (root, axes), count in mine.items()
        }
        for s in node.src:
            contexts.setdefault(s, {}).update(inner)
    return result


def bound_extents(node: Node) -> dict[str, int]:
    """The axes that a reduce or a fold runs over, with their extents."""
    if node.op not in ("reduce", "fold"):
        return {}
    bound = node.attr[1] if node.op == "reduce" else (node.attr[0],)
    extents = {a: e for s in node.src for a, e in s.free}
    return {a: _int(extents.get(a, 1)) for a in bound}


def _fold_nests(node: Node) -> list[tuple[Node, Axes, bool]]:
    """What a fold stores: (value, its axes, whether at every step), initial states first."""
    names = node.attr[1]
    _, inits, yields, outs = fold_parts(node)
    states, stacked = node.types[: len(names)], node.types[len(names) :]
    return [
        *((v, t.axes, False) for v, t in zip(inits, states)),
        *((v, t.axes, True) for v, t in zip(yields, states)),
        *((v, t.axes, True) for v, t in zip(outs, stacked)),
    ]


def _int(extent: object) -> int:
    return extent if isinstance(extent, int) else 1


def propose(program: Program, target: object = None) -> tuple[Action, ...]:
    """Keep what is dear and read more often than once."""
    if program.level != "algebra":
        return ()
    program = without_scans(program)
    number = {n: k for k, n in enumerate(candidates(program))}
    return (act("inline", keep=tuple(sorted(number[n] for n in dear(program)))),)


def dear(program: Program) -> tuple[Node, ...]:
    """The candidates that are dear and that a program which keeps none computes repeatedly."""
    cands = candidates(program)
    factor = recomputation(program)
    users = _users(program)
    found = {
        _last_map(n, users, set(cands)) for n in cands if factor.get(n, 1) > 1 and is_dear(n)
    }
    return tuple(n for n in cands if n in found)


def _users(program: Program) -> dict[Node, list[Node]]:
    users: dict[Node, list[Node]] = {}
    for node in walk(*program.body):
        for s in set(node.src):
            users.setdefault(s, []).append(node)
    return users


def _last_map(node: Node, users: dict[Node, list[Node]], cands: set[Node]) -> Node:
    """The last of the maps that alone read a kept value: masked scores, not bare ones."""
    while True:
        readers = users.get(node, [])
        if len(readers) != 1 or readers[0].op != "map" or readers[0] not in cands:
            return node
        if readers[0].axes != node.axes:
            return node
        (node,) = readers


def apply(program: Program, action: Action) -> Program | Illegal:
    if program.level != "algebra":
        return Illegal("NOT_ALGEBRA", "inline starts from an algebra program")
    program = without_scans(program)
    cands = candidates(program)
    keep = action["keep"]
    if any(k >= len(cands) for k in keep):
        return Illegal("NO_SUCH_CANDIDATE", f"the program has {len(cands)} candidates")
    folds = [n for n in walk(*program.body) if n.op == "fold"]
    if any(b.free for f in folds for b in fold_parts(f)[0]):
        return Illegal("VARYING_BOUNDS", "a fold runs over an interval that varies")
    return lower(program, [cands[k] for k in keep])
