"""A model's DAG in, its stages out: the values that may be stored, and what each is made of.

A stage is one value with everything that is computed for it alone: at most one sweep of loops
(a reduce, or several over the same axes that share an operand), the maps before, which are
inlined, and the maps after it that have the same axes: its epilogue. The partition joins stages
to tasks; what it stores between them are values of stages and nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autosched.ir.count import factors, nbytes, node_cost, volume
from autosched.ir.index import Env, digits, reindex
from autosched.ir.linear import poly
from autosched.ir.node import Node
from autosched.ir.ops import input_, iota
from autosched.ir.scalar import SCALARS, split_name
from autosched.ir.views import HEAVY, operands, reads_of, sink, walk_values

REUSE = 8  # an operand that a contraction reads this often is worth a value of its own


@dataclass(frozen=True)
class Root:
    """A value that must be stored: its name, the order of its axes, and the user's shape."""

    name: str
    node: Node
    dims: tuple[str, ...]
    extents: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One value that may be stored.

    node: the value in the DAG; local: the same over `input` nodes that stand for the values of
    other stages, views at the leaves; dims: the order of its axes if it is stored; sources: those
    inputs, to the stage each stands for; reads: every input of `local`, those and the model's
    own, with the indices of its axes at each read; loops: the reduces it computes itself.
    """

    index: int
    node: Node
    local: Node
    dims: tuple[str, ...]
    roots: tuple[Root, ...]
    sources: Mapping[Node, int] = field(hash=False)
    reads: Mapping[Node, tuple[Env, ...]] = field(hash=False)
    loops: tuple[Node, ...]

    @property
    def is_contraction(self) -> bool:
        return any(factors(n) is not None for n in self.loops)

    @property
    def is_recurrence(self) -> bool:
        return any(n.op in ("scan", "fold") for n in self.loops)

    @property
    def cost(self) -> float:
        """Weighted operations to compute it."""
        return sum(node_cost(n) for n in walk_values(self.local))


# ---- which values are stages -------------------------------------------------------------------


class _Graph:
    """Positions and users of the values of a DAG; users inside recurrences do not count."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self.roots = {r.node for r in roots}
        self.values = list(walk_values(*(r.node for r in roots)))
        self.at = {node: n for n, node in enumerate(self.values)}
        self.users: dict[Node, list[Node]] = {node: [] for node in self.values}
        for node in self.values:
            for source in dict.fromkeys(operands(node)):
                self.users[source].append(node)
        self._nearest: dict[Node, frozenset[Node]] = {}
        for node in self.values:
            below = (self._nearest[s] for s in operands(node))
            here = frozenset((node,)) if node.op in HEAVY else frozenset().union(*below)
            self._nearest[node] = here

    def nearest(self, node: Node) -> frozenset[Node]:
        """The reduces, scans and folds that a value depends on through maps alone."""
        return self._nearest[node]


def cuts(
    roots: Sequence[Root], extra: Iterable[Node] = (), never: Iterable[Node] = ()
) -> tuple[Node, ...]:
    """The values that may be stored, in an order in which they can be computed.

    Args: extra, further values that the caller wants to be stages; never, operands of
        contractions that are cheaper to compute again.
    """
    graph = _Graph(roots)
    found: dict[Node, None] = dict.fromkeys(r.node for r in roots)
    found |= dict.fromkeys(n for n in extra if n in graph.at)
    owner: dict[Node, Node] = {}
    for node in graph.values:
        if node.op not in HEAVY or node.carries:
            continue
        chain = _epilogue(graph, node)
        for head in chain[:-1]:  # the head of an earlier one that this one shares
            if head in owner and owner[head] in graph.nearest(chain[-1]):
                found.pop(head, None)
        results = [chain[-1]] if len(chain[-1].types) == 1 else graph.users[chain[-1]]
        found |= dict.fromkeys(results)
        owner |= dict.fromkeys(results, node)
    for node in graph.values:
        if node.op == "reduce" and not node.carries and (pair := factors(node)):
            found |= dict.fromkeys(
                value
                for f in pair
                if (value := _operand(graph, node, f, found)) is not None and value not in never
            )
    return tuple(sorted(found, key=graph.at.__getitem__))


