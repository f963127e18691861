"""What a GPU campaign leaves behind: attempts in, records, tables and lists in one folder out.

    records.sqlite, records.parquet   every attempt and every peer, as Records
    table.md                          the best of each program beside torch
    failures.csv                      program, schedule, status, reason
    winners.jsonl                     the best schedule of each program with its source
    summary.json                      what was run, how fast, on what

Everything is written as it comes: what was measured before a kill is there.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autosched import codegen, ir
from autosched.codegen.measure import Timing
from autosched.codegen.triton_entry import read_build
from autosched.datasets.exchange import export_records
from autosched.datasets.store import Store
from autosched.ir.count import count
from autosched.ir.node import Program
from autosched.ir.record import CHECKED_NONE, CHECKED_REFERENCE, CONDEMNED, Record, Status
from autosched.ir.target import Target
from autosched.ir.text import to_text
from autosched.tools.gpu_lab import GpuAttempt, Setup

# Whatever decides what code a schedule becomes.
_SOURCES = ((ir, ("*.py", "rules/*.py")), (codegen, ("triton*.py",)))


def toolchain(compiler: str) -> str:
    """Versions of autosched and of the compiler, and a digest of the code generator's source."""
    digest = hashlib.sha256()
    for package, patterns in _SOURCES:
        root = Path(package.__path__[0])
        for path in sorted(p for pattern in patterns for p in root.glob(pattern)):
            digest.update(path.read_bytes())
    return f"autosched-{version('autosched')}+{digest.hexdigest()[:12]} {compiler}"


@dataclass
class Row:
    """One program of the table. ours_us and peer_us: timed together, where that was done.

    flops: of contractions that no schedule can leave out, else of everything.
    """

    name: str
    program: Program
    target: Target
    share: float = 1.0
    planned: int = 0
    statuses: Counter[Status] = field(default_factory=Counter)
    best: GpuAttempt | None = None
    ours_us: float | None = None
    peers_us: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""

    @functools.cached_property
    def identity(self) -> tuple[str, str]:
        """Key and text of the program."""
        return self.program.key, to_text(self.program)

    @property
    def best_us(self) -> float | None:
        timing = self.best.timing if self.best is not None else None
        return self.ours_us or (timing.median_us if timing is not None else None)

    @property
    def peer(self) -> tuple[str, float] | None:
        """The fastest peer."""
        return min(self.peers_us.items(), key=lambda p: p[1], default=None)

    @property
    def ratio(self) -> float | None:
        """How many times faster than the peer."""
        if self.best_us is None or self.peer is None:
            return None
        return self.peer[1] / self.best_us

    @property
    def failed(self) -> int:
        return sum(n for s, n in self.statuses.items() if s is not Status.OK)

    @property
    def tflops(self) -> float | None:
        work = count(self.program)
        flops = (work.contraction_flops or work.flops) * self.share
        return None if self.best_us is None else flops / self.best_us / 1e6

    def cells(self) -> tuple[str, ...]:
        peer = self.peer
        knobs = "" if self.best is None else ", ".join(
            f"{k.split('.', 1)[-1]}={v}" for k, v in self.best.candidate.schedule["knobs"].items()
        )  # fmt: skip
        return (
            self.name, _us(self.best_us), _number(self.tflops, ".0f"),
            _us(None if peer is None else peer[1]), "" if peer is None else peer[0],
            _number(self.ratio, ".2f"), str(self.statuses[Status.OK]), str(self.failed),
            f"{self.seconds:.0f}", self.note or knobs,
        )  # fmt: skip


def _us(value: float | None) -> str:
    return _number(value, ".1f")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


HEADINGS = ("program", "ours µs", "TFLOP/s", "torch µs", "torch by", "torch / ours", "ok",
            "failed", "s", "best schedule")  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The table of all programs."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *(r.cells() for r in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


