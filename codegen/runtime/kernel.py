"""One kernel of a package as a function of NumPy arrays or torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from . import threads as workers
from .arrays import address, dense, empty, is_torch, public
from .errors import InputError, KernelFailedError
from .manifest import Manifest
from .native import RUNTIME_FILE, Library, Runtime
from .pack import pack
from .spec import KernelArg, Value, arg_from_json, operands

RUNTIME_PATH = f"lib/{RUNTIME_FILE}"


@dataclass(frozen=True, eq=False)
class Packed:
    """A constant operand in the layouts that one kernel reads; made by `pack`, used many times."""

    kernel: str  # key of the kernel
    operand: Value
    buffers: Mapping[str, Any]  # by argument name: arrays, or tensors of a GPU kernel


class Kernel:
    """A compiled kernel; its library is checked and loaded at the first use.

    Threads that come first at the same time load it twice, which is harmless.
    """

    device_types = ("cpu",)  # of a torch operator's tensors

    def __init__(self, manifest: Manifest, data: Mapping[str, Any]) -> None:
        self.data = data
        self.key: str = data["key"]
        self.args: tuple[KernelArg, ...] = tuple(arg_from_json(a) for a in data["args"])
        self.operands = operands(self.args)
        self.outputs = tuple(
            Value(a.name, a.dtype, a.shape) for a in self.args if a.role == "output"
        )
        self.extents = tuple(ctypes.c_int32(n) for n in data["extents"])
        self._manifest = manifest

    @cached_property
    def library(self) -> Library:
        """The best library of this kernel that the CPU can run."""
        manifest = self._manifest
        path = manifest.checked(manifest.library(self.data))
        return Library(path, lambda: manifest.checked(RUNTIME_PATH))

    @cached_property
    def function(self) -> Any:
        """The C function: pointers in the order of `args`, then the extents."""
        return self.library.function(self.data["symbol"])

    @cached_property
    def _entry(self) -> tuple[Any, Runtime | None]:
        return self.function, self.library.runtime

    def pack(self, array: Any, operand: str | None = None) -> Packed:
        """A constant operand laid out for this kernel, to be passed in its place.

        Args: operand: which one; needed where several that are packed have the array's shape.
        """
        packed = [a for a in self.args if a.pack is not None]
        names = sorted({a.pack.source for a in packed if a.pack is not None})
        if operand is None:
            shapes = {v.name: v.shape for v in self.operands}
            fit = [n for n in names if shapes[n] == tuple(getattr(array, "shape", ()))]
            only = names if len(names) == 1 else fit
            operand = only[0] if len(only) == 1 else None
        if operand not in names:
            known = f"it packs {', '.join(names)}" if names else "this kernel packs no operand"
            asked = "say which operand" if operand is None else f"there is no operand {operand!r}"
            raise InputError(f"{self.data['public_name']}.pack: {asked}; {known}")
        want = next(v for v in self.operands if v.name == operand)
        raw = dense(array, want)
        buffers = {
            a.name: pack(raw, a.pack, a.dtype)
            for a in packed if a.pack is not None and a.pack.source == operand
        }  # fmt: skip
        return Packed(self.key, want, buffers)

    @cached_property
    def _sources(self) -> tuple[tuple[KernelArg, Value | None], ...]:
        """Each argument with the operand it is made from; None where the call allocates it."""
        raw = {v.name: v for v in self.operands}
        return tuple((a, raw.get(a.name if a.pack is None else a.pack.source)) for a in self.args)

    def _buffer(self, arg: KernelArg, operand: Value, value: Any) -> np.ndarray:
        """The array behind an argument, from what a caller passed for its operand."""
        if isinstance(value, Packed):
            if value.kernel != self.key or arg.name not in value.buffers:
                raise InputError(
                    f"{operand.name} was packed for another kernel or operand: pack it by "
                    f"{self.data['public_name']}.pack"
                )
            return value.buffers[arg.name]
        raw = dense(value, operand)
        return raw if arg.pack is None else pack(raw, arg.pack, arg.dtype)

    def run(self, given: Mapping[str, Any], threads: int) -> tuple[Any, ...]:
        """The outputs, in order, as new arrays.

        Args: given: an array, tensor or Packed for each operand, by name.
        """
        buffers = [
            empty(arg.dtype, arg.shape) if operand is None
            else self._buffer(arg, operand, given[operand.name])
            for arg, operand in self._sources
        ]  # fmt: skip
        function, runtime = self._entry
        call = partial(function, *map(_pointer, buffers), *self.extents)
        if workers.call(runtime, threads, call):
            raise KernelFailedError(f"kernel {self.data['public_name']} failed")
        torch = any(is_torch(value) for value in given.values())
        return tuple(
            public(buffer, arg.dtype, torch)
            for arg, buffer in zip(self.args, buffers) if arg.role == "output"
        )  # fmt: skip


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(address(array))
