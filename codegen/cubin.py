"""The entry of a build in, its kernels loaded on the GPU and launched out, without a compiler.

The driver is called through ctypes, as Triton's own launcher calls it: one block of the size that
the kernel was compiled for per program, dynamic shared memory, pointers of the tensors, and two
pointers behind them (memory for tensor descriptors, memory for a profiler).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autosched.codegen.runtime.launch import Plan, Step, empty, processor_count

# Names of cuda.h: CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, .._MAX_DYNAMIC_SHARED_SIZE_BYTES,
# CU_FUNC_CACHE_PREFER_SHARED.
_SHARED_SIZE, _MAX_DYNAMIC_SHARED, _PREFER_SHARED = 1, 8, 1
_UNASKED_BYTES = 48 * 1024  # of shared memory that every kernel may take; more it must ask for
_ALIGNED = 16  # kernels are compiled for addresses that are multiples of this


class DriverError(RuntimeError):
    """A call of the driver failed. The text has "CUDA error", the sign that a context is lost."""


class CubinModule:
    """One loaded cubin; `close` unloads it."""

    def __init__(self, code: bytes, symbol: str, shared_bytes: int, most_bytes: int) -> None:
        """most_bytes: of shared memory that a block may have on this device."""
        driver = _driver()
        self._module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(driver.cuModuleLoadData(ctypes.byref(self._module), code), "cuModuleLoadData")
        name = symbol.encode()
        _check(driver.cuModuleGetFunction(ctypes.byref(self.function), self._module, name),
               f"cuModuleGetFunction {symbol}")  # fmt: skip
        if shared_bytes > _UNASKED_BYTES:
            # As Triton does it: all that there is, so that the same share is the cache's.
            fixed = ctypes.c_int()
            _check(driver.cuFuncSetCacheConfig(self.function, _PREFER_SHARED),
                   "cuFuncSetCacheConfig")  # fmt: skip
            _check(driver.cuFuncGetAttribute(ctypes.byref(fixed), _SHARED_SIZE, self.function),
                   "cuFuncGetAttribute")  # fmt: skip
            dynamic = most_bytes - fixed.value
            _check(driver.cuFuncSetAttribute(self.function, _MAX_DYNAMIC_SHARED, dynamic),
                   f"cuFuncSetAttribute {symbol}, {dynamic} bytes of shared memory")

    def close(self) -> None:
        _check(_driver().cuModuleUnload(self._module), "cuModuleUnload")


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

        Scratch is taken once, so that the calls can be captured in a CUDA graph.
        """
        scratch = {b.name: empty(b, self.device) for b in self.plan.of_role("scratch")}
        every = {**tensors, **scratch}
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
        addresses = [t.data_ptr() for t in operands] + [own.data_ptr() if own is not None else 0, 0]
        values = (ctypes.c_uint64 * len(addresses))(*addresses)
        start, width = ctypes.addressof(values), ctypes.sizeof(ctypes.c_uint64)
        params = (ctypes.c_void_p * len(addresses))(
            *(start + n * width for n in range(len(addresses)))
        )
        driver, function = _driver(), self._loaded[kernel["file"]].function
        threads, shared = kernel["threads"], kernel["shared_bytes"]

        def launch(stream: ctypes.c_void_p, _keep: Any = (values, own, operands)) -> None:
            _check(driver.cuLaunchKernel(function, programs, 1, 1, threads, 1, 1, shared, stream,
                                         params, None), f"launch of {step.kernel}")

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


@functools.cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    p, u = ctypes.c_void_p, ctypes.c_uint
    driver.cuModuleLoadData.argtypes = [p, ctypes.c_char_p]
    driver.cuModuleGetFunction.argtypes = [p, p, ctypes.c_char_p]
    driver.cuModuleUnload.argtypes = [p]
    driver.cuFuncSetCacheConfig.argtypes = [p, ctypes.c_int]
    driver.cuFuncGetAttribute.argtypes = [p, ctypes.c_int, p]
    driver.cuFuncSetAttribute.argtypes = [p, ctypes.c_int, ctypes.c_int]
    driver.cuLaunchKernel.argtypes = [p, u, u, u, u, u, u, u, p, p, p]
    driver.cuGetErrorString.argtypes = [ctypes.c_int, p]
    return driver


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        said = text.value.decode() if text.value else f"code {code}"
        raise DriverError(f"CUDA error: {what}: {said}")
