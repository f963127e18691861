"""Positional tensors over named axes: split, merge, permute, broadcast and join them.

A dimension of a `Tensor` is a tuple of axes in row-major order: none for size 1, one as a rule,
several after a merge. So reshapes and transposes that only regroup dimensions cost no node at
all, and no division appears in an index unless a reshape cuts across its axes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from autosched.ir.extent import simplify
from autosched.ir.graph import ModelError
from autosched.ir.linear import range_of
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, iota, reaxis

Axis = tuple[str, int]
Dim = tuple[Axis, ...]


@dataclass(frozen=True)
class Tensor:
    """`node` seen through positional dimensions; it is constant along axes that it lacks."""

    node: Node
    dims: tuple[Dim, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(extent for _, extent in dim) for dim in self.dims)

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def dtype(self) -> str:
        return self.node.dtype

    @property
    def axes(self) -> Dim:
        """Every axis, outermost first."""
        return tuple(axis for dim in self.dims for axis in dim)

    def with_node(self, node: Node) -> Tensor:
        return replace(self, node=node)

    def position(self, axis: int) -> int:
        """A possibly negative dimension number as one that is not."""
        if not -self.rank <= axis < self.rank:
            raise ModelError(f"dimension {axis} of a tensor of rank {self.rank}")
        return axis % self.rank


class Names:
    """Axis names of one import, each given once; remembers which is older."""

    def __init__(self) -> None:
        self._age: dict[str, int] = {}

    def fresh(self, hint: str) -> str:
        stem = re.sub(r"\W+", "_", hint).strip("_") or "a"
        stem = stem if stem[0].isalpha() else f"a{stem}"
        name, n = stem, 1
        while name in self._age:
            n += 1
            name = f"{stem}_{n}"
        self._age[name] = len(self._age)
        return name

    def axis(self, hint: str, extent: int) -> Dim:
        """One new axis, or none for size 1."""
        return ((self.fresh(hint), extent),) if extent != 1 else ()

    def age(self, name: str) -> int:
        return self._age.get(name, -1)


def hint_of(name: str) -> str:
    """The name without the number that made it fresh."""
    return re.sub(r"_\d+$", "", name)


# ---- views ------------------------------------------------------------------------------------


def substitute(node: Node, exprs: Mapping[str, Node]) -> Node:
    """A coordinate expression (maps over iotas and constants) with its axes replaced."""
    if node.op == "iota":
        return cast(exprs[node.attr[0]], node.attr[2]) if node.attr[0] in exprs else node
    if not any(axis in exprs for axis in node.names):
        return node
    return Node(node.op, tuple(substitute(s, exprs) for s in node.src), node.attr)


def is_coordinate(node: Node) -> bool:
    """Whether the value is a short function of coordinates alone, as masks are."""
    todo, seen = [node], 0
    while todo:
        n = todo.pop()
        seen += 1
        if n.op not in ("iota", "const", "map") or seen > 32:
            return False
        todo.extend(n.src)
    return True


def as_index(node: Node) -> Node | None:
    """An int64 coordinate expression in int32, where that holds all its values; else None."""
    if node.dtype == "int32":
        return node if is_coordinate(node) else None
    if node.op == "const" and node.dtype == "int64":
        found: Node | None = const(node.attr[0], "int32")
    elif node.op == "map" and node.attr[0] == "cast:int64":
        found = as_index(node.src[0])
    elif node.op == "map" and node.dtype == "int64" and node.attr[0] in ("add", "sub", "mul"):
        parts = [as_index(s) for s in node.src]
        given = [p for p in parts if p is not None]
        found = simplify(Node("map", tuple(given), node.attr)) if len(given) == 2 else None
    else:
        return None
    low, high = range_of(found) if found is not None else (None, None)
    fits = low is not None and high is not None and low >= -(2**31) and high < 2**31
    return found if fits else None


def view(value: Node, exprs: Mapping[str, Node]) -> Node:
    """`reaxis` that skips what stays, sees through another one, and keeps masks free of it."""
    todo = {a: simplify(e) for a, e in exprs.items() if a in value.names}
    todo = {a: e for a, e in todo.items() if e is not iota(a, value.extent(a))}
    if not todo:
        return value
    if is_coordinate(value):
        return simplify(substitute(value, todo))
    if value.op != "reaxis":
        return reaxis(value, todo)
    inner, *old = value.src
    merged = {a: substitute(e, todo) for a, e in zip(value.attr[0], old)}
    merged |= {a: e for a, e in todo.items() if a in inner.names and a not in merged}
    return view(inner, merged)


def index_of(axes: Dim) -> Node:
    """The row-major position over several axes as one int32 expression."""
    out, stride = const(0, "int32"), math.prod(extent for _, extent in axes)
    if not stride:
        return out
    for name, extent in axes:
        stride //= extent
        out = out + iota(name, extent) * stride
    return simplify(out)


def digits(index: Node, axes: Dim) -> dict[str, Node]:
    """Each of the axes as an expression of the row-major position over all of them."""
    out, stride, total = {}, 1, math.prod(extent for _, extent in axes)
    if not total:
        return {name: const(0, "int32") for name, _ in axes}
    for name, extent in reversed(axes):
        high = index // stride
        out[name] = high if stride * extent == total else high % extent
        stride *= extent
    return out


# ---- dimensions -------------------------------------------------------------------------------


def flatten_dim(names: Names, x: Tensor, at: int) -> Tensor:
    """Dimension `at` made of one axis at most."""
    old = x.dims[at]
    if len(old) <= 1:
        return x
    new = names.axis("_".join(hint_of(name) for name, _ in old), x.shape[at])
    node = view(x.node, digits(iota(*new[0]), old))
    return Tensor(node, (*x.dims[:at], new, *x.dims[at + 1 :]))


def _refine(names: Names, x: Tensor, at: int, radices: Sequence[int]) -> Tensor:
    """Dimension `at` cut into axes of the extents `radices`, which refine those it has."""
    parts: list[Axis] = []
    exprs: dict[str, Node] = {}
    todo = list(radices)
    for name, extent in x.dims[at]:
        cut: list[int] = []
        while math.prod(cut) < extent:
            cut.append(todo.pop(0))
        if len(cut) == 1:
            parts.append((name, extent))
            continue
        new = tuple((names.fresh(hint_of(name)), size) for size in cut)
        exprs[name] = index_of(new)
        parts.extend(new)
    return Tensor(view(x.node, exprs), (*x.dims[:at], tuple(parts), *x.dims[at + 1 :]))


def _common_radices(dims: Sequence[Dim]) -> tuple[int, ...] | None:
    """The coarsest extents that refine all of the dims, or None where they cut across."""
    strides = {1}
    for dim in dims:
        stride = 1
        for _, extent in reversed(dim):
            stride *= extent
            strides.add(stride)
    chain = sorted(strides)
    if not chain[0] or any(big % small for small, big in pairwise(chain)):
        return None
    return tuple(big // small for small, big in pairwise(chain))[::-1]


def transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
    if sorted(perm) != list(range(x.rank)):
        raise ModelError(f"{list(perm)} is no order of the dimensions of {x.shape}")
    return replace(x, dims=tuple(x.dims[p] for p in perm))


def reshape(names: Names, x: Tensor, shape: Sequence[int]) -> Tensor:
    """The same elements in row-major order under another shape (all entries known)."""
    if math.prod(shape) != math.prod(x.shape):
        raise ModelError(f"a tensor of shape {x.shape} can't be reshaped to {tuple(shape)}")
    if 0 in shape:
        return _empty(names, x, shape)
    left = [s for s in shape if s != 1]
    todo = list(x.axes)
    exprs: dict[str, Node] = {}
    made: list[Dim] = []
    while left:
        size = need = left.pop(0)
        taken: list[Axis] = []
        while need != 1:
            name, extent = todo.pop(0)
            if need % extent == 0:
                taken.append((name, extent))
                need //= extent
            elif extent % need == 0:
                outer = (names.fresh(hint_of(name)), need)
                inner = (names.fresh(hint_of(name)), extent // need)
                exprs = _into(exprs, name, index_of((outer, inner)))
                taken.append(outer)
                todo.insert(0, inner)
                need = 1
            else:
                todo.insert(0, (name, extent))
                group, sizes = _mixed_group((*taken, *todo), (size, *left))
                new = tuple((names.fresh("r"), s) for s in sizes)
                for axis, expr in digits(index_of(new), group).items():
                    exprs = _into(exprs, axis, expr)
                made.extend((axis,) for axis in new[:-1])
                taken, todo = [new[-1]], todo[len(group) - len(taken) :]
                left = left[len(sizes) - 1 :]
                need = 1
        made.append(tuple(taken))
    rest = iter(made)
    return Tensor(view(x.node, exprs), tuple(next(rest) if s != 1 else () for s in shape))


def _empty(names: Names, x: Tensor, shape: Sequence[int]) -> Tensor:
    """`reshape` where there are no elements: any index will do that reads none."""
    dims = tuple(names.axis("r", s) for s in shape)
    none = next(dim[0] for dim in dims if dim and not dim[0][1])
    exprs = {name: const(0, "int32") if extent else iota(*none) for name, extent in x.axes}
    return Tensor(view(x.node, exprs), dims)


def _into(exprs: dict[str, Node], name: str, expr: Node) -> dict[str, Node]:
    """`exprs` with one more axis replaced, inside them too."""
    return {**{a: substitute(e, {name: expr}) for a, e in exprs.items()}, name: expr}


def _mixed_group(axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Dim, tuple[int, ...]]:
    """The shortest prefixes of both with equal products."""
    n, m = 1, 1
    have, want = axes[0][1], sizes[0]
    while have != want:
        if have < want:
            have *= axes[n][1]
            n += 1
        else:
            want *= sizes[m]
            m += 1
    return tuple(axes[:n]), tuple(sizes[:m])


def expand(names: Names, x: Tensor, shape: Sequence[int]) -> Tensor:
    """Numpy's broadcast of `x` with `shape`; no node is made."""
    rank = max(x.rank, len(shape))
    dims = ((),) * (rank - x.rank) + x.dims
    sizes = (1,) * (rank - len(shape)) + tuple(shape)
    out = []
    for dim, size in zip(dims, sizes):
        extent = math.prod(e for _, e in dim)
        if size not in (1, extent) and extent != 1:
            raise ModelError(f"shape {x.shape} does not broadcast with {tuple(shape)}")
        out.append(dim if extent != 1 else names.axis("e", size))
    return Tensor(x.node, tuple(out))


