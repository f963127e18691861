"""A suite row with a mask in, flex_attention with that mask's cached block mask out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from autosched.tools.gpu_peers_masks import predicate

Tensor = torch.Tensor
Facts = Mapping[str, Any]
LARGE = 16384  # keys, beyond which the block mask is made by a compiled function


def flex(t: Mapping[str, Tensor], facts: Facts, mode: str | None = None) -> Callable[[], Tensor]:
    """flex_attention as torch compiles it without a search."""
    q, k, v = t["q"], t["k"], t["v"]
    blocks = None
    if facts["mask"] != "full":
        seen = predicate(t, facts)
        # In one piece the whole mask would be made first, in 64-bit positions.
        make = torch.compile(create_block_mask) if k.shape[2] > LARGE else create_block_mask
        blocks = make(lambda b, h, i, j: seen(i, j), None, None, q.shape[2], k.shape[2],
                      device=q.device)  # fmt: skip
    compiled = torch.compile(flex_attention, dynamic=False, mode=mode)
    shared = q.shape[1] != k.shape[1]
    return lambda: compiled(q, k, v, block_mask=blocks, enable_gqa=shared)


def flex_tuned(t: Mapping[str, Tensor], facts: Facts) -> Callable[[], Tensor]:
    """flex_attention with tile sizes by inductor's search."""
    return flex(t, facts, "max-autotune-no-cudagraphs")