class Report:
    """The folder of a campaign while it is filled; use as a context manager."""

    def __init__(self, folder: Path, setup: Setup, compiler: str, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.setup, self.device = folder, setup, device
        self.toolchain = toolchain(compiler)
        self.store = Store(folder / "records.sqlite")
        self.rows: list[Row] = []
        with open(folder / "failures.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(("program", "status", "reason", "schedule"))
        (folder / "winners.jsonl").write_text("", "utf-8")

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def add(self, row: Row, attempt: GpuAttempt) -> None:
        """Stores one attempt, and lists it if it failed."""
        row.statuses[attempt.status] += 1
        if attempt.timing is not None and (
            row.best is None or row.best.timing is None
            or attempt.timing.median_us < row.best.timing.median_us
        ):  # fmt: skip
            row.best = attempt
        self._store(row, attempt.candidate.schedule, attempt.status, attempt.timing,
                    attempt.error, _checked(attempt.status), _facts(attempt, self.setup))
        if not attempt.ok:
            with open(self.folder / "failures.csv", "a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow((
                    row.name, attempt.status.value, attempt.error,
                    json.dumps(attempt.candidate.schedule, sort_keys=True),
                ))  # fmt: skip

    def add_versus(self, row: Row, found: Mapping[str, Any], finalists: Sequence[GpuAttempt]
                   ) -> None:  # fmt: skip
        """Stores what was timed together: finalists of ours, and peers."""
        for attempt, data in zip(finalists, found["ours"], strict=True):
            timing = Timing.from_json(data)
            if row.ours_us is None or timing.median_us < row.ours_us:
                row.ours_us, row.best = timing.median_us, attempt
            extra = {**_facts(attempt, self.setup), **_timing(timing), "paired": True}
            self._store(row, attempt.candidate.schedule, Status.OK, timing, None,
                        CHECKED_REFERENCE, extra)
        for name, data in found["peers"].items():
            timing = Timing.from_json(data)
            row.peers_us[name] = timing.median_us
            peer = {"peer": f"torch-{found['torch']} {name}"}
            extra = {**_timing(timing), "rel_l2": found["errors"][name], "paired": True}
            self._store(row, peer, Status.OK, timing, None, CHECKED_REFERENCE, extra)
        refused = [f"{name}: {why}" for name, why in found["refused"].items()]
        row.note = "; ".join([*filter(None, [row.note]), *refused]) if not row.peers_us else (
            row.note
        )  # fmt: skip

    def finish_row(self, row: Row, summary: Mapping[str, Any]) -> None:
        """Writes the tables anew, with `row` as their last."""
        self.rows.append(row)
        _publish(self.folder / "table.md", markdown(self.rows))
        _publish(self.folder / "summary.json", json.dumps(summary, indent=1, sort_keys=True))
        if row.best is not None:
            winner = {"program": row.name, "schedule": row.best.candidate.schedule,
                      "us": row.best_us, "peers_us": row.peers_us,
                      "source": read_build(Path(row.best.entry)).module.source}  # fmt: skip
            with open(self.folder / "winners.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(winner, sort_keys=True) + "\n")
        export_records(self.store, self.folder / "records.parquet")

    def _store(
        self, row: Row, schedule: Mapping[str, Any], status: Status, timing: Timing | None,
        error: str | None, checked: str, extra: Mapping[str, Any],
    ) -> None:  # fmt: skip
        key, text = row.identity
        record = Record.of(
            workload=key, target=row.target.key, schedule=schedule, status=status,
            latency_us=None if timing is None else timing.median_us,
            spread_us=None if timing is None else timing.spread_us, error=error,
            toolchain=self.toolchain, device=self.device, threads=1, checked=checked,
            extra={**extra, "program": row.name},
        )  # fmt: skip
        self.store.add([record], {key: text})


def _checked(status: Status) -> str:
    return CHECKED_REFERENCE if status is Status.OK or status in CONDEMNED else CHECKED_NONE


def _facts(attempt: GpuAttempt, setup: Setup) -> dict[str, Any]:
    facts: dict[str, Any] = {
        **attempt.facts, **attempt.seconds, "picked_by": attempt.candidate.by,
        "seed": setup.seed, "launcher": setup.launcher,
    }  # fmt: skip
    known = {"estimate_us": attempt.candidate.estimate_us, "rel_l2": attempt.rel_l2}
    facts |= {k: v for k, v in known.items() if v is not None}
    return facts | (_timing(attempt.timing) if attempt.timing is not None else {})


def _timing(timing: Timing) -> dict[str, Any]:
    return {"cache": timing.cache.value, "runs": timing.runs, "inner": timing.inner}


def _publish(path: Path, text: str) -> None:
    made = path.with_name(f".{path.name}.new")
    made.write_text(text, "utf-8")
    os.replace(made, path)
