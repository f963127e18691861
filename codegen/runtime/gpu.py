"""Operands in, the device that kernels run on out; and torch and Triton, loaded at the first use.

Triton's interpreter (TRITON_INTERPRET=1) runs the same kernels on CPU tensors, slowly: it shows
what they compute where there is no GPU.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .arrays import is_torch
from .errors import InputError, UnsupportedMachineError

ALIGNMENT = 16  # bytes: what tensor descriptors need, and the fastest loads

_INSTALL = (
    "these kernels are Triton code that runs on torch tensors, and {} is not installed: install "
    "the torch build for your CUDA as torch's own page says, then pip install triton"
)


@functools.cache
def torch_module() -> Any:
    """torch. Raises UnsupportedMachineError."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UnsupportedMachineError(_INSTALL.format("torch")) from error


@functools.cache
def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter. Raises UnsupportedMachineError."""
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        raise UnsupportedMachineError(_INSTALL.format("Triton")) from error
    return bool(triton.knobs.runtime.interpret)


def find_device(arch: str, operands: Iterable[Any]) -> Any:
    """The torch device on which kernels for `arch` run on these operands.

    It is that of the operands that lie on a GPU, else torch's current one; under Triton's
    interpreter, the CPU.
    Raises UnsupportedMachineError where there is no such GPU, InputError.
    """
    torch = torch_module()
    found = {x.device for x in operands if is_torch(x) and x.device.type == "cuda"}
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found)))
        raise InputError(f"operands are on several devices ({names}): move them to one")
    if interpreted():
        return next(iter(found), torch.device("cpu"))
    if not torch.cuda.is_available():
        raise UnsupportedMachineError(
            f"these kernels are for GPUs of architecture {arch}, and torch finds no CUDA device "
            "here: run them on a machine with such a GPU and a torch built for CUDA, tune with "
            "--target cpu for this machine, or set TRITON_INTERPRET=1 to run them slowly on the CPU"
        )
    device = next(iter(found), None) or torch.device("cuda", torch.cuda.current_device())
    _check_arch(arch, device)
    return device


@functools.cache
def _check_arch(arch: str, device: Any) -> None:
    torch = torch_module()
    major, minor = torch.cuda.get_device_capability(device)
    if f"sm_{major}{minor}" != arch:
        raise UnsupportedMachineError(
            f"these kernels were tuned for {arch}, and {torch.cuda.get_device_name(device)} is "
            f"sm_{major}{minor}: tune again with --target sm_{major}{minor}"
        )


def launching(device: Any) -> AbstractContextManager[Any]:
    """Where launches go to `device`: Triton takes torch's current one."""
    if device.type != "cuda":
        return nullcontext()
    context: AbstractContextManager[Any] = torch_module().cuda.device(device)
    return context
