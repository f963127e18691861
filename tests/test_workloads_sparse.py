"""Sparse attention workloads against float64 NumPy, written row by row from the papers' steps."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from workload_check import Array, check, find

import autosched.datasets.workloads.approximate
import autosched.datasets.workloads.sparse
import autosched.datasets.workloads.sparse_backward  # noqa: F401  (registers its workloads)
from autosched.datasets.workloads.masks import DRAWS, masked_in
from autosched.ir.interp import evaluate
from autosched.ir.verify import verify

Arrays = dict[str, Array]


def attend(q: Array, k: Array, v: Array, keep: Array, scale: float | None = None) -> Any:
    """One head: q[i,d] over the keys that keep[i,j] lets through; rows without any are 0."""
    p = np.exp(q @ k.T * (scale or 1 / math.sqrt(q.shape[-1]))) * keep
    total = p.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total[:, None] > 0, p @ v / total[:, None], 0.0), np.log(total)


def each(x: Arrays, s: Any, keep: Any) -> Arrays:
    """Every head by itself; keep(b, h) gives its mask."""
    b, h, i, _ = x["q"].shape
    o, lse = np.empty((b, h, i, x["v"].shape[-1])), np.empty((b, h, i))
    for n, a in product(range(b), range(h)):
        own = a // (h // x["k"].shape[1])
        o[n, a], lse[n, a] = attend(x["q"][n, a], x["k"][n, own], x["v"][n, own], keep(n, a))
    return {"o": o, "lse": lse}


def spread(blocks: Array, i: int, j: int, rows: int, columns: int) -> Array:
    """A mask of blocks as one of elements."""
    return np.kron(blocks, np.ones((rows, columns)))[:i, :j]


def causal(i: int, j: int) -> Array:
    return np.tri(i, j, j - i)


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


# ---- B4 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("t, bits", [(19, 3), (33, 7), (1, 2)])
def test_hash_order(t: int, bits: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        gray = [n ^ (n >> 1) for n in range(1 << s.bits)]
        sign = np.einsum("bhid,dr->bhir", x["x"], x["proj"]) > 0
        codes = (sign * 2 ** np.arange(s.bits)).sum(-1)
        bucket = np.array([gray.index(c) for c in codes.ravel()]).reshape(codes.shape)
        order = np.argsort(bucket, axis=-1, kind="stable")
        return {"bucket": bucket, "order": order, "place": np.argsort(order, axis=-1)}

    check("hash_order", reference, t=t, bits=bits)


def hyper(q: Array, k: Array, v: Array, x: Any, block: int) -> tuple[Array, Array]:
    """One head: block-diagonal in hashed order and samples of weight n/m, merged by their sums."""
    near = np.equal.outer(x["place_q"] // block, x["place_k"] // block)
    o1, l1 = attend(q, k, v, near)
    n, m, sample = len(k), len(x["sample"]), x["sample"]
    apart = x["place_q"][:, None] // block != x["place_k"][sample][None] // block
    o2, l2 = attend(q, k[sample], v[sample], apart)
    w1, w2 = np.exp(l1)[:, None], np.exp(l2)[:, None] * n / m
    return (o1 * w1 + o2 * w2) / (w1 + w2), np.log(w1 + w2)[:, 0]


def own(x: Arrays, tag: str, b: int, h: int) -> Arrays:
    return {n: x[n + tag][b, h] for n in ("place_q", "place_k", "sample")}


@pytest.mark.parametrize("block, samples", [(4, 3), (5, 7), (19, 2)])
def test_hashed_blocks_and_samples(block: int, samples: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        o, lse = np.empty(x["q"].shape), np.empty(x["q"].shape[:-1])
        for b, h in product(range(s.b), range(s.h)):
            q, k, v = (x[n][b, h] for n in ("q", "k", "v"))
            o[b, h], lse[b, h] = hyper(q, k, v, own(x, "", b, h), s.block)
        return {"o": o, "lse": lse}

    check("hyper_attention", reference, block=block, samples=samples)


def test_orders_and_places_are_inverse() -> None:
    for tag, name in (("", "hyper_attention"), ("_1", "hyper_attention_causal")):
        x = find(name).inputs(0)
        for side in "qk":
            order, place = x[f"order_{side}{tag}"], x[f"place_{side}{tag}"]
            assert (np.take_along_axis(order, place, -1) == np.arange(order.shape[-1])).all()


@pytest.mark.parametrize("t, exact", [(20, 5), (16, 2), (12, 12)])
def test_causal_halves(t: int, exact: int) -> None:
    def part(x: Arrays, s: Any, b: int, h: int, lo: int, hi: int, node: int) -> Any:
        q, k, v = (x[n][b, h, lo:hi] for n in ("q", "k", "v"))
        if hi - lo <= s.exact:
            return attend(q, k, v, causal(hi - lo, hi - lo))
        mid = (lo + hi) // 2
        o0, l0 = part(x, s, b, h, lo, mid, 2 * node)
        o1, l1 = part(x, s, b, h, mid, hi, 2 * node + 1)
        half = mid - lo
        o2, l2 = hyper(q[half:], k[:half], v[:half], own(x, f"_{node}", b, h), s.block)
        w = np.exp(l2) / (np.exp(l1) + np.exp(l2))
        late = o1 + w[:, None] * (o2 - o1)
        return np.concatenate([o0, late]), np.concatenate([l0, np.log(np.exp(l1) + np.exp(l2))])

    def reference(x: Arrays, s: Any) -> Arrays:
        o, lse = np.empty(x["q"].shape), np.empty(x["q"].shape[:-1])
        for b, h in product(range(s.b), range(s.h)):
            o[b, h], lse[b, h] = part(x, s, b, h, 0, s.t, 1)
        return {"o": o, "lse": lse}

    check("hyper_attention_causal", reference, t=t, exact=exact)


# ---- B6, B7, B8 --------------------------------------------------------------------------------


@pytest.mark.parametrize("t, stride", [(19, 4), (20, 5), (7, 1)])
def test_checkpoints_before_and_the_token_itself(t: int, stride: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        keep = np.array(
            [[j == i or (j < i and j % s.stride == s.stride - 1) for j in range(s.t)]
             for i in range(s.t)]
        )  # fmt: skip
        return each(x, s, lambda b, h: keep)

    check("scout_attention", reference, t=t, stride=stride)
    for dtype, bound in (("bfloat16", 2**-8), ("float16", 2**-11)):
        check("scout_attention", reference, tolerance=bound, dtype=dtype, t=t, stride=stride)


@pytest.mark.parametrize("t, segment", [(19, 4), (20, 5), (9, 2)])
def test_summaries_of_earlier_segments(t: int, segment: int) -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        o, lse = np.empty(x["q"].shape), np.empty(x["q"].shape[:-1])
        for b, h, i in product(range(s.b), range(s.h), range(s.t)):
            q, k, v = (x[n][b, h] for n in ("q", "k", "v"))
            now = i // s.segment
            keys, values = list(k[now * s.segment : i + 1]), list(v[now * s.segment : i + 1])
            for r in range(now):
                part = slice(r * s.segment, (r + 1) * s.segment)
                mixed, _ = attend(q[part].mean(0)[None], k[part], v[part], np.ones((1, s.segment)))
                keys, values = [*keys, k[part].mean(0)], [*values, mixed[0]]
            every = np.ones((1, len(keys)))
            one, total = attend(q[i][None], np.array(keys), np.array(values), every)
            o[b, h, i], lse[b, h, i] = one[0], total[0]
        return {"o": o, "lse": lse}

    check("combiner_attention", reference, t=t, segment=segment)


def test_pairs_of_keys_by_the_kronecker_product() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        pairs, values = (
            np.stack([np.kron(a[:, c], b[:, c]) for c in range(a.shape[1])], 1)
            for a, b in ((x["a2"], x["a3"]), (x["v1"], x["v2"]))
        )
        o, lse = attend(x["a1"], pairs, values, np.ones((1, len(pairs))), 1 / s.d)
        return {"o": o, "lse": lse}

    check("tensor_attention", reference)


@pytest.mark.parametrize("name", [
    "block_sparse_attention", "variable_block_attention", "xattention", "sparse_linear_attention",
    "sparse_linear_marginal", "permuted_attention", "permuted_attention_int8", "hyper_attention",
    "hyper_attention_causal", "hash_order", "scout_attention", "combiner_attention",
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
