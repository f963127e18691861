"""Tensors by name in, copies of them between guards in one piece of memory out, under a checksum.

What a task computes with is read by every candidate, and a kernel that strays may write anywhere
in its process. The checksum is the sum of all words of the piece, guards included, made on the
device in one pass: any single change shows, and so does every overrun of a guard's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch

Tensor = torch.Tensor
GUARD_BYTES = 4096  # before and after each tensor: strays are a few vectors or a row away
_GUARD = 0xA5
_WORD = 8
# As torch places tensors that have memory of their own: speed must not depend on the arena.
_ALIGN, _ALIGN_LARGE = 512, 2 << 20


class Arena:
    """Dense tensors that nothing may write to but `fill`."""

    def __init__(self, values: Mapping[str, Tensor], device: torch.device) -> None:
        starts: list[int] = []
        end = 0
        for x in values.values():
            size = x.numel() * x.element_size()
            align = _ALIGN_LARGE if size >= _ALIGN_LARGE else _ALIGN
            starts.append(_round_up(end + GUARD_BYTES, align))
            end = starts[-1] + size
        total = _round_up(end + GUARD_BYTES, _WORD)
        self._raw = torch.full((total,), _GUARD, dtype=torch.uint8, device=device)
        self.tensors: dict[str, Tensor] = {
            name: self._raw[start : start + x.numel() * x.element_size()]
            .view(x.dtype).view(x.shape)
            for start, (name, x) in zip(starts, values.items(), strict=True)
        }  # fmt: skip
        # Each part is a tensor with the guard behind it; the first guard is the first one's too.
        words = self._raw.view(torch.int64)
        cuts = [0, *(start // _WORD for start in starts[1:]), total // _WORD]
        self._words = words
        self._parts = {name: words[a:b] for name, (a, b) in zip(values, pairwise(cuts))}
        self.fill(values)

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Takes on other values, of the same shapes and types, between fresh guards."""
        self._raw.fill_(_GUARD)
        for name, x in values.items():
            self.tensors[name].copy_(x)
        self._sums = {name: int(part.sum()) for name, part in self._parts.items()}
        self._sum = int(self._words.sum())

    def changed(self) -> tuple[str, ...]:
        """Names of the tensors that were written to, or whose guards were."""
        return tuple(n for n, part in self._parts.items() if int(part.sum()) != self._sums[n])


def broken(arenas: Sequence[Arena]) -> list[Arena]:
    """Those that are not as they were filled; waits for the device once."""
    if not arenas:
        return []
    sums = torch.stack([arena._words.sum() for arena in arenas]).tolist()
    return [arena for arena, now in zip(arenas, sums, strict=True) if now != arena._sum]


def guarded(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A tensor of undefined content, and the bytes of it and of the guards around it."""
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    raw = torch.empty(size + 2 * GUARD_BYTES, dtype=torch.uint8, device=device)
    return raw[GUARD_BYTES : GUARD_BYTES + size].view(dtype).view(tuple(shape)), raw


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
