"""Algebra program in, its canonical form out: equal work gets an equal program.

    before:  q[b,s,n] read at n = h*32 + d, w[k,n], axes called as the importer liked
    after:   views at the inputs or gone, inputs declared in the axes they are read at, axes
             that always go together fused (rows of a batch), names by role and first visit

Inputs and outputs keep their memory: a dimension is only split, merged with its neighbour,
renamed or dropped where its extent is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from autosched.ir.count import factors, volume
from autosched.ir.index import digits, tidy
from autosched.ir.node import Node, Output, Program, replace_nodes
from autosched.ir.ops import input_, iota, rename
from autosched.ir.views import (
    ANYWHERE,
    HEAVY,
    coalesce,
    operands,
    push,
    read,
    reads_of,
    rename_axes,
    sink,
    walk_values,
)  # fmt: skip

Dims = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Canonical:
    """The program, and for each of its inputs the name of the one it stands for."""

    program: Program
    order: tuple[str, ...]


def canonical(program: Program) -> Canonical:
    """The canonical form of an algebra program whose inputs have distinct names."""
    program = _aligned(program)
    roots = push(sink(_own_axes(program.body)))
    roots, outputs = _coalesced(roots, program.outputs)
    roots = _redeclare(roots)
    roots, outputs = _coalesced(push(sink(roots)), outputs)
    roots, outputs = _fuse(roots, outputs)
    roots, outputs = _named(roots, outputs)
    return _ordered(roots, outputs)


def _aligned(program: Program) -> Program:
    """Outputs that compute the same from other inputs over the same axes: Q, K and V."""
    if len(program.outputs) < 2:
        return program
    alone = [
        canonical(replace(program, outputs=(o,), body=(b,)))
        for o, b in zip(program.outputs, program.body)
    ]
    first = alone[0].program
    if any(c.program != first for c in alone):
        return program
    body = []
    for form in alone:
        table = {
            node: input_(name, dict(node.attr[1]), *node.attr[2:])
            for node, name in zip(first.inputs, form.order)
        }
        body.append(replace_nodes(first.body[0], table))
    outputs = tuple(replace(first.outputs[0], name=o.name) for o in program.outputs)
    inputs = tuple(n for n in walk_values(*body) if n.op == "input")
    return Program(program.level, inputs, outputs, tuple(body))


def _own_axes(roots: Sequence[Node]) -> tuple[Node, ...]:
    """The roots with axes of its own for every input, which only its views connect to others."""
    table: dict[Node, Node] = {}
    for node in walk_values(*roots):
        if node.op == "input":
            name, dims, dtype, kind = node.attr
            own = {a: f"{name}:{a}" for a, _ in dims}
            table[node] = rename(
                input_(name, {own[a]: e for a, e in dims}, dtype, kind),
                {new: a for a, new in own.items()},
            )
    return tuple(replace_nodes(root, table) for root in roots)


def _coalesced(
    roots: Sequence[Node], outputs: Sequence[Output]
) -> tuple[tuple[Node, ...], tuple[Output, ...]]:
    merged, name = coalesce(roots)
    return merged, tuple(_rename_output(o, name) for o in outputs)


def _rename_output(output: Output, name: Callable[[str, object], str]) -> Output:
    return replace(output, dims=tuple(map(name, output.dims, output.extents)))


# ---- inputs in the axes they are read at -------------------------------------------------------


def _redeclare(roots: Sequence[Node]) -> tuple[Node, ...]:
    """Every input with its dimensions dropped, split and merged as all of its reads ask for."""
    table: dict[Node, Node] = {}
    for value, reads in reads_of(roots).items():
        if any(node is value or ANYWHERE in env.values() for node, env in reads):
            continue
        dims: Dims = value.attr[1]
        envs = [dict(env) for _, env in reads]
        dims = _drop_units(_merge_dims(_split_dims(dims, envs), envs), envs)
        if dims != value.attr[1]:
            name, _, dtype, kind = value.attr
            new = input_(name, dict(dims), dtype, kind)
            table |= {node: read(new, env) for (node, _), env in zip(reads, envs)}
    return tuple(replace_nodes(root, table) for root in roots)


def _split_dims(dims: Dims, envs: list[dict[str, Node]]) -> Dims:
    """Dimension n of 384 read at h*32 + d only: dimensions of 12 and 32. Edits `envs` to fit."""
    out: list[tuple[str, int]] = []
    for axis, extent in dims:
        parts = [digits(env[axis], extent) for env in envs]
        sizes = {tuple(size for _, size in p or ()) for p in parts}
        if len(sizes) != 1 or len(next(iter(sizes))) < 2:
            out.append((axis, extent))
            continue
        new = [(f"{axis}.{n}", size) for n, size in enumerate(next(iter(sizes)))]
        out.extend(new)
        for env, part in zip(envs, parts):
            del env[axis]
            env |= {name: iota(a, e) for (name, _), (a, e) in zip(new, part or ())}
    return tuple(out)


def _merge_dims(dims: Dims, envs: list[dict[str, Node]]) -> Dims:
    """Dimensions of 12 and 32 read at k // 32 and k % 32 only: one of 384. Edits `envs`."""
    for (a, size_a), (b, size_b) in pairwise(dims):
        joined = [tidy(env[a] * size_b + env[b]) for env in envs]
        whole = all(j.op == "iota" and j.attr[1] == size_a * size_b for j in joined)
        if not whole:
            continue
        name = f"{a}_{b}"
        for env, index in zip(envs, joined):
            del env[a], env[b]
            env[name] = index
        merged = tuple(
            (name, size_a * size_b) if d == a else (d, e) for d, e in dims if d != b
        )  # fmt: skip
        return _merge_dims(merged, envs)
    return dims


