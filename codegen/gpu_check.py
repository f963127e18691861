"""A kernel's outputs and a float64 reference on one device in, a Comparison out.

The bounds and the words are those of `check`; nothing leaves the device but a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from autosched.codegen.check import PEAK_FACTOR, REL_L2_BOUND, Comparison
from autosched.ir.record import Status

Tensor = torch.Tensor
_CHUNK = 1 << 26  # elements looked at together: 512 MiB a float64 copy
POISONS = (0xA5, 0xFF)  # as in check: the second, a NaN in every float format, comes last


def poison(tensor: Tensor, byte: int) -> None:
    """Fills every byte of a dense tensor."""
    _bytes(tensor).fill_(byte)


def still_poisoned(tensor: Tensor, byte: int) -> Tensor:
    """Bools, flat: elements whose every byte is the pattern."""
    return (_bytes(tensor).view(-1, tensor.element_size()) == byte).all(dim=1)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def compare(out: Tensor, ref: Tensor, dtype: str, bound: str | None = None) -> Comparison:
    """Compares an output of IR type `dtype` with its reference, as check.compare does.

    bound: the type whose error bound holds, where it is not the output's own.
    """
    if out.shape != ref.shape:
        return Comparison(Status.WRONG_RESULT, math.inf, math.inf, 0.0,
                          f"shape {tuple(out.shape)} instead of {tuple(ref.shape)}")  # fmt: skip
    if dtype not in REL_L2_BOUND:
        return _compare_exact(out, ref, dtype)
    name = bound or dtype
    return _compare_floats(out, ref, REL_L2_BOUND[name], name)


def _compare_exact(out: Tensor, ref: Tensor, dtype: str) -> Comparison:
    wrong = int((out != ref.to(out.dtype)).sum())
    if not wrong:
        return Comparison(Status.OK, 0.0, 0.0, 0.0)
    gap = float((out.to(torch.float64) - ref.to(torch.float64)).abs().max())
    return Comparison(Status.WRONG_RESULT, wrong / out.numel(), gap, 0.0,
                      f"{wrong} of {out.numel()} elements differ; {dtype} must be equal")


def _compare_floats(out: Tensor, ref: Tensor, bound: float, name: str) -> Comparison:
    totals = torch.zeros(5, dtype=torch.float64, device=out.device)  # as named below
    for a, b in _chunks(out, ref):
        both = torch.isfinite(a) & torch.isfinite(b)
        stray = ~both & ~((a == b) | (torch.isnan(a) & torch.isnan(b)))
        zero = torch.zeros((), dtype=torch.float64, device=out.device)
        gap, kept = torch.where(both, a - b, zero), torch.where(both, b, zero)
        found = (stray.sum(), (gap * gap).sum(), (kept * kept).sum(), both.sum())
        worst = torch.maximum(totals[4], gap.abs().max())
        totals = torch.stack([*(totals[:4] + torch.stack([x.double() for x in found])), worst])
    strays, error_sq, ref_sq, count, max_abs = totals.tolist()
    rel_l2 = math.sqrt(error_sq) / (math.sqrt(ref_sq) or 1.0)
    if strays:
        return Comparison(Status.NAN_RESULT, rel_l2, max_abs, bound,
                          f"{int(strays)} of {out.numel()} elements are NaN or infinite where the "
                          "reference is not, or the other way round")  # fmt: skip
    if rel_l2 > bound:
        return Comparison(Status.WRONG_RESULT, rel_l2, max_abs, bound,
                          f"relative error {rel_l2:.2e} is above {bound:.0e} for {name}")
    rms = (math.sqrt(ref_sq / count) if count else 0.0) or 1.0
    factor, peaks = bound * PEAK_FACTOR, 0
    for a, b in _chunks(out, ref):
        peaks += int(((a - b).abs() > factor * (b.abs() + rms)).sum())
    if peaks:
        return Comparison(Status.WRONG_RESULT, rel_l2, max_abs, bound,
                          f"{peaks} of {out.numel()} elements are far off (up to {max_abs:.2e}), "
                          f"although the relative error is {rel_l2:.2e}")  # fmt: skip
    return Comparison(Status.OK, rel_l2, max_abs, bound)


def _chunks(out: Tensor, ref: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """float64 chunks; a reference that overflows out's dtype becomes the infinity it rounds to."""
    flat_out, flat_ref = out.reshape(-1), ref.reshape(-1)
    for start in range(0, flat_out.numel(), _CHUNK):
        a, b = flat_out[start : start + _CHUNK], flat_ref[start : start + _CHUNK]
        rounded = b.to(out.dtype).to(torch.float64)
        yield a.to(torch.float64), torch.where(torch.isinf(rounded), rounded, b)
