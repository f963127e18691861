"""A public function of a package as a torch operator, which torch.compile keeps whole.

The operator has a fake implementation, so that tracing knows its results' shapes without a run.
It writes none of its operands, and its results are in memory of their own. It has no gradient:
these are inference kernels, and a backward pass through one is an error.
"""

from __future__ import annotations

import importlib
import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from .errors import InputError, UnsupportedMachineError
from .function import Function
from .kernel import Packed
from .launch import torch_type

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}  # dispatch keys of device types
_RESERVED = frozenset(("self", "from", "out"))  # no names for operands of a schema
_lock = threading.Lock()
_registered: dict[str, Any] = {}  # by qualified name: the library, which lives with the process


def torch_op(function: Function, library: str, constants: Mapping[str, Any]) -> Callable[..., Any]:
    """Registers `library::name`, an operator of the operands that are no constants.

    Args:
        constants: operands by name, packed here once if the kernel packs them.
    Returns: the operator; it takes tensors by position, or by name, and returns new ones.
    """
    held = {name: _held(function, name, value) for name, value in constants.items()}
    return _resolved(_register(function, library, held))


def operator_name(function: Function, library: str) -> str:
    """The qualified name of the operator of all operands, which is registered at the first use."""
    if function.operator is None:
        function.operator = _register(function, library, {})
    return function.operator


def _register(function: Function, library: str, held: Mapping[str, Any]) -> str:
    """Registers an operator; its qualified name, with a number where that is taken."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UnsupportedMachineError("a torch operator needs torch: pip install torch") from error
    free = [name for name in function.operands if name not in held]
    if not free:
        raise InputError(f"{function.name}: a torch operator needs an operand that is no constant")
    one = len(function.kernels[0].outputs) == 1

    def run(*tensors: Any) -> Any:
        return function(*tensors) if not held else function(**dict(zip(free, tensors)), **held)

    def fake(*tensors: Any) -> Any:
        kernel = function.kernel_for({**dict(zip(free, tensors)), **held})
        like = next((t for t in tensors if t.is_cuda), tensors[0])
        made = tuple(like.new_empty(v.shape, dtype=torch_type(v.dtype)) for v in kernel.outputs)
        return made[0] if one else made

    def backward(context: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"{library}.{function.name} has no gradient: it is for inference")

    results = "Tensor" if one else f"({', '.join('Tensor' for _ in function.kernels[0].outputs)})"
    schema = f"({', '.join(f'Tensor {name}' for name in _schema_names(free))}) -> {results}"
    with _lock:
        name = next(n for n in _names(function.name) if f"{library}::{n}" not in _registered)
        qualified = f"{library}::{name}"
        home = torch.library.Library(library, "FRAGMENT")
        home.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        for kind in function.kernels[0].device_types:
            home.impl(name, run, _KEYS[kind])
        torch.library.register_fake(qualified, fake, lib=home)
        torch.library.register_autograd(qualified, backward, lib=home)
        _registered[qualified] = home
    return qualified


def _names(name: str) -> itertools.chain[str]:
    return itertools.chain((name,), (f"{name}_{n}" for n in itertools.count(2)))


def _schema_names(operands: list[str]) -> list[str]:
    """Names of arguments: the operands' own, where a schema may have them."""
    fine = all(n.isidentifier() and n.isascii() and n not in _RESERVED for n in operands)
    return operands if fine else [f"x{n}" for n in range(len(operands))]


def _resolved(qualified: str) -> Callable[..., Any]:
    library, name = qualified.split("::")
    torch: Any = importlib.import_module("torch")
    operator: Callable[..., Any] = getattr(getattr(torch.ops, library), name).default
    return operator


def _held(function: Function, name: str, value: Any) -> Any:
    """A constant as calls pass it: packed where some kernel packs that operand."""
    packs = {a.pack.source for k in function.kernels for a in k.args if a.pack is not None}
    return function.pack(value, name) if name in packs and not isinstance(value, Packed) else value
