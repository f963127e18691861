"""Sparse attention workloads against float64 NumPy, written row by row from the papers' steps."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from plain_attention import Arrays, causal, each, spread
from workload_check import Array, check, find

import autosched.datasets.workloads.sparse
import autosched.datasets.workloads.sparse_backward  # noqa: F401  (registers its workloads)
from autosched.datasets.workloads.masks import DRAWS, masked_in
from autosched.ir.interp import evaluate
from autosched.ir.verify import verify

# ---- A5 ----------------------------------------------------------------------------------------


def listed_blocks(x: Arrays, h: int, columns: int) -> Array:
    out = np.zeros((x["listed"].shape[1], columns))
    for m, row in enumerate(x["listed"][h]):
        out[m, row[: x["counts"][h, m]]] = 1
    return out


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("sizes", [{}, {"i": 12, "j": 12, "block": 3}, {"block_k": 5, "slots": 2}])
def test_block_lists(mask: str, sizes: dict[str, int]) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        def keep(b: int, h: int) -> Array:
            found = listed_blocks(x, h, -(-s.j // s.block_k))
            found = spread(found, s.i, s.j, s.block, s.block_k)
            return found * causal(s.i, s.j) if mask == "causal" else found

        return each(x, s, keep)

    full = {"slots": 4, **sizes}
    if mask == "causal":  # a list may hold future keys alone; all of them leave no row empty
        full["slots"] = -(-full.get("j", 17) // full.get("block_k", 3))
        check_with_full_lists(reference, full)
    else:
        check("block_sparse_attention", reference, **full)


def check_with_full_lists(reference: Any, numbers: dict[str, int]) -> None:
    """Every list holds every block, so that the causal mask alone hides keys."""
    found = find("block_sparse_attention")
    sizes: dict[str, Any] = {**numbers, "mask": "causal"}
    inputs = found.inputs(0, **sizes)
    inputs["counts"][:] = sizes["slots"]
    got = evaluate(found.program(**sizes), inputs)
    shape = type("Sizes", (), {**found.sizes(), **sizes})
    want = reference(inputs, shape)
    np.testing.assert_allclose(got["o"], want["o"], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got["lse"], want["lse"], rtol=1e-11, atol=1e-12)


def test_an_empty_list_gives_zero() -> None:
    found = find("block_sparse_attention")
    inputs = found.inputs(3)
    inputs["counts"][0, 1] = 0
    got = evaluate(found.program(), inputs)
    assert not got["o"][:, 0, 4:8].any() and np.isneginf(got["lse"][:, 0, 4:8]).all()
    assert np.isfinite(got["lse"][:, 1:]).all() and got["o"][:, 1:].all()


def test_lists_are_the_mask_of_lists() -> None:
    found = find("block_sparse_attention")
    sizes = {"i": 13, "j": 13, "block_k": 4}
    inputs = found.inputs(1, **sizes)
    seen = masked_in("block_lists", 13, 13, inputs, heads=4, block=4, slots=4)
    want = each(inputs, None, lambda b, h: seen[h])
    got = evaluate(found.program(**sizes), inputs)
    np.testing.assert_allclose(got["o"], want["o"], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("blocks, largest", [(4, 8), (3, 9), (7, 4)])
def test_blocks_of_different_sizes(blocks: int, largest: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        def keep(b: int, h: int) -> Array:
            out, found = np.zeros((s.t, s.t)), listed_blocks(x, h, s.blocks)
            spans = list(zip(x["edges"], x["edges"][1:]))
            for (m, (lo, hi)), (n, (first, end)) in product(enumerate(spans), enumerate(spans)):
                out[lo:hi, first:end] = found[m, n]
            return out

        return {"o": each(x, s, keep)["o"]}

    check("variable_block_attention", reference, blocks=blocks, largest=largest)


# ---- B1, B2 ------------------------------------------------------------------------------------


def antidiagonal(x: Arrays, s: Any, b: int, h: int) -> Array:
    """Kept blocks: descending sums until the share is reached, then the first and the diagonal."""
    q, k, n = x["q"][b, h], x["k"][b, h], s.t // s.stride
    score = np.full((n, n), -np.inf)
    for i, j in product(range(n), range(n)):
        if j <= i:
            score[i, j] = sum(
                q[i * s.stride + s.stride - 1 - u] @ k[j * s.stride + u] for u in range(s.stride)
            ) / (math.sqrt(s.d) * s.stride)
    p = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    per, m = s.block // s.stride, -(-s.t // s.block)
    sums = np.zeros((m, m))
    for i, j in product(range(n), range(n)):
        sums[i // per, j // per] += p[i, j]
    keep = np.zeros((m, m))
    for row in range(m):
        got = 0.0
        for column in np.argsort(-sums[row], kind="stable"):
            if got >= s.tau * sums[row].sum():
                break
            keep[row, column], got = 1, got + sums[row, column]
        keep[row, [0, row]] = 1
    return keep


@pytest.mark.parametrize("tau", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("stride, block", [(2, 4), (3, 6)])
def test_antidiagonal_scores_choose_blocks(tau: float, stride: int, block: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        kept = np.array([[antidiagonal(x, s, b, h) for h in range(s.h)] for b in range(s.b)])

        def keep(b: int, h: int) -> Array:
            return spread(kept[b, h], s.t, s.t, s.block, s.block) * causal(s.t, s.t)

        return {**each(x, s, keep), "keep": kept.astype(bool)}

    got = check("xattention", reference, tau=tau, stride=stride, block=block, seed=block)
    assert 0 < got["keep"].mean() < 0.7


def ranked(x: Arrays, s: Any, b: int, h: int) -> Array:
    """For every query block the key blocks, best first."""
    q, k = x["q"][b, h], x["k"][b, h] - x["k"][b, h].mean(0)
    means = [[z[n : n + size].mean(0) for n in range(0, s.t, size)]
             for z, size in ((q, s.block), (k, s.block_k))]  # fmt: skip
    return np.argsort(-(np.array(means[0]) @ np.array(means[1]).T), axis=-1)


def softmax_rows(x: Array) -> Array:
    p = np.exp(x)
    return np.asarray(p / p.sum(-1, keepdims=True))


def sparse_part(x: Arrays, s: Any, places: Any) -> Array:
    def keep(b: int, h: int) -> Array:
        order = places[b, h]
        blocks = np.zeros(order.shape)
        np.put_along_axis(blocks, order[:, : s.top], 1, axis=1)
        return spread(blocks, s.t, s.t, s.block, s.block_k)

    return each(x, s, keep)["o"]


FEATURES = {
    "softmax": softmax_rows,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)) + 1,
}


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("top", [1, 3])
def test_sparse_and_linear_branches(top: int, kind: str) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        places = {at: ranked(x, s, *at) for at in product(range(s.b), range(s.h))}
        o = sparse_part(x, s, places)
        for b, h in places:
            phi = FEATURES[kind]
            weight = phi(x["q"][b, h]) @ phi(x["k"][b, h]).T
            linear = weight @ x["v"][b, h] / (1e-5 + weight.sum(-1, keepdims=True))
            o[b, h] += linear @ x["proj"]
        listed = [[places[b, h][:, : s.top] for h in range(s.h)] for b in range(s.b)]
        return {"o": o, "listed": np.array(listed)}

    check("sparse_linear_attention", reference, top=top, kind=kind)


@pytest.mark.parametrize("top, skip", [(2, 2), (1, 0), (3, 3)])
def test_linear_branch_of_the_middle(top: int, skip: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        places = {at: ranked(x, s, *at) for at in product(range(s.b), range(s.h))}
        o = sparse_part(x, s, places)
        for (b, h), order in places.items():
            middle = np.zeros(order.shape)
            np.put_along_axis(middle, order[:, s.top : order.shape[1] - s.skip], 1, axis=1)
            weight = softmax_rows(x["q"][b, h]) @ softmax_rows(x["k"][b, h]).T
            weight *= spread(middle, s.t, s.t, s.block, s.block_k)
            linear = weight @ x["v"][b, h] / (1e-5 + weight.sum(-1, keepdims=True))
            o[b, h] += linear @ x["proj"]
        return {"o": o}

    check("sparse_linear_marginal", reference, top=top, skip=skip)


# ---- gradients of A5 and B2 --------------------------------------------------------------------

STEP = 1e-40  # of the complex step: Im f(x + i t) / t is the derivative, exact to rounding


def complex_step(total: Any, x: Arrays, names: str) -> Arrays:
    """Gradients of total(arrays) by the named arrays."""
    out = {}
    for name in names.split():
        grad = out["d" + name] = np.empty(x[name].shape)
        for at in np.ndindex(grad.shape):
            moved = x[name].astype(complex)
            moved[at] += 1j * STEP
            grad[at] = total({**x, name: moved}).imag / STEP
    return out


def weights_over(q: Array, k: Array, keep: Array) -> Array:
    p = np.exp(q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])) * keep
    return np.asarray(p / p.sum(-1, keepdims=True))


def test_gradients_along_lists_of_both_sides() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        keep = np.stack([spread(a, s.t, s.t, s.block, s.block) for a in x["allowed"]])

        def total(x: Arrays) -> complex:
            k, v = (np.repeat(x[n], s.h // s.g, axis=1) for n in "kv")
            return complex((weights_over(x["q"], k, keep) @ v * x["do"]).sum())

        return complex_step(total, x, "q k v")

    check("block_sparse_backward", reference, b=1, t=10, d=3, block=3)
    check("block_sparse_backward", reference, b=1, h=2, g=2, t=8, d=2, block=4, seed=1)


@pytest.mark.parametrize("top", [1, 2])
def test_gradients_of_sparse_and_linear_branches(top: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        keep = np.zeros((s.b, s.h, s.t, s.t))
        for b, h in product(range(s.b), range(s.h)):
            order = ranked(x, s, b, h)
            blocks = np.zeros(order.shape)
            np.put_along_axis(blocks, order[:, : s.top], 1, axis=1)
            keep[b, h] = spread(blocks, s.t, s.t, s.block, s.block_k)

        def total(x: Arrays) -> complex:
            o = weights_over(x["q"], x["k"], keep) @ x["v"]
            weight = softmax_rows(x["q"]) @ np.swapaxes(softmax_rows(x["k"]), -1, -2)
            linear = weight @ x["v"] / (1e-5 + weight.sum(-1, keepdims=True))
            return complex(((o + linear @ x["proj"]) * x["do"]).sum())

        return complex_step(total, x, "q k v proj")

    check("sparse_linear_backward", reference, b=1, h=2, t=11, d=3, top=top)


# ---- B3 ----------------------------------------------------------------------------------------


def grid_orders(s: Any) -> list[list[int]]:
    """Tokens of the grid by each of the six nestings of its axes, the last axis fastest."""
    axes = [range(s.f), range(s.y), range(s.x)]
    out = []
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        tokens = []
        for at in product(*(axes[a] for a in order)):
            f, y, x = (at[order.index(a)] for a in range(3))
            tokens.append((f * s.y + y) * s.x + x)
        out.append(tokens)
    return out


def test_permuted_blocks() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        t, orders = s.f * s.y * s.x, grid_orders(s)

        def keep(b: int, h: int) -> Array:
            place = {token: n // s.block for n, token in enumerate(orders[h])}
            return np.array(
                [[x["allowed"][h, place[i], place[j]] for j in range(t)] for i in range(t)]
            )

        return {"o": each(x, s, keep)["o"]}

    check("permuted_attention", reference)


def test_permuted_blocks_in_int8() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        t, out, orders = s.f * s.y * s.x, np.zeros(x["q"].shape), grid_orders(s)
        for b, h in product(range(s.b), range(s.h)):
            at, codes, scales = orders[h], {}, {}
            for name in ("q", "k", "v"):
                z = x[name][b, h][at]
                scale = [abs(z[n : n + s.block]).max() / 127 for n in range(0, t, s.block)]
                scales[name] = np.repeat(scale, s.block)[:t, None]
                codes[name] = np.rint(z / scales[name])
            score = codes["q"] @ codes["k"].T * scales["q"] * scales["k"].T / math.sqrt(s.d)
            score[spread(x["allowed"][h], t, t, s.block, s.block) == 0] = -np.inf
            p = np.exp(score - score.max(-1, keepdims=True))
            mixed = np.rint(p * 127) @ (codes["v"] * scales["v"]) / 127
            out[b, h][at] = mixed / p.sum(-1, keepdims=True)
        return {"o": out}

    check("permuted_attention_int8", reference)


@pytest.mark.parametrize("name", [
    "block_sparse_attention", "variable_block_attention", "xattention", "sparse_linear_attention",
    "sparse_linear_marginal", "permuted_attention", "permuted_attention_int8",
    "block_sparse_backward", "sparse_linear_backward",
])  # fmt: skip
def test_real_shapes_are_programs_of_the_same_definition(name: str) -> None:
    for shape in find(name).shapes:
        program = find(name).program(shape)
        verify(program)
        assert {o.dtype for o in program.outputs} & {"bfloat16", "int32"}


def test_drawn_lists_hold_no_block_twice() -> None:
    rng, sizes = np.random.default_rng(0), {"i": 20, "block": 3, "slots": 4}
    listed = DRAWS["listed"](rng, (2, 7, 4), sizes)
    assert all(len(set(row)) == 4 and max(row) < 7 for head in listed for row in head)
