"""Arrays of callers in, dense torch tensors on a device out, and results back to their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .arrays import FLOAT8, STORAGE, dense, is_torch, public
from .errors import InputError
from .gpu import ALIGNMENT, torch_module
from .launch import torch_type
from .spec import Value

# Types that NumPy has not, by torch's types for their bits.
_BITS = {"bfloat16": "int16", **dict.fromkeys(FLOAT8, "uint8")}
Give = Callable[[Any, Value], Any]


def tensor(operand: Any, want: Value, device: Any) -> Any:
    """A caller's operand as a dense tensor of the wanted dtype and shape on `device`.

    Args: operand: torch tensor, NumPy array or anything that speaks DLPack. A dense and aligned
        tensor on that device is passed on, any other operand is copied.
    Raises InputError with what was expected.
    """
    torch = torch_module()
    if not is_torch(operand):
        if isinstance(operand, (np.ndarray, np.generic)) or not hasattr(operand, "__dlpack__"):
            return from_numpy(_array(operand, want), want.dtype).to(device)
        try:
            operand = torch.from_dlpack(operand)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InputError(f"{want.name} can't be read through DLPack: {error}") from error
    plain = operand.detach().resolve_conj().resolve_neg()
    if plain.dtype != torch_type(want.dtype) or tuple(plain.shape) != want.shape:
        got = str(plain.dtype).removeprefix("torch.")
        raise InputError(
            f"{want.name} is {got}{list(plain.shape)}, but {want.dtype}{list(want.shape)} "
            "is expected"
        )
    there = plain.to(device).contiguous()
    return there.clone() if there.data_ptr() % ALIGNMENT else there


def _array(operand: Any, want: Value) -> np.ndarray:
    """An array in storage type; eight-bit floats as ml_dtypes has them, or as their bits."""
    if want.dtype not in FLOAT8:
        return dense(operand, want)
    array = np.asarray(operand)
    bits = array.view(np.uint8) if array.dtype.name == FLOAT8[want.dtype] else array
    if bits.dtype == np.uint8 and bits.shape == want.shape:
        return np.ascontiguousarray(bits)
    raise InputError(
        f"{want.name} is {array.dtype.name}{list(array.shape)}, but {want.dtype}"
        f"{list(want.shape)} is expected, as uint8 or by ml_dtypes"
    )


def from_numpy(array: np.ndarray, dtype: str) -> Any:
    """The tensor in the memory of a dense array in storage type; of a copy where that is
    read-only, which torch does not know."""
    made = torch_module().from_numpy(array if array.flags.writeable else array.copy())
    return made.view(torch_type(dtype)) if dtype in _BITS else made


def to_numpy(result: Any, dtype: str) -> np.ndarray:
    """A tensor as an array in storage type."""
    torch = torch_module()
    bits = result.view(getattr(torch, _BITS[dtype])) if dtype in _BITS else result
    array: np.ndarray = bits.cpu().numpy()
    return array if dtype in FLOAT8 else array.view(STORAGE[dtype])


def giver(operands: Iterable[Any]) -> Give:
    """How results reach the caller of these operands: as tensors on the GPU, on the CPU if all
    tensors were there, or as NumPy arrays if there were none."""
    homes = {x.device.type for x in operands if is_torch(x)}
    if not homes:
        return lambda result, value: public(to_numpy(result, value.dtype), value.dtype, torch=False)
    return (lambda result, value: result.cpu()) if homes == {"cpu"} else lambda result, value: (
        result
    )  # fmt: skip
