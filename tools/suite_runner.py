"""A row of a suite in, everything that is known of it out: ours found, peers made, the race run.

A peer is made in a job of its own, so that one that hangs or crashes costs only itself, and then
all that came out run in one race. A process that was lost makes them again from its own caches.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from autosched.codegen.jobs import Failed, Job, Outcome, Stage
from autosched.codegen.measure import Timing
from autosched.datasets.store import Store
from autosched.datasets.suites import SuiteRow
from autosched.ir.count import count
from autosched.ir.record import CHECKED_REFERENCE, Record, Status, utc_now
from autosched.ir.text import to_text
from autosched.tools.campaign import Bench
from autosched.tools.gpu_lab import GpuLab, reason
from autosched.tools.gpu_peers_table import PEERS, Kind
from autosched.tools.suite_options import How
from autosched.tools.suite_ours import Ahead, Finalist, Finder, Ours
from autosched.tools.triton_lab import task_name

_T = TypeVar("_T")
LAST_S = 10.0  # kept for the row at hand and for writing
# Seconds until a peer is given up: by how it comes by its kernel.
PEER_S: Mapping[Kind, float] = {Kind.LIBRARY: 30.0, Kind.COMPILED: 60.0, Kind.TUNED: 120.0}
# Seconds that a peer takes as a rule: a row that would not be done in time is left to the next run.
USUAL_S: Mapping[Kind, float] = {Kind.LIBRARY: 0.5, Kind.COMPILED: 3.0, Kind.TUNED: 20.0}
RACE_S = 120.0
# Seconds that data of other scales may take, each as long as the reference.
SCALED_S = 4.0
SCALES = (8.0, 0.125)
REASON_CHARS = 300


@dataclass(frozen=True)
class Runner:
    """The parts that work together on one row after the other."""

    lab: GpuLab
    finder: Finder
    bench: Bench
    store: Store
    rounds: int
    how: How
    until: float  # monotonic seconds
    jobs: str = "autosched.tools.suite_jobs"

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    def fits(self, row: SuiteRow) -> bool:
        """Whether there is time for a row, going by its peers."""
        return self.left_s > LAST_S + _peers_s(row) + self.how.tune_s * self.how.tunes(row)

    def row(self, row: SuiteRow, ahead: Future[Ahead]) -> dict[str, Any]:
        """Everything about one row, as JSON. ahead: its schedules, as they are chosen."""
        begun = time.monotonic()
        program = row.program()
        work = count(program)
        place = self.lab.place(task_name(program.key))
        data: dict[str, Any] = {
            "row": row.to_json(), "workload": program.key, "when": utc_now(),
            "bytes": work.read_bytes + work.write_bytes, "flops": work.contraction_flops,
            "notes": [],
        }  # fmt: skip
        measured = self.lab.measurer is not None
        tuned = self._tuned(row, data) if measured and self.how.tunes(row) else None
        if measured:
            prepared = self.lab.prepare(place.name)
            if isinstance(prepared, Failed):
                data["notes"].append(f"no reference: {reason(prepared)[:REASON_CHARS]}")
                return _closed(data, begun)
            data["reference_s"] = prepared.value["seconds"]
            data["checked"] = prepared.value["checked"]  # share of the outputs
        ours = _tried(lambda: self.finder.find(ahead.result()), Ours((), 0), data)
        data |= {"tried": ours.tried, "failures": dict(ours.failures), "known": ours.known,
                 "built": len(ours.finalists)}  # fmt: skip
        if not ours.finalists:
            failed = ", ".join(f"{n} x {s}" for s, n in ours.failures.items())
            data["notes"].append(f"nothing of ours: {ours.note or failed or 'no schedule'}")
        data["found_s"] = round(time.monotonic() - begun, 2)
        if measured:
            finalists, keep = _merged(ours.finalists, tuned)
            self._race(row, place, finalists, keep, data)
        return _closed(data, begun)

    def _tuned(self, row: SuiteRow, data: dict[str, Any]) -> Finalist | None:
        """The best of a live search, whose facts go to `data`."""
        self.finder.busy(True)
        try:
            found = _tried(lambda: self.finder.tune(row, self.how.tune_s), None, data)
        finally:
            self.finder.busy(False)
        if found is None:
            return None
        data["tuned"] = {"seconds": found.seconds, "tried": found.tried,
                         "best": [list(b) for b in found.best]}  # fmt: skip
        return found.finalist

    # -- peers -----------------------------------------------------------------------------

    def _race(
        self, row: SuiteRow, place: Path, ours: Sequence[Finalist], keep: int | None,
        data: dict[str, Any],
    ) -> None:  # fmt: skip
        """keep: number of the one that a live search found."""
        peers, data["refused"], data["peer_s"] = [], {}, {}
        for name in row.peers:
            kind = PEERS[name].kind
            self.finder.busy(kind is Kind.TUNED)
            outcome = self._run("prepare_peer", PEER_S[kind], folder=str(place),
                                facts=row.to_json(), name=name)  # fmt: skip
            why = reason(outcome) if isinstance(outcome, Failed) else outcome.value.get("refused")
            if why is not None:
                data["refused"][name] = _missing(name, why)
            else:
                peers.append(name)
                data["peer_s"][name] = outcome.value["seconds"]
        self.finder.busy(False)
        begun = time.monotonic()
        raced = self._raced(row, place, ours, keep, peers, data)
        data["race_s"] = round(time.monotonic() - begun, 2)
        if raced is None:
            return
        data["refused"] |= raced["refused"]
        data |= {k: raced[k] for k in ("ours", "peers", "scales", "pairs", "torch")}
        if raced["tuned"] is not None:
            data["tuned"] |= raced["tuned"]
        if raced["pairs"] is not None:
            whole = row.sizes["i"] * row.sizes["j"]
            data["flops"] = round(data["flops"] * raced["pairs"] / whole)
        self._store(row, data)

    def _raced(
        self, row: SuiteRow, place: Path, ours: Sequence[Finalist], keep: int | None,
        peers: Sequence[str], data: dict[str, Any],
    ) -> dict[str, Any] | None:  # fmt: skip
        """The race of ours that are right and of the peers. One that was lost is run again with
        library calls alone, then with the first of ours, then without ours."""
        library = [p for p in peers if PEERS[p].kind is Kind.LIBRARY]
        choices = [list(peers), library] if len(library) < len(peers) else [list(peers)]
        spent, scales = 0.0, []
        for scale in SCALES:
            spent += data["reference_s"]
            scales += [scale] * (spent <= SCALED_S)
        for few in dict.fromkeys((len(ours), min(1, len(ours)), 0)):
            some = ours[:few]
            if not some and not peers:
                return None
            for beside in choices:
                outcome = self._run(
                    "run_race", RACE_S, folder=str(place), facts=row.to_json(),
                    ours=[{"entry": f.build.entry, "bound": f.build.bound} for f in some],
                    keep=[] if keep is None or keep >= len(some) else [keep], peers=beside,
                    launcher=self.lab.setup.launcher, rounds=self.rounds, scales=scales,
                )  # fmt: skip
                if not isinstance(outcome, Failed):
                    return self._told(row, some, keep, outcome.value, data)
                data["notes"].append(f"{'ours' if some else 'the peers'}: {outcome.status.value}: "
                                     f"{reason(outcome)[:200]}")  # fmt: skip
        return None

    def _told(
        self, row: SuiteRow, ours: Sequence[Finalist], keep: int | None,
        found: Mapping[str, Any], data: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """What a race says, with the schedules of what was raced; who was wrong is recorded."""
        for number, (status, why) in found["wrong"].items():
            finalist = ours[int(number)]
            data["notes"].append(f"ours ({finalist.by}): {status}: {why[:200]}")
            self._condemn(row, finalist, Status(status), why)
        results = {int(n): {**r, **_described(ours[int(n)])} for n, r in found["ours"].items()}
        best = found["best"]
        kept: Mapping[str, Any] | None = None if keep is None else results.get(keep)
        return {**found, "ours": None if best is None else results[int(best)], "tuned": kept}

    def _run(self, function: str, limit_s: float, **facts: Any) -> Outcome:
        assert self.lab.measurer is not None
        setup = self.lab.setup
        given = {**facts, "seed": setup.seed, "device": setup.device}
        return self.lab.measurer.run(Job(f"{self.jobs}:{function}", given, Stage.RUN, limit_s))

    # -- records ---------------------------------------------------------------------------

    def _store(self, row: SuiteRow, data: Mapping[str, Any]) -> None:
        """The race as records: ours, and every peer."""
        runners = {f"torch-{data['torch']} {n}": r for n, r in data["peers"].items()}
        records = [self._record(row, {"peer": n}, r) for n, r in runners.items()]
        mine = {str(r["schedule"]): r for r in (data["ours"], data.get("tuned"))
                if r is not None and "schedule" in r}  # fmt: skip
        records += [self._record(row, r["schedule"], r) for r in mine.values()]
        program = row.program()
        self.store.add(records, {program.key: to_text(program)})

    def _record(self, row: SuiteRow, schedule: Any, runner: Mapping[str, Any]) -> Record:
        timing = Timing.of(runner["warm_us"])
        return self._base(
            row, schedule, Status.OK, latency_us=timing.median_us, spread_us=timing.spread_us,
            extra={"rel_l2": runner["rel_l2"], "cache": "warm", "paired": True, "final": True,
                   "program": row.name, "cold_us": list(runner["cold_us"])},
        )  # fmt: skip

    def _condemn(self, row: SuiteRow, finalist: Finalist, status: Status, why: str) -> None:
        """What was wrong on other data must not be chosen again."""
        record = self._base(row, finalist.schedule.to_json(), status, error=why,
                            extra={"program": row.name})  # fmt: skip
        program = row.program()
        self.store.add([record], {program.key: to_text(program)})

    def _base(self, row: SuiteRow, schedule: Any, status: Status, **more: Any) -> Record:
        target = self.bench.target
        return Record.of(
            workload=row.program().key, target=target.key, schedule=schedule, status=status,
            toolchain=self.bench.toolchain, device=target.device, threads=self.bench.threads,
            checked=CHECKED_REFERENCE, **more,
        )  # fmt: skip


def _peers_s(row: SuiteRow) -> float:
    return sum(USUAL_S[PEERS[name].kind] for name in row.peers)


def _closed(data: dict[str, Any], begun: float) -> dict[str, Any]:
    data["note"] = "; ".join(data.pop("notes"))
    data["seconds"] = round(time.monotonic() - begun, 2)
    return data


def _missing(name: str, why: str) -> str:
    package = PEERS[name].package
    gone = package and f"No module named '{package}'" in why
    return "not installed" if gone else why.splitlines()[0][:REASON_CHARS]


def _tried(make: Callable[[], _T], otherwise: _T, data: dict[str, Any]) -> _T:
    """What is made; a compiler's bug is this row's note, and the run goes on."""
    try:
        return make()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        data["notes"].append(f"{type(error).__name__} at {where}: {error}")
        return otherwise


def _merged(
    ours: Sequence[Finalist], tuned: Finalist | None
) -> tuple[tuple[Finalist, ...], int | None]:
    """All that are raced, each schedule once, and the number of the tuned one."""
    if tuned is None:
        return tuple(ours), None
    texts = [f.schedule.text for f in ours]
    if tuned.schedule.text in texts:
        return tuple(ours), texts.index(tuned.schedule.text)
    return (*ours, tuned), len(ours)


def _described(finalist: Finalist) -> dict[str, Any]:
    return {"by": finalist.by, "schedule": finalist.schedule.to_json(),
            "facts": dict(finalist.facts)}  # fmt: skip
