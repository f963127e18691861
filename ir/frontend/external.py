"""A model file's folder and a location inside it in, mapped bytes of that file out.

A model names the files that hold its weights, so a model from somewhere else may name any file
of this machine. What is accepted: a plain file inside the model's folder, reached through no
link of any kind. It is opened once and checked as opened, so that nobody can swap it in between.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from autosched.ir.graph import ModelError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class ExternalData:
    """The external files of one model; each is opened and mapped once, read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps: dict[str, Bytes] = {}

    def read(self, tensor: str, location: str, offset: int, length: int) -> Bytes:
        """`length` bytes at `offset` of the file; nothing is read until they are touched."""
        if location not in self._maps:
            self._maps[location] = self._map(tensor, location)
        data = self._maps[location]
        if offset < 0 or length < 0 or offset + length > data.size:
            raise ModelError(
                f"weight {tensor!r} is said to be at bytes {offset} to {offset + length} of "
                f"{location!r}, which has {data.size}: the file is cut short or not the one that "
                "belongs to this model; fetch or export it again"
            )
        return data[offset : offset + length]

    def _map(self, tensor: str, location: str) -> Bytes:
        path = self._inside(tensor, location)
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK)
        except FileNotFoundError:
            raise ModelError(
                f"the file {location!r} with the weight {tensor!r} is missing; put it into "
                f"{self.folder}, beside the model"
            ) from None
        except OSError as error:
            raise ModelError(
                f"the file {location!r} with the weight {tensor!r} can't be opened: "
                f"{error.strerror}"
            ) from None
        try:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise ModelError(f"{location!r} with the weight {tensor!r} is no regular file")
            if facts.st_nlink > 1:
                raise ModelError(_LINK.format(location=location, tensor=tensor, kind="hard link"))
            if facts.st_size == 0:
                return np.zeros(0, np.uint8)
            with os.fdopen(handle, "rb", closefd=False) as file:
                return np.memmap(file, dtype=np.uint8, mode="r")
        finally:
            os.close(handle)

    def _inside(self, tensor: str, location: str) -> Path:
        """The path of `location`, which must stay inside the folder and pass through no link."""
        parts = PurePosixPath(location.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\0" in location:
            raise ModelError(
                f"the weight {tensor!r} points to {location!r}, outside of the model's folder; "
                "external data must lie beside the model or below, named relative to it"
            )
        path = self.folder
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise ModelError(_LINK.format(location=location, tensor=tensor, kind="link"))
        return path


_LINK = (
    "the file {location!r} with the weight {tensor!r} is a {kind}; external data must be a file of "
    "its own, since a link could lead to any file of this machine. Copy the model with its data "
    "(cp -rL FOLDER COPY) and use the copy"
)
