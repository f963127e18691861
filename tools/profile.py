"""A suite's workloads under many schedules on the GPUs of one machine: a log of measurements out.

    autosched profile --build-only --pack builds.pack --minutes 40        # needs no GPU
    autosched profile --out run --pack builds.pack --minutes 9.5          # goes on where it ended
    autosched profile --merge run other-run -o datasets/logs/sm_90/h200.parquet
    python tools/bootstrap.py autosched.tools.profile --out run           # not installed

It keeps to its minutes, the start included; whatever ends it, the same command goes on with what
was not measured. See profile_design for what is measured, and profile_log for what it leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from autosched.codegen.reference import write_given, write_program
from autosched.datasets.exchange import read_attempts
from autosched.datasets.store import StoreError
from autosched.datasets.suites import SuiteError, suite
from autosched.ir.record import Status
from autosched.ir.target import TargetError, parse_target
from autosched.ir.text import to_text
from autosched.tools.gpu_lab import GpuLimits, Setup
from autosched.tools.gpu_report import toolchain
from autosched.tools.profile_board import Line
from autosched.tools.profile_builds import ProfileJobs
from autosched.tools.profile_design import Shares
from autosched.tools.profile_log import RunLog, merge
from autosched.tools.profile_pack import ProfileError
from autosched.tools.profile_run import Options, Run

ERRORS = (ProfileError, StoreError, SuiteError, TargetError)


def lines_of(names: Sequence[str], only: Sequence[str], target: str, folder: Path) -> list[Line]:
    """The workloads of some suites, their definitions written into folders of their own.

    only: patterns of names, groups or families; none for all. Raises: SuiteError, ProfileError.
    """
    rows = [row for name in names for row in suite(name).rows]
    wanted = [
        row for row in rows
        if not only or any(fnmatch.fnmatch(word, p) for p in only
                           for word in (row.name, row.group, row.family))
    ]  # fmt: skip
    if not wanted:
        raise ProfileError(f"no workload of {', '.join(names)} is called {', '.join(only)}; its "
                           f"groups are {', '.join(sorted({r.group for r in rows}))}")
    key = parse_target(target).key
    lines: dict[str, Line] = {}
    for row in wanted:
        program = row.program()
        if program.key not in lines:
            place = folder / program.key[:20]
            write_program(place, program)
            if given := row.arrays():
                write_given(place, given)
            lines[program.key] = Line(len(lines), row.name, row.group, target, program.key,
                                      to_text(program), place, target_key=key)  # fmt: skip
    return list(lines.values())


def table(lines: Sequence[Line], statuses: Mapping[Status, int]) -> str:
    """Per group: workloads, how many of them were measured, candidates; and what failed."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    rows = [("group", "workloads", "measured", "ok rows", "asked"), ("---",) * 5]
    for name, mine in groups.items():
        rows.append((name, str(len(mine)), str(sum(bool(x.times) for x in mine)),
                     str(sum(len(x.times) for x in mine)), str(sum(len(x.asked) for x in mine))))
    told = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    notes = Counter(x.note for x in lines if x.note)
    faults = ", ".join(f"{n} {s.value}" for s, n in sorted(statuses.items()))
    return told + (f"\nthis run: {faults}\n" if faults else "") + "".join(
        f"{n} workloads left out: {note}\n" for note, n in notes.most_common(5)
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="profile", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--suite", default="profile", help="names of suites, with commas")
    made.add_argument("--only", default="", help="patterns of names or groups, with commas")
    made.add_argument("--out", type=Path, help="folder of the run")
    made.add_argument("--minutes", type=float, default=9.5, help="of the whole run")
    made.add_argument("--build-only", action="store_true", help="fill the pack; needs no GPU")
    made.add_argument("--pack", type=Path, help="file of builds that were made ahead")
    made.add_argument("--pack-mib", type=float, default=46.0, help="of a pack that is filled")
    made.add_argument("--known", nargs="+", type=Path, metavar="LOG", default=[],
                      help="Parquet files of rows that need not be measured again")  # fmt: skip
    made.add_argument("--cache", type=Path, help="folder of builds; OUT/cache, or temporary")
    made.add_argument("--merge", nargs="+", type=Path, metavar="RUN",
                      help="run folders and Parquet files to one file (-o)")
    made.add_argument("-o", "--into", type=Path, help="the file that --merge writes")
    made.add_argument("--target", default="sm_90")
    made.add_argument("--gpus", type=int, help="by default all that there are")
    made.add_argument("--builders", type=int, help="processes; by default one for each core that "
                      "no GPU's process needs")  # fmt: skip
    made.add_argument("--rows", type=int, default=1000, help="of one workload at most")
    made.add_argument("--planned", type=int, default=240,
                      help="candidates of a workload that do not depend on what is measured")
    made.add_argument("--round", type=int, default=24, help="candidates that are asked for at once")
    shares = Shares()
    for name in ("spread", "head", "near"):
        made.add_argument(f"--{name}", type=float, default=getattr(shares, name),
                          help="share of a round; see profile_design")  # fmt: skip
    made.add_argument("--again", type=float, default=0.02, help="share that is timed twice")
    made.add_argument("--ranking", choices=("logs", "analytic"), default="logs",
                      help="the model that ranks heads")  # fmt: skip
    made.add_argument("--closed", action="store_true", help="each size has builds of its own")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--launcher", choices=("cubin", "jit"), default="cubin")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                      help="cpu: Triton's interpreter, for small programs; no speeds")
    return made


@dataclass(frozen=True)
class Profiled:
    """What a run or a merge found: plain JSON, and a text for people."""

    data: dict[str, Any]
    text: str


def main(argv: Sequence[str] | None = None, jobs: ProfileJobs | None = None,
         limits: GpuLimits | None = None, lines: Sequence[Line] | None = None,
         begun: float | None = None) -> int:  # fmt: skip
    """lines: workloads instead of a suite's. begun: on the monotonic clock, when the minutes
    began to count; now by default."""
    begun = time.monotonic() if begun is None else begun
    args = parser().parse_args(argv)
    try:
        print(profile(args, begun, jobs, limits, lines).text)
    except ERRORS as error:
        print(f"profile: {error}", file=sys.stderr)
        return 2
    return 0


def profile(
    args: argparse.Namespace, begun: float, jobs: ProfileJobs | None = None,
    limits: GpuLimits | None = None, lines: Sequence[Line] | None = None,
) -> Profiled:  # fmt: skip
    """What the parsed options ask for. Raises: one of ERRORS."""
    return _merged(args) if args.merge else _measured(args, begun, jobs, limits, lines)


def _merged(args: argparse.Namespace) -> Profiled:
    if args.into is None:
        raise ProfileError("name the file to write: -o LOG.parquet")
    told = merge(args.merge, args.into)
    text = (f"{args.into}: {told['rows']} rows ({told['ok']} ok) of {told['workloads']} workloads, "
            f"{told['bytes']} bytes, {told['bytes_per_row']} a row")  # fmt: skip
    return Profiled(told, text)


def _measured(
    args: argparse.Namespace, begun: float, jobs: ProfileJobs | None, limits: GpuLimits | None,
    lines: Sequence[Line] | None,
) -> Profiled:  # fmt: skip
    options, setup = _options(args), _setup(args)
    if args.build_only and args.pack is None:
        raise ProfileError("name the file that gets the builds: --pack FILE")
    if args.out is None and not args.build_only:
        raise ProfileError("name a folder for the run: --out DIR, or only build: --build-only")
    # What is said on the way is no part of the answer.
    say = functools.partial(print, file=sys.stderr, flush=True)
    env = {"TRITON_INTERPRET": "1"} if args.device == "cpu" else {}
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autosched-")))
        place = scratch if args.build_only else args.out.absolute()
        chosen = list(lines) if lines is not None else lines_of(
            _words(args.suite), _words(args.only), args.target, place / "tasks")  # fmt: skip
        log = None if args.build_only else stack.enter_context(RunLog(place))
        cache = (args.cache or place / "cache").absolute()
        cache.mkdir(parents=True, exist_ok=True)
        key = parse_target(args.target).key
        known = [attempt for file in args.known for attempt in read_attempts(file, key)]
        run = Run(chosen, setup, options(cache), log, begun, jobs=jobs, limits=limits, env=env,
                  known=known, say=say, toolchain=toolchain(f"triton-{version('triton')}"))
        try:
            run.run()
        finally:
            summary = run.summary()
            if log is not None:
                summary["log_rows"] = log.finish(summary)
    facts = "\n".join(f"{k}: {v}" for k, v in summary.items())
    told = table(chosen, {} if log is None else log.statuses)
    return Profiled(summary, f"{facts}\n\n{told}")


def _setup(args: argparse.Namespace) -> Setup:
    parse_target(args.target)
    launcher = "jit" if args.device == "cpu" else args.launcher
    return Setup(args.target, args.device, launcher, args.seed, open_sizes=not args.closed)


def _options(args: argparse.Namespace) -> Any:
    """Options as they are given, but for the cache's folder."""
    cores = len(os.sched_getaffinity(0))
    gpus = args.gpus or gpu_count()
    # A process that measures keeps a core; the loop here needs less than one.
    free = cores if args.build_only or cores <= 2 * gpus else cores - gpus
    try:
        shares = Shares(args.spread, args.head, args.near)
    except ValueError as error:
        raise ProfileError(f"{error}: --spread, --head, --near") from None
    return functools.partial(
        Options, pack=args.pack and args.pack.absolute(), seconds=60 * args.minutes, gpus=gpus,
        builders=args.builders or free, rows=args.rows, planned=args.planned,
        per_round=args.round, shares=shares, again=args.again, ranked=args.ranking == "logs",
        pack_bytes=int(args.pack_mib * (1 << 20)),
    )  # fmt: skip


def gpu_count() -> int:
    """GPUs that this process may use; 1 where it can't be known without a driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return max(1, len([x for x in named.split(",") if x.strip()]))
    return max(1, len([p for p in Path("/dev").glob("nvidia*") if p.name[6:].isdecimal()]))


def process_begun() -> float:
    """When this process was started, on the monotonic clock: its imports are of its minutes."""
    return time.monotonic() - (time.time() - psutil.Process().create_time())


def _words(text: str) -> list[str]:
    return [w for w in text.split(",") if w]


if __name__ == "__main__":
    sys.exit(main(begun=process_begun()))
