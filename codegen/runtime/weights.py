"""weights.bin in, constants by name out: mapped from disk, never copied."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import STORAGE, address, nbytes
from .errors import ChangedFileError
from .spec import Value, tupled

FILE = "weights.bin"


class Weights:
    """The raw and packed constants of a model.

    Args: table: {name: {"offset", "dtype", "shape"}}; offsets are multiples of 64.
    """

    def __init__(self, path: Path | None, table: Mapping[str, Mapping[str, Any]]) -> None:
        self._table = table
        if path is None or path.stat().st_size == 0:
            self._bytes = np.empty(0, np.uint8)
        else:
            with path.open("rb") as stream:
                memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._bytes = np.frombuffer(memory, np.uint8)
        self._base = address(self._bytes)
        for name, row in table.items():
            if row["offset"] + nbytes(row["dtype"], tupled(row["shape"])) > self._bytes.size:
                raise ChangedFileError(f"{path} is too short for {name}: write the package again")

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def value(self, name: str) -> Value:
        """Name, dtype and shape of a constant."""
        row = self._table[name]
        return Value(name, row["dtype"], tupled(row["shape"]))

    def address(self, name: str) -> int:
        """Where its first byte lies."""
        offset: int = self._table[name]["offset"]
        return self._base + offset

    def array(self, name: str) -> np.ndarray:
        """A read-only view of it, in its storage type."""
        value = self.value(name)
        start = self._table[name]["offset"]
        raw = self._bytes[start : start + nbytes(value.dtype, value.shape)]
        return raw.view(STORAGE[value.dtype]).reshape(value.shape)
