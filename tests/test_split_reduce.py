"""split_reduce and arrive: parts merged mean what the reduce means, at both levels of the IR."""

from __future__ import annotations

import math
import zlib

import numpy as np
import programs as P
import pytest
import split_programs as S

from autosched.ir.define import algebra
from autosched.ir.extent import evaluate_extent
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import (
    buffer,
    forall,
    get,
    input_,
    iota,
    kernel,
    load,
    max_,
    reduce_,
    store,
    sum_,
)
from autosched.ir.rules import arrive, skip, split_reduce
from autosched.ir.rules.action import Illegal, act
from autosched.ir.schedule import replay, run_actions
from autosched.ir.sketch_split import cuts, split_sketches
from autosched.ir.target import parse_target
from autosched.ir.text import parse, to_text
from autosched.ir.verify import VerifyError, verify

SM90 = parse_target("sm_90")


def largest() -> Program:
    x = input_("x", {"m": 3, "k": 301})
    best = reduce_("argmax", "k", x, iota("k", 301) + 0 * iota("m", 3))
    return algebra(top=("m", get(best, 0)), at=("m", get(best, 1)))


def spread() -> Program:
    """The variance of products with weights: sums and differences from them."""
    x, w = input_("x", {"m": 4, "k": 277}), input_("w", {"k": 277})
    mean = sum_("k", x) / 277.0
    return algebra(y=("m", sum_("k", (x - mean) * w)), z=("m", sum_("k", (x - mean) * (x - mean))))


PROGRAMS = {
    "gemm": (P.gemm(5, 7, 300), "k"),
    "two products": (P.swiglu(3, 300, 10), "c"),
    "attention": (P.attention(1, 4, 5, 16, j=333, groups=2, mask=None), "j"),
    "causal": (P.attention(1, 2, 200, 8), "j"),
    "softmax": (P.softmax(3, 1000), "c"),
    "layernorm": (P.layernorm(3, 700), "c"),
    "rmsnorm": (P.rmsnorm(3, 500), "c"),
    "largest": (largest(), "k"),
    "spread": (spread(), "k"),
}


def draw(program: Program, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n.attr[0]: rng.standard_normal([e for _, e in n.attr[1]]) for n in program.inputs}


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("parts", [1, 3, 5])
def test_parts_mean_the_reduce(name: str, parts: int) -> None:
    program, axis = PROGRAMS[name]
    made = split_reduce.apply(program, act("split_reduce", axis=axis, block=32, parts=parts))
    assert isinstance(made, Program), made
    assert not verify(made)
    assert parse(to_text(made)) == made
    inputs = draw(program, zlib.crc32(name.encode()))
    same(evaluate(made, inputs), evaluate(program, inputs))


def test_no_part_is_empty_and_all_are_about_as_long() -> None:
    made = split_reduce.apply(P.gemm(2, 3, 300), act("split_reduce", axis="k", block=32, parts=7))
    assert isinstance(made, Program)
    state = split_reduce.partial_states(made, "k")[0]
    lo, hi = state.src[:2]
    shares = [evaluate_at(hi, n) - evaluate_at(lo, n) for n in range(7)]
    assert sum(shares) == 10 and set(shares) == {1, 2}


def evaluate_at(node: Node, number: int) -> int:
    return int(evaluate_extent(node, {split_reduce.part_axis("k"): number}))


def test_rows_without_a_number_stay_as_the_definition_says() -> None:
    """Infinite and missing numbers in one part, and parts that are masked whole."""
    program = P.softmax(5, 96)
    inputs = draw(program, 1)
    inputs["x"][0, 70] = np.nan
    inputs["x"][1, 3] = np.inf
    inputs["x"][2, :64] = -np.inf
    inputs["x"][3, :] = -np.inf
    made = split_reduce.apply(program, act("split_reduce", axis="c", block=16, parts=3))
    assert isinstance(made, Program)
    with np.errstate(invalid="ignore"):
        same(evaluate(made, inputs), evaluate(program, inputs))


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", ["gemm", "attention", "causal"])
def test_kernels_of_parts_mean_the_reduce(name: str, merged: bool) -> None:
    program, axis = PROGRAMS[name]
    axes = {
        "gemm": [["m", 16], ["n", 4]], "attention": [["b", 1], ["h", 1], ["i", 4], ["e", 0]],
        "causal": [["b", 1], ["h", 1], ["i", 32], ["e", 0]],
    }[name]  # fmt: skip
    made = run_actions(program, S.by_hand(program, axis, 32, 3, axes, arrive=merged))
    assert isinstance(made, Program), made
    shorter = skip.propose(made)
    assert shorter  # masks, and the tail of the axis
    made = run_actions(made, list(shorter))
    assert isinstance(made, Program)
    assert len(made.body) == (1 if merged else 2)
    assert not verify(made) and parse(to_text(made)) == made
    inputs = draw(program, 2)
    same(evaluate(made, inputs), evaluate(program, inputs))


