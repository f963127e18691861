"""What a tuner hands to the package writer: compiled kernels, a plan and weights, checked.

The signatures and the plan are those of `codegen.runtime.spec`, which explains the C interface of
a kernel; here are the kernels with all that a reader of a package wants to know about them.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np

from autosched.codegen.runtime.arrays import FLOAT8, STORAGE
from autosched.codegen.runtime.spec import (
    NATIVE,
    ROLES,
    TRITON,
    KernelArg,
    PackSpec,
    Plan,
    Step,
    Value,
    operands,
)
from autosched.codegen.triton_spec import TritonModule

__all__ = [
    "Artifact", "ArtifactError", "Build", "CpuKernel", "GpuKernel", "Kernel", "KernelArg",
    "PackSpec", "Plan", "Step", "Value", "check", "gpu_args", "operands",
]  # fmt: skip

_TYPES = {NATIVE: frozenset(STORAGE), TRITON: frozenset((*STORAGE, *FLOAT8))}  # of arguments
Constant = np.ndarray | Callable[[], np.ndarray]  # a callable reads a big one when it is written
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_TAKEN = frozenset({"load", "manifest", "runtime", "kernels"})  # names of a package's own


class ArtifactError(ValueError):
    """An artifact that contradicts itself: a bug of whoever made it."""


@dataclass(frozen=True)
class Build:
    """One shared object of a kernel and the CPU features it needs, by LLVM's names."""

    library: bytes = field(repr=False)
    cpu_features: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A tuned kernel: what is the same whatever it runs on.

    Args:
        key: content key of definition and schedule; unique in a package.
        public_name: says what it computes; kernels of several shapes may share it.
        doc: one sentence on what it computes, shown by help().
        source, definition, schedule: readable source, the algebra's text, JSON.
        args: in call order.
        latency_us, peer_us: measured medians of the kernel and of the framework's own.
        target: key of the Target that it was tuned for.
    """

    code: ClassVar[str]  # what it is made of: a row of the tables of writers and loaders

    key: str
    public_name: str
    doc: str
    source: str = field(repr=False)
    definition: str = field(repr=False)
    schedule: Mapping[str, Any]
    args: tuple[KernelArg, ...]
    latency_us: float | None
    peer_us: float | None
    target: str
    toolchain: str
    peer: str = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class CpuKernel(Kernel):
    """A shared object and its source as TVMScript.

    Args:
        symbol: of the C function in `library`; `extents` follow its arguments as int32.
        fallbacks: builds of the same source for CPUs with fewer features, best first.
    """

    code: ClassVar[str] = NATIVE

    symbol: str
    library: bytes = field(repr=False)
    cpu_features: tuple[str, ...]
    extents: tuple[int, ...] = ()
    fallbacks: tuple[Build, ...] = ()

    @property
    def builds(self) -> tuple[Build, ...]:
        """Every build, best first."""
        return (Build(self.library, self.cpu_features), *self.fallbacks)


@dataclass(frozen=True)
class Machine:
    """Machine code of one launch of a GPU kernel, with what the driver has to be told.

    symbol: its function; threads: of a block; shared_bytes: dynamic, of a block; scratch_bytes:
    global memory for each program, aligned to scratch_align.
    """

    cubin: bytes = field(repr=False)
    symbol: str
    threads: int
    shared_bytes: int
    scratch_bytes: int = 0
    scratch_align: int = 1


@dataclass(frozen=True, kw_only=True)
class GpuKernel(Kernel):
    """Triton functions and how they are launched, for GPUs of one architecture ("sm_90").

    args are the module's tensors that are no scratch; facts: of the compiled code, the worst of
    its launches (registers, spilled bytes, shared memory). bound: a dtype as coarse as its
    arithmetic, where that is coarser than its outputs. machine: for each launch, where it was
    compiled; without, Triton compiles at the first call. reference: torch code of the definition,
    which stands in on other machines, and where it was measured to be faster than the kernel:
    that took reference_us.
    """

    code: ClassVar[str] = TRITON

    module: TritonModule = field(repr=False)
    arch: str
    facts: Mapping[str, int] = field(default_factory=dict)
    bound: str | None = None
    machine: tuple[Machine, ...] = field(default=(), repr=False)
    reference: str | None = field(default=None, repr=False)
    reference_us: float | None = None

    @property
    def loses(self) -> bool:
        """Whether torch's operators were measured to be faster."""
        return (
            self.reference is not None and self.reference_us is not None
            and self.latency_us is not None and self.reference_us < self.latency_us
        )  # fmt: skip


def gpu_args(module: TritonModule) -> tuple[KernelArg, ...]:
    """The signature of a module: its tensors in order, but for those that a call brings along."""
    return tuple(
        KernelArg(t.name, t.role, t.dtype, t.extents)
        for t in module.tensors
        if t.role not in ("scratch", "counter")
    )


@dataclass(frozen=True)
class Artifact:
    """All of a package. `weights` has every raw constant that the plan names."""

    kernels: tuple[Kernel, ...]
    plan: Plan | None = None
    weights: Mapping[str, Constant] = field(default_factory=dict, repr=False)
    threads: int | None = None  # that the kernels were tuned with


def step_args(kernel: Kernel) -> tuple[KernelArg, ...]:
    """The arguments a Step names: all but the workspaces."""
    return tuple(a for a in kernel.args if a.role != "workspace")


def check(artifact: Artifact) -> None:
    """Raises ArtifactError unless every name, dtype and size of the artifact fits."""
    for problem in _problems(artifact):
        raise ArtifactError(problem)


