"""A model file and a folder of kernels in, the tuned model out, if the two belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autosched.codegen.runtime.errors import PackageError
from autosched.codegen.runtime.manifest import Manifest, hash_file, read
from autosched.codegen.runtime.model import TunedModel, load
from autosched.ir.graph import ModelError


@dataclass(frozen=True)
class Package:
    """A package and its model, loaded."""

    manifest: Manifest
    model: TunedModel

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs that the kernels were tuned for."""
        return {v.name: v.shape for v in self.model.inputs}

    @property
    def target(self) -> str:
        """The name of the target that the kernels were tuned for."""
        name: str = self.manifest.data["origin"].get("target", "auto")
        return name


def model_origin(model: Path) -> dict[str, str]:
    """What a package remembers of the model that it was made from.

    Raises: ModelError for a file that can't be read.
    """
    try:
        return {"model": model.name, "sha256": hash_file(model)}
    except OSError as error:
        raise ModelError(
            f"{model} can't be read: {error.strerror}; name the .onnx file of the model"
        ) from error


def open_package(model: Path | str, kernels: Path | str) -> Package:
    """The package in `kernels`, checked to be made from `model`.

    Raises: PackageError, ModelError.
    """
    manifest = read(kernels)
    origin: Mapping[str, Any] = manifest.data["origin"]
    given = model_origin(Path(model))
    if origin.get("sha256", given["sha256"]) != given["sha256"]:
        raise PackageError(
            f"the kernels in {kernels} were tuned for another model ({origin.get('model')}, "
            f"SHA-256 {origin['sha256'][:16]}), not for {model} ({given['sha256'][:16]}); give "
            "that model, or tune this one"
        )
    return Package(manifest, load(kernels))
