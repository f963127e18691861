"""A pool of long-lived child processes: Jobs in, Outcomes out, whatever the jobs do.

A job that hangs is killed at its timeout, one that crashes takes only its own process along; both
come back as Failed and the process is replaced. Workers have an entry point of their own
(worker_main), so the user's script is never imported again, and they die with this process.

    with WorkerPool(2, timeout_s=30) as pool:
        for outcome in pool.map(Job("autosched.codegen.tvm:build", {"path": p}) for p in paths):
            match outcome:
                case Ok(value): ...
                case Failed(status, reason): ...
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType

from autosched.codegen.jobs import (
    STATUS_OF,
    Failed,
    Fault,
    Job,
    JobFailure,
    Ok,
    Outcome,
    Stage,
    WorkerError,
)
from autosched.codegen.worker_loop import PoolSpec, Task, WorkerLoop
from autosched.codegen.worker_process import WorkerSpec

__all__ = ["Failed", "Job", "JobFailure", "Ok", "Outcome", "Stage", "Ticket", "WorkerError",
           "WorkerPool"]


class Ticket:
    """A submitted job; `result()` waits for its Outcome."""

    def __init__(self, pool: WorkerPool, task: Task) -> None:
        self._pool = pool
        self._task = task

    @property
    def job(self) -> Job:
        return self._task.job

    @property
    def done(self) -> bool:
        return self._task.end is not None

    def result(self, timeout_s: float | None = None) -> Outcome:
        """The job's Outcome.

        Raises: TimeoutError after timeout_s of waiting (the job goes on); WorkerError where no
        worker can be started.
        """
        if not self._pool._wait(lambda: self.done, timeout_s):
            raise TimeoutError(f"{self.job.function} is not done after {timeout_s} s")
        end = self._task.end
        if isinstance(end, WorkerError):
            raise end
        assert end is not None
        return end

    def cancel(self) -> None:
        """Withdraws the job, killing its worker if it runs; it ends as Failed(CANCELLED)."""
        self._pool._cancel(self._task)


class WorkerPool:
    """Up to `n` workers, started as jobs come. Thread-safe; use as a context manager."""

    def __init__(self, n: int = 1, timeout_s: float = 60.0, *,
                 env: Mapping[str, str] | None = None, preload: Sequence[str] = (),
                 packages: Sequence[str] = ("autosched",), recycle_after: int = 256,
                 memory_limit_bytes: int | None = None, start_timeout_s: float = 60.0) -> None:
        """n: processes. timeout_s: run time of a job that names none.
        env: variables the workers get beside those they inherit.
        preload: modules a worker imports before it takes jobs, outside of any job's time.
        packages: where functions of jobs may come from.
        recycle_after: jobs after which a worker is replaced, against leaks.
        memory_limit_bytes: private memory of one worker.
        """
        if n < 1 or recycle_after < 1:
            raise ValueError("a pool needs at least one worker, and one job per worker")
        self._changed = threading.Condition()  # guards the lines below, and the end of every Task
        self._pending: deque[Task] = deque()
        self._cancelled: list[Task] = []
        self._ending: WorkerError | None = None
        worker = WorkerSpec(dict(env or {}), tuple(preload), tuple(packages), memory_limit_bytes)
        self._spec = PoolSpec(n, timeout_s, recycle_after, start_timeout_s, worker)
        self._loop = WorkerLoop(self._spec, self._finish)
        self._bells: tuple[int, ...] = os.pipe()  # reading end, writing end; wakes the thread
        for fd in self._bells:
            os.set_blocking(fd, False)
        self._loop.listen(self._bells[0], self._hear_bell)
        # A daemon: a user who forgets close() must still be able to leave Python.
        self._thread = threading.Thread(target=self._serve, name="autosched-workers", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Ticket:
        """Queues a job. Raises WorkerError if the pool is closed or no worker can start."""
        task = Task(job, time.monotonic())
        with self._changed:
            if self._ending is not None:
                raise self._ending
            self._pending.append(task)
        self._ring()
        return Ticket(self, task)

    def run(self, job: Job) -> Outcome:
        """Submits one job and waits for its Outcome; Ctrl-C cancels it."""
        return next(self.map([job]))

    def map(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Queues all jobs now; yields their Outcomes in the order of the jobs. Leaving the
        iteration early cancels the rest."""
        return self._results([self.submit(job) for job in jobs])

    def as_completed(self, tickets: Iterable[Ticket]) -> Iterator[Ticket]:
        """The tickets, each as soon as it is done."""
        left = list(tickets)
        while left:
            done = self._wait_for_some(left)
            yield from done
            left = [t for t in left if t not in done]

    def close(self) -> None:
        """Kills the workers; jobs that are not done end as Failed(CANCELLED). Idempotent."""
        self._end_with(WorkerError("the worker pool is closed"))
        self._ring()
        self._thread.join()
        with self._changed:
            bells, self._bells = self._bells, ()
            for fd in bells:
                os.close(fd)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @property
    def packages(self) -> tuple[str, ...]:
        """Where functions of jobs may come from."""
        return self._spec.worker.packages

    # -- any thread ------------------------------------------------------------------------

    def _results(self, tickets: list[Ticket]) -> Iterator[Outcome]:
        try:
            for ticket in tickets:
                yield ticket.result()
        finally:
            for ticket in tickets:
                ticket.cancel()

    def _wait(self, ready: Callable[[], bool], timeout_s: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(ready, timeout_s)

    def _wait_for_some(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Those that are done, once any is."""
        self._wait(lambda: any(t.done for t in tickets), None)
        return [t for t in tickets if t.done]

    def _cancel(self, task: Task) -> None:
        with self._changed:
            if task.end is not None:
                return
            if task in self._pending:
                self._pending.remove(task)
                self._finish(task, _cancelled(task, "cancelled before it ran"))
            else:
                self._cancelled.append(task)
        self._ring()

    def _finish(self, task: Task, end: Outcome | WorkerError) -> None:
        with self._changed:
            task.end = task.end or end
            self._changed.notify_all()

    def _end_with(self, reason: WorkerError) -> None:
        with self._changed:
            self._ending = self._ending or reason

    def _ring(self) -> None:
        # A full pipe has rung already; without pipe the pool has ended.
        with self._changed, contextlib.suppress(BlockingIOError):
            if self._bells:
                os.write(self._bells[1], b"!")

    # -- the pool's thread -----------------------------------------------------------------

    def _hear_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._bells[0], 4096):
                pass

    def _serve(self) -> None:
        try:
            while self._step():
                self._loop.wait()
        finally:
            # Also after a bug in the loop: nobody shall wait for ever.
            self._end_with(WorkerError("the worker pool failed; its thread's traceback says why"))
            self._loop.close()
            self._end_pending()

    def _step(self) -> bool:
        """Deals with what other threads asked for; False when the pool is to end."""
        with self._changed:
            if self._loop.broken is not None:
                self._end_with(self._loop.broken)
            if self._ending is not None:
                return False
            cancelled, self._cancelled = self._cancelled, []
            for task in cancelled:
                self._loop.withdraw(task)
            self._loop.assign(self._pending)
            return self._loop.broken is None or self._step()

    def _end_pending(self) -> None:
        """Ends what never ran: as cancelled after close(), with the reason if the pool broke."""
        with self._changed:
            broken = self._loop.broken
            while self._pending:
                task = self._pending.popleft()
                self._finish(task, broken or _cancelled(task, "the worker pool was closed"))


def _cancelled(task: Task, reason: str) -> Failed:
    return Failed(STATUS_OF[task.job.stage, Fault.CANCELLED], reason,
                  queue_s=time.monotonic() - task.submitted)
