"""The rows of operators that move elements, and of those that only tell or make shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from autosched.ir.frontend.call import Call, Result, Row, Unsupported
from autosched.ir.frontend.elementwise import to_dtype
from autosched.ir.frontend.literal import Array
from autosched.ir.frontend.tensor import (
    Dim,
    Names,
    Tensor,
    broadcast,
    expand,
    flatten_dim,
    index_of,
    narrow,
    reshape,
    transpose,
    unify,
    view,
)  # fmt: skip
from autosched.ir.graph import ModelError
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, iota, map_, maximum, minimum, where
from autosched.ir.scalar import DTYPES

# ---- shapes -----------------------------------------------------------------------------------


def _shape(call: Call) -> Array:
    shape = call.x().shape
    return np.array(shape[slice(call.attr("start", 0), call.attr("end"))], np.int64)


def _size(call: Call) -> Array:
    return np.array(math.prod(call.x().shape), np.int64)


def _reshape(call: Call) -> Tensor:
    x, wanted = call.x(), call.ints(1, "shape")
    assert wanted is not None
    if not call.attr("allowzero", 0):
        wanted = [x.shape[n] if s == 0 else s for n, s in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(s for s in wanted if s != -1)
        wanted[wanted.index(-1)] = math.prod(x.shape) // rest if rest else 0
    return reshape(call.names, x, wanted)


def _flatten(call: Call) -> Tensor:
    x, axis = call.x(), call.attr("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    return Tensor(x.node, tuple(sum(part, ()) for part in (x.dims[:axis], x.dims[axis:])))


def _transpose(call: Call) -> Tensor:
    x = call.x()
    return transpose(x, call.attr("perm", list(range(x.rank))[::-1]))


def _squeeze(call: Call) -> Tensor:
    x, axes = call.x(), call.ints(1, "axes")
    ones = [n for n, s in enumerate(x.shape) if s == 1]
    gone = ones if axes is None else [x.position(a) for a in axes]
    if not set(gone) <= set(ones):
        raise ModelError(f"dimensions {gone} of shape {x.shape} are not all of size 1")
    return Tensor(x.node, tuple(dim for n, dim in enumerate(x.dims) if n not in gone))


def _unsqueeze(call: Call) -> Tensor:
    x, axes = call.x(), call.ints(1, "axes")
    assert axes is not None
    rank = x.rank + len(axes)
    new = {a % rank for a in axes}
    rest = iter(x.dims)
    return Tensor(x.node, tuple(() if n in new else next(rest) for n in range(rank)))


def _expand(call: Call) -> Tensor:
    shape = call.ints(1, "shape")
    assert shape is not None
    return expand(call.names, call.x(), shape)


def _tile(call: Call) -> Tensor:
    """Each repeated dimension gets an axis in front that the value does not depend on."""
    x, repeats = call.x(), call.ints(1, "repeats")
    assert repeats is not None
    dims = tuple(call.names.axis("t", n) + dim for n, dim in zip(repeats, x.dims))
    return Tensor(x.node, dims)


def _identity(call: Call) -> Tensor:
    return call.x()


def _dropout(call: Call) -> tuple[Result, ...]:
    training, ratio = call.known(2), call.known(1)
    if call.has(2) and (training is None or bool(training)) and (ratio is None or ratio != 0):
        raise Unsupported("draws random numbers")
    x = call.x()
    return x, Tensor(const(True, "bool"), x.dims)


# ---- parts ------------------------------------------------------------------------------------


def concat(names: Names, parts: Sequence[Tensor], at: int) -> Tensor:
    """Parts joined along a dimension. Equal parts get an axis that counts them: no clamps."""
    parts = [p for p in parts if p.shape[at] != 0]
    if len(parts) == 1:
        return parts[0]
    sizes = [p.shape[at] for p in parts]
    if len(set(sizes)) == 1:
        nodes, dims = broadcast(names, *parts)
        count = names.axis("part", len(parts))
        which = iota(*count[0])
        node = reduce(lambda rest, n: _select(map_("eq", which, n), nodes[n], rest),
                      range(len(parts) - 2, -1, -1), nodes[-1])  # fmt: skip
        return Tensor(node, (*dims[:at], count + dims[at], *dims[at + 1 :]))
    flat = [flatten_dim(names, p, at) for p in parts]
    labels = [[("part", i) if n == at else n for n in range(p.rank)] for i, p in enumerate(flat)]
    nodes, axes = unify(names, *zip(flat, labels))
    new = names.axis("c", sum(sizes))
    here, start = iota(*new[0]), sum(sizes)
    out: Node | None = None
    for i in reversed(range(len(flat))):
        start -= sizes[i]
        inside = minimum(maximum(here - start, 0), sizes[i] - 1)
        value = view(nodes[i], {name: inside for name, _ in axes["part", i]})
        out = value if out is None else _select(here < start + sizes[i], value, out)
    assert out is not None
    return Tensor(out, tuple(new if n == at else axes[n] for n in range(flat[0].rank)))


def _select(cond: Node, yes: Node, no: Node) -> Node:
    return yes if yes is no else where(cond, yes, no)


def _concat(call: Call) -> Tensor:
    parts = [call.x(n) for n in range(len(call.inputs))]
    at = parts[0].position(call.attr("axis"))
    return concat(call.names, parts, at)


def _split(call: Call) -> tuple[Result, ...]:
    x = call.x()
    at = x.position(call.attr("axis", 0))
    sizes = call.ints(1, "split")
    if sizes is None:
        count = call.attr("num_outputs", call.n_outputs)
        step = -(-x.shape[at] // count)
        sizes = [min(step, x.shape[at] - n * step) for n in range(count)]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return tuple(part(call.names, x, at, b, s, 1) for b, s in zip(starts, sizes))


def part(names: Names, x: Tensor, at: int, start: int, size: int, step: int = 1) -> Tensor:
    """Like `narrow`; nothing is read where nothing is left."""
    if size > 0:
        return narrow(names, x, at, start, size, step)
    none: Dim = ((names.fresh("none"), 0),)
    return Tensor(const(0, x.dtype), (*x.dims[:at], none, *x.dims[at + 1 :]))


def _slice(call: Call) -> Tensor:
    x = call.x()
    starts, ends = call.ints(1, "starts"), call.ints(2, "ends")
    assert starts is not None and ends is not None
    axes = call.ints(3, "axes") or list(range(len(starts)))
    steps = call.ints(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        at = x.position(axis)
        picked = range(x.shape[at])[slice(*_bounds(start, end, step, x.shape[at]), step)]
        x = part(call.names, x, at, picked[0] if picked else 0, len(picked), step)
    return x


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int, int | None]:
    """ONNX's start and end, both clamped after negatives count from the end, as Python's."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return max(start, 0), max(end, 0)
    return min(max(start, 0), size - 1), None if end < 0 else end


