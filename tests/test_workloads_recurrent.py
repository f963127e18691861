"""Recurrent workloads beside their math in another form: sums over pairs, products of matrices."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from workload_check import Array, check

from autosched.datasets.workloads import delta, recurrent  # noqa: F401

Arrays = dict[str, Array]


def sig(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def elu1(x: Array) -> Array:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def rms(x: Array, axes: int | tuple[int, ...], eps: float = 1e-6) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=axes, keepdims=True) + eps)


def decayed(q: Array, k: Array, v: Array, g: Array) -> Array:
    """o_i = sum of exp(g_j+1 + ... + g_i) (q_i k_j) v_j over j <= i; g[..., t, d or 1].

    The sums over pairs that the recurrence S = exp(g) S + k v stands for.
    """
    total = np.cumsum(g, axis=-2)
    span = total[..., :, None, :] - total[..., None, :, :]
    pairs = np.einsum("...id,...jd,...ijd->...ij", q, k, np.exp(np.minimum(span, 0)))
    return np.einsum("...ij,...je->...ie", np.tril(pairs), v)


def last_state(k: Array, v: Array, g: Array) -> Array:
    left = np.sum(g, axis=-2, keepdims=True) - np.cumsum(g, axis=-2)
    return np.einsum("...td,...te->...de", k * np.exp(left), v)


def undecayed(x: Arrays) -> Array:
    return np.zeros((*x["q"].shape[:-1], 1))


def slopes(x: Arrays) -> Array:
    return undecayed(x) - x["slope"][:, None, None]


# ---- decays ----------------------------------------------------------------------------------


def test_linear_attention() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        o = decayed(x["q"], x["k"], x["v"], undecayed(x)) / np.sqrt(s.d)
        return {"o": o, "last": np.einsum("bhtd,bhte->bhde", x["k"], x["v"])}

    check("linear_attention", reference)


def test_normalised_linear_attention() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        w = np.tril(np.einsum("bhid,bhjd->bhij", elu1(x["q"]), elu1(x["k"])))
        return {"o": w / w.sum(-1, keepdims=True) @ x["v"]}

    check("normalised_linear_attention", reference)


def test_retention() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        g = slopes(x)
        return {"o": decayed(x["q"], x["k"], x["v"], g), "last": last_state(x["k"], x["v"], g)}

    check("retention", reference)


def test_lightning_attention() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        o = rms(decayed(x["q"], x["k"], x["v"], slopes(x)), (1, 3)) * x["gate"]
        return {"o": o.transpose(0, 2, 1, 3)}

    check("lightning_attention", reference)


def test_norm_attention() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        return {"o": rms(decayed(elu1(x["q"]), elu1(x["k"]), x["v"], undecayed(x)), -1)}

    check("norm_attention", reference)


def test_diagonal_attention() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        out = np.zeros_like(x["v"])
        for lo in range(0, s.t, s.block):
            q, k, v = (x[n][:, :, lo : lo + s.block] for n in "qkv")
            w = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(s.d))
            out[:, :, lo : lo + s.block] = w / w.sum(-1, keepdims=True) @ v
        return {"o": out}

    check("diagonal_attention", reference)


@pytest.mark.parametrize("seed", [0, 1])
def test_mlstm_exp(seed: int) -> None:
    """The parallel form: one matrix of weights, scaled by its rows' maxima."""

    def reference(x: Arrays, s: Any) -> Arrays:
        total = np.cumsum(-np.logaddexp(0, -x["f"]), -1)
        logs = total[..., :, None] - total[..., None, :] + x["i"][..., None, :]
        logs = np.where(np.tril(np.ones((s.t, s.t), bool)), logs, -np.inf)
        m = logs.max(-1, keepdims=True)
        w = np.exp(logs - m) * (x["q"] @ x["k"].swapaxes(-1, -2)) / np.sqrt(s.d)
        return {"o": w @ x["v"] / np.maximum(np.abs(w.sum(-1, keepdims=True)), np.exp(-m))}

    check("mlstm_exp", reference, seed=seed, tolerance=1e-11)


@pytest.mark.parametrize("normalised", [True, False])
def test_mlstm_sigmoid(normalised: bool) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        total = np.cumsum(np.log(sig(x["f"])), -1)
        logs = total[..., :, None] - total[..., None, :] + np.log(sig(x["i"]))[..., None, :]
        w = np.tril(np.exp(logs) * np.einsum("bhid,bhjd->bhij", x["q"], x["k"])) / np.sqrt(s.d)
        down = np.maximum(np.abs(w.sum(-1, keepdims=True)), 1) if normalised else 1
        return {"o": w @ x["v"] / down}

    check("mlstm_sigmoid", reference, normalised=normalised)


