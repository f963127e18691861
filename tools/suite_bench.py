"""A suite of workloads raced beside its peers on one GPU, a Markdown table out.

    python -m autosched.tools.suite_bench --out results --minutes 25
    python tools/bootstrap.py autosched.tools.suite_bench --out results      # not installed

`autosched bench --suite dense` is the same. Rows take turns between the groups; each is written
to the folder as it is done, and the same command goes on where a run was cut short. What crashes
or runs out of memory costs its own process: the row says so, and the run goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import Failed, Job, Stage
from autosched.datasets.place import StoreError
from autosched.datasets.store import Store
from autosched.datasets.suites import SuiteError, SuiteRow, suite, suites
from autosched.ir.record import utc_now
from autosched.ir.target import Target, TargetError, parse_target
from autosched.tools.campaign import Bench
from autosched.tools.gpu_lab import GpuJobs, GpuLab, GpuLimits, Setup, reason
from autosched.tools.gpu_probe import Device
from autosched.tools.gpu_report import toolchain
from autosched.tools.suite_folder import Folder, read_results, write_report
from autosched.tools.suite_options import How, Options, SuiteBenchError, plan_table, select
from autosched.tools.suite_ours import Finder
from autosched.tools.suite_report import Result, short_table
from autosched.tools.suite_runner import Runner
from autosched.tools.triton_lab import TritonLab

LIMITS = GpuLimits(prepare_s=180.0, measure_s=60.0, build_s=60.0)
CEILINGS_S = 120.0
PACKAGES = ("torch", "triton", "helion")


# ---- as a whole --------------------------------------------------------------------------------


def run(
    options: Options, say: Callable[[str], None] = print, jobs: GpuJobs | None = None,
    suite_jobs: str = "autosched.tools.suite_jobs", limits: GpuLimits = LIMITS,
) -> str:  # fmt: skip
    """Races the suite; the short table. The folder of results has the rest.

    Raises: SuiteBenchError, SuiteError, TargetError, StoreError: a user's mistakes.
    """
    begun = time.monotonic()
    chosen = suite(options.suite)
    rows, target = select(chosen, options), parse_target(options.target)
    launcher = "jit" if options.device == "cpu" else "cubin"
    setup = Setup(options.target, options.device, launcher, options.seed)
    env = {"TRITON_INTERPRET": "1"} if options.device == "cpu" else {}
    with (
        Folder(options.out, options.signature) as folder,
        _scratch(options.scratch) as scratch,
        GpuLab(scratch, setup, jobs=jobs, limits=limits, measurer_env=env,
               measure=not options.build_only) as lab,
    ):  # fmt: skip
        _lend(options.store, folder.store)
        device = _device(lab, target)
        facts = _facts(options, lab, device, suite_jobs)
        folder.note(facts)
        bench = Bench(target if options.device == "cpu" else replace(target, device=device),
                      toolchain(f"triton-{version('triton')}"), 1, options.seed)  # fmt: skip
        where = None if options.build_only else Device(device, target.arch, options.device)
        triton = TritonLab(scratch, options.target, options.seed, where, lab=lab)
        finder = Finder(triton, folder.store, bench, options.how)
        until = begun + 60 * options.minutes
        runner = Runner(lab, finder, bench, folder.store, options.rounds, until, suite_jobs)
        try:
            _rows(rows, runner, folder, facts, say)
        finally:
            folder.finish()
    return report(options)


def report(options: Options) -> str:
    """Writes the tables of a folder's results anew; the short one."""
    chosen = suite(options.suite)
    write_report(options.out, chosen, options.write_docs)
    return short_table(chosen, read_results(options.out))


def planned(options: Options) -> str:
    """The rows and their peers; needs no GPU."""
    return plan_table(select(suite(options.suite), options))


