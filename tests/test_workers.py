"""The worker pool under jobs that hang, crash, print, leak, lie or are no longer wanted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autosched.codegen import frames
from autosched.codegen.workers import Failed, Job, Ok, Stage, WorkerError, WorkerPool
from autosched.ir.record import Status

TESTS = str(Path(__file__).parent)
JOBS = "worker_jobs"


def make_pool(n: int = 1, timeout_s: float = 30.0, **more: Any) -> WorkerPool:
    env = {"PYTHONPATH": TESTS, **more.pop("env", {})}
    return WorkerPool(n, timeout_s, env=env, packages=("autosched", JOBS), **more)


def job(function: str, /, stage: Stage = Stage.RUN, timeout_s: float | None = None,
        **kwargs: Any) -> Job:
    return Job(f"{JOBS}:{function}", kwargs, stage, timeout_s)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with make_pool() as made:
        yield made


def failure(outcome: Any) -> Failed:
    assert isinstance(outcome, Failed), outcome
    return outcome


def value(outcome: Any) -> Any:
    assert isinstance(outcome, Ok), outcome
    return outcome.value


def comes_true(test: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    """Dead, or a zombie that only waits for its new parent."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- what works ----------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_jobs() -> None:
    with make_pool(2) as pool:
        outcomes = list(pool.map([job("nap", seconds=s) for s in (0.3, 0.0, 0.1, 0.0)]))
    assert [value(o) for o in outcomes] == [0.3, 0.0, 0.1, 0.0]


def test_tickets_come_as_they_are_done() -> None:
    with make_pool(2) as pool:
        value(pool.run(job("echo")))
        tickets = [pool.submit(job("nap", seconds=s)) for s in (1.0, 0.0, 0.1)]
        order = [t.job.kwargs["seconds"] for t in pool.as_completed(tickets)]
    assert order == [0.0, 0.1, 1.0]


@pytest.mark.parametrize("payload", [
    None, 1.5, "ü" * 10, [1, {"a": [True, None]}], "x" * 3_000_000,
], ids=["null", "float", "text", "nested", "3MB"])
def test_values_cross_unchanged(pool: WorkerPool, payload: Any) -> None:
    assert value(pool.run(job("echo", value=payload))) == payload


def test_a_worker_lives_on_between_jobs(pool: WorkerPool) -> None:
    seen = [value(o) for o in pool.map([job("count")] * 3)]
    assert [n for _, n in seen] == [1, 2, 3]
    assert len({pid for pid, _ in seen}) == 1


def test_a_worker_is_replaced_after_its_share_of_jobs() -> None:
    with make_pool(recycle_after=2) as pool:
        assert [value(o)[1] for o in pool.map([job("count")] * 5)] == [1, 2, 1, 2, 1]


def test_environment_reaches_the_worker_only() -> None:
    with make_pool(env={"AUTOSCHED_TEST": "7"}) as pool:
        assert value(pool.run(job("environment", name="AUTOSCHED_TEST"))) == "7"
        assert value(pool.run(job("environment", name="HOME"))) == os.environ.get("HOME")
    assert "AUTOSCHED_TEST" not in os.environ


def test_preloading_is_outside_of_a_jobs_time() -> None:
    with make_pool(preload=("numpy",)) as pool:
        assert isinstance(pool.run(job("echo", timeout_s=0.5)), Ok)


def test_queue_time_and_run_time_are_apart(pool: WorkerPool) -> None:
    value(pool.run(job("echo")))
    first, second = (pool.submit(job("nap", seconds=0.4)) for _ in range(2))
    a, b = first.result(), second.result()
    assert isinstance(a, Ok) and isinstance(b, Ok)
    assert a.run_s > 0.39 and b.run_s > 0.39
    assert b.queue_s > 0.39 > a.queue_s
    # Waiting for a worker does not count against a job's limit.
    slow = [pool.submit(job("nap", seconds=0.6, timeout_s=1.5)) for _ in range(3)]
    assert all(isinstance(t.result(), Ok) for t in slow)


# -- what fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nap", "hang_in_c"])
def test_a_hanging_job_is_killed_and_the_pool_goes_on(pool: WorkerPool, name: str) -> None:
    kwargs = {"seconds": 3600.0} if name == "nap" else {}
    begun = time.monotonic()
    failed = failure(pool.run(job(name, timeout_s=0.3, **kwargs)))
    assert failed.status is Status.RUN_TIMEOUT and "0.3 s" in failed.reason
    assert 0.3 <= failed.run_s < 2.0
    assert time.monotonic() - begun < 5.0
    assert value(pool.run(job("echo", value=1))) == 1


