"""Programs with schedules in, what their kernels make of given inputs out: one seam per backend.

A backend compiles and runs many trials together, so that they may share a library or a pool of
compilers. What it cannot run is a value with a reason, never an exception.
"""

from __future__ import annotations

import atexit
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from autosched.codegen.build import BuiltKernel, Request, compile_kernels
from autosched.codegen.jobs import Failed, JobFailure
from autosched.codegen.measure_jobs import bind, run_guarded
from autosched.codegen.runtime.arrays import STORAGE, from_bfloat16, to_bfloat16
from autosched.codegen.task_files import TaskData
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.node import Program
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, replay
from autosched.ir.target import Target, host_target, parse_target
from autosched.tools.triton_interpreter import Interpreter

Arrays = Mapping[str, np.ndarray]
THREADS = 2


@dataclass(frozen=True)
class Trial:
    """A program, a schedule of it, and inputs by name in storage types."""

    program: Program
    schedule: Schedule
    inputs: Arrays


@dataclass(frozen=True)
class Refused:
    """The schedule is not legal after all, for a reason that only the build knows."""

    why: str


@dataclass(frozen=True)
class Broken:
    """A legal schedule without a result: a bug, be it of the compiler or of the kernel."""

    why: str


Result = Arrays | Refused | Broken  # outputs in storage types, by name


class Backend(Protocol):
    """`target`: what it schedules for; `narrow`: whether products of computed values are rounded
    to the type of the stored ones; `run`: a Result for each trial, in order."""

    name: str
    target: Target
    narrow: bool

    def quick(self, program: Program, schedule: Schedule) -> bool:
        """Whether the schedule's kernels can be run here in reasonable time."""
        ...

    def run(self, trials: Sequence[Trial]) -> list[Result]: ...


def backend(name: str) -> Backend:
    """The backend of a name. Raises: ValueError, which says which there are."""
    if name not in BACKENDS:
        raise ValueError(f"no backend {name!r}; there are: {', '.join(BACKENDS)}")
    return BACKENDS[name]()


# ---- TVM on this CPU ---------------------------------------------------------------------------

# What the build alone can refuse: an operand that would be packed too often.
_REFUSALS = frozenset(("PACK",))


class Tvm:
    """Kernels of one library, run in this process between guard bytes and on poisoned outputs."""

    name, narrow = "tvm", False

    def __init__(self) -> None:
        self.target = host_target()

    def quick(self, program: Program, schedule: Schedule) -> bool:
        return True

    def run(self, trials: Sequence[Trial]) -> list[Result]:
        requests = [Request(t.program, t.schedule, f"k{n}") for n, t in enumerate(trials)]
        with tempfile.TemporaryDirectory(prefix="autosched-") as folder:
            built = self._compiled(requests)
            return [
                self._ran(kernel, trial, Path(folder)) for kernel, trial in zip(built, trials)
            ]

    def _compiled(self, wanted: Sequence[Request]) -> list[BuiltKernel | Illegal | str]:
        if not wanted:
            return []
        try:
            return [*compile_kernels(wanted, self.target)]
        except Exception as error:  # of TVM: one kernel spoils the library of all
            if len(wanted) == 1:
                return [f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"]
            half = len(wanted) // 2
            return [*self._compiled(wanted[:half]), *self._compiled(wanted[half:])]

    @staticmethod
    def _ran(kernel: BuiltKernel | Illegal | str, trial: Trial, folder: Path) -> Result:
        if isinstance(kernel, Illegal):
            why = f"{kernel.code}: {kernel.why}"
            return Refused(why) if kernel.code in _REFUSALS else Broken(why)
        if isinstance(kernel, str):
            return Broken(kernel)
        library = folder / f"{abs(hash(kernel.library))}.so"
        if not library.exists():
            library.write_bytes(kernel.library)
        bound = bind(TaskData(trial.inputs, {}), library, kernel.symbol, kernel.args, THREADS)
        try:
            run_guarded(bound)
        except JobFailure as failure:
            return Broken(failure.reason)
        return bound.outputs


# ---- Triton on no GPU ---------------------------------------------------------------------------

MOST_PROGRAMS = 1000  # of all launches of a module: the interpreter runs one after the other


class Triton:
    """Modules for sm_90, run by Triton's interpreter in one process that lives on between calls."""

    name, narrow = "triton", True

    def __init__(self) -> None:
        self.target = parse_target("sm_90")

    def quick(self, program: Program, schedule: Schedule) -> bool:
        """What is not legal is as quick as can be."""
        made = _module(program, schedule)
        if isinstance(made, Illegal):
            return True
        return sum(launch.programs for launch in made.launches) <= MOST_PROGRAMS

    def run(self, trials: Sequence[Trial]) -> list[Result]:
        return [self._ran(t) for t in trials]

    @staticmethod
    def _ran(trial: Trial) -> Result:
        made = _module(trial.program, trial.schedule)
        if isinstance(made, Illegal):
            return Refused(f"{made.code}: {made.why}")
        halves = {n.attr[0] for n in trial.program.inputs if n.dtype == "bfloat16"}
        given = {n: from_bfloat16(a) if n in halves else a for n, a in trial.inputs.items()}
        got = _interpreter().run(made, given)
        if isinstance(got, Failed):
            return Broken(f"{got.status.value}: {got.reason.strip()}")
        return {o.name: _stored(got[o.name], o.dtype) for o in trial.program.outputs}


@functools.lru_cache(maxsize=256)
def _module(program: Program, schedule: Schedule) -> TritonModule | Illegal:
    tile = replay(program, schedule)
    return tile if isinstance(tile, Illegal) else emit(tile, Header("A kernel of a random program"))


@functools.cache
def _interpreter() -> Interpreter:
    """One for this process: to start it takes longer than most modules."""
    made = Interpreter()
    atexit.register(made.close)
    return made


def _stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return to_bfloat16(numbers.astype(np.float32))
    return numbers.astype(STORAGE[dtype])


BACKENDS: Mapping[str, Callable[[], Backend]] = {"tvm": Tvm, "triton": Triton}
