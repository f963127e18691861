"""A suite row with products in, what inductor's search makes of their torch operators out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from autosched.tools.gpu_peers_library import formula

MODE = "max-autotune-no-cudagraphs"  # graphs are captured around all peers alike


def inductor(t: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Callable[[], torch.Tensor]:
    """The operators of the eager peer, compiled for these sizes alone."""
    names = sorted(t)
    compute = formula(facts)

    def positional(*tensors: torch.Tensor) -> torch.Tensor:
        return compute(dict(zip(names, tensors)))

    compiled = torch.compile(positional, mode=MODE, dynamic=False, fullgraph=True)
    return functools.partial(compiled, *(t[name] for name in names))