def _drop_units(dims: Dims, envs: list[dict[str, Node]]) -> Dims:
    gone = [a for a, e in dims if e == 1 and all(env[a].op == "const" for env in envs)]
    for env in envs:
        for axis in gone:
            del env[axis]
    return tuple(d for d in dims if d[0] not in gone)


# ---- axes that always go together --------------------------------------------------------------


def _fuse(
    roots: Sequence[Node], outputs: Sequence[Output]
) -> tuple[tuple[Node, ...], tuple[Output, ...]]:
    """Neighbouring axes that no node tells apart as one: the rows of a batch of sequences."""
    roots, outputs = tuple(roots), tuple(outputs)
    while pair := next(_fusible(roots, outputs), None):
        a, b = pair
        roots = tuple(_fuse_nodes(roots, a, b))
        outputs = tuple(_fuse_output(o, a, b) for o in outputs)
    return roots, outputs


def _neighbours(roots: Sequence[Node], outputs: Sequence[Output]) -> Iterator[tuple[str, ...]]:
    yield from (o.dims for o in outputs)
    for node in walk_values(*roots):
        if node.op == "input":
            yield tuple(a for a, _ in node.attr[1])


def _fusible(roots: Sequence[Node], outputs: Sequence[Output]) -> Iterator[tuple[str, str]]:
    orders = list(_neighbours(roots, outputs))
    values = list(walk_values(*roots))
    for a, b in dict.fromkeys(pair for order in orders for pair in pairwise(order)):
        if all(_adjacent(order, a, b) for order in orders) and not any(
            _tells_apart(node, a, b) for node in values
        ):
            yield a, b


def _adjacent(order: Sequence[str], a: str, b: str) -> bool:
    if a not in order and b not in order:
        return True
    return (a, b) in pairwise(order)


def _tells_apart(node: Node, a: str, b: str) -> bool:
    """Whether a node treats the axes a and b, outer and inner, as more than one number."""
    free = dict(node.free)
    if (a in free) != (b in free):
        return True
    if node.op == "reduce":
        return (a in node.attr[1]) != (b in node.attr[1])
    if node.op == "reaxis":
        named = {*node.attr[0], *(axis for e in node.src[1:] for axis in e.names)}
        return a in named or b in named
    if node.op in ("take", "scan"):
        return bool({a, b} & {node.attr[0], node.attr[1] if node.op == "scan" else ""})
    if node.op in ("iota", "fold", "carry"):
        return a in free or a in {axis for s in node.src for axis, _ in s.free}
    return False


def _fuse_dims(dims: Dims, a: str, b: str) -> Dims:
    sizes = dict(dims)
    if a not in sizes:
        return dims
    return tuple((d, e * sizes[b] if d == a else e) for d, e in dims if d != b)


def _fuse_output(output: Output, a: str, b: str) -> Output:
    dims = _fuse_dims(tuple(zip(output.dims, _ints(output))), a, b)
    return replace(output, dims=tuple(d for d, _ in dims), extents=tuple(e for _, e in dims))


def _ints(output: Output) -> tuple[int, ...]:
    return tuple(e for e in output.extents if isinstance(e, int))


