"""Shared libraries: TVM's small runtime and the kernels; ctypes only, no compiler, no tvm_ffi.

A kernel with a parallel loop calls TVM's thread pool through a pointer that it exports and that
is filled in here. The runtime library needs libtvm_ffi.so, which the `apache-tvm-ffi` wheel
brings; its Python side, which would import torch, is never imported.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UnsupportedMachineError
from .seats import Seats

RUNTIME_FILE = "libtvm_runtime.so"
# Functions of the runtime that kernels call, each through an exported pointer "__" + name.
_SLOTS = (
    "TVMBackendParallelLaunch", "TVMBackendParallelBarrier", "TVMBackendAllocWorkspace",
    "TVMBackendFreeWorkspace",
)  # fmt: skip
_LIMIT = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"  # void (int), of the calling thread
_COUNT = "_ZN3tvm7runtime9threading10NumThreadsEv"  # int (), makes the calling thread's pool
_TASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
# Idle workers spin this often before they sleep, about 10 ms. TVM's own 300,000 keep a core
# busy for half a second after each call, and delay the end of the process by as much.
_SPINS = 5_000

_loading = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_loading=threading.Lock()))


def _loaded(name: str) -> Path | None:
    """The path of a library of that file name which this process has mapped already."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        path = line.partition("/")[2].removesuffix(" (deleted)")
        if path.rpartition("/")[2] == name:
            return Path("/" + path)
    return None


def _installed(module: str, *parts: str) -> Path | None:
    """A file of an installed module, found without importing the module."""
    spec = importlib.util.find_spec(module)
    places = () if spec is None else spec.submodule_search_locations or ()
    files = (Path(place, *parts) for place in places)
    return next((file for file in files if file.is_file()), None)


def runtime_path(carried: Callable[[], Path]) -> Path:
    """The copy of the TVM runtime to load: a process bears only one, and aborts on a second.

    The one that is mapped already, else the one of an installed TVM, which the process may
    import later, else the one that the package carries.
    """
    return _loaded(RUNTIME_FILE) or _installed("tvm", "lib", RUNTIME_FILE) or carried()


@dataclass(frozen=True)
class Pool:
    """The pool of a thread: how many threads it has, the caller included, and where they sit."""

    threads: int
    seats: Seats


class Runtime:
    """The loaded TVM runtime; make it through `runtime`."""

    def __init__(self, path: Path) -> None:
        ffi = _loaded("libtvm_ffi.so") or _installed("tvm_ffi", "lib", "libtvm_ffi.so")
        if ffi is None:
            raise UnsupportedMachineError(
                "the kernels need libtvm_ffi.so: pip install apache-tvm-ffi"
            )
        try:
            ctypes.CDLL(str(ffi), ctypes.RTLD_GLOBAL)
            self.library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            self.limit_threads = self._function(_LIMIT, None, ctypes.c_int)
            self._count = self._function(_COUNT, ctypes.c_int)
        except (OSError, AttributeError) as error:
            raise UnsupportedMachineError(
                f"the TVM runtime at {path} can't be used ({error}); install the versions of "
                "apache-tvm-ffi and, if it is there, apache-tvm that the package asks for"
            ) from error
        self.addresses = {
            name: ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value
            for name in _SLOTS
        }

    def _function(self, symbol: str, result: Any, *args: Any) -> Callable[..., Any]:
        function = getattr(self.library, symbol)
        function.restype, function.argtypes = result, args
        return function

    def make_pool(self, threads: int) -> Pool:
        """Makes the calling thread's pool of `threads`.

        A pool belongs to the thread that made it and is never resized: where this thread had
        one, it is that one. TVM does not bind its threads to cores, since it would bind every
        process's to the same ones.
        """
        seats = Seats()
        with _environment(TVM_BIND_THREADS="0", TVM_THREAD_POOL_SPIN_COUNT=str(_SPINS)):
            self.limit_threads(threads)
            count = int(self._count())

            def started(task: int, group: int | None, data: int | None) -> int:
                seats.seat_worker()
                return 0

            # The workers read the environment as they start: one launch waits for them.
            self.library.TVMBackendParallelLaunch(_TASK(started), None, count)
        return Pool(count, seats)


@contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Environment variables that are set for a moment, but for those the user has set."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@functools.cache
def _runtime(path: Path) -> Runtime:
    return Runtime(path)


def runtime(carried: Callable[[], Path]) -> Runtime:
    """The TVM runtime of this process, loaded at the first call.

    Args: carried: finds the copy to load where the process and its environment have none.
    """
    with _loading:
        return _runtime(runtime_path(carried))


class Library:
    """A kernel library that is ready to be called.

    Args:
        path: the shared object; its content was checked by whoever passes it.
        carried: finds the TVM runtime to load if the library calls into one and no other copy
            is there.
    """

    def __init__(self, path: Path, carried: Callable[[], Path]) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise UnsupportedMachineError(f"{path} can't be loaded: {error}") from error
        slots = [(name, slot) for name in _SLOTS if (slot := self._slot(name)) is not None]
        self.runtime = runtime(carried) if slots else None
        for name, slot in slots:
            slot.value = self.runtime.addresses[name]  # type: ignore[union-attr]

    def _slot(self, name: str) -> ctypes.c_void_p | None:
        try:
            return ctypes.c_void_p.in_dll(self._library, "__" + name)
        except ValueError:
            return None

    def function(self, symbol: str) -> Callable[..., int]:
        """The C function of that name; it takes c_void_p and c_int32 objects, returns an int.

        Calls release the interpreter's lock.
        """
        try:
            function = getattr(self._library, symbol)
        except AttributeError as error:
            raise UnsupportedMachineError(f"the kernel library lacks {symbol}") from error
        function.restype = ctypes.c_int32
        return function
