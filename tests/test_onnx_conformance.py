"""The ONNX project's own node tests: each operator of the table against its expected outputs.

Every case whose operators are all in the table is imported and interpreted. A case may stay
outside only for a reason in `REASONS`; anything else that is not right is a failure.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from onnx_models import run_graph

from autosched.ir.frontend.table import TABLE
from autosched.ir.graph import ModelError
from autosched.tools.onnx_cases import Case, cases, import_case

# Why a case can't be all ours: a part of the coverage line's reason, or of the error.
REASONS = {
    "draws random numbers": "kernels are functions of their operands",
    "older than the first known": "Scan had a batch dimension until opset 8",
}
# Halfway between two integers in float32, as kernels and ONNX see it, is not so in float64.
TIES = {"DynamicQuantizeLinear", "written out: dynamicquantizelinear"}
# Roundings that a case of this type may be off by: ours rounds once, the reference at each step.
RTOL, ATOL = 1e-3, 1e-7  # ONNX's own
SLACK = {"bfloat16": 2 * 2.0**-7, "float16": 2 * 2.0**-10}


@cache
def by_family() -> dict[str, list[Case]]:
    """The cases that should be ours, by operator; those of several nodes by what they write out."""
    found: dict[str, list[Case]] = {}
    for case in cases():
        found.setdefault(case.family, []).append(case)
    return found


def _problem(case: Case) -> str:
    """ "" if the case comes out right, else what is wrong."""
    try:
        graph = import_case(case)
    except ModelError as error:
        return str(error)
    if graph.islands:
        return "; ".join(o.reason for o in graph.coverage.outside)
    got = run_graph(graph, {n.attr[0]: case.feed[n.attr[0]] for n in graph.inputs})
    for value, want in zip(graph.outputs, case.expected):
        have = got[value.name]
        if have.shape != want.shape or value.node.dtype != want.dtype.name:
            return f"{value.name}: {value.node.dtype}{have.shape}, wants {want.dtype}{want.shape}"
        if want.dtype.kind in "biu":
            apart = np.abs(have.astype(np.float64) - want.astype(np.float64)).max(initial=0)
            if apart > (case.family in TIES):
                return f"{value.name}: {np.sum(have != want)} of {want.size} differ"
            continue
        slack = max(RTOL, SLACK.get(want.dtype.name, 0.0))
        close = np.isclose(have.astype(np.float64), want.astype(np.float64), rtol=slack,
                           atol=max(ATOL, slack * 1e-2), equal_nan=True)  # fmt: skip
        if not close.all():
            return f"{value.name}: {np.sum(~close)} of {want.size} differ"
    return ""


@pytest.fixture(scope="module")
def tally() -> Any:
    counts: dict[str, Counter[str]] = {}
    yield counts
    total = sum(counts.values(), Counter[str]())
    if total:
        print(f"\nconformance: {total['right']} of {total.total()} cases right")
        for op, count in sorted(counts.items()):
            print(f"  {op:32} {count['right']:4} of {count.total():4}")


@pytest.mark.parametrize("op", sorted(by_family()))
def test_operator_means_what_onnx_says(op: str, tally: dict[str, Counter[str]]) -> None:
    failures = []
    for case in by_family()[op]:
        problem = _problem(case)
        allowed = any(reason in problem for reason in REASONS)
        tally.setdefault(op, Counter())["right" if not problem else "outside"] += 1
        if problem and not allowed:
            failures.append(f"{case.name}: {problem}")
    assert not failures, "\n".join(failures)


def test_almost_all_cases_are_ours() -> None:
    """A table that lost operators would pass the tests above by having nothing to check."""
    assert len(TABLE) >= 145
    assert sum(map(len, by_family().values())) >= 1500
    assert {"Attention", "RotaryEmbedding", "SwiGLU", "Einsum", "GatherND", "LinearAttention",
            "CausalConvWithState", "FlexAttention", "QuantizeLinear"} <= set(by_family())
