"""A raw operand and a PackSpec in, the packed buffer out: constants are laid out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .arrays import STORAGE, cast, empty
from .errors import InputError
from .spec import Index, PackSpec

_CHUNK = 1 << 22  # packed elements gathered at a time: bounds the memory of index arrays
_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "min": np.minimum,
    "max": np.maximum,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
}


def _evaluate(index: Index, axes: list[np.ndarray]) -> Any:
    op = index[0]
    if op == "axis":
        return axes[index[1]]
    if op == "const":
        return np.int64(index[1])
    return _OPS[op](_evaluate(index[1], axes), _evaluate(index[2], axes))


def _linear(index: Index, rank: int) -> tuple[int, ...] | None:
    """(coefficient of each axis ..., constant) of an affine expression, else None."""
    op = index[0]
    if op == "axis":
        return tuple(int(n == index[1]) for n in range(rank + 1))
    if op == "const":
        return (0,) * rank + (int(index[1]),)
    left, right = _linear(index[1], rank), _linear(index[2], rank)
    if left is None or right is None or op not in ("add", "mul"):
        return None
    if op == "add":
        return tuple(a + b for a, b in zip(left, right))
    if any(left[:-1]) and any(right[:-1]):
        return None
    factor, other = (left[-1], right) if not any(left[:-1]) else (right[-1], left)
    return tuple(factor * c for c in other)


def _strided(source: np.ndarray, spec: PackSpec) -> np.ndarray | None:
    """The packed buffer as a view of its dense source, where every index is affine."""
    rank = len(spec.dims)
    rows = [_linear(index, rank) for index in spec.index]
    affine = [row for row in rows if row is not None]
    if len(affine) < len(rows):
        return None
    for row, extent in zip(affine, spec.source_shape):
        span = [c * (n - 1) for c, n in zip(row, spec.dims)]
        low = row[-1] + sum(min(0, s) for s in span)
        high = row[-1] + sum(max(0, s) for s in span)
        _check_range(low, high, extent, spec)
    steps = source.strides
    start = sum(row[-1] * step for row, step in zip(affine, steps))
    strides = [sum(row[n] * step for row, step in zip(affine, steps)) for n in range(rank)]
    flat = source.reshape(-1)[start // source.itemsize :]
    return as_strided(flat, spec.dims, strides, writeable=False)


def _check_range(low: int, high: int, extent: int, spec: PackSpec) -> None:
    if low < 0 or high >= extent:
        raise InputError(f"packing {spec.source} reads {low}..{high} of an extent of {extent}")


def _gather(source: np.ndarray, spec: PackSpec, out: np.ndarray) -> None:
    """Fills `out` slice by slice along the packed buffer's first axis."""
    rows = max(1, _CHUNK * spec.dims[0] // max(1, out.size))
    for low in range(0, spec.dims[0], rows):
        high = min(low + rows, spec.dims[0])
        ranges = [np.arange(low, high), *(np.arange(n) for n in spec.dims[1:])]
        axes = [
            r.reshape((1,) * n + (-1,) + (1,) * (len(ranges) - n - 1))
            for n, r in enumerate(ranges)
        ]
        index = tuple(_evaluate(i, axes) for i in spec.index)
        for values, extent in zip(index, spec.source_shape):
            _check_range(int(np.min(values)), int(np.max(values)), extent, spec)
        out[low:high] = source[index]


def pack(source: np.ndarray, spec: PackSpec, dtype: str) -> np.ndarray:
    """The packed form of `source`, as `dtype`, aligned to a cache line.

    Args: source: dense array of spec.source_shape in the storage type of spec.source_dtype.
    Raises InputError where another array is given or an index leaves it.
    """
    if source.shape != spec.source_shape or source.dtype != STORAGE[spec.source_dtype]:
        raise InputError(
            f"{spec.source} is {source.dtype}{list(source.shape)}, but "
            f"{spec.source_dtype}{list(spec.source_shape)} is expected"
        )
    out = empty(dtype, spec.dims)
    if out.size == 0:
        return out
    source = np.ascontiguousarray(cast(source, spec.source_dtype, dtype))
    view = _strided(source, spec)
    if view is None:
        _gather(source, spec, out)
    else:
        out[...] = view
    return out
