"""tile and the sketches for targets of tiles: every schedule means what its program means."""

from __future__ import annotations

import zlib

import numpy as np
import programs as P
import pytest
import tile_programs as T

from autosched.ir.define import algebra
from autosched.ir.interp import evaluate
from autosched.ir.node import Program, walk
from autosched.ir.ops import (
    carry,
    cast,
    const,
    exp,
    fold,
    get,
    input_,
    iota,
    max_,
    reaxis,
    rename,
    scan,
    sum_,
    take,
    where,
)
from autosched.ir.rules import tile
from autosched.ir.rules.action import Illegal, act
from autosched.ir.schedule import Schedule, replay
from autosched.ir.sketches import sketches
from autosched.ir.target import Target, parse_target
from autosched.ir.text import parse, to_text
from autosched.ir.verify import verify

TARGET = parse_target("sm_90")


def gathered() -> Program:
    """Rows of a table by number, normalised."""
    table = input_("table", {"r": 19, "c": 45})
    rows = input_("rows", {"t": 13}, "int32")
    x = take(table, "r", rows % 19)
    return algebra(y=("t c", x / (1.0 + max_("c", x * x))))


def scores_and_sums() -> Program:
    """Two outputs over different axes."""
    x, y = input_("x", {"m": 21, "k": 33}), input_("y", {"n": 18, "k": 33})
    s = sum_("k", x * y)
    return algebra(s=("m n", s), l=("m", sum_("n", exp(s - max_("n", s)))))


def banded() -> Program:
    """Clamped reads under a test of their own."""
    x = input_("x", {"m": 29, "k": 40})
    at = iota("k", 40)
    moved = reaxis(x, {"k": where(at < 39, at + 1, 39)})
    return algebra(y=("m", sum_("k", where(at < 39, x * moved, 0.0))))


PROGRAMS = {
    "gemm": P.gemm(37, 50, 70),
    "row times matrix": P.gemm(1, 50, 70),
    "attention": P.attention(2, 4, 37, 24, j=141, groups=2),
    "short attention": P.attention(1, 2, 19, 16),
    "softmax": P.softmax(13, 77),
    "layernorm": P.layernorm(13, 77),
    "rmsnorm": P.rmsnorm(13, 77),
    "swiglu": P.swiglu(13, 77, 50),
    "rotary": P.rotary(2, 3, 13, 24),
    "delta": T.delta_algebra(2, 2, 9, 12, 20),
    "gathered": gathered(),
    "two outputs": scores_and_sums(),
    "banded": banded(),
}