def narrow(names: Names, x: Tensor, at: int, start: int, size: int, step: int = 1) -> Tensor:
    """`size` entries of dimension `at`, from `start` in steps of `step` (which may be negative)."""
    dim, whole = x.dims[at], x.shape[at]
    if (start, size, step) == (0, whole, 1):
        return x
    inner = math.prod(e for _, e in dim[1:])
    if len(dim) > 1 and inner and step == 1 and start % inner == 0 and size % inner == 0:
        outer = names.axis(hint_of(dim[0][0]), size // inner)
        at_outer = index_of(outer) + start // inner
        node = view(x.node, {dim[0][0]: at_outer})
        return Tensor(node, (*x.dims[:at], outer + dim[1:], *x.dims[at + 1 :]))
    x = flatten_dim(names, x, at)
    new = names.axis(hint_of(x.dims[at][0][0]) if x.dims[at] else "s", size)
    exprs = {name: index_of(new) * step + start for name, _ in x.dims[at]}
    return Tensor(view(x.node, exprs), (*x.dims[:at], new, *x.dims[at + 1 :]))


def squeeze_axes(node: Node, axes: Sequence[Axis]) -> Tensor:
    """A tensor with one dimension an axis of `node`; those of extent 1 are read at 0."""
    ones = {name: const(0, "int32") for name, extent in axes if extent == 1}
    dims = tuple(((name, extent),) if extent != 1 else () for name, extent in axes)
    return Tensor(view(node, ones), dims)


# ---- joining ----------------------------------------------------------------------------------

Term = tuple[Tensor, Sequence[Hashable]]


def unify(names: Names, *terms: Term) -> tuple[list[Node], dict[Hashable, Dim]]:
    """Nodes of the tensors over common axes, so that maps join them as their labels say.

    Args: terms, pairs of a tensor and one label per dimension; dimensions of one label are the
        same axes afterwards (size 1 broadcasts), dimensions of different labels never are.
    Returns: a node for each tensor, and for each label the axes it stands for.
    """
    tensors = [x for x, _ in terms]
    labels = list(dict.fromkeys(label for _, marks in terms for label in marks))
    uses = {
        label: [(t, at) for t, (x, marks) in enumerate(terms) for at, m in enumerate(marks)
                if m == label and x.dims[at]]
        for label in labels
    }  # fmt: skip
    for label in labels:
        sizes = sorted({tensors[t].shape[at] for t, at in uses[label]})
        if len(sizes) > 1:
            shapes = " and ".join(str(x.shape) for x, _ in terms)
            raise ModelError(f"shapes {shapes} do not fit: one dimension is {sizes[0]}, "
                             f"the other {sizes[1]}")  # fmt: skip
        radices = _common_radices([tensors[t].dims[at] for t, at in uses[label]])
        for t, at in uses[label]:
            if radices is None:
                tensors[t] = flatten_dim(names, tensors[t], at)
            elif len(radices) > len(tensors[t].dims[at]):
                tensors[t] = _refine(names, tensors[t], at, radices)
    chosen = _choose(names, tensors, labels, uses)
    nodes = []
    for x, (_, marks) in zip(tensors, terms):
        exprs = {
            old: iota(new, extent)
            for dim, label in zip(x.dims, marks)
            for (old, extent), (new, _) in zip(dim, chosen[label])
        }
        nodes.append(view(x.node, exprs))
    return nodes, chosen


def _choose(
    names: Names,
    tensors: Sequence[Tensor],
    labels: Sequence[Hashable],
    uses: Mapping[Hashable, Sequence[tuple[int, int]]],
) -> dict[Hashable, Dim]:
    """Axes of every label: the oldest name of an axis that a node has, if no other took it."""
    taken: set[str] = set()
    chosen: dict[Hashable, Dim] = {}
    for label in labels:
        dims = [(tensors[t], tensors[t].dims[at]) for t, at in uses[label]]
        out: list[Axis] = []
        for n in range(len(dims[0][1]) if dims else 0):
            options = sorted(
                (dim[n][0] not in x.node.names, names.age(dim[n][0]), dim[n][0])
                for x, dim in dims
            )  # fmt: skip
            free = [name for _, _, name in options if name not in taken]
            name = free[0] if free else names.fresh(hint_of(options[0][2]))
            taken.add(name)
            out.append((name, dims[0][1][n][1]))
        chosen[label] = tuple(out)
    return chosen


def broadcast(names: Names, *tensors: Tensor) -> tuple[list[Node], tuple[Dim, ...]]:
    """Nodes of the tensors over common axes by numpy's rules, and the dims of the result."""
    rank = max(x.rank for x in tensors)
    nodes, axes = unify(names, *((x, range(rank - x.rank, rank)) for x in tensors))
    return nodes, tuple(axes[n] for n in range(rank))
