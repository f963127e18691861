"""Arrays of callers in, dense NumPy arrays of a known dtype out; the dtypes a package knows.

bfloat16 is kept as the uint16 of its bits, as NumPy has no such type.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from math import prod
from typing import Any

import numpy as np

from .errors import InputError
from .spec import Value

_BYTE = np.dtype("uint8")
ALIGNMENT = 64  # bytes: a cache line, and the widest vector
STORAGE: dict[str, np.dtype[Any]] = {
    name: np.dtype("uint16" if name == "bfloat16" else name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
        "uint64", "uint32", "uint16", "uint8", "bool",
    )
}  # fmt: skip

# Kernels of GPUs only have these; their names in torch and ml_dtypes. NumPy sees their bits, uint8.
FLOAT8 = {"float8_e4m3": "float8_e4m3fn", "float8_e5m2": "float8_e5m2"}


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a dense buffer."""
    return prod(shape) * STORAGE[dtype].itemsize


def aligned_up(size: int) -> int:
    """`size` bytes rounded up to a multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def empty(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A dense array of storage type whose first byte is aligned to ALIGNMENT."""
    storage = STORAGE[dtype]
    raw = np.empty(prod(shape) * storage.itemsize + ALIGNMENT, _BYTE)
    return np.ndarray(shape, storage, raw, -address(raw) % ALIGNMENT)


def address(array: np.ndarray) -> int:
    """Where the first byte of an array lies."""
    if array.nbytes and array.flags.carray:  # five times as fast as the general way
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    place: int = array.__array_interface__["data"][0]
    return place


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 in, the uint16 bits of the nearest bfloat16 out (ties to even, NaN stays NaN)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The uint16 bits of bfloat16 in, float32 out."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def cast(array: np.ndarray, source: str, to: str) -> np.ndarray:
    """An array of one storage type as another, rounded to nearest."""
    if source == to:
        return array
    values = from_bfloat16(array) if source == "bfloat16" else array
    return to_bfloat16(values) if to == "bfloat16" else values.astype(STORAGE[to])


def is_torch(operand: Any) -> bool:
    """Whether this is a torch tensor; torch itself is never imported here."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(operand, torch.Tensor)


def _from_torch(tensor: Any, want: Value) -> tuple[np.ndarray, str]:
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise InputError(
            f"{want.name} is on device {tensor.device}, and these kernels run on the CPU: "
            "pass it after .cpu()"
        )
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.dtype == torch.bfloat16:
        return np.from_dlpack(plain.view(torch.int16)).view(np.uint16), "bfloat16"
    array = np.from_dlpack(plain)
    return array, array.dtype.name


def _as_numpy(operand: Any, want: Value) -> tuple[np.ndarray, str]:
    """(array, name of its dtype) of whatever a caller passed."""
    if isinstance(operand, np.ndarray):
        array = operand
    elif is_torch(operand):
        return _from_torch(operand, want)
    elif hasattr(operand, "__dlpack__") and not isinstance(operand, np.generic):
        try:
            array = np.from_dlpack(operand)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InputError(f"{want.name} can't be read through DLPack: {error}") from error
    else:
        array = np.asarray(operand)
    name = array.dtype.name
    return (array.view(np.uint16), name) if name == "bfloat16" else (array, name)


def dense(operand: Any, want: Value) -> np.ndarray:
    """A caller's operand as a dense array of the wanted dtype and shape.

    Args: operand: NumPy array, torch tensor or anything that speaks DLPack; of any strides and
        alignment. A dense operand is passed on, any other is copied.
    Raises InputError with what was expected.
    """
    if (
        type(operand) is np.ndarray and operand.dtype == STORAGE[want.dtype]
        and operand.shape == want.shape and operand.flags.c_contiguous and operand.flags.aligned
    ):  # what nearly all calls pass
        return operand
    array, name = _as_numpy(operand, want)
    bits = want.dtype == "bfloat16" and name == "uint16"
    if (name != want.dtype and not bits) or array.shape != want.shape:
        raise InputError(
            f"{want.name} is {name}{list(array.shape)}, but {want.dtype}{list(want.shape)} "
            "is expected"
        )
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, STORAGE[want.dtype], order="C", copy=True)


def public(array: np.ndarray, dtype: str, torch: bool) -> Any:
    """A result as callers want it: torch for torch callers, ml_dtypes' narrow floats where it is.

    Without ml_dtypes such a result stays the unsigned integers of its bits.
    """
    if torch:
        module = sys.modules["torch"]
        if dtype != "bfloat16":
            return module.from_numpy(array)
        return module.from_numpy(array.view(np.int16)).view(module.bfloat16)
    if dtype != "bfloat16" and dtype not in FLOAT8:
        return array
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
    except ImportError:
        return array
    return array.view(getattr(ml_dtypes, FLOAT8.get(dtype, dtype)))