def draw(program: Program, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for node in program.inputs:
        name, dims, dtype, _ = node.attr
        shape = [e for _, e in dims]
        whole = dtype.startswith("int")
        out[name] = rng.integers(0, 1000, shape) if whole else rng.standard_normal(shape)
    return out


def some_schedules(
    program: Program, count: int, seed: int, target: Target = TARGET
) -> list[Schedule]:
    """Some schedules of every sketch, in random order."""
    rng = np.random.default_rng(seed)
    out: list[Schedule] = []
    for sketch in sketches(program, target):
        table = sketch.table()
        rows = len(next(iter(table.values())))
        for row in rng.choice(rows, min(count, rows), replace=False):
            out.append(sketch.schedule({k: int(v[row]) for k, v in table.items() if k}))
    return [out[n] for n in rng.permutation(len(out))]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_schedule_means_the_program(name: str) -> None:
    program = PROGRAMS[name]
    inputs = draw(program, zlib.crc32(name.encode()))
    want = evaluate(program, inputs)
    schedules = some_schedules(program, 4, 1)
    assert schedules
    for schedule in schedules:
        made = replay(program, schedule)
        assert not isinstance(made, Illegal), (schedule.text, made)
        assert not verify(made), schedule.text
        assert parse(to_text(made)) == made
        got = evaluate(made, inputs)
        for out, value in want.items():
            scale = np.linalg.norm(value)
            assert np.linalg.norm(got[out] - value) <= 1e-14 * scale, (out, schedule.text)


def test_one_pass_has_one_loop_and_two_dots() -> None:
    program = PROGRAMS["attention"]
    schedule = next(s for s in some_schedules(program, 1, 2) if s.sketch == "onepass128.0")
    made = replay(program, schedule)
    assert isinstance(made, Program)
    ops = [n.op for n in walk(*made.body)]
    assert (ops.count("kernel"), ops.count("fold"), ops.count("dot")) == (1, 1, 2)


def test_reduces_of_one_operand_share_a_loop() -> None:
    (schedule, *_) = some_schedules(PROGRAMS["swiglu"], 1, 3)
    made = replay(PROGRAMS["swiglu"], schedule)
    assert isinstance(made, Program)
    (fold,) = [n for n in walk(*made.body) if n.op == "fold"]
    assert len(fold.attr[1]) == 2


def test_narrow_operands_stay_narrow() -> None:
    q = input_("q", {"i": 32, "d": 16}, "bfloat16")
    k = input_("k", {"j": 48, "d": 16}, "bfloat16")
    v = input_("v", {"j": 48, "e": 16}, "bfloat16")
    s = sum_("d", cast(q, "float32") * cast(k, "float32"))
    p = exp(s - max_("j", s))
    o = sum_("j", p * cast(v, "float32")) / sum_("j", p)
    program = algebra(o=("i e", cast(o, "bfloat16")))
    for narrow, kinds in ((True, {"bfloat16"}), (False, {"bfloat16", "float32"})):
        plan = [[["i", 16], ["e", 0]], [["d", 0], ["j", 0]], []]
        made = tile.apply(program, act("tile", plans=[plan], narrow=narrow))
        assert isinstance(made, Program)
        assert {s.dtype for n in walk(*made.body) if n.op == "dot" for s in n.src} == kinds


def code(program: Program, **args: object) -> str:
    got = tile.apply(program, act("tile", **args))
    assert isinstance(got, Illegal), got
    return got.code


def test_refusals() -> None:
    gemm = PROGRAMS["gemm"]
    running = carry("s", "float32", {"b": 3}) + input_("x", {"b": 3, "t": 9})
    good = [[["m", 16], ["n", 16]], [["k", 16]], []]
    made = tile.apply(gemm, act("tile", plans=[good]))
    assert isinstance(made, Program)
    assert code(made, plans=[good]) == "NOT_ALGEBRA"
    assert code(gemm, keep=[99], plans=[good]) == "NO_SUCH_CANDIDATE"
    assert code(gemm, plans=[good, good]) == "PLANS"
    assert code(gemm, plans=[[[["m", 16]], [], []]]) == "PLANS"
    sums = get(fold("t", [(0, 9)], {"s": (const(0.0, "float32"), running)}, [running]), 1)
    program = algebra(y=("b t", sums))
    whole = [[["b", 1], ["t", 16]], [], []]
    assert code(program, plans=[whole]) == "NO_BLOCK"  # a loop is read at its steps


def test_programs_along_axes_that_an_output_lacks_store_it_once() -> None:
    program = PROGRAMS["delta"]
    plan = [[["b", 1], ["h", 1], ["t", "step"], ["d", 4], ["e", 16]], [], []]
    made = tile.apply(program, act("tile", plans=[plan]))
    means_the_program(program, made, 0)
    assert isinstance(made, Program)
    masks = [str(to_text(made)).split(f"store %{o}")[1].splitlines()[0] for o in "os"]
    assert ["d.o == 0" in m for m in masks] == [True, False]


def means_the_program(program: Program, made: Program | Illegal, seed: int) -> None:
    assert isinstance(made, Program), made
    assert not verify(made)
    inputs = draw(program, seed)
    for name, value in evaluate(program, inputs).items():
        gap = np.linalg.norm(evaluate(made, inputs)[name] - value)
        assert gap <= 1e-14 * np.linalg.norm(value), name


def test_states_that_are_read_elsewhere_are_whole() -> None:
    """Blocks of an axis along which the steps sum the state: the loop makes all of it for each."""
    x, w = input_("x", {"b": 5, "d": 12}), input_("w", {"d": 12, "k": 12})
    state = carry("s", "float32", {"b": 5, "d": 12})
    moved = sum_("k", rename(state, {"d": "k"}) * w)
    turned = take(state, "d", 11 - iota("d", 12))
    loop = fold("t", [(0, 3)], {"s": (x, moved / 4.0 + turned)})
    program = algebra(y=("b d", get(loop, 0)))
    plan = [[["b", 2], ["d", 4]], [], []]
    means_the_program(program, tile.apply(program, act("tile", plans=[plan])), 6)


def test_a_scan_becomes_a_loop() -> None:
    x = input_("x", {"m": 5, "k": 9})
    program = algebra(y=("m k", scan("sum", "k", x)))
    made = tile.apply(program, act("tile", plans=[[[["m", 4], ["k", "step"]], [], []]]))
    assert isinstance(made, Program), made
    inputs = draw(program, 5)
    assert np.allclose(evaluate(made, inputs)["y"], np.cumsum(inputs["x"], 1), rtol=1e-14)


