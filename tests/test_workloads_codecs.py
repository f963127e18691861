"""Codecs of the algebra against the same codecs in NumPy, and both against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from autosched.datasets.workloads import codecs, packing
from autosched.datasets.workloads.codecs import CODECS, Codec
from autosched.datasets.workloads.formats import up_by_chance
from autosched.ir.interp import value_of
from autosched.ir.ops import cast, input_

SIZES = (1, 37, 64, 71)  # of rows: less than a word, tails, whole words


def drawn(codec: Codec, *shape: int) -> np.ndarray:
    return np.random.default_rng(11).integers(0, 2**codec.bits, shape)


def stored(codec: Codec, code: np.ndarray) -> np.ndarray:
    return packing.pack(code, codec.bits, codec.word, codec.layout)


@pytest.mark.parametrize("layout", packing.LAYOUTS)
@pytest.mark.parametrize("bits, word", [(1, "uint32"), (2, "uint8"), (4, "uint8"), (4, "uint32"),
                                        (3, "uint32"), (6, "uint8"), (8, "uint8")])  # fmt: skip
def test_codes_come_back(bits: int, word: str, layout: str) -> None:
    if layout in ("low first", "interleaved") and bits not in (1, 2, 4):
        layout = "stream"
    for size in SIZES:
        code = np.random.default_rng(size).integers(0, 2**bits, (2, 3, size))
        words = packing.pack(code, bits, word, layout)
        assert words.dtype == np.dtype(word)
        assert np.array_equal(packing.unpack(words, bits, size, layout), code)


def test_words_are_as_described() -> None:
    code = np.array([[1, 2, 3, 4, 5, 6, 7, 8]])
    assert packing.pack(code, 4, "uint8", "low first").tolist() == [[0x21, 0x43, 0x65, 0x87]]
    assert packing.pack(code, 4, "uint32", "interleaved").tolist() == [[0x86427531]]
    assert packing.pack(code, 4, "uint8", "planes").tolist() == [[[0x55], [0x66], [0x78], [0x80]]]
    assert packing.pack(np.array([[7, 0, 5]]), 3, "uint8", "stream").tolist() == [[0x47, 0x01]]


def test_tables_are_those_of_the_formats() -> None:
    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert CODECS["e2m1"].format.table.tolist() == e2m1 + [-v for v in e2m1]
    tops = {"e2m1": 6, "e2m3": 7.5, "e3m2": 28, "e4m3": 448, "e5m2": 57344, "ue5m3": 114688,
            "s4": 7, "flexq6": 31, "ternary": 2, "bipolar2": 3, "parent8": 127}  # fmt: skip
    assert {name: CODECS[name].format.top for name in tops} == tops
    least = {"e2m3": 0.125, "e3m2": 0.0625, "e4m3": 2**-9, "e5m2": 2**-16}
    assert {name: CODECS[name].format.table[1] for name in least} == least


@pytest.mark.parametrize("name", CODECS)
def test_every_code_decodes_to_its_value(name: str) -> None:
    codec = CODECS[name]
    code = np.arange(2**codec.bits, dtype=np.int32)
    got = value_of(codec.format.decode(input_("c", {"i": len(code)}, "int32")), {"c": code}, ("i",))
    assert np.array_equal(got, codec.format.table, equal_nan=True)


@pytest.mark.parametrize("name", CODECS)
def test_words_decode_to_values(name: str) -> None:
    codec = CODECS[name]
    for size in SIZES:
        code = drawn(codec, 3, size)
        value = codecs.coded(codec, "w", {"n": 3, "k": size}, "n k", "k")
        got = value_of(value, {"w": stored(codec, code)}, ("n", "k"))
        assert np.array_equal(got, codec.format.table[code], equal_nan=True)


@pytest.mark.parametrize("name", [n for n, c in CODECS.items() if c.layout != "stream"])
def test_the_algebra_packs_as_numpy_does(name: str) -> None:
    codec = CODECS[name]
    for size in SIZES:
        code = drawn(codec, 3, size).astype(np.int32)
        words = codecs.packed(codec, input_("c", {"n": 3, "k": size}, "int32"), "k")
        dims = ("n", *codecs.word_extents(codec, "k", size))
        assert np.array_equal(value_of(words, {"c": code}, dims), stored(codec, code))


@pytest.mark.parametrize("name", [n for n in CODECS if n != "e8m0"])
def test_encoding_picks_the_nearest_value_and_saturates(name: str) -> None:
    codec = CODECS[name]
    finite = np.sort(codec.format.table[np.isfinite(codec.format.table)])
    ties = (finite[1:] + finite[:-1]) / 2
    x = np.concatenate([
        np.random.default_rng(5).standard_normal(300) * codec.format.top / 2, finite, ties,
        [0.0, -0.0], np.outer([1.01, -1.01, 3, -3], codec.format.top)[:, 0],
    ])  # fmt: skip
    if finite[0] == 0 and codec.format.value == "float32":
        x = np.abs(x)
    got = value_of(codecs.quantised(codec, input_("x", {"i": len(x)})), {"x": x}, ("i",))
    best = np.abs(finite - np.clip(x, finite[0], finite[-1])[:, None]).min(1)
    assert np.allclose(np.abs(got - np.clip(x, finite[0], finite[-1])), best, atol=1e-12)
    if codec.format.value == "float32" and not name.endswith("m0"):  # ties go to the even code
        assert np.array_equal(got, codec.format.table[packing.nearest(x, codec.format.table)])


def test_exponents_round_down() -> None:
    x = np.array([1.0, 1.999, 2.0, 0.75, 2.0**-126, 3e38])
    got = value_of(codecs.quantised(CODECS["e8m0"], input_("x", {"i": 6})), {"x": x}, ("i",))
    assert np.array_equal(got, np.exp2(np.floor(np.log2(x))))


def test_stochastic_rounding_is_right_on_average() -> None:
    noise = (np.arange(1000) + 0.5) / 1000
    x = input_("x", {"i": 3})
    value = codecs.quantised(CODECS["e2m1"], x, up_by_chance(input_("r", {"j": 1000})))
    given = np.array([2.3, -0.2, 5.0])
    got = value_of(value, {"x": given, "r": noise}, ("i", "j"))
    assert np.allclose(got.mean(1), given, atol=2e-3)
    assert set(np.unique(got)) == {2, 3, -0.5, 0, 4, 6}


def test_two_of_four() -> None:
    rng = np.random.default_rng(2)
    places = np.sort(np.stack([rng.permutation(4)[:2] for _ in range(9)]), axis=1).reshape(1, 18)
    values = rng.standard_normal((1, 18))
    dense = np.zeros((1, 36))
    for n in range(18):
        dense[0, n // 2 * 4 + places[0, n]] = values[0, n]
    v, i = input_("v", {"n": 1, "k": 18}), input_("i", {"n": 1, "k": 18}, "int32")
    got = value_of(codecs.dense24(v, i, "k", 36), {"v": values, "i": places}, ("n", "k"))
    assert np.array_equal(got, dense)


def test_hadamard_is_orthogonal_and_symmetric() -> None:
    from scipy.linalg import hadamard

    got = value_of(codecs.hadamard("i", "j", 32), {}, ("i", "j"))
    assert np.allclose(got, hadamard(32) / np.sqrt(32))


@pytest.mark.parametrize("place", ["before", "group"])
def test_places_of_a_scale_agree(place: str) -> None:
    rng = np.random.default_rng(8)
    x, w, s = rng.standard_normal((3, 70)), rng.integers(-8, 8, (5, 70)), rng.random((5, 3))
    a, b = input_("x", {"m": 3, "k": 70}), cast(input_("w", {"n": 5, "k": 70}), "int8")
    y = codecs.scaled_dot("k", a, b, input_("s", {"n": 5, "kg": 3}), place, 32)
    got = value_of(y, {"x": x, "w": w, "s": s}, ("m", "n"))
    assert np.allclose(got, x @ (w * np.repeat(s, 32, 1)[:, :70]).T, rtol=1e-12)
