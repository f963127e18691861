"""Values seen through `reaxis` in, the same values with the views at the leaves out.

`sink` moves every view down to what holds memory or is computed by a loop of its own (inputs,
reduce, scan, fold); `coalesce` then gives the two ends of a renaming one name wherever no node
has both. What views remain are true index arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

import networkx as nx

from autosched.ir.index import (
    Env,
    along,
    digits,
    is_identity,
    reindex,
    renaming,
    substitute,
    tidy,
)
from autosched.ir.node import Node, walk
from autosched.ir.ops import const, get, iota, reaxis

HEAVY = frozenset(("reduce", "scan", "fold"))  # computed by loops of their own
Rename = Callable[[str, object], str]  # (axis, extent) -> new name


def operands(node: Node) -> tuple[Node, ...]:
    """The values that a node is computed from; the indices of a `reaxis` are none."""
    return node.src[:1] if node.op == "reaxis" else node.src


def walk_values(*roots: Node) -> Iterable[Node]:
    """Every value below `roots` once, sources before users; indices are skipped."""
    seen: set[Node] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if done:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((s, False) for s in reversed(operands(node)) if s not in seen)


def read(value: Node, env: Env) -> Node:
    """`value` at `env`; no node for what reads as it is, axes in the order of their names."""
    todo = {a: env[a] for a, _ in value.free if a in env and not is_identity(value, a, env[a])}
    return reaxis(value, todo)


ANYWHERE = const(-1, "int32")  # the index of an axis that is read at computed places


def reads_of(roots: Sequence[Node]) -> dict[Node, list[tuple[Node, Env]]]:
    """For each input below sunk roots: the nodes that stand for a read of it (itself or a
    `reaxis` of it), each with the index of every axis."""
    out: dict[Node, list[tuple[Node, Env]]] = {}

    def add(value: Node, node: Node, gathered: str = "") -> None:
        env = {a: iota(a, e) for a, e in value.attr[1]}
        env |= dict(zip(node.attr[0], node.src[1:])) if node is not value else {}
        env |= {gathered: ANYWHERE} if gathered in env else {}
        found = out.setdefault(value, [])
        if (node, env) not in found:
            found.append((node, env))

    for root in roots:
        if root.op == "input":
            add(root, root)
    for node in walk_values(*roots):
        for value in operands(node):
            gathered = node.attr[0] if node.op == "take" and value is node.src[0] else ""
            if value.op == "input" and node.op == "reaxis":
                add(value, node)
            elif value.op == "input":
                add(value, value, gathered)
            elif gathered and value.op == "reaxis" and value.src[0].op == "input":
                out[value.src[0]] = [r for r in out[value.src[0]] if r[0] is not value]
                add(value.src[0], value, gathered)
    return out


# ---- sinking ----------------------------------------------------------------------------------


Rows = Generator[tuple[Node, Env], Node, Node]  # asks for operands at indices, returns a value


class _Sinker:
    """Values at indices; rows are generators, so that deep graphs need no deep recursion."""

    def __init__(self) -> None:
        self._memo: dict[tuple[Node, tuple[tuple[str, Node], ...]], Node] = {}
        self._fresh = 0

    def at(self, node: Node, env: Env) -> Node:
        """`node` at `env` with all views at the leaves."""
        asked: tuple[Node, Env] | None = (node, env)
        found: Node | None = None
        stack: list[tuple[tuple[Node, tuple[tuple[str, Node], ...]], Rows]] = []
        while True:
            if asked is not None:
                node, env = asked
                kept = {
                    a: env[a] for a, _ in node.free
                    if a in env and not is_identity(node, a, env[a])
                }  # fmt: skip
                key = (node, tuple(kept.items()))
                found = self._memo.get(key)
                if found is None:
                    stack.append((key, _ROWS.get(node.op, _Sinker._leaf)(self, node, kept)))
            if not stack:
                assert found is not None
                return found
            try:
                asked = stack[-1][1].send(found)
                found = None
            except StopIteration as done:
                found = self._memo[stack.pop()[0]] = done.value
                asked = None

    def _leaf(self, node: Node, env: Env) -> Rows:
        return read(node, env)
        yield  # a generator like the other rows

    def _same(self, node: Node, env: Env) -> Rows:
        src = []
        for source in node.src:
            src.append((yield source, env))
        return Node(node.op, tuple(src), node.attr)

    def _iota(self, node: Node, env: Env) -> Rows:
        return substitute(node, env)
        yield

    def _loops(self, node: Node, env: Env) -> Rows:
        src = []
        for source in node.src:
            src.append((yield source, {}))
        sizes = {a: e for s in node.src for a, e in s.free}
        bound = {"reduce": node.attr[1], "scan": (node.attr[1],)}.get(node.op, ())
        kept = along(tuple(src), {a: sizes[a] for a in bound})
        return read(Node(node.op, kept, node.attr), env)

    def _get(self, node: Node, env: Env) -> Rows:
        return read(get((yield node.src[0], {}), node.attr[0]), env)

    def _reaxis(self, node: Node, env: Env) -> Rows:
        value, *exprs = node.src
        inner = {a: reindex(e, env) for a, e in zip(node.attr[0], exprs)}
        inner |= {a: e for a, e in env.items() if a in value.names and a not in inner}
        return (yield value, inner)

    def _take(self, node: Node, env: Env) -> Rows:
        value, index = node.src
        axis = node.attr[0]
        inner = {a: e for a, e in env.items() if a != axis}
        if any(axis in e.names for e in inner.values()):  # the bound axis would capture it
            self._fresh += 1
            fresh = f"{axis}~{self._fresh}"
            inner[axis], axis = iota(fresh, value.extent(axis)), fresh
        at = yield index, env
        if (where := coordinate(at)) is not None:
            return (yield value, {**inner, node.attr[0]: where})
        read_from = yield value, inner
        return Node("take", (read_from, at), (axis,)) if axis in read_from.names else read_from


_ROWS: Mapping[str, Callable[[_Sinker, Node, Env], Rows]] = {
    "const": _Sinker._same,
    "iota": _Sinker._iota,
    "map": _Sinker._same,
    "get": _Sinker._get,
    "reaxis": _Sinker._reaxis,
    "take": _Sinker._take,
    **dict.fromkeys(HEAVY, _Sinker._loops),
}


def coordinate(index: Node) -> Node | None:
    """An integer value as an int32 index, where it is a function of coordinates alone."""
    for node in walk(index):
        if node.op not in ("iota", "const", "map") or node.dtype not in ("int32", "int64"):
            return None
    return tidy(_as_int32(index))


def _as_int32(node: Node) -> Node:
    if node.op == "map" and node.attr[0] in ("cast:int32", "cast:int64"):
        return _as_int32(node.src[0])
    if node.op in ("iota", "const"):
        attr = (*node.attr[:-1], "int32")
        return Node(node.op, (), attr)
    return Node(node.op, tuple(_as_int32(s) for s in node.src), node.attr)


def sink(roots: Sequence[Node]) -> tuple[Node, ...]:
    """The roots with every view at an input or directly on a reduce, scan or fold."""
    sinker = _Sinker()
    return tuple(sinker.at(root, {}) for root in roots)


# ---- renaming ---------------------------------------------------------------------------------


def _axis_sizes(nodes: Iterable[Node]) -> dict[str, object]:
    return {a: e for node in nodes for a, e in node.free}


def rename_axes(roots: Sequence[Node], name: Rename) -> tuple[Node, ...]:
    """The roots with every axis, bound or free, called `name(axis, extent)`.

    `name` must give axes that meet in one node different names. Indices are brought to the form
    that the new names ask for.
    """
    memo: dict[Node, Node] = {}
    for node in walk(*roots):
        src = tuple(memo[s] for s in node.src)
        memo[node] = _renamed(node, src, name)
    return tuple(memo[root] for root in roots)


def _renamed(node: Node, src: tuple[Node, ...], name: Rename) -> Node:
    op, attr = node.op, node.attr
    if op == "input":
        dims = tuple((name(a, e), e) for a, e in attr[1])
        return Node(op, src, (attr[0], dims, *attr[2:]))
    if op == "iota":
        return Node(op, src, (name(attr[0], attr[1]), *attr[1:]))
    if op == "carry":
        axes = tuple(sorted((name(a, e), e) for a, e in attr[2]))
        return Node(op, src, (*attr[:2], axes))
    sizes = _axis_sizes(node.src)
    if op == "reaxis":
        exprs = {name(a, sizes[a]): tidy(e) for a, e in zip(attr[0], src[1:]) if a in sizes}
        return read(src[0], exprs)
    if op == "take":
        return Node(op, src, (name(attr[0], sizes[attr[0]]),))
    if op == "reduce":
        return Node(op, src, (attr[0], tuple(name(a, sizes[a]) for a in attr[1])))
    if op == "scan":
        return Node(op, src, (attr[0], name(attr[1], sizes[attr[1]]), *attr[2:]))
    if op == "fold":
        axis = attr[0]
        return Node(op, src, (name(axis, sizes.get(axis, 0)), *attr[1:]))
    return Node(op, src, attr)


def _meeting(node: Node) -> dict[str, object]:
    """The axes that one node sees together, free or bound."""
    if node.op in HEAVY:
        return _axis_sizes((*node.src, node))
    if node.op == "take":
        return _axis_sizes(node.src)
    return dict(node.free)


def _pairs(values: Sequence[Node]) -> Iterable[tuple[tuple[str, object], tuple[str, object]]]:
    """The two ends of every renaming read, reads of inner values before those of inputs."""
    views = [v for v in values if v.op == "reaxis"]
    for view in sorted(views, key=lambda v: v.src[0].op == "input"):
        sizes = dict(view.src[0].free)
        for axis, expr in zip(view.attr[0], view.src[1:]):
            if expr.op == "iota" and expr.attr[1] == sizes[axis]:
                yield (axis, sizes[axis]), (expr.attr[0], sizes[axis])


def coalesce(roots: Sequence[Node]) -> tuple[tuple[Node, ...], Rename]:
    """The roots with renamings resolved by giving both ends one name; and the names given.

    As in register coalescing: two names become one if they never meet in a node.
    """
    values = list(walk_values(*roots))
    meets = nx.Graph()
    for value in values:
        here = tuple(_meeting(value).items())
        meets.add_nodes_from(here)
        meets.add_edges_from((a, b) for i, a in enumerate(here) for b in here[:i])
    leader: dict[tuple[str, object], tuple[str, object]] = {}

    def find(axis: tuple[str, object]) -> tuple[str, object]:
        while axis in leader:
            axis = leader[axis]
        return axis

    for old, new in _pairs(values):
        a, b = find(old), find(new)
        if a == b or meets.has_edge(a, b):
            continue
        leader[a] = b
        meets.add_edges_from((b, other) for other in tuple(meets[a]))
        meets.remove_node(a)
    names: dict[tuple[str, object], str] = {}
    taken: dict[str, object] = {}

    def name(axis: str, extent: object) -> str:
        key = find((axis, extent))
        if key not in names:
            free = key[0]
            while free in taken:  # one name with two extents: keep them apart
                free += "'"
            names[key], taken[free] = free, extent
        return names[key]

    return rename_axes(roots, name), name


# ---- views that a loop can take in ------------------------------------------------------------


def _is_split(view: Node) -> bool:
    """Whether a view reads each element of its value once: axes renamed or split whole."""
    value, *exprs = view.src
    seen: list[str] = [a for a in value.names if a not in view.attr[0]]
    for axis, expr in zip(view.attr[0], exprs):
        extent = value.extent(axis)
        parts = digits(expr, extent) if isinstance(extent, int) else None
        if parts is None:
            return False
        seen.extend(a for a, _ in parts)
    return len(seen) == len(set(seen))


def push(roots: Sequence[Node]) -> tuple[Node, ...]:
    """The roots with each reduce that is only read through one and the same split computed in
    the axes of that split: sum(k, x[m,k] w[k,n]) read at n = h*32 + d becomes x[m,k] w[k, h*32+d].
    """
    while True:
        readers: dict[Node, set[Node]] = {}
        for node in walk_values(*roots):
            for value in operands(node):
                if value.op == "reduce":
                    readers.setdefault(value, set()).add(node)
        done = [v for v, users in readers.items() if v not in roots and _one_split(users)]
        if not done:
            return tuple(roots)
        (view,) = readers[done[0]]
        roots = sink(_through(roots, view))


def _one_split(users: set[Node]) -> bool:
    if len(users) != 1:
        return False
    (view,) = users
    return view.op == "reaxis" and renaming(view) is None and _is_split(view)


def _through(roots: Sequence[Node], view: Node) -> tuple[Node, ...]:
    value, *exprs = view.src
    monoid, axes = value.attr
    used = {a for e in exprs for a in e.names}
    env = dict(zip(view.attr[0], exprs))
    bound = {a: f"{a}~" if a in used else a for a in axes}
    sizes = _axis_sizes(value.src)
    env |= {a: iota(b, sizes[a]) for a, b in bound.items() if a != b}
    src = tuple(read(s, {a: e for a, e in env.items() if a in s.names}) for s in value.src)
    new = Node("reduce", src, (monoid, tuple(bound[a] for a in axes)))
    memo = {view: new}
    for node in walk_values(*roots):
        if node not in memo:
            inner = tuple(memo.get(s, s) for s in node.src)
            memo[node] = node if inner == node.src else Node(node.op, inner, node.attr)
    return tuple(memo[r] for r in roots)
