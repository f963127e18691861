"""Operands in, the device that kernels run on out; and torch and Triton, loaded at the first use.

Triton's interpreter (TRITON_INTERPRET=1) runs the same kernels on CPU tensors, slowly: it shows
what they compute where there is no GPU.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .arrays import is_torch
from .errors import InputError, UnsupportedMachineError

ALIGNMENT = 16  # bytes: what tensor descriptors need, and the fastest loads

_INSTALL = (
    "these kernels are {}, and {} is not installed: install the torch build for your CUDA as "
    "torch's own page says{}"
)
_WHAT = {
    "torch": ("for GPUs and run on torch tensors", ""),
    "triton": ("Triton code that is to be compiled or interpreted", ", then pip install triton"),
}


@functools.cache
def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        what, way_out = _WHAT[name]
        said = _INSTALL.format(what, name.replace("triton", "Triton"), way_out)
        raise UnsupportedMachineError(said) from error


def torch_module() -> Any:
    """torch. Raises UnsupportedMachineError."""
    return _module("torch")


def need_triton() -> None:
    """Raises UnsupportedMachineError where Triton is missing."""
    _module("triton")


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter. Raises UnsupportedMachineError.

    Triton is not loaded to find out: machine code needs none.
    """
    if sys.modules.get("triton") is None and not os.environ.get("TRITON_INTERPRET"):
        return False
    return bool(_module("triton").knobs.runtime.interpret)


def find_device(operands: Iterable[Any]) -> Any:
    """The torch device on which kernels run on these operands.

    It is that of the operands that lie on a GPU, else torch's current one; the CPU under Triton's
    interpreter, and where there is no GPU. Raises InputError.
    """
    torch = torch_module()
    found = {x.device for x in operands if is_torch(x) and x.device.type == "cuda"}
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found)))
        raise InputError(f"operands are on several devices ({names}): move them to one")
    if found or interpreted() or not torch.cuda.is_available():
        return next(iter(found), torch.device("cpu"))
    return torch.device("cuda", torch.cuda.current_device())


@functools.cache
def why_not(arch: str, device: Any) -> str | None:
    """Why kernels for `arch` can't run on a device, with ways out; None where they can."""
    torch = torch_module()
    if device.type != "cuda":
        return (
            f"these kernels are for GPUs of architecture {arch}, and torch finds no CUDA device "
            "here: run them on a machine with such a GPU and a torch built for CUDA, tune with "
            "--target cpu for this machine, or set TRITON_INTERPRET=1 to run them slowly on the CPU"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if f"sm_{major}{minor}" == arch:
        return None
    return (
        f"these kernels were tuned for {arch}, and {torch.cuda.get_device_name(device)} is "
        f"sm_{major}{minor}: tune again with --target sm_{major}{minor}"
    )


def launching(device: Any) -> AbstractContextManager[Any]:
    """Where launches go to `device`: Triton takes torch's current one."""
    if device.type != "cuda":
        return nullcontext()
    context: AbstractContextManager[Any] = torch_module().cuda.device(device)
    return context
