"""A log in, what open extents cost its best schedules on this machine's GPU out.

    python -m autosched.tools.gpu_open datasets/logs/sm_90/LOG.parquet --best 1 --minutes 8

Each schedule is built twice, for its one size and for the class of it (see `ir.open_extents`). Both
are checked against float64, then timed in turns. A row is printed as soon as it is known, so that a
run that is cut short loses nothing: microseconds of the closed and of the open kernel, closed /
open, and the share of workloads whose open build another workload had made already. The closed
kernel against itself gives the noise floor. Ends with 1 where an open kernel is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autosched.codegen.jobs import Failed, Job, Stage
from autosched.codegen.measure import Timing
from autosched.codegen.reference import write_program
from autosched.datasets.exchange import read_records
from autosched.datasets.place import StoreError
from autosched.ir.text import parse
from autosched.tools.gpu_lab import Candidate, GpuAttempt, GpuLab, Setup, reason
from autosched.tools.gpu_recheck import Chosen, choose

_TOGETHER = "autosched.codegen.gpu_jobs:measure_together"


@dataclass(frozen=True)
class Row:
    """A schedule and its two kernels. again_us: of the closed one, timed as if it were another;
    fault: why there are no times; wrong: the open kernel's doing; shared: its build was there."""

    item: Chosen
    closed_us: float = math.nan
    open_us: float = math.nan
    again_us: float = math.nan
    fault: str = ""
    wrong: bool = False
    shared: bool = False

    @property
    def ratio(self) -> float:
        return self.closed_us / self.open_us

    @property
    def noise(self) -> float:
        return self.closed_us / self.again_us

    def __str__(self) -> str:
        times = f"{self.closed_us:10.2f} {self.open_us:10.2f} {self.ratio:7.3f} {self.noise:7.3f}"
        return f"{self.fault or times}  {self.item.program}{'  shared' if self.shared else ''}"


def compared(lab: GpuLab, chosen: Sequence[Chosen], until: float) -> Iterator[Row]:
    """A row for each schedule that there is time for."""
    seen: set[str] = set()
    for number, item in enumerate(chosen):
        if time.monotonic() > until:
            return
        yield _row(lab, f"task{number}", item, seen)


def _row(lab: GpuLab, name: str, item: Chosen, seen: set[str]) -> Row:
    candidate = Candidate(json.loads(item.record.schedule))
    target = "sm_90+tf32" if "tf32" in item.record.target else "sm_90"
    tickets = [lab.submit_builds(name, target, [candidate], how) for how in (False, True)]
    attempts: list[GpuAttempt] = []
    for made in (built for ticket in tickets for built in lab.built(ticket)):
        attempts.append(lab.measure(name, made) if made.ok else made)
    closed, opened = attempts
    if not (closed.ok and opened.ok):
        bad = opened if closed.ok else closed
        return Row(item, fault=f"{bad.status.value}: {bad.error}", wrong=closed.ok)
    shared = opened.entry in seen
    seen.add(opened.entry)
    entries = [closed.entry, opened.entry, closed.entry]
    kwargs = {"folder": str(lab.place(name)), "seed": lab.setup.seed, "entries": entries,
              "device": lab.setup.device, "launcher": lab.setup.launcher,
              "target_time_s": lab.limits.final_s}  # fmt: skip
    assert lab.measurer is not None
    outcome = lab.measurer.run(Job(_TOGETHER, kwargs, Stage.RUN, lab.limits.versus_s))
    if isinstance(outcome, Failed):
        return Row(item, fault=reason(outcome))
    one, two, again = (Timing.from_json(t).median_us for t in outcome.value)
    return Row(item, one, two, again, shared=shared)


def summary(rows: Sequence[Row]) -> str:
    """The ratios of all rows in a line."""
    timed = [r for r in rows if not r.fault]
    if not timed:
        return "nothing was timed"
    mean, noise = (math.exp(math.fsum(map(math.log, xs)) / len(timed))
                   for xs in ([r.ratio for r in timed], [r.noise for r in timed]))  # fmt: skip
    worst = min(timed, key=lambda r: r.ratio)
    return (f"{len(timed)} schedules: closed / open {mean:.4f}, worst {worst.ratio:.3f} "
            f"({worst.item.program}), closed / closed {noise:.4f}; "
            f"{sum(r.shared for r in timed)} open builds were there already")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_open", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--best", type=int, default=1, help="schedules of each program")
    parser.add_argument("--minutes", type=float, default=8.0, help="no row is begun after this")
    options = parser.parse_args(argv)
    begun = time.monotonic()
    try:
        records, texts = read_records(options.log)
    except StoreError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = [c for c in choose(records, options.best) if c.record.latency_us]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, GpuLab(Path(folder), Setup("sm_90")) as lab:
        assert lab.measurer is not None
        device = lab.measurer.device()
        if isinstance(device, Failed):
            print(f"no GPU can be used here: {reason(device).splitlines()[0]}", file=sys.stderr)
            return 2
        for number, item in enumerate(chosen):
            write_program(lab.place(f"task{number}"), parse(texts[item.workload]))
        print(f"{'closed us':>10} {'open us':>10} {'ratio':>7} {'noise':>7}")
        for row in compared(lab, chosen, begun + 60 * options.minutes):
            rows.append(row)
            print(row, flush=True)
    print(summary(rows))
    return 1 if any(r.wrong for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
