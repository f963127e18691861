"""What a profiling run leaves behind: results in, a folder of records that the next run goes on
from out.

    records.sqlite       every attempt: what a run that goes on knows of
    journal/N.json, .log batches on their way: what was asked, and what the measuring process wrote
    parts/T-N.parquet    the same records, a file every few thousand
    log.parquet          all parts in one
    summary.json         how long, how fast, how noisy

A record is in the store, or in a journal that is read at the next start: what is killed at any
moment loses at most the candidates that were on the GPU just then.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autosched.codegen.measure import Timing
from autosched.datasets.exchange import merge_files, read_facts, read_records, write_records
from autosched.datasets.store import Store, StoreError
from autosched.ir.record import CHECKED_NONE, CHECKED_REFERENCE, CONDEMNED, Record, Status

PART_ROWS, PART_S = 4000, 60.0  # a part is written when so many records wait, or so long
LEVEL = 19  # of compression, for logs that are kept
_BANDS = (10.0, 100.0, 1000.0)  # µs, between which noise is told apart


@dataclass(frozen=True)
class Origin:
    """What all records of a run share."""

    target: str
    toolchain: str
    device: str
    seed: int
    launcher: str


@dataclass(frozen=True)
class Attempt:
    """What became of one candidate. gpu: number of the device; watch: see measure_batch;
    first_us: of the earlier measurement that this one repeats;
    open_sizes: extents that kernels got as arguments."""

    workload: str
    program: str
    schedule: Mapping[str, Any]
    by: str
    status: Status
    timing: Timing | None = None
    error: str | None = None
    rel_l2: float | None = None
    estimate_us: float | None = None
    facts: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] | None = None
    gpu: int | None = None
    watch: Mapping[str, float] | None = None
    first_us: float | None = None
    open_sizes: int = 0


def record_of(attempt: Attempt, origin: Origin) -> Record:
    """The Record of an attempt; numbers with as many digits as mean something."""
    timing = attempt.timing
    extra: dict[str, Any] = {
        "program": attempt.program, "picked_by": attempt.by, "seed": origin.seed,
        "launcher": origin.launcher, **(attempt.facts or {}),
        **{k: _digits(v, 3) for k, v in (attempt.seconds or {}).items()},
        "rel_l2": _digits(attempt.rel_l2, 3), "estimate_us": _digits(attempt.estimate_us, 4),
        "gpu": attempt.gpu, "first_us": _digits(attempt.first_us, 6),
        "watch_us": (attempt.watch or {}).get("us"), "open_sizes": attempt.open_sizes or None,
    }  # fmt: skip
    if timing is not None:
        extra |= {"cache": timing.cache.value, "runs": timing.runs, "inner": timing.inner}
    reached = attempt.status is Status.OK or attempt.status in CONDEMNED
    return Record.of(
        workload=attempt.workload, target=origin.target, schedule=attempt.schedule,
        status=attempt.status, toolchain=origin.toolchain, device=origin.device, threads=1,
        latency_us=_digits(timing.median_us, 6) if timing is not None else None,
        spread_us=_digits(timing.spread_us, 4) if timing is not None else None,
        error=attempt.error, checked=CHECKED_REFERENCE if reached else CHECKED_NONE,
        extra={k: v for k, v in extra.items() if v is not None},
    )  # fmt: skip


def _digits(value: float | None, count: int) -> float | None:
    return None if value is None else float(f"{value:.{count}g}")


class RunLog:
    """The folder of a run while it is filled; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        """Raises: StoreError where the folder holds something else, or can't be written."""
        self.folder = folder
        try:
            for place in (folder / "journal", folder / "parts"):
                place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {folder}: {error.strerror or error}") from error
        self.store = Store(folder / "records.sqlite")
        self.statuses: Counter[Status] = Counter()
        self._fresh: list[Record] = []
        self._texts: dict[str, str] = {}
        self._stamp, self._parts = time.strftime("%Y%m%dT%H%M%S", time.gmtime()), 0
        self._written = time.monotonic()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def add(self, attempts: Sequence[Attempt], texts: Mapping[str, str], origin: Origin) -> None:
        """Stores attempts, all or none; now and then a part."""
        records = [record_of(a, origin) for a in attempts]
        needed = {r.workload: texts[r.workload] for r in records}
        self.store.add(records, needed)
        self.statuses.update(r.status for r in records)
        self._fresh += records
        self._texts |= needed
        waited = time.monotonic() - self._written
        if len(self._fresh) >= PART_ROWS or (self._fresh and waited > PART_S):
            self.write_part()

    def write_part(self) -> None:
        """The records since the last part as a file of their own."""
        self._written = time.monotonic()
        if self._fresh:
            self._parts += 1
            path = self.folder / "parts" / f"{self._stamp}-{self._parts:03}.parquet"
            write_records(path, self._fresh, self._texts)
            self._fresh, self._texts = [], {}

    def finish(self, summary: Mapping[str, Any]) -> int:
        """Writes what is left, all parts as one file and the summary; returns rows in all."""
        self.write_part()
        parts = sorted((self.folder / "parts").glob("*.parquet"))
        count = merge_files(parts, self.folder / "log.parquet", summary) if parts else 0
        (self.folder / "summary.json").write_text(
            json.dumps(summary, indent=1, sort_keys=True) + "\n", "utf-8"
        )
        return count

    # -- batches on their way --------------------------------------------------------------

    def begin_batch(self, number: int, asked: Mapping[str, Any]) -> Path:
        """Writes down what is asked of a measuring process; the file that it writes to."""
        self._asked(number).write_text(json.dumps(asked, separators=(",", ":")), "utf-8")
        return self._told(number)

    def end_batch(self, number: int) -> None:
        """Its results are in the store."""
        for path in (self._asked(number), self._told(number)):
            path.unlink(missing_ok=True)

    def told(self, number: int) -> tuple[list[dict[str, Any]], str | None]:
        """Results of a batch so far, and the id of the candidate that has begun and not ended."""
        return read_journal(self._told(number))

    def left_batches(self) -> Iterator[tuple[int, dict[str, Any], list[dict[str, Any]]]]:
        """Batches of a run that was killed: number, what was asked, what was told."""
        for path in sorted((self.folder / "journal").glob("*.json")):
            number = int(path.stem)
            try:
                asked = json.loads(path.read_text("utf-8"))
            except ValueError:  # killed while it was written: nothing was measured
                self.end_batch(number)
                continue
            yield number, asked, self.told(number)[0]

    def _asked(self, number: int) -> Path:
        return self.folder / "journal" / f"{number}.json"

    def _told(self, number: int) -> Path:
        return self.folder / "journal" / f"{number}.log"


