"""Machine code of a package's kernels in, a call on tensors of one device out; no compiler.

What does not change from call to call is made once: modules, launch descriptions, argument arrays.
A call takes outputs and one workspace from torch's allocator, writes all addresses by one
instruction of `struct`, and launches on torch's current stream. It never waits for the device, so
that it can be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import driver
from .counters import ROLE as COUNTER
from .counters import Counters
from .errors import KernelFailedError
from .gpu import launching, torch_module
from .launch import Buffer, Plan, processor_count, torch_type

Call = Callable[[Sequence[Any]], list[Any]]
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
    """`run(operands)` computes the outputs, as new tensors, in the order of the plan's buffers.

    operands: tensors of the plan's inputs and weights in order, dense and aligned to 16 bytes.
    Thread-safe: calls at the same time have arguments of their own.
    """

    def __init__(
        self, plan: Plan, binaries: Sequence[Binary], read: Callable[[str], bytes], device: Any
    ) -> None:
        """read: the checked content of a file of the package."""
        self.device, self._plan, self._binaries = device, plan, binaries
        self._functions = self._load(read)
        processors = processor_count(device)
        self._programs = [step.grid(processors) for step in plan.steps]
        self._names = [b.name for b in (
            *plan.of_role("input", "weight"), *plan.of_role("output"), *plan.of_role(COUNTER)
        )]  # fmt: skip
        self._places, self._size = self._workspace()
        # One slot for each address, and one that stays 0.
        self._slots = len(self._names) + len(self._places) + 1
        self.run = self._bound()

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

    def _workspace(self) -> tuple[dict[str | int, int], int]:
        """Where in one workspace scratch lies, by name, and the memory that launches need for
        themselves, by their number; the size of it all."""
        pieces: list[tuple[str | int, int, int]] = [
            (b.name, _bytes(b), _APART) for b in self._plan.of_role("scratch")
        ]
        pieces += [
            (n, b.scratch_bytes * programs, max(_APART, b.scratch_align))
            for n, (b, programs) in enumerate(zip(self._binaries, self._programs, strict=True))
            if b.scratch_bytes
        ]
        places, size = {}, 0
        for owner, length, apart in pieces:
            places[owner] = -(-size // apart) * apart
            size = places[owner] + length
        return places, size

    def _frame(self) -> tuple[Any, list[tuple[driver.LaunchConfig, tuple[Any, ...]]], Any]:
        """Slots for all addresses of one call at a time, and the launches that read them.

        Behind its tensors and sizes, each is passed memory of its own and memory for a profiler.
        """
        values = (ctypes.c_uint64 * self._slots)()
        start = ctypes.addressof(values)
        owners: list[str | int] = [*self._names, *self._places]
        at = {owner: start + n * _WIDTH for n, owner in enumerate(owners)}
        none = start + len(owners) * _WIDTH
        # Sizes are the same in each call. An address of eight bytes serves four as well.
        sizes = [n for step in self._plan.steps for n in step.sizes]
        constants = (ctypes.c_uint64 * len(sizes))(*sizes)
        next_size = itertools.count(ctypes.addressof(constants), _WIDTH)
        launches = []
        steps = zip(self._plan.steps, self._binaries, self._programs, strict=True)
        for n, (step, binary, programs) in enumerate(steps):
            numbers = [next(next_size) for _ in step.sizes]
            slots = [*(at[name] for name in step.tensors), *numbers, at.get(n, none), none]
            function = self._functions[binary.file]
            if programs:  # a dimension of no elements leaves nothing to run
                made = driver.Launch(
                    function, programs, binary.threads, binary.shared_bytes, slots
                )
                launches.append((made.config, made.args))
        return values, launches, constants

    def _bound(self) -> Call:
        """The call, all that it needs in variables of its own: Python finds them fastest."""
        torch, device, index = torch_module(), self.device, self.device.index
        prototypes = [_prototype(b, device) for b in self._plan.of_role("output")]
        empty, empty_like, byte = torch.empty, torch.empty_like, torch.uint8
        address = torch.Tensor.data_ptr
        counted = self._plan.of_role(COUNTER)
        counters = Counters(counted) if counted else None
        size, places = self._size, tuple(self._places.values())
        pack = struct.Struct(f"{self._slots - 1}Q").pack_into
        stream_now, device_now = _stream_of(device), _current_of(device)
        launch, again = driver.library().cuLaunchKernelEx, self._again
        frames = [self._frame()]

        def run(operands: Sequence[Any]) -> list[Any]:
            if device_now() != index:
                with launching(device):
                    return run(operands)
            made = [empty_like(p) for p in prototypes]
            rest: list[int] = []
            if counters is not None:
                rest += map(address, counters.on(device).values())
            if size:
                memory = empty(size, dtype=byte, device=device)
                base = memory.data_ptr()
                rest += [base + place for place in places]
            try:
                frame = frames.pop()
            except IndexError:  # all are in use by other threads
                frame = self._frame()
            values, launches, _ = frame
            pack(values, 0, *map(address, operands), *map(address, made), *rest)
            stream = stream_now()
            for config, args in launches:
                config.stream = stream
                if code := launch(*args):
                    again(code, launch, args)
            frames.append(frame)
            return made

        return run

    def _again(self, code: int, launch: Callable[..., int], args: tuple[Any, ...]) -> None:
        """A launch that failed, in the device's context: a thread of its own may have none yet."""
        if code == driver.INVALID_CONTEXT:
            driver.library().cuCtxSetCurrent(driver.primary_context(self.device.index or 0))
            code = launch(*args)
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
