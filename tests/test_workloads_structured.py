"""Structured maps beside their dense matrices; products and clusters beside plain NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from workload_check import Array, check

from autosched.datasets.workloads import dense, structured  # noqa: F401

Arrays = dict[str, Array]


def test_monarch_is_a_product_of_sparse_matrices() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        inner = s.k * s.q
        first = np.zeros((inner, s.k * s.p))
        for k in range(s.k):
            first[k * s.q : (k + 1) * s.q, k * s.p : (k + 1) * s.p] = x["w1"][k]
        second = np.zeros((s.l * s.s, inner))  # block l reads every l-th element, writes likewise
        for l in range(s.l):
            second[l :: s.l, l :: s.l] = x["w2"][l]
        return {"y": x["x"] @ (second @ first).T}

    check("monarch", reference)


def test_butterfly_is_a_product_of_stages() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        n, whole = 2**s.stages, np.eye(2**s.stages)
        for g in range(s.stages):
            stage = np.diag(x["own"][g])
            for i in range(n):
                stage[i, i ^ (1 << g)] = x["other"][g, i]
            whole = stage @ whole
        return {"y": x["x"] @ whole.T}

    check("butterfly", reference)


def sylvester(stages: int) -> Array:
    """H of 2^stages by doubling, normalised."""
    h = np.ones((1, 1))
    for _ in range(stages):
        h = np.block([[h, h], [h, -h]])
    return h / math.sqrt(len(h))


@pytest.mark.parametrize("stages", [1, 5])
@pytest.mark.parametrize("name", ["fwht", "hadamard"])
def test_hadamard(name: str, stages: int) -> None:
    check(name, lambda x, s: {"y": x["x"] @ sylvester(stages)}, stages=stages)


def test_m2_long_convolution_in_time() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        y = np.zeros_like(x["u"])
        for b, d in np.ndindex(s.b, s.d):
            y[b, d] = np.convolve(x["u"][b, d], x["h"][d])[: s.t]
        return {"y": y * x["gate"]}

    check("m2_long_convolution", reference)


def test_low_rank_chain() -> None:
    check("low_rank_chain", lambda x, s: {"y": x["x"] @ (x["b"] @ x["a"]).T})


def test_tensor_product() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        return {"z": np.einsum("ijk,bui,buj->buk", x["c"], x["x"], x["y"])}

    check("tensor_product", reference)


def test_gaunt_is_a_tensor_product() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        c = np.einsum("pi,pj,pk->ijk", x["g1"], x["g2"], x["g3"])
        return {"z": np.einsum("ijk,bui,buj->buk", c, x["x"], x["y"])}

    check("gaunt_tensor_product", reference)


# ---- dense products --------------------------------------------------------------------------


def sig(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def exact_gelu(x: Array) -> Array:
    return 0.5 * x * np.vectorize(lambda y: math.erfc(-y / math.sqrt(2)))(x)


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu squared": lambda x: np.where(x > 0, x * x, 0),
    "silu": lambda x: x * sig(x),
    "gelu": exact_gelu,
    "gelu tanh": lambda x: x * sig(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
}


def test_dense_gemm() -> None:
    check("dense_gemm", lambda x, s: {"y": x["x"] @ x["w"]})


def test_every_epilogue_has_a_reference() -> None:
    assert set(ACTIVATIONS) == set(dense.EPILOGUES)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_gemm_epilogue(name: str) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        return {"y": ACTIVATIONS[name](x["x"] @ x["w"] + x["bias"]) + x["residual"]}

    check("gemm_epilogue", reference, epilogue=name)


def test_swiglu_pair() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        gate = x["x"] @ x["gate"]
        return {"y": gate * sig(gate) * (x["x"] @ x["up"])}

    check("swiglu_pair", reference)


def test_rmsnorm_gemm() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        rms = np.sqrt((x["x"] ** 2).mean(-1, keepdims=True) + 1e-6)
        return {"y": (x["x"] @ (x["gamma"][:, None] * x["w"])) / rms}

    check("rmsnorm_gemm", reference)


def test_batched_gemm() -> None:
    check("batched_gemm", lambda x, s: {"y": x["x"] @ x["w"]})


# ---- k-means ---------------------------------------------------------------------------------


def nearest(x: Array, c: Array) -> Array:
    return np.argmin(((x[:, :, None] - c[:, None]) ** 2).sum(-1), -1)


def means(x: Array, ids: Array, c: Array) -> Array:
    out = c.copy()
    for b, k in np.ndindex(*c.shape[:2]):
        if (ids[b] == k).any():
            out[b, k] = x[b, ids[b] == k].mean(0)
    return out


@pytest.mark.parametrize("cosine", [False, True])
def test_kmeans_assign(cosine: bool) -> None:
    """On the unit sphere the nearest is the one of the largest cosine."""

    def reference(x: Arrays, s: Any) -> Arrays:
        rows = [x[n] / np.linalg.norm(x[n], axis=-1, keepdims=True) if cosine else x[n]
                for n in "xc"]  # fmt: skip
        return {"ids": nearest(rows[0], rows[1])}

    check("kmeans_assign", reference, cosine=cosine)


def test_kmeans_update_keeps_empty_clusters() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        count = np.stack([np.bincount(row, minlength=s.k) for row in x["ids"]])
        assert (count[:, -1] == 0).all()
        return {"centres": means(x["x"], x["ids"], x["c"]), "count": count}

    check("kmeans_update", reference)


def test_kmeans_step() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        return {"centres": means(x["x"], nearest(x["x"], x["c"]), x["c"])}

    check("kmeans_step", reference)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kmeans_sorted_sums(seed: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        total = np.zeros((s.b, s.k, s.d))
        for b in range(s.b):
            runs = np.split(x["x"][b, x["order"][b]], x["ends"][b, :-1])
            total[b] = [run.sum(0) for run in runs]
        return {"total": total}

    check("kmeans_sorted_sums", reference, seed=seed)
