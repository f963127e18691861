"""The event loop of a worker pool: Tasks in, each ended once by an Outcome, whatever workers do.

No locks and no threads here: one thread calls `assign`, `withdraw` and `wait` in turn. It must be
always the same one, as Linux ties a child's life to the thread that started it.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autosched.codegen import frames
from autosched.codegen.jobs import STATUS_OF, Failed, Fault, Job, Ok, Outcome, WorkerError
from autosched.codegen.worker_process import WorkerProcess, WorkerSpec, means_memory
from autosched.ir.record import Status

_GRACE_S = 0.5  # for a worker that hung up to finish dying, so that its cause of death shows
_START_TRIES = 3  # workers that die before their first job, in a row, until the pool gives up

# After these errors the process's device context is lost, although the process lives.
_STICKY_MARKS = ("CUDA error", "device-side assert", "illegal memory access")


@dataclass(eq=False)
class Task:
    """A Job on its way; `end` is set once."""

    job: Job
    submitted: float
    end: Outcome | WorkerError | None = None


@dataclass(frozen=True)
class PoolSpec:
    """Size and limits of a pool; seconds."""

    n: int
    timeout_s: float
    recycle_after: int
    start_timeout_s: float
    worker: WorkerSpec


@dataclass(eq=False)
class _Seat:
    """A worker and what it is doing."""

    worker: WorkerProcess
    deadline: float | None  # of its start, or of its task; None while idle
    ready: bool = False
    task: Task | None = None
    sent: float = 0.0
    tasks_done: int = 0
    writing: bool = False  # part of a frame waits for room in the pipe


class WorkerLoop:
    """Keeps up to `spec.n` workers busy. `finish(task, end)` is called once for every task."""

    def __init__(self, spec: PoolSpec,
                 finish: Callable[[Task, Outcome | WorkerError], None]) -> None:
        self._spec = spec
        self._finish = finish
        self._seats: list[_Seat] = []
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        self.broken: WorkerError | None = None  # set once workers cannot be started

    def listen(self, fd: int, heard: Callable[[], None]) -> None:
        """Has wait() return when `fd` becomes readable, after calling heard()."""
        self._selector.register(fd, selectors.EVENT_READ, heard)

    def assign(self, pending: deque[Task]) -> None:
        """Moves tasks from the front of `pending` to idle workers, and starts workers for the
        others while there is room."""
        idle = [s for s in self._seats if s.ready and s.task is None]
        while idle and pending:
            if self._send(idle[-1], pending.popleft()):
                idle.pop()
        starting = sum(not s.ready for s in self._seats)
        room = self._spec.n - len(self._seats)
        for _ in range(min(len(pending) - starting, room)):
            self._start()

    def withdraw(self, task: Task) -> None:
        """Kills the worker that runs `task`, if any does."""
        for seat in [s for s in self._seats if s.task is task]:
            self._fail(seat, Fault.CANCELLED, "cancelled while it ran")

    def wait(self) -> None:
        """Sleeps until something happens or a deadline passes, and deals with it."""
        deadlines = [s.deadline for s in self._seats if s.deadline is not None]
        pause = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        for key, _ in self._selector.select(pause):
            # An earlier event of this round may have dismissed the worker of a later one.
            if key.fd in self._selector.get_map() and self._selector.get_key(key.fd) is key:
                key.data()
        now = time.monotonic()
        for seat in [s for s in self._seats if s.deadline is not None and s.deadline <= now]:
            self._expire(seat)

    def close(self) -> None:
        """Kills all workers; their tasks end as cancelled."""
        for seat in list(self._seats):
            self._fail(seat, Fault.CANCELLED, "the worker pool was closed")
        self._selector.close()

    # -- workers ---------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            worker = WorkerProcess(self._spec.worker)
        except OSError as error:
            self.broken = WorkerError(f"a worker process cannot be started: {error}")
            return
        seat = _Seat(worker, time.monotonic() + self._spec.start_timeout_s)
        self._seats.append(seat)
        self._selector.register(worker.results, selectors.EVENT_READ, lambda: self._receive(seat))
        self._selector.register(worker.output, selectors.EVENT_READ, lambda: self._hear(seat))

    def _dismiss(self, seat: _Seat, grace_s: float = 0.0) -> None:
        self._seats.remove(seat)
        for fd in (seat.worker.results, seat.worker.output, seat.worker.jobs):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        seat.worker.kill(grace_s)

    def _expire(self, seat: _Seat) -> None:
        if seat.task is None:
            self._dismiss(seat)
            self._count_failed_start(seat, f"was not ready in {self._spec.start_timeout_s:g} s")
            return
        limit = self._limit_s(seat.task.job)
        self._fail(seat, Fault.TIMEOUT, f"killed: it ran longer than its limit of {limit:g} s")

    def _count_failed_start(self, seat: _Seat, how: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _START_TRIES:
            self.broken = WorkerError(
                f"worker processes do not start ({self._failed_starts} tries; the last one "
                f"{how}). Its last words:\n{seat.worker.tail.strip() or '(none)'}")

    # -- tasks -----------------------------------------------------------------------------

    def _limit_s(self, job: Job) -> float:
        return self._spec.timeout_s if job.timeout_s is None else job.timeout_s

    def _send(self, seat: _Seat, task: Task) -> bool:
        """Hands `task` to an idle worker; False where it could not even be written down."""
        job = task.job
        try:
            frame = frames.encode({"function": job.function, "kwargs": dict(job.kwargs)})
        except (TypeError, ValueError) as error:
            self._finish(task, Failed(STATUS_OF[job.stage, Fault.RAISED],
                                      f"the job's arguments are no plain JSON: {error}"))
            return False
        seat.task, seat.sent = task, time.monotonic()
        seat.deadline = seat.sent + self._limit_s(job)
        self._watch_writing(seat, seat.worker.send(frame))
        return True

    def _watch_writing(self, seat: _Seat, all_sent: bool) -> None:
        if seat.writing == all_sent:
            seat.writing = not all_sent
            if all_sent:
                self._selector.unregister(seat.worker.jobs)
            else:
                self._selector.register(
                    seat.worker.jobs, selectors.EVENT_WRITE,
                    lambda: self._watch_writing(seat, seat.worker.flush()))

    def _hear(self, seat: _Seat) -> None:
        if not seat.worker.hear():
            self._selector.unregister(seat.worker.output)

    def _receive(self, seat: _Seat) -> None:
        try:
            answers, alive = seat.worker.receive()
        except ValueError as error:
            self._fail(seat, Fault.CRASHED, f"the worker sent an unreadable answer: {error}")
            return
        for answer in answers:
            if "ready" in answer:
                seat.ready, seat.deadline, self._failed_starts = True, None, 0
            else:
                self._answer(seat, answer)
        if not alive and seat in self._seats:
            self._bury(seat)

    def _answer(self, seat: _Seat, answer: dict[str, Any]) -> None:
        """Ends the seat's task by what its worker told, and retires a worker that is used up."""
        task = seat.task
        if task is None:
            return
        seat.worker.hear()
        outcome = _outcome(task, answer, seat)
        seat.task, seat.deadline = None, None
        seat.tasks_done += 1
        self._finish(task, outcome)
        if seat.tasks_done >= self._spec.recycle_after or _is_spoilt(outcome):
            self._dismiss(seat)

    def _bury(self, seat: _Seat) -> None:
        """Deals with a worker that ended by itself."""
        self._dismiss(seat, _GRACE_S)
        fault, reason = seat.worker.death()
        if seat.task is not None:
            self._end(seat, fault, reason)
        elif not seat.ready:
            self._count_failed_start(seat, reason.removeprefix("the worker process "))

    def _fail(self, seat: _Seat, fault: Fault, reason: str) -> None:
        """Kills a worker for what its task did, or for what the user wants."""
        self._dismiss(seat)
        if seat.task is not None:
            self._end(seat, fault, reason)

    def _end(self, seat: _Seat, fault: Fault, reason: str) -> None:
        task = seat.task
        assert task is not None
        seat.task = None
        self._finish(task, Failed(
            STATUS_OF[task.job.stage, fault], reason, seat.worker.tail,
            queue_s=seat.sent - task.submitted, run_s=time.monotonic() - seat.sent))


def _outcome(task: Task, answer: dict[str, Any], seat: _Seat) -> Outcome:
    """The Outcome that a worker's result frame stands for."""
    queue_s, run_s = seat.sent - task.submitted, answer["run_s"]
    if "ok" in answer:
        return Ok(answer["ok"], queue_s, run_s)
    reason = answer["reason"]
    if "status" in answer:
        status = Status(answer["status"])
    else:
        fault = Fault.MEMORY if means_memory(reason) else Fault(answer["fault"])
        status = STATUS_OF[task.job.stage, fault]
    return Failed(status, reason, seat.worker.tail, queue_s, run_s)


def _is_spoilt(outcome: Outcome) -> bool:
    """Whether a worker that lived through this must not serve another task."""
    return isinstance(outcome, Failed) and (
        outcome.status is Status.OUT_OF_MEMORY
        or any(mark in outcome.reason for mark in _STICKY_MARKS))
