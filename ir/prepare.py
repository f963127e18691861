"""A model's values in, equal ones out in which equal axes have one name and sums are bare.

before:  x[m,c] + (sum(k, a[m,k] * w[k,n]) read at n = c)      sum(d, q[i,d] * c * k[j,d])
after:   x[m,c] +  sum(k, a[m,k] * w[k, n = c])                sum(d, q[i,d] * k[j,d]) * c
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from autosched.ir.count import volume
from autosched.ir.index import along, renaming, substitute, tidy
from autosched.ir.node import Extent, Node
from autosched.ir.ops import iota, reaxis, rename
from autosched.ir.scalar import split_name
from autosched.ir.views import operands, walk_values

_HOIST_TYPES = ("float64", "float32")  # a narrower type may overflow without its factor
Names = Mapping[str, str]  # old name -> new name, of every axis


def prepare(roots: Sequence[Node]) -> tuple[Node, ...]:
    """The roots with renamings moved to where values are made, and factors that a sum
    does not need moved out of it."""
    return _hoist(_rename_early(roots))


# ---- renamings early ---------------------------------------------------------------------------


def _rename_early(roots: Sequence[Node]) -> tuple[Node, ...]:
    """The roots with each value computed in the axes that all of its readers rename it to."""
    values = list(walk_values(*roots))
    asked: dict[Node, list[dict[str, str]]] = {}
    for root in roots:
        asked.setdefault(root, []).append(_same(root))
    names: dict[Node, dict[str, str]] = {}
    for node in reversed(values):
        wishes = asked[node]
        agreed = all(w == wishes[0] for w in wishes) and _may_rename(node)
        names[node] = wishes[0] if agreed else _same(node)
        for source, wish in _wishes(node, names[node]):
            asked.setdefault(source, []).append(wish)
    memo: dict[Node, Node] = {}
    for node in values:
        src = tuple(
            _renamed(memo[s], names[s], wish) for s, wish in _wishes(node, names[node])
        )  # fmt: skip
        memo[node] = _rebuilt(node, src, names[node])
    return tuple(memo[root] for root in roots)


def _same(node: Node) -> dict[str, str]:
    return {a: a for a, _ in node.free}


def _may_rename(node: Node) -> bool:
    """Whether a value can be computed in axes of other names at no cost."""
    if node.carries:
        return False
    if node.op == "reduce":
        return len(node.types) == 1
    return node.op in ("map", "iota", "const") or renaming(node) is not None


def _bound(node: Node, names: Names) -> dict[str, str]:
    """New names of the axes that a reduce binds: their own, unless a free axis has got it."""
    taken = set(names.values())
    out = {}
    for axis in node.attr[1]:
        new = axis
        while new in taken:
            new += "'"
        taken.add(new)
        out[axis] = new
    return out


def _wishes(node: Node, names: Names) -> Iterator[tuple[Node, dict[str, str]]]:
    """For each operand the names in which a node over `names` reads its axes."""
    table = dict(names)
    if node.op == "reduce" and _may_rename(node):
        table |= _bound(node, names)
    view = renaming(node) if not node.carries else None
    for source in operands(node):
        if view is not None:
            yield source, {a: names[view.get(a, a)] for a in source.names}
        elif node.op == "map" or (node.op == "reduce" and _may_rename(node)):
            yield source, {a: table[a] for a, _ in source.free}
        else:
            yield source, _same(source)


def _renamed(value: Node, have: Names, want: Names) -> Node:
    """`value`, whose axes are called as `have` says, with the names of `want`."""
    return rename(value, {have[a]: want[a] for a in have if have[a] != want[a]})


def _rebuilt(node: Node, src: tuple[Node, ...], names: Names) -> Node:
    if node.op == "iota":
        return iota(names[node.attr[0]], *node.attr[1:])
    if node.op == "reaxis":
        if renaming(node) is not None and not node.carries:
            return src[0]
        env = {a: iota(new, dict(node.free)[a]) for a, new in names.items() if a != new}
        at = {a: tidy(substitute(e, env)) for a, e in zip(node.attr[0], node.src[1:])}
        return reaxis(src[0], {a: e for a, e in (env | at).items() if a in src[0].names})
    if node.op == "take" and node.attr[0] not in src[0].names:
        return src[0]
    attr = node.attr
    if node.op == "reduce" and _may_rename(node):
        bound = _bound(node, names)
        attr = (attr[0], tuple(bound[a] for a in attr[1]))
        src = along(src, {bound[a]: _size(node, a) for a in node.attr[1]})
    elif node.op in ("reduce", "scan"):
        axes = node.attr[1] if node.op == "reduce" else (node.attr[1],)
        src = along(src, {a: _size(node, a) for a in axes})
    return node if (src, attr) == (node.src, node.attr) else Node(node.op, src, attr)


def _size(node: Node, axis: str) -> Extent:
    """The extent of an axis that a node runs over."""
    return next(e for s in node.src for a, e in s.free if a == axis)


# ---- factors out of sums -----------------------------------------------------------------------


def _hoist(roots: Sequence[Node]) -> tuple[Node, ...]:
    """sum(j, c * x[j]) as c * sum(j, x[j]), and sum(j, p[j] / l * v[j]) as sum(j, p[j] * v[j]) / l.

    A divisor moves only where nobody else reads the quotient, and where that saves divisions.
    """
    memo: dict[Node, Node] = {}
    readers = Counter(s for n in walk_values(*roots) for s in operands(n))
    readers.update(roots)
    for node in walk_values(*roots):
        alone = {memo[s] for s in operands(node) if readers[s] == 1}
        src = (*(memo[s] for s in operands(node)), *node.src[len(operands(node)) :])
        new = node if src == node.src else Node(node.op, src, node.attr)
        if new.op == "reduce":
            new = _hoisted(new, alone | _alone_below(node, readers, memo))
        memo[node] = new
    return tuple(memo[root] for root in roots)


def _alone_below(node: Node, readers: Counter[Node], memo: Mapping[Node, Node]) -> set[Node]:
    """The products and quotients below a sum that only the value above them reads."""
    out: set[Node] = set()
    todo = [s for s in operands(node) if readers[s] == 1]
    while todo:
        value = todo.pop()
        out.add(memo[value])
        if value.op == "map" and split_name(value.attr[0])[0] in ("mul", "div"):
            todo.extend(s for s in operands(value) if readers[s] == 1)
    return out


def _hoisted(node: Node, alone: set[Node]) -> Node:
    if node.attr[0] != "sum" or node.dtype not in _HOIST_TYPES:
        return node
    bound = frozenset(node.attr[1])
    cheaper = {n for n in alone if volume(node.axes) <= volume(n.axes)}
    body, found = _without_factors(node.src[0], bound, cheaper)
    # A sum must keep its axes: what is left may not have lost one that is summed over.
    if not found or not bound <= set(body.names):
        return node
    constant = 1.0
    result = Node(node.op, (body,), node.attr)
    for fn, factor in found:
        if factor.op == "const":
            value = factor.attr[0]
            constant = constant * value if fn == "mul" else constant / value
    if constant != 1.0:
        result = result * constant
    for fn, factor in found:
        if factor.op != "const":
            result = Node("map", (result, factor), (fn,))
    return result


def _without_factors(
    node: Node, bound: frozenset[str], alone: set[Node]
) -> tuple[Node, list[tuple[str, Node]]]:
    """`node` without the factors and divisors that a sum over `bound` does not need, and those.

    A constant that follows other maps stays: it is part of their value, which may be stored.
    """
    if node.op == "reaxis":
        value, found = _without_factors(node.src[0], frozenset(node.src[0].names), alone)
        return (Node(node.op, (value, *node.src[1:]), node.attr) if found else node), found
    fn = split_name(node.attr[0])[0] if node.op == "map" else ""
    if fn not in ("mul", "div"):
        return node, []
    a, b = node.src
    if a.op == "const" and fn == "mul":
        a, b = b, a
    if b.op == "const" and (fn == "mul" or b.attr[0]):
        value, found = _without_factors(a, bound, alone)
        if found or value.op in ("reaxis", "input", "take"):
            return value, [*found, (fn, b)]
        return node, []
    if fn == "div":
        if node in alone and b.names and not bound & set(b.names) and bound <= set(a.names):
            value, found = _without_factors(a, bound, alone)
            return value, [*found, (fn, b)]
        return node, []
    left, found_left = _without_factors(a, bound, alone)
    right, found_right = _without_factors(b, bound, alone)
    found = [*found_left, *found_right]
    return (Node("map", (left, right), node.attr) if found else node), found
