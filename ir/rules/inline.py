"""inline: choose which values get a buffer; every other producer goes into its consumers.

    before:  y[m,n] = x[m,n] - mean[m];  mean[m] = reduce sum c ...          (algebra)
    after:   forall m:            store mean[m] = reduce sum c ...           (tile, one nest each)
             forall m: forall n:  store y[m,n]  = load x[m,n] - load mean[m]
    args:    keep, the numbers of the candidates (see `candidates`) that get a buffer.
    Illegal: NOT_ALGEBRA, NO_SUCH_CANDIDATE, SCAN_INSIDE (a scan or fold is always kept).

A value that is not kept is computed again at every place that reads it: free where the consumer
runs over the same axes (an epilogue, a prologue), a factor of the consumer's other axes where not.
`propose` keeps what the algebra says is dear to repeat.
"""

from __future__ import annotations

from math import prod

from autosched.ir.expand import Expander
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import buffer, const, forall, iota, kernel, store
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.scalar import SCALARS, split_name

CANDIDATE_OPS = ("reduce", "map", "fold", "scan")


def candidates(program: Program) -> tuple[Node, ...]:
    """The values that may get a buffer: single-valued, over axes, not a program output."""
    outs = set(program.body)
    inside = {n for f in walk(*program.body) if f.op == "fold" for n in _fold_body(f)}
    return tuple(
        n
        for n in walk(*program.body)
        if n not in outs
        and n not in inside
        and len(n.types) == 1
        and n.axes
        and (n.op in CANDIDATE_OPS or (n.op == "get" and n.src[0].op in CANDIDATE_OPS))
    )


def _fold_body(node: Node) -> set[Node]:
    """What depends on the step or the state of a fold, and so can't live outside of it."""
    axis, names, n_intervals, _ = node.attr
    body = node.src[2 * n_intervals + len(names) :]
    return {n for n in walk(*body) if n.carries & set(names) or axis in n.names}


def is_dear(node: Node) -> bool:
    """Whether computing the value anew costs more than reading it: a reduce or special function."""
    if node.op in ("reduce", "get", "fold", "scan"):
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


def _size(axes: tuple[tuple[str, object], ...]) -> int:
    return prod(e if isinstance(e, int) else 1 for _, e in axes)


def recomputation(program: Program) -> dict[Node, float]:
    """How often each candidate's elements are computed if dear candidates above it are kept.

    Uses in one nest under the same loops share one computation; so what counts is the distinct
    contexts of a value: the nest that reads it, and the axes it runs over there.
    """
    contexts: dict[Node, dict[tuple[Node, frozenset[str]], float]] = {}
    for root in program.body:
        contexts.setdefault(root, {})[(root, frozenset(root.names))] = float(_size(root.axes))
    result: dict[Node, float] = {}
    cands = set(candidates(program))
    for node in reversed(list(walk(*program.body))):
        mine = contexts.get(node, {})
        if node in cands:
            result[node] = sum(mine.values()) / max(_size(node.axes), 1)
            if result[node] > 1 and is_dear(node):
                mine = {(node, frozenset(node.names)): float(_size(node.axes))}
        bound = _bound_extents(node)
        inner = {
            (root, axes | set(bound)): count * prod(bound.values())
            for (root, axes), count in mine.items()
        }
        for s in node.src:
            contexts.setdefault(s, {}).update(inner)
    return result


def _bound_extents(node: Node) -> dict[str, int]:
    """The axes that a node runs over by itself, with their extents."""
    names = {"reduce": 1, "scan": 1, "fold": 0}.get(node.op)
    if names is None:
        return {}
    bound = node.attr[names] if node.op == "reduce" else (node.attr[names],)
    extents = {a: e for s in node.src for a, e in s.free}
    return {a: _int(extents.get(a, 1)) for a in bound}


def _int(extent: object) -> int:
    return extent if isinstance(extent, int) else 1


