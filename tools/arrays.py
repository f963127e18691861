"""Files of arrays (.npz) in, arrays by name out, and back; and inputs drawn where there are none.

No pickle: an .npz from somebody else is numbers and nothing more.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autosched.codegen.draw import draw_inputs
from autosched.codegen.runtime.errors import InputError
from autosched.ir.graph import ModelGraph
from autosched.ir.node import Program


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name.

    Raises: InputError for a file that is absent, something else, damaged, or holds objects.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise InputError(
                    f"{path} holds one array without a name; write it with "
                    "numpy.savez(FILE, input_name=array)"
                )
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is no .npz file of plain arrays ({error}); write it with "
            "numpy.savez(FILE, input_name=array)"
        ) from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays beside `path` and renames them into place when all is there.

    bfloat16, which NumPy can't read back, is widened to float32.
    """
    plain = {
        name: a.astype(np.float32) if a.dtype.name == "bfloat16" else a
        for name, a in arrays.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder) / path.name
            with made.open("wb") as file:
                np.savez(file, allow_pickle=False, **plain)
            os.replace(made, path)
    except OSError as error:
        raise InputError(
            f"{path} can't be written: {error.strerror or error}; name another place"
        ) from error


def draw_model_inputs(graph: ModelGraph, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of a model by name, on which its result means something; see codegen.draw."""
    read = [v.node for v in graph.outputs] + [v.node for i in graph.islands for v in i.inputs]
    return draw_inputs(Program("algebra", graph.inputs, (), tuple(read)), seed)
