"""Weights to and from files: one JSON text, published by one rename, checked when it is read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autosched.costmodel.model import UNTRAINED, ModelError, check_version


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or nothing of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_weights(path: Path, kind: str, fields: Sequence[str]) -> dict[str, Any]:
    """The JSON object of a model of that kind with at least these fields.

    Raises: ModelError that says what is wrong with the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"cannot read weights from {path}: {error}") from error
    if not isinstance(data, dict) or data.get("model") != kind:
        raise ModelError(f"{path} holds no weights of a {kind} model")
    if data.get("features") != UNTRAINED:
        check_version(data.get("features"), str(path))
    if missing := [name for name in fields if name not in data]:
        raise ModelError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return data
