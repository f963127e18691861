"""A suite's run: faults cost only themselves, runs go on, reports say what was measured."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autosched.cli import app
from autosched.datasets.exchange import export_records, read_records
from autosched.datasets.shipped import shipped_logs
from autosched.datasets.store import Store
from autosched.datasets.suites import Suite, suite
from autosched.ir.record import Record, Status
from autosched.ir.target import parse_target
from autosched.tools.gpu_lab import GpuJobs, GpuLimits
from autosched.tools.gpu_peers_table import PEERS, Kind
from autosched.tools.suite_bench import main, run
from autosched.tools.suite_folder import read_results, write_report
from autosched.tools.suite_options import How, Options, SuiteBenchError, plan_table, select
from autosched.tools.suite_ours import known_schedules
from autosched.tools.suite_report import Rate, Result, geometric_mean, ratio, summaries
from autosched.tools.suite_runner import PEER_S
from autosched.tools.suite_work import Claims, Parts

FAKES = "suite_fake_jobs"
JOBS = GpuJobs(
    ready=f"{FAKES}:ready", build=f"{FAKES}:build_schedule", warm_up=f"{FAKES}:warm_up",
    prepare=f"{FAKES}:prepare", measure=f"{FAKES}:measure", builder_modules=(FAKES,),
    measurer_modules=(FAKES,), packages=(FAKES,),
)  # fmt: skip
PARTS = Parts(JOBS, GpuLimits(), FAKES, learns=False)
DENSE = suite("dense")
SM90 = parse_target("sm_90")


@functools.cache
def first_log(target: str) -> tuple[list[Record], dict[str, str]]:
    """The logs as they were when they knew few of the suite's rows; read once, not in each run."""
    logs = shipped_logs(target)
    return read_records(logs[0]) if logs else ([], {})


@pytest.fixture(autouse=True)
def fakes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr("autosched.tools.suite_ours.shipped_records", first_log)
    monkeypatch.setitem(PEER_S, Kind.LIBRARY, 2.0)  # type: ignore[arg-type]


def raced(out: Path, rows: tuple[str, ...], **more: object) -> tuple[str, dict[str, Result]]:
    said: list[str] = []
    options = Options(out, rows=rows, rounds=3, **{"gpus": 1, **more})  # type: ignore[arg-type]
    table = run(options, said.append, PARTS)
    return table, {r.name: r for r in read_results(out)}


def test_faults_cost_only_themselves(tmp_path):
    table, found = raced(tmp_path, (
        "gemm.m4096n4096", "gemm.m512", "gemm.m64", "gemm.m16", "t1024d64"))  # fmt: skip
    square = found["gemm.m4096n4096k4096.kn.bf16"]
    # The race died once with inductor in it: it ran again with libraries alone.
    assert set(square.peers) == {"cublas"} and "run_crashed" in square.data["note"]
    assert square.data["refused"] == {"helion": "not installed"}
    assert square.data["peer_s"] == {"cublas": 1.5, "inductor": 1.5}
    assert square.ratio("cublas").median == pytest.approx(1.2)
    wrong = found["gemm.m512n4096k4096.kn.bf16"]
    assert wrong.ours is not None and set(wrong.peers) == {"cublas", "inductor"}
    assert "wrong_result: data x 8" in wrong.data["note"]
    hopeless = found["gemm.m16n14336k4096.nk.bf16"]
    assert hopeless.ours is None and set(hopeless.peers) == {"cublas", "inductor"}
    full = found["gemm.m64n4096k4096.nk.bf16"]
    assert full.ours is None and "out of memory" in full.data["note"]
    attention = found["attention.b8h16g16t1024d64.bf16"]
    assert "Segmentation" in attention.data["refused"]["cudnn"]
    assert "2 s" in attention.data["refused"]["flash"] and set(attention.peers) == {"flex"}
    with Store(tmp_path / "records.sqlite") as store:
        condemned = store.records(status=Status.WRONG_RESULT)
        mine = {wrong.data["workload"]: 1, hopeless.data["workload"]: hopeless.data["built"]}
        assert Counter(r.workload for r in condemned) == mine
        assert wrong.ours["schedule"] not in [r.schedule_json for r in condemned]
        best = store.best(wrong.data["workload"], replace(SM90, device="a fake").key)
        assert best is None or best.schedule not in {r.schedule for r in condemned}
        assert {r.peer for r in store.records(peers=True)} >= {"torch-2 cublas", "torch-2 flex"}
    assert read_records(tmp_path / "records.parquet")[0]
    text = (tmp_path / "table.md").read_text()
    assert "1.20 (1.20–1.20)" in text and "| helion | not installed |" in text
    assert "copy 4 TB/s" in text and "| GEMM, bf16 | 2 of 6 | cublas | 1.20 | 1.08 |" in table


