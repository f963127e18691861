"""Random programs through random schedules and compiled kernels, against float64; and the cases
that once were wrong.

`python -m autosched.tools.stress` goes on for hours where this stops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from autosched.codegen.reference import reference
from autosched.ir.interp import evaluate
from autosched.ir.node import Program, walk
from autosched.ir.ops import const, exp, input_, max_, sum_
from autosched.ir.schedule import Schedule
from autosched.ir.target import Target, host_target
from autosched.ir.text import parse, to_text
from autosched.tools import backends, stress_jobs
from autosched.tools.backends import Broken, Refused, Result, Trial
from autosched.tools.random_programs import program_of, random_program
from autosched.tools.shrink import shrunk, size, smaller
from autosched.tools.stress import Case, read_case
from autosched.tools.stress_jobs import check, forms, problem

SEEDS = {"tvm": 48, "triton": 48}
CHUNK = 8  # programs of one library
# Not right yet, each with its reason: the table only gets shorter.
OPEN = {("triton", 3): "skip leaves a step of a loop unbound that a store of another kernel reads"}
CASES = sorted((Path(__file__).parent / "cases").glob("*.txt"))


@pytest.mark.parametrize(
    ("name", "first"), [(name, n) for name, end in SEEDS.items() for n in range(0, end, CHUNK)]
)
def test_kernels_equal_the_definition(name: str, first: int) -> None:
    seeds = [s for s in range(first, first + CHUNK) if (name, s) not in OPEN]
    tally = check(name, [random_program(s) for s in seeds], 1, seeds)
    assert tally.trials >= CHUNK
    assert not tally.findings, "\n".join(f"seed {f.seed}, {f.form}: {f.why}"
                                         for f in tally.findings)  # fmt: skip


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_what_was_wrong_is_right(path: Path, name: str) -> None:
    """On either backend, whichever it was wrong on."""
    case = read_case(path)
    tally = check(name, [case.program], case.schedules, [case.seed])
    assert not tally.findings, "\n".join(f"{f.form}: {f.why}" for f in tally.findings)


# ---- programs ----------------------------------------------------------------------------------


def test_a_seed_yields_one_program() -> None:
    assert random_program(5) == random_program(5)
    assert len({random_program(seed) for seed in range(40)}) == 40


def test_programs_are_texts_and_use_the_vocabulary() -> None:
    ops, monoids, merged = set[str](), set[str](), 0
    for seed in range(120):
        program = random_program(seed)
        assert parse(to_text(program)) == program
        for node in walk(*program.body):
            ops.add(node.op)
            monoids |= {node.attr[0]} if node.op == "reduce" else set()
        merged += sum("blocks" in f.name for f in forms(program, host_target()))
    assert ops >= {"map", "take", "reaxis", "reduce", "scan", "iota", "get", "const"}
    assert monoids >= {"sum", "max", "min", "argmax", "any"}
    assert merged >= 100


# ---- what counts as wrong ----------------------------------------------------------------------


class Wrong:
    """A backend whose kernels forget the last element wherever an exponential is taken."""

    name, narrow = "wrong", False

    def __init__(self) -> None:
        self.target: Target = host_target()

    def quick(self, program: Program, schedule: Schedule) -> bool:
        return True

    def run(self, trials: Sequence[Trial]) -> list[Result]:
        return [self._ran(t) for t in trials]

    def _ran(self, trial: Trial) -> Result:
        outputs = evaluate(trial.program, dict(trial.inputs))
        out = {o.name: np.array(outputs[o.name], o.dtype) for o in trial.program.outputs}
        for array in out.values():
            if any(n.op == "map" and n.attr[0] == "exp" for n in walk(*trial.program.body)):
                array.reshape(-1)[-1] *= 1.01
        return out


def weighted() -> Program:
    s, v = input_("s", {"i": 5, "j": 12}), input_("v", {"j": 12, "e": 3})
    p = exp(s - max_("j", s)) * 2.0
    return program_of([(sum_("j", p * v) + 1.0, ("i", "e")), (sum_("j", s), ("i",))])


def test_wrong_kernels_are_found_and_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", {"wrong": Wrong})
    program = weighted()
    found = check("wrong", [program], 1, [0])
    assert found.findings and "relative error" in found.findings[0].why
    small = shrunk(program, lambda p: bool(check("wrong", [p], 1, [0]).findings))
    assert size(small) < size(program)
    assert len(list(walk(*small.body))) == 2, to_text(small)
    assert [n.op for n in walk(*small.body)] == ["input", "map"]
    assert {e for n in walk(*small.body) for _, e in n.free} == {1}


def test_smaller_programs_are_programs() -> None:
    for seed in range(6):
        program = random_program(seed)
        for n, candidate in enumerate(smaller(program)):
            assert parse(to_text(candidate)) == candidate
            if n == 40:
                break


def test_rounding_explains_no_more_than_it_causes() -> None:
    """A difference of equal numbers may be off by their rounding, and by nothing else."""
    x = input_("x", {"i": 50})
    program = program_of([((x + 1000.0) - const(1000.0, "float32"), ("i",))])
    data = reference(program, 0)
    want = np.asarray(data.outputs["y0"])
    in_single = (data.inputs["x"] + np.float32(1000.0)) - np.float32(1000.0)
    assert not problem(program, data, {"y0": in_single})
    assert np.linalg.norm(in_single - want) > 1e-5 * np.linalg.norm(want)
    assert problem(program, data, {"y0": (want + 1e-2).astype("f4")})
    assert problem(program, data, {"y0": np.full(50, math.nan, "f4")})


def test_what_has_no_result() -> None:
    program = weighted()
    data = reference(program, 0)
    assert problem(program, data, Refused("packs too much")) == ""
    assert problem(program, data, Broken("crashed")) == "crashed"


def test_cases_are_files(tmp_path: Path) -> None:
    case = Case("tvm", 3, 4, "y0: relative\nerror", weighted())
    path = tmp_path / case.file
    path.write_text(case.text, "utf-8")
    again = read_case(path)
    assert (again.program, again.seed, again.schedules) == (case.program, 3, 4)
    assert again.why == "y0: relative error"


def test_an_unknown_backend_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="tvm"):
        stress_jobs.backend("cuda")
