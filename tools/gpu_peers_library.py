"""A suite row's tensors and facts in, a call of a library's kernel out.

Whatever a caller would do once (views, other layouts, lengths) is done when the call is made and
never timed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]
Facts = Mapping[str, Any]
Call = Callable[[], Tensor]



@dataclass(frozen=True)
class Staged:
    """A call on copies of the tensors in a layout of its own; `stage` copies them anew."""

    call: Call
    stage: Callable[[], object]

    def __call__(self) -> Tensor:
        return self.call()


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y, "relu": F.relu, "silu": F.silu, "gelu": F.gelu,
    "gelu tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu squared": lambda y: F.relu(y).square(),
}  # fmt: skip


def columns(w: Tensor, facts: Facts) -> Tensor:
    """A weight as [k, n], however it lies: a view."""
    return w.t() if facts["sizes"]["layout"] == "nk" else w


# ---- products ----------------------------------------------------------------------------------


def gemm(t: Tensors, facts: Facts) -> Call:
    """torch.mm."""
    if facts["family"] != "gemm":
        raise ValueError("a product alone is not what this row computes")
    return functools.partial(torch.mm, t["x"], columns(t["w"], facts))


def eager(t: Tensors, facts: Facts) -> Call:
    """cuBLAS for the products (with the bias), a torch operator for each step after them."""
    return functools.partial(formula(facts), t)


def formula(facts: Facts) -> Callable[[Tensors], Tensor]:
    """What a row with products computes, as torch operators on its tensors."""
    return _FORMULAS[facts["family"]](facts)


def _plain(facts: Facts) -> Callable[[Tensors], Tensor]:
    return lambda t: torch.mm(t["x"], columns(t["w"], facts))


def _fused(facts: Facts) -> Callable[[Tensors], Tensor]:
    sizes = facts["sizes"]
    act, with_bias = ACTIVATIONS[sizes.get("epilogue", "none")], sizes.get("bias", False)
    with_residual = sizes.get("residual", False)

    def compute(t: Tensors) -> Tensor:
        w = columns(t["w"], facts)
        y = act(torch.addmm(t["bias"], t["x"], w) if with_bias else torch.mm(t["x"], w))
        return y + t["residual"] if with_residual else y

    return compute


def _gated(facts: Facts) -> Callable[[Tensors], Tensor]:
    def compute(t: Tensors) -> Tensor:
        gate, up = (torch.mm(t["x"], columns(t[name], facts)) for name in ("gate", "up"))
        return F.silu(gate) * up

    return compute


_FORMULAS: Mapping[str, Callable[[Facts], Callable[[Tensors], Tensor]]] = {
    "gemm": _plain, "fused_gemm": _fused, "gated_pair": _gated,
}  # fmt: skip


def fused_gelu(t: Tensors, facts: Facts) -> Call:
    """cuBLASLt's own epilogue: bias and the tanh form of gelu."""
    sizes = facts["sizes"]
    if sizes.get("epilogue") != "gelu tanh" or not sizes.get("bias") or sizes.get("residual"):
        raise ValueError("this epilogue is not cuBLASLt's")
    # Its own name has an underscore: torch uses it inside of models that it optimises.
    fused = torch._addmm_activation
    return lambda: fused(t["bias"], t["x"], columns(t["w"], facts), use_gelu=True)


_RECIPES: Mapping[str, tuple[str, str]] = {
    "tensor": ("TensorWise", "TensorWise"), "row": ("RowWise", "RowWise"),
    "block": ("BlockWise1x128", "BlockWise128x128"),
}  # fmt: skip


def scaled_mm(t: Tensors, facts: Facts, fast: bool = False) -> Call:
    """fp8 operands with scales, sums kept in full precision unless `fast`."""
    scales = facts["sizes"]["scales"]
    if scales == "block":
        # cuBLAS wants the scales of the activations with tokens innermost.
        sx, sw = t["sx"].t().contiguous().t(), t["sw"].t()
    else:
        shapes = {"tensor": ((1,), (1,)), "row": ((-1, 1), (1, -1))}[scales]
        sx, sw = (t[name].reshape(shape) for name, shape in zip(("sx", "sw"), shapes))
    a, b = (F.ScalingType.__members__[name] for name in _RECIPES[scales])
    x, w = t["x"], columns(t["w"], facts)
    return lambda: F.scaled_mm(x, w, sx, a, sw, b, output_dtype=torch.bfloat16,
                               use_fast_accum=fast)  # fmt: skip


