"""An Artifact in, an importable kernel package on disk out, whole or not at all.

    folder/
      pyproject.toml  README.md
      <name>/__init__.py     lazy public functions, one for each public name
      <name>/manifest.json   signatures, plan, hash of every file
      <name>/kernels/        *.so, and the readable *.py each was built from; of GPU kernels the
                             readable *.py, the *.cubin compiled from it, and *_reference.py:
                             its definition in torch, for other machines
      <name>/islands/        ONNX graphs that onnxruntime runs
      <name>/weights.bin     raw and packed constants, mapped from disk
      <name>/lib/            TVM's runtime library with its licence, where kernels are *.so
      <name>/runtime/        the loader: a copy of codegen/runtime
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from autosched.codegen import runtime as carried
from autosched.codegen.artifact import (
    Artifact,
    CpuKernel,
    GpuKernel,
    Kernel,
    check,
    operands,
)
from autosched.codegen.package_text import (
    gpu_kernel_text,
    init_text,
    kernel_text,
    pyproject_text,
    readme_text,
)
from autosched.codegen.package_weights import WeightFile
from autosched.codegen.runtime import manifest as manifests
from autosched.codegen.runtime.cpu import platform_name
from autosched.codegen.runtime.errors import PackageError
from autosched.codegen.runtime.gpu_calls import DEFINITION, KERNEL
from autosched.codegen.runtime.kernel import RUNTIME_PATH
from autosched.codegen.runtime.native import RUNTIME_FILE
from autosched.codegen.runtime.spec import NATIVE, TRITON, arg_to_json, plan_to_json
from autosched.codegen.runtime.weights import FILE as WEIGHTS_FILE

_LICENCES = ("LICENSE", "NOTICE", "licenses/LICENSE.builtin_fp16.txt")  # of what is in the library


class WriteError(PackageError):
    """A package that can't be written where it was asked for; nothing was left behind."""


def check_folder(folder: Path | str) -> Path:
    """The absolute path of a folder that a package can be written to: absent, or empty.

    Raises WriteError; worth calling before hours of tuning.
    """
    path = Path(os.path.abspath(folder))
    if path.is_symlink():
        raise WriteError(f"{path} is a link: give the folder it leads to")
    if path.exists():
        if not path.is_dir():
            raise WriteError(f"{path} is a file; give a new or empty folder")
        if any(path.iterdir()):
            raise WriteError(f"{path} is not empty; give another folder or remove it first")
    place = path.parent
    while not place.exists():
        place = place.parent
    try:  # permissions alone do not tell: a filesystem may be read-only, and root asks nobody
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=place).cleanup()
    except OSError as error:
        raise WriteError(
            f"{place} is not writable ({error.strerror}), so {path} can't be written; name a "
            "folder at another place"
        ) from error
    return path