def gla(x: Arrays, gate: Array, s: Any) -> Array:
    return decayed(x["q"], x["k"], x["v"], np.log(sig(gate)) / 16) / np.sqrt(s.d)


def test_gated_linear_attention() -> None:
    check("gated_linear_attention", lambda x, s: {"o": gla(x, x["x"], s)})


def test_vig_runs_both_ways() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        turned = {n: x[n][:, :, ::-1] for n in x}
        return {"o": (gla(x, x["xf"], s) + gla(turned, turned["xb"], s)[:, :, ::-1]) / 2}

    check("vig", reference)


def test_vig_with_locality() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        turned = {n: x[n][:, :, ::-1] for n in ("q", "k", "v", "xb")}
        o = (gla(x, x["xf"], s) + gla(turned, turned["xb"], s)[:, :, ::-1]) / 2
        rows = s.t // s.width
        image = np.pad(x["v"].reshape(s.b, s.h, rows, s.width, s.e),
                       ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))  # fmt: skip
        local = sum(
            x["w"][:, None, None, :, y, z] * image[:, :, y : y + rows, z : z + s.width]
            for y in range(3) for z in range(3)
        )  # fmt: skip
        share = sig(x["gate"])
        return {"o": share * o + (1 - share) * np.reshape(local, o.shape)}

    check("vig_with_locality", reference)


def test_lasp2_chunks_are_the_whole_sequence() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        flat = {n: x[n].reshape(s.b, s.h, s.r * s.c, -1) for n in "qkv"}
        o = decayed(flat["q"], flat["k"], flat["v"], slopes({**flat, "slope": x["slope"]}))
        return {"o": o.reshape(s.b, s.h, s.r, s.c, s.e)}

    check("lasp2", reference)


def test_hgrn() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        f, rows = sig(x["f"]), []
        for t in range(s.t):
            kept = [np.prod(f[:, j + 1 : t + 1], axis=1) for j in range(t + 1)]
            rows.append(sum(kept[j] * (1 - f[:, j]) * x["c"][:, j] for j in range(t + 1)))
        return {"o": np.stack(rows, 1), "last": rows[-1]}

    check("hgrn", reference)


def test_gla_decode() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        new = sig(x["x"])[..., None] ** (1 / 16) * x["past"]
        new += x["k"][..., None] * x["v"][..., None, :]
        return {"o": np.einsum("bhd,bhde->bhe", x["q"], new) / np.sqrt(s.d), "last": new}

    check("gla_decode", reference)


# ---- delta rules -----------------------------------------------------------------------------


def delta_steps(x: Arrays, g: Array, start: Array | None = None) -> tuple[Array, Array]:
    """(o, last state) of the delta rule as products of matrices (I - beta k k') diag(exp g).

    x: q[..., t, d], k, v, beta[..., t]; g[..., t, d].
    """
    q, k, v, beta = (x[n] for n in ("q", "k", "v", "beta"))
    state = np.zeros((*q.shape[:-2], q.shape[-1], v.shape[-1])) if start is None else start
    rows = []
    for t in range(q.shape[-2]):
        turn = np.eye(q.shape[-1]) - np.einsum(
            "...,...c,...d->...cd", beta[..., t], k[..., t, :], k[..., t, :]
        )
        write = (beta[..., t, None] * k[..., t, :])[..., None] * v[..., t, None, :]
        state = (turn * np.exp(g[..., t, None, :])) @ state + write
        rows.append((q[..., t, None, :] @ state)[..., 0, :])
    return np.stack(rows, -2), state


def wide(g: Array, d: int) -> Array:
    """A log decay for each head as one for each channel."""
    return np.repeat(g[..., None], d, -1)


def normed(x: Array) -> Array:
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def test_delta_net_in_its_wy_form() -> None:
    """T = (I + tril(diag(beta) K K', -1))^-1; o = tril(Q K') T diag(beta) V."""

    def reference(x: Arrays, s: Any) -> Arrays:
        k, kt, beta = x["k"], x["k"].swapaxes(-1, -2), x["beta"][..., None]
        u = np.linalg.solve(np.eye(s.t) + np.tril(beta * (k @ kt), -1), beta * x["v"])
        return {"o": np.tril(x["q"] @ kt) @ u / np.sqrt(s.d), "last": kt @ u}

    check("delta_net", reference)


def test_gated_delta_net() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        o, last = delta_steps(x, wide(x["g"], s.d))
        return {"o": o / np.sqrt(s.d), "last": last}

    check("gated_delta_net", reference)


