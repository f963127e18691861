"""The rows by which sums follow earlier results: each right in blocks, and what has no row.

Rows of the data are masked whole, in part, before, between and behind others; one has a NaN.
"""

from __future__ import annotations

import numpy as np
import pytest
from programs import algebra

from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import abs_, exp, get, input_, log, map_, max_, maximum, reduce_, sum_, where
from autosched.ir.rules import cascade
from autosched.ir.rules.action import Illegal, act

I, J, E = 6, 12, 3
S, V = input_("s", {"i": I, "j": J}), input_("v", {"j": J, "e": E})
TOP, TOTAL, MEAN = max_("j", S), sum_("j", S), sum_("j", S) / float(J)
P = exp(S - TOP)
SINK = input_("sink", {"i": I})


def summed(body: Node) -> Node:
    return sum_("j", body * V)


def lse() -> Node:
    return TOP + log(sum_("j", exp(S - TOP)))


ROWS: dict[str, Node] = {
    "shifted": summed(exp(S - TOP)),
    "shifted by a sum": summed(exp(S + (-TOP))),
    "shifted by a sink": summed(exp(S - maximum(TOP, SINK))),
    "shifted by a sink alone, and a chain": summed(exp(S - maximum(SINK, TOP * 0.5))),
    "shifted by the sum of exponentials": summed(exp(S - lse())),
    "shifted and scaled by a row's value": summed(exp((S - TOP) * (abs_(SINK) + 0.1))),
    "shifted and divided": summed(map_("exp2", (S - TOP) / (abs_(SINK) + 0.1))),
    "shifted by the maximum of another value": summed(exp(S * 0.5 - max_("j", V * 0.1))),
    "shifted twice": summed(exp(S - TOP) * exp(V - max_("j", V))),
    "shifted, and squared": summed(exp(S - TOP) * exp(S - TOP)),
    "a softmax row, squared": sum_("j", (P / sum_("j", P)) * (P / sum_("j", P))),
    "drifting": summed(S - TOP),
    "drifting the other way": summed(TOP - S),
    "drifting by a sum": summed(S + TOTAL * 0.1),
    "drifting alone": sum_("j", S - TOP),
    "drifting under exponentials": summed(exp(S - TOP) * (S - TOP)),
    "entropy": sum_("j", exp(S - lse()) * (S - lse())),
    "values less their mean": summed(exp(S - TOP) * (V - sum_("j", V) / float(J))),
    "moments": sum_("j", (S - MEAN) * (S - MEAN)),
    "halved moments": sum_("j", (S - MEAN) * ((S - MEAN) * 0.5)),
    "moments with a value": summed(S - MEAN),
    "moments with themselves": sum_("j", (S - MEAN) * S),
    "constant": summed(S / (TOTAL + TOP)),
    "a signed maximum": summed(S / get(reduce_("argmax", "j", abs_(S), S), 1)),
}  # fmt: skip


def arrays(odd: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    s, v, sink = (rng.standard_normal(n) for n in ((I, J), (J, E), I))
    if odd:
        s[0], s[1, :6], s[2, 6:], s[3, 4] = -np.inf, -np.inf, -np.inf, np.nan
        s[4, 3:9] = -1000.0
    return {"s": s, "v": v, "sink": sink}


def of(value: Node) -> Program:
    return algebra({"o": value.names}, o=value)


def one_pass(program: Program, block: int) -> Program:
    made = cascade.apply(program, act("cascade", axis="j", block=block))
    assert isinstance(made, Program), made
    assert not [n for n in walk(*made.body) if n.op == "reduce" and n.attr[1] == ("j",)]
    return made


def results(program: Program, odd: bool) -> np.ndarray:
    given = {str(n.attr[0]): arrays(odd)[str(n.attr[0])] for n in program.inputs}
    return np.asarray(evaluate(program, given)["o"])


@pytest.mark.parametrize("odd", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("name", ROWS)
def test_blocks_mean_the_sum(name: str, odd: bool) -> None:
    """Masked scores where exponentials give them no weight; else -inf times a value is no sum."""
    program = of(ROWS[name])
    for block in (2, 5, 12):
        got, want = results(one_pass(program, block), odd), results(program, odd)
        assert np.array_equal(np.isnan(got), np.isnan(want)), f"block {block}: {got} not {want}"
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in ROWS if n.startswith("shifted")])
def test_infinite_scores_make_what_the_definition_makes(name: str) -> None:
    program = of(ROWS[name])
    for at in (0, 7, 11):
        given = arrays(False)
        given["s"][2, at], given["v"] = np.inf, np.abs(given["v"])
        given = {str(n.attr[0]): given[str(n.attr[0])] for n in program.inputs}
        want = np.asarray(evaluate(program, given)["o"])
        for block in (2, 5):
            got = evaluate(one_pass(program, block), given)["o"]
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["moments", "moments with themselves"])
def test_moments_keep_their_digits(name: str) -> None:
    """Of values far from 0 the spread is a small difference of large sums, were it one."""
    s = arrays(False)["s"] + 1e8
    got = evaluate(one_pass(of(ROWS[name]), 5), {"s": s})["o"]
    np.testing.assert_allclose(got, s.var(1) * J, rtol=1e-6)


REFUSED: dict[str, tuple[Node, str]] = {
    "a test": (summed(where(S > MEAN, S, 0.0)), "a test of a value"),
    "a maximum": (max_("j", abs_(S - MEAN)), "a max of values"),
    "a scale": (summed(exp((S - TOP) / TOTAL)), "a product with an earlier result"),
    "an own scale": (summed(exp(S * TOTAL)), "a product with an earlier result"),
    "a function": (summed(map_("tanh", S - TOP)), "tanh of a value"),
    "a division": (summed(1.0 / (S - TOP)), "a division by what varies"),
    "a varying factor": (summed(exp((S - TOP) * V)), "a factor that varies"),
    "two differences": (summed((S - TOP) * (S - MEAN)), "two differences"),
    "a weighted square": (summed((S - MEAN) * (S - MEAN)), "two differences"),
    "a choice": (summed(where(V > 0.0, S - TOP, 1.0)), "none is 0"),
    "a difference of differences": (
        summed((S - TOP) - exp(S - TOP)), "two values that vary"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_row_says_why(name: str) -> None:
    value, why = REFUSED[name]
    found = cascade.apply(of(value), act("cascade", axis="j", block=4))
    assert isinstance(found, Illegal)
    assert found.code == "NO_CORRECTION"
    assert why in found.why


def test_sums_of_one_product_share_a_pass() -> None:
    """Reduces that only share a value along the axis, which is dear, run in one loop."""
    s = sum_("d", input_("q", {"i": I, "d": 4}) * input_("k", {"j": J, "d": 4}))
    p = maximum(s, 0.0)
    made = one_pass(of(sum_("j", p * V) / sum_("j", p)), 5)
    assert sum(n.op == "fold" for n in walk(*made.body)) == 1


def test_sums_of_inputs_alone_are_no_chain() -> None:
    found = cascade.apply(of(sum_("j", S) / max_("j", S)), act("cascade", axis="j", block=4))
    assert isinstance(found, Illegal) and found.code == "NO_CHAIN"
