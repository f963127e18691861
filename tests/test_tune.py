"""The tuner on a small real model: right, resumable, and unmoved by kernels that misbehave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tune_jobs
from onnx_models import onnxruntime_of

from autosched.codegen.package import WriteError
from autosched.codegen.runtime.model import load
from autosched.datasets.store import Store
from autosched.examples import example_inputs, make_example
from autosched.ir.graph import ModelError
from autosched.ir.record import CHECKED_REFERENCE, Status
from autosched.ir.target import TargetError
from autosched.tools.lab import JOBS, LIMITS
from autosched.tools.toolchain import toolchain
from autosched.tools.tune import tune
from autosched.tools.tuning import (
    STAGES,
    Event,
    RecordEvent,
    StageEvent,
    TaskEvent,
    TuningError,
    TuningResult,
)

TESTS = Path(__file__).parent
SEQUENCE = 16
SHAPES = {"input_ids": (1, SEQUENCE), "attention_mask": (1, SEQUENCE)}
QUICK = replace(LIMITS, timing_s=0.005, final_s=0.005, rounds=2, pair_rounds=1, measure_s=5.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_example("tiny_encoder", tmp_path_factory.mktemp("model") / "tiny.onnx")


class Tuned:
    """One run of the tuner with what it reported."""

    def __init__(self, model: Path, folder: Path, **options: Any) -> None:
        self.events: list[Event] = []
        self.store = options.pop("store", folder / "records.sqlite")
        hook = options.pop("hook", lambda event: None)

        def progress(event: Event) -> None:
            self.events.append(event)
            hook(event)

        self.out = folder / options.pop("out", "tuned")
        self.result: TuningResult = tune(
            model, self.out, shapes=SHAPES, store=self.store, limits=options.pop("limits", QUICK),
            progress=progress, **options,
        )  # fmt: skip

    def of(self, kind: type) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]

    @property
    def choices(self) -> dict[str, tuple[str, dict[str, int]]]:
        return {t.name: (t.sketch, dict(t.knobs)) for t in self.result.tasks}


@pytest.fixture(scope="module")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return Tuned(model, tmp_path_factory.mktemp("tuned"), trials=24)


def check_answers(model: Path, package: Path) -> None:
    """The package answers as onnxruntime does."""
    inputs = example_inputs("tiny_encoder", 1, SEQUENCE)
    ours, theirs = load(package).run(inputs), onnxruntime_of(model, inputs)
    for name, want in theirs.items():
        assert np.linalg.norm(ours[name] - want) <= 1e-5 * np.linalg.norm(want)


# -- a whole run -----------------------------------------------------------------------------


def test_the_package_answers_as_onnxruntime(tuned: Tuned, model: Path) -> None:
    check_answers(model, tuned.out)


def test_every_task_is_tuned_once_and_compared(tuned: Tuned) -> None:
    tasks = tuned.result.tasks
    assert len({t.key for t in tasks}) == len(tasks) and any(t.count > 1 for t in tasks)
    assert all(t.tuned_us and t.tries >= 1 and t.checked == CHECKED_REFERENCE for t in tasks)
    assert sum(t.peer_us is not None for t in tasks) >= 0.8 * len(tasks)
    assert sum(t.share for t in tasks) == pytest.approx(1.0)
    assert tuned.result.speedup and tuned.result.covered > 0.99
    assert tuned.result.trials == sum(t.tries for t in tasks) == 24


def test_what_it_reports(tuned: Tuned) -> None:
    stages = [e.name for e in tuned.of(StageEvent)]
    assert stages == [s for s in STAGES if s in stages] and stages[-1] == "done"
    assert len(tuned.of(RecordEvent)) == 24
    last = {e.key: e for e in tuned.of(TaskEvent)}
    for t in tuned.result.tasks:
        assert last[t.key].best_us == pytest.approx(t.tuned_us)
        assert last[t.key].peer_us == t.peer_us


def test_results_are_plain_json(tuned: Tuned) -> None:
    data = json.loads(json.dumps(tuned.result.to_json(), allow_nan=False))
    assert data["tasks"][0]["speedup"] == tuned.result.tasks[0].speedup
    assert Path(data["package"]) == tuned.out


def test_records_tell_the_whole_story(tuned: Tuned) -> None:
    with Store(tuned.store) as store:
        ours = store.records(peers=False)
        assert {r.workload for r in ours} == {t.key for t in tuned.result.tasks}
        tried = [r for r in ours if not r.extra.get("final")]
        assert len(tried) == 24 == len({(r.workload, r.schedule) for r in tried})
        good = [r for r in tried if r.ok]
        assert good and all(r.checked == CHECKED_REFERENCE and r.extra["rel_l2"] < 1e-5
                            and r.extra["cache"] == "warm" for r in good)  # fmt: skip
        assert all(store.workload(r.workload) for r in ours)
        assert {r.peer for r in store.records(peers=True)} == {"onnxruntime-" + _ort_version()}


def _ort_version() -> str:
    import onnxruntime

    return onnxruntime.__version__


# -- again, and on from there ------------------------------------------------------------------


def test_nothing_is_measured_twice(tuned: Tuned, model: Path, tmp_path: Path) -> None:
    """A resumed run with the same number of trials has nothing left to try."""
    again = Tuned(model, tmp_path, store=tuned.store, trials=24, resume=True)
    assert again.result.trials == 0 and not again.of(RecordEvent)
    assert again.result.reused >= 24
    check_answers(model, again.out)


def test_equal_records_make_equal_choices(tuned: Tuned, model: Path, tmp_path: Path) -> None:
    first = Tuned(model, tmp_path, store=tuned.store, trials=0, out="first")
    second = Tuned(model, tmp_path, store=tuned.store, trials=0, out="second")
    assert first.choices == second.choices and first.result.trials == 0
    packed = [(p / p.name / "weights.bin").read_bytes() for p in (first.out, second.out)]
    assert packed[0] == packed[1]


def test_trials_0_takes_the_pick_of_the_model(model: Path, tmp_path: Path) -> None:
    """Quickly, the same pick each time, from two threads on one store."""
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as both:
        runs = list(both.map(
            lambda n: Tuned(model, tmp_path, trials=0, seed=7, out=f"out{n}"), range(2)
        ))  # fmt: skip
    assert time.monotonic() - begun < 45
    assert runs[0].choices == runs[1].choices
    assert all(t.tries <= 2 for run in runs for t in run.result.tasks if not t.failures)
    for run in runs:
        check_answers(model, run.out)


def test_budget_is_kept(model: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    run = Tuned(model, tmp_path, budget_s=10.0)
    took = time.monotonic() - begun
    assert took < 10.0 + 6.0, run.result.seconds
    check_answers(model, run.out)


def test_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    run = Tuned(model, tmp_path, dry_run=True, budget_s=77.0)
    assert run.result.package is None and run.result.estimate_s == 77.0
    assert all(t.candidates > 0 and t.tuned_us is None for t in run.result.tasks)
    assert list(tmp_path.iterdir()) == []


# -- stopped on the way --------------------------------------------------------------------------


def _after(n: int, then: Callable[[], None]) -> Callable[[Event], None]:
    """A hook that acts once, at the n-th record."""
    seen = 0

    def hook(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, RecordEvent)
        if seen == n and isinstance(event, RecordEvent):
            then()

    return hook


def test_ctrl_c_saves_the_best_so_far(model: Path, tmp_path: Path) -> None:
    hook = _after(3, lambda: signal.raise_signal(signal.SIGINT))
    run = Tuned(model, tmp_path, budget_s=600.0, hook=hook)
    assert run.result.interrupted and run.result.stopped == "stopped by the user"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    check_answers(model, run.out)


def test_second_ctrl_c_ends_it(model: Path, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Tuned(model, tmp_path, budget_s=600.0, hook=_after(3, twice))
    assert not (tmp_path / "tuned").exists()
    with Store(tmp_path / "records.sqlite") as store:
        assert len(store.records(peers=False)) >= 3


_SCRIPT = """
import sys
from autosched.tools.tune import tune
from autosched.tools.tuning import RecordEvent
model, out, store = sys.argv[1:]
tune(model, out, shapes={"input_ids": (1, 16), "attention_mask": (1, 16)}, store=store,
     budget_s=600, progress=lambda e: isinstance(e, RecordEvent) and print("record", flush=True))
