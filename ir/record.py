"""Record: one attempt at one schedule in, its canonical JSON (and back, exactly) out.

A failure is a Record too, with a status and a reason, so that it is counted and never retried
blindly. A Record names everything its number depends on: workload, target, toolchain, device,
threads, and how far the result was checked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

Json = Any  # None, bool, int, float, str, list or dict of these: what json.loads may return

CHECKED_NONE = "none"  # timed only
CHECKED_FINITE = "finite"  # every element written, no unexpected NaN
CHECKED_PEER = "peer"  # compared with another runtime's answer
CHECKED_REFERENCE = "float64"  # compared with a float64 reference on fresh random inputs


class Status(StrEnum):
    """How an attempt ended; every value but OK is a failure and carries a reason."""

    OK = "ok"
    ILLEGAL = "illegal"  # refused before a build: a rule or a resource limit
    UNSUPPORTED = "unsupported"  # the backend or device cannot express it
    BUILD_FAILED = "build_failed"
    BUILD_TIMEOUT = "build_timeout"
    RUN_FAILED = "run_failed"  # the run raised an error; the process lived on
    RUN_CRASHED = "run_crashed"  # the process died: signal or exit
    RUN_TIMEOUT = "run_timeout"
    WRONG_RESULT = "wrong_result"
    NAN_RESULT = "nan_result"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED = "cancelled"  # stopped by the user or by the budget: says nothing of the schedule


# A schedule that ever ended like this must not be chosen again on the same toolchain.
CONDEMNED = frozenset({Status.WRONG_RESULT, Status.NAN_RESULT})


def canonical_json(value: Json) -> str:
    """The one JSON text of `value`: sorted keys, no blanks. NaN and infinity are refused.

    Raises: ValueError where the text would not read back as an equal value (keys that are no
    strings, objects that are no JSON). Tuples are accepted and become lists.
    """
    try:
        return json.dumps(
            _plain(value),
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
            ensure_ascii=False,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"not plain JSON: {error}") from error


def _plain(value: Json) -> Json:
    """`value` with tuples as lists and mappings as dicts, or TypeError: nothing is coerced."""
    if isinstance(value, Mapping):
        if bad := [k for k in value if type(k) is not str]:
            raise TypeError(f"object keys must be strings, got {bad[0]!r}")
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def json_key(text: str) -> str:
    """Content key (32 hex digits) of a canonical JSON text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def utc_now() -> str:
    """The present, ISO 8601, UTC, microseconds: the form of `Record.when`."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Record:
    """One attempt, as measured on one device with one toolchain.

    workload: content key of the program. target: key of the Target it was lowered for.
    schedule: canonical JSON text; {"peer": "onnxruntime-1.31.1"} for another runtime's time.
    latency_us: median; spread_us: 90th minus 10th percentile; both None unless status is OK.
    checked: how far the result was validated (CHECKED_*). when: ISO 8601 in UTC.
    extra: any further plain JSON facts (cache state, runs, build seconds).
    """

    workload: str
    target: str
    schedule: str
    status: Status
    latency_us: float | None
    spread_us: float | None
    error: str | None
    toolchain: str
    device: str
    threads: int
    when: str
    checked: str = CHECKED_NONE
    extra: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ValueError(f"Record: {problem}")

    @classmethod
    def of(
        cls,
        *,
        workload: str,
        target: str,
        schedule: Json,
        status: Status,
        toolchain: str,
        device: str,
        threads: int,
        latency_us: float | None = None,
        spread_us: float | None = None,
        error: str | None = None,
        when: str | None = None,
        checked: str = CHECKED_NONE,
        extra: Mapping[str, Json] | None = None,
    ) -> Record:
        """A Record from plain values: `schedule` as JSON value, `when` defaulting to now."""
        return cls(
            workload=workload,
            target=target,
            schedule=canonical_json(schedule),
            status=status,
            latency_us=None if latency_us is None else float(latency_us),
            spread_us=None if spread_us is None else float(spread_us),
            error=error,
            toolchain=toolchain,
            device=device,
            threads=threads,
            when=when or utc_now(),
            checked=checked,
            extra=MappingProxyType(json.loads(canonical_json(extra or {}))),
        )

    @property
    def ok(self) -> bool:
        return self.status is Status.OK

    @property
    def schedule_key(self) -> str:
        return json_key(self.schedule)

    @property
    def schedule_json(self) -> Json:
        return json.loads(self.schedule)

    @property
    def peer(self) -> str | None:
        """Name of the runtime this is a baseline of, or None for a schedule of ours."""
        value = self.schedule_json
        return value.get("peer") if isinstance(value, dict) else None

    def to_json(self) -> dict[str, Json]:
        """Plain JSON object; the schedule is embedded as a value, not as text."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "schedule": self.schedule_json,
            "status": self.status.value,
            "extra": dict(self.extra),
        }

    def to_text(self) -> str:
        """Canonical JSON text; `from_text(r.to_text()) == r`."""
        return canonical_json(self.to_json())

    @property
    def key(self) -> str:
        """Content key of the whole record: equal records, and only those, share it."""
        return json_key(self.to_text())

    @classmethod
    def from_json(cls, value: Json) -> Record:
        """The Record that `to_json` wrote. Raises ValueError that names what is wrong."""
        if not isinstance(value, Mapping):
            raise ValueError("Record: not a JSON object")
        names = {f.name for f in fields(cls)}
        if wrong := sorted(names ^ set(value)):
            raise ValueError(f"Record: missing or unknown fields: {', '.join(wrong)}")
        try:
            status = Status(value["status"])
        except ValueError as error:
            raise ValueError(f"Record: {error}") from error
        if not isinstance(value["extra"], Mapping):
            raise ValueError("Record: extra is not a JSON object")
        return cls(
            **{
                **value,
                "status": status,
                "latency_us": _as_float(value["latency_us"]),
                "spread_us": _as_float(value["spread_us"]),
                "schedule": canonical_json(value["schedule"]),
                "extra": MappingProxyType(dict(value["extra"])),
            }
        )

    @classmethod
    def from_text(cls, text: str) -> Record:
        try:
            return cls.from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"Record: {error}") from error


