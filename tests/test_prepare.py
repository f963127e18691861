"""Factors that a sum does not need leave it, where that saves work."""

from __future__ import annotations

import numpy as np

from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Output, Program, walk
from autosched.ir.ops import exp, input_, max_, sqrt, sum_
from autosched.ir.prepare import prepare


def quotients_below_sums(root: Node) -> int:
    return sum(
        m.op == "map" and m.attr[0] == "div"
        for n in walk(root)
        if n.op == "reduce" and n.attr[0] == "sum"
        for m in walk(n.src[0])
    )


def softmax_times_values(keys: int, width: int) -> tuple[tuple[Node, Node], Node, Node]:
    s = input_("s", {"i": 5, "j": keys})
    v = input_("v", {"j": keys, "e": width})
    e = exp(s - max_("j", s))
    p = e / sum_("j", e)
    return (s, v), p, sum_("j", p * v)


def same(inputs: tuple[Node, ...], before: tuple[Node, ...], after: tuple[Node, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays = {n.attr[0]: rng.standard_normal([e for _, e in n.attr[1]]) for n in inputs}
    got = []
    for body in (before, after):
        outs = tuple(
            Output(f"y{k}", n.names, "float32", tuple(e for _, e in n.axes))
            for k, n in enumerate(body)
        )
        got.append(evaluate(Program("algebra", inputs, outs, body), arrays))
    for name in got[0]:
        np.testing.assert_allclose(got[1][name], got[0][name], rtol=1e-12)


def test_a_divisor_leaves_the_sum() -> None:
    inputs, _, out = softmax_times_values(keys=7, width=6)
    (after,) = prepare((out,))
    assert quotients_below_sums(out) == 1 and quotients_below_sums(after) == 0
    same(inputs, (out,), (after,))


def test_it_stays_where_the_quotient_is_smaller() -> None:
    inputs, _, out = softmax_times_values(keys=7, width=8)
    (after,) = prepare((out,))
    assert quotients_below_sums(after) == 1
    same(inputs, (out,), (after,))


def test_it_stays_where_the_quotient_is_read_twice() -> None:
    inputs, p, out = softmax_times_values(keys=7, width=6)
    after = prepare((out, p))
    assert quotients_below_sums(after[0]) == 1
    same(inputs, (out, p), after)


def test_constants_and_divisors_leave_together() -> None:
    x = input_("x", {"i": 4, "j": 9})
    norm = sqrt(sum_("j", x * x))
    out = sum_("j", x / norm * (x * 0.5))
    (after,) = prepare((out,))
    assert quotients_below_sums(after) == 0
    same((x,), (out,), (after,))
