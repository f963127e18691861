"""Entry point of a worker process: job frames in on one descriptor, result frames out on another.

Started by workers.WorkerPool as `python -m autosched.codegen.worker_main SETTINGS`; nothing of
the user's script is imported. What jobs print goes to stdout and stderr, which the pool keeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autosched.codegen import frames
from autosched.codegen.jobs import Fault, JobFailure, resolve

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_WATCH_S = 1.0
_ORPHANED = 82  # exit status, seen by nobody


@dataclass(frozen=True)
class Settings:
    """What a worker must know before its first job; plain JSON on its command line."""

    jobs_fd: int
    results_fd: int
    parent_pid: int
    packages: tuple[str, ...]
    preload: tuple[str, ...]
    memory_limit_bytes: int | None

    def to_text(self) -> str:
        return json.dumps(asdict(self))


def main(argv: Sequence[str]) -> int:
    settings = Settings(**json.loads(argv[0]))
    _die_with(settings.parent_pid)
    _prefer_for_oom_killer()
    if settings.memory_limit_bytes is not None:
        _limit_memory(settings.memory_limit_bytes)
    faulthandler.enable()
    for fd in (settings.jobs_fd, settings.results_fd):
        os.set_inheritable(fd, False)  # compilers that jobs start must not hold our pipes open
    for name in settings.preload:
        importlib.import_module(name)
    with open(settings.jobs_fd, "rb") as jobs, open(settings.results_fd, "wb", 0) as results:
        results.write(frames.encode({"ready": os.getpid()}))
        while True:
            there, job = frames.read(jobs)
            if not there:
                return 0
            answer = _answer(job, settings.packages)
            sys.stdout.flush()
            results.write(answer)


def _answer(job: dict[str, Any], packages: Sequence[str]) -> bytes:
    """Runs one job; its result frame, or the frame that says how it failed."""
    begun = time.perf_counter()
    try:
        value = resolve(job["function"], packages)(**job["kwargs"])
        return frames.encode({"ok": value, "run_s": time.perf_counter() - begun})
    except JobFailure as failure:
        told: dict[str, Any] = {"status": failure.status.value, "reason": failure.reason}
    except MemoryError as error:
        told = {"fault": Fault.MEMORY.value, "reason": str(error) or "MemoryError"}
    except (Exception, SystemExit) as error:
        # A job may raise anything; here it stops being an exception and becomes a value.
        traceback.print_exception(error)  # to the captured stderr
        told = {"fault": Fault.RAISED.value, "reason": f"{type(error).__name__}: {error}"}
    return frames.encode({**told, "run_s": time.perf_counter() - begun})


def _die_with(parent_pid: int) -> None:
    """Has this process killed when its parent ends, also by kill -9."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:  # it ended before the line above took effect
        os._exit(_ORPHANED)


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_WATCH_S)
    os._exit(_ORPHANED)


def _prefer_for_oom_killer() -> None:
    """If memory runs out, the kernel shall take the worker and spare the tuner."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _limit_memory(limit_bytes: int) -> None:
    """Bounds private writable memory: mapped files and reserved address space are free."""
    import resource  # absent on Windows
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    resource.setrlimit(kind, (limit_bytes, limit_bytes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