def _epilogue(graph: _Graph, start: Node) -> list[Node]:
    """`start` and the values of its axes that everything made of it goes through, in order."""
    axes = start.free
    chain, heap, seen = [start], [(graph.at[start], start)], {start}
    while heap:
        _, node = heapq.heappop(heap)
        if not heap and node is not start:
            chain.append(node)
        if node in graph.roots or not graph.users[node]:
            return chain
        for user in graph.users[node]:
            if user.op not in ("map", "get") or user.free != axes or user.carries:
                return chain
            if not all(_in_time(graph, start, s) for s in user.src if s not in seen):
                return chain
            if user not in seen:
                seen.add(user)
                heapq.heappush(heap, (graph.at[user], user))
    return chain


def _in_time(graph: _Graph, start: Node, operand: Node) -> bool:
    """Whether a map after `start` may read `operand`: known before, or made in the same loops."""
    return all(
        graph.at[other] <= graph.at[start] or _one_sweep(start, other)
        for other in graph.nearest(operand)
    )


def _one_sweep(a: Node, b: Node) -> bool:
    """Whether two reduces run over the same axes and share an operand: gate and up, say."""
    if a.op != "reduce" or b.op != "reduce" or a.attr != b.attr or a.free != b.free:
        return False
    return bool(set(factors(a) or a.src) & set(factors(b) or b.src))


def _operand(graph: _Graph, loop: Node, factor: Node, found: Iterable[Node]) -> Node | None:
    """The value behind a factor of a contraction if it is worth storing: computed by maps from
    stored values, and read again and again by the contraction."""
    space = volume(tuple({a for s in loop.src for a in s.free}))
    while factor.op == "reaxis" or (
        factor.op == "map" and split_name(factor.attr[0])[0] == "cast" and factor not in found
    ):
        factor = factor.src[0]
    if factor in found or factor.op not in ("map", "take") or not graph.nearest(factor):
        return None
    return factor if space >= REUSE * volume(factor.axes) else None


# ---- building stages ---------------------------------------------------------------------------


def stages(
    roots: Sequence[Root], extra: Iterable[Node] = (), never: Iterable[Node] = ()
) -> tuple[Stage, ...]:
    """The stages of a DAG, producers first."""
    by_node: dict[Node, list[Root]] = {}
    for root in roots:
        by_node.setdefault(root.node, []).append(root)
    table: dict[Node, Node] = {}
    index_of: dict[Node, int] = {}
    out: list[Stage] = []
    for node in cuts(roots, extra, never):
        stage = _stage(len(out), node, tuple(by_node.get(node, ())), table, index_of)
        sizes = dict(node.free)
        handle = input_(f"stage {stage.index}", {a: sizes[a] for a in stage.dims}, node.dtype)
        table[node] = handle
        index_of[handle] = stage.index
        out.append(stage)
    return tuple(out)


def _stage(
    index: int,
    node: Node,
    roots: tuple[Root, ...],
    table: Mapping[Node, Node],
    index_of: Mapping[Node, int],
) -> Stage:
    (local,) = sink((expand(node, table),))
    reads = {v: tuple(env for _, env in found) for v, found in reads_of((local,)).items()}
    loops = tuple(n for n in walk_values(local) if n.op in HEAVY and not n.carries)
    natural = memory_order(local)
    dims = natural
    if roots and set(roots[0].dims) == set(node.names):
        dims = roots[0].dims
    sources = {v: index_of[v] for v in reads if v in index_of}
    return Stage(index, node, local, dims, roots, sources, reads, loops)


def expand(node: Node, table: Mapping[Node, Node]) -> Node:
    """`node` over the values that stand for others: `table` is not applied to `node` itself."""
    memo: dict[Node, Node] = {}
    stack = [(node, False)]
    while stack:
        here, done = stack.pop()
        if here in memo:
            continue
        if here is not node and here in table:
            memo[here] = table[here]
        elif done:
            src = tuple(memo.get(s, s) for s in here.src)
            memo[here] = here if src == here.src else Node(here.op, src, here.attr)
        else:
            stack.append((here, True))
            stack.extend((s, False) for s in reversed(operands(here)))
    return memo[node]


