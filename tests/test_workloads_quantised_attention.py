"""Attention on coded keys and values against float64 NumPy, written from the mathematics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from workload_check import Array, check

from autosched.datasets.workloads import packing, quantised_attention
from autosched.datasets.workloads.define import collected
from autosched.ir.interp import evaluate

In = dict[str, Array]
E4M3 = packing.minifloats(4, 3, "nan")


def fp8(x: Array) -> Array:
    return E4M3[packing.nearest(x, E4M3)]


def heads(x: Array, h: int) -> Array:
    """Key heads, the second axis, as query heads."""
    return np.repeat(x, h // x.shape[1], axis=1)


def softmax(s: Array) -> Array:
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def later(i: int, j: int) -> Array:
    return np.arange(j) > np.arange(i)[:, None] + (j - i)


# ---- int8 and int4 scores ----------------------------------------------------------------------


def quantise_rows(x: Array, rows: int, top: int) -> Array:
    """x as whole numbers times one scale for `rows` rows of each head."""
    out = np.empty_like(x)
    for start in range(0, x.shape[2], rows):
        part = x[:, :, start : start + rows]
        scale = np.abs(part).max((2, 3), keepdims=True) / top
        out[:, :, start : start + rows] = np.rint(part / scale) * scale
    return out


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("bits, smooth_q, smooth_v", [(8, False, False), (8, True, True),
                                                      (4, True, False)])  # fmt: skip
def test_sage_attention2(bits: int, smooth_q: bool, smooth_v: bool, is_causal: bool) -> None:
    def reference(a: In, s: Any) -> In:
        q, k, v = a["q"], a["k"] - a["k"].mean(2, keepdims=True), a["v"]
        centre = np.zeros_like(q)
        if smooth_q:
            for start in range(0, s.i, s.block):
                rows = slice(start, start + s.block)
                centre[:, :, rows] = q[:, :, rows].mean(2, keepdims=True)
        top = 2 ** (bits - 1) - 1
        left, right = quantise_rows(q - centre, s.gq, top), quantise_rows(k, s.gk, top)
        scores = (left @ right.swapaxes(2, 3) + centre @ k.swapaxes(2, 3)) / math.sqrt(s.d)
        scores = np.where(later(s.i, s.j), -np.inf, scores) if is_causal else scores
        p = np.exp(scores - scores.max(-1, keepdims=True))
        shift = v.mean(2, keepdims=True) if smooth_v else 0.0
        vs = np.abs(v - shift).max(2, keepdims=True) / 448
        o = (fp8(p * 448) / 448) @ (fp8((v - shift) / vs) * vs)
        return {"o": o / p.sum(-1, keepdims=True) + shift}

    changes = {"bits": bits, "smooth_q": smooth_q, "smooth_v": smooth_v, "is_causal": is_causal}
    got = check("sage_attention2", reference, **changes)["o"]
    a = collected()["sage_attention2"].inputs(0, **changes)
    exact = a["q"] @ a["k"].swapaxes(2, 3) / 4
    exact = np.where(later(37, 45), -np.inf, exact) if is_causal else exact
    exact = softmax(exact) @ a["v"]
    assert np.linalg.norm(got - exact) < (0.2 if bits == 4 else 0.03) * np.linalg.norm(exact)


def test_fireq_attention() -> None:
    def reference(a: In, s: Any) -> In:
        k, v = (packing.unpack(a[n], 4, s.d, "low first") for n in ("k", "v"))
        k, v = (np.where(x > 7, x - 16, x) for x in (k, v))
        k, v = heads(k * a["ks"][..., None], s.h), heads(v * a["vs"][:, :, None], s.h)
        scores = (a["q"] * a["qs"][..., None]) @ k.swapaxes(2, 3) / math.sqrt(s.d)
        scores = np.where(later(s.i, s.j), -np.inf, scores)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        return {"o": (fp8(p * 448) / 448) @ v / p.sum(-1, keepdims=True)}

    check("fireq_attention", reference)


# ---- sign sketches -----------------------------------------------------------------------------


def outlying(places: Array, tokens: int, size: int, d: int) -> Array:
    """[b, g, j, d]: whether a channel is set apart for the group of a token."""
    out = np.zeros((*places.shape[:2], tokens, d), bool)
    for b, g, j in np.ndindex(*out.shape[:3]):
        out[b, g, j, places[b, g, j // size]] = True
    return out


def test_qjl_decode() -> None:
    def reference(a: In, s: Any) -> In:
        apart = heads(outlying(a["out"], s.j, s.t, s.d), s.h)
        q = a["q"][:, :, None]
        scores = np.zeros((s.b, s.h, s.j))
        for bits, p, norms, part in (("kb", "p", "norms", np.where(apart, 0, q)),
                                     ("ob", "po", "onorms", np.where(apart, q, 0))):  # fmt: skip
            m = len(a[p])
            signs = heads(2 * packing.unpack(a[bits], 1, m, "low first") - 1, s.h)
            inner = (part @ a[p].T * signs).sum(-1)
            scores += math.sqrt(math.pi / 2) / m * heads(a[norms], s.h) * inner
        code = packing.unpack(a["v"], 2, s.d, "low first")
        spread = [np.repeat(a[n], s.gv, -1)[..., : s.d] for n in ("vs", "vz")]
        v = np.concatenate([code * spread[0] + spread[1], a["vr"]], axis=2)
        recent = np.einsum("bhd,bhrd->bhr", a["q"], heads(a["kr"], s.h))
        weights = softmax(np.concatenate([scores, recent], axis=-1) / math.sqrt(s.d))
        return {"o": np.einsum("bhj,bhje->bhe", weights, heads(v, s.h))}

    check("qjl_decode", reference)


def test_qjl_sketch() -> None:
    def reference(a: In, s: Any) -> In:
        inner = np.where(outlying(a["out"], s.j, s.t, s.d), 0, a["k"])
        signs = (inner @ a["p"].T >= 0).astype(int)
        length = np.sqrt((a["k"] ** 2).sum(-1) - ((a["k"] - inner) ** 2).sum(-1))
        return {"bits": packing.pack(signs, 1, "uint32", "low first"), "norms": length}

    check("qjl_sketch", reference)
    check("qjl_sketch", reference, m=70)


def test_sketches_estimate_products() -> None:
    """On average over projections the estimate is the product, outlying channels included."""
    rng = np.random.default_rng(0)
    q, k, p = rng.standard_normal(16), rng.standard_normal(16), rng.standard_normal((40_000, 16))
    estimate = math.sqrt(math.pi / 2) * np.linalg.norm(k) * np.mean((p @ q) * np.sign(p @ k))
    assert abs(estimate - q @ k) < 0.05 * np.linalg.norm(q) * np.linalg.norm(k)


# ---- caches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_kv4_decode(seed: int) -> None:
    def reference(a: In, s: Any) -> In:
        k, v = (packing.unpack(a[n], 4, s.d, "low first") for n in ("k", "v"))
        k = (k - a["kz"][:, :, None]) * a["ks"][:, :, None]
        vs, vz = (np.repeat(a[n], s.gv, -1)[..., : s.d] for n in ("vs", "vz"))
        v, o = (v - vz) * vs, np.zeros((s.b, s.h, s.d))
        for b, h in np.ndindex(s.b, s.h):
            g, n = h // (s.h // s.g), a["length"][b]
            keys, values = (np.concatenate([x[page, g] for page in a["table"][b]])[:n]
                            for x in (k, v))  # fmt: skip
            o[b, h] = softmax(keys @ a["q"][b, h] / math.sqrt(s.d)) @ values
        return {"o": o}

    check("kv4_decode", reference, seed=seed)


def test_think_decode() -> None:
    def reference(a: In, s: Any) -> In:
        o = np.zeros((s.b, s.h, s.d))
        for b, h in np.ndindex(s.b, s.h):
            g = h // (s.h // s.g)
            old = a["k"][b, g] @ a["q"][b, h, a["kept"][b, g]]
            scores = np.concatenate([old, a["kr"][b, g] @ a["q"][b, h]]) / math.sqrt(s.d)
            o[b, h] = softmax(scores) @ np.concatenate([a["v"][b, g], a["vr"][b, g]])
        return {"o": o}

    check("think_decode", reference)


def test_think_select() -> None:
    def reference(a: In, s: Any) -> In:
        q = a["q"].reshape(s.b, s.g, s.h // s.g, s.w, s.d)
        score = (q**2).mean((2, 3)) * (a["k"] ** 2).mean(2)
        kept = np.sort(np.argsort(-score, axis=-1, kind="stable")[..., : s.c], axis=-1)
        return {"kept": kept, "pruned": np.take_along_axis(a["k"], kept[:, :, None], -1)}

    check("think_select", reference)


def test_think_select_takes_the_first_of_equals() -> None:
    found = collected()["think_select"]
    got = evaluate(found.program(), {n: np.ones_like(x) for n, x in found.inputs(0).items()})
    assert (got["kept"] == np.arange(found.small["c"])).all()


def test_ecoformer() -> None:
    def reference(a: In, s: Any) -> In:
        q, k = (np.sign(np.einsum("bhid,hmd->bhim", a[n], a["hash"]) + a["bias"][:, None])
                for n in ("q", "k"))  # fmt: skip
        return {"o": q @ (k.swapaxes(2, 3) @ a["v"])}

    check("ecoformer", reference)


NAMES = [n for n, w in collected().items() if w.define.__module__ == quantised_attention.__name__]


@pytest.mark.parametrize("name", NAMES)
def test_definitions_stand_at_real_sizes(name: str) -> None:
    found = collected()[name]
    assert found.length <= 18
    for shape in found.shapes:
        assert all(int(e) > 0 for o in found.program(shape).outputs for e in o.extents)
