"""Dense attention workloads against float64 NumPy, written row by row from the papers' formulas."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from plain_masks import PLAIN, plain
from workload_check import Array, check, find

from autosched.datasets.workloads.attention import attention_flops
from autosched.ir.interp import evaluate
from autosched.ir.verify import verify

NUMBERS: dict[str, dict[str, int]] = {
    "full_document": {"docs": 3}, "causal_document": {"docs": 4}, "share_question": {"docs": 3},
    "causal_blockwise": {"docs": 3}, "prefix_lm_causal": {"prefix": 8},
    "prefix_lm_document": {"docs": 3, "prefix": 2}, "sliding_window": {"window": 2},
    "sliding_window_causal": {"window": 3}, "global_sliding_window": {"window": 2},
    "block_causal_document": {"docs": 3, "block": 4}, "sink_local": {"sinks": 2, "window": 3},
    "strided": {"stride": 4}, "segment_causal": {"block": 5}, "blocks": {"block": 4},
    "variable_blocks": {"blocks": 3}, "block_lists": {"block": 4, "slots": 3},
    "per_head": {"block": 4, "slots": 2, "sinks": 1, "window": 2},
}  # fmt: skip


def row(logits: list[float], values: list[Array]) -> tuple[Array, float]:
    """Softmax-weighted values of one query, and the log of the sum of exponentials."""
    weights = np.array([math.exp(x) for x in logits])
    mixed = sum((w * v for w, v in zip(weights, values)), np.zeros_like(values[0]))
    return mixed / weights.sum(), math.log(weights.sum())


def dense(q: Array, k: Array, v: Array, keep: Array, scale: float, bend: Any = None) -> Any:
    """o[b,h,i,e] and lse[b,h,i]; keep[h or 1, i, j]; bend(score, h, i, j) changes a score."""
    b, h, i, _ = q.shape
    share = h // k.shape[1]
    o, lse = np.empty((b, h, i, v.shape[-1])), np.empty((b, h, i))
    for n, a, r in product(range(b), range(h), range(i)):
        kept = [c for c in range(k.shape[2]) if keep[a % len(keep), r, c]]
        found = [float(np.dot(q[n, a, r], k[n, a // share, c])) * scale for c in kept]
        if bend is not None:
            found = [bend(x, a, r, c) for x, c in zip(found, kept)]
        o[n, a, r], lse[n, a, r] = row(found, [v[n, a // share, c] for c in kept])
    return {"o": o, "lse": lse}


def plainly(x: dict[str, Array], s: Any) -> Any:
    keep = plain(s.mask, s.h, s.i, s.j, x, s)
    return dense(x["q"], x["k"], x["v"], keep, 1 / math.sqrt(s.d))


def before(s: Any) -> Array:
    return plain("causal", 1, s.i, s.j, None, s)


@pytest.mark.parametrize("mask", PLAIN)
def test_every_mask(mask: str) -> None:
    check("attention", plainly, mask=mask, **NUMBERS.get(mask, {}))


@pytest.mark.parametrize("h, g", [(6, 1), (6, 3), (2, 2)])
@pytest.mark.parametrize("i", [1, 7])
def test_head_groups_and_decode(h: int, g: int, i: int) -> None:
    check("attention", plainly, mask="causal", h=h, g=g, i=i, seed=h)


@pytest.mark.parametrize("dtype, bound", [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_halves_round_at_the_end_alone(dtype: str, bound: float) -> None:
    check("attention", plainly, mask="causal", dtype=dtype, tolerance=bound)


@pytest.mark.parametrize("mask", ["full", "causal", "causal_document", "blocks"])
def test_gradients_are_those_of_a_complex_step(mask: str) -> None:
    """d sum(o do) / dx = Im f(x + i t) / t, exact to rounding for t far below it."""
    step = 1e-40

    def total(x: dict[str, Array], s: Any, keep: Array) -> complex:
        k, v = (np.repeat(x[n], s.h // s.g, axis=1) for n in ("k", "v"))
        p = np.exp(np.einsum("bhid,bhjd->bhij", x["q"], k) / math.sqrt(s.d)) * keep
        o = np.einsum("bhij,bhje->bhie", p, v) / p.sum(-1)[..., None]
        return complex((o * x["do"]).sum())

    def reference(x: dict[str, Array], s: Any) -> dict[str, Array]:
        keep, out = plain(mask, s.h, s.i, s.j, x, s), {}
        for name in ("q", "k", "v"):
            grad = out["d" + name] = np.empty(x[name].shape)
            for at in np.ndindex(grad.shape):
                moved = x[name].astype(complex)
                moved[at] += 1j * step
                grad[at] = total({**x, name: moved}, s, keep).imag / step
        return out

    sizes = {"b": 1, "h": 4, "g": 2, "i": 5, "j": 7, "d": 3, "e": 2, **NUMBERS.get(mask, {})}
    check("attention_backward", reference, mask=mask, **sizes)


def layer(x: dict[str, Array], s: Any) -> dict[str, Array]:
    y = np.zeros((s.b, s.t, s.c))
    for n, a in product(range(s.b), range(s.h)):
        own = a // (s.h // s.g)
        q, k, v = (x["x"][n] @ w for w in (x["wq"][:, a], x["wk"][:, own], x["wv"][:, own]))
        for t in range(s.t):
            found = [float(q[t] @ k[u]) / math.sqrt(s.d) for u in range(t + 1)]
            y[n, t] += row(found, list(v[: t + 1]))[0] @ x["wo"][a]
    return {"y": y}


@pytest.mark.parametrize("h, g", [(4, 2), (4, 4), (2, 1)])
def test_fewer_query_heads(h: int, g: int) -> None:
    check("sparse_query_attention", layer, h=h, g=g)


def latent(x: dict[str, Array], s: Any) -> Any:
    keys = [np.concatenate([x["c"] @ w.T, x["kr"]], -1) for w in x["wk"]]
    values = [x["c"] @ w.T for w in x["wv"]]
    q = np.concatenate([x["qn"], x["qr"]], -1)
    k, v = np.stack(keys, 1), np.stack(values, 1)
    return dense(q, k, v, before(s), 1 / math.sqrt(s.n + s.u))


@pytest.mark.parametrize("name", ["mla_prefill", "mla_absorbed"])
@pytest.mark.parametrize("i", [5, 1])
def test_latent_attention_absorbed_or_not(name: str, i: int) -> None:
    check(name, latent, i=i)


def test_latent_decode_shares_one_head_of_576() -> None:
    def reference(x: dict[str, Array], s: Any) -> Any:
        cache = x["cache"][:, None]
        return dense(x["q"], cache, cache[..., : s.e], np.ones((1, s.i, s.j)), 192**-0.5)

    check("mla_decode", reference)


def test_soft_cap() -> None:
    def reference(x: dict[str, Array], s: Any) -> Any:
        bend = lambda score, h, i, j: s.cap * math.tanh(score / s.cap)  # noqa: E731
        return dense(x["q"], x["k"], x["v"], before(s), s.d**-0.5, bend)

    check("softcap_attention", reference)


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_alibi(mask: str) -> None:
    def reference(x: dict[str, Array], s: Any) -> Any:
        bend = lambda score, h, i, j: score - x["slope"][h] * (i + s.j - s.i - j)  # noqa: E731
        keep = plain(s.mask, 1, s.i, s.j, x, s)
        return dense(x["q"], x["k"], x["v"], keep, s.d**-0.5, bend)

    check("alibi_attention", reference, mask=mask)


def test_bias_tensor() -> None:
    def reference(x: dict[str, Array], s: Any) -> Any:
        bend = lambda score, h, i, j: score + x["bias"][h, i, j]  # noqa: E731
        return dense(x["q"], x["k"], x["v"], np.ones((1, s.i, s.j)), s.d**-0.5, bend)

    check("bias_attention", reference)


def test_a_sink_takes_weight_and_gives_nothing() -> None:
    def reference(x: dict[str, Array], s: Any) -> Any:
        keep = plain(s.mask, 1, s.i, s.j, x, s)
        out = dense(x["q"], x["k"], x["v"], keep, s.d**-0.5)
        total = np.exp(out["lse"]) + np.exp(x["sink"])[None, :, None]
        return {"o": out["o"] * (np.exp(out["lse"]) / total)[..., None], "lse": np.log(total)}

    check("sink_attention", reference)
    check("sink_attention", reference, mask="causal", window=0)


def test_pages() -> None:
    def reference(x: dict[str, Array], s: Any) -> Any:
        o, lse = np.empty((s.b, s.h, s.e)), np.empty((s.b, s.h))
        for n, a in product(range(s.b), range(s.h)):
            at = [(x["table"][n, t // s.page], t % s.page) for t in range(x["length"][n])]
            own = a // (s.h // s.g)
            found = [float(x["q"][n, a] @ x["k"][p, u, own]) / math.sqrt(s.d) for p, u in at]
            o[n, a], lse[n, a] = row(found, [x["v"][p, u, own] for p, u in at])
        return {"o": o, "lse": lse}

    check("paged_attention", reference)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("docs", [1, 3, 5])
def test_packed_documents_are_attention_one_by_one(causal: bool, docs: int) -> None:
    def reference(x: dict[str, Array], s: Any) -> Any:
        o, lse = np.empty((s.t, s.h, s.e)), np.empty((s.h, s.t))
        for lo, hi in zip(x["starts"], x["starts"][1:]):
            q, k, v = (np.swapaxes(x[n][lo:hi], 0, 1)[None] for n in ("q", "k", "v"))
            keep = plain("causal" if s.causal else "full", 1, hi - lo, hi - lo, None, s)
            got = dense(q, k, v, keep, s.d**-0.5)
            o[lo:hi], lse[:, lo:hi] = np.swapaxes(got["o"][0], 0, 1), got["lse"][0]
        return {"o": o, "lse": lse}

    check("packed_attention", reference, causal=causal, docs=docs)


def test_two_key_sets_are_one_softmax() -> None:
    def reference(x: dict[str, Array], s: Any) -> Any:
        early, worth = (np.broadcast_to(x[n], (s.b, *x[n].shape)) for n in ("k0", "v0"))
        k, v = np.concatenate([early, x["k"]], 2), np.concatenate([worth, x["v"]], 2)
        keep = np.concatenate([np.ones((1, s.i, s.x)), before(s)], 2)
        return dense(x["q"], k, v, keep, s.d**-0.5)

    check("two_key_sets", reference)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_factorised_windows(dilation: int) -> None:
    def reference(x: dict[str, Array], s: Any) -> dict[str, Array]:
        m = s.n // s.stride
        cut = x["x0"].reshape(s.b, m, s.stride, m, s.stride, s.d)
        k0, v0 = (np.einsum("bkulwf,uwfd->bkld", cut, x[w]).reshape(s.b, -1, s.d)
                  for w in ("wk", "wv"))  # fmt: skip
        out, span = np.zeros((s.b, s.n, s.n, s.c)), s.window * s.dilation
        for b, y, z in np.ndindex(s.b, s.n, s.n):
            logits = [float(x["q0"][b, y, z] @ k) / math.sqrt(s.d) for k in k0[b]]
            out[b, y, z] = row(logits, list(v0[b]))[0] @ x["w0"]
            cells = [
                [c for c in range(s.n) if c // span == a // span and (c - a) % s.dilation == 0]
                for a in (y, z)
            ]
            for h in range(s.h):
                k, v = (np.array([x[n][b, h, u, w] for u in cells[0] for w in cells[1]])
                        for n in ("k", "v"))  # fmt: skip
                logits = list(k @ x["q"][b, h, y, z] / math.sqrt(s.d))
                out[b, y, z] += row(logits, list(v))[0] @ x["w1"][h]
        return {"o": out}

    check("factorised_window_attention", reference, dilation=dilation)


def test_real_shapes_are_programs_of_the_same_definition() -> None:
    for name in ("attention", "attention_backward", "mla_decode", "paged_attention"):
        for shape in find(name).shapes:
            verify(find(name).program(shape))


@pytest.mark.parametrize("mask", ["causal", "share_question", "blocks"])
def test_flops_count_the_pairs_of_the_mask(mask: str) -> None:
    found, sizes = find("attention"), {**find("attention").small, "mask": mask, "block": 4}
    arrays = found.inputs(0, mask=mask, **NUMBERS.get(mask, {}))
    shape = type("Sizes", (), sizes)
    seen = plain(mask, 4, 9, 13, arrays, shape).sum() / 4
    assert attention_flops(sizes, arrays) == 2 * 2 * 4 * seen * (5 + 7)


def test_a_row_that_sees_nothing_is_nan_as_a_plain_softmax_is() -> None:
    found = find("attention")
    sizes = {"mask": "causal", "i": 13, "j": 9}
    got = evaluate(found.program(**sizes), found.inputs(0, **sizes))
    assert np.isnan(got["o"][:, :, :4]).all() and np.isfinite(got["o"][:, :, 4:]).all()


def test_the_check_itself_can_fail() -> None:
    def wrong(x: dict[str, Array], s: Any) -> Any:
        out = plainly(x, s)
        return {**out, "o": out["o"] * (1 + 1e-9)}

    with pytest.raises(AssertionError, match=r"attention\.o"):
        check("attention", wrong)
