"""Kernels raced against their definitions in torch, in Triton's interpreter; and who is called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
import triton_modules as modules

from autosched.codegen.jobs import Failed, Job, Ok
from autosched.codegen.reference import write_program
from autosched.codegen.torch_source import torch_source
from autosched.codegen.triton_build import build
from autosched.codegen.workers import WorkerPool
from autosched.ir.target import parse_target

JOB = "autosched.codegen.gpu_definition:against_definition"
PROGRAM = programs.softmax(5, 33)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1, 60.0, env={"TRITON_INTERPRET": "1"}) as made:
        yield made


def raced(pool: WorkerPool, folder: Path, text: str) -> Any:
    write_program(folder, PROGRAM)
    (folder / "definition.py").write_text(text)
    entry = build(modules.softmax(5, 33), parse_target("sm_90"), folder / "cache")
    kwargs = {"folder": str(folder), "entry": str(entry.folder), "operands": ["x"], "seed": 0,
              "source": str(folder / "definition.py"), "device": "cpu",
              "launcher": "jit"}  # fmt: skip
    return pool.run(Job(JOB, kwargs))


def test_a_definition_is_checked_and_timed_against_its_kernel(pool, tmp_path):
    found = raced(pool, tmp_path, torch_source(PROGRAM, ["x"]))
    assert isinstance(found, Ok), found
    assert 0 < found.value["ratio"] < 1  # the interpreter is slow


def test_a_wrong_definition_is_never_called(pool, tmp_path):
    wrong = torch_source(PROGRAM, ["x"]).replace("torch.exp(", "torch.exp2(")
    found = raced(pool, tmp_path, wrong)
    assert isinstance(found, Ok) and found.value["ratio"] is None
    assert found.value["why"].startswith("y: ")
    assert isinstance(raced(pool, tmp_path, "def other(x): ..."), Failed)
