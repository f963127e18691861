"""One object file in, a shared library out, by the system's linker."""

from __future__ import annotations

import subprocess
from pathlib import Path


class LinkError(RuntimeError):
    """No linker, or one that failed: the message says which."""


def link(objects: Path, library: Path, linker: str = "ld") -> None:
    """Writes `library` from the object file `objects`; debug symbols are left out."""
    command = [linker, "-shared", "-s", "-o", str(library), str(objects)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LinkError(f"no linker named {linker!r}: install binutils") from error
    except subprocess.CalledProcessError as error:
        raise LinkError(f"{linker} failed: {error.stderr.strip()}") from error
