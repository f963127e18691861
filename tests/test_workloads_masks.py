"""Masks: each predicate against plain Python, pair by pair; areas and FLOPs from the same one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from plain_masks import PLAIN, plain

from autosched.datasets.workloads.masks import DRAWS, MASKS, area, cuts, flops, mask_node, masked_in
from autosched.ir.node import walk

NUMBERS = {
    "heads": 3, "window": 3, "prefix": 4, "block": 5, "blocks": 4, "sinks": 2, "stride": 3,
    "slots": 2,
}  # fmt: skip


def drawn(mask: str, i: int, j: int, seed: int) -> tuple[dict[str, Any], dict[str, int]]:
    """The arrays that a mask reads, and its numbers."""
    numbers = {p: NUMBERS[p] for p in MASKS[mask].parameters}
    rng, sizes = np.random.default_rng(seed), {**NUMBERS, "i": i, "j": j, "docs": 3 + seed}
    handles = [n for n in walk(mask_node(mask, i, j, **numbers)) if n.op == "input"]
    shapes = {n.attr[0]: tuple(e for _, e in n.attr[1]) for n in handles}
    return {name: DRAWS[name](rng, shape, sizes) for name, shape in shapes.items()}, numbers


def test_every_mask_has_a_plain_form() -> None:
    assert set(PLAIN) == set(MASKS)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("i, j", [(23, 23), (9, 22), (1, 17)])
def test_predicate_and_area(mask: str, i: int, j: int) -> None:
    arrays, numbers = drawn(mask, i, j, seed=i % 3)
    got = masked_in(mask, i, j, arrays, **numbers)
    want = plain(mask, 3 if got.ndim == 3 else 1, i, j, arrays, SimpleNamespace(**NUMBERS))
    np.testing.assert_array_equal(got.reshape(want.shape), want)
    assert area(mask, i, j, arrays, **numbers) == want.sum() / len(want)


def test_global_sliding_window_is_the_predicate_not_the_ranges() -> None:
    """The two forms of the published benchmark count 504 and 279 pairs; the predicate decides."""
    assert area("global_sliding_window", 24, 24, {}, window=5) == 504


def test_area_of_many_rows_is_counted_in_parts() -> None:
    n = 4099
    assert area("causal", n, n, {}) == n * (n + 1) / 2


def test_flops_are_four_times_area_and_head() -> None:
    assert flops(10.0, 1, 64, 128, 128) == 4 * 10 * 64 * 128
    assert flops(10.0, 2, 8, 192, 128, backward=True) == 2.5 * 2 * 10 * 16 * (192 + 128)


def test_cuts_are_parts_that_cover() -> None:
    edges = cuts(40, 6)
    assert len(edges) == 7 and edges[0] == 0 and edges[-1] == 40
    assert (np.diff(edges) > 0).all()
