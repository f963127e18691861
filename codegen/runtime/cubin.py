"""Machine code of a package's kernels in, a call on tensors of one device out; no compiler.

What does not change from call to call is made once: modules, launch descriptions, argument arrays.
A call takes outputs and one workspace from torch's allocator, writes all addresses by one
instruction of `struct`, and launches on torch's current stream. It never waits for the device, so
that it can be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import driver
from .counters import ROLE as COUNTER
from .counters import Counters
from .counters import ROLE as COUNTER
from .counters import Counters
from .errors import KernelFailedError
from .gpu import launching, torch_module
from .launch import Buffer, Plan, processor_count, torch_type

HIDDEN = 2  # pointers behind the tensors: memory for tensor descriptors, memory for a profiler
_WIDTH = ctypes.sizeof(ctypes.c_uint64)
_APART = 256  # bytes: what pieces of a workspace are aligned to, at least


@dataclass(frozen=True)
class Binary:
    """The machine code of one launch: a BuiltKernel, its file in the package.

    threads: of a block; shared_bytes: dynamic, of a block; scratch_bytes: global memory for each
    program, aligned to scratch_align.
    """

    file: str
    symbol: str
    threads: int
    shared_bytes: int
    scratch_bytes: int
    scratch_align: int


class CubinCall:
    """`call(operands)` computes the outputs, as new tensors, in the order of the plan's buffers.

    operands: tensors of the plan's inputs and weights in order, dense and aligned to 16 bytes.
    Thread-safe: calls at the same time have arguments of their own.
    """

    def __init__(
        self, plan: Plan, binaries: Sequence[Binary], read: Callable[[str], bytes], device: Any
    ) -> None:
        """read: the checked content of a file of the package."""
        self.device, self._plan, self._binaries = device, plan, binaries
        self._functions = self._load(read)
        self._outputs = [_prototype(b, device) for b in plan.of_role("output")]
        given = [b.name for b in plan.of_role("input", "weight")]
        counters = plan.of_role(COUNTER)
        self._counters = Counters(counters) if counters else None
        self._names = [
            *given, *(b.name for b in plan.of_role("output")), *(b.name for b in counters)
        ]  # fmt: skip
        self._offsets, self._size = self._workspace()
        count = len(self._names) + len(self._offsets) + 1  # the last one stays 0
        self._pack = struct.Struct(f"{count - 1}Q").pack_into
        self._slots = count
        self._empty, self._empty_like = torch_module().empty, torch_module().empty_like
        self._byte = torch_module().uint8
        self._stream, self._current = _stream_of(device), _current_of(device)
        self._launch = driver.library().cuLaunchKernelEx
        self._frames = [self._frame()]

    def _load(self, read: Callable[[str], bytes]) -> dict[str, ctypes.c_void_p]:
        """The function of each file, in the context of the device."""
        torch = torch_module()
        most = 0
        if self.device.type == "cuda":
            facts = torch.cuda.get_device_properties(self.device)
            most = facts.shared_memory_per_block_optin
        files = {b.file: (read(b.file), b) for b in self._binaries}
        with driver.loading(self.device.index or 0):
            return {
                file: driver.CubinModule(code, b.symbol, b.shared_bytes, most).function
                for file, (code, b) in files.items()
            }

    def _programs(self) -> list[int]:
        processors = processor_count(self.device)
        return [step.grid(processors) for step in self._plan.steps]

    def _workspace(self) -> tuple[list[int], int]:
        """Where scratch, and the memory of each launch, lie in one workspace; its size."""
        pieces = [(_bytes(b), _APART) for b in self._plan.of_role("scratch")]
        pieces += [
            (b.scratch_bytes * programs, max(_APART, b.scratch_align))
            for b, programs in zip(self._binaries, self._programs(), strict=True)
        ]
        offsets, size = [], 0
        for length, apart in pieces:
            size = -(-size // apart) * apart
            offsets.append(size)
            size += length
        return offsets, size

    def _frame(self) -> tuple[Any, list[driver.Launch]]:
        """Slots for all addresses of one call at a time, and the launches that read them."""
        values = (ctypes.c_uint64 * self._slots)()
        start = ctypes.addressof(values)
        scratch = [b.name for b in self._plan.of_role("scratch")]
        at = {name: start + n * _WIDTH for n, name in enumerate([*self._names, *scratch])}
        own, none = start + len(at) * _WIDTH, start + (self._slots - 1) * _WIDTH
        launches = []
        steps = zip(self._plan.steps, self._binaries, self._programs(), strict=True)
        for n, (step, binary, programs) in enumerate(steps):
            slots = [*(at[name] for name in step.tensors), own + n * _WIDTH, none]
            function = self._functions[binary.file]
            if programs:  # a dimension of no elements leaves nothing to run
                launches.append(driver.Launch(
                    function, programs, binary.threads, binary.shared_bytes, slots
                ))  # fmt: skip
        return values, launches

    def __call__(self, operands: Sequence[Any]) -> list[Any]:
        if self._current() != self.device.index:
            with launching(self.device):
                return self._run(operands)
        return self._run(operands)

    def _run(self, operands: Sequence[Any]) -> list[Any]:
        made = [self._empty_like(p) for p in self._outputs]
        addresses = [x.data_ptr() for x in operands]
        addresses += [x.data_ptr() for x in made]
        if self._counters is not None:
            addresses += [x.data_ptr() for x in self._counters.on(self.device).values()]
        if self._counters is not None:
            addresses += [x.data_ptr() for x in self._counters.on(self.device).values()]
        base, memory = 0, None
        if self._size:
            memory = self._empty(self._size, dtype=self._byte, device=self.device)
            base = memory.data_ptr()
        addresses += [base + offset for offset in self._offsets]
        try:
            frame = self._frames.pop()
        except IndexError:  # all are in use by other threads
            frame = self._frame()
        values, launches = frame
        self._pack(values, 0, *addresses)
        stream, launch = self._stream(), self._launch
        for one in launches:
            one.config.stream = stream
            if code := launch(*one.args):
                self._again(code, one)
        self._frames.append(frame)
        return made

    def _again(self, code: int, launch: driver.Launch) -> None:
        """A launch that failed, in the device's context: a thread of its own may have none yet."""
        if code == driver.INVALID_CONTEXT:
            driver.library().cuCtxSetCurrent(driver.primary_context(self.device.index or 0))
            code = self._launch(*launch.args)
        try:
            driver.check(code, "launch of a kernel")
        except driver.DriverError as error:
            raise KernelFailedError(str(error)) from error


