"""torch beside our kernels on one GPU: jobs of the measuring process that know the library.

A peer is a name in a table and a call on the task's inputs. Ours and the peers are timed in one
process, interleaved, each as the replay of a CUDA graph; a peer's answer is compared with the
same reference, so that its error is known beside ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from autosched.codegen.gpu_jobs import timed_together
from autosched.codegen.gpu_task import GpuTask, load_task

Tensors = Mapping[str, torch.Tensor]
Call = Callable[[Tensors], torch.Tensor]


def _mm(t: Tensors, tf32: bool = False, transposed: bool = False) -> torch.Tensor:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return torch.mm(t["x"], t["w"].t() if transposed else t["w"])


def _scaled_mm(t: Tensors, fast: bool) -> torch.Tensor:
    """fast: sums stay in the tensor core, with fewer bits than float32."""
    sx, sw = (t["sx"].reshape(-1, 1), t["sw"].reshape(1, -1)) if t["sx"].dim() else (
        t["sx"], t["sw"])  # fmt: skip
    return torch._scaled_mm(
        t["x"], t["w"].t(), scale_a=sx, scale_b=sw, out_dtype=torch.bfloat16, use_fast_accum=fast
    )


def _sdpa(t: Tensors, causal: bool, backend: SDPBackend) -> torch.Tensor:
    torch.backends.cuda.matmul.allow_tf32 = False
    shared = t["q"].shape[1] != t["k"].shape[1]
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(
            t["q"], t["k"], t["v"], is_causal=causal, enable_gqa=shared
        )


def _gelu_linear(t: Tensors) -> torch.Tensor:
    torch.backends.cuda.matmul.allow_tf32 = False
    return F.gelu(torch.addmm(t["bias"], t["x"], t["w"]))


def _swiglu(t: Tensors) -> torch.Tensor:
    return F.silu(torch.mm(t["x"], t["wg"])) * torch.mm(t["x"], t["wu"])


_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip

PEERS: Mapping[str, Call] = {
    "mm": _mm,
    "mmt": functools.partial(_mm, transposed=True),
    "mm.tf32": functools.partial(_mm, tf32=True),
    "mmt.tf32": functools.partial(_mm, tf32=True, transposed=True),
    "scaled_mm": functools.partial(_scaled_mm, fast=False),
    "scaled_mm.fast": functools.partial(_scaled_mm, fast=True),
    "gelu_linear": _gelu_linear,
    "swiglu": _swiglu,
    "softmax": lambda t: torch.softmax(t["x"], -1),
    "layernorm": lambda t: F.layer_norm(t["x"], t["x"].shape[-1:], t["gamma"], t["beta"], 1e-5),
    "rmsnorm": lambda t: F.rms_norm(t["x"], t["x"].shape[-1:], t["gamma"], 1e-6),
    **{
        f"sdpa.{kind}.{name}": functools.partial(_sdpa, causal=kind == "causal", backend=backend)
        for kind in ("causal", "full")
        for name, backend in _BACKENDS.items()
    },
}  # fmt: skip


def versus(
    folder: str, entries: Sequence[str], peers: Sequence[str], seed: int, *,
    device: str = "cuda", launcher: str = "cubin", rounds: int = 6, target_time_s: float = 0.1,
) -> dict[str, Any]:  # fmt: skip
    """Times builds that were checked before and torch's calls against each other.

    Returns {"ours": [Timing as JSON, ...], "peers": {name: Timing as JSON}, "errors": {name:
    relative error of a peer}, "refused": {name: why a peer does not run here}}.
    """
    task = load_task(folder, seed, device)
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name in peers:
        try:
            errors[name] = _error(task, PEERS[name](task.inputs))
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            # A library that has no kernel for these sizes, or no such call, says so by raising; a
            # lost device fails the next call too, and with it this job.
            refused[name] = str(error).split("\n")[0][:300]
    calls = [functools.partial(PEERS[name], task.inputs) for name in errors]
    timings = timed_together(task, entries, launcher, calls, rounds, target_time_s)
    ours, theirs = timings[: len(entries)], timings[len(entries) :]
    return {
        "ours": [t.to_json() for t in ours],
        "peers": {name: t.to_json() for name, t in zip(errors, theirs, strict=True)},
        "errors": errors, "refused": refused, "torch": torch.__version__,
    }  # fmt: skip


def _error(task: GpuTask, answer: torch.Tensor) -> float:
    (output,) = task.program.outputs
    return task.compare(output, answer, None).rel_l2