def test_a_killed_job_takes_its_own_children_along(pool: WorkerPool, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    failed = failure(pool.run(job("hang_with_a_child", timeout_s=1.0, path=str(note))))
    assert failed.status is Status.RUN_TIMEOUT
    assert comes_true(lambda: gone(int(note.read_text())))


@pytest.mark.parametrize(("name", "stage", "status", "said"), [
    ("segfault", Stage.RUN, Status.RUN_CRASHED, "SIGSEGV"),
    ("segfault", Stage.BUILD, Status.BUILD_FAILED, "SIGSEGV"),
    ("abort_for_memory", Stage.RUN, Status.OUT_OF_MEMORY, "SIGABRT"),
    ("kill_self", Stage.RUN, Status.OUT_OF_MEMORY, "killed from outside"),
    ("python_exit", Stage.RUN, Status.RUN_FAILED, "SystemExit: 3"),
    ("refuse", Stage.RUN, Status.RUN_FAILED, "ValueError: no such thing"),
    ("refuse", Stage.BUILD, Status.BUILD_FAILED, "ValueError: no such thing"),
    ("wrong", Stage.RUN, Status.WRONG_RESULT, "rel. error 0.5"),
    ("not_json", Stage.RUN, Status.RUN_FAILED, "not JSON serializable"),
    ("echo", Stage.RUN, Status.RUN_FAILED, "unexpected keyword"),
])
def test_failures_are_values_with_a_reason(pool: WorkerPool, name: str, stage: Stage,
                                           status: Status, said: str) -> None:
    kwargs = {"bogus": 1} if name == "echo" else {}
    failed = failure(pool.run(job(name, stage, **kwargs)))
    assert failed.status is status
    assert said in failed.reason and "\n" not in failed.reason
    assert value(pool.run(job("echo", value=2))) == 2


def test_the_exit_status_of_a_dead_worker_is_told(pool: WorkerPool) -> None:
    failed = failure(pool.run(job("leave", status=17)))
    assert failed.status is Status.RUN_CRASHED and "exited with status 17" in failed.reason


def test_a_build_that_hangs_is_named_so(pool: WorkerPool) -> None:
    failed = failure(pool.run(job("nap", Stage.BUILD, timeout_s=0.2, seconds=9.0)))
    assert failed.status is Status.BUILD_TIMEOUT


def test_last_words_are_kept(pool: WorkerPool) -> None:
    value(pool.run(job("echo", say="of an earlier job")))
    failed = failure(pool.run(job("segfault")))
    assert "before the crash" in failed.stderr_tail
    assert "string_at" in failed.stderr_tail, "the Python stack of the crash"
    assert "earlier" not in failed.stderr_tail


def test_output_without_end_neither_blocks_nor_piles_up(pool: WorkerPool) -> None:
    assert value(pool.run(job("shout", n_bytes=2_000_000))) == 2_000_000
    failed = failure(pool.run(job("leave", status=1)))
    assert len(failed.stderr_tail) <= 8192


def test_a_huge_allocation_fails_alone() -> None:
    with make_pool(memory_limit_bytes=1 << 30, preload=("numpy",)) as pool:
        failed = failure(pool.run(job("allocate", n_bytes=4 << 30)))
        assert failed.status is Status.OUT_OF_MEMORY
        assert value(pool.run(job("allocate", n_bytes=1 << 20))) == 1 << 20


def test_a_lost_device_costs_the_worker(pool: WorkerPool) -> None:
    pid = value(pool.run(job("count")))[0]
    assert failure(pool.run(job("refuse"))).status is Status.RUN_FAILED
    assert value(pool.run(job("count"))) == [pid, 2], "an ordinary error does not"
    assert "CUDA" in failure(pool.run(job("lost_device"))).reason
    other, seen = value(pool.run(job("count")))
    assert other != pid and seen == 1


def test_a_worker_that_hangs_up_is_found_out(pool: WorkerPool) -> None:
    failed = failure(pool.run(job("close_pipes", timeout_s=20.0)))
    assert failed.status is Status.RUN_CRASHED and failed.run_s < 10.0


def test_many_crashes_leave_no_descriptors_or_processes(pool: WorkerPool) -> None:
    value(pool.run(job("echo")))
    before = len(os.listdir("/proc/self/fd"))
    others = len(psutil.Process().children()) - 1
    for outcome in pool.map([job("segfault"), job("echo", value=0)] * 8):
        assert isinstance(outcome, (Ok, Failed))
    value(pool.run(job("echo")))
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(psutil.Process().children()) == others + 1


@pytest.mark.parametrize(("function", "said"), [
    ("os:kill", "outside"), ("autoschedx:f", "outside"), (f"{JOBS}:getcwd", "defines no function"),
    (f"{JOBS}:_seen", "public"), (f"{JOBS}:os.system", "public"), (f"{JOBS}", "public"),
    (f"{JOBS}:absent", "defines no function"), ("autosched.none:f", "No module"),
])
def test_only_functions_of_the_packages_are_called(pool: WorkerPool, function: str,
                                                   said: str) -> None:
    failed = failure(pool.run(Job(function)))
    assert failed.status is Status.RUN_FAILED and said in failed.reason


def test_arguments_that_are_no_json_fail_alone(pool: WorkerPool) -> None:
    outcomes = list(pool.map([job("echo", value=object()), job("echo", value=3)]))
    assert "plain JSON" in failure(outcomes[0]).reason
    assert value(outcomes[1]) == 3


# -- what is no longer wanted --------------------------------------------------------------


def test_a_running_job_can_be_cancelled(pool: WorkerPool) -> None:
    value(pool.run(job("echo")))
    running, waiting = (pool.submit(job("nap", seconds=3600.0)) for _ in range(2))
    with pytest.raises(TimeoutError):
        running.result(timeout_s=0.2)
    begun = time.monotonic()
    waiting.cancel()
    running.cancel()
    assert failure(running.result()).status is Status.CANCELLED
    assert "before it ran" in failure(waiting.result()).reason
    assert time.monotonic() - begun < 3.0
    assert value(pool.run(job("echo", value=4))) == 4
    running.cancel()  # a second time, or after the end, changes nothing
    assert failure(running.result()).status is Status.CANCELLED


def test_leaving_a_map_early_frees_the_workers(pool: WorkerPool) -> None:
    outcomes = pool.map([job("echo", value=1), *[job("nap", seconds=3600.0)] * 5])
    assert value(next(outcomes)) == 1
    outcomes.close()  # type: ignore[attr-defined]
    assert value(pool.run(job("echo", value=2))) == 2


def test_closing_cancels_and_ends(pool: WorkerPool) -> None:
    pid = value(pool.run(job("count")))[0]
    tickets = [pool.submit(job("nap", seconds=3600.0)) for _ in range(3)]
    pool.close()
    assert {failure(t.result()).status for t in tickets} == {Status.CANCELLED}
    assert gone(pid)
    with pytest.raises(WorkerError, match="closed"):
        pool.submit(job("echo"))
    pool.close()


def test_workers_that_do_not_start_are_one_clear_error() -> None:
    with make_pool(preload=("no_such_module",)) as pool:
        ticket = pool.submit(job("echo"))
        with pytest.raises(WorkerError, match=r"(?s)do not start.*No module named 'no_such_mod"):
            ticket.result()
        with pytest.raises(WorkerError, match="do not start"):
            pool.submit(job("echo"))


def test_workers_that_start_for_ever_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "slow_start.py").write_text("import time; time.sleep(60)")
    env = {"PYTHONPATH": str(tmp_path)}
    with WorkerPool(1, env=env, preload=("slow_start",), start_timeout_s=0.3) as pool, \
            pytest.raises(WorkerError, match=r"not ready in 0\.3 s"):
        pool.run(job("echo"))


