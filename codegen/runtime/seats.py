"""Where the threads of a pool sit: the caller on one core, its workers on the others.

Threads that wait for each other by yielding look half idle, and Linux leaves two of them on one
core for seconds while another is free: a kernel then takes twice its time, in one process and
not in the next. So workers never run on the core of their caller (nor on its hyperthread), and
a caller that was moved onto one of theirs goes home before it calls. The caller's own affinity
stays as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cpu import core_of


def _current() -> Callable[[], int] | None:
    """The C library's sched_getcpu, where it has one."""
    function: Any = getattr(ctypes.CDLL(None), "sched_getcpu", None)
    return function if hasattr(os, "sched_setaffinity") else None


def first_core() -> int | None:
    """The lowest CPU this process may run on, where the system tells."""
    return min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


class Seats:
    """The seats of the calling thread and of the workers of its pool."""

    def __init__(self, root: Path = Path("/"), home: int | None = None) -> None:
        """Made by the thread that calls kernels, before its pool is first used.

        Args: home: a logical CPU; by default where the thread happens to be.
        """
        self._cpu = _current()
        here = -1 if self._cpu is None else self._cpu()
        self.home = here if home is None or here < 0 else home
        self.others: frozenset[int] = frozenset()
        if self.home >= 0:
            mine = core_of(root, self.home)
            allowed = os.sched_getaffinity(0)
            self.others = frozenset(c for c in allowed if core_of(root, c) != mine)
        self._caller = threading.get_native_id()

    def seat_worker(self) -> None:
        """Called on each thread of the pool once; on the caller itself it does nothing."""
        if self.others and threading.get_native_id() != self._caller:
            with contextlib.suppress(OSError):  # a sandbox may forbid it: slower, but right
                os.sched_setaffinity(0, self.others)

    def go_home(self) -> None:
        """Called before kernels run: 0.3 us, unless the caller has to move."""
        if self._cpu is None or not self.others or self._cpu() not in self.others:
            return
        with contextlib.suppress(OSError):
            allowed = os.sched_getaffinity(0)
            if self.home in allowed:
                os.sched_setaffinity(0, {self.home})
                os.sched_setaffinity(0, allowed)
