"""exp2: the same values by powers of two, with no more multiplications."""

from __future__ import annotations

import numpy as np
import programs as P

from autosched.ir.interp import evaluate
from autosched.ir.node import Program, walk
from autosched.ir.rules import cascade, exp2
from autosched.ir.rules.action import Illegal, act


def count(program: Program, fn: str) -> int:
    return sum(n.op == "map" and n.attr[0] == fn for n in walk(*program.body))


def test_the_factor_joins_the_scale() -> None:
    before = P.attention(1, 2, 19, 16)
    after = exp2.apply(before, act("exp2"))
    assert isinstance(after, Program)
    assert (count(after, "exp"), count(after, "exp2")) == (0, 1)
    assert count(after, "mul") == count(before, "mul")
    rng = np.random.default_rng(1)
    inputs = {n.attr[0]: rng.standard_normal([e for _, e in n.attr[1]]) for n in before.inputs}
    want, got = evaluate(before, inputs)["o"], evaluate(after, inputs)["o"]
    assert np.allclose(got, want, rtol=1e-14)
    assert not isinstance(cascade.apply(after, act("cascade", axis="j", block=8)), Illegal)


def test_where_nothing_scales_it_is_a_product() -> None:
    after = exp2.apply(P.swiglu(3, 4, 5), act("exp2"))
    assert isinstance(after, Program) and count(after, "exp2") == 1


def test_refusals() -> None:
    gemm = P.gemm(3, 4, 5)
    made = exp2.apply(gemm, act("exp2"))
    assert isinstance(made, Illegal) and made.code == "NO_EXP"
    assert exp2.propose(gemm) == ()
    tile = Program("tile", gemm.inputs, gemm.outputs, gemm.body)
    refused = exp2.apply(tile, act("exp2"))
    assert isinstance(refused, Illegal) and refused.code == "NOT_ALGEBRA"
