"""A profiling run with a fake GPU: what is stored, what a kill costs, what is built ahead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autosched.codegen.reference import write_program
from autosched.datasets.exchange import merge_files, read_facts, read_records, write_records
from autosched.datasets.place import StoreError
from autosched.datasets.suites import suite
from autosched.ir.record import Status
from autosched.ir.schedule import Schedule, replay
from autosched.ir.sketches import sketches
from autosched.ir.target import parse_target
from autosched.ir.text import to_text
from autosched.search.space import space
from autosched.tools import profile_design as design
from autosched.tools import profile_draw
from autosched.tools.gpu_lab import GpuLimits
from autosched.tools.gpu_programs import product, softmax
from autosched.tools.profile import main, process_begun
from autosched.tools.profile_board import Board, Item, Line
from autosched.tools.profile_build import canonical
from autosched.tools.profile_builds import ProfileJobs
from autosched.tools.profile_log import RunLog, merge, noise, read_journal
from autosched.tools.profile_pack import Pack, PackError, pack_build, unpack_build
from autosched.tools.profile_rank import weights_name

SM90 = parse_target("sm_90")
FAKES = "profile_fake_jobs"
JOBS = ProfileJobs(
    plan=f"{FAKES}:plan", fit=f"{FAKES}:fit", ranked_plan=f"{FAKES}:ranked_plan",
    propose=f"{FAKES}:propose", lower=f"{FAKES}:lower", prepare=f"{FAKES}:prepare",
    compile=f"{FAKES}:compile_code", measure=f"{FAKES}:measure_batch", warm_up=f"{FAKES}:warm_up",
    builder_modules=(FAKES,), measurer_modules=(FAKES,), packages=(FAKES, "autosched"),
)  # fmt: skip
LIMITS = GpuLimits(measure_s=5.0)


@pytest.fixture(autouse=True)
def fakes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def line(number: int, name: str, folder: Path) -> Line:
    program = softmax(4 + number, 8, "float32")
    (folder / name).mkdir(parents=True, exist_ok=True)
    return Line(number, name, "rows", "sm_90", program.key, to_text(program), folder / name,
                SM90.key)  # fmt: skip


def run(out: Path, names: list[str], *more: str, jobs: ProfileJobs = JOBS,
        limits: GpuLimits = LIMITS) -> int:  # fmt: skip
    lines = [line(n, name, out / "tasks") for n, name in enumerate(names)]
    given = ["--out", str(out), "--builders", "1", "--ranking", "analytic", "--gpus", "1"]
    return main([*given, *more], jobs, limits, lines)


def script(out: Path, *arguments: str) -> str:
    """The code of a process that calls `run`."""
    place = str(Path(__file__).parent)
    call = f"t.run(Path({str(out)!r}), {', '.join(arguments)})"
    return (f"import sys; sys.path.insert(0, {place!r}); import test_profile as t; from pathlib "
            f"import Path; sys.exit({call})")  # fmt: skip


def rows(out: Path) -> list:
    return read_records(out / "log.parquet")[0]


# ---- a run --------------------------------------------------------------------------------------


def test_every_candidate_is_stored_once_and_a_fault_costs_only_itself(tmp_path, capsys):
    assert run(tmp_path, ["mixed", "unprepared", "plain"], "--minutes", "0.6", "--rows", "54",
               "--planned", "54", "--near", "0", "--head", "0", "--again", "0.3") == 0  # fmt: skip
    found = rows(tmp_path)
    first = [r for r in found if r.extra["picked_by"] != "again"]
    mixed = [r for r in first if r.extra["program"] == "mixed"]
    by = Counter(r.status for r in mixed)
    assert by == {Status.OK: 24, Status.WRONG_RESULT: 6, Status.RUN_CRASHED: 6,
                  Status.RUN_FAILED: 6, Status.BUILD_FAILED: 6, Status.UNSUPPORTED: 6}  # fmt: skip
    assert len({(r.workload, r.schedule) for r in first}) == len(first) == 108
    assert sum(r.extra["program"] == "plain" and r.ok for r in first) == 54
    again = [r for r in found if r.extra["picked_by"] == "again"]
    assert again and all(r.extra["first_us"] == r.latency_us for r in again)
    assert all(r.extra["rel_l2"] == 1.23e-7 and r.extra["gpu"] == 0 for r in found if r.ok)
    facts = read_facts(tmp_path / "log.parquet")
    assert facts["noise"]["all"]["pairs"] == len(again) and facts["processes_lost"] == 12
    assert facts["watch_us"] == [30.0] * 3
    said = capsys.readouterr().out
    assert "no reference: ValueError: reads out of range" in said
    assert "| rows | 3 | 2 | 78 |" in said


def test_moves_climb_to_the_best_and_sum_up(tmp_path):
    run(tmp_path, ["plain"], "--minutes", "0.4", "--rows", "140", "--planned", "40",
        "--round", "8", "--again", "0")  # fmt: skip
    found = rows(tmp_path)
    kinds = Counter(r.extra["picked_by"] for r in found)
    assert kinds["spread"] and kinds["head"] and kinds["near"] > 20
    # The bowl's bottom lies at 70; designs end at 31 and 107, moves go on from there.
    assert min(r.latency_us for r in found) == 10.0


def test_several_gpus_share_the_work_and_one_workload_stays_on_one(tmp_path):
    run(tmp_path, ["slow0", "slow1", "slow2", "slow3"], "--minutes", "0.3", "--rows", "16",
        "--planned", "16", "--near", "0", "--head", "0", "--again", "0", "--gpus", "2")  # fmt: skip
    found = rows(tmp_path)
    assert {r.extra["gpu"] for r in found} == {0, 1} and len(found) == 64


def test_a_reference_that_takes_too_long_is_tried_once(tmp_path, capsys):
    run(tmp_path, ["endless", "plain0", "plain1"], "--minutes", "0.4", "--rows", "60",
        "--planned", "60", "--near", "0", "--head", "0", "--again", "0", "--gpus", "2",
        limits=replace(LIMITS, prepare_s=1.0))  # fmt: skip
    assert Counter(r.extra["program"] for r in rows(tmp_path)) == {"plain0": 60, "plain1": 60}
    assert (tmp_path / "tasks" / "endless.prepared").read_text() == "once\n"
    assert "no reference within 1 s" in capsys.readouterr().out


# ---- going on -----------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_measures_nothing_twice(tmp_path):
    code = script(tmp_path, "['slow', 'plain'], '--minutes', '1', '--rows', '60'",
                  "'--planned', '60', '--near', '0', '--head', '0', '--again', '0'")  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    journal = tmp_path / "journal"
    begun = time.monotonic()
    while time.monotonic() - begun < 30:  # until some are stored and some only in the journal
        logs = [p for p in journal.glob("*.log") if len(read_journal(p)[0]) > 2]
        if logs and (tmp_path / "records.sqlite").exists():
            break
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    left = sum(len(read_journal(p)[0]) for p in journal.glob("*.log"))
    assert left > 2 and not (tmp_path / "log.parquet").exists()
    assert run(tmp_path, ["slow", "plain"], "--minutes", "0.5", "--rows", "60", "--planned", "60",
               "--near", "0", "--head", "0", "--again", "0") == 0  # fmt: skip
    facts = json.loads((tmp_path / "summary.json").read_text())
    assert facts["counts"]["recovered"] == left
    with RunLog(tmp_path) as log:
        attempts = log.store.attempts(SM90.key, facts["toolchain"])
    assert len(attempts) == len(set(attempts)) == 120
    assert not list(journal.iterdir())
    compiled = (tmp_path / "cache" / "compiled").read_text().split()
    assert len(compiled) - len(set(compiled)) <= 1  # the one that the kill cut short


def test_it_keeps_to_its_minutes(tmp_path):
    begun = time.monotonic()
    run(tmp_path, ["slow0", "slow1"], "--minutes", "0.09", "--planned", "400")
    assert time.monotonic() - begun < 0.09 * 60 + 2
    assert len(rows(tmp_path)) > 10
    assert abs(process_begun() - time.monotonic()) < 24 * 3600


def test_what_other_logs_know_is_not_measured_again(tmp_path):
    more = ["--minutes", "0.5", "--planned", "30", "--near", "0", "--head", "0", "--again", "0"]
    run(tmp_path / "a", ["plain"], "--rows", "12", *more)
    run(tmp_path / "b", ["plain"], "--known", str(tmp_path / "a" / "log.parquet"), *more)
    first, second = ({r.schedule for r in rows(tmp_path / n)} for n in "ab")
    assert len(first) == 12 and len(second) == 18 and not first & second


@pytest.mark.parametrize("jobs, words", [
    (replace(JOBS, compile=f"{FAKES}:full_disk"), "the disk is full. What was measured is stored"),
    (replace(JOBS, warm_up=f"{FAKES}:no_gpu"), "no NVIDIA driver on your system. Build"),
])  # fmt: skip
def test_faults_of_the_machine_are_one_message(tmp_path, capsys, jobs, words):
    assert run(tmp_path, ["plain"], "--minutes", "5", jobs=jobs) == 2
    said = capsys.readouterr().err
    assert said.startswith("profile: ") and words in said and said.count("\n") == 1


@pytest.mark.parametrize("arguments, words", [
    ([], "name a folder for the run"),
    (["--build-only"], "name the file that gets the builds"),
    (["--merge", "nowhere", "-o", "x.parquet"], "there is no file or folder nowhere"),
    (["--merge", "."], "name the file to write"),
    (["--out", "{out}", "--suite", "sparse"], "no suite is called 'sparse'"),
    (["--out", "{out}", "--only", "nonsense"], "no workload of profile is called nonsense"),
    (["--out", "{out}", "--near", "-1"], "the shares of a design are not negative"),
    (["--out", "{out}", "--target", "sm_12"], "unknown target 'sm_12'"),
])  # fmt: skip
def test_mistakes_are_one_message(tmp_path, capsys, arguments, words):
    assert main([a.format(out=tmp_path) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("profile: ") and words in said


def test_small_programs_go_all_the_way_in_the_interpreter(tmp_path, capsys):
    """The real jobs: planned, lowered, compiled ahead, unpacked, interpreted, checked."""
    programs = {"mm": product(20, 40, 33, "float32")}
    lines = [Line(n, name, name, "sm_90", p.key, to_text(p), tmp_path / name, SM90.key)
             for n, (name, p) in enumerate(programs.items())]  # fmt: skip
    for made, program in zip(lines, programs.values()):
        write_program(made.folder, program)
    more = ["--builders", "1", "--ranking", "analytic", "--planned", "3", "--round", "3",
            "--rows", "6"]  # fmt: skip
    given = ["--out", str(tmp_path / "run"), "--device", "cpu", "--minutes", "2", "--gpus", "1"]
    assert main([*given, *more], lines=lines) == 0
    found = rows(tmp_path / "run")
    assert all(r.ok and r.checked == "float64" and r.extra["registers"] > 0 for r in found)
    assert all(r.extra["open_sizes"] > 0 for r in found)
    by = Counter(r.extra["picked_by"] for r in found)
    assert by["near"] == 3 and by["spread"] + by["head"] == 3
    assert "| mm | 1 | 1 | 6 | 6 |" in capsys.readouterr().out


# ---- building ahead -----------------------------------------------------------------------------


def test_builds_made_ahead_are_used_and_a_damaged_tail_is_made_again(tmp_path):
    ahead = tmp_path / "b.pack"
    more = ["--planned", "30", "--near", "0", "--head", "0", "--minutes", "1"]
    given = ["--build-only", "--pack", str(ahead), "--cache", str(tmp_path / "ahead"), *more]
    main([*given, "--builders", "1", "--ranking", "analytic"], JOBS, LIMITS,
         [line(0, "mixed", tmp_path)])  # fmt: skip
    pack = Pack(ahead)
    codes = [n for n in pack.names if n.startswith("code/")]
    assert len(codes) == 13 and any(n.startswith("fault/") for n in pack.names)
    assert not list((tmp_path / "ahead" / "codes").iterdir())
    run(tmp_path / "run", ["mixed"], "--pack", str(ahead), "--again", "0", *more)
    assert not (tmp_path / "run" / "cache" / "compiled").exists()  # not even what can't be built
    assert len(rows(tmp_path / "run")) == 30
    with open(ahead, "r+b") as file:
        file.truncate(ahead.stat().st_size - 3)
    assert not Pack(ahead).names & set(codes)
    (tmp_path / "c.pack").write_bytes(b"something else")
    with pytest.raises(PackError, match="no pack of builds"):
        Pack(tmp_path / "c.pack")


def test_the_weights_that_rank_come_in_the_pack(tmp_path):
    ahead = tmp_path / "b.pack"
    shares = ["--planned", "4", "--spread", "0", "--head", "1", "--near", "0"]
    given = ["--builders", "1", "--ranking", "logs", "--pack", str(ahead), "--minutes", "1"]
    main([*given, *shares, "--build-only", "--cache", str(tmp_path / "ahead")], JOBS, LIMITS,
         [line(0, "plain", tmp_path)])  # fmt: skip
    assert f"plan/{weights_name('sm_90')}" in Pack(ahead).names
    no_fit = replace(JOBS, fit=f"{FAKES}:missing")
    main([*given, *shares, "--out", str(tmp_path / "run"), "--gpus", "1"], no_fit, LIMITS,
         [line(1, "another", tmp_path)])  # fmt: skip
    found = rows(tmp_path / "run")
    assert {json.loads(r.schedule)["knobs"]["k0.n"] for r in found} == {50, 51, 52, 53}


def test_a_pack_gives_back_what_it_got(tmp_path):
    pack = Pack(tmp_path / "p" / "x.pack")
    blobs = {f"code/{n}": bytes([n]) * (1000 + n) for n in range(5)}
    pack.append(blobs)
    assert pack.append({"plan/a": b"", "plan/b": b"{}"}) > 0
    again = Pack(tmp_path / "p" / "x.pack")
    assert again.names == pack.names and again.end == pack.end == again.path.stat().st_size
    assert {n: b for block in again.blocks for n, b in again.read(block)} == {
        **blobs, "plan/a": b"", "plan/b": b"{}"}  # fmt: skip
    folder = tmp_path / "entry"
    folder.mkdir()
    (folder / "k.cubin").write_bytes(b"\n\0code\n")
    kernels = [{"file": "k.cubin", "n": 1}, {"file": "k.cubin", "n": 2}]
    (folder / "build.json").write_text(json.dumps({"kernels": kernels, "source": "x = 1"}))
    unpack_build(pack_build(folder), tmp_path / "new")
    assert (tmp_path / "new" / "k.cubin").read_bytes() == b"\n\0code\n"
    told = json.loads((tmp_path / "new" / "build.json").read_text())
    assert told == {"kernels": kernels, "source": ""}


# ---- designs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def products():
    found = sketches(product(512, 4096, 1000, "bfloat16"), SM90)
    return space(found, [s.table(5000, 0) for s in found])


def test_a_spread_shows_every_value_of_every_knob_first(products):
    drawn = list(zip(design.spread(products, 3), range(600)))
    made = [c for c, _ in drawn]
    assert len(set(made)) == len(made)
    for n, sketch in enumerate(products.sketches):
        legal = products.rows(n)
        mine = np.array([c.knobs for c in made if c.sketch == n])
        for k in range(len(sketch.knobs)):
            assert set(np.unique(mine[:, k])) == set(np.unique(legal[:, k])), sketch.knobs[k]
        assert design.legal(sketch, mine).all()
    assert [c for c, _ in zip(design.spread(products, 3), range(9))] == made[:9]


def test_moves_are_legal_new_and_by_one_or_two_knobs(products):
    start = next(design.spread(products, 0))
    for count in (1, 2):
        moved = design.moves(products, start, count)
        assert moved
        for c in moved:
            assert sum(a != b for a, b in zip(c.knobs, start.knobs)) == count
    known = frozenset(design.moves(products, start, 1)[:3])
    found = design.near(products, [(start, 5.0)], known | {start}, 30, 0)
    assert len(found) == 30 == len(set(found)) and not known & set(found) and start not in found
    for c in found[::8]:
        schedule = Schedule.from_json(products.schedule(c).to_json())
        assert type(replay(product(512, 4096, 1000, "bfloat16"), schedule)).__name__ == "Program"
        assert design.legal(products.sketches[c.sketch], np.array([c.knobs])).all()


def test_no_sketch_takes_the_whole_head(products):
    count = len(products.sketches)
    times = [np.full(len(products.rows(n)), float(n + 1)) for n in range(count)]
    found = design.head(times, products, 20)
    most = max(1, round(20 * max(design.MAX_ALIKE, 1 / count)))
    assert max(Counter(c.sketch for c, _ in found).values()) <= most
    assert [us for _, us in found] == sorted(us for _, us in found)


def test_shares_make_whole_rounds():
    shares = design.Shares(0.4, 0.2, 0.4)
    assert shares.counts(25, True) == (10, 5, 10) and shares.counts(24, False) == (16, 8, 0)
    with pytest.raises(ValueError, match="not negative"):
        design.Shares(-0.1, 0.2, 0.4)


def test_the_suite_is_what_its_seed_draws():
    drawn = "\n".join(profile_draw.lines()) + "\n"
    file = Path(profile_draw.__file__).parent.parent / "datasets/suites/profile.toml"
    assert file.read_text() == drawn
    every = suite("profile").rows
    assert len(every) >= 400 and len({r.group for r in every}) >= 10
    assert len({r.program().key for r in every}) == len(every)
    for row in every[:16:5]:
        assert sketches(row.program(), SM90), row.name


# ---- logs ---------------------------------------------------------------------------------------


def test_merged_logs_read_back_equal_and_hold_each_row_once(tmp_path):
    run(tmp_path / "a", ["mixed"], "--minutes", "0.5", "--rows", "18", "--planned", "18",
        "--near", "0", "--head", "0", "--again", "0")  # fmt: skip
    found, texts = read_records(tmp_path / "a" / "log.parquet")
    write_records(tmp_path / "b.parquet", found[3:], texts)
    facts = merge([tmp_path / "a", tmp_path / "b.parquet"], tmp_path / "all.parquet")
    again, same = read_records(tmp_path / "all.parquet")
    assert sorted(r.key for r in again) == sorted(r.key for r in found) and same == texts
    assert facts["rows"] == len(found) and len(facts["runs"]) == 1
    assert read_facts(tmp_path / "all.parquet")["statuses"]["ok"] == sum(r.ok for r in found)
    with pytest.raises(StoreError, match="no logs in"):
        (tmp_path / "empty").mkdir()
        merge([tmp_path / "empty"], tmp_path / "none.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"cut\.parquet"):
        merge_files([tmp_path / "cut.parquet"], tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()


def test_noise_is_told_by_how_long_kernels_take():
    told = noise([(5.0, 5.05), (5.0, 5.1), (50.0, 50.0), (5000.0, 5100.0)])
    assert told["all"]["pairs"] == 4 and told["below 10 µs"]["pairs"] == 2
    assert told["slower"]["median_percent"] == pytest.approx(1.98)
    assert noise([]) == {}


# ---- what is shared -----------------------------------------------------------------------------


def test_a_gpu_gets_whole_batches_and_stays_with_its_workloads(tmp_path):
    lines = [line(n, f"w{n}", tmp_path) for n in range(3)]
    board = Board(lines)
    for n, count in enumerate((3, 30, 10)):
        board.put(lines[n], [Item(f"{n}.{k}", (0, (k,)), {}, "spread") for k in range(count)])
    first = board.take(0, 0.0)
    assert first.line is lines[1] and len(first.items) == 24
    assert board.take(1, 0.0).line is lines[2]  # the other one is busy
    board.release(lines[1])
    board.put(lines[1], [Item("1.99", (0, (99,)), {}, "spread")] * 4)
    assert board.take(1, 0.0).line is lines[1]  # with enough, before one with three
    assert board.take(0, 0.0).line is lines[0]
    board.close()
    assert board.take(0, 5.0) is None


def test_code_is_known_by_its_source_alone():
    from autosched.codegen.triton_spec import Launch, Tensor, TritonModule

    def made(m: int, warps: int = 4) -> TritonModule:
        return TritonModule("source", (Tensor("x", "float32", (m, 8), "input"),),
                            (Launch("f", ("x",), m, warps, 2),))  # fmt: skip

    assert canonical(made(4)) == canonical(made(8)) != canonical(made(8, 8))
