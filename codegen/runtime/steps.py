"""What runs of a model's plan have in common, whatever its kernels run on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError
from .spec import Value


@dataclass(frozen=True)
class StepTime:
    """How long one step of the plan takes."""

    name: str  # public name of the kernel, or the island
    kernel: str | None  # key; None for an island
    median_us: float


@dataclass(frozen=True)
class StepValues:
    """What one step read and wrote, as copies, in the order of the step's arguments."""

    name: str
    kernel: str | None
    arrays: tuple[np.ndarray, ...]


def in_order(inputs: Mapping[str, Any], wanted: Sequence[Value]) -> list[Any]:
    """The caller's inputs in the order of the model's. Raises InputError."""
    if len(inputs) != len(wanted) or any(v.name not in inputs for v in wanted):
        expected = ", ".join(f"{v.name} {v.dtype}{list(v.shape)}" for v in wanted)
        names = {v.name for v in wanted}
        missing, unknown = sorted(names - set(inputs)), sorted(set(inputs) - names)
        said = [f"missing: {', '.join(missing)}"] if missing else []
        said += [f"unknown: {', '.join(map(str, unknown))}"] if unknown else []
        raise InputError(f"{'; '.join(said)}. The model takes {expected}")
    return [inputs[v.name] for v in wanted]


def root_of(name: str, aliases: Mapping[str, str]) -> str:
    """The value whose bytes a name stands for."""
    while name in aliases:
        name = aliases[name]
    return name
