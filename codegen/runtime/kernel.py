"""One kernel of a package as a function of NumPy arrays or torch tensors."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from . import threads as workers
from .arrays import address, dense, empty, is_torch, public
from .errors import InputError, KernelFailedError
from .manifest import Manifest
from .native import RUNTIME_FILE, Library
from .pack import pack
from .spec import KernelArg, Value, arg_from_json, operands

RUNTIME_PATH = f"lib/{RUNTIME_FILE}"


@dataclass(frozen=True, eq=False)
class Packed:
    """A constant operand in the layouts that one kernel reads; made by `pack`, used many times."""

    kernel: str  # key of the kernel
    operand: Value
    buffers: Mapping[str, np.ndarray]  # by argument name


class Kernel:
    """A compiled kernel; its library is checked and loaded at the first use."""

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
        self._loading = threading.RLock()

    @cached_property
    def _library(self) -> Library:
        manifest = self._manifest
        path = manifest.checked(manifest.library(self.data))
        return Library(path, lambda: manifest.checked(RUNTIME_PATH))

    @property
    def library(self) -> Library:
        """The best library of this kernel that the CPU can run."""
        with self._loading:
            return self._library

    @cached_property
    def function(self) -> Any:
        """The C function: pointers in the order of `args`, then the extents."""
        return self.library.function(self.data["symbol"])

    def pack(self, array: Any, operand: str | None = None) -> Packed:
        """A constant operand laid out for this kernel, to be passed in its place.

        Args: operand: which one; needed where several operands are packed.
        """
        packed = [a for a in self.args if a.pack is not None]
        names = sorted({a.pack.source for a in packed if a.pack is not None})
        if operand is None and len(names) == 1:
            operand = names[0]
        if operand not in names:
            known = f"operand is one of {names}" if names else "this kernel packs none of them"
            raise InputError(f"{self.data['public_name']}.pack: operand {operand!r}, but {known}")
        want = next(v for v in self.operands if v.name == operand)
        raw = dense(array, want)
        buffers = {
            a.name: pack(raw, a.pack, a.dtype)
            for a in packed if a.pack is not None and a.pack.source == operand
        }  # fmt: skip
        return Packed(self.key, want, buffers)

    def _buffers(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A dense array for each argument but the outputs and workspaces, by argument name."""
        raw = {v.name: v for v in self.operands}
        buffers: dict[str, np.ndarray] = {}
        for arg in self.args:
            if arg.role in ("output", "workspace"):
                continue
            name = arg.name if arg.pack is None else arg.pack.source
            value = given[name]
            if isinstance(value, Packed):
                if value.kernel != self.key or arg.name not in value.buffers:
                    raise InputError(
                        f"{name} was packed for another kernel or operand: pack it by "
                        f"{self.data['public_name']}.pack"
                    )
                buffers[arg.name] = value.buffers[arg.name]
            elif arg.pack is None:
                buffers[arg.name] = dense(value, raw[name])
            else:
                buffers[arg.name] = pack(dense(value, raw[name]), arg.pack, arg.dtype)
        return buffers

    def run(self, given: Mapping[str, Any], threads: int) -> tuple[Any, ...]:
        """The outputs, in order, as new arrays.

        Args: given: an array, tensor or Packed for each operand, by name.
        """
        buffers = self._buffers(given)
        for arg in self.args:
            if arg.role in ("output", "workspace"):
                buffers[arg.name] = empty(arg.dtype, arg.shape)
        cells = [ctypes.c_void_p(address(buffers[arg.name])) for arg in self.args]
        call = partial(self.function, *cells, *self.extents)
        if workers.call(self.library.runtime, threads, call):
            raise KernelFailedError(f"kernel {self.data['public_name']} failed")
        torch = any(is_torch(value) for value in given.values())
        return tuple(public(buffers[v.name], v.dtype, torch) for v in self.outputs)