def _fuse_nodes(roots: Sequence[Node], a: str, b: str) -> Iterator[Node]:
    memo: dict[Node, Node] = {}
    for node in walk_values(*roots):
        attr = node.attr
        if node.op == "input":
            attr = (attr[0], _fuse_dims(attr[1], a, b), *attr[2:])
        elif node.op == "reduce":
            attr = (attr[0], tuple(axis for axis in attr[1] if a not in attr[1] or axis != b))
        inner = tuple(memo[s] for s in operands(node)) + node.src[len(operands(node)) :]
        memo[node] = node if (inner, attr) == (node.src, node.attr) else Node(node.op, inner, attr)
    return (memo[root] for root in roots)


# ---- names -------------------------------------------------------------------------------------

# Letters by role: a lone contraction reads as C[m, n] = sum(k, A[m, k] * B[k, n]), a chain of
# them as attention does, anything else by the order of its axes in memory.
_ALONE = {"batch": "b", "left": "m", "right": "n", "sum": "k", "rest": "ijpqrstuvw"}
_CHAIN = {"batch": "bhg", "left": "i", "right": "j", "sum": "d", "rest": "efpqrstuvw"}
_PLAIN = {"rest": "ijkpqrstuvw"}


def _roles(roots: Sequence[Node]) -> tuple[Mapping[str, str], dict[tuple[str, object], str]]:
    """Letters and roles of the axes, from the first contraction of the greatest volume."""
    found = [(n, f) for n in walk_values(*roots) if (f := factors(n))]
    if not found:
        return _PLAIN, {}
    sizes = [volume(tuple({*f[0].axes, *f[1].axes})) for _, f in found]
    node, (a, b) = found[sizes.index(max(sizes))]
    roles: dict[tuple[str, object], str] = {}
    for axis in {*a.axes, *b.axes}:
        inside = axis in a.axes, axis in b.axes
        roles[axis] = {(True, True): "batch", (True, False): "left"}.get(inside, "right")
        if axis[0] in node.attr[1]:
            roles[axis] = "sum"
    spaces = {frozenset((*f[0].axes, *f[1].axes)) for _, f in found}
    return (_ALONE if len(spaces) == 1 else _CHAIN), roles


def _visit(roots: Sequence[Node], outputs: Sequence[Output]) -> Iterator[tuple[str, object]]:
    """Every axis, in an order that does not depend on names."""
    for output in outputs:
        yield from zip(output.dims, output.extents)
    for node in walk_values(*roots):
        sizes = {axis: e for s in (*node.src, node) for axis, e in s.free}
        if node.op == "input":
            yield from node.attr[1]
        elif node.op == "reduce":
            yield from ((axis, sizes[axis]) for axis in node.attr[1])
        elif node.op in HEAVY or node.op in ("iota", "take"):
            yield from ((x, sizes[x]) for x in node.attr if isinstance(x, str) and x in sizes)


def _named(
    roots: Sequence[Node], outputs: Sequence[Output]
) -> tuple[tuple[Node, ...], tuple[Output, ...]]:
    letters, roles = _roles(roots)
    names: dict[tuple[str, object], str] = {}
    given: dict[str, int] = {}

    def name(axis: str, extent: object) -> str:
        key = (axis, extent)
        if key not in names:
            role = roles.get(key, "rest")
            n = given.get(role, 0)
            given[role] = n + 1
            pool = letters[role]
            names[key] = pool[n] if n < len(pool) else f"{pool[-1]}{n - len(pool) + 1}"
        return names[key]

    for axis, extent in _visit(roots, outputs):
        name(axis, extent)
    renamed = rename_axes(roots, name)
    return renamed, tuple(_rename_output(o, name) for o in outputs)


def _ordered(roots: Sequence[Node], outputs: Sequence[Output]) -> Canonical:
    """Inputs called x0, x1, ... and w0, w1, ... (weights) in order of first visit."""
    inputs = [n for n in walk_values(*roots) if n.op == "input"]
    counts = {"arg": 0, "weight": 0}
    table: dict[Node, Node] = {}
    for node in inputs:
        _, dims, dtype, kind = node.attr
        name = f"{'x' if kind == 'arg' else 'w'}{counts[kind]}"
        table[node] = input_(name, dict(dims), dtype, kind)
        counts[kind] += 1
    body = tuple(replace_nodes(root, table) for root in roots)
    named = tuple(replace(o, name=f"y{n}") for n, o in enumerate(outputs))
    new = Program("algebra", tuple(table[n] for n in inputs), named, body)
    return Canonical(new, tuple(str(n.attr[0]) for n in inputs))
