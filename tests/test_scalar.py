"""Bits of scalars: read as another type of the same width, and counted."""

from __future__ import annotations

import numpy as np
import programs
import pytest

from autosched.ir.interp import value_of
from autosched.ir.node import IRError
from autosched.ir.ops import bitcast, input_, map_
from autosched.ir.scalar import FLOATS, INTS, ITEMSIZE, reinterpret
from autosched.ir.text import parse, to_text

WHOLE = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}


@pytest.mark.parametrize("dtype", FLOATS)
def test_bits_of_floats_come_back(dtype: str) -> None:
    size = ITEMSIZE[dtype]
    bits = np.random.default_rng(3).integers(0, 256, (4096, size), np.uint8)
    bits = bits.view(WHOLE[size])[:, 0] if size > 1 else np.arange(256, dtype=np.uint8)
    value = reinterpret(bits, WHOLE[size], dtype)
    numbers = np.isfinite(value)  # fp8 saturates
    assert numbers.sum() > 200
    assert (reinterpret(value[numbers], dtype, WHOLE[size]) == bits[numbers]).all()


def test_bits_are_those_of_ieee() -> None:
    x = input_("x", {"i": 4})
    got = value_of(bitcast(x, "int32"), {"x": np.array([1.0, -2.0, 0.0, 0.1])}, ("i",))
    assert [f"{int(v) & 0xFFFFFFFF:08x}" for v in got] == [
        "3f800000", "c0000000", "00000000", "3dcccccd",
    ]  # fmt: skip
    e4m3 = reinterpret(np.array([1, 8, 126, 127, 0x81, 56], np.uint8), "uint8", "float8_e4m3")
    assert np.array_equal(e4m3, [2**-9, 2**-6, 448, np.nan, -(2**-9), 1.0], equal_nan=True)


@pytest.mark.parametrize("dtype", INTS)
def test_set_bits_are_counted_in_twos_complement(dtype: str) -> None:
    info = np.iinfo(dtype)
    x = np.array([0, 1, 7, info.max, info.min, info.max - 4], dtype)
    got = value_of(map_("popcount", input_("x", {"i": 6}, dtype)), {"x": x}, ("i",))
    mask = (1 << info.bits) - 1
    assert got.dtype == np.dtype(dtype)
    assert got.tolist() == [(int(v) & mask).bit_count() for v in x]


def test_widths_must_agree() -> None:
    with pytest.raises(IRError, match="differ in width"):
        bitcast(input_("x", {"i": 4}, "float16"), "int32")


def test_bitcast_has_a_text_form() -> None:
    y = map_("popcount", bitcast(input_("x", {"i": 4}), "uint32"))
    program = programs.algebra({"y": ("i",)}, y=y)
    assert parse(to_text(program)) == program