# ---- Pad, Trilu, OneHot and other functions of coordinates --------------------------------------


def _pad(call: Call) -> Tensor:
    x, pads = call.x(), call.ints(1, "pads")
    assert pads is not None
    mode = call.attr("mode", "constant")
    axes = call.ints(3, "axes") if call.has(3) else None
    at = [x.position(a) for a in axes] if axes is not None else list(range(x.rank))
    fill = call.x(2).node if call.has(2) else const(0, x.dtype)
    for n, axis in enumerate(at):
        x = pad_dim(call.names, x, axis, pads[n], pads[n + len(at)], mode, fill)
    return x


def pad_dim(
    names: Names, x: Tensor, at: int, before: int, after: int, mode: str, fill: Node
) -> Tensor:
    """Entries added on both sides of a dimension, or taken away where the count is negative."""
    if before < 0 or after < 0:
        cut = max(-before, 0)
        x = narrow(names, x, at, cut, x.shape[at] - cut - max(-after, 0))
        before, after = max(before, 0), max(after, 0)
    if not before and not after:
        return x
    x, size = flatten_dim(names, x, at), x.shape[at]
    new = names.axis("p", before + size + after)
    here = iota(*new[0]) - before
    last = size - 1
    inside = minimum(maximum(here, 0), last)
    if mode == "wrap":
        inside = here % size
    elif mode == "reflect" and size > 1:
        # A zigzag of period 2 * last through 0, 1, ..., last, ..., 1.
        inside = last - map_("abs", last - here % (2 * last))
    value = view(x.node, {name: inside for name, _ in x.dims[at]})
    if mode == "constant":
        value = where((here >= 0) & (here < size), value, fill)
    return Tensor(value, (*x.dims[:at], new, *x.dims[at + 1 :]))


def _trilu(call: Call) -> Tensor:
    x, k = call.x(), call.ints(1, "diagonal")
    offset = k[0] if k else 0
    row, column = (cast(index_of(dim), "int32") for dim in x.dims[-2:])
    upper = bool(call.attr("upper", 1))
    keep = column >= row + offset if upper else column <= row + offset
    return x.with_node(where(keep, x.node, const(0, x.dtype)))


def _eye_like(call: Call) -> Tensor:
    x = call.x()
    dtype = call.dtype("dtype") if call.attr("dtype") is not None else x.dtype
    names = call.names
    dims = tuple(names.axis(h, s) for h, s in zip(("row", "column"), x.shape))
    on = map_("eq", index_of(dims[1]), index_of(dims[0]) + call.attr("k", 0))
    return Tensor(to_dtype(on, dtype), dims)