def read_journal(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Results in a journal, and who has begun and not ended; a cut line is none."""
    results, begun = [], None
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if "begun" in value:
                begun = value["begun"]
            else:
                results.append(value)
                begun = None
    return results, begun


# ---- what a log says of itself -----------------------------------------------------------------


def noise(pairs: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """Of kernels timed twice at different times: |log ratio| by latency, median and 90th
    percentile in percent, and how many."""
    bands: dict[str, list[float]] = {}
    for first, again in pairs:
        band = next((f"below {int(b)} µs" for b in _BANDS if first < b), "slower")
        for name in ("all", band):
            bands.setdefault(name, []).append(abs(float(np.log(again / first))))
    return {
        name: {"median_percent": round(100 * float(np.median(v)), 3),
               "p90_percent": round(100 * float(np.quantile(v, 0.9)), 3), "pairs": len(v)}
        for name, v in sorted(bands.items())
    }  # fmt: skip


def merge(sources: Sequence[Path], target: Path) -> dict[str, Any]:
    """Run folders and Parquet files in, one compact log out; what it says of itself.

    Raises: StoreError where there is nothing, or a file is damaged.
    """
    files = [f for source in sources for f in _logs(source)]
    if not files:
        raise StoreError(f"no logs in {', '.join(map(str, sources))}: name folders that "
                         "`autosched profile` wrote, or Parquet files of records")  # fmt: skip
    told = [read_facts(f) for f in files]
    runs = {json.dumps(t, sort_keys=True): t for t in told if t}
    merge_files(files, target, level=LEVEL)
    records, texts = read_records(target)  # every row is looked into once
    pairs = [(float(first), r.latency_us) for r in records
             if r.latency_us and (first := r.extra.get("first_us"))]  # fmt: skip
    facts = {
        "rows": len(records), "ok": sum(r.ok for r in records), "workloads": len(texts),
        "programs": len({r.extra.get("program") for r in records}),
        "statuses": {s.value: n for s, n in sorted(Counter(r.status for r in records).items())},
        "devices": sorted({r.device for r in records}),
        "toolchains": sorted({r.toolchain for r in records}),
        "first": min(r.when for r in records), "last": max(r.when for r in records),
        "noise": noise(pairs), "runs": list(runs.values()),
    }  # fmt: skip
    merge_files([target], target, facts, level=LEVEL)
    size = target.stat().st_size
    return {**facts, "bytes": size, "bytes_per_row": round(size / len(records), 1)}


def _logs(source: Path) -> list[Path]:
    """Parquet files of a run: the whole log, and parts that may have come after it."""
    if source.is_dir():
        inside = [source / "log.parquet", *sorted((source / "parts").glob("*.parquet"))]
        return [p for p in inside if p.exists()] or sorted(source.glob("*.parquet"))
    if not source.exists():
        raise StoreError(f"there is no file or folder {source}")
    return [source]
