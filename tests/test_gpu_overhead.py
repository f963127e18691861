"""Packages of programs without measuring, and what a package call costs in Python."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from autosched.codegen.runtime.manifest import read
from autosched.tools import gpu_programs
from autosched.tools.gpu_overhead import main, table
from autosched.tools.gpu_package import packaged


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_programs_become_a_package_that_computes_them(tmp_path: Path) -> None:
    programs = {
        "product": gpu_programs.product(32, 16, 64, "bfloat16"),
        "nothing": gpu_programs.softmax(0, 16, "float32"),
    }
    module = packaged(programs, "sm_90", tmp_path, "unmeasured")
    rows = {row["public_name"]: row for row in read(module).data["kernels"]}
    assert all(row["binaries"] and row["latency_us"] is None for row in rows.values())
    sys.path.insert(0, str(module.parent))
    package = importlib.import_module("unmeasured")
    x, w = torch.randn(32, 64).bfloat16(), torch.randn(64, 16).bfloat16()
    want = x.double() @ w.double()
    assert (package.product(x, w).double() - want).norm() <= 1e-2 * want.norm()
    assert package.nothing(torch.empty(0, 16)).shape == (0, 16)


def test_the_table_says_what_a_call_costs_above_a_bare_launch() -> None:
    found = {"bare": {"us": 5.0, "p10": 4.0, "p90": 6.0}, "call": {"us": 7.5, "p10": 7, "p90": 8}}
    assert "| call | 7.50 | 7.00 to 8.00 | +2.50 |" in table(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err