# -- the user's process --------------------------------------------------------------------

_SCRIPT = """
import os, sys, time
from autosched.codegen.workers import Job, WorkerPool
print("imported", flush=True)
with WorkerPool(2, 3600.0, env={"PYTHONPATH": TESTS}, packages=("worker_jobs",)) as pool:
    tickets = [pool.submit(Job("worker_jobs:count")) for _ in range(8)]
    print("pids", *{t.result().value[0] for t in tickets}, flush=True)
    for outcome in pool.map([Job("worker_jobs:nap", {"seconds": 3600.0})] * 4):
        print(outcome)
"""


def start_script(tmp_path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """The user's script, without a guard for __main__, and the numbers of its workers."""
    script = tmp_path / "script.py"
    script.write_text(f"TESTS = {TESTS!r}\n{_SCRIPT}")
    # Modules of the user's folder must not get into the workers in place of Python's.
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    process = subprocess.Popen([sys.executable, "-P", str(script)], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "imported\n"
    return process, [int(word) for word in process.stdout.readline().split()[1:]]


def test_ctrl_c_ends_script_and_workers(tmp_path: Path) -> None:
    process, pids = start_script(tmp_path)
    assert pids and not any(gone(p) for p in pids)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - begun < 5.0
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in err
    assert out == "", "the script was imported once, and no outcome came"
    assert all(gone(p) for p in pids)


def test_kill_9_of_the_script_ends_the_workers(tmp_path: Path) -> None:
    process, pids = start_script(tmp_path)
    process.kill()
    process.communicate(timeout=20)
    assert pids and comes_true(lambda: all(gone(p) for p in pids))


def test_a_pool_that_is_never_closed_does_not_keep_python_alive(tmp_path: Path) -> None:
    script = (f"from autosched.codegen.workers import *\n"
              f"p = WorkerPool(1, env={{'PYTHONPATH': {TESTS!r}}}, packages=('{JOBS}',))\n"
              f"print(p.run(Job('{JOBS}:count')).value[0])\n"
              f"p.submit(Job('{JOBS}:nap', {{'seconds': 3600.0}}))\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=30, check=True)
    assert comes_true(lambda: gone(int(done.stdout)))


# -- frames --------------------------------------------------------------------------------


def test_frames_survive_any_split() -> None:
    values = [{"a": "ü" * 100}, [], None, 1.5]
    data = b"".join(frames.encode(v) for v in values)
    for step in (1, 3, 7, len(data)):
        buffer, found = bytearray(), []
        for i in range(0, len(data), step):
            buffer += data[i:i + step]
            while (got := frames.take(buffer))[0]:
                found.append(got[1])
        assert found == values and not buffer


def test_bytes_that_are_no_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="claims"):
        frames.take(bytearray(b"\xff" * 8))
    with pytest.raises(ValueError, match="Expecting value"):
        frames.take(bytearray(b"\0\0\0\2{}"[:4] + b"}{"))
