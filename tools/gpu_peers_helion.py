"""A suite row in, the same computation in Helion's language out, tuned by its quick search.

Helion reads the source of its kernels and starts processes that import this file: nothing runs
at import but definitions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import helion
import helion.language as hl
import torch

from autosched.tools.gpu_peers_library import columns

_LOG2_E = math.log2(math.e)


def helion_quick(
    t: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> Callable[[], torch.Tensor]:
    """The row's kernel; its first call searches."""
    if facts["family"] == "gemm":
        return functools.partial(_product, t["x"], columns(t["w"], facts))
    if facts["family"] != "attention" or facts["mask"] not in ("full", "causal"):
        raise ValueError(f"no Helion kernel is written for {facts['family']} {facts['mask']}")
    q, k, v = t["q"], t["k"], t["v"]
    if q.shape[1] != k.shape[1]:
        raise ValueError("no Helion kernel is written for grouped heads")
    b, h, i, d = q.shape
    flat = (x.reshape(b * h, -1, d) for x in (q, k, v))
    call = functools.partial(_KERNELS[facts["mask"]], *flat)
    return lambda: call().view(b, h, i, d)


@helion.kernel(autotune_effort="quick", static_shapes=True, autotune_progress_bar=False)
def _product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    _, n = w.size()
    out = torch.empty([m, n], dtype=x.dtype, device=x.device)
    for rows, cols in hl.tile([m, n]):
        acc = hl.zeros([rows, cols], dtype=torch.float32)
        for inner in hl.tile(k):
            acc = torch.addmm(acc, x[rows, inner], w[inner, cols])
        out[rows, cols] = acc.to(x.dtype)
    return out


@helion.kernel(autotune_effort="quick", static_shapes=True, autotune_progress_bar=False)
def _full(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    heads, rows, width = q.size()
    keys = k.size(1)
    width = hl.specialize(width)
    scale = _LOG2_E / math.sqrt(width)
    out = torch.empty_like(q)
    for h, r in hl.tile([heads, rows]):
        top = hl.full([h, r], float("-inf"), dtype=torch.float32)
        total = hl.zeros([h, r], dtype=torch.float32)
        acc = hl.zeros([h, r, width], dtype=torch.float32)
        mine = q[h, r, :]
        for c in hl.tile(keys):
            s = hl.dot(mine, k[h, c, :].transpose(1, 2), out_dtype=torch.float32) * scale
            higher = torch.maximum(top, torch.amax(s, -1))
            p = torch.exp2(s - higher[:, :, None])
            bend = torch.exp2(top - higher)
            total = total * bend + torch.sum(p, -1)
            acc = torch.baddbmm(acc * bend[:, :, None], p.to(v.dtype), v[h, c, :])
            top = higher
        out[h, r, :] = (acc / total[:, :, None]).to(out.dtype)
    return out


@helion.kernel(autotune_effort="quick", static_shapes=True, autotune_progress_bar=False)
def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    heads, rows, width = q.size()
    width = hl.specialize(width)
    scale = _LOG2_E / math.sqrt(width)
    out = torch.empty_like(q)
    for h, r in hl.tile([heads, rows]):
        top = hl.full([h, r], float("-inf"), dtype=torch.float32)
        total = hl.zeros([h, r], dtype=torch.float32)
        acc = hl.zeros([h, r, width], dtype=torch.float32)
        mine = q[h, r, :]
        for c in hl.tile(0, r.end):
            s = hl.dot(mine, k[h, c, :].transpose(1, 2), out_dtype=torch.float32) * scale
            s = torch.where((r.index[:, None] >= c.index[None, :])[None, :, :], s, float("-inf"))
            higher = torch.maximum(top, torch.amax(s, -1))
            p = torch.exp2(s - higher[:, :, None])
            bend = torch.exp2(top - higher)
            total = total * bend + torch.sum(p, -1)
            acc = torch.baddbmm(acc * bend[:, :, None], p.to(v.dtype), v[h, c, :])
            top = higher
        out[h, r, :] = (acc / total[:, :, None]).to(out.dtype)
    return out


_KERNELS: Mapping[str, Callable[..., torch.Tensor]] = {"full": _full, "causal": _causal}
