"""The row of Resize: along each dimension a few entries of the operand, weighted.

Which entries and weights depends on the sizes alone, so both are tables made at import.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from autosched.ir.frontend.call import Call, Row, Unsupported, wide
from autosched.ir.frontend.reduction import sum_over
from autosched.ir.frontend.tensor import Tensor, flatten_dim, unify
from autosched.ir.graph import ModelError
from autosched.ir.ops import cast, const, take, where
from autosched.ir.scalar import FLOATS

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Stretch:
    """How one dimension is resized. begin, end: the region of interest, as parts of the whole."""

    old: int
    new: int
    scale: float
    begin: float = 0.0
    end: float = 1.0


# Where each entry of the result lies in the operand: of its number, the transformation's formula.
_PLACES: dict[str, Callable[[Floats, Stretch], Floats]] = {
    "half_pixel": lambda o, s: (o + 0.5) / s.scale - 0.5,
    "pytorch_half_pixel": lambda o, s: (
        o * 0 - 0.5 if s.scale * s.old == 1 else (o + 0.5) / s.scale - 0.5),
    "half_pixel_symmetric": lambda o, s: (
        s.old / 2 * (1 - s.new / (s.scale * s.old)) + (o + 0.5) / s.scale - 0.5),
    "align_corners": lambda o, s: (
        o * 0 if s.scale * s.old == 1 else o * (s.old - 1) / (s.scale * s.old - 1)),
    "asymmetric": lambda o, s: o / s.scale,
    "tf_crop_and_resize": lambda o, s: s.begin * (s.old - 1) + (
        o * 0 + (s.end - s.begin) * (s.old - 1) / 2 if s.scale * s.old == 1
        else o * (s.end - s.begin) * (s.old - 1) / (s.scale * s.old - 1)),
}  # fmt: skip

_NEAREST: dict[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _linear(d: Floats) -> Floats:
    return np.maximum(1 - np.abs(d), 0)


def _cubic(a: float) -> Callable[[Floats], Floats]:
    def kernel(d: Floats) -> Floats:
        d = np.abs(d)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return kernel


def _taps(call: Call, x: Floats, s: Stretch) -> tuple[Floats, Floats]:
    """The entries that each place is a mean of, and their weights: [new, taps] both."""
    cubic = call.attr("mode") == "cubic"
    kernel = _cubic(call.attr("cubic_coeff_a", -0.75)) if cubic else _linear
    squeeze = min(s.scale, 1.0) if call.attr("antialias", 0) else 1.0
    reach = math.ceil((2 if cubic else 1) / squeeze)
    at = np.floor(x)[:, None] + np.arange(1 - reach, reach + 1)
    weights = kernel((at - x[:, None]) * squeeze)
    if call.attr("exclude_outside", 0):
        weights = np.where((at < 0) | (at >= s.old), 0.0, weights)
    total = weights.sum(axis=1, keepdims=True)
    return at, weights / np.where(total == 0, 1.0, total)


def _resized(call: Call, x: Tensor, at: int, s: Stretch) -> Tensor:
    """`x` with dimension `at` resized."""
    place = _PLACES[call.attr("coordinate_transformation_mode", "half_pixel")]
    places = place(np.arange(s.new, dtype=np.float64), s)
    nearest = call.attr("mode", "nearest") == "nearest"
    if nearest:
        entries = _NEAREST[call.attr("nearest_mode", "round_prefer_floor")](places)[:, None]
        weights = np.ones_like(entries)
    else:
        entries, weights = _taps(call, places, s)
    index = np.clip(entries, 0, s.old - 1).astype(np.int32)
    dtype = x.dtype if nearest else wide(x.node).dtype
    x = flatten_dim(call.names, x, at)
    own = [("old",) if n == at else n for n in range(x.rank)]
    outside = (places < 0) | (places > s.old - 1)
    tables = [
        call.literals.tensor(table, call.names.fresh("resize"))
        for table in (index, weights.astype(np.float64), outside)
    ]
    labels = ((at, "tap"), (at, "tap"), (at,))
    (value, read, weight, beyond), axes = unify(call.names, (x, own), *zip(tables, labels))
    for name, _ in axes["old",]:
        value = take(value, name, read)
    if not nearest:
        value = sum_over(wide(value) * cast(weight, dtype), axes["tap"])
    if call.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        fill = const(call.attr("extrapolation_value", 0.0), dtype)
        value = where(beyond, fill, value)
    return Tensor(value, tuple(axes[n] for n in range(x.rank)))


def _resize(call: Call) -> Tensor:
    x = call.x()
    if call.attr("mode", "nearest") != "nearest" and x.dtype not in FLOATS:
        raise Unsupported(f"of type {x.dtype}, with weights")
    y = x
    for at, stretch in _stretches(call, x).items():
        if (stretch.old, stretch.scale, stretch.begin, stretch.end) != (stretch.new, 1, 0, 1):
            y = _resized(call, y, at, stretch)
    return y.with_node(cast(y.node, x.dtype))


def _stretches(call: Call, x: Tensor) -> dict[int, Stretch]:
    """How each dimension is resized, by its number."""
    axes = [x.position(a) for a in call.attr("axes", range(x.rank))]
    roi, scales, sizes = (call.known(n) for n in (1, 2, 3))
    if any(call.has(n) and k is None for n, k in ((1, roi), (2, scales), (3, sizes))):
        raise Unsupported("its sizes are computed at run time")
    old = [x.shape[a] for a in axes]
    if sizes is not None and sizes.size:
        new = [int(s) for s in sizes]
        factors = [n / o for n, o in zip(new, old)]
        policy = call.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = min(factors) if policy == "not_larger" else max(factors)
            factors, new = [one] * len(new), [int(one * o + 0.5) for o in old]
    elif scales is not None and scales.size:
        factors = [float(s) for s in scales]
        new = [int(f * o) for f, o in zip(factors, old)]
    else:
        raise ModelError("it has neither scales nor sizes")
    crops = [(0.0, 1.0)] * len(axes)
    if call.attr("coordinate_transformation_mode") == "tf_crop_and_resize" and roi is not None:
        ends = [float(r) for r in roi]
        crops = list(zip(ends[: len(axes)], ends[len(axes) :], strict=True))
    return {
        a: Stretch(o, n, f, *crop) for a, o, n, f, crop in zip(axes, old, new, factors, crops)
    }


ROWS: tuple[Row, ...] = (Row("Resize", (11, 13, 18, 19), _resize),)