def binaries_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Binary, ...]:
    """Of the manifest: one for each launch, none where only sources were packed."""
    return tuple(Binary(**row) for row in rows)


def _prototype(buffer: Buffer, device: Any) -> Any:
    """A tensor like an output, in memory of one element: `empty_like` is twice as fast as `empty`
    with all that it has to be told."""
    torch = torch_module()
    one = torch.empty((), dtype=torch_type(buffer.dtype), device=device)
    made = one.expand(buffer.extents)
    like = torch.empty_like(made)
    return made if like.is_contiguous() else torch.empty(
        buffer.extents, dtype=torch_type(buffer.dtype), device=device
    )  # fmt: skip


def _bytes(buffer: Buffer) -> int:
    size: int = torch_type(buffer.dtype).itemsize
    for extent in buffer.extents:
        size *= extent
    return size


def _stream_of(device: Any) -> Callable[[], int]:
    """The handle of torch's current stream on a device."""
    torch = torch_module()
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if device.type != "cuda":
        return lambda: 0
    if raw is None:
        return lambda: int(torch.cuda.current_stream(device).cuda_stream)
    return lambda: raw(device.index)


def _current_of(device: Any) -> Callable[[], int | None]:
    """The number of torch's current device."""
    if device.type != "cuda":
        return lambda: None
    torch = torch_module()
    current: Callable[[], int | None] = getattr(
        torch._C, "_cuda_getDevice", torch.cuda.current_device
    )
    return current
