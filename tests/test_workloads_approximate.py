"""Hashed, sampled and summarised attention against float64 NumPy, from the papers' steps."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from plain_attention import Array, Arrays, attend, causal, each
from workload_check import check, find

import autosched.datasets.workloads.approximate  # noqa: F401  (registers its workloads)
from autosched.ir.verify import verify

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
    "hyper_attention", "hyper_attention_causal", "hash_order", "scout_attention",
    "combiner_attention", "tensor_attention",
])  # fmt: skip
def test_real_shapes_are_programs_of_the_same_definition(name: str) -> None:
    for shape in find(name).shapes:
        verify(find(name).program(shape))
