"""Builds and plans by name in, one small file that can be carried to the machine with the GPU out.

The file only grows: blocks of blobs, each compressed as a whole, since machine code of one kind is
alike (3 KB a kernel instead of 21). A block that was cut short is seen by its checksum; it and what
follows is not there, and is overwritten by the next block.
"""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autosched.codegen.triton_entry import INDEX

MAGIC = b"ASPK1\n"
_HEAD = struct.Struct("<III")  # length of the index, of the data, checksum of both
# Instructions are 16 bytes long: what came 16 bytes before tells more than what came just before.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 4, "pb": 4,
             "dict_size": 1 << 24}]  # fmt: skip
CODE, PLAN, FAULT = "code/", "plan/", "fault/"  # how names of blobs begin


class ProfileError(Exception):
    """A user's mistake, or a machine that can't go on: one message with the way out."""


class PackError(ProfileError):
    """A file that is no pack."""


@dataclass(frozen=True)
class Block:
    """Where a block lies in the file, and the sizes of its blobs by name, in their order."""

    start: int
    length: int
    sizes: Mapping[str, int]


class Pack:
    """An open pack. One process writes, others may read what was there when they opened it."""

    def __init__(self, path: Path) -> None:
        """A file that is not there is an empty pack. Raises: PackError."""
        self.path = path
        self.blocks: list[Block] = []
        self.end = len(MAGIC)
        if path.exists():
            self._scan()

    def _scan(self) -> None:
        with open(self.path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise PackError(f"{self.path} is no pack of builds: name another file")
            while (block := _read_head(file)) is not None:
                self.blocks.append(block)
                self.end = file.tell()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for block in self.blocks for name in block.sizes)

    def append(self, blobs: Mapping[str, bytes]) -> int:
        """Adds a block; returns how many bytes the file grew by. Raises: OSError (a full disk),
        with the pack as it was."""
        data = lzma.compress(b"".join(blobs.values()), lzma.FORMAT_RAW, filters=_FILTERS)
        sizes = {name: len(blob) for name, blob in blobs.items()}
        index = zlib.compress(json.dumps(sizes).encode())
        head = _HEAD.pack(len(index), len(data), zlib.crc32(index + data))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
            file.write(MAGIC)
            file.seek(self.end)
            file.truncate()
            file.write(head + index + data)
        start = self.end + len(head) + len(index)
        self.blocks.append(Block(start, len(data), sizes))
        grown = start + len(data) - self.end
        self.end += grown
        return grown

    def read(self, block: Block) -> Iterator[tuple[str, bytes]]:
        """The blobs of a block."""
        with open(self.path, "rb") as file:
            file.seek(block.start)
            packed = file.read(block.length)
        data = lzma.decompress(packed, lzma.FORMAT_RAW, filters=_FILTERS)
        at = 0
        for name, size in block.sizes.items():
            yield name, data[at : at + size]
            at += size


def _read_head(file: Any) -> Block | None:
    """The block that begins here, whole; None at the end and before a damaged one."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    indexed, length, checksum = _HEAD.unpack(head)
    index = file.read(indexed)
    start = file.tell()
    data = file.read(length)
    if len(data) < length or zlib.crc32(index + data) != checksum:
        return None
    return Block(start, length, json.loads(zlib.decompress(index)))


# ---- builds as blobs ---------------------------------------------------------------------------


def pack_build(folder: Path) -> bytes:
    """The entry of a build as one blob, without its source: what a launch needs."""
    facts = json.loads((folder / INDEX).read_text("utf-8"))
    facts["source"] = ""
    files = list(dict.fromkeys(kernel["file"] for kernel in facts["kernels"]))
    codes = [(folder / name).read_bytes() for name in files]
    told = {"build": facts, "files": [[name, len(code)] for name, code in zip(files, codes)]}
    return json.dumps(told, separators=(",", ":")).encode() + b"\n" + b"".join(codes)


def unpack_build(blob: bytes, folder: Path) -> None:
    """Makes the entry of a build again; its index comes last, by which it is there."""
    head, _, codes = blob.partition(b"\n")
    told = json.loads(head)
    folder.mkdir(parents=True, exist_ok=True)
    at = 0
    for name, size in told["files"]:
        (folder / Path(name).name).write_bytes(codes[at : at + size])
        at += size
    (folder / INDEX).write_text(json.dumps(told["build"]), "utf-8")
