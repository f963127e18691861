"""A row of a suite in, everything that is known of it out: ours found, peers made, the race run.

A peer is made in a job of its own, so that one that hangs or crashes costs only itself, and then
all that came out run in one race. A process that was lost makes them again from its own caches.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import Failed, Job, Outcome, Stage
from autosched.codegen.measure import Timing
from autosched.codegen.reference import write_given, write_program
from autosched.datasets.store import Store
from autosched.datasets.suites import SuiteRow
from autosched.ir.count import count
from autosched.ir.record import CHECKED_REFERENCE, Record, Status, utc_now
from autosched.ir.text import to_text
from autosched.tools.campaign import Bench
from autosched.tools.gpu_lab import GpuLab, reason
from autosched.tools.gpu_peers_table import PEERS, Kind
from autosched.tools.suite_ours import Finalist, Finder, Ours
from autosched.tools.triton_lab import task_name

LAST_S = 20.0  # kept for the row at hand and for writing
# Seconds until a peer is given up: by how it comes by its kernel.
PEER_S: Mapping[Kind, float] = {Kind.LIBRARY: 60.0, Kind.COMPILED: 120.0, Kind.TUNED: 240.0}
# Seconds that a peer takes as a rule: a row that would not be done in time is left to the next run.
USUAL_S: Mapping[Kind, float] = {Kind.LIBRARY: 1.0, Kind.COMPILED: 15.0, Kind.TUNED: 35.0}
RACE_S = 180.0
# Of a reference: data of other scales is left out where it would take longer.
SCALED_S = 5.0
REASON_CHARS = 300


@dataclass(frozen=True)
class Runner:
    """The parts that work together on one row after the other."""

    lab: GpuLab
    finder: Finder
    bench: Bench
    store: Store
    rounds: int
    until: float  # monotonic seconds
    jobs: str = "autosched.tools.suite_jobs"

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    def fits(self, row: SuiteRow) -> bool:
        """Whether there is time for a row, going by its peers."""
        return self.left_s > LAST_S + _peers_s(row)

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
                data["notes"].append(f"no reference: {reason(prepared)[:REASON_CHARS]}")
                return _closed(data, begun)
            data["reference_s"] = prepared.value["seconds"]
        ours = self._found(row)
        data |= {"ours_s": ours.seconds, "tried": ours.tried, "failures": dict(ours.failures),
                 "known": ours.known, "built": len(ours.finalists)}  # fmt: skip
        if not ours.finalists:
            failed = ", ".join(f"{n} x {s}" for s, n in ours.failures.items())
            data["notes"].append(f"nothing of ours: {ours.note or failed or 'no schedule'}")
        if self.lab.measurer is not None:
            self._race(row, place, ours, data)
        return _closed(data, begun)

    def _found(self, row: SuiteRow) -> Ours:
        """Our schedules; a compiler's bug is this row's note, and the run goes on."""
        try:
            return self.finder.find(row, max(0.0, self.left_s - LAST_S - _peers_s(row)))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            return Ours((), None, 0, {}, 0, f"{type(error).__name__} at {where}: {error}")

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
                    peers=list(some), launcher=self.lab.setup.launcher, rounds=self.rounds,
                    scaled=data["reference_s"] <= SCALED_S,
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
        setup = self.lab.setup
        given = {**facts, "seed": setup.seed, "device": setup.device}
        return self.lab.measurer.run(Job(f"{self.jobs}:{function}", given, Stage.RUN, limit_s))

    # -- records ---------------------------------------------------------------------------

    def _store(self, row: SuiteRow, data: Mapping[str, Any]) -> None:
        """The race as records: ours, and every peer."""
        runners = {f"torch-{data['torch']} {n}": r for n, r in data["peers"].items()}
        records = [self._record(row, {"peer": n}, r) for n, r in runners.items()]
        if (ours := data["ours"]) is not None:
            records.append(self._record(row, ours["schedule"], ours))
        program = row.program()
        self.store.add(records, {program.key: to_text(program)})

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


def _who(finalist: Finalist | None) -> str:
    return "the peers" if finalist is None else "ours"


def _described(finalist: Finalist) -> dict[str, Any]:
    return {"by": finalist.by, "schedule": finalist.schedule.to_json(),
            "facts": dict(finalist.facts)}  # fmt: skip
