"""What each rule refuses, and the facts that `cascade` rests on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from programs import algebra, attention, gemm, layernorm, softmax, swiglu
from tile_programs import delta_algebra

from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Output, Program
from autosched.ir.ops import carry, cast, const, exp, fold, get, input_, iota, log, map_, max_, sum_
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.rules.inline import candidates
from autosched.ir.rules.match_dot import as_reduce
from autosched.ir.schedule import run_actions

INLINED = act("inline", keep=[])
ROWS = act("bind", loops=["i:grid"])


def scores(fn: Callable[[Node, Node], Node]) -> Program:
    """sum j of fn(s, max j s) times v."""
    s, v = input_("s", {"i": 5, "j": 12}), input_("v", {"j": 12, "e": 3})
    return algebra({"o": ("i", "e")}, o=sum_("j", fn(s, max_("j", s)) * v))


def staged(program: Program) -> Action:
    """Scores, their maximum, exponentials and their sum get buffers."""
    found = candidates(program)
    wanted = [n for n in found if (n.op == "map" and n.attr[0] in ("where", "exp"))
              or (n.op == "reduce" and n.names == ("i",))]  # fmt: skip
    return act("inline", keep=[found.index(n) for n in wanted])


def masked(
    fill: float, above: int = 0, stored: bool = False, padding: bool = False
) -> Program:
    """A softmax of masked scores, and its product with v unless it is stored itself.

    padding: the mask also asks an input.
    """
    s, v = input_("s", {"i": 6, "j": 6}), input_("v", {"j": 6, "e": 3})
    test = iota("i", 6) >= iota("j", 6) + above
    if padding:
        test = test & input_("kept", {"j": 6}, "bool")
    s = map_("where", test, s, fill)
    e = exp(s - max_("j", s))
    if stored:
        return algebra({"p": ("i", "j")}, p=e / sum_("j", e))
    return algebra({"o": ("i", "e")}, o=sum_("j", e * v) / sum_("j", e))


def varying() -> Program:
    x = input_("x", {"m": 4, "k": 6})
    state = carry("S", "float32", {"m": 4})
    loop = fold("k", [(const(0, "int32"), iota("m", 4) + 1)], {"S": (const(0.0, "float32"),
                                                                   state + x)})  # fmt: skip
    return Program("algebra", (x,), (Output("y", ("m",), "float32", (4,)),), (get(loop),))


def turned() -> Program:
    """A value read along the rows that it is made at, so that rows cannot share a loop."""
    x = input_("x", {"m": 6, "k": 6})
    e = exp(x)
    return algebra({"y": ("m", "k")}, y=e / sum_("m", e) + sum_("k", e))


REFUSED: dict[str, tuple[Callable[[], Program], tuple[Action, ...], str]] = {
    "inline of a tile program": (lambda: softmax(3, 4), (INLINED, INLINED), "NOT_ALGEBRA"),
    "inline by a number beyond": (
        lambda: softmax(3, 4), (act("inline", keep=[99]),), "NO_SUCH_CANDIDATE"),
    "inline of varying bounds": (varying, (INLINED,), "VARYING_BOUNDS"),
    "join of nothing": (lambda: gemm(4, 8, 3), (INLINED, act("join", nest="y")), "NOTHING_SHARED"),
    "join of no nest": (lambda: gemm(4, 8, 3), (INLINED, act("join", nest="z")), "NO_NEST"),
    "split of no axis": (
        lambda: gemm(4, 8, 3), (INLINED, act("split", axis="q", size=2)), "NOT_AN_AXIS"),
    "split too big": (lambda: gemm(4, 8, 3), (INLINED, act("split", axis="m", size=5)), "TOO_BIG"),
    "split not exact": (
        lambda: gemm(4, 8, 3), (INLINED, act("split", axis="m", size=3, tail="exact")),
        "NOT_EXACT"),
    "split in place": (
        lambda: scored(), (act("cascade", axis="j", block=4), INLINED,
                           act("split", axis="e", size=2, nest="s0.1")), "IN_PLACE"),
    "bind to nothing": (
        lambda: gemm(4, 8, 3), (INLINED, act("bind", nest="y", loops=["m:warp"])), "NO_BIND"),
    "bind other loops": (
        lambda: gemm(4, 8, 3), (INLINED, act("bind", nest="y", loops=["m:grid"])),
        "NOT_THE_LOOPS"),
    "bind a lane outside": (
        lambda: gemm(4, 8, 3), (INLINED, act("bind", nest="y", loops=["m:lane", "n:serial"])),
        "LANE_NOT_LAST"),
    "share across": (
        turned, (act("inline", keep=[0]), act("bind", loops=["m:grid"])), "CROSSES"),
    "rfactor of what is not reduced": (
        lambda: gemm(4, 8, 3), (INLINED, act("rfactor", nest="y", axis="m", lanes=2, unroll=1)),
        "NOT_REDUCED"),
    "rfactor too big": (
        lambda: gemm(4, 8, 3), (INLINED, act("rfactor", nest="y", axis="k", lanes=4, unroll=1)),
        "TOO_BIG"),
    "rfactor with a lane": (
        lambda: gemm(4, 8, 3),
        (INLINED, act("bind", nest="y", loops=["m:serial", "n:lane"]),
         act("rfactor", nest="y", axis="k", lanes=2, unroll=1)), "HAS_LANE"),
    "place of what is not read": (
        lambda: gemm(4, 8, 3), (INLINED, act("place", nest="y", operand="q", home="packed")),
        "NOT_READ"),
    "pack of an argument": (
        lambda: gemm(4, 8, 3), (INLINED, act("place", nest="y", operand="x", home="packed")),
        "NOT_CONSTANT"),
    "copy under no loop": (
        lambda: gemm(4, 8, 3),
        (INLINED, act("place", nest="y", operand="x", home="scratch", loop="m")), "NO_LOOP"),
    "match_dot of no nest": (
        lambda: gemm(4, 8, 3), (INLINED, act("match_dot", nest="z")), "NO_NEST"),
    "match_dot of no product": (
        lambda: softmax(3, 4), (INLINED, act("match_dot", nest="y")), "NO_PRODUCT"),
    "cascade of a tile program": (
        lambda: softmax(3, 4), (INLINED, act("cascade", axis="c", block=2)), "NOT_ALGEBRA"),
    "cascade of one sum": (
        lambda: gemm(4, 8, 3), (act("cascade", axis="k", block=2),), "NO_CHAIN"),
    "cascade in too big blocks": (
        lambda: softmax(3, 4), (act("cascade", axis="c", block=5),), "TOO_BIG"),
    "cascade of tanh": (
        lambda: scores(lambda s, m: map_("tanh", s - m)), (act("cascade", axis="j", block=4),),
        "NO_CORRECTION"),
    "trim of no nest": (lambda: gemm(4, 8, 3), (INLINED, act("trim", nest="z")), "NO_NEST"),
    "trim of no mask": (lambda: gemm(4, 8, 3), (INLINED, act("trim", nest="y")), "NO_MASK"),
    "trim under no loop": (
        lambda: masked(-math.inf), (staged(masked(-math.inf)), act("trim", nest="t0")), "WHOLE"),
    "trim of a fill that counts": (
        lambda: masked(0.0), (staged(masked(0.0)), ROWS, act("trim", nest="t0")), "NOT_NEUTRAL"),
    "trim of a finite fill where rows may be empty": (
        lambda: masked(-3e38, 1),
        (staged(masked(-3e38, 1)), ROWS, act("trim", nest="t0")), "NOT_NEUTRAL"),
    "trim of a finite fill where data may empty a row": (
        lambda: masked(-3e38, padding=True),
        (staged(masked(-3e38, padding=True)), ROWS, act("trim", nest="t0")), "NOT_NEUTRAL"),
    "trim of what is stored": (
        lambda: masked(-math.inf, 0, True),
        (staged(masked(-math.inf, 0, True)), ROWS, act("trim", nest="t0")), "STORED"),
    "trim of a parallel loop": (
        lambda: masked(-math.inf),
        (staged(masked(-math.inf)), ROWS, act("bind", nest="t0", loops=["j:grid"]),
         act("trim", nest="t0")),
        "NO_LOOP"),
    "no such rule": (lambda: softmax(3, 4), (act("fuse"),), "NO_SUCH_RULE"),
}  # fmt: skip


def scored() -> Program:
    return scores(lambda s, m: exp(s - m))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    program, actions, code = REFUSED[name]
    result = run_actions(program(), actions)
    assert isinstance(result, Illegal), result
    assert result.code == code, result
    assert result.why


def values(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {str(n.attr[0]): rng.standard_normal([int(str(e)) for _, e in n.attr[1]])
            for n in program.inputs}  # fmt: skip


def one_pass(program: Program, axis: str, block: int) -> Program:
    result = run_actions(program, [act("cascade", axis=axis, block=block)])
    assert isinstance(result, Program), result
    return result


def total(program: Program) -> int:
    """Passes over inputs that the outputs need: folds and reduces that no fold holds."""
    return sum(n.op == "fold" for n in _nodes(program))


def _nodes(program: Program) -> list[Node]:
    from autosched.ir.node import walk

    return list(walk(*program.body))


def masked_whole(inner: Callable[[Node], Node]) -> Program:
    """Rows whose every score is -inf, in blocks before, between and behind others."""
    s, v = input_("s", {"i": 6, "j": 12}), input_("v", {"j": 12, "e": 3})
    e = inner(s)
    p = e / sum_("j", e)
    return algebra({"o": ("i", "e"), "l": ("i",)}, o=sum_("j", p * v), l=sum_("j", e))


CHAINS: dict[str, tuple[Callable[[], Program], str]] = {
    "attention": (lambda: attention(1, 2, 9, 4), "j"),
    "layernorm": (lambda: layernorm(5, 12), "c"),
    "plain": (lambda: masked_whole(lambda s: exp(s - max_("j", s))), "j"),
    "base two": (
        lambda: masked_whole(lambda s: map_("exp2", (s - max_("j", s)) * math.log2(math.e))), "j"),
    "guarded maximum": (
        lambda: masked_whole(
            lambda s: exp(s - map_("where", map_("eq", max_("j", s), -math.inf), 0.0,
                                   max_("j", s)))), "j"),
    "scaled": (lambda: masked_whole(lambda s: exp(0.5 * (s - max_("j", s)))), "j"),
}  # fmt: skip


@pytest.mark.parametrize("block", [2, 3, 5])
@pytest.mark.parametrize("name", CHAINS)
def test_one_pass_means_the_chain(name: str, block: int) -> None:
    """With tiles that are masked whole, rows that are, infinities and NaN among the scores."""
    program, axis = CHAINS[name]
    arrays = values(program())
    if "s" in arrays:
        s = arrays["s"]
        s[0], s[1, :6], s[2, 6:], s[3, 4] = -np.inf, -np.inf, -np.inf, np.nan
        s[4, 3:9] = -1000.0
    want = evaluate(program(), arrays)
    got = evaluate(one_pass(program(), axis, block), arrays)
    for key in want:
        assert np.array_equal(np.isnan(got[key]), np.isnan(want[key]))
        np.testing.assert_allclose(got[key], want[key], rtol=1e-12, atol=1e-13)


def test_one_pass_is_one_fold() -> None:
    for name in ("attention", "plain", "layernorm"):
        program, axis = CHAINS[name]
        assert total(one_pass(program(), axis, 3)) == 1


def test_values_along_the_axis_stay() -> None:
    """What is read along the axis behind the pass, such as the probabilities, is still there."""
    s = input_("s", {"i": 4, "j": 10})
    lse = max_("j", s) + log(sum_("j", exp(s - max_("j", s))))
    program = algebra({"p": ("i", "j"), "lse": ("i",)}, p=exp(s - lse), lse=lse)
    arrays = values(program)
    want, got = evaluate(program, arrays), evaluate(one_pass(program, "j", 4), arrays)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-12)


@pytest.mark.parametrize("fill", [-math.inf, -3e38])
def test_trimmed_loops_end_at_the_mask(fill: float) -> None:
    program = masked(fill)
    before = run_actions(program, [staged(program), ROWS])
    assert isinstance(before, Program)
    after = run_actions(before, [act("trim", nest="t0")])
    assert isinstance(after, Program)
    ends = [n.src[1] for n in _nodes(after) if n.op == "forall" and n.attr[0] == "j"]
    assert ends
    assert {e.names for e in ends} == {("i",)}, "what is stored along j ends with the row"
    assert not any(n.op == "reduce" and n.attr[1] == ("j",) for n in _nodes(after))
    arrays = values(program)
    want, got = evaluate(program, arrays), evaluate(after, arrays)
    np.testing.assert_allclose(got["o"], want["o"], rtol=1e-12)


def test_dot_accumulates_halves_in_single() -> None:
    x, w = (input_(n, d, "bfloat16") for n, d in (("x", {"m": 4, "k": 8}), ("w", {"k": 8, "n": 5})))
    wide = sum_("k", cast(x, "float32") * cast(w, "float32"))
    narrow = sum_("k", x * w)
    program = algebra({"a": ("m", "n"), "b": ("m", "n")}, a=wide, b=narrow)
    tile = run_actions(program, [INLINED, *(act("match_dot", nest=n) for n in "ab")])
    assert isinstance(tile, Program)
    dots = [n for n in _nodes(tile) if n.op == "dot"]
    assert dots
    assert {d.attr[1] for d in dots} == {"float32"}
    assert {s.dtype for d in dots for s in d.src} == {"bfloat16"}
    back = tile.with_body(*map(as_reduce, tile.body))
    assert not any(n.op == "dot" for n in _nodes(back))
    arrays = values(program)
    want = evaluate(program, arrays)
    for form in (tile, back):
        np.testing.assert_allclose(evaluate(form, arrays)["a"], want["a"], rtol=1e-12)


def test_joined_gate_and_up_are_one_fold() -> None:
    tile = run_actions(swiglu(3, 4, 8), [INLINED, act("join", nest="y")])
    assert isinstance(tile, Program)
    assert total(tile) == 1


def test_reduces_of_a_new_state_join() -> None:
    """A state has a nest that starts it, with no reduce at all, and one that makes the next."""
    x = input_("x", {"t": 5, "k": 4})
    a, b = (sum_("k", x * input_(n, {"k": 4, "m": 3})) for n in "ab")
    state = carry("S", "float32", {"m": 3})
    loop = fold("t", [(0, 5)], {"S": (const(0.0, "float32"), state * 0.5 + a * b)})
    program = algebra({"y": ("m",)}, y=get(loop))
    tile = run_actions(program, [INLINED, act("join", nest="s0.0")])
    assert isinstance(tile, Program), tile
    assert total(tile) == 1
    arrays = values(program)
    np.testing.assert_allclose(evaluate(tile, arrays)["y"], evaluate(program, arrays)["y"], 1e-12)


def test_recurrences_are_loops_over_statements() -> None:
    tile = run_actions(delta_algebra(1, 2, 4, 3, 5), [INLINED])
    assert isinstance(tile, Program)
    (kernel,) = tile.body
    steps = [s for s in kernel.src if s.attr[0] == "t"]
    assert len(steps) == 1
    assert len(steps[0].src) > 3, "bounds, the output and the new state"
