"""Quantised linear layers against float64 NumPy, written from the mathematics of each system."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.linalg import hadamard
from workload_check import Array, check

from autosched.datasets.workloads import packing
from autosched.datasets.workloads import quantised_bits as bits_
from autosched.datasets.workloads import quantised_gemm as gemm
from autosched.datasets.workloads.codecs import CODECS
from autosched.datasets.workloads.define import collected
from autosched.ir.interp import evaluate

In = dict[str, Array]
MODULES = (gemm.__name__, bits_.__name__)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate([E2M1, -E2M1])


def unpacked(codec: str, words: Array, size: int) -> Array:
    """Codes of rows of words."""
    return packing.unpack(words, CODECS[codec].bits, size, CODECS[codec].layout)


def signed(code: Array, bits: int) -> Array:
    return code - 2**bits * (code >= 2 ** (bits - 1))


def every(scale: Array, size: int, k: int) -> Array:
    """Scales of groups as scales of elements."""
    return np.repeat(scale, size, axis=-1)[..., :k]


def turned(x: Array, size: int) -> Array:
    """The last axis rotated by a Hadamard matrix in blocks."""
    blocks = x.reshape(*x.shape[:-1], -1, size) @ (hadamard(size) / np.sqrt(size))
    return blocks.reshape(x.shape)


def int8(x: Array) -> tuple[Array, Array]:
    """(whole numbers, scale) of rows, the largest at 127."""
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.rint(x / scale), scale


# ---- integer weights ---------------------------------------------------------------------------


def test_marlin() -> None:
    def reference(a: In, s: Any) -> In:
        w = (unpacked("marlin", a["w"], s.k) - 8) * every(a["ws"], s.g, s.k)
        return {"y": a["x"] @ w.T}

    check("marlin", reference)
    check("marlin", reference, m=1, k=64, g=128)


def test_sparse_marlin() -> None:
    def reference(a: In, s: Any) -> In:
        kept = unpacked("marlin 2:4", a["w"], s.k // 2) - 8
        places = unpacked("index 2:4", a["index"], s.k // 2)
        w = np.zeros((s.n, s.k))
        for row in range(s.n):
            for c in range(s.k // 2):
                w[row, c // 2 * 4 + places[row, c]] = kept[row, c]
        assert 0.3 < np.mean(w != 0) <= 0.5
        return {"y": a["x"] @ (w * every(a["ws"], s.g, s.k)).T}

    check("sparse_marlin", reference)


@pytest.mark.parametrize("acts", ["float8_e4m3", "bfloat16"])
@pytest.mark.parametrize("epilogue", ["none", "mul", "add", "silu"])
def test_fireq_linear(epilogue: str, acts: str) -> None:
    def reference(a: In, s: Any) -> In:
        w = signed(unpacked("s4", a["w"], s.k), 4) * every(a["ws"], s.g, s.k)
        y = a["x"] @ w.T * (a["xs"][:, None] if acts == "float8_e4m3" else 1)
        if epilogue in ("mul", "add"):
            y = y * a["r"] if epilogue == "mul" else y + a["r"]
        return {"y": y / (1 + np.exp(-y)) if epilogue == "silu" else y}

    check("fireq_linear", reference, epilogue=epilogue, acts=acts)


@pytest.mark.parametrize("r", [1, 2, 3, 4, 6, 8])
def test_matgptq(r: int) -> None:
    def reference(a: In, s: Any) -> In:
        q = unpacked("parent8", a["w"], s.k)
        if r < 8:
            q = np.clip((q >> (8 - r)) + (q >> (7 - r) & 1), 0, 2**r - 1)
        w = every(a["ws"], s.g, s.k) * ((q << (8 - r)) - 128)
        return {"y": a["x"] @ w.T}

    check("matgptq", reference, r=r)


@pytest.mark.parametrize("rotate", ["weights", "tokens"])
def test_itq3(rotate: str) -> None:
    def reference(a: In, s: Any) -> In:
        code = unpacked("itq3", a["w"], s.k)
        w = every(a["ws"], s.g, s.k) * (code - every(a["z"], s.g, s.k))
        return {"y": a["x"] @ turned(w, s.g).T}

    check("itq3", reference, rotate=rotate)


# ---- integer weights and activations -----------------------------------------------------------


def test_w8a8() -> None:
    check("w8a8", lambda a, s: {
        "y": a["x"].astype(float) @ a["w"].T * a["xs"][:, None] * a["ws"]})  # fmt: skip


@pytest.mark.parametrize("kind", ["tensor", "row", "block"])
def test_fp8_gemm(kind: str) -> None:
    def reference(a: In, s: Any) -> In:
        x, w = a["x"], a["w"]
        if kind == "block":
            x = x * every(a["xs"], s.g, s.k)
            return {"y": x @ (w * every(np.repeat(a["ws"], s.g, 0)[: s.n], s.g, s.k)).T}
        left, right = (a["xs"][:, None], a["ws"]) if kind == "row" else (a["xs"], a["ws"])
        return {"y": x @ w.T * left * right}

    check("fp8_gemm", reference, kind=kind, g=4 if kind == "block" else 32)


def test_mixllm() -> None:
    def reference(a: In, s: Any) -> In:
        w8 = signed(unpacked("s8", a["w8"], s.k), 8) * every(a["ws8"], s.g, s.k)
        w4 = unpacked("u4", a["w4"], s.k) - every(a["zero"].astype(int), s.g, s.k)
        rows = np.concatenate([w8, w4 * every(a["ws4"], s.g, s.k)])
        y = (a["x"] * every(a["xs"], s.g, s.k)) @ rows.T
        return {"y": y[:, a["slot"]]}

    check("mixllm", reference)
    check("mixllm", reference, n8=10, seed=2)


def test_comet() -> None:
    def reference(a: In, s: Any) -> In:
        x4 = signed(unpacked("s4", a["x4"], s.g), 4)
        w = signed(unpacked("s4", a["w"], s.k), 4).reshape(s.n, -1, s.g) * a["ws"][:, :, None]
        y = np.zeros((s.m, s.n))
        for b, slot in enumerate(a["slot"]):
            x = a["x8"][:, slot].astype(float) if slot < s.b8 else x4[:, slot - s.b8]
            y += a["xs"][:, b, None] * (x @ w[:, b].T)
        return {"y": y}

    check("comet", reference)


def rms(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def test_bitlinear() -> None:
    def reference(a: In, s: Any) -> In:
        x, scale = int8(rms(a["x"]))
        w = unpacked("ternary", a["w"], s.k) - 1
        assert set(np.unique(w)) == {-1, 0, 1}
        return {"y": x @ w.T * scale * a["ws"]}

    check("bitlinear", reference)


def test_bitlinear_training() -> None:
    def reference(a: In, s: Any) -> In:
        x, scale = int8(rms(a["x"]))
        beta = np.abs(a["w"]).mean()
        return {"y": x @ np.clip(np.rint(a["w"] / beta), -1, 1).T * scale * beta}

    check("bitlinear_training", reference)


@pytest.mark.parametrize("alpha", [0.15, 1.0])
def test_crossquant(alpha: float) -> None:
    def reference(a: In, s: Any) -> In:
        t, c = (np.abs(a["x"]).max(axis, keepdims=True) for axis in (1, 0))
        step = t**alpha * c ** (1 - alpha) / 127
        x = np.clip(np.rint(a["x"] / step), -128, 127) * step
        return {"y": x @ (signed(unpacked("s8", a["w"], s.k), 8) * a["ws"][:, None]).T}

    check("crossquant", reference, alpha=alpha)


# ---- floats of few bits ------------------------------------------------------------------------


def to_e2m1(x: Array) -> Array:
    return E2M1[packing.nearest(x, E2M1)]


def mx_scale(blocks: Array) -> Array:
    return np.exp2(np.floor(np.log2(np.abs(blocks).max(-1, keepdims=True))) - 2)


@pytest.mark.parametrize("kind, h", [("mxfp4", 32), ("mxfp4", 16), ("nvfp4", 16), ("nvfp4", 96)])
def test_mr_gptq(kind: str, h: int) -> None:
    k = 192 if h == 96 else 96
    h = 64 if h == 96 else h

    def reference(a: In, s: Any) -> In:
        size = 32 if kind == "mxfp4" else 16
        blocks = turned(a["x"], h).reshape(s.m, -1, size)
        if kind == "mxfp4":
            scale, w_scale = mx_scale(blocks), np.exp2(a["ws"].astype(float) - 127)
        else:
            e4m3 = packing.minifloats(4, 3, "nan")
            most = np.abs(blocks).max(-1, keepdims=True) / (6 * a["xt"])
            scale = e4m3[packing.nearest(most, e4m3)] * a["xt"]
            w_scale = a["ws"] * a["wt"]
        x = (to_e2m1(blocks / scale) * scale).reshape(s.m, s.k)
        return {"y": x @ (E2M1[unpacked(kind, a["w"], s.k)] * every(w_scale, size, s.k)).T}

    check("mr_gptq", reference, kind=kind, h=h, k=k)


def test_rotate_and_pack() -> None:
    def reference(a: In, s: Any) -> In:
        blocks = turned(a["x"], s.h).reshape(s.m, -1, 32)
        scale = mx_scale(blocks)
        code = packing.nearest(blocks / scale, E2M1).reshape(s.m, s.k)
        q = packing.pack(code, 4, "uint8", "low first")
        return {"q": q, "s": (np.log2(scale[..., 0]) + 127).astype(np.uint8)}

    check("rotate_and_pack", reference)


@pytest.mark.parametrize("place", ["before", "group"])
@pytest.mark.parametrize("codec", ["e2m0", "e3m0", "e2m1", "e2m2", "e3m2", "e2m3", "e3m3", "e4m3",
                                   "e5m2"])  # fmt: skip
def test_minifloat_linear(codec: str, place: str) -> None:
    exponent, mantissa = int(codec[1]), int(codec[3])

    def value(code: int) -> float:
        field, fraction = code >> mantissa & (2**exponent - 1), code % 2**mantissa / 2**mantissa
        bias, sign = 2 ** (exponent - 1) - 1, -1 if code >> (exponent + mantissa) else 1
        return float(sign * (2.0 ** (field - bias) * (1 + fraction) if field
                             else 2.0 ** (1 - bias) * fraction))  # fmt: skip

    def reference(a: In, s: Any) -> In:
        w = np.vectorize(value)(unpacked(codec, a["w"], s.k))
        return {"y": a["x"] @ (w * every(a["ws"], s.g, s.k)).T}

    check("minifloat_linear", reference, codec=codec, place=place)


def test_fp4_training() -> None:
    scales = packing.minifloats(5, 3, "nan", signed=False)

    def fp4(x: Array, noise: Array | None) -> Array:
        blocks = turned(x, 16).reshape(x.shape[0], -1, 16)
        scale = np.abs(blocks).max(-1, keepdims=True) / 6
        scale = scales[packing.nearest(scale, scales)]
        v = np.clip(blocks / scale, -6, 6)
        if noise is None:
            return np.asarray((to_e2m1(v) * scale).reshape(x.shape))
        step = np.where(np.abs(v) < 2, 0.5, np.where(np.abs(v) < 4, 1, 2))
        up = np.floor(np.abs(v) / step + noise.reshape(v.shape)) * step
        return np.asarray((np.sign(v) * np.minimum(up, 6) * scale).reshape(x.shape))

    check("fp4_training", lambda a, s: {"y": fp4(a["x"], a["noise"]) @ fp4(a["w"], None).T})


# ---- without multipliers -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["planes", "ints"])
@pytest.mark.parametrize("bits", [6, 8])
def test_flexq(bits: int, form: str) -> None:
    def reference(a: In, s: Any) -> In:
        x = signed(unpacked(f"flexq{bits}", a["x"], s.k), bits) * every(a["xs"], s.g, s.k)
        w = signed(unpacked("flexq6", a["w"], s.k), 6) * every(a["ws"], s.g, s.k)
        return {"y": x @ w.T}

    check("flexq", reference, bits=bits, form=form)


@pytest.mark.parametrize("form", ["planes", "ints"])
@pytest.mark.parametrize("a, b", [(1, 1), (2, 3), (4, 4)])
def test_bipolar_linear(a: int, b: int, form: str) -> None:
    def reference(given: In, s: Any) -> In:
        bits = [packing.unpack(given[name], n, s.k, "planes") for name, n in (("x", a), ("w", b))]
        x, w = (sum((2 * (code >> i & 1) - 1) << i for i in range(n))
                for code, n in zip(bits, (a, b)))  # fmt: skip
        return {"y": x @ w.T * given["ws"]}

    check("bipolar_linear", reference, a=a, b=b, form=form)


def test_forms_of_one_product_are_equal() -> None:
    for name in ("flexq", "bipolar_linear"):
        found = collected()[name]
        planes, ints = (
            evaluate(found.program(form=form), found.inputs(7, form=form))["y"]
            for form in ("planes", "ints")
        )
        assert np.allclose(planes, ints, rtol=1e-14, atol=0)


def test_mat_shift() -> None:
    def reference(a: In, s: Any) -> In:
        x = np.floor(a["x"][:, None] / 2.0 ** a["shift"])
        return {"y": (np.where(a["sign"] > 0, 1, -1) * x).sum(-1)}

    assert check("mat_shift", reference)["y"].dtype == np.int32


def test_mat_add() -> None:
    check("mat_add", lambda a, s: {
        "y": np.einsum("bhkm,bhkn->bhmn", (a["mask"] > 0).astype(float), a["v"])})  # fmt: skip


def l_mul(a: Array, b: Array, below: int) -> Array:
    """(1 + p + q + 2**-below) 2**(x + y), where what exceeds the binade doubles."""
    (p, x), (q, y) = (np.frexp(np.abs(v)) for v in (a, b))
    fraction = (2 * p - 1) + (2 * q - 1) + 2.0**-below
    carry = np.floor(fraction)
    value = (1 + fraction - carry) * 2.0 ** (x + y - 2 + carry)
    return np.where((a == 0) | (b == 0), 0, np.sign(a) * np.sign(b) * value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_l_mul_linear(dtype: str) -> None:
    def reference(a: In, s: Any) -> In:
        assert (a["x"] == 0).sum() == 0
        return {"y": l_mul(a["x"][:, None], a["w"], 4).sum(-1)}

    got = check("l_mul_linear", reference, dtype=dtype)
    given = collected()["l_mul_linear"].inputs(0, dtype=dtype)
    exact = given["x"] @ given["w"].T
    assert np.linalg.norm(got["y"] - exact) < 0.1 * np.linalg.norm(exact)


def test_l_mul_of_zero_and_of_nothing_normal() -> None:
    program = collected()["l_mul_linear"].program(m=1, n=3, k=1)
    w = np.array([[0.0], [-2.0], [1e-30]])
    got = evaluate(program, {"x": np.array([[1e-20]]), "w": w})["y"]
    assert got[0, 0] == 0 and got[0, 2] == 0 and got[0, 1] < 0


def test_l_mul_attention() -> None:
    def reference(a: In, s: Any) -> In:
        scores = l_mul(a["q"][..., :, None, :], a["k"][..., None, :, :], 4).sum(-1) * s.d**-0.5
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p = (p / p.sum(-1, keepdims=True)).astype(np.float32).astype(np.float64)
        return {"o": l_mul(p[..., None], a["v"][..., None, :, :], 4).sum(-2)}

    check("l_mul_attention", reference, tolerance=1e-9)


# ---- the definitions ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, w in collected().items()
                                  if w.define.__module__ in MODULES])  # fmt: skip
def test_definitions_are_short_and_stand_at_real_sizes(name: str) -> None:
    found = collected()[name]
    assert found.length <= 12
    for shape in found.shapes:
        program = found.program(shape)
        assert all(int(e) > 0 for o in program.outputs for e in o.extents)
