"""A tuned model and a file of inputs in, a file of outputs out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autosched.tools.arrays import read_npz, write_npz
from autosched.tools.packages import open_package


@dataclass(frozen=True)
class Ran:
    """outputs: dtype and shape by name; run_ms: of the one run, the first in this process."""

    path: Path
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    run_ms: float

    def to_json(self) -> dict[str, Any]:
        rows = {n: {"dtype": d, "shape": list(s)} for n, (d, s) in self.outputs.items()}
        return {"outputs": str(self.path), "arrays": rows, "run_ms": self.run_ms}


def run(model: Path | str, kernels: Path | str, inputs: Path | str, outputs: Path | str) -> Ran:
    """Runs `model` by the package `kernels` once.

    Args: inputs, outputs: .npz files with an array for each input and output by name.
    Raises: PackageError, ModelError.
    """
    tuned = open_package(model, kernels).model
    arrays = read_npz(Path(inputs))
    begun = time.perf_counter()
    found = tuned.run(arrays)
    run_ms = (time.perf_counter() - begun) * 1e3
    write_npz(Path(outputs), found)
    return Ran(Path(outputs), {n: (a.dtype.name, a.shape) for n, a in found.items()}, run_ms)
