"""Operands that need no preparation in, the call for them out: the short way into GPU kernels.

A first call takes the long way, which checks and converts everything. Where it converted nothing,
its call is kept for tensors of the same dtypes, shapes and device, and from then on only what can
differ between such tensors is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from .gpu import ALIGNMENT, torch_module
from .gpu_calls import Call
from .gpu_kernel import GpuKernel

_LAST = ALIGNMENT - 1  # bits of an address that must be 0


class Quick:
    """Calls of the kernels of one public name, by the facts of their operands."""

    def __init__(self) -> None:
        torch = torch_module()
        self._plain = frozenset((torch.Tensor, torch.nn.Parameter))
        self._calls: dict[tuple[Any, ...], Call] = {}

    def find(self, operands: Sequence[Any]) -> Call | None:
        """The call for these operands; None where the long way must be taken."""
        plain = self._plain
        key: list[Any] = []
        for x in operands:
            if type(x) not in plain or x.data_ptr() & _LAST or not x.is_contiguous():
                return None
            key += (x.dtype, x.shape, x.get_device())
        return self._calls.get(tuple(key))

    def keep(self, operands: Sequence[Any], kernel: GpuKernel) -> None:
        """Remembers that `kernel` took these operands, if it took them as they are."""
        homes = {x.device if type(x) in self._plain else None for x in operands}
        device = next(iter(homes), None)
        # Views of one element may be dense and yet be negated when they are read.
        if len(homes) == 1 and device is not None and all(prod(x.shape) > 1 for x in operands):
            key = tuple(fact for x in operands for fact in (x.dtype, x.shape, x.get_device()))
            if (call := kernel.made_on(device)) is not None:
                self._calls[key] = call
