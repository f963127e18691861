"""A kernel's outputs and a float64 reference in, a Comparison out; and poison before the run.

Poison shows what a kernel never wrote: every byte of an output is filled before the run, and an
element that still holds the pattern afterwards was left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autosched.ir.node import Node, walk
from autosched.ir.record import Status

Array = np.ndarray[Any, np.dtype[Any]]

# Bound on |out - ref| / |ref| (L2 norms) by the dtype of the output; other dtypes are exact.
# 16 bit: about 4 units in the last place of storage, with accumulation in fp32.
REL_L2_BOUND: Mapping[str, float] = {
    "float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2,
    "float8_e4m3": 1.3e-1, "float8_e4m3fn": 1.3e-1, "float8_e5m2": 2.5e-1,
}

# No element may be off by more than this many bounds of (|its reference| + root mean square):
# in a large tensor one wrong element vanishes in the norm.
PEAK_FACTOR = 16.0

# All ones is a NaN in every float format, and with a payload that no arithmetic makes. It comes
# last, so that a result that was summed onto the old content of its buffer is a NaN.
_POISONS = (0xA5, 0xFF)
NAN_POISON = _POISONS[-1]

_CHUNK = 1 << 20  # elements looked at together: bounds the memory of the float64 copies


@dataclass(frozen=True)
class Comparison:
    """How an output differs from its reference. rel_l2, max_abs: over finite elements.

    status: OK, NAN_RESULT (NaN or infinity where the reference has none, or the other way
    round) or WRONG_RESULT; reason says it in words.
    """

    status: Status
    rel_l2: float
    max_abs: float
    bound: float
    reason: str | None = None

    @property
    def ok(self) -> bool:
        return self.status is Status.OK


def poison(array: Array, byte: int = NAN_POISON) -> None:
    """Fills every byte of `array` (any strides, any dtype), in place."""
    np.copyto(array, np.frombuffer(bytes([byte]) * array.itemsize, array.dtype)[0:1].reshape(
        (1,) * array.ndim))


def still_poisoned(array: Array, byte: int = NAN_POISON) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mask of `array`'s shape: elements whose every byte is the pattern."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return (raw.reshape(-1, array.itemsize) == byte).all(axis=1).reshape(array.shape)


def unwritten(run: Callable[[], object], outputs: Sequence[Array]) -> tuple[int, ...]:
    """Runs a kernel twice, on two poisons; how many elements of each output it never wrote.

    An answer that happens to equal one pattern (an integer -1) does not equal the other. The
    outputs are left as the run on NaN_POISON left them, to be compared next.
    """
    masks = [np.ones(a.shape, np.bool_) for a in outputs]
    for byte in _POISONS:
        for array in outputs:
            poison(array, byte)
        run()
        for mask, array in zip(masks, outputs):
            mask &= still_poisoned(array, byte)
    return tuple(int(mask.sum()) for mask in masks)


def compare(out: Array, ref: Array, dtype: str | None = None) -> Comparison:
    """Compares a kernel's output with its reference (float64, or integers for exact dtypes).

    dtype: whose bound holds, where it is not that of `out` (bf16 results widened to fp32, say).
    Floats: NaN and infinities at the same places (the reference rounded to `out`'s dtype), the
    others within REL_L2_BOUND as a whole and PEAK_FACTOR one by one; where the reference is zero
    throughout, the bound is on the absolute norm. Integers and bools: equal.
    """
    name = dtype or out.dtype.name
    if out.shape != ref.shape:
        return Comparison(Status.WRONG_RESULT, math.inf, math.inf, 0.0,
                          f"shape {out.shape} instead of {ref.shape}")
    if name not in REL_L2_BOUND and out.dtype.kind not in "iub":
        raise ValueError(f"no error bound for dtype {name}; known: {', '.join(REL_L2_BOUND)}")
    if name not in REL_L2_BOUND:
        return _compare_exact(out, ref)
    return _compare_floats(out, ref, REL_L2_BOUND[name], name)


def bound_dtype(body: Node) -> str | None:
    """The dtype whose bound holds for a value: the coarsest that anything on the way is rounded
    to; None where the value is exact.

    A sum in fp32 and the reference's own may lie on two sides of a tie: then an fp32 output that
    was fp16 on its way is off by a bit of fp16.
    """
    if body.dtype not in REL_L2_BOUND:
        return None
    made = {t.dtype for n in walk(body) if n.op != "input" for t in n.types} | {body.dtype}
    return max(made & REL_L2_BOUND.keys(), key=lambda name: (REL_L2_BOUND[name], name))


def _compare_exact(out: Array, ref: Array) -> Comparison:
    wrong, max_abs = 0, 0.0
    for a, b in _chunks(out, ref):
        bad = a != b
        if bad.any():
            wrong += int(bad.sum())
            gap = np.abs(a[bad].astype(np.float64) - b[bad].astype(np.float64))
            max_abs = max(max_abs, float(gap.max()))
    if not wrong:
        return Comparison(Status.OK, 0.0, 0.0, 0.0)
    return Comparison(Status.WRONG_RESULT, wrong / out.size, max_abs, 0.0,
                      f"{wrong} of {out.size} elements differ; {out.dtype.name} must be equal")


def _compare_floats(out: Array, ref: Array, bound: float, name: str) -> Comparison:
    stray, error_sq, ref_sq, count, max_abs = 0, 0.0, 0.0, 0, 0.0
    for a, b in _float_chunks(out, ref):
        stray += _stray(a, b)
        keep = np.isfinite(a) & np.isfinite(b)
        gap = (a - b)[keep]
        kept = b[keep]
        error_sq += float(gap @ gap)
        ref_sq += float(kept @ kept)
        count += kept.size
        max_abs = max(max_abs, float(np.abs(gap).max(initial=0.0)))
    rel_l2 = math.sqrt(error_sq) / (math.sqrt(ref_sq) or 1.0)
    if stray:
        return Comparison(Status.NAN_RESULT, rel_l2, max_abs, bound,
                          f"{stray} of {out.size} elements are NaN or infinite where the "
                          "reference is not, or the other way round")
    if rel_l2 > bound:
        return Comparison(Status.WRONG_RESULT, rel_l2, max_abs, bound,
                          f"relative error {rel_l2:.2e} is above {bound:.0e} for {name}")
    if count and (peaks := _peaks(out, ref, bound * PEAK_FACTOR, math.sqrt(ref_sq / count))):
        return Comparison(Status.WRONG_RESULT, rel_l2, max_abs, bound,
                          f"{peaks} of {out.size} elements are far off (up to {max_abs:.2e}), "
                          f"although the relative error is {rel_l2:.2e}")
    return Comparison(Status.OK, rel_l2, max_abs, bound)


def _stray(a: Array, b: Array) -> int:
    """How many elements differ in being NaN, +inf, -inf or finite."""
    odd = ~(np.isfinite(a) & np.isfinite(b))
    return int((odd & ~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())


def _peaks(out: Array, ref: Array, factor: float, rms: float) -> int:
    """How many elements are off by more than `factor` of their reference and the rms."""
    found = 0
    with np.errstate(invalid="ignore"):
        for a, b in _float_chunks(out, ref):
            found += int((np.abs(a - b) > factor * (np.abs(b) + (rms or 1.0))).sum())
    return found


def _chunks(out: Array, ref: Array) -> Iterator[tuple[Array, Array]]:
    flat_out, flat_ref = out.reshape(-1), ref.reshape(-1)
    for start in range(0, flat_out.size, _CHUNK):
        yield flat_out[start:start + _CHUNK], flat_ref[start:start + _CHUNK]


def _float_chunks(out: Array, ref: Array) -> Iterator[tuple[Array, Array]]:
    """float64 chunks; a reference that overflows out's dtype becomes the infinity it rounds to."""
    with np.errstate(over="ignore", invalid="ignore"):
        for a, b in _chunks(out, ref):
            rounded = b.astype(out.dtype).astype(np.float64)
            yield a.astype(np.float64), np.where(np.isinf(rounded), rounded, b)
