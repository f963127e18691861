"""Chosen schedules in, the kernels of a package out.

Those of a CPU are compiled once more, each on its own; one for a CPU with wide vectors comes with
builds for lesser ones, of the same schedule. Those of a GPU are sources, which are emitted anew
with all that a reader wants to know, beside the machine code of the same functions, which lies in
the cache of builds since they were tried, and the definition as torch code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autosched.codegen.artifact import (
    Build,
    CpuKernel,
    GpuKernel,
    Kernel,
    KernelArg,
    Machine,
    gpu_args,
    operands,
)
from autosched.codegen.runtime.spec import arg_from_json
from autosched.codegen.torch_source import NotInTorch, torch_source
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_entry import Build as GpuBuild
from autosched.codegen.triton_entry import read_build
from autosched.ir.partition import Task
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, replay
from autosched.ir.target import X86_LEVELS, Target, parse_target
from autosched.ir.text import to_text
from autosched.tools.lab import Attempt, Built, BuiltModule, Lab
from autosched.tools.triton_lab import TritonLab

# Levels for which fallback builds are made, best first. Below v2 lies hardware of before 2009.
FALLBACKS = ("x86-64-v3", "x86-64-v2")

# What a package tells of compiled GPU code. (The length of PTX depends on where its source lies.)
FACTS = ("registers", "spill_bytes", "shared_bytes", "threads")


class CompileError(RuntimeError):
    """A schedule that was measured does not compile any more: a bug, or a full disk."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for a task, with what the package tells about its speed and code."""

    task: Task
    schedule: Schedule
    tuned_us: float | None
    peer_us: float | None
    facts: Mapping[str, int] = field(default_factory=dict)
    bound: str | None = None  # see GpuKernel

    @property
    def key(self) -> str:
        """Of the kernel: definition and schedule."""
        text = f"{self.task.key} {self.schedule.text}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def compile_winners(
    lab: Lab, target: Target, choices: Sequence[Choice], toolchain: str
) -> dict[str, Kernel]:
    """A kernel for each choice, by task key.

    Raises: CompileError where a schedule fails on the target it was measured on.
    """
    wanted = [(c.task.key, c.schedule, c.task.public_name) for c in choices]
    main = lab.compile(wanted, lab.target, sources=True)
    lesser = {level: lab.compile(wanted, f"cpu:{level}") for level in _levels(target)}
    out = {}
    for n, (choice, attempt) in enumerate(zip(choices, main, strict=True)):
        if attempt.built is None:
            raise CompileError(f"{choice.task.public_name} can't be compiled: {attempt.error}")
        fallbacks = {level: found[n] for level, found in lesser.items()}
        out[choice.task.key] = _kernel(choice, attempt, fallbacks, target, toolchain)
    return out


def gpu_winners(
    lab: TritonLab, target: Target, choices: Sequence[Choice], toolchain: str
) -> dict[str, Kernel]:
    """A kernel for each choice, by task key.

    Raises: CompileError where a schedule can't be emitted or compiled any more.
    """
    lab.prepare({c.task.key: c.task.program for c in choices})
    built = lab.build_all([(c.task.key, c.schedule) for c in choices])
    return {
        c.task.key: _raced(lab, c, attempt, target, toolchain)
        for c, attempt in zip(choices, list(built), strict=True)
    }


def _raced(
    lab: TritonLab, choice: Choice, attempt: Attempt, target: Target, toolchain: str
) -> Kernel:
    """The kernel, with the time of torch's operators where a GPU could tell."""
    made = gpu_kernel(choice, _entry(choice, attempt), target, toolchain)
    if made.reference is None or made.latency_us is None:
        return made
    assert isinstance(attempt.built, BuiltModule)
    names = [v.name for v in operands(made.args)]
    ratio = lab.against(choice.task.key, attempt.built, made.reference, names)
    return made if ratio is None else replace(made, reference_us=made.latency_us * ratio)


