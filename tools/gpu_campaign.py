"""Programs under many schedules on one GPU: built in parallel, checked, timed, beside torch.

    python -m autosched.tools.gpu_campaign --out results --minutes 18 --per-program 60
    python tools/bootstrap.py autosched.tools.gpu_campaign --out results     # not installed

While the GPU measures one program, the cores build the next one's schedules. It keeps to its
time, writes everything as it comes (see gpu_report), and prints the table last.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import Failed
from autosched.codegen.workers import Ticket
from autosched.datasets.store import StoreError
from autosched.ir.record import Status
from autosched.ir.target import TargetError, parse_target
from autosched.tools.gpu_lab import (
    Candidate,
    GpuAttempt,
    GpuJobs,
    GpuLab,
    GpuLimits,
    Setup,
    reason,
)
from autosched.tools.gpu_programs import Case, cases
from autosched.tools.gpu_report import Report, Row, markdown

LAST_S = 15.0  # kept for the finals of the program at hand and for writing
FINALISTS = 3
HOPELESS = 4.0  # times slower than the best so far: timed by a few runs only
FAIR = 2.0  # times its equal share of the time left is what a program may take
AHEAD = 2  # programs that are built while one is measured


class CampaignError(Exception):
    """A user's mistake, or a machine that can't do it: one message with the way out."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    out: Path
    minutes: float
    per_program_s: float
    schedules: int
    programs: tuple[str, ...]
    build_only: bool


@dataclass(frozen=True)
class _Opened:
    """A program whose schedules are on their way."""

    case: Case
    row: Row
    tickets: Mapping[Ticket, Candidate]


