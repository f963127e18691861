"""Kernels in, the texts of a package out: its module, project file, README and kernel sources."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Mapping, Sequence

from autosched.codegen.artifact import Artifact, CpuKernel, GpuKernel, Kernel, Value, operands
from autosched.codegen.runtime.spec import NATIVE, TRITON

# The C interface of TVM's runtime is that of the release it was built with.
FFI_REQUIREMENT = "apache-tvm-ffi>=0.1.14,<0.2"
# What kernels need to run, by their code, and what more they can use. Machine code needs no
# Triton; its interpreter runs the sources, whose tensor descriptors it has had since 3.4.
REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    NATIVE: (FFI_REQUIREMENT,), TRITON: ("torch>=2.7",),
}  # fmt: skip

EXTRAS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    NATIVE: {}, TRITON: {"interpreter": ("triton>=3.4",)},
}  # fmt: skip


def _signature(values: Sequence[Value]) -> str:
    return ", ".join(f"{v.name}: {v.dtype}{list(v.shape)}" for v in values)


def _results(kernel: Kernel) -> str:
    outputs = [Value(a.name, a.dtype, a.shape) for a in kernel.args if a.role == "output"]
    return _signature(outputs)


def _time(microseconds: float | None) -> str:
    return "not measured" if microseconds is None else f"{microseconds:.1f} us"


def kernel_text(kernel: CpuKernel) -> str:
    """The readable source of a kernel, under a header that says what and how fast it is."""
    ratio = ""
    if kernel.latency_us and kernel.peer_us:
        ratio = f" ({kernel.peer_us / kernel.latency_us:.2f} times as fast)"
    lines = [
        f"{kernel.public_name}({_signature(operands(kernel.args))}) -> {_results(kernel)}",
        "", kernel.doc.strip(), "", "Definition:", *_indented(kernel.definition),
        "", "Schedule:", *_indented(json.dumps(kernel.schedule, indent=2, sort_keys=True)),
        "", f"Measured: {_time(kernel.latency_us)}; {kernel.peer}: {_time(kernel.peer_us)}{ratio}",
        f"Target: {kernel.target}", f"Toolchain: {kernel.toolchain}",
        f"Needs: {', '.join(sorted(kernel.cpu_features)) or 'no CPU feature'}",
        f"Key: {kernel.key}",
    ]  # fmt: skip
    header = "\n".join(f"# {line}".rstrip() for text in lines for line in text.splitlines() or [""])
    return f"{header}\n\n{kernel.source.rstrip()}\n"


def gpu_kernel_text(kernel: GpuKernel) -> str:
    """The source of a module, which has a header of its own, under what became of it."""
    facts = ", ".join(f"{name} {value}" for name, value in sorted(kernel.facts.items()))
    picked = "picked by the model, not measured"
    torch_time = [] if kernel.reference_us is None else [
        f"Torch's operators: {_time(kernel.reference_us)}"
        + (": the package calls them instead" if kernel.loses else "")
    ]  # fmt: skip
    lines = [
        f"{kernel.public_name}({_signature(operands(kernel.args))}) -> {_results(kernel)}",
        f"Measured: {picked if kernel.latency_us is None else _time(kernel.latency_us)}",
        *torch_time,
        f"Target: {kernel.target}", f"Compiled for {kernel.arch}: {facts or 'no facts'}",
        f"Toolchain: {kernel.toolchain}", f"Key: {kernel.key}",
    ]  # fmt: skip
    header = "\n".join(f"# {line}" for line in lines)
    return f"{header}\n\n{kernel.source.rstrip()}\n"


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.strip().splitlines()]


def _doc(kernels: Sequence[Kernel]) -> str:
    """The docstring of a public function, for all its signatures."""
    first = kernels[0]
    lines = [first.doc.strip() or first.public_name, ""]
    for kernel in kernels:
        speed = _time(kernel.latency_us)
        peer = f", {kernel.peer} {_time(kernel.peer_us)}" if kernel.peer_us else ""
        signature = _signature(operands(kernel.args))
        lines.append(f"({signature}) -> {_results(kernel)}: {speed}{peer}")
    packed = sorted({a.pack.source for k in kernels for a in k.args if a.pack is not None})
    if packed:
        lines += ["", f"`.pack` lays out a constant {' or '.join(packed)} once."]
    return "\n".join(lines)


def _by_name(kernels: Sequence[Kernel]) -> dict[str, list[Kernel]]:
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(kernel.public_name, []).append(kernel)
    return groups


def init_text(name: str, summary: str, kernels: Sequence[Kernel], whole: bool) -> str:
    """The module: one lazy function for each public name, and `load` where there is a model."""
    groups = _by_name(kernels)
    head = summary.strip() or f"Tuned kernels: {name}."
    exports = sorted([*groups, *(["load"] if whole else [])])
    lines = [
        f'"""{_quoted(head)}', "",
        "Written by autosched. Importing it loads no kernel; the first call does.", '"""', "",
        "from .runtime.package import Package as _Package", "",
        "_package = _Package(__path__[0])",
    ]  # fmt: skip
    for public, group in groups.items():
        doc = _quoted(_doc(group))
        lines += ["", f"{public} = _package.kernel(", f'    "{public}",', f'    """{doc}""",', ")"]
    if whole:
        lines += ["", "load = _package.load"]
    lines += ["", "__all__ = [", *(f'    "{export}",' for export in exports), "]", ""]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """Text that can stand between triple double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(c for c in escaped if c.isprintable() or c == "\n")


def _toml(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def pyproject_text(name: str, version: str, summary: str, codes: Iterable[str],
                   islands: bool) -> str:
    """The project file: pip installs the folder, or builds a wheel from it, which is for this
    platform where kernels are native."""
    code = sorted(codes)
    needed = [requirement for c in code for requirement in REQUIREMENTS[c]]
    requirements = ["numpy>=1.26", *needed, *(["onnxruntime>=1.20"] if islands else [])]
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    wheel = platform if NATIVE in code else "any"
    return "\n".join([
        "[build-system]", 'requires = ["setuptools>=69"]',
        'build-backend = "setuptools.build_meta"', "",
        "[project]", f"name = {_toml(name.replace('_', '-'))}", f"version = {_toml(version)}",
        f"description = {_toml(summary or 'Tuned kernels')}", 'requires-python = ">=3.11"',
        f"dependencies = {json.dumps(requirements)}", "", *_extras(code),
        "[tool.setuptools]", f'packages = ["{name}", "{name}.runtime"]', "",
        "[tool.setuptools.package-data]",
        f'{name} = ["manifest.json", "py.typed", "weights.bin", "kernels/*", "islands/*", "lib/*"]',
        "", "[tool.distutils.bdist_wheel]", f'plat-name = "{wheel}"', "",
    ])  # fmt: skip


def _extras(codes: Sequence[str]) -> list[str]:
    rows = {name: needed for code in codes for name, needed in EXTRAS[code].items()}
    lines = [f"{name} = {json.dumps(list(needed))}" for name, needed in rows.items()]
    return ["[project.optional-dependencies]", *lines, ""] if lines else []


_LICENCE = (
    "The kernels are yours. `runtime/` is part of autosched (Apache-2.0), `lib/` is part of",
    "Apache TVM (Apache-2.0, see LICENSE and NOTICE there).",
)
_LICENCE_GPU = ("The kernels are yours. `runtime/` is part of autosched (Apache-2.0).",)
_RUNS_ON_GPU = (
    "The kernels are Triton code and the machine code made of it, so that a first call compiles",
    "nothing. Operands are torch tensors on a CUDA device (install the torch build for your CUDA),",
    "or NumPy arrays, which are copied there and back; results are new tensors. Operands that are",
    "not dense or not aligned to 16 bytes are copied first. Calls run on torch's current stream,",
    "wait for nothing and can be captured in CUDA graphs; under torch.compile they are operators",
    "of the graph. They have no gradients. On another GPU, or without one, torch's own operators",
    "compute the same, with one warning; AUTOSCHED_STRICT=1 makes that an error, and",
    "TRITON_INTERPRET=1 (with the extra `interpreter`) runs the kernels themselves slowly on the",
    "CPU.", "",
)  # fmt: skip


def readme_text(name: str, summary: str, kernels: Sequence[Kernel], artifact: Artifact,
                digest: str) -> str:
    """What the package holds and how to use it."""
    rows = [
        f"| `{k.public_name}` | {_signature(operands(k.args))} | {_results(k)} | "
        f"{_time(k.latency_us)} | {_time(k.peer_us)} |"
        for k in kernels
    ]
    use = [f"import {name}"]
    if artifact.plan is not None:
        names = ", ".join(f'"{v.name}": {v.name}' for v in artifact.plan.inputs)
        use.append(f"outputs = {name}.load().run({{{names}}})")
    if kernels:
        first = kernels[0]
        arguments = ", ".join(v.name for v in operands(first.args))
        use.append(f"result = {name}.{first.public_name}({arguments})")
    peer = kernels[0].peer if kernels else "peer"
    codes = {kernel.code for kernel in kernels} or {NATIVE}
    return "\n".join([
        f"# {name}", "", summary.strip() or "Tuned kernels.", "",
        "    pip install .", "", "```python", *use, "```", "",
        f"| kernel | operands | results | measured | {peer} |", "|---|---|---|---|---|", *rows, "",
        f"Digest: `{digest}`. Hashes guard against corruption; pass `expect_digest=` to `load` to",
        "guard against tampering.", "",
        *(_RUNS_ON_GPU if TRITON in codes else ()),
        *(_LICENCE if NATIVE in codes else _LICENCE_GPU), "",
    ])  # fmt: skip
