"""Algebra values at coordinates: from a value over axes to one that depends on iotas alone.

`Expander.at(node, env)` is the value of `node` where each of its free axes reads as `env[axis]`
(an int32 node). Inputs become loads at those coordinates, `reaxis` and `take` substitute, and a
`reduce`, `scan` or `fold` binds a fresh axis. This is the step from the algebra to the tile
level: afterwards splitting an axis is nothing but replacing its iota.
"""

from __future__ import annotations

from collections.abc import Mapping

from autosched.ir.node import Extent, IRError, Node
from autosched.ir.ops import cast, iota, load

Env = Mapping[str, Node]


class Expander:
    """Expands values; `placed` maps a node that has a buffer to (handle, axis order in it).

    `names` collects, for every placed node that is read, {axis: the loop it is first read at}.
    """

    def __init__(
        self,
        placed: Mapping[Node, tuple[Node, tuple[str, ...]]],
        names: dict[Node, dict[str, str]] | None = None,
    ) -> None:
        self.placed = placed
        self.names = {} if names is None else names
        self.memo: dict[tuple[Node, tuple[tuple[str, Node], ...]], Node] = {}

    def at(self, node: Node, env: Env) -> Node:
        """`node` at `env`; env must cover the free axes of `node`."""
        missing = [a for a, _ in node.free if a not in env]
        if missing:
            raise IRError(f"no coordinate for the axes {missing} of {node.op}")
        key = (node, tuple((a, env[a]) for a, _ in node.free))
        if key not in self.memo:
            self.memo[key] = self._expand(node, dict(key[1]))
        return self.memo[key]

    def _expand(self, node: Node, env: dict[str, Node]) -> Node:
        if node in self.placed:
            handle, dims = self.placed[node]
            if node not in self.names:
                self.names[node] = _loop_names(env)
            return load(handle, [env[d] for d in dims])
        match node.op:
            case "input":
                return load(node, [env[axis] for axis, _ in node.attr[1]])
            case "iota":
                return cast(env[node.attr[0]], node.attr[2])
            case "reaxis":
                axes = dict(zip(node.attr[0], (self.at(e, env) for e in node.src[1:])))
                return self.at(node.src[0], {**env, **axes})
            case "take":
                index = cast(self.at(node.src[1], env), "int32")
                return self.at(node.src[0], {**env, node.attr[0]: index})
            case "reduce" | "scan":
                return self._binder(node, env)
            case "fold":
                return self._fold(node, env)
            case "get":
                inner = node.src[0]
                kept = {a: env[a] for a, _ in inner.free}
                return Node("get", (self.at(inner, kept),), node.attr)
            case _:
                return Node(node.op, tuple(self.at(s, env) for s in node.src), node.attr)

    def _binder(self, node: Node, env: dict[str, Node]) -> Node:
        bound = node.attr[1] if node.op == "reduce" else (node.attr[1],)
        extents: dict[str, Extent] = {}
        for s in node.src:
            extents.update(s.free)
        taken = {a for e in env.values() for a, _ in e.free}
        names = {a: _fresh(a, taken) for a in bound}
        inner = {**env, **{a: iota(names[a], extents[a]) for a in bound}}
        src = tuple(self._with_axes(self.at(s, inner), inner, bound) for s in node.src)
        if node.op == "reduce":
            return Node("reduce", src, (node.attr[0], tuple(names[a] for a in bound)))
        raise IRError("a scan has no scalar form; expand it as a fold")

    @staticmethod
    def _with_axes(value: Node, env: Env, bound: tuple[str, ...]) -> Node:
        """`value`, made to depend on each bound axis (a constant under a sum counts as often)."""
        for axis in bound:
            name = env[axis].attr[0]
            if name not in value.names:
                zero = cast(env[axis] * 0, value.dtype)
                value = Node("map", (value, zero), ("add",))
        return value

    def _fold(self, node: Node, env: dict[str, Node]) -> Node:
        axis, names, n_intervals, _ = node.attr
        n_bounds = 2 * n_intervals
        first = n_bounds + len(names)
        extent = next(e for s in node.src[first:] for a, e in s.free if a == axis)
        taken = {a for e in env.values() for a, _ in e.free}
        step = iota(_fresh(axis, taken), extent)
        outer = [self.at(s, env) for s in node.src[:first]]
        inner = {**env, axis: step}
        body = [self.at(s, inner) for s in node.src[first:]]
        return Node("fold", (*outer, *body), (step.attr[0], *node.attr[1:]))


def _loop_names(env: Env) -> dict[str, str]:
    """{axis: loop} of the coordinates that are bare iotas, each loop once."""
    out: dict[str, str] = {}
    for axis, at in sorted(env.items()):
        if at.op == "iota" and at.attr[0] not in out.values():
            out[axis] = at.attr[0]
    own = set(env) - set(out)
    return {a: n for a, n in out.items() if n not in own}


def _fresh(name: str, taken: set[str]) -> str:
    """`name`, or it with the first number that makes it new."""
    if name not in taken:
        return name
    n = 2
    while f"{name}{n}" in taken:
        n += 1
    return f"{name}{n}"
