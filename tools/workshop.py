"""A target in, what its kernels are tried with out: lab, peer, and how winners become kernels.

One function for each kind of target; the tuner is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from autosched.codegen.artifact import Kernel
from autosched.ir.target import Target, TargetError, host_target, parse_target
from autosched.tools.campaign import Bench, Book, Entry, TaskState
from autosched.tools.gpu_lab import GpuJobs
from autosched.tools.gpu_probe import Device, check_compiler, check_device
from autosched.tools.gpu_report import toolchain as gpu_toolchain
from autosched.tools.lab import AnyLab, Jobs, Lab, Limits
from autosched.tools.models import Model
from autosched.tools.peers import Peer
from autosched.tools.picks import pick_unmeasured
from autosched.tools.stopping import Stopper
from autosched.tools.toolchain import toolchain
from autosched.tools.triton_lab import TritonLab
from autosched.tools.tuning import Progress
from autosched.tools.winners import Choice, compile_winners, gpu_winners

Probe = Callable[[], Device | None]
GPU_JOBS = GpuJobs()


@dataclass(frozen=True)
class Order:
    """What is to be tuned where. probe: finds the GPU of this machine."""

    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    target_name: str
    target: Target
    seed: int
    jobs: Jobs
    limits: Limits
    probe: Probe
    gpu_jobs: GpuJobs


@dataclass(frozen=True)
class Workshop:
    """Everything that candidates are tried with.

    winners: makes kernels of choices; threads: that a package's kernels use on the CPU.
    pick: chooses without measuring, where nothing can be measured.
    """

    bench: Bench
    lab: AnyLab
    peer: Peer | None
    winners: Callable[[Sequence[Choice]], dict[str, Kernel]]
    threads: int | None
    pick: Callable[[Sequence[TaskState], Book, Stopper, Progress], dict[str, Entry]] | None = None


def usable_target(text: str) -> Target:
    """The target of that name. Raises: TargetError where kernels for it can't be made here."""
    target = parse_target(text)
    _CHECKS[target.kind](target)
    return target


def _check_cpu(target: Target) -> None:
    if missing := target.lacks(host_target()):
        raise TargetError(
            f"target {target.name!r} needs {', '.join(missing)}, which this CPU lacks: kernels are "
            "measured where they are tuned; use --target auto, or tune on such a machine"
        )


_CHECKS: Mapping[str, Callable[[Target], None]] = {"cpu": _check_cpu, "gpu": check_compiler}


@contextmanager
def _cpu_workshop(order: Order, scratch: Path) -> Iterator[Workshop]:
    target = order.target
    bench = Bench(target, toolchain(), target.cores, order.seed)
    with (
        Lab(scratch, order.target_name, target.cores, order.seed, jobs=order.jobs,
            limits=order.limits) as lab,
        Peer(scratch, order.model.peer) as peer,
    ):  # fmt: skip
        # Both take seconds to load what they need: the ranking runs meanwhile.
        lab.warm_up()
        peer.extract(order.model.file_in(scratch), order.shapes, order.target_name, order.seed)
        def winners(choices: Sequence[Choice]) -> dict[str, Kernel]:
            return compile_winners(lab, target, choices, bench.toolchain)

        yield Workshop(bench, lab, peer, winners, target.cores)


@contextmanager
def _gpu_workshop(order: Order, scratch: Path) -> Iterator[Workshop]:
    device = order.probe()
    check_device(order.target, device)
    # What was measured on another GPU of the same architecture says so.
    target = order.target if device is None else replace(order.target, device=device.name)
    bench = Bench(target, gpu_toolchain(f"triton-{version('triton')}"), 1, order.seed)
    with TritonLab(scratch, order.target_name, order.seed, device, jobs=order.gpu_jobs) as lab:
        def pick(
            states: Sequence[TaskState], book: Book, stopper: Stopper, report: Progress
        ) -> dict[str, Entry]:
            return pick_unmeasured(states, lab, book, stopper, report)

        def winners(choices: Sequence[Choice]) -> dict[str, Kernel]:
            return gpu_winners(lab, target, choices, bench.toolchain)

        yield Workshop(bench, lab, None, winners, None, pick if device is None else None)


_WORKSHOPS: Mapping[str, Callable[[Order, Path], AbstractContextManager[Workshop]]] = {
    "cpu": _cpu_workshop, "gpu": _gpu_workshop,
}  # fmt: skip


def workshop(order: Order, scratch: Path) -> AbstractContextManager[Workshop]:
    """The workshop for the target of an order; it lives in the folder `scratch`.

    Raises: TargetError where the GPU of this machine is another one.
    """
    return _WORKSHOPS[order.target.kind](order, scratch)
