"""A driver that notes what it is told, byte by byte, in place of libcuda."""

from __future__ import annotations

import ctypes
from typing import Any


class Driver:
    """Takes what libcuda takes, as ctypes hands it over."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails = ""
        self.handles = 0
        self.contexts: list[int] = []
        self.capture_mode = 0
        self.code = 700  # of the call that `fails`

    def _done(self, name: str, *facts: Any) -> int:
        self.calls.append((name, *facts))
        return self.code if name == self.fails else 0

    def cuModuleLoadData(self, out: Any, code: bytes) -> int:
        self.handles += 1
        out._obj.value = self.handles
        return self._done("load", code[:4])

    def cuModuleGetFunction(self, out: Any, module: Any, name: bytes) -> int:
        out._obj.value = 100 + module.value
        return self._done("function", name)

    def cuModuleUnload(self, module: Any) -> int:
        return self._done("unload", module.value)

    def cuFuncSetCacheConfig(self, function: Any, config: int) -> int:
        return self._done("prefer", config)

    def cuFuncGetAttribute(self, out: Any, which: int, function: Any) -> int:
        out._obj.value = 448
        return self._done("ask", which)

    def cuFuncSetAttribute(self, function: Any, which: int, value: int) -> int:
        return self._done("set", which, value)

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        *sizes, shared, stream, params, extra = rest
        addresses = [ctypes.cast(p, ctypes.POINTER(ctypes.c_uint64))[0] for p in params]
        return self._done("launch", function.value, tuple(sizes), shared, stream.value,
                          tuple(addresses), extra)  # fmt: skip

    def cuLaunchKernelEx(self, config: Any, function: Any, params: Any, extra: Any) -> int:
        """What a launch by cuLaunchKernel would be told, and noted as such."""
        c = config._obj
        sizes = (c.gridx, c.gridy, c.gridz, c.blockx, c.blocky, c.blockz)
        stream = ctypes.c_void_p(c.stream)
        return self.cuLaunchKernel(function, *sizes, c.shared_bytes, stream, params, extra)

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = 10 + index
        return self._done("device", index)

    def cuDevicePrimaryCtxRetain(self, out: Any, device: Any) -> int:
        out._obj.value = 1000 + device.value
        return self._done("retain", device.value)

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        self.contexts.append(context.value)
        return self._done("push", context.value)

    def cuCtxPopCurrent_v2(self, out: Any) -> int:
        out._obj.value = self.contexts.pop()
        return self._done("pop", out._obj.value)

    def cuCtxSetCurrent(self, context: Any) -> int:
        self.contexts = [context.value]
        self.fails = ""
        return self._done("bind", context.value)

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
        self.capture_mode, mode._obj.value = mode._obj.value, self.capture_mode
        return self._done("capture", self.capture_mode)

    def cuGetErrorString(self, code: int, out: Any) -> int:
        out._obj.value = b"an illegal memory access was encountered"
        return 0
