"""A public function of a package as a torch operator, which torch.compile keeps whole.

The operator has a fake implementation, so that tracing knows its results' shapes without a run.
It has no gradient: these are inference kernels.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from .errors import UnsupportedMachineError
from .function import Function
from .kernel import Packed

_numbers = itertools.count(1)  # operators live as long as the process: each needs its own name


def torch_op(function: Function, library: str, constants: Mapping[str, Any]) -> Callable[..., Any]:
    """Registers `library::name_n`, an operator of the operands that are no constants.

    Args:
        constants: operands by name, packed here once if the kernel packs them.
    Returns: the operator; it takes tensors by position and returns new ones.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UnsupportedMachineError("a torch operator needs torch: pip install torch") from error
    held = {name: _held(function, name, value) for name, value in constants.items()}
    free = [name for name in function.operands if name not in held]
    one = len(function.kernels[0].outputs) == 1

    def run(*tensors: Any) -> Any:
        return function(**dict(zip(free, tensors)), **held)

    def fake(*tensors: Any) -> Any:
        kernel = function.kernel_for({**dict(zip(free, tensors)), **held})
        made = tuple(
            tensors[0].new_empty(v.shape, dtype=getattr(torch, v.dtype)) for v in kernel.outputs
        )
        return made[0] if one else made

    results = "Tensor" if one else f"({', '.join('Tensor' for _ in function.kernels[0].outputs)})"
    schema = f"({', '.join(f'Tensor x{n}' for n in range(len(free)))}) -> {results}"
    name = f"{library}::{function.name}_{next(_numbers)}"
    operator = torch.library.custom_op(
        name, run, mutates_args=(), device_types=function.kernels[0].device_types, schema=schema
    )
    operator.register_fake(fake)
    made: Callable[..., Any] = operator
    return made


def _held(function: Function, name: str, value: Any) -> Any:
    """A constant as calls pass it: packed where some kernel packs that operand."""
    packs = {a.pack.source for k in function.kernels for a in k.args if a.pack is not None}
    return function.pack(value, name) if name in packs and not isinstance(value, Packed) else value
