"""The launcher of machine code against a driver that notes what it is told, byte by byte."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton_modules as modules
from fake_driver import Driver

from autosched.codegen import cubin
from autosched.codegen.runtime import driver as driver_module
from autosched.codegen.runtime.launch import Plan
from autosched.codegen.triton_build import build
from autosched.ir.target import parse_target

SM90 = parse_target("sm_90")
OPT_IN = 232448


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(driver_module, "library", lambda: made)
    stream = SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    facts = SimpleNamespace(shared_memory_per_block_optin=OPT_IN)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    return made


def opened(module: Any, tmp_path: Path) -> tuple[cubin.CubinLauncher, Plan]:
    made = build(module, SM90, tmp_path)
    plan = Plan.from_json(module.to_json())
    kernels = [asdict(k) for k in made.kernels]
    return cubin.CubinLauncher(made.folder, plan, kernels, torch.device("cpu")), plan


def test_pointers_sizes_and_stream_reach_the_driver(driver, tmp_path):
    launcher, _ = opened(modules.gemm(100, 100, 64, bm=32, bn=32, bk=16), tmp_path)
    x, w, y = torch.ones(100, 64), torch.ones(64, 100), torch.empty(100, 100)
    with launcher:
        launcher.bind({"x": x, "w": w, "y": y})()
    names = [c[0] for c in driver.calls]
    assert names == ["load", "function", "launch", "unload"]
    assert driver.calls[0] == ("load", b"\x7fELF") and driver.calls[1] == ("function", b"product")
    _, function, sizes, shared, stream, addresses, extra = driver.calls[2]
    assert (function, stream, extra) == (101, 77, None)
    assert sizes == (16, 1, 1, 128, 1, 1)
    assert addresses == (x.data_ptr(), w.data_ptr(), y.data_ptr(), 0, 0)
    assert shared > 0


def test_much_shared_memory_is_asked_for(driver, tmp_path):
    module = modules.gemm(256, 256, 256, bm=128, bn=128, bk=64, dtype="float16", warps=8, stages=3)
    launcher, _ = opened(module, tmp_path)
    launcher.close()
    assert ("prefer", 1) in driver.calls and ("set", 8, OPT_IN - 448) in driver.calls


def test_scratch_is_shared_by_launches_and_descriptors_have_memory(driver, tmp_path):
    launcher, _ = opened(modules.shares(6, 20), tmp_path)
    x, y = torch.ones(6, 20), torch.empty(6, 20)
    launcher.bind({"x": x, "y": y})()
    first, second = (c[5] for c in driver.calls if c[0] == "launch")
    assert first[0] == x.data_ptr() and first[1] == second[1] != 0
    assert second[2] == y.data_ptr()
    driver.calls.clear()
    launcher, _ = opened(modules.copy(64), tmp_path)
    launcher.bind({"x": torch.ones(64, 32), "y": torch.empty(64, 32)})()
    (launch,) = (c for c in driver.calls if c[0] == "launch")
    assert launch[5][2] != 0 and launch[5][2] % 64 == 0 and launch[5][3] == 0


def test_errors_say_that_the_device_is_lost(driver, tmp_path):
    launcher, _ = opened(modules.softmax(4, 10), tmp_path)
    run = launcher.bind({"x": torch.ones(4, 10), "y": torch.empty(4, 10)})
    driver.fails = "launch"
    with pytest.raises(cubin.DriverError, match="CUDA error: launch of weights: an illegal"), \
            launcher:  # fmt: skip
        run()
    assert "unload" not in [c[0] for c in driver.calls]  # it would raise again


def test_operands_that_the_code_was_not_compiled_for_are_refused(driver, tmp_path):
    launcher, _ = opened(modules.softmax(4, 10), tmp_path)
    good = torch.empty(4, 10)
    with pytest.raises(ValueError, match="x is not dense or not aligned to 16 bytes"):
        launcher.bind({"x": torch.ones(10, 4).t(), "y": good})
    with pytest.raises(ValueError, match="x is not dense"):
        launcher.bind({"x": torch.ones(41)[1:].view(4, 10), "y": good})
