"""A suite's peers and races on a CPU: what they compute, what is refused, who visits when."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from autosched.codegen.gpu_check import compare
from autosched.codegen.gpu_task import load_task, make_task
from autosched.codegen.reference import write_given, write_program
from autosched.datasets.suites import SuiteRow, suite
from autosched.datasets.workloads.masks import masked_in
from autosched.tools import gpu_peers_library as library
from autosched.tools import suite_jobs
from autosched.tools.gpu_peers_masks import area, predicate
from autosched.tools.gpu_peers_table import PEERS
from autosched.tools.suite_bench import run
from autosched.tools.suite_folder import read_results
from autosched.tools.suite_options import Options
from autosched.tools.suite_race import Plan, order, race

DENSE = suite("dense")
CPU = torch.device("cpu")


def small(row: SuiteRow, **sizes: Any) -> SuiteRow:
    return replace(row, sizes=MappingProxyType({**row.sizes, **sizes}), cut=())


def task_of(row: SuiteRow) -> Any:
    return make_task(row.program(), 0, CPU, row.arrays())


# ---- peers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", DENSE.groups["gemm_epilogue"].rows, ids=lambda r: r.name)
def test_torch_operators_compute_what_the_definition_says(row):
    row = small(row, m=24, n=40, k=32, dtype="float32")
    task = task_of(row)
    answer = library.eager(task.inputs, row.to_json())()
    assert compare(answer, task.outputs["y"], "float32").ok
    if "cublaslt" in row.peers:
        answer = library.fused_gelu(task.inputs, row.to_json())()  # on a CPU not by tanh
        assert compare(answer, task.outputs["y"], "bfloat16").ok


@pytest.mark.parametrize("layout", ["nk", "kn"])
def test_products_in_both_layouts(layout):
    row = small(DENSE.groups["gemm"].rows[0], m=8, n=6, k=4, layout=layout, dtype="float32")
    task = task_of(row)
    answer = library.gemm(task.inputs, row.to_json())()
    assert compare(answer, task.outputs["y"], "float32").ok


@pytest.mark.parametrize("scales", ["tensor", "row", "block"])
def test_scaled_products(scales, monkeypatch):
    """What torch is given, in its own words; a CPU multiplies with few kinds of scales itself."""
    rows = DENSE.groups["gemm_fp8"].rows
    row = small(next(r for r in rows if r.sizes["scales"] == scales), m=32, n=256, k=256)
    task = task_of(row)

    def by_hand(x, w, sx, recipe_x, sw, recipe_w, output_dtype, use_fast_accum):
        names = {"tensor": ("TensorWise",) * 2, "row": ("RowWise",) * 2,
                 "block": ("BlockWise1x128", "BlockWise128x128")}  # fmt: skip
        assert (recipe_x.name, recipe_w.name) == names[scales]
        if scales == "block":
            assert sx.stride(0) == 1 and w.stride(0) == 1
            sx, sw = (s.repeat_interleave(128, -1 if s is sx else 0) for s in (sx, sw))
            sw = sw.repeat_interleave(128, 1)
        assert not use_fast_accum
        return ((x.double() * sx) @ (w.double() * sw)).to(output_dtype) if scales == "block" else (
            (x.double() @ w.double()) * sx * sw).to(output_dtype)  # fmt: skip

    monkeypatch.setattr(library.F, "scaled_mm", by_hand)
    answer = library.scaled_mm(task.inputs, row.to_json())()
    assert compare(answer, task.outputs["y"], "bfloat16").ok


@pytest.mark.parametrize("mask, i, j", [("causal", 12, 12), ("full", 12, 12), ("full", 1, 20)])
def test_attention_with_grouped_heads(mask, i, j):
    row = small(DENSE.groups["decode"].rows[0], b=2, h=4, g=2, i=i, j=j, d=8, mask=mask,
                dtype="float32")  # fmt: skip
    task = task_of(row)
    assert compare(library.math(task.inputs, row.to_json())(), task.outputs["o"], "float32").ok
    if i == 1:
        packed = library._packed(task.inputs, row.to_json(), library.SDPBackend.MATH)
        assert compare(packed(), task.outputs["o"], "float32").ok


def test_peers_refuse_what_they_cannot_say():
    windowed = next(r for r in DENSE.groups["masks"].rows if r.mask == "sliding_window")
    with pytest.raises(ValueError, match="no mask sliding_window"):
        library.cudnn({}, windowed.to_json())
    prefill = DENSE.groups["attention"].rows[0].to_json()
    q = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match="only where there is one query"):
        library.flash_packed({"q": q, "k": q, "v": q}, prefill)
    gated = next(r for r in DENSE.rows if r.family == "gated_pair")
    with pytest.raises(ValueError, match="not what this row computes"):
        library.gemm({}, gated.to_json())


def test_every_maker_is_there():
    for peer in PEERS.values():
        module, function = peer.maker.split(":")
        found = importlib.util.find_spec(module)
        assert found is not None and f"def {function}(" in Path(found.origin).read_text()


MASKS = {r.mask: r for r in DENSE.groups["masks"].rows}


@pytest.mark.parametrize("mask", sorted(MASKS))
def test_a_masks_predicate_is_one(mask):
    """torch's, the definition's and the area that is counted, on shrunken sizes."""
    numbers = {k: max(1, v // 16) for k, v in MASKS[mask].sizes.items()
               if k in ("window", "prefix", "block")}  # fmt: skip
    row = small(MASKS[mask], h=2, g=1, d=4, i=96, j=96, **numbers)
    row = replace(row, docs=4 if row.docs else 0)
    arrays = row.arrays()
    tensors = {"q": torch.zeros(1), **{n: torch.from_numpy(a) for n, a in arrays.items()}}
    seen = predicate(tensors, row.to_json())
    at = torch.arange(96)
    got = torch.broadcast_to(torch.as_tensor(seen(at[:, None], at[None, :])), (96, 96)).numpy()
    want = masked_in(mask, 96, 96, arrays, **numbers)
    np.testing.assert_array_equal(got, want)
    assert area(tensors, row.to_json()) == want.sum()
    if mask != "full":
        blocks = create_block_mask(lambda b, h, i, j: seen(i, j), None, None, 96, 96, device="cpu",
                                   BLOCK_SIZE=32)  # fmt: skip
        tiles = want.reshape(3, 32, 3, 32).any(axis=(1, 3))
        np.testing.assert_array_equal(blocks.to_dense()[0, 0].numpy().astype(bool), tiles)


# ---- jobs --------------------------------------------------------------------------------------


@pytest.fixture
def causal(tmp_path):
    row = DENSE.groups["tiny_attention"].rows[0]
    write_program(tmp_path, row.program())
    write_given(tmp_path, row.arrays())
    return tmp_path, row.to_json()


def raced(folder: Path, facts: dict, peers: list[str]) -> dict[str, Any]:
    return suite_jobs.run_race(str(folder), facts, [], peers, 0, device="cpu", rounds=2)


def test_a_wrong_peer_is_not_timed(causal):
    folder, facts = causal
    right = raced(folder, facts, ["math"])
    assert right["refused"] == {} and right["peers"]["math"]["rel_l2"] < 1e-5
    assert len(right["peers"]["math"]["warm_us"]) == 2 and right["scales"] == [0.125, 8.0, 1.0]
    assert right["pairs"] == 24 * 25 // 2 and right["ours"] == {} and right["best"] is None
    suite_jobs._peers.cache_clear()
    wrong = raced(folder, {**facts, "mask": "full"}, ["math"])
    assert wrong["peers"] == {} and "wrong: relative error" in wrong["refused"]["math"]


def test_the_tasks_own_data_is_back_after_other_scales(causal):
    folder, facts = causal
    task = load_task(str(folder), 0, "cpu")
    before = {n: x.clone() for n, x in task.inputs.items()}
    raced(folder, facts, ["math"])
    assert all(torch.equal(before[n], x) for n, x in task.inputs.items())


def test_peers_that_are_not_there_say_so(causal):
    folder, facts = causal
    if importlib.util.find_spec("helion") is None:
        found = suite_jobs.prepare_peer(str(folder), facts, "helion", 0, "cpu")
        assert "No module named 'helion'" in found["refused"]
    found = suite_jobs.prepare_peer(str(folder), facts, "varlen", 0, "cpu")
    assert "refused" in found
    assert suite_jobs.prepare_peer(str(folder), facts, "math", 0, "cpu")["seconds"] >= 0


def test_a_lost_device_is_no_refusal():
    with pytest.raises(RuntimeError, match="illegal memory"):
        suite_jobs._refusal(RuntimeError("CUDA error: an illegal memory access"))
    assert suite_jobs._refusal(TypeError("no\n\nsuch  thing")) == "TypeError: no such  thing"


# ---- the race ----------------------------------------------------------------------------------


def test_rounds_begin_with_everyone_and_turn_round():
    rounds = [list(order(3, n)) for n in range(6)]
    assert rounds[:2] == [[0, 1, 2], [2, 1, 0]] and all(sorted(r) == [0, 1, 2] for r in rounds)
    assert Counter(r[0] for r in rounds) == {0: 2, 1: 2, 2: 2}


def test_everyone_has_a_time_in_each_round():
    seen: list[str] = []
    times = race([lambda: seen.append("a"), lambda: seen.append("b")], Plan(rounds=4), "cpu")
    assert [len(t.warm_us) for t in times] == [4, 4] and {t.how for t in times} == {"host"}
    assert seen[2:] == ["a", "b", "b", "a", "b", "a", "a", "b"]


@pytest.mark.slow
def test_a_tiny_suite_in_tritons_interpreter(tmp_path):
    rows = ("tiny.m16n24k16", "tiny_attention.b1h2g1t24d16.causal_document.docs3")
    said: list[str] = []
    run(Options(tmp_path, rows=rows, device="cpu", rounds=1), said.append)
    found = {r.name: r for r in read_results(tmp_path)}
    assert len(found) == 2, said
    for result in found.values():
        assert result.ours is not None and result.ours["rel_l2"] < 1e-5, result.data["note"]
        assert result.data["scales"] == [8.0, 0.125, 1.0]
    documents, gated = found.values()
    assert set(gated.peers) == {"eager"} and gated.ratio("eager") is None  # no speeds
    assert documents.data["refused"].keys() == {"math", "flash"}
    assert documents.data["pairs"] == sum(n * (n + 1) // 2 for n in (11, 8, 5))
