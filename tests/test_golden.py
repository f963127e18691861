"""Golden texts: a program after one action of each rule, and the source that is emitted.

A change here is meant to be read: `pytest tests/test_golden.py --update-golden`, then git diff.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from programs import attention, gemm, softmax, swiglu
from split_programs import dealt
from tile_programs import delta_algebra

from autosched.codegen.build import Lowered, Request, lower
from autosched.ir.node import Program
from autosched.ir.rules import RULES
from autosched.ir.rules.action import Action, act
from autosched.ir.schedule import Schedule, run_actions
from autosched.ir.target import parse_target
from autosched.ir.text import parse, to_text


@dataclass(frozen=True)
class Case:
    """A definition, the actions that come before, and the one whose result is looked at."""

    program: Callable[[], Program]
    before: tuple[Action, ...]
    action: Action


def product() -> Program:
    return gemm(7, 32, 24)


INLINED = act("inline", keep=[])
COLUMNS = act("split", nest="y", axis="n", size=16, into=["n.o", "n.i"])
LANES = act("split", nest="y", axis="n.i", size=8, tail="exact", into=["n.u", "n.l"])
ROWS = act("split", nest="y", axis="m", size=3, into=["m.o", "m.u"])
BOUND = act(
    "bind", nest="y",
    loops=["n.o:grid", "m.o:grid", "m.u:unroll", "n.u:unroll", "n.l:lane"],
)  # fmt: skip
PACKED = act("place", nest="y", operand="w", home="packed")
FACTS = [["warps", 4], ["stages", 3]]
BLOCKED = act(
    "tile", keep=[], narrow=True, precision="tf32",
    plans=[[[["m", 16], ["n", 16]], [["k", 16]], FACTS]],
)  # fmt: skip
ONE_PASS = act(
    "tile", keep=[], narrow=True, precision="",
    plans=[[[["b", 1], ["h", 1], ["i", 16], ["e", 0]], [["d", 0]], FACTS]],
)  # fmt: skip

PARTS = act("split_reduce", axis="k", block=8, parts=2)
IN_PARTS = act(
    "tile", keep=[16], narrow=True, precision="", joined=True,
    plans=[[[["m", 16], ["n", 16], ["part.k", 1]], [["k.in", 0]], FACTS],
           [[["m", 16], ["n", 16]], [], FACTS]],
)  # fmt: skip
DEALT = tuple(dealt(product(), "k", 8, [["m", 16], ["n", 16]], 4))


def causal() -> Program:
    return attention(1, 2, 40, 16)


CASES: dict[str, Case] = {
    "inline": Case(lambda: softmax(5, 12), (), act("inline", keep=[])),
    "split": Case(product, (INLINED,), COLUMNS),
    "split_overlapping": Case(product, (INLINED, COLUMNS, LANES), ROWS),
    "bind": Case(product, (INLINED, COLUMNS, LANES, ROWS), BOUND),
    "place": Case(product, (INLINED, COLUMNS, LANES, ROWS, BOUND), PACKED),
    "rfactor": Case(product, (INLINED,), act("rfactor", nest="y", axis="k", lanes=8, unroll=2)),
    "join": Case(lambda: swiglu(4, 8, 12), (INLINED,), act("join", nest="y")),
    "cascade": Case(lambda: attention(1, 2, 4, 3, j=6), (), act("cascade", axis="j", block=2)),
    "trim": Case(
        lambda: attention(1, 1, 4, 3),
        (act("inline", keep=[5, 6, 8, 11]), act("bind", loops=["b:grid", "h:grid", "i:serial"])),
        act("trim", nest="t0"),
    ),
    "match_dot": Case(product, (INLINED,), act("match_dot", nest="y")),
    "exp2": Case(lambda: attention(1, 2, 4, 3, j=6), (), act("exp2")),
    "tile": Case(product, (), BLOCKED),
    "skip": Case(
        causal, (act("cascade", axis="j", block=16), ONE_PASS),
        act("skip", axis="j.blk.s", whole=True),
    ),
    "stagger": Case(
        lambda: attention(1, 1, 8, 4, j=32, mask=None),
        (act("cascade", axis="j", block=16), ONE_PASS),
        act("stagger", axis="j.blk.s"),
    ),
    "split_reduce": Case(product, (), PARTS),
    "arrive": Case(product, (PARTS, IN_PARTS), act("arrive", axis="part.k")),
    "stream": Case(product, (), DEALT[0]),
    "share": Case(product, DEALT[:-1], DEALT[-1]),
    "inline_fold": Case(lambda: delta_algebra(1, 2, 5, 3, 4), (), act("inline", keep=[7])),
}


def apply(program: Program, actions: tuple[Action, ...]) -> Program:
    result = run_actions(program, actions)
    assert isinstance(result, Program), result
    return result


def test_every_rule_has_a_golden_text():
    assert set(RULES) == {case.action.rule for case in CASES.values()}


@pytest.mark.parametrize("name", CASES)
def test_program_after_one_action(name, golden):
    case = CASES[name]
    before = apply(case.program(), case.before)
    after = apply(before, (case.action,))
    assert parse(to_text(after)) == after
    golden(name, f"{to_text(before)}\n# {case.action}\n\n{to_text(after)}")


def test_emitted_source(golden):
    actions = (INLINED, COLUMNS, LANES, ROWS, BOUND, PACKED)
    schedule = Schedule("by hand", actions)
    lowered = lower(Request(product(), schedule, "product"), parse_target("cpu:x86-64-v3"))
    assert isinstance(lowered, Lowered), lowered
    golden("emitted", lowered.source)
