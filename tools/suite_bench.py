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
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import Failed, Job, Outcome, Stage
from autosched.codegen.measure import Timing
from autosched.codegen.reference import write_given, write_program
from autosched.datasets.exchange import export_records
from autosched.datasets.place import StoreError
from autosched.datasets.store import Store
from autosched.datasets.suites import Suite, SuiteError, SuiteRow, in_turn, suite, suites
from autosched.ir.count import count
from autosched.ir.record import CHECKED_REFERENCE, Record, Status, utc_now
from autosched.ir.target import Target, TargetError, parse_target
from autosched.ir.text import to_text
from autosched.tools.campaign import Bench
from autosched.tools.gpu_lab import GpuJobs, GpuLab, GpuLimits, Setup, reason
from autosched.tools.gpu_peers_table import PEERS, Kind
from autosched.tools.gpu_probe import Device
from autosched.tools.gpu_report import toolchain
from autosched.tools.suite_ours import Finalist, Finder, How, Ours
from autosched.tools.suite_report import Result, document, short_table, table
from autosched.tools.triton_lab import TritonLab, task_name

LAST_S = 20.0  # kept for the row at hand and for writing
LIMITS = GpuLimits(prepare_s=180.0, measure_s=60.0, build_s=60.0)
_JOBS = "autosched.tools.suite_jobs"
# Seconds until a peer is given up: by how it comes by its kernel.
PEER_S: Mapping[Kind, float] = {Kind.LIBRARY: 60.0, Kind.COMPILED: 120.0, Kind.TUNED: 240.0}
RACE_S = 180.0
CEILINGS_S = 120.0
PACKAGES = ("torch", "triton", "helion")


class SuiteBenchError(ValueError):
    """A user's mistake, or a machine that can't do it: one message with the way out."""


@dataclass(frozen=True)
class Options:
    """What the command line says. rows, peers: names or parts of names; empty for all."""

    out: Path
    suite: str = "dense"
    minutes: float = 25.0
    rows: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    how: How = field(default_factory=How)
    store: Path | None = None
    write_docs: Path | None = None
    build_only: bool = False
    target: str = "sm_90"
    device: str = "cuda"
    seed: int = 0
    rounds: int = 15
    command: str = "autosched bench --suite dense"

    @property
    def signature(self) -> dict[str, Any]:
        """What a row's result depends on: another one is not resumed."""
        return {"target": self.target, "device": self.device, "seed": self.seed,
                "tune_s": self.how.tune_s, "model_only": self.how.model_only,
                "build_only": self.build_only}  # fmt: skip


def select(chosen: Suite, options: Options) -> tuple[SuiteRow, ...]:
    """The rows that match one of the patterns, with the peers that are wanted.

    Raises: SuiteBenchError where a pattern matches nothing.
    """
    every = in_turn(g.rows for g in chosen.groups.values())
    for pattern in options.rows:
        if not any(pattern in r.name for r in every):
            raise SuiteBenchError(f"no row of {chosen.name} is called {pattern!r}; --plan lists "
                                  "them")  # fmt: skip
    if unknown := [p for p in options.peers if p not in PEERS]:
        raise SuiteBenchError(f"no peer is called {unknown[0]!r}; there are: {', '.join(PEERS)}")
    rows = chosen.rows
    if options.rows:
        rows = tuple(r for r in every if any(p in r.name for p in options.rows))
    if options.peers:
        kept = set(options.peers)
        rows = tuple(replace(r, peers=tuple(p for p in r.peers if p in kept)) for r in rows)
    return rows


def plan_table(rows: Sequence[SuiteRow]) -> str:
    """The rows and their peers; needs no GPU."""
    cells = [(r.name, r.source, ", ".join(r.peers)) for r in rows]
    words = [(n, p.words, p.kind.value) for n, p in PEERS.items()
             if any(n in r.peers for r in rows)]  # fmt: skip
    return "\n".join((table(("row", "of", "peers"), cells), table(("peer", "is", "kind"), words)))


