"""The tile programs written by hand mean what their algebra means, and what NumPy says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from programs import attention, gemm
from scipy.special import erf
from tile_programs import attention_tile, delta_algebra, delta_tile, gemm_tile

from autosched.ir.extent import subst
from autosched.ir.interp import evaluate
from autosched.ir.node import Program


def random_inputs(program: Program, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {n.attr[0]: rng.standard_normal([e for _, e in n.attr[1]]) for n in program.inputs}


def close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 19, 5), (13, 33, 40), (12, 32, 8)])
@pytest.mark.parametrize("knobs", [{"MR": 1, "NR": 4}, {"MR": 6, "NR": 16}])
def test_gemm(sizes: tuple[int, int, int], knobs: dict[str, int]) -> None:
    tile, plain = subst(gemm_tile(*sizes), knobs), gemm(*sizes)
    x = random_inputs(plain)
    y = x["x"] @ x["w"] + x["bias"]
    want = 0.5 * y * (1 + erf(y / math.sqrt(2)))
    close(evaluate(plain, x)["y"], want)
    close(evaluate(tile, x)["y"], want)


def numpy_attention(x: dict[str, np.ndarray[Any, Any]], groups: int) -> np.ndarray[Any, Any]:
    k, v = (np.repeat(x[n], groups, axis=1) for n in ("k", "v"))
    s = x["q"] @ k.swapaxes(-1, -2) / math.sqrt(k.shape[-1])
    s = np.where(np.tril(np.ones(s.shape[-2:], bool)), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)) @ v


@pytest.mark.parametrize("t", [1, 13, 32, 45])
@pytest.mark.parametrize("knobs", [{"BM": 8, "BN": 4}, {"BM": 4, "BN": 16}, {"BM": 16, "BN": 16}])
def test_causal_attention(t: int, knobs: dict[str, int]) -> None:
    tile, plain = subst(attention_tile(2, 4, t, 5, 2), knobs), attention(2, 4, t, 5, groups=2)
    x = random_inputs(plain)
    want = numpy_attention(x, 2)
    close(evaluate(plain, x)["o"], want)
    close(evaluate(tile, x)["o"], want)


def numpy_delta(x: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    b, h, t, d = x["q"].shape
    state = np.zeros((b, h, d, x["v"].shape[-1]))
    out = np.zeros(x["v"].shape)
    for n in range(t):
        state = np.exp(x["g"][:, :, n, :, None]) * state
        seen = np.einsum("bhd,bhde->bhe", x["k"][:, :, n], state)
        u = x["beta"][:, :, n, None] * (x["v"][:, :, n] - seen)
        state = state + x["k"][:, :, n, :, None] * u[:, :, None, :]
        out[:, :, n] = np.einsum("bhd,bhde->bhe", x["q"][:, :, n], state) / math.sqrt(d)
    return {"o": out, "s": state}


@pytest.mark.parametrize("t", [1, 7, 16, 21])
@pytest.mark.parametrize("chunk", [1, 4, 8])
def test_gated_delta_rule(t: int, chunk: int) -> None:
    sizes = (2, 3, t, 5, 4)
    tile, plain = subst(delta_tile(*sizes), {"C": chunk}), delta_algebra(*sizes)
    x = random_inputs(plain)
    x["g"] = -np.abs(x["g"])
    x["k"] /= np.linalg.norm(x["k"], axis=-1, keepdims=True)
    x["beta"] = 1 / (1 + np.exp(-x["beta"]))
    want, seen, tiled = numpy_delta(x), evaluate(plain, x), evaluate(tile, x)
    for name in ("o", "s"):
        close(seen[name], want[name])
        close(tiled[name], want[name])


def test_strong_decay_does_not_overflow() -> None:
    tile, plain = subst(delta_tile(1, 1, 16, 3, 2), {"C": 16}), delta_algebra(1, 1, 16, 3, 2)
    x = random_inputs(plain)
    x["g"] = np.full_like(x["g"], -200.0)
    close(evaluate(tile, x)["o"], evaluate(plain, x)["o"])