def _as_float(value: Json) -> Json:
    """A whole number as the float it stands for: other JSON writers drop the ".0"."""
    return float(value) if type(value) is int else value


_FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    "workload": (str,),
    "target": (str,),
    "schedule": (str,),
    "status": (Status,),
    "latency_us": (float, type(None)),
    "spread_us": (float, type(None)),
    "error": (str, type(None)),
    "toolchain": (str,),
    "device": (str,),
    "threads": (int,),
    "when": (str,),
    "checked": (str,),
    "extra": (dict, MappingProxyType),
}
_NOT_EMPTY = ("workload", "target", "toolchain", "device", "checked")


def _problems(r: Record) -> list[str]:
    """What contradicts the invariants of a Record, in words; empty when nothing does."""
    wrong = [
        f"{name} is a {type(getattr(r, name)).__name__}"
        for name, types in _FIELD_TYPES.items()
        if type(getattr(r, name)) not in types
    ]
    if wrong:
        return wrong
    found = [f"{name} is empty" for name in _NOT_EMPTY if not getattr(r, name)]
    if r.ok != (r.latency_us is not None):
        found.append("a latency belongs to status ok, and to no other")
    if r.latency_us is not None and not (math.isfinite(r.latency_us) and r.latency_us > 0):
        found.append(f"latency_us must be finite and positive, got {r.latency_us}")
    if r.spread_us is not None and not (r.ok and math.isfinite(r.spread_us) and r.spread_us >= 0):
        found.append(
            f"spread_us must be finite, not negative, and go with a latency: {r.spread_us}"
        )
    if r.ok == bool(r.error):
        found.append("a failure needs an error text, and ok has none")
    if r.threads < 1:
        found.append(f"threads must be at least 1, got {r.threads}")
    return found + _text_problems(r)


def _text_problems(r: Record) -> list[str]:
    found = []
    try:
        if canonical_json(json.loads(r.schedule)) != r.schedule:
            found.append("schedule is not in canonical form; build it with Record.of")
    except ValueError as error:
        found.append(f"schedule: {error}")
    try:
        if json.loads(canonical_json(r.extra)) != dict(r.extra):
            found.append("extra does not survive JSON; build it with Record.of")
    except ValueError as error:
        found.append(f"extra: {error}")
    try:
        if datetime.fromisoformat(r.when).utcoffset() != timedelta(0):
            found.append(f"when must be in UTC, got {r.when}")
    except ValueError:
        found.append(f"when is not an ISO 8601 time: {r.when!r}")
    return found