def tvm_files() -> dict[str, Path]:
    """The runtime library and its licences in the installed TVM, by their paths in a package."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise WriteError("TVM is not installed, so its runtime can't be packed: pip install "
                         "apache-tvm")  # fmt: skip
    root = Path(spec.submodule_search_locations[0])
    files = {RUNTIME_PATH: root / "lib" / RUNTIME_FILE}
    files |= {f"lib/{PurePosixPath(name).name}": root / name for name in _LICENCES}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise WriteError(f"the installed TVM lacks {', '.join(missing)}: install it again")
    return files


def module_name(text: str) -> str:
    """A name for a package from any text: lower case, letters, digits and underscores."""
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in text.lower()).strip("_")
    return name if name and name[0].isalpha() else f"tuned_{name}".rstrip("_")


@dataclass(frozen=True)
class Written:
    """A package on disk: its folder, the module inside, and the digest that names its bytes."""

    folder: Path
    module: Path
    digest: str


def write_package(artifact: Artifact, folder: Path | str, name: str, *, version: str = "0.1.0",
                  summary: str = "", origin: Mapping[str, Any] | None = None) -> Written:
    """Writes a package beside `folder` and renames it into place when all of it is there.

    Args:
        folder: absent or empty.
        name: of the module and the distribution; `module_name` makes one from any text.
        summary: one line for README and pyproject.
        origin: JSON facts on where it comes from (model, hash, budget), kept in the manifest.
    Raises WriteError (a user's mistake, or a full disk), ArtifactError (a bug).
    """
    if module_name(name) != name:
        raise WriteError(f"{name!r} can't be a module's name; {module_name(name)!r} can")
    check(artifact)
    path = check_folder(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            digest = _fill(artifact, staging, name, version, summary, dict(origin or {}))
            staging.chmod(0o755)
            os.rename(staging, path)  # replaces an empty folder, fails on any other
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise WriteError(f"{path} was filled by somebody else meanwhile") from error
        raise WriteError(f"{path} can't be written: {error.strerror or error}") from error
    return Written(path, path / name, digest)


def distinct(kernels: Iterable[Kernel]) -> tuple[Kernel, ...]:
    """The kernels by name and key, those that can't be told apart by name and operands renamed.

    Two definitions may compute different things from the same operands under one public name;
    the second and further ones get a number.
    """
    count: Counter[Any] = Counter()
    named: list[Kernel] = []
    for kernel in sorted(kernels, key=lambda k: (k.public_name, k.key)):
        facts = tuple((v.dtype, v.shape) for v in operands(kernel.args))
        count[kernel.public_name, facts] += 1
        number = count[kernel.public_name, facts]
        name = kernel.public_name if number == 1 else f"{kernel.public_name}_{number}"
        named.append(replace(kernel, public_name=name))
    return tuple(named)


class _Folder:
    """The module's folder while it is written: remembers the hash of every file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hashes: dict[str, str] = {}

    def place(self, name: str) -> Path:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name:
            raise WriteError(f"{name!r} leads out of the package")
        path = self.root / parts
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def keep(self, name: str) -> str:
        """Records a file that was written."""
        self.hashes[name] = manifests.hash_file(self.root / name)
        return name

    def write(self, name: str, content: bytes | str) -> str:
        data = content.encode() if isinstance(content, str) else content
        self.place(name).write_bytes(data)
        return self.keep(name)

    def copy(self, name: str, source: Path) -> str:
        shutil.copyfile(source, self.place(name))
        return self.keep(name)


def _fill(artifact: Artifact, staging: Path, name: str, version: str, summary: str,
          origin: dict[str, Any]) -> str:
    """Writes everything under `staging`; returns the manifest's digest."""
    module = _Folder(staging / name)
    kernels = distinct(artifact.kernels)
    codes = {kernel.code for kernel in kernels} or {NATIVE}
    native = NATIVE in codes
    data: dict[str, Any] = {
        "format": manifests.FORMAT, "name": name, "version": version, "summary": summary,
        "platform": platform_name() if native else manifests.ANY_PLATFORM,
        "threads": artifact.threads, "origin": origin,
        "toolchain": sorted({k.toolchain for k in kernels}),
        "target": sorted({k.target for k in kernels}),
        "arch": sorted({k.arch for k in kernels if isinstance(k, GpuKernel)}),
        "kernels": [_kernel_row(kernel, module) for kernel in kernels],
    }  # fmt: skip
    data |= _plan_rows(artifact, module)
    for target, source in (tvm_files() if native else {}).items():
        module.copy(target, source)
    for file in sorted(Path(carried.__path__[0]).glob("*.py")):
        module.copy(f"runtime/{file.name}", file)
    module.write("__init__.py", init_text(name, summary, kernels, artifact.plan is not None))
    module.write("py.typed", "")
    data["files"] = module.hashes
    digest = manifests.digest_of(data)
    text = manifests.canonical({**data, "digest": digest})
    (module.root / manifests.FILE).write_bytes(text)
    islands = artifact.plan is not None and bool(artifact.plan.islands)
    (staging / "pyproject.toml").write_text(pyproject_text(name, version, summary, codes, islands))
    (staging / "README.md").write_text(readme_text(name, summary, kernels, artifact, digest))
    return digest


def _kernel_row(kernel: Kernel, module: _Folder) -> dict[str, Any]:
    """Writes the files of a kernel; its row of the manifest."""
    stem = f"{kernel.public_name}_{hashlib.sha256(kernel.key.encode()).hexdigest()[:8]}"
    return {
        "key": kernel.key, "public_name": kernel.public_name, "doc": kernel.doc,
        "code": kernel.code, "args": [arg_to_json(arg) for arg in kernel.args],
        "definition": kernel.definition, "schedule": kernel.schedule,
        "latency_us": kernel.latency_us, "peer": kernel.peer, "peer_us": kernel.peer_us,
        "target": kernel.target, "toolchain": kernel.toolchain,
        **_CODE_ROWS[kernel.code](kernel, stem, module),
    }  # fmt: skip


def _native_row(kernel: Kernel, stem: str, module: _Folder) -> dict[str, Any]:
    assert isinstance(kernel, CpuKernel)
    libraries = []
    for number, build in enumerate(kernel.builds):
        suffix = f"_fallback{number}" if number else ""
        file = module.write(f"kernels/{stem}{suffix}.so", build.library)
        libraries.append({"file": file, "cpu_features": sorted(build.cpu_features)})
    return {
        "symbol": kernel.symbol, "libraries": libraries, "extents": list(kernel.extents),
        "source": module.write(f"kernels/{stem}.py", kernel_text(kernel)),
    }  # fmt: skip


def _triton_row(kernel: Kernel, stem: str, module: _Folder) -> dict[str, Any]:
    assert isinstance(kernel, GpuKernel)
    row = {
        "arch": kernel.arch, "facts": dict(kernel.facts), "bound": kernel.bound,
        "tensors": [asdict(tensor) for tensor in kernel.module.tensors],
        "launches": [asdict(launch) for launch in kernel.module.launches],
        "source": module.write(f"kernels/{stem}.py", gpu_kernel_text(kernel)),
        "binaries": _binaries(kernel, stem, module), "reference_us": kernel.reference_us,
        "prefer": DEFINITION if kernel.loses else KERNEL,
    }  # fmt: skip
    if kernel.reference is not None:
        row["reference"] = module.write(f"kernels/{stem}_reference.py", kernel.reference)
    return row


def _binaries(kernel: GpuKernel, stem: str, module: _Folder) -> list[dict[str, Any]]:
    """A row for each launch; equal machine code is written once."""
    files: dict[bytes, str] = {}
    rows = []
    for machine in kernel.machine:
        if machine.cubin not in files:
            name = f"kernels/{stem}_{len(files)}.cubin"
            files[machine.cubin] = module.write(name, machine.cubin)
        facts = asdict(machine)
        del facts["cubin"]
        rows.append({"file": files[machine.cubin], **facts})
    return rows


_CODE_ROWS: Mapping[str, Callable[[Kernel, str, _Folder], dict[str, Any]]] = {
    NATIVE: _native_row, TRITON: _triton_row,
}  # fmt: skip


def _plan_rows(artifact: Artifact, module: _Folder) -> dict[str, Any]:
    """Writes weights and islands; the manifest's `plan` and `weights`."""
    plan = artifact.plan
    if plan is None:
        return {"plan": None, "weights": {}}
    files = {
        name: module.write(f"islands/{number:03}.onnx", model)
        for number, (name, model) in enumerate(sorted(plan.islands.items()))
    }
    kernels = {kernel.key: kernel for kernel in artifact.kernels}
    with WeightFile(module.place(WEIGHTS_FILE), artifact.weights) as weights:
        steps = [weights.bind(step, kernels) for step in plan.steps]
        for value in plan.outputs:
            weights.keep(value.name)
        table = weights.table
    if table:
        module.keep(WEIGHTS_FILE)
    rows = plan_to_json(plan, files)
    for row, names in zip(rows["steps"], steps):
        row["args"] = names
    return {"plan": rows, "weights": table}
