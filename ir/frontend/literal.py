"""A constant array in, the node that stands for it out: a closed form, or a weight.

A mask or a range that the importer folded is worth more as a formula of its coordinates than as
a table: kernels then load nothing, and rules can tell which tiles a mask leaves.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from autosched.ir.extent import simplify
from autosched.ir.frontend.tensor import Names, Tensor
from autosched.ir.graph import ModelError, WeightRef
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, input_, iota, where
from autosched.ir.scalar import DTYPES, FLOATS

Array = np.ndarray[Any, Any]


class Literals:
    """The constants of one import; equal bytes are one weight."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.weights: dict[str, WeightRef] = {}
        self._by_digest: dict[str, str] = {}
        self._by_array: dict[int, tuple[Array, str]] = {}

    def tensor(self, array: Array, name: str) -> Tensor:
        """A tensor with the values of `array`; `name` is for the weight, if it becomes one."""
        if array.dtype.name not in DTYPES:
            raise ModelError(f"constant {name!r} has the type {array.dtype.name}")
        kept = [n for n in range(array.ndim) if array.shape[n] != 1]
        slim = array.reshape([array.shape[n] for n in kept])
        axes = [self.names.axis(h, array.shape[n])[0] for n, h in zip(kept, _hints(len(kept)))]
        node = closed_form(slim, [a for a, _ in axes])
        if node is None:
            node = self._weight(slim, name, dict(axes))
        rest = iter(axes)
        return Tensor(node, tuple((next(rest),) if s != 1 else () for s in array.shape))

    def _weight(self, array: Array, name: str, axes: dict[str, int]) -> Node:
        digest = self._digest(array)
        known = self._by_digest.get(digest)
        if known is None:
            self._by_digest[digest] = known = name
            self.weights[name] = WeightRef(name, array.dtype.name, array.shape, digest, array)
            return input_(name, axes, array.dtype.name, "weight")
        return input_(known, axes, array.dtype.name, "weight")

    def _digest(self, array: Array) -> str:
        """SHA-256 of type, shape and bytes, computed once for each array object."""
        found = self._by_array.get(id(array))
        if found is None:
            head = f"{array.dtype.name}{array.shape}".encode()
            data = np.ascontiguousarray(array)
            digest = hashlib.sha256(head + b":")
            digest.update(data.view(np.uint8).reshape(-1).data if data.size else b"")
            found = self._by_array[id(array)] = (array, digest.hexdigest())
        return found[1]


def _hints(rank: int) -> list[str]:
    """Axis names of a weight: a matrix is contracted over k and yields n."""
    return ["w"] * (rank - 2) + ["k", "n"][-rank:] if rank else []


# ---- closed forms -----------------------------------------------------------------------------


def closed_form(array: Array, axes: list[str]) -> Node | None:
    """The array as a formula of its coordinates, or None: one value, a linear function that is
    exact in every type, or two values divided by straight lines (a causal mask, a band)."""
    if not array.size:
        return const(0, array.dtype.name)
    dtype = array.dtype.name
    if not _promising(array):
        return None
    for n in reversed(range(array.ndim)):
        first = array.take([0], axis=n)
        if array.shape[n] > 1 and _same(array, first):
            array = first
    if array.size == 1:
        return const(array.reshape(()).item(), dtype)
    extents = {a: array.shape[n] for n, a in enumerate(axes) if array.shape[n] > 1}
    array = array.reshape(tuple(extents.values()))
    if dtype == "bool":
        return _region(array, extents)
    values = array.astype(np.float64) if dtype in FLOATS else array
    return _linear(values, dtype, extents) or _two_valued(values, dtype, extents)


