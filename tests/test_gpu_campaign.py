"""The campaign with a fake GPU: what is stored, what faults cost, how it keeps to its time."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autosched.codegen.jobs import Failed, Job, Ok
from autosched.datasets.exchange import import_records
from autosched.datasets.store import Store
from autosched.ir.record import CHECKED_REFERENCE, Status
from autosched.ir.schedule import Schedule, replay
from autosched.ir.sketches import sketches
from autosched.ir.target import parse_target
from autosched.tools.gpu_campaign import main, select
from autosched.tools.gpu_lab import GpuJobs, GpuLab, GpuLimits, Measurer, Setup
from autosched.tools.gpu_plan import pick
from autosched.tools.gpu_programs import Case, cases, product, softmax

ROOT = Path(__file__).resolve().parent.parent
FAKES = "gpu_fake_jobs"
JOBS = GpuJobs(
    plan=f"{FAKES}:plan", build=f"{FAKES}:build_schedule", warm_up=f"{FAKES}:warm_up",
    prepare=f"{FAKES}:prepare", measure=f"{FAKES}:measure", versus=f"{FAKES}:versus",
    builder_modules=(FAKES,), measurer_modules=(FAKES,), packages=(FAKES,),
)  # fmt: skip
LIMITS = GpuLimits(measure_s=2.0)
SM90 = parse_target("sm_90")


@pytest.fixture(autouse=True)
def fakes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def case(name: str, size: int) -> Case:
    return Case(name, lambda: softmax(size, 8, "float32"), ("softmax",))


def campaign(out: Path, names: list[str], *more: str) -> int:
    chosen = [case(name, 4 + n) for n, name in enumerate(names)]
    return main(["--out", str(out), "--builders", "1", *more], JOBS, LIMITS, chosen)


def test_every_attempt_is_stored_and_a_fault_costs_only_itself(tmp_path, capsys):
    assert campaign(tmp_path, ["mixed", "unprepared", "unplanned", "plain"],
                    "--schedules", "14", "--minutes", "2") == 0  # fmt: skip
    with Store(tmp_path / "records.sqlite") as store:
        ours = store.records(peers=False)
        assert all(r.device == "a fake" and r.extra["launcher"] == "cubin" for r in ours)
        mixed = [r for r in ours if r.extra["program"] == "mixed" and "paired" not in r.extra]
        by = {s: sum(r.status is s for r in mixed) for s in Status}
        assert by[Status.OK] == by[Status.WRONG_RESULT] == by[Status.RUN_FAILED] == 2
        assert by[Status.RUN_CRASHED] == by[Status.UNSUPPORTED] == 2
        assert by[Status.BUILD_FAILED] == by[Status.RUN_TIMEOUT] == 2
        ok = next(r for r in mixed if r.ok)
        assert ok.checked == CHECKED_REFERENCE and ok.extra["registers"] > 0
        assert ok.extra["cache"] == "warm" and ok.extra["rel_l2"] == 1e-7
        assert all(len(r.error) <= 2000 for r in mixed if r.error)
        (peer,) = {r.peer for r in store.records(peers=True)}
        assert peer == "torch-2 softmax"
        stored = len(store.records())
    rows = list(csv.DictReader((tmp_path / "failures.csv").read_text().splitlines()))
    assert len(rows) == 12 and {r["program"] for r in rows} == {"mixed"}
    assert any("illegal memory access" in r["reason"] for r in rows)
    assert "Segmentation fault" in " ".join(r["reason"] for r in rows)
    table = (tmp_path / "table.md").read_text()
    assert "| mixed | 100.0 | 0 | 150.0 | softmax | 1.50 | 2 | 12 |" in table
    assert "no reference: ValueError: reads out of range" in table
    assert "no schedules: ValueError: no such rule" in table
    with Store(tmp_path / "again.sqlite") as again:
        assert import_records(again, tmp_path / "records.parquet") == stored
    winners = [json.loads(x) for x in (tmp_path / "winners.jsonl").read_text().splitlines()]
    assert [w["program"] for w in winners] == ["mixed", "plain"]
    assert "def one(x, y)" in winners[0]["source"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["processes_lost"] == 6  # two illegal accesses, crashes and hangs
    assert summary["slowest_recovery_s"] < 3.0
    assert capsys.readouterr().out.rstrip().endswith("|")


def test_it_keeps_to_its_time(tmp_path, capsys):
    begun = time.monotonic()
    campaign(tmp_path / "a", ["slow", "slow", "late"], "--schedules", "60", "--minutes", "0.35")
    assert time.monotonic() - begun < 25
    assert "schedules not tried: time" in (tmp_path / "a" / "table.md").read_text()
    campaign(tmp_path / "b", ["plain", "late"], "--minutes", "0.1")
    assert "time is up: 2 programs left out" in capsys.readouterr().out


def test_a_program_has_its_share_of_the_time(tmp_path):
    campaign(tmp_path, ["slow", "plain"], "--schedules", "20", "--per-program", "1")
    table = (tmp_path / "table.md").read_text()
    assert "of 20 schedules not tried: time" in table
    assert "| plain | 100.0 " in table


def test_building_needs_no_device(tmp_path):
    assert campaign(tmp_path, ["mixed"], "--schedules", "7", "--build-only") == 0
    assert "| 5 | 2 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("arguments, words", [
    (["--list", "--programs", "nonsense"], "no program is called 'nonsense'"),
    ([], "name a folder for the results"),
    (["--out", "{out}", "--target", "sm_12"], "unknown target 'sm_12'"),
    (["--out", "{out}", "--device", "cpu"], "Found no NVIDIA driver"),
    (["--out", "{out}", "--target", "sm_80"], "this device is sm_90, the target is sm_80"),
])  # fmt: skip
def test_mistakes_are_one_message(tmp_path, capsys, arguments, words):
    chosen = None if "--list" in arguments else [case("plain", 4)]
    given = [a.format(out=tmp_path) for a in arguments]
    assert main(given, JOBS, LIMITS, chosen) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("gpu_campaign: ")


def test_a_folder_that_holds_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "records.sqlite").write_text("no database" * 100)
    assert campaign(tmp_path, ["plain"]) == 2
    assert capsys.readouterr().err.startswith("gpu_campaign: ")


# ---- the process that measures -----------------------------------------------------------------


def test_a_spare_takes_over_at_once():
    jobs, setup = JOBS, Setup("sm_90")
    measurer = Measurer(jobs, LIMITS, setup, {}, spares=1)
    try:
        assert isinstance(measurer.device(), Ok)
        good = Job(jobs.measure, {"folder": "f", "entry": "ok-100", "seed": 0})
        bad = Job(jobs.measure, {"folder": "f", "entry": "illegal-100", "seed": 0})
        first = measurer.run(good)
        time.sleep(1.0)  # the spare is there by now
        assert isinstance(measurer.run(bad), Failed)
        begun = time.monotonic()
        second = measurer.run(good)
        assert time.monotonic() - begun < 0.5
        assert isinstance(first, Ok) and isinstance(second, Ok)
        assert first.value["pid"] != second.value["pid"] and measurer.lost == 1
    finally:
        measurer.close()


def test_a_wrong_answer_does_not_cost_the_process():
    measurer = Measurer(JOBS, LIMITS, Setup("sm_90"), {}, spares=1)
    try:
        job = {"folder": "f", "seed": 0}
        first = measurer.run(Job(JOBS.measure, {**job, "entry": "ok-1"}))
        assert isinstance(measurer.run(Job(JOBS.measure, {**job, "entry": "wrong-1"})), Failed)
        second = measurer.run(Job(JOBS.measure, {**job, "entry": "ok-1"}))
        assert isinstance(first, Ok) and isinstance(second, Ok)
        assert first.value["pid"] == second.value["pid"] and measurer.lost == 0
    finally:
        measurer.close()


# ---- programs and plans ------------------------------------------------------------------------


def test_all_programs_are_there_and_have_schedules():
    names = [c.name for c in cases()]
    assert len(set(names)) == len(names) and len(select(())) == len(names)
    some = {c.name for c in select(("mm.4096x4096x128", "attn.causal*"))}
    assert "mm.4096x4096x128.bf16" in some and 1 < len(some) < len(names)
    for made in cases()[:3]:
        found = sketches(made.define(), SM90)
        tables = [s.table(1000, 0) for s in found]
        picked = pick(made.define(), SM90, found, tables, 50, 0)
        assert len(picked) == 50 == len({p.schedule.text for p in picked})
        heads = [p for p in picked if p.by == "head"]
        assert 20 <= len(heads) <= 25
        assert [p.estimate_us for p in heads] == sorted(p.estimate_us for p in heads)
        again = pick(made.define(), SM90, found, tables, 50, 0)
        assert [p.schedule.text for p in again] == [p.schedule.text for p in picked]
        for p in picked[::10]:
            schedule = Schedule.from_json(p.schedule.to_json())
            assert type(replay(made.define(), schedule)).__name__ == "Program"


# ---- from a checkout ---------------------------------------------------------------------------


def test_it_runs_from_a_checkout_that_is_not_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/bootstrap.py"), "autosched.tools.gpu_campaign",
         "--list", "--programs", "softmax"], capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [c.name for c in select(("softmax",))]


def test_links_stand_in_for_the_installed_package(tmp_path):
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from bootstrap import link_farm
    finally:
        sys.path.pop(0)
    link_farm(ROOT, tmp_path)
    code = ("import autosched.tools.gpu_campaign as c, autosched as a, importlib.metadata as m;"
            "print(c.__file__); print(a.__file__); print(m.version('autosched'))")
    # -S leaves out the .pth files, by which this environment has autosched installed.
    path = os.pathsep.join([str(tmp_path), str(Path(np.__file__).parent.parent)])
    done = subprocess.run([sys.executable, "-S", "-P", "-c", code], capture_output=True, text=True,
                          env={"PYTHONPATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two, number = done.stdout.split()
    assert one.startswith(str(tmp_path)) and two.startswith(str(tmp_path)) and number[0].isdigit()


def test_a_lab_that_only_builds_has_no_measurer(tmp_path):
    with GpuLab(tmp_path, Setup("sm_90"), builders=1, jobs=JOBS, measure=False) as lab:
        assert lab.measurer is None


def test_small_programs_go_all_the_way_in_the_interpreter(tmp_path):
    """The real jobs: planned, emitted, compiled, interpreted, checked, set beside torch."""
    small = [
        Case("rows", lambda: softmax(6, 20, "float32"), ("softmax",)),
        Case("mm", lambda: product(20, 40, 33, "float32"), ("mm", "mm.tf32")),
        Case("mm.tf32", lambda: product(20, 40, 33, "float32"), ("mm.tf32",), ("tf32",)),
    ]
    given = ["--out", str(tmp_path), "--device", "cpu", "--schedules", "2", "--builders", "1"]
    assert main(given, None, GpuLimits(measure_s=30.0), small) == 0
    with Store(tmp_path / "records.sqlite") as store:
        ours = store.records(peers=False)
        assert [r.error for r in ours if not r.ok] == []
        assert {r.extra["program"] for r in ours} == {c.name for c in small}
        assert len({r.target for r in ours}) == 2
        assert {r.peer.split(" ")[1] for r in store.records(peers=True)} == {
            "softmax", "mm", "mm.tf32"
        }  # fmt: skip