def _rows(
    rows: Sequence[SuiteRow], runner: Runner, folder: Folder, facts: dict[str, Any],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Every row that is not done yet, as far as the time goes."""
    done = {r.name for r in folder.results()}
    left = [row for row in rows if row.name not in done]
    if len(left) < len(rows):
        say(f"{len(rows) - len(left)} rows were done before")
    late = 0
    for row in left:
        if not runner.fits(row):
            late += 1
            continue
        try:
            data = runner.row(row)
        except KeyboardInterrupt:
            say("interrupted: what was measured is stored; the same command goes on")
            return
        folder.add({**data, "ceilings": facts["ceilings"]})
        say(_line(Result(data)))
    if late:
        say(f"time is up: {late} rows left out; the same command goes on")


def _line(result: Result) -> str:
    """One row as it is done."""
    found = result.ratio("best")
    us = result.us()
    words = [result.name, f"{us:.1f} µs" if us is not None else
             f"{result.data.get('built', 0)} built", "" if found is None else
             f"{found} of {result.against('best')}", str(result.data["note"])]  # fmt: skip
    return "  ".join(filter(None, words)) + f"  [{result.data['seconds']:.0f} s]"


@contextlib.contextmanager
def _scratch(kept: Path | None) -> Iterator[Path]:
    """The folder of builds: the one that is to be kept, or a passing one."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="autosched-suite-") as folder:
        yield Path(folder)


def _lend(path: Path | None, store: Store) -> None:
    """Adds the records of another store to this run's."""
    if path is None:
        return
    if not path.exists():
        raise SuiteBenchError(f"there is no record store at {path}")
    with Store(path) as other:
        store.add(other.records(peers=False), other.workloads())


def _device(lab: GpuLab, target: Target) -> str:
    """Name of the device. Raises: SuiteBenchError where it is not there or is another one."""
    if lab.measurer is None:
        return target.device
    outcome = lab.measurer.device()
    if isinstance(outcome, Failed):
        raise SuiteBenchError(
            f"no GPU can be used here: {reason(outcome).splitlines()[0]}\n--plan lists the rows, "
            "--build-only builds their kernels without one"
        )
    found = outcome.value.get("capability", target.arch)
    if found != target.arch:
        raise SuiteBenchError(f"this device is {found}, the target is {target.arch}: name it by "
                              "--target")  # fmt: skip
    return str(outcome.value["device"])


def _facts(options: Options, lab: GpuLab, device: str, jobs: str) -> dict[str, Any]:
    """What the report's preface says, with the ceilings measured now."""
    ceilings: dict[str, float] = {}
    if lab.measurer is not None:
        outcome = lab.measurer.run(Job(f"{jobs}:ceilings", {"device": options.device},
                                       Stage.RUN, CEILINGS_S))  # fmt: skip
        if isinstance(outcome, Failed):
            raise SuiteBenchError(f"the device's ceilings can't be measured: {reason(outcome)}")
        ceilings = outcome.value
    versions = {"autosched": version("autosched"), "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"command": options.command, "when": utc_now()[:10], "device": device,
            "versions": versions, "ceilings": ceilings}  # fmt: skip


# ---- the command line --------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="suite_bench", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--suite", default="dense", help=f"one of: {', '.join(suites())}")
    made.add_argument("--out", type=Path, help="folder for results; the same one goes on")
    made.add_argument("--minutes", type=float, default=25.0, help="of the whole run")
    made.add_argument("--rows", default="", help="parts of rows' names, with commas")
    made.add_argument("--peers", default="", help="peers' names, with commas; others stay out")
    made.add_argument("--tune", type=float, default=0.0, metavar="SECONDS", help="for each row")
    made.add_argument("--pick", choices=("logs", "model"), default="logs",
                      help="what is ours without --tune: the logs' best, or the model's pick")
    made.add_argument("--store", type=Path, help="records of other runs, to choose from")
    made.add_argument("--write-docs", type=Path, metavar="FILE.md", help="write the report there")
    made.add_argument("--plan", action="store_true", help="list rows and peers, and stop")
    made.add_argument("--report", action="store_true",
                      help="write the tables of the folder's results anew, and stop")
    made.add_argument("--build-only", action="store_true", help="build ours, measure nothing")
    made.add_argument("--scratch", type=Path, help="folder for builds, kept; else temporary")
    made.add_argument("--target", default="sm_90")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                      help="cpu: Triton's interpreter, for tiny rows; no speeds")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--rounds", type=int, default=15, help="of each race")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    options = Options(
        args.out or Path(), args.suite, args.minutes, _names(args.rows), _names(args.peers),
        How(args.tune, args.pick == "model"), args.store, args.write_docs, args.build_only,
        args.scratch, args.target, args.device, args.seed, args.rounds,
        " ".join(["python -m autosched.tools.suite_bench", *given]),
    )  # fmt: skip
    try:
        if args.plan:
            print(planned(options))
            return 0
        if args.out is None:
            raise SuiteBenchError("name a folder for the results: --out DIR")
        if args.report:
            print(report(options))
            return 0
        print("\n" + run(options, lambda text: print(text, flush=True)))
    except (SuiteBenchError, SuiteError, TargetError, StoreError) as error:
        print(f"suite_bench: {error}", file=sys.stderr)
        return 2
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
