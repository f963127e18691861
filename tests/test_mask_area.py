"""Masks at the cost of their area: what loops visit, that they mean the same, and the clauses."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.datasets.suites.definitions import attention
from autosched.datasets.workloads.masks import DRAWS, MASKS
from autosched.ir.clauses import MOST, UNKNOWN, clauses
from autosched.ir.interp import evaluate, value_of
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import abs_, const, eq, input_, iota, map_
from autosched.ir.verify import verify
from autosched.tools.mask_area import count, tiled
from autosched.tools.triton_interpreter import Interpreter

NUMBERS = {"window": 9, "prefix": 13, "block": 24, "sinks": 7, "stride": 3}
# Sets of positions that intervals of keys are, or two of them.
BOUNDED = ["causal", "full_document", "causal_document", "share_question", "causal_blockwise",
           "prefix_lm_causal", "prefix_lm_document", "sliding_window", "sliding_window_causal",
           "global_sliding_window", "block_causal_document", "sink_local",
           "segment_causal"]  # fmt: skip


def sizes_of(mask: str, tokens: int) -> dict[str, Any]:
    numbers = {p: NUMBERS[p] for p in MASKS[mask].parameters}
    return {"b": 1, "h": 2, "g": 1, "i": tokens, "j": tokens, "d": 16, "mask": mask,
            "dtype": "float32", **numbers}  # fmt: skip


def arrays_of(program: Program, docs: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for node in program.inputs:
        name, shape = node.attr[0], tuple(int(e) for _, e in node.attr[1])
        given = DRAWS.get(name)
        out[name] = (np.asarray(given(rng, shape, {"i": shape[0], "docs": docs}), np.int32)
                     if given else rng.standard_normal(shape).astype(np.float32))  # fmt: skip
    return out


@pytest.mark.parametrize("mask", BOUNDED)
def test_no_block_is_visited_or_tested_in_vain(mask: str) -> None:
    sizes = sizes_of(mask, 389)
    arrays = arrays_of(attention(**sizes), 5)
    for rows, keys in ((32, 16), (16, 32)):
        got = count(sizes, arrays, rows, keys, whole=True)
        assert got.needed <= got.visited <= 1.01 * got.needed, got
        # No test alone lets the block through in which one range ends and the next one begins.
        seams = -(-389 // rows) if got.loops > 3 else 0
        assert got.partial <= got.tested <= 1.03 * got.partial + seams, got
        single = count(sizes, arrays, rows, keys, whole=False)
        assert single.visited == got.visited
        assert single.loops == 1


@pytest.mark.parametrize("mask", [*BOUNDED, "strided"])
@pytest.mark.parametrize("tokens, rows, keys", [(141, 16, 32), (77, 64, 16)])
def test_means_the_same(mask: str, tokens: int, rows: int, keys: int) -> None:
    program = attention(**sizes_of(mask, tokens))
    arrays = arrays_of(program, 6, tokens)
    want = evaluate(program, arrays)["o"]
    for whole in (True, False):
        made = tiled(sizes_of(mask, tokens), rows, keys, whole)
        assert not verify(made)
        np.testing.assert_allclose(evaluate(made, arrays)["o"], want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "mask", ["causal_document", "share_question", "prefix_lm_document", "global_sliding_window"]
)
def test_as_triton_kernels(interpreter: Interpreter, mask: str) -> None:
    program = attention(**sizes_of(mask, 101))
    arrays = arrays_of(program, 4, 1)
    want = evaluate(program, arrays)["o"]
    for whole in (True, False):
        module = emit(tiled(sizes_of(mask, 101), 16, 16, whole), Header(mask))
        assert isinstance(module, TritonModule), module
        got = interpreter(module, arrays)["o"]
        assert np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-5


def test_rows_beyond_the_end_widen_no_loop() -> None:
    """What such rows hold is 0, the start of the first document."""
    sizes = sizes_of("causal_document", 130)
    start = np.repeat(np.asarray([0, 128], np.int32), [128, 2])
    got = count(sizes, {"start": start}, 32, 16, whole=False)
    assert got.visited == got.needed


# ---- clauses ------------------------------------------------------------------------------------


def condition(rng: random.Random, depth: int) -> Node:
    """A condition of two coordinates and a number that memory holds."""
    i, j, x = iota("i", 7), iota("j", 7), input_("x", {}, "int32")
    if depth == 0:
        fn = rng.choice(("ge", "gt", "le", "lt", "eq", "ne"))
        a = rng.choice((i - j, abs_(i - j), i * 2 - x, j // 2 + x, x - abs_(j - 3) * 2))
        return map_(fn, a, const(rng.randint(-3, 4), "int32"))
    if rng.random() < 0.2:
        return map_("not", condition(rng, depth - 1))
    parts = (condition(rng, depth - 1) for _ in range(2))
    return map_(rng.choice(("and", "or")), *parts)


@pytest.mark.parametrize("seed", range(40))
def test_clauses_hold_together_where_the_condition_does(seed: int) -> None:
    rng = random.Random(seed)
    made = condition(rng, 2)
    given = {"x": np.int32(rng.randint(-2, 5))}
    grid = iota("i", 7) * 0 + iota("j", 7) * 0
    want = value_of(made & eq(grid, 0), given, ("i", "j"))
    for holds in (True, False):
        found = clauses(made, holds)
        assert found != UNKNOWN and not any(t is None for c in found for t in c)
        total = np.ones((7, 7), bool)
        for clause in found:
            tests = [value_of(t + grid, given, ("i", "j")) >= 0 for t in clause if t is not None]
            total &= np.any(tests, axis=0) if tests else False
        np.testing.assert_array_equal(total, want if holds else ~want)


def test_too_many_clauses_are_unknown() -> None:
    i, j = iota("i", 7), iota("j", 7)
    pairs = [(i >= j + n) & (j >= i - n) for n in range(1, 9)]
    made = pairs[0]
    for pair in pairs[1:]:
        made = made | pair
    assert 2 ** len(pairs) > MOST
    assert all(None in clause for clause in clauses(made))


def test_what_is_no_number_is_unknown() -> None:
    flag = input_("flag", {"i": 7}, "bool")
    assert clauses(flag & (iota("j", 7) >= 3))[0] == (None,)
    assert not [n for n in walk(flag) if n.op == "map"]
