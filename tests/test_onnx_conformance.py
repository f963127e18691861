"""The ONNX project's own node tests: each operator of the table against its expected outputs.

Every case whose operators are all in the table is imported and interpreted. A case may stay
outside only for a reason in `REASONS`; anything else that is not right is a failure.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.defs
import pytest
from onnx_models import imported, run_graph

from autosched.ir.frontend.call import DTYPES_BY_NUMBER
from autosched.ir.frontend.table import OPSETS, TABLE
from autosched.ir.graph import ModelError, ModelGraph

# Why a case can't be all ours: a part of the coverage line's reason, or of the error.
REASONS = {
    "its patches overlap or are padded": "Conv is ours only where patches do not overlap",
    "in training mode": "training is not what we tune",
}
# Roundings that a case of this type may be off by: ours rounds once, the reference at each step.
SLACK = {"bfloat16": 2 * 2.0**-7, "float16": 2 * 2.0**-10}


@cache
def cases() -> dict[str, list[Any]]:
    """The cases that should be ours, by operator; those of several nodes by the last one's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        everything = collect_testcases(None)
    found: dict[str, list[Any]] = {}
    for case in everything:
        nodes = case.model.graph.node
        if case.name.endswith("_old") or not all(n.op_type in TABLE for n in nodes):
            continue
        if not _types_are_ours(case):
            continue
        op = nodes[0].op_type if len(nodes) == 1 else "written out: " + _family(case.name)
        found.setdefault(op, []).append(case)
    return found


def _family(name: str) -> str:
    return re.sub(r"^test_|_expanded.*$", "", name).split("_")[0]


def _types_are_ours(case: Any) -> bool:
    ends = (*case.model.graph.input, *case.model.graph.output)
    return all(
        i.type.HasField("tensor_type") and i.type.tensor_type.elem_type in DTYPES_BY_NUMBER
        for i in ends
    )


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model under an opset that we take, where its operators mean the same there."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for opset in model.opset_import:
        if (
            opset.domain == ""
            and opset.version < OPSETS[0]
            and all(_since(n, opset.version) == _since(n, OPSETS[0]) for n in model.graph.node)
        ):
            opset.version = OPSETS[0]
    return model


def _since(node: onnx.NodeProto, version: int) -> int:
    return int(onnx.defs.get_schema(node.op_type, version, node.domain).since_version)


def _with_constants(model: onnx.ModelProto, feed: dict[str, Any], scalars: bool) -> Any:
    """The model with shapes, axes and the like as constants, as every export has them."""
    names = [i.name for i in model.graph.input]
    for at, name in enumerate(names):
        array = feed[name]
        whole = array.dtype.kind in "iub" and array.ndim <= 1 and (at or scalars)
        if not whole and not (scalars and array.ndim == 0):
            continue
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        info = next(i for i in model.graph.input if i.name == name)
        model.graph.input.remove(info)
    return model


def _graph(model: onnx.ModelProto, feed: dict[str, Any]) -> ModelGraph:
    """The model without islands if there is a way: as it is, or with its parameters constant."""
    last: ModelGraph | ModelError | None = None
    for attempt in range(3):
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        try:
            last = imported(_with_constants(copy, feed, attempt == 2) if attempt else copy)
        except ModelError as error:
            last = error
            continue
        if not last.islands:
            return last
    if isinstance(last, ModelError):
        raise last
    assert last is not None
    return last


def _problem(case: Any) -> str:
    """ "" if the case comes out right, else what is wrong."""
    model = _modern(case.model)
    given, expected = ([_array(v) for v in side] for side in case.data_sets[0])
    feed = dict(zip((i.name for i in model.graph.input), given))
    graph = _graph(model, feed)
    if graph.islands:
        return "; ".join(o.reason for o in graph.coverage.outside)
    got = run_graph(graph, {n.attr[0]: feed[n.attr[0]] for n in graph.inputs})
    for value, want in zip(graph.outputs, expected):
        have = got[value.name]
        if have.shape != want.shape or value.node.dtype != want.dtype.name:
            return f"{value.name}: {value.node.dtype}{have.shape}, wants {want.dtype}{want.shape}"
        if want.dtype.kind in "biu":
            if not np.array_equal(have, want):
                return f"{value.name}: {np.sum(have != want)} of {want.size} differ"
            continue
        slack = max(case.rtol, SLACK.get(want.dtype.name, 0.0))
        close = np.isclose(have.astype(np.float64), want.astype(np.float64), rtol=slack,
                           atol=max(case.atol, slack * 1e-2), equal_nan=True)  # fmt: skip
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


@pytest.mark.parametrize("op", sorted(cases()))
def test_operator_means_what_onnx_says(op: str, tally: dict[str, Counter[str]]) -> None:
    failures = []
    for case in cases()[op]:
        problem = _problem(case)
        allowed = any(reason in problem for reason in REASONS)
        tally.setdefault(op, Counter())["right" if not problem else "outside"] += 1
        if problem and not allowed:
            failures.append(f"{case.name}: {problem}")
    assert not failures, "\n".join(failures)


def test_almost_all_cases_are_ours() -> None:
    """A table that lost operators would pass the tests above by having nothing to check."""
    assert len(TABLE) >= 120
    assert sum(map(len, cases().values())) >= 1150
    assert {"Attention", "RotaryEmbedding", "SwiGLU", "Einsum", "GatherND"} <= set(cases())
