"""One Triton kernel of a package as a function of torch tensors, or of NumPy arrays by copies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from .errors import InputError
from .gpu import find_device, launching
from .kernel import Packed
from .launch import Launcher, Plan
from .manifest import Manifest
from .spec import KernelArg, Value, arg_from_json, operands
from .tensors import giver, tensor


class GpuKernel:
    """Triton functions with their launches; the file is checked and loaded at the first use."""

    device_types = ("cpu", "cuda")  # of a torch operator's tensors; those of the CPU are copied

    def __init__(self, manifest: Manifest, data: Mapping[str, Any]) -> None:
        self.data = data
        self.key: str = data["key"]
        self.arch: str = data["arch"]
        self.args: tuple[KernelArg, ...] = tuple(arg_from_json(a) for a in data["args"])
        self.operands = operands(self.args)
        self.outputs = tuple(
            Value(a.name, a.dtype, a.shape) for a in self.args if a.role == "output"
        )
        self._manifest = manifest

    @cached_property
    def launcher(self) -> Launcher:
        """Runs the launches on tensors for all of `args`, by name."""
        return Launcher(self._manifest.checked(self.data["source"]), Plan.from_json(self.data))

    def pack(self, array: Any, operand: str | None = None) -> Packed:
        """A constant operand copied to the device once, to be passed in its place.

        Args: operand: which one; needed where several have the array's shape.
        """
        shape = tuple(getattr(array, "shape", ()))
        fit = [v for v in self.operands if v.name == operand or (not operand and v.shape == shape)]
        if len(fit) != 1:
            known = ", ".join(v.name for v in self.operands)
            asked = f"there is no operand {operand!r}" if operand else "say which operand"
            raise InputError(f"{self.data['public_name']}.pack: {asked}; it takes {known}")
        (want,) = fit
        made = tensor(array, want, find_device(self.arch, [array]))
        return Packed(self.key, want, {want.name: made})

    def run(self, given: Mapping[str, Any], threads: int) -> tuple[Any, ...]:
        """The outputs, in order, as new tensors, or as arrays where no operand is a tensor.

        Args: given: a tensor, array or Packed for each operand, by name; threads: not used.
        """
        raw = {name: self._raw(name, value) for name, value in given.items()}
        device = find_device(self.arch, raw.values())
        tensors = {v.name: tensor(raw[v.name], v, device) for v in self.operands}
        with launching(device):
            made = self.launcher.run(tensors, device)
        give = giver(v for v in given.values() if not isinstance(v, Packed))
        return tuple(give(made[v.name], v) for v in self.outputs)

    def _raw(self, name: str, value: Any) -> Any:
        if not isinstance(value, Packed):
            return value
        if value.kernel != self.key or name not in value.buffers:
            raise InputError(
                f"{name} was packed for another kernel or operand: pack it by "
                f"{self.data['public_name']}.pack"
            )
        return value.buffers[name]
