"""The entry of a build in, its kernels loaded on the GPU and launched out, without a compiler.

The driver is called through ctypes, as Triton's own launcher calls it: one block of the size that
the kernel was compiled for per program, dynamic shared memory, pointers of the tensors, and two
pointers behind them (memory for tensor descriptors, memory for a profiler).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autosched.codegen.runtime import driver as cuda
from autosched.codegen.runtime.counters import ROLE as COUNTER
from autosched.codegen.runtime.driver import CubinModule, DriverError
from autosched.codegen.runtime.launch import Plan, Step, empty, processor_count

__all__ = ["CubinLauncher", "CubinModule", "DriverError"]

_ALIGNED = 16  # kernels are compiled for addresses that are multiples of this


class CubinLauncher:
    """The launches of a build on its machine code. Use as a context manager."""

    def __init__(
        self, folder: Path, plan: Plan, kernels: Sequence[Mapping[str, Any]], device: torch.device
    ) -> None:
        """kernels: for each launch the fields of a BuiltKernel."""
        torch.cuda.current_stream(device)  # makes the context that modules are loaded into
        self.plan, self.device, self._kernels = plan, device, kernels
        self._loaded: dict[str, CubinModule] = {}
        facts = torch.cuda.get_device_properties(device)
        most_bytes = facts.shared_memory_per_block_optin  # type: ignore[attr-defined]
        for kernel in kernels:
            if kernel["file"] not in self._loaded:
                code = (folder / kernel["file"]).read_bytes()
                self._loaded[kernel["file"]] = CubinModule(
                    code, kernel["symbol"], kernel["shared_bytes"], most_bytes
                )

    def bind(self, tensors: Mapping[str, torch.Tensor]) -> Callable[[], None]:
        """A call that runs all launches on these tensors, on the stream current at the call.

        Scratch is taken once, so that the calls can be captured in a CUDA graph; what is among
        the tensors is taken as it is.
        """
        scratch = {b.name: empty(b, self.device) for b in self.plan.of_role("scratch")
                   if b.name not in tensors}  # fmt: skip
        counters = {
            b.name: torch.zeros(b.extents, dtype=torch.int32, device=self.device)
            for b in self.plan.of_role(COUNTER)
        }
        every = {**tensors, **scratch, **counters}
        launches = [
            self._launch(step, kernel, every)
            for step, kernel in zip(self.plan.steps, self._kernels, strict=True)
        ]

        def run() -> None:
            stream = ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
            for launch in launches:
                launch(stream)

        return run

    def _launch(
        self, step: Step, kernel: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> Callable[[ctypes.c_void_p], None]:
        programs = step.grid(processor_count(self.device))
        operands = [tensors[name] for name in step.tensors]
        for name, tensor in zip(step.tensors, operands):
            if tensor.data_ptr() % _ALIGNED or not tensor.is_contiguous():
                raise ValueError(f"{name} is not dense or not aligned to {_ALIGNED} bytes")
        size = kernel["scratch_bytes"] * programs
        own = torch.empty(size, dtype=torch.uint8, device=self.device) if size else None
        if not programs:
            return lambda stream: None
        hidden = (own.data_ptr() if own is not None else 0, 0)
        # A size is a word of 32 bits: the lower half of its slot.
        addresses = [*(t.data_ptr() for t in operands), *step.sizes, *hidden]
        values = (ctypes.c_uint64 * len(addresses))(*addresses)
        start, width = ctypes.addressof(values), ctypes.sizeof(ctypes.c_uint64)
        params = (ctypes.c_void_p * len(addresses))(
            *(start + n * width for n in range(len(addresses)))
        )
        driver, function = cuda.library(), self._loaded[kernel["file"]].function
        threads, shared = kernel["threads"], kernel["shared_bytes"]

        def launch(stream: ctypes.c_void_p, _keep: Any = (values, own, operands)) -> None:
            code = driver.cuLaunchKernel(
                function, programs, 1, 1, threads, 1, 1, shared, stream, params, None
            )
            cuda.check(code, f"launch of {step.kernel}")

        return launch

    def close(self) -> None:
        for module in self._loaded.values():
            module.close()
        self._loaded.clear()

    def __enter__(self) -> CubinLauncher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error the context may be lost, and the process is thrown away with its modules.
        if kind is None:
            self.close()
