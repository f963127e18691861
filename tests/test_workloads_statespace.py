"""State spaces beside matrices over pairs of steps; ONNX's operators beside loops over heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from workload_check import Array, check

from autosched.datasets.workloads import statespace  # noqa: F401

Arrays = dict[str, Array]


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def mixer(B: Array, C: Array, dt: Array, A: Array, heads: int) -> Array:
    """M[b, h, i, j] = C_i B_j dt_j exp(A (dt_j+1 + ... + dt_i)), lower triangular."""
    B, C = (np.repeat(y, heads // y.shape[2], 2) for y in (B, C))
    total = np.cumsum(A * dt, 1)
    span = np.minimum(total[:, :, None] - total[:, None], 0)
    full = np.einsum("bihn,bjhn,bjh,bijh->bhij", C, B, dt, np.exp(span))
    return np.tril(full)


def test_mamba2() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        M = mixer(x["B"], x["C"], softplus(x["dt"] + x["dt_bias"]), -np.exp(x["A"]), s.h)
        return {"y": np.einsum("bhij,bjhp->bihp", M, x["x"]) + x["D"][:, None] * x["x"]}

    check("mamba2", reference)


def test_hydra_is_one_quasiseparable_matrix() -> None:
    """Below the diagonal one mixer a row later, above it the other transposed, D on it."""

    def reference(x: Arrays, s: Any) -> Arrays:
        dt, dt_back = (softplus(x[n] + x["dt_bias"]) for n in ("dt", "dt_back"))
        ahead = mixer(x["B"], x["C"], dt, -np.exp(x["A"]), s.h)
        B, C = (x[n][:, ::-1] for n in ("B_back", "C_back"))
        behind = mixer(B, C, dt_back[:, ::-1], -np.exp(x["A"]), s.h)
        M = np.zeros_like(ahead)
        M[:, :, 1:] = ahead[:, :, :-1]
        M[:, :, :-1] += behind[:, :, ::-1, ::-1][:, :, 1:]
        M += np.eye(s.t) * x["D"][:, None, None]
        return {"y": np.einsum("bhij,bjhp->bihp", M, x["x"])}

    check("hydra", reference)


def test_mamba2_decode() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        dt = softplus(x["dt"] + x["dt_bias"])
        B, C = (np.repeat(x[n], s.h // s.groups, 1) for n in "BC")
        new = np.exp(-np.exp(x["A"]) * dt)[..., None, None] * x["past"]
        new += np.einsum("bh,bhn,bhp->bhnp", dt, B, x["x"])
        return {"y": np.einsum("bhn,bhnp->bhp", C, new) + x["D"][:, None] * x["x"], "last": new}

    check("mamba2_decode", reference)


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize("wide", [False, True])
def test_onnx_linear_attention(rule: str, wide: bool) -> None:
    """Token by token with loops over batch and head, straight from the operator's text."""

    def reference(x: Arrays, s: Any) -> Arrays:
        out = np.zeros((s.b, s.t, s.heads, s.e))
        last = x["past"].copy()
        q = x["query"].reshape(s.b, s.t, s.heads, s.d)
        k, v = (x[n].reshape(s.b, s.t, s.kv, -1) for n in ("key", "value"))
        for b, t, g in np.ndindex(s.b, s.t, s.kv):
            S, target = last[b, g], v[b, t, g]
            if "gated" in rule:
                decay = x["decay"].reshape(s.b, s.t, s.kv, -1)[b, t, g]
                S *= np.exp(decay)[:, None]
            if "delta" in rule:
                target = x["beta"][b, t, g] * (target - S.T @ k[b, t, g])
            S += np.outer(k[b, t, g], target)
            share = s.heads // s.kv
            out[b, t, g * share : (g + 1) * share] = q[b, t, g * share : (g + 1) * share] @ S
        return {"output": out.reshape(s.b, s.t, -1) / np.sqrt(s.d), "present": last}

    check("onnx_linear_attention", reference, rule=rule, wide=wide)


@pytest.mark.parametrize("t", [1, 7])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_causal_conv_with_state(t: int, activation: str) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        rows = np.concatenate([x["past"], x["x"]], -1)
        y = np.zeros((s.b, s.c, t))
        for b, c in np.ndindex(s.b, s.c):
            y[b, c] = np.convolve(rows[b, c], x["w"][c, ::-1], "valid") + x["bias"][c]
        y = y / (1 + np.exp(-y)) if activation == "silu" else y
        return {"y": y, "present": rows[:, :, -(s.k - 1) :]}

    check("causal_conv_with_state", reference, t=t, activation=activation)
