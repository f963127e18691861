"""Builds that fail, for tests of a tuner that must go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autosched.codegen.triton_jobs import build_schedule


def first_fails(
    folder: str, schedule: Mapping[str, Any], target: str, cache: str, title: str = ""
) -> dict[str, Any]:
    """The first build in a task's folder fails, any other is real."""
    mark = Path(folder) / "failed"
    if not mark.exists():
        mark.touch()
        raise RuntimeError("no such register")
    return build_schedule(folder, schedule, target, cache, title)


def always_fails(
    folder: str, schedule: Mapping[str, Any], target: str, cache: str, title: str = ""
) -> dict[str, Any]:
    raise RuntimeError("no such register")
