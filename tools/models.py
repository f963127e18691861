"""Whatever a user calls a model in, one `Model` out: an ONNX file, a program saved by torch, a
torch module with example inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from autosched.codegen.runtime.manifest import hash_file
from autosched.ir.frontend.onnx import load_model
from autosched.ir.graph import ModelError, ModelGraph

ONNX, TORCH = "onnxruntime", "torch"  # who runs a model as it is: the peer of our kernels
PROGRAM = ".pt2"  # of a file written by torch.export.save


@dataclass(frozen=True, eq=False)
class Model:
    """A model in the algebra.

    name: for people; peer: who runs it as it is; file: where it lies, None for a module in
    memory; program: the importer's `TorchModel`, None for ONNX.
    """

    name: str
    graph: ModelGraph
    peer: str
    file: Path | None = None
    program: Any = field(default=None, repr=False)

    @property
    def tree(self) -> Mapping[str, Any] | None:
        """How its module is called (codegen.runtime.face); None for ONNX."""
        return None if self.program is None else self.program.call

    @property
    def origin(self) -> dict[str, str]:
        """What a package remembers of the model that it was made from: the file by its hash, a
        torch program by that of what it computes."""
        facts = {"model": self.name}
        if self.file is not None:
            facts["sha256"] = file_digest(self.file)
        return facts if self.program is None else {**facts, "program": self.program.digest}

    def file_in(self, folder: Path) -> Path:
        """A file of the model that other processes can read; written where there is none."""
        return self.file if self.file is not None else self.program.save(folder / f"model{PROGRAM}")


def name_of(model: Any) -> str:
    """What a model is called before it is opened."""
    return str(model) if isinstance(model, (str, Path)) else type(model).__name__


def stem_of(model: Any) -> str:
    """The name of a model that those of folders are made of."""
    return Path(model).stem if isinstance(model, (str, Path)) else name_of(model).lower()


def open_model(
    model: Any, shapes: Mapping[str, Sequence[int]] | None = None, inputs: Any = None,
    keywords: Mapping[str, Any] | None = None,
) -> Model:  # fmt: skip
    """The model in a file, or a torch.nn.Module or ExportedProgram.

    Args: shapes: of inputs of ONNX files with free dimensions; inputs, keywords: what a module is
        called with.
    Raises: ModelError.
    """
    if not isinstance(model, (str, Path)):
        return _of_torch(model, None, shapes, inputs, keywords)
    path = Path(model)
    if path.suffix == PROGRAM:
        return _of_torch(_torch().read_program(path), path, shapes, inputs, keywords)
    if inputs is not None or keywords:
        raise ModelError(f"{path} is a file and needs no example inputs; sizes go into shapes")
    graph = load_model(path, {name: tuple(shape) for name, shape in (shapes or {}).items()})
    return Model(path.name, graph, ONNX, path)


def _of_torch(
    module: Any, path: Path | None, shapes: Mapping[str, Sequence[int]] | None, inputs: Any,
    keywords: Mapping[str, Any] | None,
) -> Model:  # fmt: skip
    found = _torch().import_module(module, inputs, keywords, "" if path is None else path.name)
    for name, shape in (shapes or {}).items():
        have = {n.attr[0]: tuple(e for _, e in n.attr[1]) for n in found.graph.inputs}
        if have.get(name) != tuple(shape):
            raise ModelError(
                f"--shape {name}={','.join(map(str, shape))}: a program of torch has the shapes it "
                f"was exported with, {have}; export it again for others"
            )
    return Model(found.name, found.graph, TORCH, path, found)


def _torch() -> Any:
    """The importer of torch programs; torch is loaded by nobody who does not need it."""
    try:
        return import_module("autosched.ir.frontend.torch")
    except ImportError as error:
        raise ModelError(f"this model needs torch, which can't be loaded ({error}): pip install "
                         "torch") from error  # fmt: skip


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises: ModelError for one that can't be read."""
    try:
        return hash_file(path)
    except OSError as error:
        raise ModelError(
            f"{path} can't be read: {error.strerror}; name the file of the model"
        ) from error
