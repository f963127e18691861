"""The ATen rows that move elements, read at integer values, or make tensors of nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from autosched.ir.extent import simplify
from autosched.ir.frontend.aten import Aten, Operand, Scalar, row
from autosched.ir.frontend.call import Row, Unsupported
from autosched.ir.frontend.elementwise import to_dtype
from autosched.ir.frontend.gather import read_at, rows_at
from autosched.ir.frontend.movement import concat, pad_dim, part
from autosched.ir.frontend.tensor import (
    Tensor,
    expand,
    flatten_dim,
    index_of,
    narrow,
    reshape,
    transpose,
    unify,
    view,
)  # fmt: skip
from autosched.ir.frontend.window import Window, slide
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, map_, maximum, minimum, where

# ---- views -------------------------------------------------------------------------------------


def _reshaped(c: Aten, x: Tensor, *_: object) -> Tensor:
    """The same elements in the shape of the result, whatever names it."""
    return reshape(c.names, x, c.shape)


def _expanded(c: Aten, x: Tensor, *_: object) -> Tensor:
    return expand(c.names, x, c.shape)


def _permute(c: Aten, x: Tensor, dims: Sequence[int]) -> Tensor:
    return transpose(x, [x.position(d) for d in dims])


def _swapped(c: Aten, x: Tensor, first: int = -2, second: int = -1) -> Tensor:
    if x.rank < 2:
        return x
    order = list(range(x.rank))
    a, b = x.position(first), x.position(second)
    order[a], order[b] = b, a
    return transpose(x, order)


def _moved(c: Aten, x: Tensor, source: Sequence[int], target: Sequence[int]) -> Tensor:
    taken = {x.position(t): x.position(s) for s, t in zip(source, target)}
    rest = iter(n for n in range(x.rank) if n not in taken.values())
    return transpose(x, [taken[n] if n in taken else next(rest) for n in range(x.rank)])


# ---- parts -------------------------------------------------------------------------------------


def _select(c: Aten, x: Tensor, dim: int, index: int) -> Tensor:
    at = x.position(dim)
    one = narrow(c.names, x, at, index % x.shape[at], 1)
    return Tensor(one.node, (*one.dims[:at], *one.dims[at + 1 :]))


def _slice(
    c: Aten, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> Tensor:  # fmt: skip
    at = x.position(dim)
    picked = range(x.shape[at])[slice(start, end, step)]
    return part(c.names, x, at, picked.start if len(picked) else 0, len(picked), step)


def _narrow(c: Aten, x: Tensor, dim: int, start: int, length: int) -> Tensor:
    at = x.position(dim)
    return part(c.names, x, at, start % x.shape[at] if length else 0, length)


def _parts(c: Aten, x: Tensor, _: object, dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces along a dimension; how long each is, the results tell."""
    at, start, made = x.position(dim), 0, []
    for out in c.out:
        made.append(part(c.names, x, at, start, out.shape[at]))
        start += out.shape[at]
    return tuple(made)


