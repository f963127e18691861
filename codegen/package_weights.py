"""The constants of a plan in, weights.bin out: raw and packed, each content once.

Constants are read, packed and written one after the other, so that a model of many gigabytes
needs the memory of its biggest weight only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from autosched.codegen.artifact import ArtifactError, Constant, Kernel, step_args
from autosched.codegen.runtime.arrays import ALIGNMENT, STORAGE
from autosched.codegen.runtime.manifest import canonical
from autosched.codegen.runtime.pack import pack
from autosched.codegen.runtime.spec import KernelArg, Step, pack_to_json


def raw_name(packed: str) -> str:
    """The name of the raw weight behind the name that a bound step uses."""
    return packed.rpartition("@")[0]


class WeightFile:
    """A weights.bin that grows as steps are bound to it; a context manager.

    `table` maps the names that bound steps use to {"offset", "dtype", "shape"}.
    """

    def __init__(self, path: Path, weights: Mapping[str, Constant]) -> None:
        self.table: dict[str, dict[str, Any]] = {}
        self._weights = weights
        self._offsets: dict[tuple[str, int], int] = {}  # content -> offset
        self._end = 0
        self._path = path

    def __enter__(self) -> WeightFile:
        self._stream = self._path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stream.close()
        if not self.table:
            self._path.unlink()

    def bind(self, step: Step, kernels: Mapping[str, Kernel]) -> list[str]:
        """The step's arguments by their names at run time; what they need is written."""
        if step.kernel is None:
            return [self.keep(name) for name in step.args]
        args = step_args(kernels[step.kernel])
        return [
            self.keep(name) if arg.pack is None else self._keep_packed(name, arg)
            for arg, name in zip(args, step.args)
        ]

    def keep(self, name: str) -> str:
        """Writes the raw constant of that name, if it is one; returns the name."""
        if name in self._weights and name not in self.table:
            self._write(name, self._raw(name))
        return name

    def _keep_packed(self, name: str, arg: KernelArg) -> str:
        assert arg.pack is not None
        layout = {**pack_to_json(arg.pack), "source": "", "dtype": arg.dtype}
        packed = f"{name}@{hashlib.sha256(canonical(layout)).hexdigest()[:16]}"
        if packed not in self.table:
            raw = self._raw(name).reshape(arg.pack.source_shape)
            self._write(packed, pack(raw, arg.pack, arg.dtype), arg.dtype)
        return packed

    def _raw(self, name: str) -> np.ndarray:
        weight = self._weights[name]
        array = np.asarray(weight() if callable(weight) else weight)
        if array.dtype.name == "bfloat16":
            return array.view(np.uint16)
        if array.dtype.name not in STORAGE:
            raise ArtifactError(f"weight {name} is {array.dtype}, which no kernel reads")
        return array

    def _write(self, name: str, array: np.ndarray, dtype: str | None = None) -> None:
        """Appends an array unless its bytes are in the file already."""
        dense = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        raw = dense.reshape(-1).view(np.uint8)
        content = (hashlib.sha256(raw.data).hexdigest(), raw.size)
        if content not in self._offsets:
            gap = -self._end % ALIGNMENT
            self._stream.write(b"\0" * gap)
            self._stream.write(raw.data)
            self._offsets[content] = self._end + gap
            self._end += gap + raw.size
        self.table[name] = {
            "offset": self._offsets[content], "dtype": dtype or array.dtype.name,
            "shape": list(array.shape),
        }  # fmt: skip
