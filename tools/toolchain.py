"""The name of what compiles kernels here: measurements of one toolchain say nothing of another."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

from autosched import codegen, ir

# Whatever decides what code a schedule becomes, or which axis names it uses.
_SOURCES = (
    (ir, ("rules/*.py", "canonical.py", "expand.py", "extent.py", "linear.py", "loops.py",
          "schedule.py", "monoid.py", "scalar.py")),
    (codegen, ("tvm*.py", "vecmath.py", "build.py", "link.py")),
)  # fmt: skip


@functools.cache
def toolchain() -> str:
    """Versions of autosched and TVM, and a digest of the code generator's own source."""
    digest = hashlib.sha256()
    for package, patterns in _SOURCES:
        root = Path(package.__path__[0])
        for path in sorted(p for pattern in patterns for p in root.glob(pattern)):
            digest.update(path.read_bytes())
    ours = f"autosched-{version('autosched')}+{digest.hexdigest()[:12]}"
    return f"{ours} apache-tvm-{version('apache-tvm')}"
