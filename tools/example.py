"""The name of an example in, its ONNX file and random inputs out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autosched.examples import EXAMPLES, example_inputs, make_example
from autosched.ir.graph import ModelError
from autosched.tools.arrays import write_npz


@dataclass(frozen=True)
class Written:
    """The files that were written and what the model is."""

    model: Path
    inputs: Path | None
    description: str
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        inputs = None if self.inputs is None else str(self.inputs)
        return {"model": str(self.model), "inputs": inputs, "description": self.description,
                "bytes": self.nbytes}  # fmt: skip


def example(name: str, out: Path | str, *, inputs: Path | str | None = None, batch: int = 1,
            sequence: int = 128, seed: int = 0, external_data: bool = False,
            force: bool = False) -> Written:
    """Writes an example model, and inputs of it where asked.

    Raises: ModelError for an unknown name, a size it can't take, a file in the way or a place
    that can't be written.
    """
    model, arrays = Path(out), None if inputs is None else Path(inputs)
    for path in (model, *([arrays] if arrays else [])):
        if path.is_dir():
            raise ModelError(f"{path} is a folder; name a file in it")
        if path.exists() and not force:
            raise ModelError(f"{path} is there already; name another, or replace it by --force")
    try:
        drawn = example_inputs(name, batch, sequence, seed)
        make_example(name, model, seed, external_data=external_data)
    except ValueError as error:  # unknown name, or a size that the model does not take
        raise ModelError(str(error)) from error
    except OSError as error:
        why = error.strerror or error
        raise ModelError(f"{model} can't be written: {why}; name another place") from error
    if arrays is not None:
        write_npz(arrays, drawn)
    return Written(model, arrays, EXAMPLES[name].description, model.stat().st_size)
