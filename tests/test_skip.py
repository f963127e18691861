"""skip: loops over masked blocks run over what the mask lets through, and mean the same."""

from __future__ import annotations

import numpy as np
import programs as P
import pytest

from autosched.ir.define import algebra
from autosched.ir.interp import evaluate
from autosched.ir.node import Program, walk
from autosched.ir.ops import buffer as buffer_
from autosched.ir.ops import carry, fold, forall, get, input_, iota, kernel, store, sum_, where
from autosched.ir.rules import cascade, skip, tile
from autosched.ir.rules.action import Illegal, act
from autosched.ir.verify import verify

MASKS = {
    "causal": lambda i, j: i >= j,
    "window": lambda i, j: (i >= j) & (i - j <= 20),
    "prefix": lambda i, j: (i >= j) | (j <= 9),
    "after": lambda i, j: j > i,  # the last row keeps nothing
    "band": lambda i, j: (i - j <= 5) & (j - i <= 50),
    "none": None,
}
# Loops: those whose blocks are empty, whole or cut; and how many folds come out of it.
FOLDS = {"causal": 2, "window": 3, "prefix": 2, "after": 3, "band": 3, "none": 2}


def blocked(mask: str, n: int, rows: int, size: int = 32) -> Program:
    program = P.attention(1, 2, n, 24, mask=MASKS[mask])
    onepass = cascade.apply(program, act("cascade", axis="j", block=size))
    assert isinstance(onepass, Program)
    plan = [[["b", 1], ["h", 1], ["i", rows], ["e", 0]], [], []]
    made = tile.apply(onepass, act("tile", plans=[plan]))
    assert isinstance(made, Program)
    return made


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("n", [96, 141])
def test_masks_bound_loops_and_mean_the_same(mask: str, n: int) -> None:
    rng = np.random.default_rng(n)
    for rows in (16, 64):
        before = blocked(mask, n, rows)
        inputs = {i.attr[0]: rng.standard_normal([e for _, e in i.attr[1]]) for i in before.inputs}
        want = evaluate(before, inputs)["o"]
        actions = skip.propose(before)
        for action in actions:
            made = skip.apply(before, action)
            assert isinstance(made, Program)
            assert not verify(made)
            got = evaluate(made, inputs)["o"]
            assert np.array_equal(np.isnan(got), np.isnan(want))
            assert np.allclose(got, want, rtol=1e-14, atol=1e-15, equal_nan=True)
            folds = [x for x in walk(*made.body) if x.op == "fold"]
            assert n == 96 or len(folds) == FOLDS[mask], mask
        assert actions or (mask == "none" and n == 96)


def test_whole_blocks_have_no_test() -> None:
    made = skip.apply(blocked("causal", 96, 16), act("skip", axis="j.blk.s"))
    assert isinstance(made, Program)
    whole, _ = [x for x in walk(*made.body) if x.op == "fold"]
    compared = [n for n in walk(*whole.src[2:]) if n.op == "map" and n.attr[0] in ("ge", "lt")]
    assert not any("j.blk.s" in n.names and "i.i" in n.names and n.dtype == "bool"
                   and n.src[0].dtype == "int32" for n in compared)  # fmt: skip


def test_the_bounds_alone() -> None:
    made = skip.apply(blocked("causal", 96, 16), act("skip", axis="j.blk.s", whole=False))
    assert isinstance(made, Program)
    (loop,) = [x for x in walk(*made.body) if x.op == "fold"]
    assert loop.src[1].op != "const"


def test_a_loop_inside_is_no_bound() -> None:
    """Blocks of blocks: the end of the outer loop says nothing of the inner one's step."""
    program = P.attention(1, 1, 90, 16)
    onepass = cascade.apply(program, act("cascade", axis="j", block=32))
    assert isinstance(onepass, Program)
    plan = [[["b", 1], ["h", 1], ["i", 16], ["e", 0]], [["j.in", 16]], []]
    made = tile.apply(onepass, act("tile", plans=[plan]))
    assert isinstance(made, Program)
    for action in skip.propose(made):
        shorter = skip.apply(made, action)
        assert isinstance(shorter, Program)
        assert not verify(shorter)


def stacked() -> Program:
    x = input_("x", {"t": 9, "d": 4})
    at = iota("t", 9)
    old = carry("s", "float32", {"d": 4})
    loop = fold("t", [(0, 9)], {"s": (x * 0.0, old + x)}, [old])
    y = buffer_("y", (9,), "float32", "output")
    body = forall("t", 0, 9, "serial", [store(y, sum_("d", get(loop, 1)), [at])])
    return Program("tile", (x,), (), (kernel("k", [body]),))


def test_refusals() -> None:
    def code(program: Program, **args: object) -> str:
        got = skip.apply(program, act("skip", **args))
        assert isinstance(got, Illegal)
        return got.code

    causal = blocked("causal", 96, 16)
    assert code(causal, axis="k") == "NO_LOOP"
    assert code(stacked(), axis="t") == "STACKED"
    assert code(blocked("none", 96, 16), axis="j.blk.s") == "NO_MASK"
    # A product is not the same without the blocks whose weight is 2 and not 0.
    x = input_("x", {"m": 8, "k": 64})
    i, j = iota("m", 8), iota("k", 64)
    program = algebra(y=("m", sum_("k", where(j <= i * 8, x, 2.0))))
    made = tile.apply(program, act("tile", plans=[[[["m", 4]], [["k", 16]], []]]))
    assert isinstance(made, Program)
    assert code(made, axis="k.o", whole=False) == "NOT_NEUTRAL"
