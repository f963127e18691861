"""The name of a peer in, how it is made and what it is out: a table that loads nothing.

A maker takes a row's tensors by name and its facts (`SuiteRow.to_json`) and returns a call that
computes the row's output anew. What it can't express it refuses with a ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a peer comes by its kernel, which decides how long it may take."""

    LIBRARY = "library"  # chosen by heuristics, at once
    COMPILED = "compiled"  # compiled for the row, without a search
    TUNED = "tuned"  # searched for the row


@dataclass(frozen=True)
class Peer:
    """maker: "module:function"; words: what it is; package: that it needs beside torch."""

    maker: str
    kind: Kind
    words: str
    package: str = ""


_LIBRARY, _FLEX = "autosched.tools.gpu_peers_library", "autosched.tools.gpu_peers_flex"
_INDUCTOR, _HELION = "autosched.tools.gpu_peers_inductor", "autosched.tools.gpu_peers_helion"

PEERS: Mapping[str, Peer] = {
    "cublas": Peer(f"{_LIBRARY}:gemm", Kind.LIBRARY, "torch.mm"),
    "eager": Peer(f"{_LIBRARY}:eager", Kind.LIBRARY, "cuBLAS, then torch operators"),
    "cublaslt": Peer(f"{_LIBRARY}:fused_gelu", Kind.LIBRARY, "torch._addmm_activation"),
    "scaled_mm": Peer(f"{_LIBRARY}:scaled_mm", Kind.LIBRARY, "torch scaled_mm"),
    "scaled_mm.fast": Peer(f"{_LIBRARY}:scaled_mm_fast", Kind.LIBRARY,
                           "torch scaled_mm, use_fast_accum"),
    "cudnn": Peer(f"{_LIBRARY}:cudnn", Kind.LIBRARY, "SDPA by cuDNN"),
    "flash": Peer(f"{_LIBRARY}:flash", Kind.LIBRARY, "SDPA by flash"),
    "efficient": Peer(f"{_LIBRARY}:efficient", Kind.LIBRARY, "SDPA, memory-efficient"),
    "math": Peer(f"{_LIBRARY}:math", Kind.LIBRARY, "SDPA, the plain formula"),
    "cudnn.packed": Peer(f"{_LIBRARY}:cudnn_packed", Kind.LIBRARY,
                         "SDPA by cuDNN, heads of a group as queries"),
    "flash.packed": Peer(f"{_LIBRARY}:flash_packed", Kind.LIBRARY,
                         "SDPA by flash, heads of a group as queries"),
    "varlen": Peer(f"{_LIBRARY}:varlen", Kind.LIBRARY, "torch varlen_attn (flash)"),
    "flex": Peer(f"{_FLEX}:flex", Kind.COMPILED, "flex_attention, cached block mask"),
    "flex.tuned": Peer(f"{_FLEX}:flex_tuned", Kind.TUNED,
                       "flex_attention, cached block mask, max-autotune"),
    "inductor": Peer(f"{_INDUCTOR}:inductor", Kind.TUNED,
                     "torch.compile, max-autotune-no-cudagraphs"),
    "helion": Peer(f"{_HELION}:helion_quick", Kind.TUNED, "Helion, effort quick", "helion"),
}  # fmt: skip
