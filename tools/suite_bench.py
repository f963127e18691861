"""A suite of workloads raced beside its peers on the GPUs of one machine, a Markdown table out.

    python -m autosched.tools.suite_bench --out results --minutes 25
    python tools/bootstrap.py autosched.tools.suite_bench --out results      # not installed

`autosched bench --suite dense` is the same. Rows take turns between the groups and between the
GPUs; each is written to the folder as it is done, and the same command goes on where a run was
cut short. What crashes or runs out of memory costs its own process: the row says so, and the run
goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autosched.datasets.suites import suite, suites
from autosched.ir.target import parse_target
from autosched.tools.profile import gpu_count
from autosched.tools.suite_folder import Folder, read_results, write_report
from autosched.tools.suite_options import How, Options, SuiteBenchError, plan_table, select
from autosched.tools.suite_report import short_table
from autosched.tools.suite_share import ERRORS, share_out
from autosched.tools.suite_work import Claims, Parts, work

# ---- as a whole --------------------------------------------------------------------------------


def run(
    options: Options, say: Callable[[str], None] = print, parts: Parts | None = None
) -> str:
    """Races the suite; the short table. The folder of results has the rest.

    Raises: SuiteBenchError, SuiteError, TargetError, StoreError: a user's mistakes.
    """
    until = time.monotonic() + 60 * options.minutes
    rows = select(suite(options.suite), options)
    parse_target(options.target)
    if absent := [path for path in options.stores if not path.exists()]:
        raise SuiteBenchError(f"there is no record store at {absent[0]}")
    with Folder(options.out, options.signature) as folder:
        done = {r.name for r in folder.results()}
        left = [row for row in rows if row.name not in done]
        if len(left) < len(rows):
            say(f"{len(rows) - len(left)} rows were done before")
        if left:
            with tempfile.TemporaryDirectory(prefix="autosched-claims-") as claims:
                gpus = min(_gpus(options), len(left))
                made = parts or Parts()
                if gpus == 1:
                    work(options, Claims(Path(claims), left), 0, until, say, made)
                else:
                    names = [row.name for row in left]
                    share_out(options, names, Path(claims), gpus, until, say, made)
        folder.finish()
        late = len(rows) - len({r.name for r in folder.results()} & {r.name for r in rows})
    if late:
        say(f"{late} rows were left out, for time or a stop; the same command goes on")
    return report(options)


def _gpus(options: Options) -> int:
    """How many processes share the rows."""
    alone = options.device == "cpu" or options.build_only
    return options.gpus or (1 if alone else gpu_count())


def report(options: Options) -> str:
    """Writes the tables of a folder's results anew; the short one."""
    chosen = suite(options.suite)
    write_report(options.out, chosen, options.write_docs)
    return short_table(chosen, read_results(options.out))


def planned(options: Options) -> str:
    """The rows and their peers; needs no GPU."""
    return plan_table(select(suite(options.suite), options))


# ---- the command line --------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="suite_bench", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--suite", default="dense", help=f"one of: {', '.join(suites())}")
    made.add_argument("--out", type=Path, help="folder for results; the same one goes on")
    made.add_argument("--minutes", type=float, default=25.0, help="of the whole run")
    made.add_argument("--rows", default="", help="parts of rows' names, with commas")
    made.add_argument("--peers", default="", help="peers' names, with commas; others stay out")
    made.add_argument("--tune", type=float, default=0.0, metavar="SECONDS",
                      help="to search live, from nothing, for each row")
    made.add_argument("--tune-rows", default="", metavar="NAMES",
                      help="rows that --tune means, by parts of names or by peers, with commas")
    made.add_argument("--pick", choices=("logs", "model"), default="logs",
                      help="what is ours: the best of logs and model, or the model's pick")
    made.add_argument("--store", type=Path, nargs="+", default=[], metavar="LOG",
                      help="records of other runs, SQLite or Parquet, to choose from")
    made.add_argument("--gpus", type=int, default=0, help="to share rows out to; all by default")
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
        How(args.tune, args.pick == "model", _names(args.tune_rows)), tuple(args.store),
        args.write_docs, args.build_only, args.scratch, args.target, args.device, args.seed,
        args.rounds, args.gpus,
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
    except ERRORS as error:
        print(f"suite_bench: {error}", file=sys.stderr)
        return 2
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
