"""A built module on disk: what a build wrote in, the plain data that measuring needs out.

    KEY/module.py        the source
    KEY/KERNEL.N.cubin   machine code of launch N
    KEY/build.json       tensors, launches and what is known of each kernel

No compiler is needed to read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autosched.codegen.triton_spec import TritonModule

FORMAT = 3  # of build.json: another number is another key
SOURCE, INDEX = "module.py", "build.json"


@dataclass(frozen=True)
class BuiltKernel:
    """The machine code of one launch.

    file: its cubin, in the folder of the entry; symbol: its function there.
    threads: of a block. shared_bytes: dynamic shared memory of a block. scratch_bytes: global
    memory for each program, aligned to scratch_align (tensor descriptors live there).
    registers: of a thread. spill_bytes: of a thread, on the stack. ptx_bytes: length of the PTX.
    serialised: products on tensor cores wait for each other, as the assembler had to make them.
    """

    file: str
    symbol: str
    threads: int
    shared_bytes: int
    scratch_bytes: int
    scratch_align: int
    registers: int
    spill_bytes: int
    ptx_bytes: int
    serialised: bool = False


@dataclass(frozen=True)
class Build:
    """An entry of the cache. kernels: one for each launch of the module, in order.

    seconds: that compiling took, when it was compiled.
    """

    folder: Path
    module: TritonModule
    kernels: tuple[BuiltKernel, ...]
    target: str
    toolchain: str
    seconds: float

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def file(self) -> Path:
        """The module's source."""
        return self.folder / SOURCE

    def facts(self) -> dict[str, int]:
        """The worst of all kernels, for records."""
        names = ("registers", "spill_bytes", "shared_bytes", "ptx_bytes", "threads", "serialised")
        return {n: int(max(getattr(k, n) for k in self.kernels)) for n in names}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the folder is where it is found."""
        return {
            **self.module.to_json(), "kernels": [asdict(k) for k in self.kernels],
            "target": self.target, "toolchain": self.toolchain, "seconds": self.seconds,
            "format": FORMAT,
        }  # fmt: skip

    @classmethod
    def from_json(cls, folder: Path, data: Mapping[str, Any]) -> Build:
        kernels = tuple(BuiltKernel(**row) for row in data["kernels"])
        module = TritonModule.from_json(data)
        return cls(folder, module, kernels, data["target"], data["toolchain"], data["seconds"])


def read_build(folder: Path) -> Build:
    """The entry in `folder`. Raises FileNotFoundError where there is none."""
    return Build.from_json(folder, json.loads((folder / INDEX).read_text("utf-8")))
