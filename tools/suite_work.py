"""One GPU's share of a suite's rows in, their results in the folder out.

Rows are taken one by one from a list that the processes of a run share, a few ahead of the one
at hand, so that their schedules are chosen and built while others are on the GPU.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from autosched.codegen.jobs import Failed, Job, Stage
from autosched.datasets.suites import SuiteRow
from autosched.ir.record import utc_now
from autosched.ir.target import Target, parse_target
from autosched.tools.campaign import Bench
from autosched.tools.gpu_lab import GpuJobs, GpuLab, GpuLimits, Setup, reason
from autosched.tools.gpu_probe import Device
from autosched.tools.gpu_report import toolchain
from autosched.tools.learner import Learner
from autosched.tools.suite_folder import Folder
from autosched.tools.suite_options import Options, SuiteBenchError
from autosched.tools.suite_ours import AHEAD, Ahead, Finder, known_schedules, taught
from autosched.tools.suite_report import Result
from autosched.tools.suite_runner import Runner

LIMITS = GpuLimits(prepare_s=180.0, measure_s=60.0, build_s=60.0)
CEILINGS_S = 120.0
PACKAGES = ("torch", "triton", "helion")
_T = TypeVar("_T")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Parts:
    """What the processes of a run do, and how long: for tests, others. learns: from logs."""

    jobs: GpuJobs = field(default_factory=GpuJobs)
    limits: GpuLimits = LIMITS
    suite_jobs: str = "autosched.tools.suite_jobs"
    learns: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Parts:
        jobs = {k: tuple(v) if isinstance(v, list) else v for k, v in data["jobs"].items()}
        return cls(**{**data, "jobs": GpuJobs(**jobs), "limits": GpuLimits(**data["limits"])})


@dataclass
class Claims:
    """The rows of a run that no process has begun: whoever makes a row's file has it."""

    folder: Path
    rows: Sequence[SuiteRow]
    next: int = 0

    def take(self) -> SuiteRow | None:
        """A row that is this process's own from now on; None where there are no more."""
        while self.next < len(self.rows):
            row, self.next = self.rows[self.next], self.next + 1
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.folder / str(self.next), os.O_CREAT | os.O_EXCL))
                return row
        return None


def work(
    options: Options, claims: Claims, gpu: int, until: float, say: Say, parts: Parts
) -> None:
    """Races rows as long as there are some and time is left. gpu: the number for the results;
    until: on the monotonic clock.

    Raises: SuiteBenchError, TargetError, StoreError.
    """
    target = parse_target(options.target)
    launcher = "jit" if options.device == "cpu" else "cubin"
    setup = Setup(options.target, options.device, launcher, options.seed)
    env = {"TRITON_INTERPRET": "1"} if options.device == "cpu" else {}
    cores = len(os.sched_getaffinity(0))
    # The process that measures keeps a core, and so does the one that chooses.
    builders = max(1, cores - 2)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(Folder(options.out, options.signature))
        scratch = stack.enter_context(_scratch(options.scratch, gpu))
        lab = stack.enter_context(GpuLab(
            scratch, setup, builders=builders, jobs=parts.jobs, limits=parts.limits,
            measurer_env=env, measure=not options.build_only,
        ))  # fmt: skip
        lab.start_builders()
        bench = Bench(target, toolchain(f"triton-{version('triton')}"), 1, options.seed)
        live = [r.program().key for r in claims.rows if options.how.tunes(r)]
        # While the processes start and the device is measured.
        known = _begun(lambda: known_schedules(target.key, (folder.store, *options.stores)))
        learner = _begun(lambda: taught(bench, live) if parts.learns else Learner(options.seed))
        device = _device(lab, target)
        facts = _facts(options, lab, device, parts.suite_jobs)
        folder.note(facts)
        if options.device != "cpu":
            bench = replace(bench, target=replace(target, device=device))
        where = None if options.build_only else Device(device, target.arch, options.device)
        finder = stack.enter_context(Finder(
            lab, folder.store, bench, options.how, where, known.result(), learner.result(),
            builders,
        ))  # fmt: skip
        runner = Runner(lab, finder, bench, folder.store, options.rounds, options.how, until,
                        parts.suite_jobs)  # fmt: skip
        own = {"gpu": gpu, "ceilings": facts["ceilings"]}
        with contextlib.suppress(KeyboardInterrupt):
            for row, ahead in _rows(claims, finder, runner):
                data = runner.row(row, ahead)
                folder.add({**data, **own})
                say(_line(Result({**data, **own})))


def _begun(make: Callable[[], _T]) -> Future[_T]:
    """What is made in a thread that nobody waits for who does not ask for its result."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(make())
        except Exception as error:  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _rows(
    claims: Claims, finder: Finder, runner: Runner
) -> Iterator[tuple[SuiteRow, Future[Ahead]]]:
    """The rows in turn, some of them begun ahead; none for which there is no time."""
    begun: deque[tuple[SuiteRow, Future[Ahead]]] = deque()
    more = True
    while more or begun:
        while more and len(begun) <= AHEAD:
            row = claims.take()
            more = row is not None
            if row is not None and runner.fits(row):
                begun.append((row, finder.ahead(row)))
        if begun:
            row, ahead = begun.popleft()
            if runner.fits(row):
                yield row, ahead


def _line(result: Result) -> str:
    """One row as it is done."""
    found = result.ratio("best")
    us = result.us()
    words = [result.name, f"{us:.1f} µs" if us is not None else
             f"{result.data.get('built', 0)} built", "" if found is None else
             f"{found} of {result.against('best')}", str(result.data["note"])]  # fmt: skip
    return "  ".join(filter(None, words)) + f"  [{result.data['seconds']:.0f} s]"


@contextlib.contextmanager
def _scratch(kept: Path | None, gpu: int) -> Iterator[Path]:
    """The folder of builds and of compilers' caches, this process's own: one that is to be kept,
    or a passing one."""
    if kept is not None:
        yield kept / f"gpu{gpu}"
        return
    with tempfile.TemporaryDirectory(prefix="autosched-suite-") as folder:
        yield Path(folder)


def _device(lab: GpuLab, target: Target) -> str:
    """Name of the device. Raises: SuiteBenchError where it is not there or is another one."""
    if lab.measurer is None:
        return target.device
    outcome = lab.measurer.device()
    if isinstance(outcome, Failed):
        raise SuiteBenchError(
            f"no GPU can be used here: {reason(outcome).splitlines()[0]}\n--plan lists the rows, "
            "--build-only builds their kernels without one"
        )
    found = outcome.value.get("capability", target.arch)
    if found != target.arch:
        raise SuiteBenchError(f"this device is {found}, the target is {target.arch}: name it by "
                              "--target")  # fmt: skip
    return str(outcome.value["device"])


def _facts(options: Options, lab: GpuLab, device: str, jobs: str) -> dict[str, Any]:
    """What the report's preface says, with the ceilings measured now."""
    ceilings: dict[str, float] = {}
    if lab.measurer is not None:
        outcome = lab.measurer.run(Job(f"{jobs}:ceilings", {"device": options.device},
                                       Stage.RUN, CEILINGS_S))  # fmt: skip
        if isinstance(outcome, Failed):
            raise SuiteBenchError(f"the device's ceilings can't be measured: {reason(outcome)}")
        ceilings = outcome.value
    versions = {"autosched": version("autosched"), "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"command": options.command, "when": utc_now()[:10], "device": device,
            "versions": versions, "ceilings": ceilings}  # fmt: skip