def _entry(choice: Choice, attempt: Attempt) -> GpuBuild:
    if not isinstance(attempt.built, BuiltModule):
        raise CompileError(f"{choice.task.public_name} can't be compiled: {attempt.error}")
    return read_build(Path(attempt.built.entry))


def gpu_kernel(choice: Choice, build: GpuBuild, target: Target, toolchain: str) -> GpuKernel:
    """The kernel of a choice whose schedule was built. Raises: CompileError."""
    task, schedule = choice.task, choice.schedule
    definition = to_text(task.program)
    tile = replay(task.program, schedule)
    header = Header(task.doc, definition, schedule.to_json())
    module = tile if isinstance(tile, Illegal) else emit(tile, header)
    if isinstance(module, Illegal):
        raise CompileError(f"{task.public_name} can't be emitted: {module.why}")
    if (module.tensors, module.launches) != (build.module.tensors, build.module.launches):
        raise CompileError(f"{task.public_name} is emitted with other launches than it was built")
    args = gpu_args(module)
    return GpuKernel(
        key=choice.key, public_name=task.public_name, doc=task.doc, source=module.source,
        definition=definition, schedule=schedule.to_json(), args=args,
        latency_us=choice.tuned_us, peer_us=None, peer="none", target=target.key,
        toolchain=toolchain, module=module, arch=target.arch,
        facts={name: build.facts()[name] for name in FACTS}, bound=choice.bound,
        machine=_machine(build), reference=_reference(task, args),
    )  # fmt: skip


def _machine(build: GpuBuild) -> tuple[Machine, ...]:
    return tuple(
        Machine((build.folder / k.file).read_bytes(), k.symbol, k.threads, k.shared_bytes,
                k.scratch_bytes, k.scratch_align)
        for k in build.kernels
    )  # fmt: skip


def _reference(task: Task, args: tuple[KernelArg, ...]) -> str | None:
    """Torch code of the definition; None where torch's operators can't say it."""
    try:
        return torch_source(task.program, [v.name for v in operands(args)], task.doc)
    except NotInTorch:
        return None


def _levels(target: Target) -> tuple[str, ...]:
    """The levels that lie below a target and are all it has in common with lesser CPUs."""
    if target.arch != "x86_64":
        return ()
    have = set(target.features)
    return tuple(level for level in FALLBACKS if set(X86_LEVELS[level]) < have)


def _kernel(
    choice: Choice, attempt: Attempt, fallbacks: Mapping[str, Attempt], target: Target,
    toolchain: str,
) -> Kernel:  # fmt: skip
    assert isinstance(attempt.built, Built)
    task, schedule = choice.task, choice.schedule
    args = tuple(map(arg_from_json, attempt.built.args))
    builds = tuple(
        Build(Path(a.built.library).read_bytes(), parse_target(f"cpu:{level}").features)
        for level, a in fallbacks.items()
        # The signature is one: another layout of packed weights would need weights of its own.
        if isinstance(a.built, Built) and tuple(map(arg_from_json, a.built.args)) == args
        and not _needs(args, level)
    )  # fmt: skip
    return CpuKernel(
        key=choice.key, public_name=task.public_name, doc=task.doc, symbol=attempt.built.symbol,
        library=Path(attempt.built.library).read_bytes(), source=attempt.built.source,
        definition=to_text(task.program), schedule=schedule.to_json(), args=args,
        cpu_features=target.features, latency_us=choice.tuned_us, peer_us=choice.peer_us,
        target=target.key, toolchain=toolchain, fallbacks=builds,
    )  # fmt: skip


def _needs(args: Sequence[object], level: str) -> bool:
    """Whether a kernel needs more than a level has: fp16 without F16C calls into a library."""
    halves = any(getattr(a, "dtype", "") == "float16" for a in args)
    return halves and "f16c" not in X86_LEVELS[level]
