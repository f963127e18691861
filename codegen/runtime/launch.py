"""A file of Triton kernels and how to launch them in, a callable on torch tensors out.

A package carries this beside its kernels. Nothing is imported before the first call: neither
torch, nor Triton, nor the file of kernels. Launches go to the current stream of the tensors'
device; scratch comes from torch's allocator, so that a call may be captured in a CUDA graph.
"""

from __future__ import annotations

import contextvars
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .counters import ROLE as COUNTER
from .counters import Counters
from .sizes import Size, evaluate, frozen, sizes_of

INTERPRETED_PROCESSORS = 4  # what a persistent grid finds where there is no GPU


@dataclass(frozen=True)
class Buffer:
    """A tensor that kernels are passed. role: input, weight, packed, output, scratch or counter
    (0 before a launch and after it)."""

    name: str
    dtype: str
    extents: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Step:
    """One launch of the kernel `kernel`: tensors by position, then sizes, nothing else.

    persistent: programs per multiprocessor at most, 0 for all at once; descriptors: the kernel
    makes tensor descriptors, for which it needs memory at its launch; registers: of a thread at
    most, 0 for as many as it wants.
    """

    kernel: str
    tensors: tuple[str, ...]
    programs: int
    warps: int
    stages: int
    persistent: int = 0
    descriptors: bool = False
    registers: int = 0
    sizes: tuple[int, ...] = ()

    def grid(self, processors: int) -> int:
        """How many programs are launched on a device with so many multiprocessors."""
        return min(self.programs, processors * self.persistent) if self.persistent else (
            self.programs
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The launches of a module, in order, and the tensors that they name."""

    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None = None
    ) -> Plan:
        """Of {"tensors": [...], "launches": [...], "sizes": [...]}; other keys are left alone.

        shapes: of the operands by name, where the kernels serve several. Raises: SizeError.
        """
        values = sizes_of([Size(**row) for row in data.get("sizes", ())], shapes or {})

        def number(count: Any) -> int:
            return evaluate(frozen(count), values)

        buffers = tuple(
            Buffer(**{**row, "extents": tuple(map(number, row["extents"]))})
            for row in data["tensors"]
        )
        steps = tuple(
            Step(**{
                **row, "tensors": tuple(row["tensors"]), "programs": number(row["programs"]),
                "sizes": tuple(values[name] for name in row.get("sizes", ())),
            })
            for row in data["launches"]
        )  # fmt: skip
        return cls(buffers, steps)

    def of_role(self, *roles: str) -> tuple[Buffer, ...]:
        return tuple(b for b in self.buffers if b.role in roles)


def load_kernels(file: Path) -> ModuleType:
    """The module of Triton functions in `file`; it gets no name in sys.modules."""
    spec = importlib.util.spec_from_file_location(f"autosched_kernels_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no file of Python code")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_type(name: str) -> Any:
    """The torch dtype that stores values of the type `name`."""
    return getattr(_torch(), "float8_e4m3fn" if name == "float8_e4m3" else name)


class Launcher:
    """Kernels of one file, loaded at the first call. Thread-safe: calls share nothing but code."""

    def __init__(self, file: Path, plan: Plan) -> None:
        self.file, self.plan = file, plan
        self._counters = Counters(plan.of_role(COUNTER))

    @functools.cached_property
    def functions(self) -> Mapping[str, Any]:
        module = load_kernels(self.file)
        return {step.kernel: getattr(module, step.kernel) for step in self.plan.steps}

    def __call__(self, tensors: Mapping[str, Any]) -> None:
        """Runs the launches. tensors: inputs, weights, packed ones and outputs, by name, dense;
        outputs are written in place."""
        device = next(iter(tensors.values())).device
        scratch = {b.name: empty(b, device) for b in self.plan.of_role("scratch")}
        every = {**tensors, **scratch, **self._counters.on(device)}
        processors = processor_count(device)
        for step in self.plan.steps:
            if not step.programs:  # nothing to compute, and no launch of nothing
                continue
            run = functools.partial(
                self.functions[step.kernel][(step.grid(processors),)],
                *(every[name] for name in step.tensors), *step.sizes,
                num_warps=step.warps, num_stages=step.stages, maxnreg=step.registers or None,
            )  # fmt: skip
            if step.descriptors:
                contextvars.copy_context().run(with_allocator, run, device)
            else:
                run()

    def run(self, tensors: Mapping[str, Any], device: Any) -> dict[str, Any]:
        """The outputs by name, in new tensors on `device`, from all others."""
        outputs = {b.name: empty(b, device) for b in self.plan.of_role("output")}
        self({**tensors, **outputs})
        return outputs


def empty(buffer: Buffer, device: Any) -> Any:
    """A new tensor for a buffer, its content undefined."""
    return _torch().empty(buffer.extents, dtype=torch_type(buffer.dtype), device=device)


@functools.cache
def processor_count(device: Any) -> int:
    """Multiprocessors of a device."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(_torch().cuda.get_device_properties(device).multi_processor_count)


def with_allocator(run: Any, device: Any) -> None:
    """Runs a launch that needs memory of its own; the caller's allocator is left as it is."""
    import triton

    torch = _torch()

    def allocate(size: int, alignment: int, stream: int | None) -> Any:
        return torch.empty(size, dtype=torch.int8, device=device)

    triton.set_allocator(allocate)
    run()


def _torch() -> Any:
    """torch, which the caller's tensors have loaded."""
    import torch

    return torch
