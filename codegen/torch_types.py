"""IR types as torch types: what values are stored as, computed in and rounded to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

STORAGE: Mapping[str, torch.dtype] = {
    "float64": torch.float64, "float32": torch.float32, "float16": torch.float16,
    "bfloat16": torch.bfloat16, "float8_e4m3": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2, "int64": torch.int64, "int32": torch.int32,
    "int16": torch.int16, "int8": torch.int8, "uint64": torch.uint64, "uint32": torch.uint32,
    "uint16": torch.uint16, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip

# The type in which values are computed. torch has next to no arithmetic in wide unsigned types.
KINDS: Mapping[str, torch.dtype] = {
    name: torch.float64 if kind.is_floating_point else kind
    for name, kind in STORAGE.items()
    if name not in ("uint64", "uint32", "uint16")
}

# Significant bits, least normal exponent, greatest finite value, what lies beyond it: ir.scalar's
# grids, and float16's, since torch rounds a float64 to it in two steps.
GRIDS: Mapping[str, tuple[int, int, float, float]] = {
    "float16": (11, -14, 65504.0, math.inf),
    "bfloat16": (8, -126, (2 - 2**-7) * 2.0**127, math.inf),
    "float8_e4m3": (4, -6, 448.0, 448.0),
    "float8_e5m2": (3, -14, 57344.0, 57344.0),
}


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2.0 ** exponent in float64, exactly, for int exponents of normal numbers."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)
