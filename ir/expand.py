"""Algebra values at coordinates: from a value over axes to one that depends on iotas alone.

`Expander.at(node, env)` is the value of `node` where each of its free axes reads as `env[axis]`
(an int32 node). Inputs become loads at those coordinates, `reaxis` and `take` substitute, and a
`reduce` binds a fresh axis. This is the step from the algebra to the tile
level: afterwards splitting an axis is nothing but replacing its iota.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from autosched.ir.extent import as_node
from autosched.ir.node import Extent, IRError, Node
from autosched.ir.ops import cast, iota, load

Env = Mapping[str, Node]


@dataclass(frozen=True)
class Home:
    """Where a value is stored: the buffer, the order of axes in it, and the coordinates that
    hold for all of it (the step of the loop in which it is made)."""

    handle: Node
    dims: tuple[str, ...]
    pins: tuple[tuple[str, Node], ...] = ()


class Expander:
    """Expands values; `placed` tells where values that have a buffer are stored.

    `names` collects, for every placed node that is read, {axis: the loop it is first read at};
    `loops` are names of loops that no reduce inside may take.
    """

    def __init__(
        self,
        placed: Mapping[Node, Home],
        names: dict[Node, dict[str, str]] | None = None,
        loops: Iterable[str] = (),
    ) -> None:
        self.placed = placed
        self.names = {} if names is None else names
        self.loops = frozenset(loops)
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
        home = self.placed.get(node)
        if home is not None and all(env.get(a, at) is at for a, at in home.pins):
            if node not in self.names:
                self.names[node] = _loop_names(env)
            return load(home.handle, [env[d] for d in home.dims] or [as_node(0)])
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
                raise IRError("a fold is lowered to statements, not inside a value")
            case "carry":
                raise IRError(f"the state {node.attr[0]!r} has no home here")
            case "get":
                inner = node.src[0]
                return Node("get", (self.at(inner, env),), node.attr)
            case _:
                return Node(node.op, tuple(self.at(s, env) for s in node.src), node.attr)

    def _binder(self, node: Node, env: dict[str, Node]) -> Node:
        bound = node.attr[1] if node.op == "reduce" else (node.attr[1],)
        extents: dict[str, Extent] = {}
        for s in node.src:
            extents.update(s.free)
        taken = {a for e in env.values() for a, _ in e.free} | self.loops
        names = {a: fresh(a, taken) for a in bound}
        inner = {**env, **{a: iota(names[a], extents[a]) for a in bound}}
        src = tuple(self._with_axes(self.at(s, inner), inner, bound) for s in node.src)
        if node.op == "reduce":
            return Node("reduce", src, (node.attr[0], tuple(names[a] for a in bound)))
        raise IRError("a scan has no scalar form; write it as a fold first")

    @staticmethod
    def _with_axes(value: Node, env: Env, bound: tuple[str, ...]) -> Node:
        """`value`, made to depend on each bound axis (a constant under a sum counts as often)."""
        for axis in bound:
            name = env[axis].attr[0]
            if name not in value.names:
                zero = cast(env[axis] * 0, value.dtype)
                value = Node("map", (value, zero), ("add",))
        return value


def _loop_names(env: Env) -> dict[str, str]:
    """{axis: loop} of the coordinates that are bare iotas, each loop once."""
    out: dict[str, str] = {}
    for axis, at in sorted(env.items()):
        if at.op == "iota" and at.attr[0] not in out.values():
            out[axis] = at.attr[0]
    own = set(env) - set(out)
    return {a: n for a, n in out.items() if n not in own}


def fresh(name: str, taken: Collection[str]) -> str:
    """`name`, or it with the first number that makes it new."""
    if name not in taken:
        return name
    n = 2
    while f"{name}{n}" in taken:
        n += 1
    return f"{name}{n}"
