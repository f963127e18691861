"""An SQLite error of the store in, one sentence with its cause and the way out, out."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path

_KEPT = "Everything stored before is intact"
_ELSEWHERE = "or name another place (--store PATH)"

# By SQLite's primary result code (https://sqlite.org/rescode.html): cause, way out.
_CAUSES: Mapping[int, tuple[str, str]] = {
    sqlite3.SQLITE_FULL: ("the disk is full", f"{_KEPT}. Free some space {_ELSEWHERE}"),
    sqlite3.SQLITE_IOERR: ("the disk failed a read or write",
                           f"{_KEPT} as far as the disk is. Check the disk {_ELSEWHERE}"),
    sqlite3.SQLITE_BUSY: ("another process has held it for too long",
                          "End that process, or try again when its batch is through"),
    sqlite3.SQLITE_LOCKED: ("another thread holds it", "Try again"),
    sqlite3.SQLITE_READONLY: ("it may not be written", f"Give write permission {_ELSEWHERE}"),
    sqlite3.SQLITE_PERM: ("permission is denied", f"Give write permission {_ELSEWHERE}"),
    sqlite3.SQLITE_CANTOPEN: ("the file or its folder cannot be opened for writing",
                              f"Check its permissions and free space, {_ELSEWHERE}"),
    sqlite3.SQLITE_NOTADB: ("the file is not a record store", "Name another file (--store PATH)"),
    sqlite3.SQLITE_CORRUPT: ("the file is damaged",
                             "Move it away and import your last export into a new one"),
}
_OTHER = ("SQLite refused", f"Name another place (--store PATH); {_KEPT.lower()}")
_FULL_BELOW_BYTES = 1 << 20  # an I/O error with less space than this is a full disk's


def explain(verb: str, path: Path, error: sqlite3.Error) -> str:
    """The message of a StoreError: what failed, why, what to do."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    free = _free_bytes(path)
    if code == sqlite3.SQLITE_IOERR and free is not None and free < _FULL_BELOW_BYTES:
        code = sqlite3.SQLITE_FULL
    cause, way_out = _CAUSES.get(code, _OTHER)
    space = f"; {free / 2**20:.1f} MiB free" if free is not None and code in _SPACE else ""
    return f"cannot {verb} the record store {path}: {cause} ({error}{space}). {way_out}"


_SPACE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})


def _free_bytes(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return None
