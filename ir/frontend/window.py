"""The rows that slide windows: convolutions and pooling.

A window is a view, `x[o * stride + i * dilation - before]`, and padding a test of that position:
whether a backend gathers, packs or reads overlapping boxes is none of the importer's business.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from autosched.ir.extent import simplify
from autosched.ir.frontend.call import Call, Result, Row, wide
from autosched.ir.frontend.contraction import contract
from autosched.ir.frontend.elementwise import joined, swish
from autosched.ir.frontend.movement import concat, pad_dim, part
from autosched.ir.frontend.reduction import axes_of, pick_over, size_of, sum_over
from autosched.ir.frontend.tensor import (
    Dim,
    Names,
    Tensor,
    flatten_dim,
    index_of,
    narrow,
    reshape,
    view,
)  # fmt: skip
from autosched.ir.graph import ModelError
from autosched.ir.monoid import dtype_limit
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, get, map_, maximum, minimum, reduce_, sqrt, where


@dataclass(frozen=True)
class Window:
    """How a window slides along one dimension; before, after: entries of padding; counted: how
    many of those after it the model asks for, and not only the last window reaches."""

    size: int
    stride: int
    dilation: int
    before: int
    after: int
    counted: int
    count: int  # windows


def sliding(call: Call, x: Tensor, sizes: Sequence[int]) -> list[Window]:
    """The windows along the dimensions of `x` behind the first two."""
    rank = len(sizes)
    if rank != x.rank - 2:
        raise ModelError(f"a window of {rank} dimensions on a tensor of shape {x.shape}")
    strides = list(call.attr("strides", [1] * rank))
    dilations = list(call.attr("dilations", [1] * rank))
    pads = list(call.attr("pads", [0] * 2 * rank))
    auto, up = call.attr("auto_pad", "NOTSET"), call.attr("ceil_mode", 0)
    found = []
    for n, (size, stride, dilation) in enumerate(zip(sizes, strides, dilations)):
        whole, reach = x.shape[2 + n], (size - 1) * dilation + 1
        before, after = pads[n], pads[n + rank]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            missing = max((-(-whole // stride) - 1) * stride + reach - whole, 0)
            small, big = missing // 2, missing - missing // 2
            before, after = (small, big) if auto == "SAME_UPPER" else (big, small)
        elif auto == "VALID":
            before = after = 0
        steps = whole + before + after - reach
        count = (-(-steps // stride) if up else steps // stride) + 1
        if up and (count - 1) * stride >= whole + before:
            count -= 1  # no window begins in the padding behind
        needed = max((count - 1) * stride + reach - whole - before, 0)
        found.append(Window(size, stride, dilation, before, needed, after, max(count, 0)))
    return found


def slide(names: Names, x: Tensor, at: int, w: Window, fill: Node) -> Tensor:
    """Dimension `at` as two: the windows along it, and the places in a window."""
    if (w.stride, w.dilation, w.before, w.after) == (w.size, 1, 0, 0):
        x = narrow(names, x, at, 0, w.count * w.size)
        return reshape(names, x, (*x.shape[:at], w.count, w.size, *x.shape[at + 1 :]))
    x = flatten_dim(names, pad_dim(names, x, at, w.before, w.after, "constant", fill), at)
    out, place = names.axis("o", w.count), names.axis("w", w.size)
    here = index_of(out) * w.stride + index_of(place) * w.dilation
    node = view(x.node, {name: here for name, _ in x.dims[at]})
    return Tensor(node, (*x.dims[:at], out, place, *x.dims[at + 1 :]))


def _slide_all(names: Names, x: Tensor, windows: Sequence[Window], fill: Node) -> Tensor:
    """[..., windows, places, windows, places, ...] for the last dimensions of `x`."""
    first = x.rank - len(windows)
    for n, window in enumerate(windows):
        x = slide(names, x, first + 2 * n, window, fill)
    return x


# ---- convolution ------------------------------------------------------------------------------


def _conv(call: Call) -> Tensor:
    x, w = call.x(0), call.x(1)
    y = convolved(call, x, w, call.x(2) if call.has(2) else None)
    return y.with_node(cast(y.node, x.dtype))


def convolved(call: Call, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution as its attributes say; half precision is float32 then."""
    windows = sliding(call, x, w.shape[2:])
    groups, spatial = call.attr("group", 1), len(windows)
    if x.shape[1] != groups * w.shape[1] or w.shape[0] % groups:
        raise ModelError(f"{groups} groups of weights {w.shape} on a tensor of shape {x.shape}")
    x = reshape(call.names, x, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    w = reshape(call.names, w, (groups, w.shape[0] // groups, *w.shape[1:]))
    x = _slide_all(call.names, x, windows, const(0, x.dtype))
    out, inner = [("o", n) for n in range(spatial)], [("i", n) for n in range(spatial)]
    patches: list[Hashable] = ["b", "g", "c", *(p for pair in zip(out, inner) for p in pair)]
    y = contract(call.names, ["b", "g", "m", *out], (x, patches), (w, ["g", "m", "c", *inner]))
    y = Tensor(y.node, (y.dims[0], y.dims[1] + y.dims[2], *y.dims[3:]))
    return y if bias is None else _biased(call, y, bias)


def _biased(call: Call, y: Tensor, bias: Tensor) -> Tensor:
    """A number for each channel, dimension 1, added."""
    tail: tuple[Dim, ...] = ((),) * (y.rank - 2)
    return joined(call, lambda v, c: v + cast(c, v.dtype), y, Tensor(bias.node, bias.dims + tail))


def _causal_conv(call: Call) -> tuple[Result, ...]:
    """Each channel with its own kernel, over what came before it; and what comes before next."""
    x, w, names = call.x(0), call.x(1), call.names
    size, length = w.shape[2], x.shape[2]
    if call.has(3):
        whole = concat(names, [call.x(3), x], 2)
    else:
        whole = pad_dim(names, x, 2, size - 1, 0, "constant", const(0, x.dtype))
    slid = slide(names, whole, 2, Window(size, 1, 1, 0, 0, 0, length), const(0, x.dtype))
    y = contract(names, ["b", "c", "t"], (slid, ["b", "c", "t", "i"]), (w, ["c", "one", "i"]))
    if call.has(2):
        y = _biased(call, y, call.x(2))
    if call.attr("activation", "none") != "none":
        y = y.with_node(swish(y.node))
    return y.with_node(cast(y.node, x.dtype)), part(names, whole, 2, length, size - 1)


def _conv_transpose(call: Call) -> Tensor:
    """Each result sums what reaches it: x[o] * w[i] for o * stride + i * dilation - before = t."""
    x, w, names = call.x(0), call.x(1), call.names
    groups, spatial = call.attr("group", 1), x.rank - 2
    x = reshape(names, x, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    w = reshape(names, w, (groups, w.shape[0] // groups, *w.shape[1:]))
    for n, (window, extent) in enumerate(_spreading(call, x.shape[3:], w.shape[3:])):
        x = _spread(names, x, 3 + 2 * n, window, extent)
    out, inner = [("o", n) for n in range(spatial)], [("i", n) for n in range(spatial)]
    places: list[Hashable] = ["b", "g", "c", *(p for pair in zip(out, inner) for p in pair)]
    y = contract(names, ["b", "g", "m", *out], (x, places), (w, ["g", "c", "m", *inner]))
    y = Tensor(y.node, (y.dims[0], y.dims[1] + y.dims[2], *y.dims[3:]))
    y = _biased(call, y, call.x(2)) if call.has(2) else y
    return y.with_node(cast(y.node, x.dtype))


def _spreading(
    call: Call, shape: Sequence[int], sizes: Sequence[int]
) -> list[tuple[Window, int]]:
    """How the windows of a transposed convolution lie in its result, and the result's extents."""
    rank, auto = len(sizes), call.attr("auto_pad", "NOTSET")
    strides = list(call.attr("strides", [1] * rank))
    dilations = list(call.attr("dilations", [1] * rank))
    pads, more = call.attr("pads", [0] * 2 * rank), call.attr("output_padding", [0] * rank)
    wanted = list(call.attr("output_shape", []))[-rank:]
    if auto.startswith("SAME") and not wanted:
        wanted = [count * stride for count, stride in zip(shape, strides)]
    found = []
    for n, (count, size, stride, dilation) in enumerate(zip(shape, sizes, strides, dilations)):
        whole = (count - 1) * stride + (size - 1) * dilation + 1 + more[n]
        before, after = pads[n], pads[n + rank]
        if wanted:
            away = max(whole - wanted[n], 0)
            before = away // 2 if auto == "SAME_UPPER" else away - away // 2
        extent = wanted[n] if wanted else whole - before - after
        found.append((Window(size, stride, dilation, before, after, 0, count), extent))
    return found


def _spread(names: Names, x: Tensor, at: int, w: Window, extent: int) -> Tensor:
    """Dimension `at` as two: the results, and the places of the window that reach each."""
    x = flatten_dim(names, x, at)
    out, place = names.axis("o", extent), names.axis("w", w.size)
    reached = simplify(index_of(out) + w.before - index_of(place) * w.dilation)
    window = reached // w.stride
    inside = minimum(maximum(window, 0), w.count - 1)
    value = view(x.node, {name: inside for name, _ in x.dims[at]})
    hit = (window >= 0) & (window < w.count)
    if w.stride > 1:
        hit = hit & map_("eq", reached % w.stride, 0)
    node = where(simplify(hit), value, const(0, x.dtype))
    return Tensor(node, (*x.dims[:at], out, place, *x.dims[at + 1 :]))


# ---- pooling ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool:
    """`x` has the dimensions of the result, and the axes `places` within each window."""

    x: Tensor
    windows: tuple[Window, ...]
    places: tuple[Dim, ...]


def _pool(call: Call, fill: float | str) -> _Pool:
    x = call.x()
    windows = sliding(call, x, call.attr("kernel_shape"))
    x = _slide_all(call.names, x, windows, const(dtype_limit(fill, x.dtype), x.dtype))
    return _Pool(Tensor(x.node, (*x.dims[:2], *x.dims[2::2])), tuple(windows), x.dims[3::2])


def _average_pool(call: Call) -> Tensor:
    pool, dtype = _pool(call, 0), call.x().dtype
    places = axes_of(pool.places)
    y = pool.x.with_node(sum_over(wide(pool.x.node), places))
    counts = [_counts(call, n, w) for n, w in enumerate(pool.windows)]
    if all(np.all(c == w.size) for c, w in zip(counts, pool.windows)):
        return y.with_node(cast(y.node / size_of(places), dtype))
    for n, count in enumerate(counts):
        table = call.literals.tensor(count.astype(y.dtype), call.names.fresh("count"))
        tail: tuple[Dim, ...] = ((),) * (len(counts) - 1 - n)
        y = joined(call, lambda v, c: v / c, y, Tensor(table.node, table.dims + tail))
    return y.with_node(cast(y.node, dtype))


def _counts(call: Call, n: int, w: Window) -> np.ndarray:
    """How many entries each window along one dimension averages over."""
    lo, hi = 0, call.x().shape[2 + n]
    if call.attr("count_include_pad", 0):
        lo, hi = -w.before, hi + w.counted
    starts = w.stride * np.arange(w.count) - w.before
    places = np.add.outer(starts, np.arange(w.size) * w.dilation)
    counts: np.ndarray = ((places >= lo) & (places < hi)).sum(axis=1)
    return counts


def _max_pool(call: Call) -> tuple[Result, ...]:
    pool = _pool(call, "lowest")
    places = axes_of(pool.places)
    if call.n_outputs < 2:
        return (pool.x.with_node(pick_over("max", pool.x.node, places)),)
    both = reduce_("argmax", [a for a, _ in places], pool.x.node, _position(call, pool))
    return pool.x.with_node(get(both)), pool.x.with_node(get(both, 1))


def _position(call: Call, pool: _Pool) -> Node:
    """Where in memory the operand has what is at each place of each window, as int64."""
    shape, column_major = call.x().shape[2:], call.attr("storage_order", 0)
    out = index_of(axes_of(pool.x.dims[:2])) * math.prod(shape)
    for n, w in enumerate(pool.windows):
        at = index_of(pool.x.dims[2 + n]) * w.stride + index_of(pool.places[n]) * w.dilation
        step = math.prod(shape[:n] if column_major else shape[n + 1 :])
        out = out + (at - w.before) * step
    return cast(simplify(out), "int64")


def _lp_pool(call: Call) -> Tensor:
    """The p-norm of each window."""
    pool, p = _pool(call, 0), call.attr("p", 2)
    size = map_("abs", wide(pool.x.node))
    powers = size if p == 1 else size * size if p == 2 else map_("pow", size, float(p))
    total = sum_over(powers, axes_of(pool.places))
    norm = total if p == 1 else sqrt(total) if p == 2 else map_("pow", total, 1.0 / p)
    return pool.x.with_node(cast(norm, call.x().dtype))


def _local_response(call: Call) -> Tensor:
    """Each element by a power of the mean square of the channels around it."""
    x, size = call.x(), call.attr("size")
    before = (size - 1) // 2
    w = Window(size, 1, 1, before, size - 1 - before, 0, x.shape[1])
    slid = slide(call.names, x, 1, w, const(0, x.dtype))
    around = wide(slid.node)
    squares = Tensor(sum_over(around * around, slid.dims[2]), (*slid.dims[:2], *slid.dims[3:]))
    alpha, beta, bias = (call.attr(n, d) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1)))

    def formula(v: Node, s: Node) -> Node:
        return cast(wide(v) / map_("pow", s * (alpha / size) + bias, beta), x.dtype)

    return joined(call, formula, x, squares)


ROWS: tuple[Row, ...] = (
    Row("LRN", (13,), _local_response),
    Row("Conv", (11, 22), _conv),
    Row("ConvTranspose", (11, 22), _conv_transpose),
    Row("CausalConvWithState", (27,), _causal_conv),
    Row("AveragePool", (11, 19, 22), _average_pool),
    Row("MaxPool", (12, 22), _max_pool),
    Row("LpPool", (11, 18, 22), _lp_pool),
)
