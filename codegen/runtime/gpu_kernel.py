"""One GPU kernel of a package as a function of torch tensors, or of NumPy arrays by copies."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InputError
from .gpu import find_device
from .gpu_calls import Call, make_call
from .kernel import Packed
from .manifest import Manifest
from .spec import KernelArg, Value, arg_from_json, operands
from .tensors import giver, tensor


class GpuKernel:
    """Triton functions, their machine code and launches; files are checked and loaded at the
    first use on a device."""

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
        self._calls: dict[Any, Call] = {}
        self._making = threading.Lock()

    def call_on(self, device: Any) -> Call:
        """What computes the outputs from dense and aligned tensors on a device, in the order of
        `operands`; made at the first use. Raises UnsupportedMachineError, ChangedFileError."""
        found = self._calls.get(device)
        if found is None:
            with self._making:
                if device not in self._calls:
                    self._calls[device] = make_call(
                        self._manifest, self.data, self.operands, device
                    )
                found = self._calls[device]
        return found

    def made_on(self, device: Any) -> Call | None:
        """The call on a device, if there was one already."""
        return self._calls.get(device)

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
        made = tensor(array, want, find_device([array]))
        return Packed(self.key, want, {want.name: made})

    def run(self, given: Mapping[str, Any], threads: int) -> tuple[Any, ...]:
        """The outputs, in order, as new tensors, or as arrays where no operand is a tensor.

        Operands of any strides and alignment are copied where they are not dense and aligned.
        Args: given: a tensor, array or Packed for each operand, by name; threads: not used.
        """
        raw = {name: self._raw(name, value) for name, value in given.items()}
        device = find_device(raw.values())
        call = self.call_on(device)
        made: Sequence[Any] = call([tensor(raw[v.name], v, device) for v in self.operands])
        give = giver(v for v in given.values() if not isinstance(v, Packed))
        return tuple(give(out, v) for out, v in zip(made, self.outputs))

    def _raw(self, name: str, value: Any) -> Any:
        if not isinstance(value, Packed):
            return value
        if value.kernel != self.key or name not in value.buffers:
            raise InputError(
                f"{name} was packed for another kernel or operand: pack it by "
                f"{self.data['public_name']}.pack"
            )
        return value.buffers[name]