def scaled_mm_fast(t: Tensors, facts: Facts) -> Call:
    """`scaled_mm` with sums as the tensor cores keep them."""
    return scaled_mm(t, facts, fast=True)


# ---- attention ---------------------------------------------------------------------------------


def _sdpa(t: Tensors, facts: Facts, backend: SDPBackend) -> Call:
    if facts["mask"] not in ("full", "causal"):
        raise ValueError(f"scaled_dot_product_attention has no mask {facts['mask']}")
    q, k, v = t["q"], t["k"], t["v"]
    causal, shared = facts["mask"] == "causal", q.shape[1] != k.shape[1]

    def call() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)

    return call


def _packed(t: Tensors, facts: Facts, backend: SDPBackend) -> Call:
    """The heads that share keys become queries of one head: the same numbers for one query."""
    (b, h, i, d), g = t["q"].shape, t["k"].shape[1]
    if i != 1 or facts["mask"] != "full":
        raise ValueError("heads can stand for queries only where there is one query")
    inner = _sdpa({**t, "q": t["q"].view(b, g, h // g, d)}, facts, backend)
    return lambda: inner().reshape(b, h, 1, -1)


_CUDNN, _FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION


def cudnn(t: Tensors, facts: Facts) -> Call:
    return _sdpa(t, facts, _CUDNN)


def flash(t: Tensors, facts: Facts) -> Call:
    return _sdpa(t, facts, _FLASH)


def efficient(t: Tensors, facts: Facts) -> Call:
    return _sdpa(t, facts, SDPBackend.EFFICIENT_ATTENTION)


def math(t: Tensors, facts: Facts) -> Call:
    """The plain formula: for a CPU."""
    return _sdpa(t, facts, SDPBackend.MATH)


def cudnn_packed(t: Tensors, facts: Facts) -> Call:
    return _packed(t, facts, _CUDNN)


def flash_packed(t: Tensors, facts: Facts) -> Call:
    return _packed(t, facts, _FLASH)


# (left, right) keys that a query sees of its document.
_WINDOWS: Mapping[str, tuple[int, int]] = {"full_document": (-1, -1), "causal_document": (-1, 0)}


def varlen(t: Tensors, facts: Facts) -> Call:
    """Documents by their lengths, in the layout that flash takes: [tokens, heads, width]."""
    # Not in older versions of torch, and not on every platform.
    from torch.nn.attention.varlen import varlen_attn

    if facts["mask"] not in _WINDOWS or not facts["cut"]:
        raise ValueError(f"varlen_attn has no mask {facts['mask']}")
    taken = inspect.signature(varlen_attn).parameters
    shared = t["q"].shape[1] // t["k"].shape[1]
    how: dict[str, Any] = {"enable_gqa": True} if shared > 1 and "enable_gqa" in taken else {}
    # Versions without grouped heads get the keys once for each head.
    times = {"q": 1, "k": 1 if how else shared, "v": 1 if how else shared}

    def copies() -> list[Tensor]:
        """[tokens, heads, width] of q, k and v."""
        return [t[name].squeeze(0).transpose(0, 1).repeat_interleave(count, 1)
                for name, count in times.items()]  # fmt: skip

    q, k, v = copies()
    window = _WINDOWS[facts["mask"]]
    if "window_size" in taken:
        how["window_size"] = window
    else:
        how["is_causal"] = window[1] == 0
    lengths = torch.tensor([0, *facts["cut"]], dtype=torch.int32, device=q.device)
    starts, longest = lengths.cumsum(0, dtype=torch.int32), max(facts["cut"])

    def call() -> Tensor:
        out = varlen_attn(q, k, v, starts, starts, longest, longest, **how)
        assert isinstance(out, Tensor)  # a pair only where more is asked for
        return out.transpose(0, 1).unsqueeze(0)

    def stage() -> None:
        for kept, copy in zip((q, k, v), copies()):
            kept.copy_(copy)

    return Staged(call, stage)
