"""Codes in, words of memory out, and back: how the values of a codec lie in storage, in NumPy.

This is how data is prepared and what tests compare with; the same layouts as expressions of the
algebra are in `codecs`, and the two share nothing but the words below.

    low first    slot n of a word holds element n, its bits n*b .. n*b + b - 1
    interleaved  first the even elements of a word, then the odd ones: a pair lies half a word
                 apart, where one mask finds both
    stream       element n has bits n*b .. n*b + b - 1 of the row; it may straddle two words
    planes       word row p holds bit p of all elements, element n in bit n of the row
"""

from __future__ import annotations

import math

import numpy as np

LAYOUTS = ("low first", "interleaved", "stream", "planes")


def pack(codes: np.ndarray, bits: int, word: str, layout: str) -> np.ndarray:
    """Words [..., words], of planes [..., bits, words], of codes [..., elements] in 0 .. 2**bits;
    what is left of the last word is zero."""
    set_bits = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1  # [..., k, bit]
    if layout == "planes":
        return _words(np.moveaxis(set_bits, -1, -2), word)
    per = np.dtype(word).itemsize * 8 // bits
    if layout == "interleaved":
        rest = [(0, 0)] * (set_bits.ndim - 2) + [(0, -set_bits.shape[-2] % per), (0, 0)]
        set_bits = np.pad(set_bits, rest)
        slots = set_bits.reshape(*set_bits.shape[:-2], -1, per, bits)
        set_bits = slots[..., [*range(0, per, 2), *range(1, per, 2)], :]
    return _words(set_bits.reshape(*codes.shape[:-1], -1), word)


def unpack(words: np.ndarray, bits: int, size: int, layout: str) -> np.ndarray:
    """The first `size` codes of each row of words, as int64."""
    width = words.dtype.itemsize * 8
    set_bits = (words[..., None].astype(np.uint64) >> np.arange(width, dtype=np.uint64)) & 1
    rows = set_bits.reshape(*words.shape[:-1], -1).astype(np.int64)
    if layout == "planes":
        return np.einsum("...pk,p->...k", rows[..., :size], 1 << np.arange(bits))
    whole = rows.shape[-1] // bits * bits
    codes = rows[..., :whole].reshape(*words.shape[:-1], -1, bits) @ (1 << np.arange(bits))
    if layout == "interleaved":
        halves = codes.reshape(*words.shape, 2, -1)
        codes = np.swapaxes(halves, -1, -2).reshape(*words.shape[:-1], -1)
    return codes[..., :size]


def _words(rows: np.ndarray, word: str) -> np.ndarray:
    """Rows of single bits as words, the first bit lowest."""
    width = np.dtype(word).itemsize * 8
    rest = [(0, 0)] * (rows.ndim - 1) + [(0, -rows.shape[-1] % width)]
    groups = np.pad(rows, rest).reshape(*rows.shape[:-1], -1, width).astype(np.uint64)
    return (groups << np.arange(width, dtype=np.uint64)).sum(-1, dtype=np.uint64).astype(word)


# ---- what codes stand for ----------------------------------------------------------------------


def integers_of(bits: int, zero: int | None = None) -> np.ndarray:
    """Value of each code: code - zero, or two's complement without a zero."""
    codes, half = np.arange(2**bits), 2 ** (bits - 1)
    return np.where(codes < half, codes, codes - 2 * half) if zero is None else codes - zero


def minifloats(exponent: int, mantissa: int, special: str = "", signed: bool = True) -> np.ndarray:
    """Value of each code of a float with so many bits of exponent and mantissa and the usual bias.

    special: "" all codes are finite, "nan" all ones are NaN, "ieee" the last exponent is infinite
    or NaN.
    """
    bias = 2 ** (exponent - 1) - 1
    values = []
    for code in range(2 ** (exponent + mantissa)):
        field, fraction = code >> mantissa, (code & (2**mantissa - 1)) / 2**mantissa
        value = math.ldexp(fraction + (field > 0), max(field, 1) - bias)
        if special == "ieee" and field == 2**exponent - 1:
            value = math.nan if fraction else math.inf
        if special == "nan" and code == 2 ** (exponent + mantissa) - 1:
            value = math.nan
        values.append(value)
    return np.array(values + [-v for v in values] if signed else values)


def powers(bits: int = 8) -> np.ndarray:
    """Value of each code of an exponent alone: 2**(code - bias), the last one NaN."""
    values = np.exp2(np.arange(2.0**bits) - (2 ** (bits - 1) - 1))
    values[-1] = np.nan
    return values


def nearest(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The code of the nearest finite value, ties to the even code; what lies beyond saturates."""
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.lexsort((~np.signbit(values[known]), values[known]))]  # -0 before 0
    grid = values[order]
    at = np.clip(np.searchsorted(grid, x), 1, len(grid) - 1)
    below, above = x - grid[at - 1], grid[at] - x
    up = (above < below) | ((above == below) & (order[at] % 2 == 0))
    return order[np.where(up, at, at - 1)]
