"""The public functions of a package: a name in, the kernel for the operands' shapes called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .arrays import FLOAT8
from .errors import InputError
from .gpu_kernel import GpuKernel
from .kernel import Packed
from .kinds import AnyKernel, kernel_of
from .manifest import Manifest
from .quick import Quick
from .threads import thread_count

_NAMES = {theirs: ours for ours, theirs in FLOAT8.items()}
Signature = tuple[tuple[str, tuple[int, ...]], ...]


def _facts(operand: Any) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of whatever a caller passed, without converting it."""
    if isinstance(operand, Packed):
        return operand.operand.dtype, operand.operand.shape
    dtype = str(getattr(operand, "dtype", type(operand).__name__)).removeprefix("torch.")
    dtype = _NAMES.get(dtype, dtype)
    # int() makes torch.compile specialise on a symbolic extent: kernels have fixed shapes.
    return dtype, tuple(int(extent) for extent in getattr(operand, "shape", ()))


def _text(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}{list(shape)}"


class Function:
    """The kernels of one public name, one for each signature (dtypes and shapes of operands)."""

    def __init__(self, manifest: Manifest, name: str) -> None:
        rows = [row for row in manifest.data["kernels"] if row["public_name"] == name]
        self.name = name
        self.kernels = tuple(kernel_of(manifest, row) for row in rows)
        self.operands = tuple(v.name for v in self.kernels[0].operands)
        self._by_signature: dict[Signature, AnyKernel] = {
            tuple((v.dtype, v.shape) for v in kernel.operands): kernel for kernel in self.kernels
        }
        self._threads = thread_count()
        self._quick: Quick | None = None
        self.operator: str | None = None  # of torch, once it is registered

    def _named(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        """Each operand by name."""
        given = dict(zip(self.operands, args))
        unknown = [n for n in named if n not in self.operands]
        twice = [n for n in named if n in given]
        given.update(named)
        missing = [n for n in self.operands if n not in given]
        if len(args) > len(self.operands) or unknown or twice or missing:
            count = len(args) + len(named)
            wrong = [("missing", missing), ("unknown", unknown), ("given twice", twice)]
            said = "".join(f"; {what}: {', '.join(names)}" for what, names in wrong if names)
            raise InputError(
                f"{self.name} takes {', '.join(self.operands)} and got {count} operands{said}"
            )
        return given

    def kernel_for(self, given: Mapping[str, Any]) -> AnyKernel:
        """The kernel for the dtypes and shapes of operands, given by name."""
        if len(self.kernels) == 1:
            return self.kernels[0]  # which says itself what is wrong with an operand
        kernel = self._by_signature.get(tuple(_facts(given[n]) for n in self.operands))
        if kernel is None:
            got = ", ".join(f"{n} {_text(*_facts(given[n]))}" for n in self.operands)
            known = "\n".join(
                "  " + ", ".join(f"{n} {_text(*s)}" for n, s in zip(self.operands, signature))
                for signature in self._by_signature
            )
            raise InputError(f"{self.name} has no kernel for {got}; it has\n{known}")
        return kernel

    def __call__(self, *args: Any, **named: Any) -> Any:
        if self._quick is not None and not named and (call := self._quick.find(args)) is not None:
            made = call(args)
            return made[0] if len(made) == 1 else tuple(made)
        given = self._named(args, named)
        kernel = self.kernel_for(given)
        results = kernel.run(given, self._threads)
        if isinstance(kernel, GpuKernel) and not named:
            self._quick = self._quick or Quick()
            self._quick.keep(args, kernel)
        return results[0] if len(results) == 1 else results

    def pack(self, array: Any, operand: str | None = None) -> Packed:
        """A constant operand laid out once, to be passed in its place (see Kernel.pack)."""
        facts = _facts(array)
        fits = [
            k for k in self.kernels
            if any((v.dtype, v.shape) == facts and operand in (None, v.name) for v in k.operands)
        ]  # fmt: skip
        if len(self.kernels) > 1 and len(fits) != 1:
            raise InputError(
                f"{self.name}.pack: {len(fits)} of its {len(self.kernels)} kernels take "
                f"{_text(*facts)} as {operand or 'an operand'}; pack for one of `.kernels`"
            )
        return (fits or list(self.kernels))[0].pack(array, operand)
