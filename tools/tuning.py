"""What a tuning says while it runs (events) and when it is done (a TuningResult): plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from autosched.codegen.runtime.errors import PackageError


class TuningError(PackageError):
    """A tuning that can't go on; the text says why and what may help."""


# ---- events ------------------------------------------------------------------------------------

# In this order; a stage that has nothing to do is left out.
STAGES = ("import", "partition", "rank", "peer", "tune", "final", "compile", "write", "done")


@dataclass(frozen=True)
class StageEvent:
    """A stage begins. name: one of STAGES; detail: a line for people; left_s: of the budget."""

    name: str
    detail: str = ""
    left_s: float | None = None


@dataclass(frozen=True)
class TaskEvent:
    """The state of a task: sent when it is known, when tuning turns to it, and after each batch.

    best_us: of ours, None while nothing was measured; peer_us: None while unknown or where the
    peer has no such part; tried counts the failed too; active: its batch is being measured.
    """

    key: str
    name: str
    doc: str
    count: int
    roofline_us: float
    best_us: float | None = None
    peer_us: float | None = None
    tried: int = 0
    failed: int = 0
    active: bool = False
    left_s: float | None = None


@dataclass(frozen=True)
class RecordEvent:
    """One attempt has ended and is in the store. status: of ir.record.Status, as text."""

    key: str
    name: str
    status: str
    latency_us: float | None
    error: str | None = None


Event: TypeAlias = StageEvent | TaskEvent | RecordEvent
Progress: TypeAlias = Callable[[Event], None]


def silent(event: Event) -> None:
    """The Progress of a caller who does not want to know."""


# ---- results -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskResult:
    """A task and what was chosen for it.

    tuned_us: measured median; peer_us: of the same part of the model; roofline_us: what the
    device could do at best. share: of the time of the whole model, in the peer where it is
    known. tries: attempts in the store, those of earlier runs too; failures: of them, by status.
    candidates: schedules that were ranked; sketch, knobs: of the chosen one.
    peer_from: how the peer's time was found ("subgraph", "none").
    checked: what the kernel's answer was compared with.
    """

    key: str
    name: str
    doc: str
    count: int
    flops: int
    roofline_us: float
    share: float
    candidates: int
    tuned_us: float | None = None
    spread_us: float | None = None
    peer_us: float | None = None
    peer_from: str = "none"
    predicted_us: float | None = None
    tries: int = 0
    failures: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    sketch: str = ""
    knobs: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    schedule: Mapping[str, Any] | None = None
    checked: str = "none"

    @property
    def speedup(self) -> float | None:
        """How many times faster than the peer."""
        if self.tuned_us is None or self.peer_us is None:
            return None
        return self.peer_us / self.tuned_us

    def to_json(self) -> dict[str, Any]:
        return {**plain(self), "speedup": self.speedup}


@dataclass(frozen=True)
class TuningResult:
    """What a run of the tuner did.

    threads: on the CPU, 0 for a GPU; package: None for a dry run; seconds: by stage; trials:
    attempts of this run; reused: records of earlier runs that were used; ranked_by: the model that
    ranked last; stopped: why nothing more was measured; interrupted: Ctrl-C ended the search early.
    estimate_s: of a dry run, how long tuning would take.
    measured: whether kernels ran; if not, the cost model alone has picked them. peer: what they
    are compared with, "none" for kernels of GPUs.
    """

    model: str
    target: str
    device: str
    threads: int
    seed: int
    coverage: str
    covered: float
    tasks: tuple[TaskResult, ...]
    seconds: Mapping[str, float]
    trials: int = 0
    reused: int = 0
    ranked_by: str = "roofline"
    package: Path | None = None
    digest: str | None = None
    store: str = ""
    stopped: str = ""
    interrupted: bool = False
    estimate_s: float | None = None
    measured: bool = True
    peer: str = "onnxruntime"

    @property
    def speedup(self) -> float | None:
        """Geometric mean of the tasks' speed-ups, weighted by the peer's time in the model."""
        return _mean(
            (t.speedup, t.peer_us * t.count) for t in self.tasks if t.speedup and t.peer_us
        )

    @property
    def plain_speedup(self) -> float | None:
        """Geometric mean over the tasks above 50 µs, each counted once."""
        return _mean((t.speedup, 1.0) for t in self.tasks if t.speedup and (t.peer_us or 0) > 50)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for `--json`."""
        return {
            **plain(self),
            "tasks": [t.to_json() for t in self.tasks],
            "speedup": self.speedup,
            "plain_speedup": self.plain_speedup,
        }


def plain(value: Any) -> Any:
    """Dataclasses, mappings, tuples and paths as plain JSON."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return str(value) if isinstance(value, Path) else value


def _mean(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    known = [(math.log(s), w) for s, w in pairs if s]
    total = sum(w for _, w in known)
    return math.exp(sum(s * w for s, w in known) / total) if total else None
