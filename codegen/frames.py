"""Frames between a pool and its workers: a JSON value in, length-prefixed bytes out, and back.

A frame is four bytes of length (big-endian) and UTF-8 JSON. Arrays travel as files, by path.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

_HEAD = struct.Struct(">I")
MAX_BYTES = 1 << 28  # a longer frame is a mistake: big data goes into files


def encode(value: Any) -> bytes:
    """One frame. Raises TypeError or ValueError for what is no JSON or too long."""
    body = json.dumps(value, separators=(",", ":")).encode()
    if len(body) > MAX_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes is too long; pass big data as files")
    return _HEAD.pack(len(body)) + body


def take(buffer: bytearray) -> tuple[bool, Any]:
    """Removes one whole frame from the front of `buffer`: (True, value), or (False, None)."""
    if len(buffer) < _HEAD.size:
        return False, None
    (length,) = _HEAD.unpack_from(buffer)
    if length > MAX_BYTES:
        raise ValueError(f"a frame claims {length} bytes")
    end = _HEAD.size + length
    if len(buffer) < end:
        return False, None
    value = json.loads(bytes(buffer[_HEAD.size:end]))
    del buffer[:end]
    return True, value


def read(stream: BinaryIO) -> tuple[bool, Any]:
    """Blocks for one frame: (True, value), or (False, None) at the end of the stream."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return False, None
    (length,) = _HEAD.unpack(head)
    body = stream.read(length)
    return (True, json.loads(body)) if len(body) == length else (False, None)
