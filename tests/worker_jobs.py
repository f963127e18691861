"""Jobs for tests of the worker pool: each does one thing that real kernels and compilers do."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from os import getcwd  # noqa: F401  (a name that is imported, not defined, here)
from pathlib import Path
from typing import Any

import numpy as np

from autosched.codegen.workers import JobFailure
from autosched.ir.record import Status

_seen = 0


def echo(value: Any = None, say: str = "") -> Any:
    print(say, end="")
    return value


def count() -> list[int]:
    """This worker's number, and how many jobs of this kind it has had."""
    global _seen
    _seen += 1
    return [os.getpid(), _seen]


def environment(name: str) -> str | None:
    return os.environ.get(name)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def hang_in_c() -> None:
    """Holds the interpreter's lock for ever: no Python signal handler would get a turn."""
    ctypes.PyDLL(None).sleep(3600)


def hang_with_a_child(path: str) -> None:
    """As a compiler that is started by a job and never ends."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    Path(path).write_text(str(child.pid))
    time.sleep(3600)


def segfault() -> None:
    print("before the crash", file=sys.stderr)
    ctypes.string_at(0)


def abort_for_memory() -> None:
    print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr)
    os.abort()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(status: int) -> None:
    os._exit(status)


def python_exit() -> None:
    sys.exit(3)


def refuse() -> None:
    raise ValueError("no such thing")


def wrong() -> None:
    raise JobFailure(Status.WRONG_RESULT, "rel. error 0.5")


def lost_device() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def allocate(n_bytes: int) -> int:
    return int(np.ones(n_bytes // 8).nbytes)


def not_json() -> Any:
    return object()


def shout(n_bytes: int) -> int:
    """More output than any pipe holds, from Python and from below it."""
    print("x" * n_bytes)
    os.write(2, b"y" * n_bytes + b"THE END")
    return n_bytes


def close_pipes() -> None:
    os.closerange(3, 100)
    time.sleep(3600)


def adder(n: int) -> Any:
    """A factory: something to time."""
    a = np.ones(n, np.float32)
    out = np.empty_like(a)
    return lambda: np.add(a, a, out=out)


def spinner(n: int) -> Any:
    """A factory whose threads never sleep, as a bad peer's would."""
    def spin() -> None:
        while True:
            pass
    threading.Thread(target=spin, daemon=True).start()
    return adder(n)


def crasher() -> Any:
    return segfault
