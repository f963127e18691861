"""The CUDA driver through ctypes: machine code in, functions that can be launched out.

Nothing but libcuda is needed: no compiler, no CUDA toolkit. `library` is the one place where it
is loaded, and all that a test has to replace.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Names of cuda.h: CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, .._MAX_DYNAMIC_SHARED_SIZE_BYTES,
# CU_FUNC_CACHE_PREFER_SHARED, CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_CONTEXT.
_SHARED_SIZE, _MAX_DYNAMIC_SHARED, _PREFER_SHARED, _RELAXED = 1, 8, 1, 2
INVALID_CONTEXT = 201
_UNASKED_BYTES = 48 * 1024  # of shared memory that every kernel may take; more it must ask for
_NAMES = {"win32": "nvcuda.dll"}
_OTHERWISE = "libcuda.so.1"


class DriverError(RuntimeError):
    """A call of the driver failed. The text has "CUDA error", the sign that a context is lost."""


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        *((f"{what}{axis}", ctypes.c_uint) for what in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint), ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p), ("count", ctypes.c_uint),
    )  # fmt: skip


@functools.cache
def library() -> Any:
    """libcuda. Raises OSError where there is none."""
    driver = ctypes.CDLL(_NAMES.get(sys.platform, _OTHERWISE))
    p, u, i = ctypes.c_void_p, ctypes.c_uint, ctypes.c_int
    driver.cuModuleLoadData.argtypes = [p, ctypes.c_char_p]
    driver.cuModuleGetFunction.argtypes = [p, p, ctypes.c_char_p]
    driver.cuModuleUnload.argtypes = [p]
    driver.cuFuncSetCacheConfig.argtypes = [p, i]
    driver.cuFuncGetAttribute.argtypes = [p, i, p]
    driver.cuFuncSetAttribute.argtypes = [p, i, i]
    driver.cuLaunchKernel.argtypes = [p, u, u, u, u, u, u, u, p, p, p]
    driver.cuGetErrorString.argtypes = [i, p]
    driver.cuDeviceGet.argtypes = [p, i]
    driver.cuDevicePrimaryCtxRetain.argtypes = [p, i]
    driver.cuCtxPushCurrent_v2.argtypes = [p]
    driver.cuCtxPopCurrent_v2.argtypes = [p]
    driver.cuCtxSetCurrent.argtypes = [p]
    driver.cuThreadExchangeStreamCaptureMode.argtypes = [p]
    # cuLaunchKernelEx has none: its operands are ready ctypes objects, which then pass unchecked,
    # and a launch costs half as much.
    return driver


def check(code: int, what: str) -> None:
    """Raises DriverError unless `code` is success."""
    if code:
        text = ctypes.c_char_p()
        library().cuGetErrorString(code, ctypes.byref(text))
        said = text.value.decode() if text.value else f"code {code}"
        raise DriverError(f"CUDA error: {what}: {said}")


class CubinModule:
    """One loaded cubin and its function; `close` unloads it."""

    def __init__(self, code: bytes, symbol: str, shared_bytes: int, most_bytes: int) -> None:
        """Loads into the context that is current.

        shared_bytes: dynamic shared memory of a block. most_bytes: of shared memory that a block
        may have on this device.
        """
        driver = library()
        self._module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        check(driver.cuModuleLoadData(ctypes.byref(self._module), code), "cuModuleLoadData")
        name = symbol.encode()
        check(driver.cuModuleGetFunction(ctypes.byref(self.function), self._module, name),
              f"cuModuleGetFunction {symbol}")  # fmt: skip
        if shared_bytes > _UNASKED_BYTES:
            # As Triton does it: all that there is, so that the same share is the cache's.
            fixed = ctypes.c_int()
            check(driver.cuFuncSetCacheConfig(self.function, _PREFER_SHARED),
                  "cuFuncSetCacheConfig")  # fmt: skip
            check(driver.cuFuncGetAttribute(ctypes.byref(fixed), _SHARED_SIZE, self.function),
                  "cuFuncGetAttribute")  # fmt: skip
            dynamic = most_bytes - fixed.value
            check(driver.cuFuncSetAttribute(self.function, _MAX_DYNAMIC_SHARED, dynamic),
                  f"cuFuncSetAttribute {symbol}, {dynamic} bytes of shared memory")

    def close(self) -> None:
        check(library().cuModuleUnload(self._module), "cuModuleUnload")


@functools.cache
def primary_context(index: int) -> Any:
    """The context of a device that the CUDA runtime, and so torch, works in; kept alive."""
    driver, device, context = library(), ctypes.c_int(), ctypes.c_void_p()
    check(driver.cuDeviceGet(ctypes.byref(device), index), f"cuDeviceGet {index}")
    check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
          "cuDevicePrimaryCtxRetain")  # fmt: skip
    return context


@contextmanager
def loading(index: int) -> Iterator[None]:
    """Where modules are loaded into the context of a device, also while a graph is captured.

    The thread's context and capture mode are afterwards what they were.
    """
    driver, mode, before = library(), ctypes.c_int(_RELAXED), ctypes.c_void_p()
    check(driver.cuCtxPushCurrent_v2(primary_context(index)), "cuCtxPushCurrent")
    try:
        check(driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)),
              "cuThreadExchangeStreamCaptureMode")  # fmt: skip
        try:
            yield
        finally:
            driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    finally:
        check(driver.cuCtxPopCurrent_v2(ctypes.byref(before)), "cuCtxPopCurrent")


class Launch:
    """One launch with all that is known of it before its stream; not for two threads at once.

    Args: function: of a CubinModule; slots: where each of its pointers lies, in order, as
        addresses of 8 bytes that hold it at the time of the call.
    """

    def __init__(
        self, function: ctypes.c_void_p, programs: int, threads: int, shared_bytes: int,
        slots: Sequence[int],
    ) -> None:  # fmt: skip
        self.config = LaunchConfig(programs, 1, 1, threads, 1, 1, shared_bytes)
        params = (ctypes.c_void_p * len(slots))(*slots)
        self.args = (ctypes.byref(self.config), function, params, None)