def code(got: Program | Illegal) -> str:
    assert isinstance(got, Illegal), got
    return got.code


def test_refusals_of_split_reduce() -> None:
    gemm = P.gemm(5, 7, 300)

    def refused(program: Program, axis: str, block: int = 32, parts: int = 2) -> str:
        made = split_reduce.apply(
            program, act("split_reduce", axis=axis, block=block, parts=parts)
        )
        return code(made)

    assert refused(gemm, "q") == "NO_REDUCE"
    assert refused(gemm, "k", block=301) == "TOO_BIG"
    assert refused(gemm, "k", parts=11) == "TOO_BIG"
    x = input_("x", {"m": 3, "k": 99})
    nested = algebra(y=("m", max_("k", x * max_("k", x))))
    assert refused(nested, "k") == "NO_CORRECTION"
    done = run_actions(gemm, S.by_hand(gemm, "k", 32, 2, [["m", 16], ["n", 8]]))
    assert isinstance(done, Program) and refused(done, "k") == "NOT_ALGEBRA"


def test_refusals_of_arrive() -> None:
    program = P.gemm(5, 70, 300)
    *actions, last = S.by_hand(program, "k", 32, 2, [["m", 16], ["n", 16]])
    split, tiled = actions
    assert code(arrive.apply(program.with_body(), last)) == "NO_PARTS"
    first, second = tiled["plans"]
    other = act("tile", keep=tiled["keep"], joined=True,
                plans=(first, ((("m", 16), ("n", 32)), *second[1:])))  # fmt: skip
    apart = run_actions(program, [split, other])
    assert isinstance(apart, Program) and code(arrive.apply(apart, last)) == "GRIDS"
    wide = P.attention(1, 2, 40, 16, j=300, mask=None)
    axes = [["b", 1], ["h", 1], ["i", 16], ["e", 8]]
    made = run_actions(wide, S.by_hand(wide, "j", 32, 2, axes, arrive=False))
    assert isinstance(made, Program)
    # All blocks of e have one maximum: each of their programs would have to store it.
    assert code(arrive.apply(made, act("arrive", axis=split_reduce.part_axis("j")))) == "ELSEWHERE"


def test_programs_that_merge_what_is_no_part_are_rejected() -> None:
    out = buffer("y", (4,), "float32", "output")
    x = input_("x", {"m": 4})
    loop = forall("p", 0, 4, "arrive", [store(out, load(x, [iota("p", 4)]), [iota("p", 4)])])
    outputs = algebra(y=("m", x)).outputs
    program = Program("tile", (x,), outputs, (kernel("y", [loop]),))
    with pytest.raises(VerifyError, match="ARRIVE"):
        verify(program)


# ---- sketches ----------------------------------------------------------------------------------


def test_axes_are_split_where_programs_are_few() -> None:
    def split(program: Program) -> set[str]:
        return {cut.axis for cut in cuts(program, SM90)}

    for rows in (1, 16, 128, 256):
        assert split(S.gemm(rows, 4096, 4096)) == {"k"}
    assert split(S.gemm(4096, 4096, 4096)) == set()
    assert split(S.gemm(16, 4096, 256)) == set()
    assert split(S.decode(32, 8, 1, 32768, 128)) == {"j"}
    assert split(P.attention(4, 32, 2048, 64)) == set()
    assert split(P.softmax(4, 100_000)) == {"c"}
    assert split(P.softmax(4096, 4096)) == set()


@pytest.mark.parametrize("rows", [1, 16, 256])
def test_tables_have_a_sane_size(rows: int) -> None:
    sketches = split_sketches(S.gemm(rows, 4096, 4096), SM90)
    assert {"arrive", "apart"} == {s.name.split(".")[2] for s in sketches}
    assert all(s.size() <= 200_000 for s in sketches)


@pytest.mark.parametrize("program", [S.gemm(5, 37, 600, "float32"), S.decode(4, 2, 3, 700, 16)])
def test_every_schedule_means_the_program(program: Program) -> None:
    rng = np.random.default_rng(0)
    inputs = draw(program, 3)
    want = evaluate(program, inputs)
    sketches = split_sketches(program, SM90)
    assert sketches
    for sketch in sketches:
        table = sketch.table()
        row = int(rng.integers(len(next(iter(table.values())))))
        schedule = sketch.schedule({k: int(v[row]) for k, v in table.items()})
        made = replay(program, schedule)
        assert isinstance(made, Program), made
        assert not verify(made), schedule.text
        assert sum(n.op == "kernel" for n in walk(*made.body)) == (
            1 if "arrive" in sketch.name else 2
        )
        for name, value in want.items():
            gap = np.linalg.norm(evaluate(made, inputs)[name] - value)
            assert gap <= 4e-3 * np.linalg.norm(value), schedule.text
    assert math.isfinite(float(want[program.outputs[0].name].sum()))