class Campaign:
    """One run: opens programs ahead, measures them in turn."""

    def __init__(self, lab: GpuLab, report: Report, options: Options, chosen: Sequence[Case],
                 begun: float, say: Any = print) -> None:  # fmt: skip
        """begun: on the monotonic clock, when the run's minutes began to count."""
        self.lab, self.report, self.options, self.say = lab, report, options, say
        self.chosen = chosen
        self.begun = begun
        self.done = self.built = self.measured = 0
        self.compile_s = 0.0

    def run(self) -> None:
        """All programs, as far as the time goes."""
        plans = [self._planned(case) for case in self.chosen]
        waiting: list[_Opened] = []
        todo = iter(zip(self.chosen, plans))
        while True:
            while len(waiting) <= AHEAD and (pair := next(todo, None)) is not None:
                waiting.append(self._opened(*pair))
            if not waiting:
                return
            opened = waiting.pop(0)
            if self._left_s() <= LAST_S:
                self.say(f"time is up: {1 + len(waiting) + len(list(todo))} programs left out")
                return
            self._one(opened)

    # -- one program -----------------------------------------------------------------------

    def _planned(self, case: Case) -> tuple[Row, Ticket]:
        target = self.target_of(case)
        row = Row(case.name, case.define(), parse_target(target), case.share)
        ticket = self.lab.submit_plan(case.name, row.program, target, self.options.schedules)
        return row, ticket

    def target_of(self, case: Case) -> str:
        return "+".join((self.lab.setup.target, *case.features))

    def _opened(self, case: Case, plan: tuple[Row, Ticket]) -> _Opened:
        row, ticket = plan
        outcome = ticket.result()
        if isinstance(outcome, Failed):
            row.note = f"no schedules: {reason(outcome)}"
            return _Opened(case, row, {})
        picked = [Candidate(p["schedule"], p["by"], p["estimate_us"])
                  for p in outcome.value["picked"]]  # fmt: skip
        row.planned = len(picked)
        if not picked:
            row.note = "no schedules: no sketch fits this program"
        return _Opened(case, row,
                       self.lab.submit_builds(case.name, self.target_of(case), picked))

    def _one(self, opened: _Opened) -> None:
        row, begun = opened.row, time.monotonic()
        left_s = self._left_s() - LAST_S
        share_s = FAIR * left_s / (len(self.chosen) - self.done)
        until = begun + min(self.options.per_program_s, left_s, share_s)
        self.done += 1
        if not self.options.build_only and opened.tickets:
            prepared = self.lab.prepare(row.name)
            if isinstance(prepared, Failed):
                row.note = f"no reference: {reason(prepared)}"
        tried = self._attempts(opened, until) if not row.note else _none(opened)
        done = list(tried)
        if not self.options.build_only and row.best is not None:
            self._finals(opened.case, row, done)
        row.seconds = time.monotonic() - begun
        self.report.finish_row(row, self.summary())
        self.say("  ".join(filter(None, row.cells()[:9])) + (f"  {row.note}" if row.note else ""))

    def _attempts(self, opened: _Opened, until: float) -> Iterator[GpuAttempt]:
        """Every candidate as it is built, measured and stored, until the time is up."""
        row, total = opened.row, len(opened.tickets)
        for seen, built in enumerate(self.lab.built(opened.tickets), 1):
            self.built += 1
            self.compile_s += built.seconds.get("compile_s", 0.0)
            attempt = built
            if built.ok and not self.options.build_only:
                attempt = self.lab.measure(row.name, built, self._hopeless_us(row))
                self.measured += 1
            if attempt.ok and attempt.timing is None:
                row.statuses[Status.OK] += 1  # built, not measured: nothing to record
            elif attempt.status is not Status.CANCELLED:
                self.report.add(row, attempt)
            yield attempt
            if time.monotonic() > until and seen < total:
                row.note = f"{total - seen} of {total} schedules not tried: time"
                _cancel(opened)
                return

    def _hopeless_us(self, row: Row) -> float | None:
        return None if row.best_us is None else HOPELESS * row.best_us

    def _finals(self, case: Case, row: Row, done: Sequence[GpuAttempt]) -> None:
        """The best few and torch's calls against each other."""
        timed = [a for a in done if a.timing is not None]
        best = sorted(timed, key=lambda a: a.timing.median_us)[:FINALISTS]
        outcome = self.lab.versus(row.name, [a.entry for a in best], case.peers)
        if isinstance(outcome, Failed):
            row.note = f"not compared: {reason(outcome)[:200]}"
        else:
            self.report.add_versus(row, outcome.value, best)

    # -- as a whole ------------------------------------------------------------------------

    def _left_s(self) -> float:
        return self.begun + 60 * self.options.minutes - time.monotonic()

    def summary(self) -> dict[str, Any]:
        """Counts and rates so far."""
        spent = time.monotonic() - self.begun
        measurer = self.lab.measurer
        return {
            "device": self.report.device, "toolchain": self.report.toolchain,
            "seconds": round(spent, 1), "built": self.built, "measured": self.measured,
            "candidates_per_minute": round(60 * self.built / max(spent, 1e-9), 1),
            "compile_core_seconds": round(self.compile_s, 1),
            "processes_lost": 0 if measurer is None else measurer.lost,
            "slowest_recovery_s": 0.0 if measurer is None else round(measurer.recovery_s, 3),
        }  # fmt: skip


def _cancel(opened: _Opened) -> None:
    for ticket in opened.tickets:
        ticket.cancel()


def _none(opened: _Opened) -> Iterator[GpuAttempt]:
    _cancel(opened)
    return iter(())