def propose(program: Program, target: object = None) -> tuple[Action, ...]:
    """Keep what is dear and read more often than once."""
    if program.level != "algebra":
        return ()
    cands = candidates(program)
    factor = recomputation(program)
    number = {n: k for k, n in enumerate(cands)}
    users = _users(program)
    dear = sorted(
        {
            number[_last_map(n, users, number)]
            for n in cands
            if _must(n) or (factor.get(n, 1) > 1 and is_dear(n))
        }
    )
    return (act("inline", keep=tuple(dear)),)


def _users(program: Program) -> dict[Node, list[Node]]:
    users: dict[Node, list[Node]] = {}
    for node in walk(*program.body):
        for s in set(node.src):
            users.setdefault(s, []).append(node)
    return users


def _last_map(node: Node, users: dict[Node, list[Node]], number: dict[Node, int]) -> Node:
    """The last of the maps that alone read a kept value: masked scores, not bare ones."""
    while True:
        readers = users.get(node, [])
        if len(readers) != 1 or readers[0].op != "map" or readers[0] not in number:
            return node
        if readers[0].axes != node.axes:
            return node
        (node,) = readers


def _must(node: Node) -> bool:
    return node.op in ("fold", "scan") or (node.op == "get" and node.src[0].op != "reduce")


def apply(program: Program, action: Action) -> Program | Illegal:
    if program.level != "algebra":
        return Illegal("NOT_ALGEBRA", "inline starts from an algebra program")
    cands = candidates(program)
    keep = action["keep"]
    if any(k >= len(cands) for k in keep):
        return Illegal("NO_SUCH_CANDIDATE", f"the program has {len(cands)} candidates")
    if any(n.op == "scan" and n not in program.body for n in walk(*program.body)) or any(
        n.op == "scan" for n in program.body
    ):
        return Illegal("SCAN_INSIDE", "a scan is first written as a fold")
    return _lower(program, [cands[k] for k in keep])


def _lower(program: Program, kept: list[Node]) -> Program:
    """One nest per kept value and output, in dependence order.

    Nests are written consumers first, because a kept value takes the axis names of its first
    reader: a loop can be shared by two nests only where it has one name in both, and importers
    leave renames between producers and consumers.
    """
    order = _axis_order(program)
    dims_of = {n: tuple(sorted(n.names, key=lambda a: order.get(a, len(order)))) for n in kept}
    placed = {
        n: (buffer(f"t{i}", [n.extent(a) for a in dims_of[n]], n.dtype, "scratch"), dims_of[n])
        for i, n in enumerate(kept)
    }
    names: dict[Node, dict[str, str]] = {}
    body: list[Node] = []
    for value, out in reversed(list(zip(program.body, program.outputs))):
        env = {a: iota(a, e) for a, e in zip(out.dims, out.extents)}
        handle = buffer(out.name, out.extents, out.dtype, "output")
        body.append(_nest(value, out.dims, env, handle, Expander(placed, names)))
    for node in reversed(kept):
        dims = dims_of[node]
        env = {a: iota(names.get(node, {}).get(a, a), node.extent(a)) for a in dims}
        others = {k: v for k, v in placed.items() if k is not node}
        body.append(_nest(node, dims, env, placed[node][0], Expander(others, names)))
    return Program("tile", program.inputs, program.outputs, (kernel("main", body[::-1]),))


def _nest(
    value: Node, dims: tuple[str, ...], env: dict[str, Node], handle: Node, expander: Expander
) -> Node:
    stmt = store(handle, expander.at(value, env), [env[a] for a in dims])
    for axis in reversed(dims):
        name, extent, _ = env[axis].attr
        hi = const(extent, "int32") if isinstance(extent, int) else extent
        stmt = forall(name, 0, hi, "serial", [stmt])
    return stmt


def _axis_order(program: Program) -> dict[str, int]:
    """Outputs first in memory order, then inputs: the order of axes in scratch."""
    names: dict[str, int] = {}
    for out in program.outputs:
        for axis in out.dims:
            names.setdefault(axis, len(names))
    for node in walk(*program.body):
        for axis, _ in node.free:
            names.setdefault(axis, len(names))
    return names
