"""Which schedules of a log are checked again, and what a faulty one is reported as."""

from __future__ import annotations

from autosched.ir.record import Record, Status
from autosched.tools import gpu_recheck
from autosched.tools.gpu_lab import Candidate, GpuAttempt


def record(workload: str, knob: int, status: Status, us: float | None) -> Record:
    return Record.of(
        workload=workload, target="gpu/sm_90/x/", status=status, latency_us=us,
        schedule={"sketch": "0", "actions": [], "knobs": {"m": knob}}, spread_us=None,
        error=None if us else "why",
        toolchain="t", device="d", threads=1, checked="none", extra={"program": workload},
    )  # fmt: skip


A, B = "a" * 64, "b" * 64
RECORDS = [
    record(A, 1, Status.OK, 3.0), record(A, 2, Status.OK, 1.0), record(A, 3, Status.OK, 2.0),
    record(A, 4, Status.WRONG_RESULT, None), record(B, 1, Status.UNSUPPORTED, None),
]  # fmt: skip


def test_the_best_and_the_wrong_are_chosen() -> None:
    chosen = list(gpu_recheck.choose(RECORDS, 2))
    assert [c.record.latency_us for c in chosen] == [1.0, 2.0, None]
    assert {c.workload for c in chosen} == {A}


class Lab:
    """Builds all but knob 4; knob 2 is wrong every third time."""

    def __init__(self) -> None:
        self.runs = 0

    def submit_builds(self, name: str, target: str, found: list[Candidate]) -> list[Candidate]:
        return found

    def built(self, found: list[Candidate]) -> list[GpuAttempt]:
        return [
            GpuAttempt(c, Status.BUILD_FAILED if c.schedule["knobs"]["m"] == 4 else Status.OK)
            for c in found
        ]

    def measure(self, name: str, attempt: GpuAttempt) -> GpuAttempt:
        self.runs += 1
        wrong = attempt.candidate.schedule["knobs"]["m"] == 2 and self.runs % 3 == 0
        status = Status.WRONG_RESULT if wrong else Status.OK
        return GpuAttempt(attempt.candidate, status, error="off" if wrong else None)


def test_a_schedule_that_is_wrong_now_and_then_is_named() -> None:
    chosen = list(gpu_recheck.choose(RECORDS, 2))
    said = [text for _, text in gpu_recheck.recheck(Lab(), chosen, 6)]  # type: ignore[arg-type]
    assert said[0] == "2 of 6 runs: off" and said[1] == "" and said[2].startswith("not built")


def test_a_log_that_is_not_there(tmp_path, capsys) -> None:
    assert gpu_recheck.main([str(tmp_path / "no.parquet")]) == 2
    assert "cannot read" in capsys.readouterr().err
