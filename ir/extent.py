"""Integer expressions over knobs and axes: build, simplify, evaluate, and bind knobs.

An extent is an int or a closed int32 node over knobs; an index expression also reads iotas. The
coordinate of an axis lies in [0, extent), also in a loop over an interval of it, a knob is never
negative, and no divisor is below 1: the rules here rest on these three facts.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from autosched.ir.linear import INDEX_TYPES, simplify_map
from autosched.ir.node import Extent, IRError, Node, Program, walk
from autosched.ir.ops import const, map_
from autosched.ir.scalar import SCALARS, split_name

T = TypeVar("T", Node, Program)

# None stands for the key itself, which as a value would keep itself alive.
_simplified: weakref.WeakKeyDictionary[Node, Node | None] = weakref.WeakKeyDictionary()


# ---- building ---------------------------------------------------------------------------------


def as_node(extent: Extent, dtype: str = "int32") -> Node:
    """The extent as a node: ints become constants."""
    return extent if isinstance(extent, Node) else const(extent, dtype)


def as_extent(node: Extent) -> Extent:
    """The simplified extent of a node: an int where it is constant."""
    if not isinstance(node, Node):
        return int(node)
    node = simplify(node)
    return node.attr[0] if node.op == "const" else node


def is_extent(node: Node) -> bool:
    """Whether a node is a number that depends on knobs alone."""
    return not node.free and all(n.op in ("const", "knob", "map") for n in walk(node))


def _binary(fn: str, fold: Callable[[int, int], int], a: Extent, b: Extent) -> Extent:
    if not isinstance(a, Node) and not isinstance(b, Node):
        return fold(a, b)
    return as_extent(map_(fn, as_node(a), as_node(b)))


def ext_add(a: Extent, b: Extent) -> Extent:
    return _binary("add", lambda x, y: x + y, a, b)


def ext_sub(a: Extent, b: Extent) -> Extent:
    return _binary("sub", lambda x, y: x - y, a, b)


def ext_mul(a: Extent, b: Extent) -> Extent:
    return _binary("mul", lambda x, y: x * y, a, b)


def ext_floordiv(a: Extent, b: Extent) -> Extent:
    return _binary("floordiv", lambda x, y: x // y, a, b)


def ext_mod(a: Extent, b: Extent) -> Extent:
    return _binary("mod", lambda x, y: x % y, a, b)


def ext_min(a: Extent, b: Extent) -> Extent:
    return _binary("min", min, a, b)


def ext_max(a: Extent, b: Extent) -> Extent:
    return _binary("max", max, a, b)


def ext_cdiv(a: Extent, b: Extent) -> Extent:
    """Number of pieces of size b that cover a."""
    return ext_floordiv(ext_add(a, ext_sub(b, 1)), b)


# ---- walking, with the nodes inside attributes --------------------------------------------------


def attr_nodes(attr: object) -> Iterator[Node]:
    """The nodes inside an attribute: the symbolic extents."""
    if isinstance(attr, Node):
        yield attr
    elif isinstance(attr, tuple):
        for item in attr:
            yield from attr_nodes(item)


def roots_of(program: Program) -> tuple[Node, ...]:
    """Every node that a program holds directly, extents of its outputs included."""
    packs = tuple(n for p in program.packs for n in (p.buffer, p.value))
    extents = tuple(n for o in program.outputs for n in attr_nodes(o.extents))
    return (*program.inputs, *packs, *extents, *program.body)


def knobs_of(*things: Extent | Program) -> frozenset[str]:
    """Names of the knobs below, inside attributes too."""
    found: set[str] = set()
    todo = [n for t in things for n in (roots_of(t) if isinstance(t, Program) else (t,))]
    seen: set[Node] = set()
    while todo:
        root = todo.pop()
        if not isinstance(root, Node) or root in seen:
            continue
        for node in walk(root):
            if node in seen:
                continue
            seen.add(node)
            if node.op == "knob":
                found.add(node.attr[0])
            todo.extend(attr_nodes(node.attr))
    return frozenset(found)


# ---- evaluating -------------------------------------------------------------------------------


def evaluate_extent(extent: Extent, env: Mapping[str, Any]) -> Any:
    """The value of an extent, mask or index expression: an int, or an array over table rows.

    Args:
        extent: ints and nodes over knobs, iotas, constants and scalar functions.
        env: knob or axis name to an int or to an integer array (one entry a table row).
    Raises: IRError where a name is missing or an op has no value here.
    """
    if not isinstance(extent, Node):
        return extent
    values: dict[Node, Any] = {}
    for node in walk(extent):
        if node.op == "const":
            values[node] = node.attr[0]
        elif node.op in ("knob", "iota"):
            if node.attr[0] not in env:
                raise IRError(f"no value for {node.op} {node.attr[0]!r}; given: {sorted(env)}")
            given = env[node.attr[0]]
            values[node] = int(given) if np.ndim(given) == 0 else np.asarray(given, np.int64)
        elif node.op == "map":
            fn, _ = split_name(node.attr[0])
            got = SCALARS[fn].numpy(*(values[s] for s in node.src))
            values[node] = got.item() if isinstance(got, np.generic) else got
        else:
            raise IRError(f"{node.op} has no value in an extent")
    return values[extent]


# ---- simplifying ------------------------------------------------------------------------------


def simplify(node: Node) -> Node:
    """An equal index expression or mask, shorter: constants folded, `(a*c + b)//c` divided.

    Coordinates that cancel leave the expression, so the result may have fewer axes.
    """
    for n in walk(node):
        if n in _simplified:
            continue
        src = tuple(_simplified[s] or s for s in n.src)
        fresh = n if src == n.src else Node(n.op, src, n.attr)
        if fresh.op == "map":
            fresh = simplify_map(fresh)
        _simplified[n] = None if fresh is n else fresh
    return _simplified[node] or node


# ---- binding knobs ----------------------------------------------------------------------------


def subst(thing: T, knobs: Mapping[str, int]) -> T:
    """The program or node with these knobs bound, extents folded and index expressions simplified.

    Knobs that are not named stay; names that do not occur are ignored.
    """
    binder = _Binder(knobs)
    if isinstance(thing, Node):
        return binder.node(thing)
    return replace(
        thing,
        inputs=tuple(map(binder.node, thing.inputs)),
        outputs=tuple(replace(o, extents=binder.attr(o.extents)) for o in thing.outputs),
        packs=tuple(
            replace(p, buffer=binder.node(p.buffer), value=binder.node(p.value))
            for p in thing.packs
        ),
        body=tuple(map(binder.node, thing.body)),
    )


# Operand positions that hold index expressions, by op: these are simplified when knobs are bound.
_INDEX_FROM: dict[str, int] = {"load": 1, "store": 2, "reaxis": 1, "take": 1, "slice": 1}


class _Binder:
    """Rebuilds nodes bottom-up with knobs bound; remembers what it rebuilt."""

    def __init__(self, knobs: Mapping[str, int]) -> None:
        self.knobs = knobs
        self.memo: dict[Node, Node] = {}

    def attr(self, attr: Any) -> Any:
        if isinstance(attr, Node):
            return as_extent(self.node(attr))
        return tuple(map(self.attr, attr)) if isinstance(attr, tuple) else attr

    def node(self, root: Node) -> Node:
        for node in walk(root):
            if node not in self.memo:
                self.memo[node] = self._rebuilt(node)
        return self.memo[root]

    def _rebuilt(self, node: Node) -> Node:
        if node.op == "knob":
            name = node.attr[0]
            return const(self.knobs[name], "int32") if name in self.knobs else node
        src = tuple(self.memo[s] for s in node.src)
        attr = self.attr(node.attr)
        if src == node.src and attr == node.attr:
            return node
        fresh = Node(node.op, src, attr)
        short = tuple(map(self._shorter, range(len(src)), src, [node] * len(src)))
        if short == src:
            return fresh
        slim = _try_build(node.op, short, attr)
        same = slim is not None and slim.types == fresh.types and slim.free == fresh.free
        return slim if same and slim is not None else fresh

    @staticmethod
    def _shorter(at: int, operand: Node, user: Node) -> Node:
        if user.op == "forall":
            indexed = at < 2
        elif user.op == "fold":
            indexed = at < 2 * user.attr[2]
        else:
            indexed = at >= _INDEX_FROM.get(user.op, len(user.src))
        if not indexed or not operand.types or operand.dtype not in (*INDEX_TYPES, "bool"):
            return operand
        return simplify(operand)


def _try_build(op: str, src: tuple[Node, ...], attr: tuple[Any, ...]) -> Node | None:
    """The node, or None where simpler operands have lost an axis that the op names."""
    try:
        return Node(op, src, attr)
    except IRError:
        return None


def ext_product(extents: Iterable[Extent]) -> Extent:
    return functools.reduce(ext_mul, extents, 1)
