"""Where calls into kernels run, and with how many threads.

TVM's pool of workers belongs to the thread that launches. A pool for every thread of a program
would leave crowds of workers behind, so there are two homes at most: the main thread, which calls
at once, and a runner thread for everybody else, which costs about 20 us a call. Calls that use
several threads are taken one at a time, since each may use all cores. With one thread there is
no pool: every caller runs where it is, all at the same time.

After a fork only the forking thread lives on, its pool dead: the child's calls all go to a
runner of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from .cpu import usable_cores
from .errors import InputError
from .native import Pool, Runtime


def thread_count(asked: int | None = None) -> int:
    """Threads to use: as asked, else AUTOSCHED_NUM_THREADS or TVM_NUM_THREADS, else every core.

    Never more than the cores this process may use.
    """
    cores = usable_cores()
    if asked is None:
        names = ("AUTOSCHED_NUM_THREADS", "TVM_NUM_THREADS")
        name = next((n for n in names if os.environ.get(n)), None)
        if name is None:
            return cores
        text = os.environ[name]
        if not text.isdecimal() or int(text) < 1:
            raise InputError(f"{name} is {text!r}, but a positive number is expected")
        asked = int(text)
    if asked < 1:
        raise InputError(f"threads is {asked}, but a positive number is expected")
    return min(asked, cores)


class _Runner:
    """A thread with a pool of its own that makes calls for others, in the order they came."""

    def __init__(self, runtime: Runtime, threads: int) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], threading.Lock, list[Any]]]
        self._calls = SimpleQueue()
        work = threading.Thread(
            target=self._work, args=(runtime, threads), name="autosched-kernels", daemon=True
        )
        work.start()

    def _work(self, runtime: Runtime, threads: int) -> None:
        pool: Pool | None = None
        while True:
            function, done, result = self._calls.get()
            try:
                if pool is None:
                    pool = runtime.make_pool(threads)
                with _shared.busy:
                    pool.seats.go_home()
                    result.append((function(), None))
            except BaseException as error:  # the caller raises it
                result.append((None, error))
            done.release()
            del function, done, result  # nothing of a caller is kept while idle

    def call(self, function: Callable[[], Any]) -> Any:
        done = threading.Lock()
        done.acquire()
        result: list[Any] = []
        self._calls.put((function, done, result))
        done.acquire()
        value, error = result[0]
        if error is not None:
            raise error
        return value


class _Shared:
    """What all calls of this process share; made anew in a forked child."""

    def __init__(self, forked: bool = False) -> None:
        self.busy = threading.Lock()  # held by the one call that uses several threads
        self.making = threading.Lock()
        self.runners: dict[int, _Runner] = {}
        self.forked = forked  # the main thread's pool died
        self.main_pool: Pool | None = None

    def runner(self, runtime: Runtime, threads: int) -> _Runner:
        with self.making:
            if threads not in self.runners:
                self.runners[threads] = _Runner(runtime, threads)
            return self.runners[threads]


_shared = _Shared()


def _after_fork() -> None:
    global _shared
    _shared = _Shared(forked=True)


os.register_at_fork(after_in_child=_after_fork)


def call(runtime: Runtime | None, threads: int, function: Callable[[], Any]) -> Any:
    """function(), where its kernels may use `threads` threads; its result or its exception.

    Args: runtime: None where no kernel has a parallel loop.
    """
    if runtime is None:
        return function()
    if threads == 1:
        runtime.limit_threads(1)
        return function()
    shared = _shared
    if threading.current_thread() is threading.main_thread() and not shared.forked:
        if shared.main_pool is None:
            shared.main_pool = runtime.make_pool(threads)
        if shared.main_pool.threads == threads:
            with shared.busy:
                shared.main_pool.seats.go_home()
                runtime.limit_threads(threads)
                return function()
    return shared.runner(runtime, threads).call(function)
