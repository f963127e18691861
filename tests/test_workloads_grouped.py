"""Grouped products and layers of experts beside loops over segments and tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from workload_check import Array, check

from autosched.datasets.workloads import grouped  # noqa: F401

Arrays = dict[str, Array]


def by_segment(x: Array, w: Array, ends: Array) -> Array:
    """Each run of rows times its own matrix."""
    return np.concatenate([run @ own for run, own in zip(np.split(x, ends[:-1]), w)])


def silu(x: Array) -> Array:
    return x * np.exp(-np.logaddexp(0, -x))


def gelu(x: Array) -> Array:
    return 0.5 * x * np.vectorize(lambda y: math.erfc(-y / math.sqrt(2)))(x)


@pytest.mark.parametrize("seed", range(3))
def test_grouped_gemm(seed: int) -> None:
    check("grouped_gemm",
          lambda x, s: {"y": by_segment(x["x"], x["w"], x["ends"])}, seed=seed)  # fmt: skip


def test_fp8_grouped_gemm() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        return {"y": by_segment(x["xs"][:, None] * x["x"], x["w"] * x["ws"][:, None], x["ends"])}

    check("fp8_grouped_gemm", reference)


@pytest.mark.parametrize("seed", range(3))
def test_grouped_gemm_by_segment(seed: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        runs = zip(*(np.split(x[n], x["ends"][:-1]) for n in ("x", "dy")))
        return {"dw": np.stack([rows.T @ dy for rows, dy in runs])}

    check("grouped_gemm_by_segment", reference, seed=seed)


def choices(x: Arrays) -> tuple[Array, Array]:
    """(experts, shares) of each token, the best first."""
    logits = x["x"] @ x["router"]
    best = np.argsort(-logits, -1)[:, :2]
    p = np.exp(np.take_along_axis(logits, best, -1))
    return best, p / p.sum(-1, keepdims=True)


def test_moe_layer() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        best, share = choices(x)
        y = np.zeros((s.t, s.d))
        for t, r in np.ndindex(s.t, 2):
            e, row = best[t, r], x["x"][t]
            hidden = silu(row @ x["gate"][e]) * (row @ x["up"][e])
            y[t] += share[t, r] * hidden @ x["down"][e]
        return {"y": y}

    check("moe_layer", reference)


@pytest.mark.parametrize("capacity", [1, 3, 5, 22])
def test_moe_layer_with_capacity(capacity: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        best, share = choices(x)
        y, used = np.zeros((s.t, s.d)), np.zeros(s.experts, int)
        for r, t in np.ndindex(2, s.t):
            e = best[t, r]
            used[e] += 1
            if used[e] <= capacity:
                y[t] += share[t, r] * gelu(x["x"][t] @ x["up"][e]) @ x["down"][e]
        assert capacity > 5 or used.max() > capacity  # something is dropped
        return {"y": y}

    check("moe_layer_with_capacity", reference, capacity=capacity)


def test_moe_dispatched() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        y, expert = np.zeros((s.t, s.d)), np.searchsorted(x["ends"], np.arange(s.m), "right")
        for t, r in np.ndindex(s.t, 2):
            row = x["place"][t, r]
            hidden = gelu(x["x"][x["token"][row]] @ x["up"][expert[row]])
            y[t] += x["share"][t, r] * hidden @ x["down"][expert[row]]
        return {"y": y}

    check("moe_dispatched", reference)
