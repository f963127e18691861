"""A model file and a folder of kernels in, the tuned model out, if the two belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autosched.codegen.runtime.errors import PackageError
from autosched.codegen.runtime.manifest import Manifest, read
from autosched.codegen.runtime.model import TunedModel, load
from autosched.tools.models import PROGRAM, Model, file_digest, open_model


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


def open_package(model: Path | str, kernels: Path | str) -> Package:
    """The package in `kernels`, checked to be made from the file `model`.

    Raises: PackageError, ModelError.
    """
    manifest = read(kernels)
    origin: Mapping[str, Any] = manifest.data["origin"]
    path = Path(model)
    given = file_digest(path)
    if origin.get("sha256") == given:
        return Package(manifest, load(kernels))
    if "program" in origin and path.suffix == PROGRAM:
        _check(manifest, "program", open_model(path).program.digest, str(path), kernels)
    else:
        _check(manifest, "sha256", given, str(path), kernels)
    return Package(manifest, load(kernels))


def open_both(
    model: Any, kernels: Path | str, inputs: Any = None, keywords: Mapping[str, Any] | None = None
) -> tuple[Model, Package]:
    """A model (as tools.models.open_model has it) and the package of its kernels.

    Raises: PackageError, ModelError.
    """
    if isinstance(model, (str, Path)):
        package = open_package(model, kernels)
        shapes = None if Path(model).suffix == PROGRAM else package.shapes
        return open_model(model, shapes), package
    opened = open_model(model, None, inputs, keywords)
    manifest = read(kernels)
    _check(manifest, "program", opened.program.digest, opened.name, kernels)
    return opened, Package(manifest, load(kernels))


def _check(manifest: Manifest, fact: str, given: str, model: str, kernels: Path | str) -> None:
    """Refuses kernels whose model was another one, by a fact of it."""
    origin = manifest.data["origin"]
    known = str(origin.get(fact) or origin.get("sha256") or "")
    if known and known != given:
        raise PackageError(
            f"the kernels in {kernels} were tuned for another model ({origin.get('model')}, "
            f"SHA-256 {known[:16]}), not for {model} ({given[:16]}); give that model, or tune "
            "this one"
        )