# ---- a run -------------------------------------------------------------------------------------


class Folder:
    """The results of a run, in files that grow row by row; use as a context manager."""

    def __init__(self, options: Options) -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        self._out, self._signature = options.out, options.signature
        self._rows = options.out / "rows.jsonl"
        self.store = Store(options.out / "records.sqlite")

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def results(self) -> list[Result]:
        """Rows that were done with these very options; the last result of each."""
        if not self._rows.exists():
            return []
        found = {}
        for line in self._rows.read_text("utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the line that a kill cut short
                data = json.loads(line)
                if data["options"] == self._signature:
                    found[data["row"]["name"]] = Result(data)
        return list(found.values())

    def add(self, data: Mapping[str, Any]) -> None:
        with open(self._rows, "a", encoding="utf-8") as file:
            file.write(json.dumps({**data, "options": self._signature}) + "\n")

    def finish(self, text: str, docs: Path | None) -> None:
        (self._out / "table.md").write_text(text, "utf-8")
        export_records(self.store, self._out / "records.parquet")
        if docs is not None:
            docs.parent.mkdir(parents=True, exist_ok=True)
            docs.write_text(text, "utf-8")


@dataclass(frozen=True)
class Runner:
    """The parts that work together on one row after the other."""

    lab: GpuLab
    finder: Finder
    bench: Bench
    folder: Folder
    options: Options
    until: float  # monotonic seconds

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    def row(self, row: SuiteRow) -> dict[str, Any]:
        """Everything about one row, as JSON."""
        begun = time.monotonic()
        program = row.program()
        work = count(program)
        place = self.lab.place(task_name(program.key))
        write_program(place, program)
        if arrays := row.arrays():
            write_given(place, arrays)
        data: dict[str, Any] = {
            "row": row.to_json(), "workload": program.key, "when": utc_now(),
            "bytes": work.read_bytes + work.write_bytes, "flops": work.contraction_flops,
            "notes": [],
        }  # fmt: skip
        if self.lab.measurer is not None:
            prepared = self.lab.prepare(place.name)
            if isinstance(prepared, Failed):
                data["notes"].append(f"no reference: {reason(prepared)[:300]}")
                return self._closed(data, begun)
        ours = self.finder.find(row, max(0.0, self.left_s - LAST_S))
        data |= {"ours_s": ours.seconds, "tried": ours.tried, "failures": dict(ours.failures),
                 "known": ours.known, "built": len(ours.finalists)}  # fmt: skip
        if not ours.finalists:
            failed = ", ".join(f"{n} x {s}" for s, n in ours.failures.items())
            data["notes"].append(f"nothing of ours: {ours.note or failed or 'no schedule'}")
        if self.lab.measurer is not None:
            self._race(row, place, ours, data)
        return self._closed(data, begun)

    def _closed(self, data: dict[str, Any], begun: float) -> dict[str, Any]:
        data["note"] = "; ".join(data.pop("notes"))
        data["seconds"] = round(time.monotonic() - begun, 2)
        return data

    # -- peers -----------------------------------------------------------------------------

    def _race(self, row: SuiteRow, place: Path, ours: Ours, data: dict[str, Any]) -> None:
        peers, data["refused"], data["peer_s"] = [], {}, {}
        for name in row.peers:
            outcome = self._run("prepare_peer", PEER_S[PEERS[name].kind], folder=str(place),
                                facts=row.to_json(), name=name)  # fmt: skip
            why = reason(outcome) if isinstance(outcome, Failed) else outcome.value.get("refused")
            if why is not None:
                data["refused"][name] = _missing(name, why)
            else:
                peers.append(name)
                data["peer_s"][name] = outcome.value["seconds"]
        raced = self._raced(row, place, ours, peers, data)
        if raced is None:
            return
        data["refused"] |= raced["refused"]
        data |= {k: raced[k] for k in ("ours", "peers", "scales", "pairs", "torch")}
        if raced["pairs"] is not None:
            whole = row.sizes["i"] * row.sizes["j"]
            data["flops"] = round(data["flops"] * raced["pairs"] / whole)
        self._store(row, data)

    def _raced(
        self, row: SuiteRow, place: Path, ours: Ours, peers: Sequence[str], data: dict[str, Any]
    ) -> dict[str, Any] | None:
        """The race of the fastest schedule of ours that is right; of the peers alone where none
        is. A race that was lost is run once more with library calls alone."""
        library = [p for p in peers if PEERS[p].kind is Kind.LIBRARY]
        for finalist in (*ours.finalists, None):
            if finalist is None and not peers:
                return None
            builds = [] if finalist is None else [
                {"entry": finalist.build.entry, "bound": finalist.build.bound}]  # fmt: skip
            for some in ([peers, library] if len(library) < len(peers) else [peers]):
                outcome = self._run(
                    "run_race", RACE_S, folder=str(place), facts=row.to_json(), ours=builds,
                    peers=list(some), launcher=self.lab.setup.launcher,
                    rounds=self.options.rounds,
                )  # fmt: skip
                if not isinstance(outcome, Failed):
                    found: dict[str, Any] = outcome.value
                    if finalist is not None:
                        found["ours"] |= _described(finalist)
                    return found
                data["notes"].append(f"{_who(finalist)}: {outcome.status.value}: "
                                     f"{reason(outcome)[:200]}")  # fmt: skip
                if outcome.status in (Status.WRONG_RESULT, Status.NAN_RESULT):
                    self._condemn(row, finalist, outcome)
                    break  # the next of ours; the peers are not to blame
        return None

    def _run(self, function: str, limit_s: float, **facts: Any) -> Outcome:
        assert self.lab.measurer is not None
        given = {**facts, "seed": self.options.seed, "device": self.options.device}
        return self.lab.measurer.run(Job(f"{_JOBS}:{function}", given, Stage.RUN, limit_s))

    # -- records ---------------------------------------------------------------------------

    def _store(self, row: SuiteRow, data: Mapping[str, Any]) -> None:
        """The race as records: ours, and every peer."""
        runners = {f"torch-{data['torch']} {n}": r for n, r in data["peers"].items()}
        records = [self._record(row, {"peer": n}, r) for n, r in runners.items()]
        if (ours := data["ours"]) is not None:
            records.append(self._record(row, ours["schedule"], ours))
        program = row.program()
        self.folder.store.add(records, {program.key: to_text(program)})

    def _record(self, row: SuiteRow, schedule: Any, runner: Mapping[str, Any]) -> Record:
        timing = Timing.of(runner["warm_us"])
        return self._base(
            row, schedule, Status.OK, latency_us=timing.median_us, spread_us=timing.spread_us,
            extra={"rel_l2": runner["rel_l2"], "cache": "warm", "paired": True, "final": True,
                   "program": row.name, "cold_us": list(runner["cold_us"])},
        )  # fmt: skip

    def _condemn(self, row: SuiteRow, finalist: Finalist | None, failed: Failed) -> None:
        """What was wrong on other data must not be chosen again."""
        assert finalist is not None, "only ours is checked as ours"
        record = self._base(row, finalist.schedule.to_json(), failed.status, error=failed.reason,
                            extra={"program": row.name})  # fmt: skip
        program = row.program()
        self.folder.store.add([record], {program.key: to_text(program)})

    def _base(self, row: SuiteRow, schedule: Any, status: Status, **more: Any) -> Record:
        target = self.bench.target
        return Record.of(
            workload=row.program().key, target=target.key, schedule=schedule, status=status,
            toolchain=self.bench.toolchain, device=target.device, threads=self.bench.threads,
            checked=CHECKED_REFERENCE, **more,
        )  # fmt: skip


def _missing(name: str, why: str) -> str:
    package = PEERS[name].package
    gone = package and f"No module named '{package}'" in why
    return "not installed" if gone else why.splitlines()[0][:300]


def _who(finalist: Finalist | None) -> str:
    return "the peers" if finalist is None else "ours"


def _described(finalist: Finalist) -> dict[str, Any]:
    return {"by": finalist.by, "schedule": finalist.schedule.to_json(),
            "facts": dict(finalist.facts)}  # fmt: skip


# ---- as a whole --------------------------------------------------------------------------------


def run(options: Options, say: Callable[[str], None] = print, jobs: GpuJobs | None = None) -> str:
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
        Folder(options) as folder,
        tempfile.TemporaryDirectory(prefix="autosched-suite-") as scratch,
        GpuLab(Path(scratch), setup, jobs=jobs, limits=LIMITS, measurer_env=env,
               measure=not options.build_only) as lab,
        _known(options.store, folder.store),
    ):  # fmt: skip
        device = _device(lab, target)
        facts = _facts(options, lab, device)
        bench = Bench(target if options.device == "cpu" else replace(target, device=device),
                      toolchain(f"triton-{version('triton')}"), 1, options.seed)  # fmt: skip
        where = None if options.build_only else Device(device, target.arch, options.device)
        triton = TritonLab(Path(scratch), options.target, options.seed, where, lab=lab)
        finder = Finder(triton, folder.store, bench, options.how)
        runner = Runner(lab, finder, bench, folder, options, begun + 60 * options.minutes)
        _rows(rows, runner, say)
        results = [r for r in folder.results() if r.name in {row.name for row in rows}]
        folder.finish(document(chosen, results, facts), options.write_docs)
    return short_table(chosen, results)