"""


def test_kill_9_loses_nothing_measured(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "records.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(model), str(tmp_path / "killed"), str(store)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(3)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert told == ["record\n"] * 3 and not (tmp_path / "killed").exists()
    toolchain.cache_clear()  # the sources may have been edited since these tests began
    run = Tuned(model, tmp_path, trials=8, resume=True)
    assert run.result.reused >= 3
    with Store(store) as opened:
        tried = [r for r in opened.records(peers=False) if not r.extra.get("final")]
    assert len({(r.workload, r.schedule) for r in tried}) == len(tried)
    check_answers(model, run.out)


def test_sigterm_saves_the_best_so_far(model: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(model), str(out), str(tmp_path / "r.sqlite")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "record\n"
    process.terminate()
    process.stdout.read()
    assert process.wait(60) == 0
    check_answers(model, out)
    assert not list(temporary.glob("autosched-*")), "folders in use are removed"


# -- kernels that misbehave ------------------------------------------------------------------------


def test_faulty_kernels_cost_only_themselves(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real machine code that hangs, crashes, answers NaN or wrong, and builds that fail."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv(tune_jobs.SPOILT, ",".join(tune_jobs.FAULTS))
    jobs = replace(JOBS, build="tune_jobs:build", packages=("autosched", "tune_jobs"))
    limits = replace(QUICK, measure_s=5.0)
    run = Tuned(model, tmp_path, trials=20, jobs=jobs, limits=limits)
    check_answers(model, run.out)
    with Store(tmp_path / "records.sqlite") as store:
        bad = [r for r in store.records(peers=False) if not r.ok]
    found = sorted(r.status for r in bad)
    assert found == sorted([
        Status.RUN_TIMEOUT, Status.RUN_CRASHED, Status.NAN_RESULT, Status.WRONG_RESULT,
        Status.WRONG_RESULT, Status.BUILD_FAILED, Status.BUILD_FAILED,
    ])  # fmt: skip
    assert all(r.error for r in bad)
    failures = [f for t in run.result.tasks for f in t.failures.items()]
    assert sum(n for _, n in failures) == len(bad)


def test_a_full_disk_is_no_fault_of_a_schedule(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv(tune_jobs.SPOILT, ",".join([""] * 8 + ["full"] * 90))
    jobs = replace(JOBS, build="tune_jobs:build", packages=("autosched", "tune_jobs"))
    with pytest.raises(TuningError, match="TMPDIR"):
        Tuned(model, tmp_path, trials=40, jobs=jobs)
    with Store(tmp_path / "records.sqlite") as store:
        assert all(r.ok for r in store.records(peers=False))
    assert not (tmp_path / "tuned").exists()


# -- a user's mistakes -----------------------------------------------------------------------------


def test_mistakes_are_said_before_anything_is_measured(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(WriteError, match="not empty"):
        Tuned(model, tmp_path, out="full")
    for target, words in (("sm_12", "unknown target"), ("cpu:x86-64-v9", "unknown target")):
        with pytest.raises(TargetError, match=words):
            Tuned(model, tmp_path, target=target)
    with pytest.raises(ModelError, match="--shape"):
        tune(model, tmp_path / "out", store=tmp_path / "records.sqlite")
    assert not (tmp_path / "records.sqlite").exists()


def test_a_lesser_target_is_tuned_as_such(model: Path, tmp_path: Path) -> None:
    run = Tuned(model, tmp_path, target="cpu:x86-64-v2", trials=0)
    assert run.result.target == "cpu:x86-64-v2"
    check_answers(model, run.out)
