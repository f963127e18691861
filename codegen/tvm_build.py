"""PrimFuncs and a target in, LLVM's module or the bytes of a shared object out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache, reduce
from pathlib import Path
from typing import Any

from autosched.codegen.link import link
from autosched.codegen.tvm_import import tvm
from autosched.ir.target import X86_LEVELS

LAUNCH_SLOT = "__TVMBackendParallelLaunch"  # exported data symbol; the loader fills it in


@cache
def target(arch: str, features: tuple[str, ...]) -> Any:
    """An LLVM target from an architecture and LLVM's feature names; never from a model's name.

    The highest x86-64 level that the features cover gives LLVM its tuning; the rest is listed.
    """
    have = frozenset(features)
    covered = [name for name, needed in X86_LEVELS.items() if have.issuperset(needed)]
    options: dict[str, Any] = {"kind": "llvm", "mtriple": f"{arch}-unknown-linux-gnu"}
    listed = have
    if arch == "x86_64" and covered:
        level = covered[-1]
        options["mcpu"] = "x86-64" if level == "x86-64-v1" else level
        listed = have.difference(X86_LEVELS[level])
    if listed:
        options["mattr"] = [f"+{name}" for name in sorted(listed)]
    return tvm().tvm.target.Target(options)


def _lower(functions: Sequence[Any], where: Any) -> Any:
    """The few passes that flat, explicitly vectorised functions need.

    No MakePackedAPI: functions stay plain C. No FlattenBuffer: buffers are flat. No StmtSimplify:
    it changes float semantics, and LLVM folds index arithmetic as well.
    """
    t = tvm()
    passes = t.tirx.transform
    named = {t.ir.GlobalVar(f.attrs["global_symbol"]): f for f in functions}
    steps = (
        passes.BindTarget(where.with_host(where)), passes.BF16ComputeLegalize(),
        passes.BF16StorageLegalize(), passes.LowerTVMBuiltin(), passes.LowerIntrin(),
    )  # fmt: skip
    return reduce(lambda module, step: step(module), steps, t.tvm.IRModule(named))


def codegen(functions: Sequence[Any], where: Any) -> Any:
    """TVM's LLVM module of functions for a `target`; `.inspect_source("ll" | "asm")` shows it."""
    return tvm().tvm.get_global_func("target.build.llvm")(_lower(functions, where), where)


def build(functions: Sequence[Any], where: Any) -> bytes:
    """The bytes of a shared object with one C function a PrimFunc.

    Its parallel loops call through the exported pointer `LAUNCH_SLOT`, which whoever loads the
    library sets to TVMBackendParallelLaunch of the TVM runtime before the first call.
    """
    module = codegen(functions, where)
    with tempfile.TemporaryDirectory(prefix="autosched-") as folder:
        path = Path(folder, "k.o")
        module.write_to_file(str(path), "o")
        return link(path.read_bytes())