def _one_hot(call: Call) -> Tensor:
    index, depth = call.x(0), call.ints(1, "depth")
    assert depth is not None
    values = call.x(2)
    at = call.attr("axis", -1) % (index.rank + 1)
    off, on = (narrow(call.names, values, 0, n, 1).node for n in (0, 1))
    new = call.names.axis("hot", depth[0])
    wanted = cast(index.node, "int64") if index.dtype not in ("int32", "int64") else index.node
    wanted = where(wanted < 0, wanted + depth[0], wanted)
    node = where(map_("eq", wanted, cast(index_of(new), wanted.dtype)), on, off)
    return Tensor(node, (*index.dims[:at], new, *index.dims[at:]))


def _range(call: Call) -> Tensor:
    known = [call.known(n) for n in range(3)]
    if any(k is None for k in known):
        raise Unsupported("its bounds are computed at run time")
    start, limit, delta = (k.reshape(()).item() for k in known if k is not None)
    dtype = call.x(0).dtype
    new = call.names.axis("i", max(math.ceil((limit - start) / delta), 0))
    return Tensor(cast(index_of(new), dtype) * delta + start, (new,))


def _constant_of_shape(call: Call) -> Tensor:
    shape = call.ints(0, "shape")
    assert shape is not None
    value = call.attr("value", np.zeros(1, np.float32))
    kind = value.dtype.name
    if kind not in DTYPES:
        raise Unsupported(f"of type {kind}")
    return expand(call.names, Tensor(const(value.reshape(()).item(), kind), ()), shape)


def _constant(call: Call) -> Array:
    kinds = {"value": None, "value_float": np.float32, "value_floats": np.float32,
             "value_int": np.int64, "value_ints": np.int64,
             "value_string": np.object_, "value_strings": np.object_}  # fmt: skip
    for name, kind in kinds.items():
        if call.attr(name) is not None:
            return np.asarray(call.attr(name), kind)
    raise Unsupported("of a sparse tensor")


def _depth_to_space(call: Call) -> Tensor:
    x, size = call.x(), call.attr("blocksize")
    b, c, h, w = x.shape
    if call.attr("mode", "DCR") == "DCR":
        x = reshape(call.names, x, (b, size, size, c // size**2, h, w))
        x = transpose(x, (0, 3, 4, 1, 5, 2))
    else:
        x = reshape(call.names, x, (b, c // size**2, size, size, h, w))
        x = transpose(x, (0, 1, 4, 2, 5, 3))
    return reshape(call.names, x, (b, c // size**2, h * size, w * size))


def _space_to_depth(call: Call) -> Tensor:
    x, size = call.x(), call.attr("blocksize")
    b, c, h, w = x.shape
    x = reshape(call.names, x, (b, c, h // size, size, w // size, size))
    x = transpose(
        x, (0, 3, 5, 1, 2, 4) if call.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    )
    return reshape(call.names, x, (b, c * size**2, h // size, w // size))


_VIEWS = (13, 21, 23, 24, 25)  # versions that only added types
ROWS: tuple[Row, ...] = (
    Row("Shape", (13, 15, 19, 21, 23, 24, 25), _shape),
    Row("Size", (13, 19, 21, 23, 24, 25), _size),
    Row("Reshape", (13, 14, 19, 21, 23, 24, 25), _reshape),
    Row("Flatten", _VIEWS, _flatten),
    Row("Transpose", _VIEWS, _transpose),
    Row("Squeeze", _VIEWS, _squeeze),
    Row("Unsqueeze", _VIEWS, _unsqueeze),
    Row("Expand", (13,), _expand),
    Row("Tile", (13,), _tile),
    Row("Identity", (13, 14, 16, 19, 21, 23, 24, 25), _identity),
    Row("Dropout", (13, 22), _dropout),
    Row("Concat", (13,), _concat),
    Row("Split", (13, 18), _split),
    Row("Slice", (13,), _slice),
    Row("Pad", (13, 18, 19, 21, 23, 24, 25), _pad),
    Row("Trilu", (14,), _trilu),
    Row("EyeLike", (9, 22), _eye_like),
    Row("OneHot", (11, 28), _one_hot),
    Row("Range", (11, 27), _range),
    Row("ConstantOfShape", (9, 20, 21, 23, 24, 25), _constant_of_shape),
    Row("Constant", (13, 19, 21, 23, 24, 25), _constant),
    Row("DepthToSpace", (13, 28), _depth_to_space),
    Row("SpaceToDepth", (13, 28), _space_to_depth),
)
