"""A TritonModule and a GPU target in, its compiled kernels in a folder out; no GPU is needed.

The folder is an entry of a cache (see triton_entry) and named by its key: that of the source, the
launches, the target and the compiler's version. An entry appears whole, by one rename, and is
never changed; a module that does not compile leaves none.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from autosched.codegen.runtime.launch import load_kernels
from autosched.codegen.triton_entry import (
    FORMAT,
    INDEX,
    SOURCE,
    Build,
    BuiltKernel,
    read_build,
)
from autosched.codegen.triton_faults import fault_of
from autosched.codegen.triton_machine import machine_fault_of
from autosched.codegen.triton_spec import Launch, TritonModule
from autosched.ir.record import canonical_json
from autosched.ir.target import Target

WARP, MAX_REGISTERS = 32, 65536  # threads of a warp; registers of a multiprocessor
ALIGNMENT = 16  # bytes that every tensor's address is a multiple of, and is compiled for

# How Triton calls the types that tensors are stored in.
_POINTERS: Mapping[str, str] = {
    "float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16",
    "float8_e4m3": "fp8e4nv", "float8_e5m2": "fp8e5", "int64": "i64", "int32": "i32",
    "int16": "i16", "int8": "i8", "uint64": "u64", "uint32": "u32", "uint16": "u16",
    "uint8": "u8", "bool": "i1",
}  # fmt: skip
_SIZE = "i32"
# What ptxas says of a kernel.
_STACK, _REGISTERS = re.compile(r"(\d+) bytes stack frame"), re.compile(r"Used (\d+) registers")
_SERIALISED = re.compile(r"\(C75\d\d\)[^\n]* are serialized")


class DoesNotFitError(ValueError):
    """A kernel compiles, and needs more than the target has."""


class MiscompiledError(RuntimeError):
    """What the compiler made has a fault that is known to give wrong values, or to read where no
    memory is."""


def toolchain() -> str:
    """Name and version of the compiler."""
    return f"triton-{triton.__version__}"


def build_key(module: TritonModule, target: Target) -> str:
    """Content key of a module compiled for a target: 32 hex digits."""
    facts = {"module": module.to_json(), "target": target.arch, "toolchain": toolchain(),
             "format": FORMAT}  # fmt: skip
    return hashlib.blake2b(canonical_json(facts).encode(), digest_size=16).hexdigest()


def build(module: TritonModule, target: Target, cache: Path) -> Build:
    """The entry of a module, compiled unless it is there already.

    Raises: DoesNotFitError, MiscompiledError; and whatever Triton raises for a source that it
    cannot compile.
    """
    final = cache / build_key(module, target)
    if (final / INDEX).is_file():
        return read_build(final)
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    try:
        _fill(made, module, target)
        _publish(made, final)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return read_build(final)


def _fill(folder: Path, module: TritonModule, target: Target) -> None:
    begun = time.perf_counter()
    (folder / SOURCE).write_text(module.source, "utf-8")
    functions = load_kernels(folder / SOURCE)
    done: dict[tuple[object, ...], BuiltKernel] = {}
    kernels = []
    for number, launch in enumerate(module.launches):
        types = _types(module, launch)
        shape = (launch.kernel, types, launch.warps, launch.stages, launch.registers)
        if shape not in done:
            function = getattr(functions, launch.kernel)
            file = folder / f"{launch.kernel}.{number}.cubin"
            done[shape] = _compiled(function, types, launch, target, file)
        kernels.append(done[shape])
    seconds = round(time.perf_counter() - begun, 4)
    entry = Build(folder, module, tuple(kernels), target.arch, toolchain(), seconds)
    (folder / INDEX).write_text(json.dumps(entry.to_json(), indent=1), "utf-8")


def _types(module: TritonModule, launch: Launch) -> tuple[str, ...]:
    dtypes = {t.name: t.dtype for t in module.tensors}
    pointers = ("*" + _POINTERS[dtypes[name]] for name in launch.tensors)
    return (*pointers, *(_SIZE for _ in launch.sizes))


def _compiled(
    function: Any, types: tuple[str, ...], launch: Launch, target: Target, file: Path
) -> BuiltKernel:
    """Compiles one function as its just-in-time compiler would for aligned tensors."""
    source = ASTSource(
        function, dict(zip(function.arg_names, types, strict=True)), constexprs={},
        attrs={(n,): [["tt.divisibility", ALIGNMENT]] for n in range(len(launch.tensors))},
    )  # fmt: skip
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    if launch.registers:
        options["maxnreg"] = launch.registers
    said = io.StringIO()
    with (
        triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(),
        contextlib.redirect_stdout(said),
    ):  # fmt: skip
        # Line tables name the folder of the build: equal modules would make unequal packages.
        triton.knobs.compilation.disable_line_info = True
        triton.knobs.compilation.always_compile = True  # what ptxas says is not in Triton's cache
        triton.knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=gpu_target(target), options=options)
    fault = fault_of(compiled.asm["ttgir"])
    if fault is not None:
        raise MiscompiledError(f"{launch.kernel}: {fault}")
    facts = compiled.metadata
    file.write_bytes(compiled.asm["cubin"])
    # Descriptors of tensor cores in shared memory are what uniform registers run short of.
    if "wgmma" in compiled.asm["ptx"] and (fault := machine_fault_of(_listing(file))) is not None:
        raise MiscompiledError(f"{launch.kernel}: {fault}")
    log = said.getvalue()
    registers, spills = _number(_REGISTERS, log), _number(_STACK, log)
    made = BuiltKernel(
        file.name, facts.name, WARP * facts.num_warps, facts.shared,
        facts.global_scratch_size, facts.global_scratch_align, registers, spills,
        len(compiled.asm["ptx"]), _SERIALISED.search(log) is not None,
    )  # fmt: skip
    _check_fits(made, target)
    return made


def _listing(cubin: Path) -> str:
    """Machine code as text, by the disassembler that Triton brings."""
    command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def gpu_target(target: Target) -> GPUTarget:
    """Triton's name for a target such as sm_90."""
    return GPUTarget("cuda", int(target.arch.removeprefix("sm_")), WARP)


def _check_fits(kernel: BuiltKernel, target: Target) -> None:
    if kernel.shared_bytes > target.l1_bytes:
        raise DoesNotFitError(f"{kernel.symbol} needs {kernel.shared_bytes} bytes of shared memory "
                              f"a block; {target.name} has {target.l1_bytes}")  # fmt: skip
    if kernel.registers * kernel.threads > MAX_REGISTERS:
        raise DoesNotFitError(f"{kernel.symbol} needs {kernel.registers} registers in each of "
                              f"{kernel.threads} threads; a multiprocessor has {MAX_REGISTERS}")


def _number(pattern: re.Pattern[str], log: str) -> int:
    """What ptxas says of a kernel; calls that are not inlined would have lines of their own."""
    found = pattern.findall(log)
    if not found:
        raise ValueError(f"ptxas says nothing like {pattern.pattern!r}: {log[:200]}")
    return max(map(int, found))


def _publish(made: Path, final: Path) -> None:
    """Gives a whole entry its name; another process may have been faster."""
    made.chmod(0o755)
    try:
        os.rename(made, final)
    except OSError:
        if not (final / INDEX).is_file():
            raise