def _unbind(c: Aten, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    return tuple(_select(c, x, dim, n) for n in range(x.shape[x.position(dim)]))


def _cat(c: Aten, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    parts = [c.tensor(x) for x in tensors if x.shape != (0,) or len(c.shape) == 1]
    return concat(c.names, parts, parts[0].position(dim))


def _stack(c: Aten, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    at = dim % len(c.shape)
    parts = [c.tensor(x) for x in tensors]
    new = [Tensor(x.node, (*x.dims[:at], (), *x.dims[at:])) for x in parts]
    return concat(c.names, new, at)


def _repeat(c: Aten, x: Tensor, repeats: Sequence[int]) -> Tensor:
    wide = Tensor(x.node, (*((),) * (len(repeats) - x.rank), *x.dims))
    return c.onnx("Tile", wide, np.array(repeats))[0]


def _repeat_each(c: Aten, x: Tensor, count: int, dim: int | None = None, *_: object) -> Tensor:
    """Every entry of a dimension several times, one after the other."""
    if dim is None:
        x, dim = reshape(c.names, x, (int(np.prod(x.shape)),)), 0
    at = x.position(dim)
    inner = x.dims[at] + c.names.axis("t", count)
    return Tensor(x.node, (*x.dims[:at], inner, *x.dims[at + 1 :]))


def _flip(c: Aten, x: Tensor, dims: Sequence[int]) -> Tensor:
    for at in map(x.position, dims):
        if x.shape[at]:
            x = narrow(c.names, x, at, x.shape[at] - 1, x.shape[at], -1)
    return x


def _roll(c: Aten, x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    shape = x.shape
    if not dims:
        x, dims = reshape(c.names, x, (int(np.prod(shape)),)), (0,)
    for shift, at in zip(shifts, map(x.position, dims)):
        size = x.shape[at]
        if size and shift % size:
            first = shift % size
            ends = (part(c.names, x, at, size - first, first),
                    part(c.names, x, at, 0, size - first))  # fmt: skip
            x = concat(c.names, ends, at)
    return reshape(c.names, x, shape)


def _unfold(c: Aten, x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """Windows along a dimension; the places in each become the last one."""
    at = x.position(dim)
    count = (x.shape[at] - size) // step + 1
    slid = slide(c.names, x, at, Window(size, step, 1, 0, 0, 0, count), const(0, x.dtype))
    return Tensor(slid.node, (*slid.dims[: at + 1], *slid.dims[at + 2 :], slid.dims[at + 1]))


def _diagonal(c: Aten, x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    a, b = x.position(dim1), x.position(dim2)
    size = c.shape[-1]
    x = part(c.names, x, a, max(-offset, 0), size)
    x = part(c.names, x, b, max(offset, 0), size)
    labels: list[Hashable] = ["both" if n in (a, b) else n for n in range(x.rank)]
    (node,), axes = unify(c.names, (x, labels))
    rest = [n for n in range(x.rank) if n not in (a, b)]
    return Tensor(node, (*(axes[n] for n in rest), axes["both"]))


_PADS = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _padded(c: Aten, x: Tensor, pad: Sequence[int], mode: str, value: Scalar | None) -> Tensor:
    """pad: before and after, of the last dimension first."""
    fill = const(value or 0, x.dtype)
    for n in range(len(pad) // 2):
        at = x.rank - 1 - n
        x = pad_dim(c.names, x, at, pad[2 * n], pad[2 * n + 1], _PADS[mode], fill)
    return x


def _pad_by(mode: str) -> Callable[..., Tensor]:
    return lambda c, x, pad, value=None: _padded(c, x, pad, mode, value)


def _pad(
    c: Aten, x: Tensor, pad: Sequence[int], mode: str = "constant", value: Scalar | None = None
) -> Tensor:
    return _padded(c, x, pad, mode, value)


# ---- writing into a copy -----------------------------------------------------------------------


def _slice_scatter(
    c: Aten, x: Tensor, source: Tensor, dim: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> Tensor:  # fmt: skip
    """`x` with a slice of it replaced."""
    at = x.position(dim)
    picked = range(x.shape[at])[slice(start, end, step)]
    if not len(picked):
        return x
    if picked == range(x.shape[at]):
        return c.tensor(source)
    x, source = flatten_dim(c.names, x, at), flatten_dim(c.names, source, at)
    labels: list[Hashable] = list(range(x.rank))
    own = [("new",) if n == at else n for n in labels]
    (old, new), axes = unify(c.names, (x, labels), (source, own))
    here = index_of(axes[at])
    place = simplify((here - picked.start) // step)
    inside = minimum(maximum(place, 0), len(picked) - 1)
    new = view(new, {name: inside for name, _ in axes["new",]})
    hit = (here >= picked.start) & (here <= picked[-1])
    if step > 1:
        hit = hit & map_("eq", (here - picked.start) % step, 0)
    out = where(simplify(hit), cast(new, old.dtype), old)
    return Tensor(out, tuple(axes[n] for n in labels))


def _select_scatter(c: Aten, x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    at = x.position(dim)
    place = index % x.shape[at]
    wide = Tensor(source.node, (*source.dims[:at], (), *source.dims[at:]))
    return _slice_scatter(c, x, wide, at, place, place + 1)


def _copied(c: Aten, x: Tensor, source: Operand, *_: object) -> Tensor:
    """The values of `source` in the place of those of `x`."""
    return expand(c.names, c.tensor(source), c.shape)


# ---- reading at integer values -----------------------------------------------------------------


def _embedding(c: Aten, weight: Tensor, index: Tensor, *_: object) -> Tensor:
    return rows_at(c.names, weight, index, 0)


def _index_select(c: Aten, x: Tensor, dim: int, index: Tensor) -> Tensor:
    return rows_at(c.names, x, index, x.position(dim))


def _gather(c: Aten, x: Tensor, dim: int, index: Tensor, *_: object) -> Tensor:
    return c.onnx("GatherElements", x, index, axis=dim)[0]


def _index(c: Aten, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Indices of several dimensions at once; they broadcast, and their dimensions come where the
    first of them was, or in front where others lie between."""
    given = {at: index for at, index in enumerate(indices) if index is not None}
    if any(index.dtype == "bool" for index in given.values()):
        raise Unsupported("picks by truth values, so that its shape depends on the data")
    for at in given:
        x = flatten_dim(c.names, x, at)
    rank = max(index.rank for index in given.values())
    labels: list[Hashable] = [("x", n) for n in range(x.rank)]
    terms = [(i, [("index", rank - i.rank + n) for n in range(i.rank)]) for i in given.values()]
    (value, *where_), axes = unify(c.names, (x, labels), *terms)
    for at, index in zip(given, where_):
        for name, extent in axes["x", at]:
            if name in value.names:
                value = read_at(value, name, extent, cast(index, "int64"))
    first = min(given)
    together = max(given) - first + 1 == len(given)
    front = [label for n, label in enumerate(labels) if n not in given and n < first]
    back = [label for n, label in enumerate(labels) if n not in given and n > first]
    picked: list[Hashable] = [("index", n) for n in range(rank)]
    order = [*front, *picked, *back] if together else [*picked, *front, *back]
    dims = [axes.get(label, ()) for label in order]
    return Tensor(value, tuple(dims))


# ---- making tensors ----------------------------------------------------------------------------


def _filled(value: Scalar) -> Callable[..., Tensor]:
    return lambda c, *_: _full(c, value)


def _full(c: Aten, value: Operand) -> Tensor:
    return expand(c.names, c.tensor(value), c.shape)


def _arange(c: Aten, start: Scalar, step: Scalar) -> Tensor:
    new = c.names.axis("i", c.shape[0])
    kind = "int64" if c.dtype not in ("float32", "float64") else "float64"
    position = cast(index_of(new), kind)
    node: Node = position if step == 1 else position * step
    return Tensor(cast(node if not start else node + start, c.dtype), (new,))


def _triangle(upper: int) -> Callable[..., Tensor]:
    def build(c: Aten, x: Tensor, diagonal: int = 0) -> Tensor:
        return c.onnx("Trilu", x, np.array(diagonal), upper=upper)[0]

    return build


def _one_hot(c: Aten, x: Tensor, classes: int = -1) -> Tensor:
    if classes < 0:
        raise Unsupported("with a number of classes that depends on the data")
    new = c.names.axis("hot", classes)
    hit = map_("eq", cast(x.node, "int64"), cast(index_of(new), "int64"))
    return Tensor(to_dtype(hit, c.dtype), (*x.dims, new))


def _shuffled(op: str) -> Callable[..., Tensor]:
    """Blocks of channels to places, or back, in the order that torch has."""

    def build(c: Aten, x: Tensor, factor: int) -> Tensor:
        if x.rank != 4:
            raise Unsupported(f"of rank {x.rank}")
        return c.onnx(op, x, blocksize=factor, mode="CRD")[0]

    return build


_RESHAPES = (
    "view.default", "_unsafe_view.default", "reshape.default", "view_as.default",
    "reshape_as.default", "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims",
    "flatten.using_ints", "unflatten.int", "atleast_1d.default", "atleast_2d.default",
)  # fmt: skip
_SPLITS = ("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default",
           "unsafe_split.Tensor", "unsafe_chunk.default", "tensor_split.sections",
           "split_with_sizes_copy.default", "split_copy.Tensor")  # fmt: skip

ROWS: tuple[Row, ...] = (
    *(row(name, _reshaped) for name in _RESHAPES),
    *(row(name, _parts) for name in _SPLITS),
    *(row(f"{name}.default", _expanded)
      for name in ("expand", "expand_as", "broadcast_to", "expand_copy")),
    *(row(name, _permute) for name in ("permute.default", "permute_copy.default")),
    *(row(name, _swapped) for name in
      ("transpose.int", "t.default", "mT.default", "swapaxes.default", "swapdims.default")),
    *(row(name, _moved) for name in ("movedim.intlist", "moveaxis.intlist")),
    row("select.int", _select),
    row("slice.Tensor", _slice),
    row("narrow.default", _narrow),
    row("unbind.int", _unbind),
    row("cat.default", _cat),
    row("concat.default", _cat),
    row("stack.default", _stack),
    row("repeat.default", _repeat),
    row("tile.default", _repeat),
    row("repeat_interleave.self_int", _repeat_each),
    row("flip.default", _flip),
    row("roll.default", _roll),
    row("unfold.default", _unfold),
    row("diagonal.default", _diagonal),
    row("constant_pad_nd.default", _pad_by("constant")),
    row("pad.default", _pad),
    *(row(f"{kind}_pad{n}d.default", _pad_by(mode)) for n in (1, 2, 3)
      for kind, mode in (("reflection", "reflect"), ("replication", "replicate"))),
    row("slice_scatter.default", _slice_scatter),
    row("select_scatter.default", _select_scatter),
    row("copy.default", _copied),
    row("fill.Scalar", _copied),
    row("fill.Tensor", _copied),
    row("embedding.default", _embedding),
    row("index_select.default", _index_select),
    row("gather.default", _gather),
    row("index.Tensor", _index),
    row("full.default", lambda c, size, value, *_: _full(c, value)),
    row("full_like.default", lambda c, x, value, *_: _full(c, value)),
    row("new_full.default", lambda c, x, size, value, *_: _full(c, value)),
    *(row(f"{prefix}{name}{suffix}.default", _filled(value))
      for name, value in (("zeros", 0), ("ones", 1), ("empty", 0))
      for prefix, suffix in (("", ""), ("", "_like"), ("new_", ""))
      if (name, prefix, suffix) != ("empty", "", "")),
    row("empty.memory_format", _filled(0)),
    row("arange.default", lambda c, *_: _arange(c, 0, 1)),
    row("arange.start", lambda c, start, *_: _arange(c, start, 1)),
    row("arange.start_step", lambda c, start, end, step, *_: _arange(c, start, step)),
    row("tril.default", _triangle(0)),
    row("triu.default", _triangle(1)),
    row("one_hot.default", _one_hot),
    row("pixel_shuffle.default", _shuffled("DepthToSpace")),
    row("pixel_unshuffle.default", _shuffled("SpaceToDepth")),
)  # fmt: skip
