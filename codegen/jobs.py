"""A job for a worker in, its outcome out: the plain values that cross the process boundary."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from autosched.ir.record import Status


class Stage(StrEnum):
    """What a job does, which decides how its death is named in a Record."""

    BUILD = "build"
    RUN = "run"


class Fault(StrEnum):
    """What became of a job that yielded no result, before a stage gives it a Status."""

    RAISED = "raised"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CANCELLED = "cancelled"


STATUS_OF: Mapping[tuple[Stage, Fault], Status] = {
    (Stage.BUILD, Fault.RAISED): Status.BUILD_FAILED,
    (Stage.BUILD, Fault.CRASHED): Status.BUILD_FAILED,
    (Stage.BUILD, Fault.TIMEOUT): Status.BUILD_TIMEOUT,
    (Stage.BUILD, Fault.MEMORY): Status.OUT_OF_MEMORY,
    (Stage.BUILD, Fault.CANCELLED): Status.CANCELLED,
    (Stage.RUN, Fault.RAISED): Status.RUN_FAILED,
    (Stage.RUN, Fault.CRASHED): Status.RUN_CRASHED,
    (Stage.RUN, Fault.TIMEOUT): Status.RUN_TIMEOUT,
    (Stage.RUN, Fault.MEMORY): Status.OUT_OF_MEMORY,
    (Stage.RUN, Fault.CANCELLED): Status.CANCELLED,
}


@dataclass(frozen=True)
class Job:
    """A function of an importable module, "module:function", with plain JSON arguments.

    timeout_s: run time allowed, queueing and the worker's start apart; None for the pool's own.
    """

    function: str
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    stage: Stage = Stage.RUN
    timeout_s: float | None = None


@dataclass(frozen=True)
class Ok:
    """What the function returned (plain JSON), seconds waited for a worker and seconds run."""

    value: Any
    queue_s: float
    run_s: float


@dataclass(frozen=True)
class Failed:
    """Why there is no result: status, one-line reason, the end of what the worker printed."""

    status: Status
    reason: str
    stderr_tail: str = ""
    queue_s: float = 0.0
    run_s: float = 0.0


Outcome = Ok | Failed


class JobFailure(Exception):
    """Raised inside a job that knows why it fails: becomes Failed with that very status."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = Status(status)
        self.reason = reason


class WorkerError(Exception):
    """The pool itself cannot work (a worker does not start, the pool is closed)."""


def resolve(name: str, packages: Sequence[str]) -> Callable[..., Any]:
    """The function "module:function" names, from one of `packages` or its submodules.

    Only a public function or class defined in that very module is taken: what a module merely
    imports (os.system, say) is out of reach. Raises ValueError otherwise.
    """
    module_name, _, attribute = name.partition(":")
    if not any(module_name == p or module_name.startswith(p + ".") for p in packages):
        raise ValueError(f"{name!r} is outside of {', '.join(packages)}")
    if not attribute.isidentifier() or attribute.startswith("_"):
        raise ValueError(f"{name!r} does not name a public function as module:function")
    function = getattr(importlib.import_module(module_name), attribute, None)
    if not callable(function) or getattr(function, "__module__", None) != module_name:
        raise ValueError(f"{module_name} defines no function {attribute}")
    return function
