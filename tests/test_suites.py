"""The suites' rows: what they compute, at which sizes, and that logs already know some of them."""

from __future__ import annotations

import numpy as np
import pytest

from autosched.datasets import suites as loader
from autosched.datasets.shipped import shipped_records
from autosched.datasets.suites import SuiteError, suite
from autosched.datasets.workloads.masks import MASKS
from autosched.ir.interp import evaluate
from autosched.ir.target import parse_target

DENSE = suite("dense")


def test_every_row_is_a_program_with_one_output_and_a_name_of_its_own():
    rows = DENSE.rows
    assert len({r.name for r in rows}) == len(rows) > 80
    for row in rows:
        program = row.program()
        assert len(program.outputs) == 1 and row.peers
        for name, array in row.arrays().items():
            (node,) = [n for n in program.inputs if n.attr[0] == name]
            assert array.shape == tuple(e for _, e in node.attr[1])


def test_the_rows_that_were_asked_for_are_there():
    groups = DENSE.groups
    layers = groups["gemm_models"].rows
    assert len(layers) == 24 == len({r.source for r in layers})
    square = {(r.sizes["m"], r.sizes["n"], r.sizes["k"]) for r in groups["gemm"].rows}
    assert square == {(4096,) * 3, (8192,) * 3, (4096, 28672, 8192), (512, 4096, 4096),
                      (64, 4096, 4096), (16, 14336, 4096)}  # fmt: skip
    assert {r.sizes["d"] for r in groups["attention"].rows} == {64, 128, 256}
    published = {m for m in MASKS if m not in (
        "sink_local", "strided", "segment_causal", "blocks", "variable_blocks", "block_lists",
        "per_head")}  # fmt: skip
    assert {r.mask for r in groups["masks"].rows} == published
    keys = {r.sizes["j"] for r in groups["decode"].rows}
    assert min(keys) == 8192 and max(keys) == 131072
    assert {sum(r.cut) for r in groups["documents"].rows} == {12288, 65536}


def test_groups_take_turns():
    first = [r.group for r in DENSE.rows[:8]]
    assert sorted(first) == sorted(g for g in DENSE.groups if not DENSE.groups[g].hidden)


def test_the_shipped_logs_know_some_rows():
    _, texts = shipped_records(parse_target("sm_90").key)
    assert sum(r.program().key in texts for r in DENSE.rows) >= 8


def test_documents_are_cut_where_the_file_says():
    (row, *_) = DENSE.groups["documents"].rows
    start = row.arrays()["start"]
    edges = [*np.unique(start), len(start)]
    assert np.diff(edges).tolist() == list(row.cut)


def test_scales_of_blocks_and_rows_say_the_same_where_they_are_equal():
    define = loader.DEFINITIONS["scaled_gemm"]
    rng = np.random.default_rng(0)
    sizes = {"m": 3, "n": 130, "k": 256, "dtype": "float32"}
    x, w = rng.integers(-4, 5, (3, 256)) / 4, rng.integers(-4, 5, (130, 256)) / 4
    given = {"x": x, "w": w}
    plain = evaluate(define(scales="tensor", **sizes), {**given, "sx": 2.0, "sw": 0.5})["y"]
    rows = evaluate(define(scales="row", **sizes),
                    {**given, "sx": np.full(3, 2.0), "sw": np.full(130, 0.5)})["y"]
    blocks = evaluate(define(scales="block", **sizes),
                      {**given, "sx": np.full((3, 2), 2.0), "sw": np.full((2, 2), 0.5)})["y"]
    np.testing.assert_allclose(plain, x @ w.T, rtol=1e-6)
    np.testing.assert_allclose(rows, plain, rtol=1e-6)
    np.testing.assert_allclose(blocks, plain, rtol=1e-6)


def test_mistakes_are_told():
    with pytest.raises(SuiteError, match="no suite is called 'sparse'; there is: dense"):
        suite("sparse")
