"""Counters of a plan in, tensors of zeros for one stream out, without a launch where that can be.

Kernels that merge parts count the programs that have stored theirs, and leave every counter 0. So
launches one after the other may share counters, and launches at the same time may not: a stream
has its own, and so has each call that a CUDA graph records, for the graph may be replayed beside
anything else.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from .gpu import torch_module

if TYPE_CHECKING:
    from .launch import Buffer

ROLE = "counter"
_APART = 4  # counters: 16 bytes, which kernels are compiled for
_SLAB = 1 << 16  # counters that a device gets at a time: 256 KiB


class Counters:
    """The counters of one plan, by device and stream."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        """buffers: those of the role "counter"."""
        self._sizes = [(b.name, prod(b.extents)) for b in buffers]
        self._whole = sum(-(-n // _APART) * _APART for _, n in self._sizes)
        self._kept: dict[tuple[Any, int], dict[str, Any]] = {}
        self._recorded: list[Any] = []  # graphs do not keep what they did not allocate

    def on(self, device: Any) -> dict[str, Any]:
        """Counters by name for a launch on the device's current stream, now."""
        if not self._sizes:
            return {}
        torch = torch_module()
        cuda = device.type == "cuda"
        if cuda and torch.cuda.is_current_stream_capturing():
            self._recorded.append(_slabs.piece(device, self._whole, recorded=True))
            return self._cut(self._recorded[-1])
        stream = torch.cuda.current_stream(device).cuda_stream if cuda else 0
        found = self._kept.get((device, stream))
        if found is None:
            found = self._cut(_slabs.piece(device, self._whole, recorded=False))
            found = self._kept.setdefault((device, stream), found)
        return found

    def _cut(self, piece: Any) -> dict[str, Any]:
        made, at = {}, 0
        for name, n in self._sizes:
            made[name] = piece[at : at + n]
            at += -(-n // _APART) * _APART
        return made


class _Slabs:
    """Zeros that nobody has yet, device by device."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[Any, Any] = {}

    def piece(self, device: Any, count: int, recorded: bool) -> Any:
        """That many zeros; recorded: a graph is being captured, in which new ones are set to 0 at
        each replay."""
        torch = torch_module()
        with self._lock:
            left = self._left.get(device)
            if left is None or len(left) < count:
                if recorded:
                    return torch.zeros(count, dtype=torch.int32, device=device)
                left = torch.zeros(max(count, _SLAB), dtype=torch.int32, device=device)
                if device.type == "cuda":  # once for many kernels: other streams will use them
                    torch.cuda.current_stream(device).synchronize()
            self._left[device] = left[count:]
            return left[:count]


_slabs = _Slabs()
