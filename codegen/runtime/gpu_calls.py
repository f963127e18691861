"""A GPU kernel and a device in, the call that computes it there out: one of three ways.

Machine code where the device has the architecture that it is for; Triton's own compiler or
interpreter where there is no machine code, or interpretation is asked for; the definition, by
torch's operators, where the kernel can't run, or where that was measured to be faster.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cubin import CubinCall, binaries_from_json
from .errors import PackageError, UnsupportedMachineError
from .gpu import interpreted, launching, need_triton, torch_module, why_not
from .launch import Launcher, Plan, load_kernels
from .manifest import Manifest
from .spec import Value

# Computes the outputs of a kernel, in order, from operands in order: dense, aligned, right.
Call = Callable[[Sequence[Any]], Sequence[Any]]
STRICT = "AUTOSCHED_STRICT"  # environment: kernels that can't run are errors, nothing stands in
KERNEL, DEFINITION = "kernel", "definition"  # what a row of the manifest prefers


def make_call(
    manifest: Manifest, row: Mapping[str, Any], operands: Sequence[Value], device: Any
) -> Call:
    """The best call for a kernel on a device, its files checked against their hashes.

    row: of the kernel, in the manifest. operands: what a call takes.
    Raises UnsupportedMachineError where there is no way, or none but the definition although
    AUTOSCHED_STRICT is set.
    """
    plan = Plan.from_json(row, {v.name: v.shape for v in operands})
    if interpreted():
        return _jit(manifest, row, plan, operands, device)
    why = why_not(row["arch"], device)
    if why is not None:
        return _stand_in(manifest, row, operands, device, why)
    if row.get("prefer") == DEFINITION:
        return _definition(manifest, row, operands, device)
    binaries = binaries_from_json(row.get("binaries", ()))
    if binaries:
        return CubinCall(
            plan, binaries, lambda file: manifest.checked(file).read_bytes(), device
        ).run
    return _jit(manifest, row, plan, operands, device)


def _jit(
    manifest: Manifest, row: Mapping[str, Any], plan: Plan, operands: Sequence[Value], device: Any
) -> Call:
    need_triton()
    launcher = Launcher(manifest.checked(row["source"]), plan)
    names = [v.name for v in operands]
    outputs = [b.name for b in plan.of_role("output")]

    def call(tensors: Sequence[Any]) -> Sequence[Any]:
        with launching(device):
            made = launcher.run(dict(zip(names, tensors)), device)
        return [made[name] for name in outputs]

    return call


def _stand_in(
    manifest: Manifest, row: Mapping[str, Any], operands: Sequence[Value], device: Any, why: str
) -> Call:
    """The definition, with a warning, in place of a kernel that can't run."""
    if os.environ.get(STRICT, "0") not in ("", "0"):
        raise UnsupportedMachineError(f"{why} ({STRICT} is set, so nothing stands in for them)")
    if "reference" not in row:
        name = row["public_name"]
        raise UnsupportedMachineError(f"{why} (for {name} the package has no torch operators)")
    call = _definition(manifest, row, operands, device)
    _warn(manifest.root, f"{manifest.root.name}: {why}. Until then torch's own operators compute "
          f"the same on {device}, slower; set {STRICT}=1 to get an error instead")  # fmt: skip
    return call


def _definition(
    manifest: Manifest, row: Mapping[str, Any], operands: Sequence[Value], device: Any
) -> Call:
    function = load_function(manifest.checked(row["reference"]))
    shapes = [v.shape for v in operands]
    torch = torch_module()

    def call(tensors: Sequence[Any]) -> Sequence[Any]:
        with torch.no_grad():
            made = function(*(t.view(s) for t, s in zip(tensors, shapes)))
        given = {t.untyped_storage().data_ptr() for t in tensors}
        return [_own(out.contiguous(), given) for out in made]

    return call


def _own(out: Any, given: set[int]) -> Any:
    """A result in memory of its own: definitions may hand operands through."""
    return out.clone() if out.untyped_storage().data_ptr() in given else out


def load_function(file: Path) -> Callable[..., Sequence[Any]]:
    """The function of a file of generated torch code: the definition of a kernel."""
    found: Any = getattr(load_kernels(file), "definition", None)
    if found is None:
        raise PackageError(f"{file} defines nothing: write the package again")
    function: Callable[..., Sequence[Any]] = found
    return function


_warned: set[tuple[Path, str]] = set()


def _warn(root: Path, text: str) -> None:
    """Once for each package, device and cause."""
    if (root, text) not in _warned:
        _warned.add((root, text))
        warnings.warn(text, RuntimeWarning, stacklevel=2)
