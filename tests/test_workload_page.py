"""The page of workloads: current, complete, and honest about what nothing serves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autosched.datasets.workloads import Workload, workloads
from autosched.datasets.workloads.define import FEATURES, workload
from autosched.ir.node import Program
from autosched.ir.verify import problems
from autosched.tools.workload_page import FAMILIES, PAGE, SYSTEMS, faults, meaning, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(workloads()), (
        "docs/workloads.md is stale: run python -m autosched.tools.workload_page"
    )


def test_every_core_row_is_served() -> None:
    assert faults(workloads()) == ()


def test_a_core_row_without_a_workload_is_a_fault() -> None:
    left = {name: w for name, w in workloads().items() if "D18" not in w.systems}
    assert faults(left) == ("core row D18 (HGRN) has no workload",)


def test_a_workload_of_an_unknown_row_is_a_fault() -> None:
    stray = replace(next(iter(workloads().values())), name="stray", systems=("Z9",))
    assert faults({**workloads(), "stray": stray}) == (
        "workload stray serves Z9, which is no row",
    )


def test_rows_are_listed_once_and_those_out_of_scope_say_why() -> None:
    codes = [s.code for s in SYSTEMS]
    assert len(set(codes)) == len(codes)
    assert all(any(c.startswith(f) for f in FAMILIES) for c in codes)
    assert all(s.note for s in SYSTEMS if s.standing == "out")
    assert {s.standing for s in SYSTEMS} == {"core", "nice", "out"}
    said = page(workloads())
    assert all(f"| {s.code} | {s.name} |" in said for s in SYSTEMS)


@pytest.mark.parametrize("name", sorted(workloads()))
def test_a_workload_is_a_legal_program_at_its_real_shapes(name: str) -> None:
    found: Workload = workloads()[name]
    assert meaning(found)
    for shape in found.shapes:
        assert problems(found.program(shape)) == (), shape


def test_features_are_those_of_the_legend() -> None:
    assert all(set(w.features) <= set(FEATURES) for w in workloads().values())

    def unheard_of(*, n: int) -> Program:
        raise NotImplementedError

    with pytest.raises(ValueError, match=r"unknown features \['Z'\]"):
        workload("A1", "C Z", {"n": 1})(unheard_of)
    assert "unheard_of" not in workloads()