def select(patterns: Sequence[str]) -> tuple[Case, ...]:
    """The cases whose names match one of the patterns; a pattern without `*` is a part."""
    every = cases()
    if not patterns:
        return every
    wanted = [p if "*" in p else f"*{p}*" for p in patterns]
    for pattern in wanted:
        if not any(fnmatch.fnmatch(c.name, pattern) for c in every):
            raise CampaignError(f"no program is called {pattern.strip('*')!r}; --list shows them")
    return tuple(c for c in every if any(fnmatch.fnmatch(c.name, p) for p in wanted))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="gpu_campaign", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="folder for records, tables and lists")
    made.add_argument("--minutes", type=float, default=18.0, help="of the whole run")
    made.add_argument("--per-program", type=float, default=60.0, help="seconds, at most")
    made.add_argument("--schedules", type=int, default=60, help="for each program")
    made.add_argument("--programs", default="", help="names or parts of names, with commas")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--target", default="sm_90")
    made.add_argument("--builders", type=int, help="processes; by default one for each core")
    made.add_argument("--launcher", choices=("cubin", "jit"), default="cubin",
                      help="cubin: the machine code as built; jit: as packages launch it")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                      help="cpu: Triton's interpreter, for small programs; no speeds")
    made.add_argument("--cold", action="store_true", help="flush the cache before each run")
    made.add_argument("--scratch", type=Path, help="folder for builds, kept; else temporary")
    made.add_argument("--build-only", action="store_true", help="build, measure nothing")
    made.add_argument("--list", action="store_true", help="print the programs' names")
    return made


def main(argv: Sequence[str] | None = None, jobs: GpuJobs | None = None,
         limits: GpuLimits | None = None, chosen: Sequence[Case] | None = None) -> int:  # fmt: skip
    args = parser().parse_args(argv)
    try:
        patterns = tuple(filter(None, args.programs.split(",")))
        programs = select(patterns) if chosen is None else tuple(chosen)
        if args.list:
            print("\n".join(c.name for c in programs))
            return 0
        if args.out is None:
            raise CampaignError("name a folder for the results: --out DIR")
        return _run(args, programs, jobs or GpuJobs(), limits or GpuLimits())
    except (CampaignError, TargetError, StoreError) as error:
        print(f"gpu_campaign: {error}", file=sys.stderr)
        return 2


def _run(
    args: argparse.Namespace, programs: Sequence[Case], jobs: GpuJobs, limits: GpuLimits
) -> int:
    begun = time.monotonic()
    options = Options(args.out, args.minutes, args.per_program, args.schedules,
                      tuple(c.name for c in programs), args.build_only)  # fmt: skip
    launcher = "jit" if args.device == "cpu" else args.launcher
    setup = Setup(args.target, args.device, launcher, args.seed, args.cold)
    parse_target(args.target)
    env = {"TRITON_INTERPRET": "1"} if args.device == "cpu" else {}
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="autosched-gpu-"))
        )
        lab = stack.enter_context(GpuLab(
            scratch, setup, builders=args.builders, jobs=jobs, limits=limits, measurer_env=env,
            measure=not args.build_only,
        ))  # fmt: skip
        device = _device(lab)
        report = stack.enter_context(
            Report(args.out, setup, f"triton-{version('triton')}", device)
        )
        say = functools.partial(print, flush=True)
        campaign = Campaign(lab, report, options, programs, begun, say)
        try:
            campaign.run()
        except KeyboardInterrupt:
            print("interrupted: what was measured is stored", flush=True)
        print(_closing(campaign))
    return 0


def _device(lab: GpuLab) -> str:
    """Name of the device. Raises CampaignError where it is not there or is another one."""
    if lab.measurer is None:
        return "none"
    outcome = lab.measurer.device()
    if isinstance(outcome, Failed):
        raise CampaignError(
            f"the GPU can't be used: {reason(outcome)}\nUse --build-only to build without one, or "
            "--device cpu for Triton's interpreter"
        )
    arch = parse_target(lab.setup.target).arch
    found = outcome.value.get("capability", arch)
    if found != arch:
        raise CampaignError(f"this device is {found}, the target is {arch}: name it by --target")
    return str(outcome.value["device"])


def _closing(campaign: Campaign) -> str:
    """The last words: rates, then the table without its schedules."""
    facts = ", ".join(f"{k} {v}" for k, v in campaign.summary().items())
    return f"\n{facts}\n\n{markdown(campaign.report.rows)}"


if __name__ == "__main__":
    sys.exit(main())