def kda_inputs(x: Arrays, bounded: bool, head: int = -3) -> tuple[Arrays, Array]:
    """x with unit q and k, and the log decays; `head` is the axis of heads in x."""
    rest = [1] * (-head - 1)
    a = x["a"].reshape(-1, *rest)
    raw = x["x"] + x["bias"].reshape(len(x["bias"]), *rest[1:], -1)
    g = -5 * sig(np.exp(a) * raw) if bounded else -np.exp(a) * np.logaddexp(0, raw)
    return {**x, "q": normed(x["q"]), "k": normed(x["k"])}, g


@pytest.mark.parametrize("bounded", [False, True])
def test_kda(bounded: bool) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        o, last = delta_steps(*kda_inputs(x, bounded))
        return {"o": o / np.sqrt(s.d), "last": last}

    check("kda", reference, bounded=bounded)


def by_document(x: Arrays, g: Array, s: Any) -> Array:
    """Every document on its own, put together."""
    edges = [*x["starts"], s.t]
    parts = []
    for lo, hi in pairwise(edges):
        own = {n: x[n][:, lo:hi] for n in ("q", "k", "v", "beta")}
        parts.append(delta_steps(own, g[:, lo:hi])[0])
    return np.concatenate(parts, 1) / np.sqrt(s.d)


@pytest.mark.parametrize("seed", [0, 1])
def test_packed_gated_delta_net(seed: int) -> None:
    check("packed_gated_delta_net",
          lambda x, s: {"o": by_document(x, wide(x["g"], s.d), s)}, seed=seed)  # fmt: skip


@pytest.mark.parametrize("bounded", [False, True])
def test_packed_kda(bounded: bool) -> None:
    check("packed_kda",
          lambda x, s: {"o": by_document(*kda_inputs(x, bounded), s)}, bounded=bounded)  # fmt: skip


def one_token(x: Arrays, g: Array, s: Any) -> Arrays:
    rows = {n: x[n][:, :, None] for n in ("q", "k", "v", "beta")}
    o, last = delta_steps(rows, g[:, :, None], x["past"])
    return {"o": o[:, :, 0] / np.sqrt(s.d), "last": last}


def test_gated_delta_decode() -> None:
    check("gated_delta_decode", lambda x, s: one_token(x, wide(x["g"], s.d), s))


@pytest.mark.parametrize("bounded", [False, True])
def test_kda_decode(bounded: bool) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        return one_token(*kda_inputs(x, bounded, -2), s)

    check("kda_decode", reference, bounded=bounded)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", ["delta_product", "interleaved_delta_product"])
def test_delta_product(name: str, n: int) -> None:
    """Plain delta steps on t n tokens: no decay after the first of n, the last one's row kept."""

    def reference(x: Arrays, s: Any) -> Arrays:
        flat: Arrays = {m: x[m].reshape(s.b, s.h, s.t * n, -1) for m in ("k", "v")}
        flat["beta"] = x["beta"].reshape(s.b, s.h, -1)
        g = np.zeros((s.b, s.h, s.t, n, s.d))
        g[:, :, :, 0] = wide(x["g"], s.d)
        o, _ = delta_steps({**flat, "q": np.repeat(x["q"], n, 2)},
                           g.reshape(s.b, s.h, -1, s.d))  # fmt: skip
        return {"o": o[:, :, n - 1 :: n] / np.sqrt(s.d)}

    check(name, reference, n=n)


# ---- mixtures of memories --------------------------------------------------------------------


def memory(x: Arrays, s: Any, b: int, m: int, tokens: Array) -> Array:
    """Rows of memory m for `tokens` alone, in their order."""
    own = {n: x[n][b, m][:, tokens] for n in ("k", "v", "beta")}
    g = wide(x["g"][b, m][:, tokens], s.d)
    return delta_steps({**own, "q": x["q"][b][:, tokens]}, g)[0] / np.sqrt(s.d)


def test_mixture_of_memories() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        p = np.exp(x["router"])
        best = np.argsort(-p, -1)[..., :2]
        out = np.zeros((s.b, s.h, s.t, s.e))
        for b in range(s.b):
            total = np.take_along_axis(p[b], best[b], -1).sum(-1)
            for m in range(s.m):
                tokens = np.flatnonzero((best[b] == m).any(-1))
                share = (p[b, tokens, m] / total[tokens])[:, None]
                out[b][:, tokens] += share * memory(x, s, b, m, tokens)
        return {"o": out}

    check("mixture_of_memories", reference)


@pytest.mark.parametrize("seed", [0, 1])
def test_listed_memories(seed: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        out = np.zeros((s.b, s.h, s.t, s.e))
        for b in range(s.b):
            for m in range(s.m):
                tokens = x["ids"][b, m, : x["counts"][b, m]]
                share = x["share"][b, m, tokens][:, None]
                out[b][:, tokens] += share * memory(x, s, b, m, tokens) if len(tokens) else 0
        return {"o": out}

    check("listed_memories", reference, seed=seed)