def inlined(node: Node, stored: Mapping[Node, Node]) -> Iterator[Node]:
    """The maps and takes that the stage of `node` computes again for itself."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        here = stack.pop()
        if here in seen or (here is not node and here in stored):
            continue
        seen.add(here)
        if here.op in ("map", "take") and here is not node and not here.carries:
            yield here
        stack.extend(operands(here))


# ---- the order of axes in memory ---------------------------------------------------------------


def memory_order(node: Node) -> tuple[str, ...]:
    """The axes of a value in the order that its operands suggest: outermost first, innermost
    the axis along which an operand lies in memory."""
    memo: dict[Node, tuple[str, ...]] = {}
    for here in walk_values(node):
        row = _ORDERS.get(here.op, _order_merged)
        known = dict.fromkeys(a for a in row(here, memo) if a in dict(here.free))
        memo[here] = (*known, *(a for a, _ in here.free if a not in known))
    return memo[node]


Orders = Mapping[Node, tuple[str, ...]]


def _order_input(node: Node, memo: Orders) -> tuple[str, ...]:
    return tuple(a for a, _ in node.attr[1])


def _order_view(node: Node, memo: Orders) -> tuple[str, ...]:
    env = dict(zip(node.attr[0], node.src[1:]))
    out: list[str] = []
    for axis in memo[node.src[0]]:
        out.extend(_by_stride(env[axis]) if axis in env else (axis,))
    return tuple(out)


def _by_stride(index: Node) -> list[str]:
    terms = sorted(poly(index).items(), key=lambda t: -abs(t[1]))
    return [a for mono, _ in terms for atom in mono for a in atom.names]


def _order_take(node: Node, memo: Orders) -> tuple[str, ...]:
    value, index = node.src
    out: list[str] = []
    for axis in memo[value]:
        out.extend(memo[index] if axis == node.attr[0] else (axis,))
    return tuple(out)


def _order_reduce(node: Node, memo: Orders) -> tuple[str, ...]:
    pair = factors(node)
    if pair is None:
        return tuple(a for s in node.src for a in memo[s])
    kept = set(node.names) if len(node.types) == 1 else set()
    first, second = (memo[f] for f in pair)
    if first and first[-1] in kept and not (second and second[-1] in kept):
        first, second = second, first
    return (*first, *second)


def _order_merged(node: Node, memo: Orders) -> tuple[str, ...]:
    parts = sorted(node.src, key=lambda s: -len(s.free))
    return tuple(a for s in parts for a in memo[s])


_ORDERS = {
    "input": _order_input,
    "reaxis": _order_view,
    "take": _order_take,
    "reduce": _order_reduce,
}


# ---- facts about reads -------------------------------------------------------------------------


def same_axes(consumer: Stage, handle: Node) -> dict[str, str]:
    """The axes of a value that the consumer reads at its own coordinate, each with the
    consumer's name for it."""
    free = dict(consumer.node.free)
    taken = {n.attr[0] for n in walk_values(consumer.local) if n.op == "take"}
    out: dict[str, str] = {}
    for axis, extent in handle.attr[1]:
        indices = {env[axis] for env in consumer.reads[handle]}
        if len(indices) != 1:
            continue
        (index,) = indices
        name = index.attr[0] if index.op == "iota" else None
        if name not in taken and index.attr[1:2] == (extent,) and free.get(name or "") == extent:
            out[axis] = str(name)
    return out


def has_special(node: Node) -> bool:
    return node.op == "map" and SCALARS[split_name(node.attr[0])[0]].cost == "special"


def leaf_bytes(local: Node) -> int:
    """Bytes that must be read to compute a sunk value: of each leaf what its reads reach."""
    total: dict[Node, int] = {}
    for value, reads in reads_of((local,)).items():
        reached = sum(nbytes(node) for node, _ in reads)
        total[value] = min(nbytes(value), reached)
    return sum(total.values())


def strip_views(root: Root) -> Root:
    """A root that is a view of another value as that value, where the memory is the same."""
    node, env = root.node, {a: iota(a, e) for a, e in root.node.free}
    while node.op == "reaxis":
        value, *exprs = node.src
        at = dict(zip(node.attr[0], exprs))
        env = {a: reindex(at[a], env) if a in at else env[a] for a in value.names}
        node = value
    if node is root.node or node.op in ("input", "const", "iota"):
        return root
    dims: list[tuple[str, int]] = []
    left = list(zip(root.dims, root.extents))
    runs = {}
    for axis, extent in node.free:
        parts = digits(env[axis], extent) if isinstance(extent, int) else None
        if parts is None:
            return root
        runs[parts[0][0]] = (axis, extent, parts)
    while left:
        axis, extent, parts = runs.pop(left[0][0], ("", 0, ()))
        if not parts or tuple(left[: len(parts)]) != parts:
            return root
        dims.append((axis, extent))
        left = left[len(parts) :]
    if runs:
        return root
    names, extents = tuple(a for a, _ in dims), tuple(e for _, e in dims)
    return Root(root.name, node, names, extents, root.shape)