def _promising(array: Array) -> bool:
    """Whether a sample of the array leaves a chance: integers, or no more than two values."""
    flat = array.reshape(-1)
    sample = flat[:: max(1, flat.size // 512)].astype(np.float64)
    whole = bool(np.all(np.isfinite(sample)) and np.all(sample == np.floor(sample)))
    return whole or len(np.unique(sample)) <= 2


def _same(a: Array, b: Array) -> bool:
    """Equal bit for bit where it matters: NaN equals NaN, -0.0 is not 0.0."""
    if np.asarray(a).dtype.name not in FLOATS:
        return bool(np.all(a == b))
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) & (np.signbit(x) == np.signbit(y)) | np.isnan(x) & np.isnan(y)
    return bool(np.all(same))


# Magnitudes up to which a float type holds every integer.
_EXACT = {"float16": 2**11, "bfloat16": 2**8}


def _linear(values: Array, dtype: str, extents: dict[str, int]) -> Node | None:
    """c + sum of slope * coordinate in integers."""
    limit = _EXACT.get(dtype, 2**24)  # exact in float32; sums of them stay inside int32
    if not np.all(np.isfinite(values)) or values.max() >= limit or values.min() <= -limit:
        return None
    values = values.astype(np.float64)
    base = float(values.flat[0])
    corner = np.eye(values.ndim, dtype=int)
    slopes = [float(values[tuple(at)]) - base for at in corner]
    if any(not x.is_integer() for x in (base, *slopes)):
        return None
    grids = np.ogrid[tuple(slice(0, e) for e in extents.values())]
    if np.any(values != base + sum(s * g for s, g in zip(slopes, grids))):
        return None
    node = const(int(base), "int32")
    for (axis, extent), slope in zip(extents.items(), slopes):
        node = node + iota(axis, extent) * int(slope)
    return cast(simplify(node), dtype)


def _two_valued(values: Array, dtype: str, extents: dict[str, int]) -> Node | None:
    one = values.flat[0]
    is_one = (values == one) | (np.isnan(values) & np.isnan(one))
    if is_one.all():
        return None
    other = values[~is_one].flat[0]
    other_too = (values == other) | (np.isnan(values) & np.isnan(other))
    if not np.all(is_one | other_too):
        return None
    if not _same(values[is_one], np.asarray(one)) or not _same(values[other_too], other):
        return None
    region = _region(is_one, extents)
    if region is None:
        return None
    return where(region, const(one.item(), dtype), const(other.item(), dtype))


def _region(mask: Array, extents: dict[str, int]) -> Node | None:
    """A bool array over one or two axes that is true between straight lines, or outside them."""
    if mask.ndim > 2:
        return None
    for positive in (True, False):
        found = _between(mask if positive else ~mask, extents)
        if found is not None:
            return found if positive else ~found
    return None


def _between(mask: Array, extents: dict[str, int]) -> Node | None:
    """lo <= j < hi with lo and hi constant or the row number plus a constant."""
    rows = mask.reshape(-1, mask.shape[-1])
    n_rows, size = rows.shape
    i = np.arange(n_rows)
    some = rows.any(axis=1)
    lo = np.where(some, rows.argmax(axis=1), -1)
    hi = np.where(some, size - rows[:, ::-1].argmax(axis=1), -1)
    axes = [iota(a, e) for a, e in extents.items()]
    column, row = axes[-1], axes[0] if mask.ndim == 2 else None
    j = np.arange(size)[None, :]
    lows = [(None, np.zeros(n_rows)), *_edges(lo, some & (lo > 0), i, row)]
    highs = [(None, np.full(n_rows, size)), *_edges(hi, some & (hi < size), i, row)]
    for low, low_at in lows:
        for high, high_at in highs:
            if not np.array_equal((j >= low_at[:, None]) & (j < high_at[:, None]), rows):
                continue
            tests = [column >= low] if low is not None else []
            tests += [column < high] if high is not None else []
            return tests[0] if len(tests) == 1 else tests[0] & tests[1]
    return None


def _edges(
    edge: Array, inner: Array, i: Array, row: Node | None
) -> list[tuple[Node | int | None, Array]]:
    """Candidates for one border: a constant, or the row plus a constant, where it is inside."""
    if not inner.any():
        return []
    at, first = int(edge[inner][0]), int(i[inner][0])
    out: list[tuple[Node | int | None, Array]] = [(at, np.full(len(i), at))]
    if row is not None:
        shift = at - first
        moved = row + shift if shift > 0 else row - -shift if shift < 0 else row
        out.append((moved, i + shift))
    return out
