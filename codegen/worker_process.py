"""The pool's side of one worker process: job frames in, result frames and last words out.

Nothing here blocks: a worker may hang, die or stop reading at any moment. The process leads a
group of its own, so that the terminal's Ctrl-C passes it by and a kill takes its compilers along.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autosched.codegen import frames
from autosched.codegen.jobs import Fault
from autosched.codegen.worker_main import Settings

TAIL_BYTES = 8192
_CHUNK = 1 << 16
_REAP_S = 5.0
_POLL_S = 0.002

# What allocation failures say when they come as an abort or as another error's text.
_MEMORY_MARKS = ("bad_alloc", "out of memory", "Cannot allocate memory", "MemoryError")


@dataclass(frozen=True)
class WorkerSpec:
    """How to start a worker: extra environment, modules to import first, who may be called."""

    env: Mapping[str, str]
    preload: tuple[str, ...]
    packages: tuple[str, ...]
    memory_limit_bytes: int | None


class WorkerProcess:
    """One running child. `jobs`, `results` and `output` are descriptors for a selector to watch."""

    def __init__(self, spec: WorkerSpec) -> None:
        jobs_read, self.jobs = os.pipe()
        self.results, results_write = os.pipe()
        self.output, output_write = os.pipe()
        settings = Settings(jobs_read, results_write, os.getpid(), spec.packages, spec.preload,
                            spec.memory_limit_bytes)
        try:
            # -P: a file named json.py in the user's folder must not become our json.
            # The environment is inherited as it is; nothing of it steers this code.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-u", "-m", "autosched.codegen.worker_main",
                 settings.to_text()],
                stdin=subprocess.DEVNULL, stdout=output_write, stderr=output_write,
                pass_fds=(jobs_read, results_write), env={**os.environ, **spec.env},
                start_new_session=True)
        except OSError:
            self._close_ends()
            raise
        finally:
            for fd in (jobs_read, results_write, output_write):
                os.close(fd)
        for fd in (self.jobs, self.results, self.output):
            os.set_blocking(fd, False)
        self._ended_itself = False
        self._unsent = bytearray()
        self._received = bytearray()
        self._tail = bytearray()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: bytes) -> bool:
        """Queues one job frame, forgets what earlier jobs printed; then as flush()."""
        self._tail.clear()
        self._unsent += frame
        return self.flush()

    def flush(self) -> bool:
        """Writes what the pipe takes; False while some is left, to be written once `jobs` has
        room. A broken pipe shows as the end of `results`."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                del self._unsent[:os.write(self.jobs, self._unsent)]
            return True
        return False

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Result frames that are complete, and whether the worker still lives.

        Raises ValueError for bytes that are no frame.
        """
        data, alive = _drain(self.results)
        self._received += data
        found: list[dict[str, Any]] = []
        while True:
            there, value = frames.take(self._received)
            if not there:
                return found, alive
            found.append(value)

    def hear(self) -> bool:
        """Keeps the end of what was printed; False once nobody can print any more."""
        data, alive = _drain(self.output)
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        return alive

    @property
    def tail(self) -> str:
        return self._tail.decode(errors="replace")

    def kill(self, grace_s: float = 0.0) -> None:
        """Kills the whole group, reaps the process, hears its last words; frees descriptors.

        grace_s: how long a process that has closed its pipes may take to end by itself.
        """
        self._ended_itself = self._is_over(grace_s)
        # The unreaped leader keeps the group's number from being reused.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_S)
        self.hear()
        self._close_ends()

    def _is_over(self, grace_s: float) -> bool:
        """Whether the process ends within grace_s; leaves it to be reaped later."""
        limit = time.monotonic() + grace_s
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() >= limit:
                return False
            time.sleep(_POLL_S)
        return True

    def death(self) -> tuple[Fault, str]:
        """How a process that ended without being told to did so; call after kill()."""
        code = self._process.returncode
        if code is None or not self._ended_itself:
            return Fault.CRASHED, "the worker process closed its pipes and did not end"
        if code == -signal.SIGKILL:
            return Fault.MEMORY, ("the worker process was killed from outside (SIGKILL), most "
                                  "likely by the system for lack of memory")
        how = (f"exited with status {code}" if code >= 0 else
               f"died from {signal.Signals(-code).name} ({signal.strsignal(-code)})")
        fault = Fault.MEMORY if means_memory(self.tail) else Fault.CRASHED
        return fault, f"the worker process {how}"

    def _close_ends(self) -> None:
        for fd in (self.jobs, self.results, self.output):
            os.close(fd)


def means_memory(text: str) -> bool:
    """Whether an error's text says that an allocation failed."""
    return any(mark in text for mark in _MEMORY_MARKS)


def _drain(fd: int) -> tuple[bytes, bool]:
    """What can be read now without waiting, and False if the other end is closed."""
    parts = []
    try:
        while data := os.read(fd, _CHUNK):
            parts.append(data)
            if len(parts) * _CHUNK > frames.MAX_BYTES:
                return b"".join(parts), True
    except BlockingIOError:
        return b"".join(parts), True
    return b"".join(parts), False
