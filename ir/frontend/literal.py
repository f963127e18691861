"""A constant array in, the node that stands for it out: a closed form, or a weight.

A mask or a range that the importer folded is worth more as a formula of its coordinates than as
a table: kernels then load nothing, and rules can tell which tiles a mask leaves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from autosched.ir.extent import simplify
from autosched.ir.frontend.tensor import Axis, Names, Tensor
from autosched.ir.graph import ModelError, WeightRef
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, input_, iota, where
from autosched.ir.scalar import DTYPES, FLOATS

Array = np.ndarray[Any, Any]
LOOK_AT = 2**24  # elements; larger arrays are weights unseen, and stay on disk


class Literals:
    """The constants of one import; equal bytes are one weight, and that is one `input` node."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.weights: dict[str, WeightRef] = {}
        self._by_name: dict[str, Tensor] = {}
        self._by_digest: dict[str, Tensor] = {}

    def tensor(self, array: Array, name: str) -> Tensor:
        """A tensor with the values of `array`; one name stands for the same array throughout."""
        if name not in self._by_name:
            if array.dtype.name not in DTYPES:
                raise ModelError(f"constant {name!r} has the type {array.dtype.name}")
            self._by_name[name] = self._tensor(array, name)
        return self._by_name[name]

    def _tensor(self, array: Array, name: str) -> Tensor:
        sizes = [s for s in array.shape if s != 1]
        slim = array.reshape(sizes)
        axes = [self.names.axis(h, s)[0] for s, h in zip(sizes, _hints(len(sizes)))]
        node = closed_form(slim, [a for a, _ in axes])
        found = Tensor(node, tuple((a,) for a in axes)) if node else self._weight(slim, name, axes)
        rest = iter(found.dims)
        return Tensor(found.node, tuple(next(rest) if s != 1 else () for s in array.shape))

    def _weight(self, array: Array, name: str, axes: list[Axis]) -> Tensor:
        digest = _digest(array)
        if digest not in self._by_digest:
            dtype = array.dtype.name
            self.weights[name] = WeightRef(name, dtype, array.shape, digest, array)
            node = input_(name, dict(axes), dtype, "weight")
            self._by_digest[digest] = Tensor(node, tuple((a,) for a in axes))
        return self._by_digest[digest]


def _digest(array: Array) -> str:
    """SHA-256 of type, shape and bytes."""
    data = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}:".encode())
    digest.update(data.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def _hints(rank: int) -> list[str]:
    """Axis names of a weight: a matrix is contracted over k and yields n."""
    return ["w"] * (rank - 2) + ["k", "n"][-rank:] if rank else []


# ---- closed forms -----------------------------------------------------------------------------


def closed_form(array: Array, axes: list[str]) -> Node | None:
    """The array as a formula of its coordinates, or None: one value, a linear function that is
    exact in every type, or two values divided by straight lines (a causal mask, a band)."""
    if not array.size:
        return const(0, array.dtype.name)
    if array.size > LOOK_AT:
        return None
    with np.errstate(all="ignore"):  # NaN and infinities are looked at like any value
        return _formula(array, axes) if _promising(array) else None


def _formula(array: Array, axes: list[str]) -> Node | None:
    dtype = array.dtype.name
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
    lows = [None, *_edges(lo, some & (lo > 0), row is not None)]
    highs = [None, *_edges(hi, some & (hi < size), row is not None)]
    for low, high in product(lows, highs):
        inside = (j >= _at(low, 0, i)) & (j < _at(high, size, i))
        if not np.array_equal(inside, rows):
            continue
        tests = []
        if low is not None:
            tests.append(column >= _bound(low, row))
        if high is not None and high.slope:
            tests.append(column <= _bound(Line(1, high.offset - 1), row))
        elif high is not None:
            tests.append(column < high.offset)
        return tests[0] if len(tests) == 1 else tests[0] & tests[1]
    return None


@dataclass(frozen=True)
class Line:
    """slope * row + offset; the slope is 0 or 1."""

    slope: int
    offset: int


def _at(line: Line | None, default: int, i: Array) -> Array:
    line = line or Line(0, default)
    return (line.slope * i + line.offset)[:, None]


def _bound(line: Line, row: Node | None) -> Node | int:
    if not line.slope or row is None:
        return line.offset
    return simplify(row + line.offset)


def _edges(edge: Array, inner: Array, rows: bool) -> list[Line]:
    """Candidates for one border, by the first row in which it is inside."""
    if not inner.any():
        return []
    first = int(inner.argmax())
    at = int(edge[first])
    return [Line(0, at), *([Line(1, at - first)] if rows else [])]