def _rows(rows: Sequence[SuiteRow], runner: Runner, say: Callable[[str], None]) -> None:
    """Every row that is not done yet, as far as the time goes."""
    done = {r.name for r in runner.folder.results()}
    left = [row for row in rows if row.name not in done]
    if len(left) < len(rows):
        say(f"{len(rows) - len(left)} rows were done before")
    for number, row in enumerate(left):
        if runner.left_s <= LAST_S:
            say(f"time is up: {len(left) - number} rows left out; the same command goes on")
            return
        try:
            data = runner.row(row)
        except KeyboardInterrupt:
            say("interrupted: what was measured is stored; the same command goes on")
            return
        runner.folder.add(data)
        say(_line(Result(data)))


def _line(result: Result) -> str:
    """One row as it is done."""
    found = result.ratio("best")
    us = result.us()
    words = [result.name, f"{us:.1f} µs" if us is not None else
             f"{result.data.get('built', 0)} built", "" if found is None else
             f"{found} of {result.against('best')}", str(result.data["note"])]  # fmt: skip
    return "  ".join(filter(None, words)) + f"  [{result.data['seconds']:.0f} s]"


@contextlib.contextmanager
def _known(path: Path | None, store: Store) -> Iterator[None]:
    """Lends the records of another store to this run's."""
    if path is not None:
        if not path.exists():
            raise SuiteBenchError(f"there is no record store at {path}")
        with Store(path) as other:
            store.add(other.records(peers=False), other.workloads())
    yield


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


def _facts(options: Options, lab: GpuLab, device: str) -> dict[str, Any]:
    """What the report's preface says, with the ceilings measured now."""
    ceilings: dict[str, float] = {}
    if lab.measurer is not None:
        outcome = lab.measurer.run(Job(f"{_JOBS}:ceilings", {"device": options.device}, Stage.RUN,
                                       CEILINGS_S))  # fmt: skip
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
    made.add_argument("--build-only", action="store_true", help="build ours, measure nothing")
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
        args.target, args.device, args.seed, args.rounds,
        " ".join(["python -m autosched.tools.suite_bench", *given]),
    )  # fmt: skip
    try:
        if args.plan:
            print(plan_table(select(suite(args.suite), options)))
            return 0
        if args.out is None:
            raise SuiteBenchError("name a folder for the results: --out DIR")
        print("\n" + run(options, lambda text: print(text, flush=True)))
    except (SuiteBenchError, SuiteError, TargetError, StoreError) as error:
        print(f"suite_bench: {error}", file=sys.stderr)
        return 2
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
