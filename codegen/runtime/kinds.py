"""A row of a manifest in, its kernel as an object out: one class for each code of kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .gpu_kernel import GpuKernel
from .kernel import Kernel
from .manifest import Manifest
from .spec import NATIVE, TRITON

AnyKernel = Kernel | GpuKernel
KERNELS: Mapping[str, type[Kernel] | type[GpuKernel]] = {NATIVE: Kernel, TRITON: GpuKernel}


def code_of(row: Mapping[str, Any]) -> str:
    """What a kernel is made of; manifests of before there was a choice do not say it."""
    code: str = row.get("code", NATIVE)
    return code


def kernel_of(manifest: Manifest, row: Mapping[str, Any]) -> AnyKernel:
    """The kernel of a manifest's row; nothing of it is loaded yet."""
    return KERNELS[code_of(row)](manifest, row)
