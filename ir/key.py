"""Content keys: a digest of a program that does not change when names do.

Every node has a summary: a digest of its shape with all names left out, and for each free name
(axis, state, input, buffer) a digest of the places where it occurs. A binder takes its name out
of the summary and puts the digest of its places into the shape, so that two programs share a key
just when one is the other with names exchanged one for one, bound axes scope by scope. Knobs are
known by name, because schedules are. (Idea: hashing modulo alpha-equivalence, Maziarz, Ellis,
Lawrence, Fitzgibbon, Peyton Jones, PLDI 2021.)
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from autosched.ir.node import Node, Program, walk
from autosched.ir.scope import scope_of

Name = tuple[str, str]  # kind (axis, state, input, buffer) and name
VERSION = "1"


class Summary(NamedTuple):
    shape: bytes
    places: Mapping[Name, bytes]


_summaries: weakref.WeakKeyDictionary[Node, Summary] = weakref.WeakKeyDictionary()


def content_key(program: Program) -> str:
    """64 hex digits, equal for programs that differ in names alone."""
    body = [summary(node) for node in program.body]
    packs = [summary(node) for p in program.packs for node in (p.buffer, p.value)]
    outputs = [_extents(o.extents) for o in program.outputs]
    shape = [
        VERSION,
        program.level,
        *(o.dtype for o in program.outputs),
        *(s.shape for s in (*body, *packs)),
        *outputs,
    ]
    names = _merged([s.places for s in (*body, *packs)])
    ordered: list[Name] = [("input", n.attr[0]) for n in program.inputs]
    ordered += [("buffer", o.name) for o in program.outputs]
    dims: list[bytes] = [s.shape for s in map(summary, program.inputs)]
    if program.level == "algebra":
        for out, value in zip(program.outputs, body):
            dims += [value.places.get(("axis", a), b"") for a in out.dims]
    for pack in program.packs:
        value = summary(pack.value)
        dims += [value.places.get(("axis", a), b"") for a in pack.dims]
    listed = [names.get(name, b"") for name in ordered]
    rest = sorted(
        place for name, place in names.items() if name not in ordered and name[0] != "axis"
    )
    return _digest([*shape, *dims, *listed, *rest]).hex()


def node_key(node: Node, dims: Sequence[str] = ()) -> str:
    """The key of a bare node as a function of the axes `dims`; inputs by order of places."""
    own = summary(node)
    named = [own.places.get(("axis", a), b"") for a in dims]
    rest = sorted(p for (kind, name), p in own.places.items() if (kind, name) not in dims)
    return _digest([VERSION, own.shape, *named, *rest]).hex()


def summary(root: Node) -> Summary:
    """The summary of a node; kept as long as the node lives."""
    for node in walk(root):
        if node not in _summaries:
            _summaries[node] = _summarised(node)
    return _summaries[root]


def _summarised(node: Node) -> Summary:
    scope = scope_of(node)
    below = [_summaries[s] for s in node.src]
    bound: dict[Name, tuple[int, ...]] = {("axis", a): at for a, at in scope.binds}
    bound |= {("state", s): scope.body for s in scope.states if scope.body}
    taken: dict[Name, list[bytes]] = {name: [] for name in bound}
    free: dict[Name, list[bytes]] = {}
    for n, below_n in enumerate(below):
        for name, place in below_n.places.items():
            here = _digest([n, place])
            if name in bound and n in bound[name]:
                taken[name].append(here)
            else:
                free.setdefault(name, []).append(here)
    for axis, tag in scope.mentions:
        free.setdefault(("axis", axis), []).append(_digest([b"@", _content(tag)]))
    for state in scope.states if not scope.body else ():
        free.setdefault(("state", state), []).append(b"read")
    if node.op in ("input", "buffer"):
        free[node.op, node.attr[0]] = [b"handle"]
    shape = _digest(
        [node.op, _content(scope.content), *(s.shape for s in below), *map(_joined, taken.values())]
    )
    return Summary(shape, {name: _joined(places) for name, places in free.items()})


def _joined(places: list[bytes]) -> bytes:
    return places[0] if len(places) == 1 else _digest(places)


def _merged(groups: Iterable[Mapping[Name, bytes]]) -> dict[Name, bytes]:
    out: dict[Name, list[bytes]] = {}
    for n, places in enumerate(groups):
        for name, place in places.items():
            out.setdefault(name, []).append(_digest([n, place]))
    return {name: _joined(places) for name, places in out.items()}


def _extents(extents: Iterable[Any]) -> bytes:
    return _content(tuple(extents))


def _content(value: Any) -> bytes:
    """Plain data and symbolic extents as bytes, with their types."""
    if isinstance(value, Node):
        own = summary(value)
        return _digest([b"node", own.shape, *sorted(own.places.values())])
    if isinstance(value, tuple):
        return _digest([b"tuple", *map(_content, value)])
    return f"{type(value).__name__} {value!r}".encode()


def _digest(parts: Iterable[bytes | str | int]) -> bytes:
    """A digest of parts of any length, with their lengths."""
    hasher = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        hasher.update(len(raw).to_bytes(4, "little"))
        hasher.update(raw)
    return hasher.digest()
