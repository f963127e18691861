"""Kernelised attention beside row-by-row math and dense linear algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from workload_check import Array, check

from autosched.datasets.workloads import kernelised  # noqa: F401

Arrays = dict[str, Array]


def test_local_linear_attention_solves_each_row() -> None:
    """A dense solve for every query, over the keys up to it."""

    def reference(x: Arrays, s: Any) -> Arrays:
        out = np.zeros_like(x["v"])
        for b, h, i in np.ndindex(s.b, s.h, s.t):
            q, k, v = x["q"][b, h, i], x["k"][b, h, : i + 1], x["v"][b, h, : i + 1]
            w, z = np.exp(k @ q / np.sqrt(s.d)), k - q
            mu = w @ z
            rho = np.linalg.solve((w[:, None] * z).T @ z + s.ridge * np.eye(s.d), mu)
            out[b, h, i] = (w * (1 - z @ rho)) @ v / (w.sum() - mu @ rho)
        return {"o": out}

    check("local_linear_attention", reference, tolerance=1e-9)
    check("local_linear_attention", reference, tolerance=1e-9, rounds=40)  # done rows stay


def test_too_few_rounds_of_conjugate_gradients_are_not_exact() -> None:
    with pytest.raises(AssertionError, match="relative error"):
        exact = {"o": np.zeros((2, 3, 13, 7))}
        check("local_linear_attention", lambda x, s: exact, rounds=1)


def test_parallax() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        k, v = (np.repeat(x[n], s.h // s.g, 1) for n in "kv")
        scores = x["q"] @ k.swapaxes(-1, -2) / np.sqrt(s.d)
        p = np.tril(np.exp(scores))
        p /= p.sum(-1, keepdims=True)
        tilt = x["r"] @ k.swapaxes(-1, -2)
        centred = (p * tilt).sum(-1, keepdims=True) - tilt
        return {"o": (p * (1 + centred)) @ v}

    check("parallax", reference)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    first, second = np.split(x, 2, -1)
    return x * cos + np.concatenate([-second, first], -1) * sin


def test_nalaformer() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        length = np.linalg.norm(x["q"], axis=-1, keepdims=True)
        way, power = x["q"] / length, 3 * (0.5 + np.tanh(length))
        fq = np.concatenate([np.maximum(way, 0) ** power, np.maximum(-way, 0) ** power], -1)
        k = x["k"] ** 3
        fk = np.concatenate([np.maximum(k, 0), np.maximum(-k, 0)], -1)
        w = rotate(fq, x["cos"], x["sin"]) @ rotate(fk, x["cos"], x["sin"]).swapaxes(-1, -2)
        down = fq @ fk.mean(2)[..., None]
        return {"o": w @ x["v"] / s.t / down}

    check("nalaformer", reference)


def test_relative_kernel_attention_by_fft() -> None:
    """The Toeplitz products as circular convolutions of twice the length."""

    def reference(x: Arrays, s: Any) -> Arrays:
        def features(y: Array) -> Array:
            y = y / s.d**0.25
            return np.exp(y @ x["w"].T - (y * y).sum(-1, keepdims=True) / 2) / np.sqrt(s.f)

        fq, fk = features(x["q"]), features(x["k"])
        columns = np.concatenate([x["v"], np.ones((*x["v"].shape[:-1], 1))], -1)
        both = fk[..., :, None] * columns[..., None, :]
        c = np.exp(x["bias"][:, ::-1])  # by i - j
        n = 4 * s.t
        spectrum = np.fft.rfft(c, n, 1)[None, :, :, None, None] * np.fft.rfft(both, n, 2)
        mixed = np.fft.irfft(spectrum, n, 2)[:, :, s.t - 1 : 2 * s.t - 1]
        rows = np.einsum("bhif,bhife->bhie", fq, mixed)
        return {"o": rows[..., :-1] / rows[..., -1:]}

    check("relative_kernel_attention", reference)


def test_soft_attention_by_a_pseudo_inverse() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        def kernel(a: Array, b: Array) -> Array:
            return np.exp(-0.5 * ((a[..., :, None, :] - b[..., None, :, :]) ** 2).sum(-1))

        q = x["q"] / s.d**0.25
        marks = np.einsum("hu,bhmud->bhmd", x["w"], q.reshape(s.b, s.h, s.m, s.pool, s.d))
        inverse = np.linalg.pinv(kernel(marks, marks))
        return {"o": kernel(q, marks) @ inverse @ (kernel(marks, q) @ x["v"])}

    check("soft_attention", reference, tolerance=1e-9)


def test_infinite_attention() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        w = np.maximum(x["q"] @ x["k"].swapaxes(-1, -2), 0)
        return {"o": s.rho * w @ x["v"] / np.linalg.norm(w, axis=(2, 3), keepdims=True)}

    check("infinite_attention", reference)


def test_linear_infinite_attention() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        length = np.linalg.norm(x["q"], axis=-1)
        one = np.einsum("bht,bhtd->bhd", length / length.sum(-1, keepdims=True), x["q"])
        a = np.maximum(np.einsum("bhd,bhtd->bht", one, x["k"]), 0)
        o = np.einsum("bht,bhte->bhe", a / a.sum(-1, keepdims=True), x["v"])
        return {"o": s.rho * np.repeat(o[:, :, None], s.t, 2)}

    check("linear_infinite_attention", reference)