def _problems(artifact: Artifact) -> Iterator[str]:
    keys = [kernel.key for kernel in artifact.kernels]
    if len(set(keys)) < len(keys):
        yield "two kernels share a key"
    for kernel in artifact.kernels:
        yield from (f"kernel {kernel.key}: {text}" for text in _of_kernel(kernel))
    if artifact.plan is not None:
        yield from _of_plan(artifact, artifact.plan)


def _of_kernel(kernel: Kernel) -> Iterator[str]:
    names = {"public name": kernel.public_name}
    if isinstance(kernel, CpuKernel):
        names["symbol"] = kernel.symbol
    for what, name in names.items():
        if not _NAME.fullmatch(name) or keyword.iskeyword(name) or name in _TAKEN:
            yield f"{name!r} can't be a {what}"
    if isinstance(kernel, GpuKernel):
        yield from _of_module(kernel)
    if len({arg.name for arg in kernel.args}) < len(kernel.args):
        yield "two arguments share a name"
    if not any(arg.role == "output" for arg in kernel.args):
        yield "no output"
    for arg in kernel.args:
        if arg.role not in ROLES or arg.dtype not in _TYPES[kernel.code]:
            yield f"{arg.name} has an unknown role or dtype: {arg.role} {arg.dtype}"
        if (arg.pack is not None) != (arg.role == "packed"):
            yield f"{arg.name} is {arg.role}, with{'out' if arg.pack is None else ''} a pack"
        if arg.pack is not None:
            yield from _of_pack(arg, arg.pack)


def _of_module(kernel: GpuKernel) -> Iterator[str]:
    if kernel.args != gpu_args(kernel.module):
        yield "its arguments are not the tensors of its module"
    if packed := [arg.name for arg in kernel.args if arg.role == "packed"]:
        yield f"{packed[0]} is packed, which no loader of GPU kernels does"
    if kernel.machine and len(kernel.machine) != len(kernel.module.launches):
        yield f"{len(kernel.machine)} pieces of machine code for another number of launches"
    known = {t.name for t in kernel.module.tensors}
    for launch in kernel.module.launches:
        if lost := sorted(set(launch.tensors) - known):
            yield f"{launch.kernel} is passed {lost[0]}, which is no tensor of its module"


def _of_pack(arg: KernelArg, pack: PackSpec) -> Iterator[str]:
    if pack.dims != arg.shape:
        yield f"{arg.name} is {arg.shape} but is packed as {pack.dims}"
    if len(pack.index) != len(pack.source_shape):
        yield f"{arg.name} has {len(pack.index)} indices for {len(pack.source_shape)} dimensions"
    if pack.source_dtype not in STORAGE:
        yield f"{arg.name} packs an unknown dtype {pack.source_dtype}"


def _of_plan(artifact: Artifact, plan: Plan) -> Iterator[str]:
    kernels = {kernel.key: kernel for kernel in artifact.kernels}
    codes = sorted({kernels[s.kernel].code for s in plan.steps if s.kernel in kernels})
    if len(codes) > 1:
        yield f"its plan mixes kernels that run on different machines: {', '.join(codes)}"
    weights = {v.name: v for v in plan.constants}
    known = {v.name: v for v in (*plan.inputs, *plan.values, *plan.outputs)}
    both = sorted(set(known).intersection(weights) - {v.name for v in plan.outputs})
    if both:
        yield f"{both[0]} is both a value and a weight"
    lacking = sorted(set(weights) - set(artifact.weights))
    if lacking:
        yield f"weight {lacking[0]} has no data"
    written = {v.name for v in plan.inputs}
    for name, of in plan.aliases.items():
        if name not in known or (of not in known and of not in weights):
            yield f"alias {name} of {of}: an unknown name"
    for number, step in enumerate(plan.steps):
        where = f"step {number}"
        if (step.kernel is None) == (step.island is None):
            yield f"{where} is neither a kernel nor an island"
        elif step.island is not None:
            if step.island not in plan.islands:
                yield f"{where} runs an unknown island {step.island}"
            written.update(n for n in step.args if n not in weights)
        elif step.kernel not in kernels:
            yield f"{where} runs an unknown kernel {step.kernel}"
        else:
            args = step_args(kernels[step.kernel])
            yield from _of_step(where, args, step.args, known, weights, written, plan.aliases)
        unknown = [n for n in step.args if n not in known and n not in weights]
        if unknown:
            yield f"{where} names {unknown[0]}, which is neither a value nor a weight"
    for value in plan.outputs:
        if _root(value.name, plan.aliases) not in (*written, *weights):
            yield f"output {value.name} is never written"


def _root(name: str, aliases: Mapping[str, str]) -> str:
    while name in aliases:
        name = aliases[name]
    return name


def _of_step(where: str, args: tuple[KernelArg, ...], names: tuple[str, ...],
             known: Mapping[str, Value], weights: Mapping[str, Value], written: set[str],
             aliases: Mapping[str, str]) -> Iterator[str]:
    """Problems of one kernel call; adds what it writes to `written`."""
    if len(args) != len(names):
        yield f"{where} passes {len(names)} arguments for {len(args)}"
        return
    for arg, name in zip(args, names):
        root = _root(name, aliases)
        given = weights.get(name) or known.get(name)
        dtype, shape = arg.dtype, arg.shape
        if arg.pack is not None:
            dtype, shape = arg.pack.source_dtype, arg.pack.source_shape
        if given is not None and (given.dtype, prod(given.shape)) != (dtype, prod(shape)):
            yield f"{where} passes {given} as {arg.name} {dtype}{list(shape)}"
        if arg.role == "output":
            if name in weights:
                yield f"{where} writes the weight {name}"
            written.add(root)
        elif arg.role == "packed" and name not in weights:
            yield f"{where} passes {name} as {arg.name}, but only weights can be packed"
        elif root not in written and root not in weights:
            yield f"{where} reads {name} before it is written"