def test_a_run_goes_on_where_it_was_cut_short(tmp_path, capsys):
    raced(tmp_path, ("gemm.m4096n28672",))
    before = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(before + before[: len(before) // 2])
    said: list[str] = []
    options = Options(tmp_path, rows=("gemm.m4096n28672", "gemm.m16"), rounds=3, gpus=1)
    run(options, said.append, PARTS)
    assert said[0] == "1 rows were done before" and len(read_results(tmp_path)) == 2
    # Other options are another result; what has no slow peers is done where others don't fit.
    some = replace(options, minutes=0.4, rows=("gemm_models.m4096n8k", "gemm.m16"), seed=1)
    said.clear()
    run(some, said.append, PARTS)
    assert said[0].startswith("gemm_models.m4096n8k") and len(said) == 2
    assert said[-1].startswith("1 rows were left out")
    run(options, said.append, PARTS)
    assert said[-1] == "2 rows were done before"
    docs = tmp_path / "docs" / "dense.md"
    assert main(["--out", str(tmp_path), "--report", "--write-docs", str(docs)]) == 0
    assert docs.read_text() == (tmp_path / "table.md").read_text()
    assert "1.20 (1.20–1.20)" in docs.read_text()


def test_a_bug_in_the_compiler_is_a_rows_note(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise AssertionError("unbound axes")

    monkeypatch.setattr("autosched.tools.suite_ours.open_task", broken)
    _, found = raced(tmp_path, ("gemm_models.m4096n8k",))
    (result,) = found.values()
    assert result.ours is None and set(result.peers) == {"cublas"}
    assert "AssertionError at test_suite_bench.py" in result.data["note"]


def test_logs_choose_what_is_ours_and_the_model_where_they_know_nothing(tmp_path):
    _, found = raced(tmp_path, ("gemm.m8192", "gemm_models.m4096n8k"))
    square = found["gemm.m8192n8192k8192.kn.bf16"]
    assert (square.data["known"], square.data["tried"]) == (4, 5)
    assert found["gemm_models.m4096n8k4096.nk.bf16"].ours["by"] == "model"
    known = known_schedules(SM90.key)
    row = next(r for r in DENSE.rows if r.name == square.name)
    assert len(known[row.program().key]) > 50
    with Store(tmp_path / "records.sqlite") as store:
        tried = {r.schedule for r in store.records(workload=row.program().key, peers=False)}
    assert tried > {s.text for s in known[row.program().key][:4]}


def test_what_was_ever_wrong_is_not_known(tmp_path):
    def record(knob: int, us: float | None, status: Status) -> Record:
        return Record.of(
            workload="w", target="t", schedule={"sketch": "s", "actions": [], "knobs": {"a": knob}},
            status=status, latency_us=us, error=None if us else "off", toolchain="x", device="d",
            threads=1,
        )  # fmt: skip
    with Store(tmp_path / "s.sqlite") as store:
        store.add([record(1, 5.0, Status.OK), record(1, None, Status.WRONG_RESULT),
                   record(2, 9.0, Status.OK), record(3, 7.0, Status.OK)], {"w": "w"})  # fmt: skip
        known = known_schedules("t", [store])["w"]
        assert [s.knobs["a"] for s in known] == [3, 2]
        export_records(store, tmp_path / "log.parquet")
    assert known_schedules("t", [tmp_path / "log.parquet"])["w"] == known
    assert known_schedules("t", [tmp_path / "s.sqlite"])["w"] == known


def test_tuning_keeps_its_records_and_its_seconds(tmp_path):
    rows = ("gemm_models.m4096n8k", "gemm.m8192")
    _, found = raced(tmp_path, rows, how=How(tune_s=0.5, tune_rows=("inductor",)))
    plain, result = (
        found[n] for n in ("gemm_models.m4096n8k4096.nk.bf16", "gemm.m8192n8192k8192.kn.bf16"))
    assert plain.tuned is None
    assert result.tuned["by"] in ("tuned", "model") and result.tuned["seconds"] > 0
    assert result.tuned["tried"] >= 1 and result.tuned["best"][0][1] == 100.0
    with Store(tmp_path / "records.sqlite") as store:
        stored = [r for r in store.records(peers=False) if r.workload == result.data["workload"]]
    assert len(stored) >= result.tuned["tried"] + result.data["tried"]
    text = (tmp_path / "table.md").read_text()
    assert "## Tuning time" in text and "| inductor s | our seconds / its | its µs / ours |" in text
    assert result.tuned_ratio("inductor").median in (110 / 104, 110 / 100)


def test_a_live_search_knows_nothing_of_its_row(tmp_path, monkeypatch):
    unseen = []
    monkeypatch.setattr("autosched.tools.suite_ours.shipped_rows",
                        lambda target, without=(): unseen.append(set(without)))
    options = Options(tmp_path, rows=("gemm.m8192",), how=How(tune_s=0.1), gpus=1)
    run(options, print, replace(PARTS, learns=True))
    (row,) = (r for r in DENSE.rows if r.name == "gemm.m8192n8192k8192.kn.bf16")
    assert unseen == [{row.program().key}]


def test_rows_are_shared_out_to_a_process_for_each_gpu(tmp_path):
    """Each row once, by whoever takes it; faults of a process are its own."""
    said: list[str] = []
    options = Options(tmp_path, rows=("gemm_models.m4096n", "gemm.m8192"), rounds=3, gpus=2,
                      peers=("cublas",), stores=(tmp_path,)[:0])  # fmt: skip
    run(options, said.append, PARTS)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted(r["row"]["name"] for r in rows) == sorted(
        r.name for r in select(DENSE, options)) and len(rows) == 7  # fmt: skip
    assert {line[:5] for line in said} <= {"GPU 0", "GPU 1"} and {r["gpu"] for r in rows} <= {0, 1}
    assert all(r["ours"] and r["ceilings"]["copy"] == 4.0 for r in rows), said


def test_options_travel_as_json(tmp_path):
    options = Options(tmp_path, rows=("a",), how=How(4.0, True, ("helion",)), write_docs=None,
                      stores=(tmp_path / "x",), scratch=tmp_path, gpus=2)  # fmt: skip
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert Parts.from_json(json.loads(json.dumps(PARTS.to_json()))) == PARTS


def test_a_row_is_claimed_once(tmp_path):
    one, other = (Claims(tmp_path, DENSE.rows[:5]) for _ in range(2))
    taken = [one.take(), other.take(), other.take(), one.take(), one.take(), other.take()]
    assert taken == [*DENSE.rows[:5], None] and one.take() is None


# ---- numbers -----------------------------------------------------------------------------------


def test_ratios_are_paired():
    found = ratio([10.0, 22.0, 30.0, 44.0, 50.0], [10.0, 20.0, 30.0, 40.0, 25.0])
    assert (found.median, found.low, found.high) == (1.1, 1.0, 1.1)
    assert str(ratio([3.0], [2.0])) == "1.50 (1.50–1.50)"
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0) and geometric_mean([]) is None


def result(name: str, ours: float, peers: dict[str, float]) -> Result:
    row = next(r for r in DENSE.rows if r.name == name)
    def runner(us: float) -> dict[str, object]:
        return {"warm_us": [us] * 3, "cold_us": [us], "how": "graph", "rel_l2": 1e-3}
    return Result({
        "row": row.to_json(), "ours": runner(ours), "flops": 8e8, "bytes": 4e6,
        "peers": {n: runner(us) for n, us in peers.items()},
        "ceilings": {"bfloat16": 800.0, "copy": 4.0},
    })  # fmt: skip


def test_means_worst_rows_and_ceilings():
    results = [result("gemm.m4096n4096k4096.kn.bf16", 10.0, {"cublas": 20.0, "inductor": 5.0}),
               result("gemm.m64n4096k4096.nk.bf16", 10.0, {"cublas": 8.0})]  # fmt: skip
    (summary, best, *_) = summaries(DENSE, results)
    assert best.peer == "best" and best.worst_ratio == pytest.approx(0.5)
    assert summary.mean == pytest.approx(4 / (10**0.5)) and summary.done == 2
    assert summary.worst is results[1] and summary.worst_ratio == pytest.approx(0.8)
    assert results[0].against("best") == "inductor"
    assert results[0].rate() == Rate("80 TFLOP/s", pytest.approx(0.1))
    # Few bytes are in the cache when it is warm: the cold time says what memory gives.
    flat = {**results[0].data, "flops": 1e6, "ours": {**results[0].ours, "cold_us": [20.0]}}
    assert Result(flat).rate() == Rate("0.20 TB/s, cold", pytest.approx(0.05))
    large = Result({**flat, "bytes": 4e8, "ours": {**flat["ours"], "warm_us": [200.0] * 3}})
    assert large.rate() == Rate("2.00 TB/s", pytest.approx(0.5))


# ---- the command line --------------------------------------------------------------------------


def test_the_plan_needs_no_device():
    text = plan_table(select(DENSE, Options(Path())))
    assert text.count("gemm_models.") == 24 and "torch.compile, max-autotune" in text
    assert {p for r in DENSE.rows for p in r.peers} <= set(PEERS)
    done = CliRunner().invoke(app, ["bench", "--suite", "dense", "--plan", "--json"])
    assert done.exit_code == 0 and "decode.b16h32g8i1j8192d128.bf16" in json.loads(
        done.stdout)["table"]  # fmt: skip


@pytest.mark.parametrize("arguments, words", [
    (["bench"], "name a model and its kernels"),
    (["bench", "--suite", "none", "--plan"], "no suite is called 'none'"),
    (["bench", "--suite", "dense"], "name a folder for the suite's results"),
    (["bench", "--suite", "dense", "--plan", "--rows", "nix"], "no row of the suite dense"),
    (["bench", "--suite", "dense", "--plan", "--peers", "nix"], "no peer is called 'nix'"),
    (["bench", "--suite", "dense", "--plan", "--pick", "nix"], "it takes logs or model"),
    (["bench", "model.onnx", "--suite", "dense"], "a suite has workloads of its own"),
])  # fmt: skip
def test_mistakes_are_one_message(arguments, words):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_without_a_gpu_there_is_one_clear_message(tmp_path, capsys):
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a GPU")
    assert main(["--out", str(tmp_path), "--rows", "gemm.m16"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("suite_bench: no GPU can be used here") and "--build-only" in said


def test_no_results_no_report(tmp_path):
    with pytest.raises(SuiteBenchError, match="holds no results"):
        write_report(tmp_path, Suite("dense", "", {}), None)
