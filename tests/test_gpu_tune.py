"""Tuning for a GPU where there is none: the model picks, the compiler agrees, the store knows."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import parsed, saved, with_weights
from rich.console import Console
from typer.testing import CliRunner

from autosched import screens
from autosched.cli import app
from autosched.codegen.triton_build import build
from autosched.codegen.triton_spec import TritonModule
from autosched.datasets.store import Store
from autosched.examples import make_example
from autosched.ir.record import CHECKED_NONE, CHECKED_REFERENCE, Status
from autosched.ir.target import TargetError, parse_target
from autosched.tools.gpu_lab import GpuJobs
from autosched.tools.gpu_probe import Device
from autosched.tools.tune import tune
from autosched.tools.tuning import TuningError

SHAPES = {"input_ids": (1, 8)}
PRODUCT = """
agraph (float[5, 24] x) => (float[5, 40] y)
{
    h = MatMul(x, w)
    y = Relu(h)
}
"""


def product(folder: Path) -> Path:
    w = np.random.default_rng(0).standard_normal((24, 40), np.float32)
    return saved(with_weights(parsed(PRODUCT), w=w), folder / "product.onnx")


def manifest(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((package / package.name / "manifest.json").read_text())
    return found


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("gpu")
    model = make_example("tiny_encoder", folder / "tiny.onnx")
    store = folder / "records.sqlite"
    out = folder / "tuned"
    result = tune(model, out, target="sm_90", shapes=SHAPES, store=store, probe=lambda: None)
    return result, out, store


def test_every_task_gets_the_models_pick(tuned: Any) -> None:
    result, _, _ = tuned
    assert not result.measured and result.peer == "none" and result.threads == 0
    assert result.covered > 0.99 and len(result.tasks) >= 5
    for task in result.tasks:
        assert task.tuned_us is None and task.predicted_us and task.schedule
        assert task.checked == CHECKED_NONE and task.candidates > 1


def test_every_kernel_compiles_and_fits(tuned: Any, tmp_path: Path) -> None:
    """The very file of the package, compiled once more."""
    _, out, _ = tuned
    target = parse_target("sm_90")
    rows = manifest(out)["kernels"]
    for row in rows:
        source = (out / out.name / row["source"]).read_text()
        module = TritonModule.from_json({**row, "source": source})
        made = build(module, target, tmp_path)
        assert row["arch"] == "sm_90"
        assert row["facts"] == {name: made.facts()[name] for name in row["facts"]}
        assert made.facts()["shared_bytes"] <= target.l1_bytes
        assert "picked by the model, not measured" in source and row["latency_us"] is None


def test_records_say_what_was_compiled(tuned: Any) -> None:
    result, _, file = tuned
    with Store(file) as store:
        records = store.records(peers=False)
        assert {r.workload for r in records} == {t.key for t in result.tasks}
        for r in records:
            assert r.target.startswith("gpu/sm_90/") and "triton-" in r.toolchain
            assert r.latency_us is None and r.error
        built = [r for r in records if r.status is Status.CANCELLED]
        assert all("registers" in r.extra["compiled"] for r in built)
        assert len({r.workload for r in built}) == len(result.tasks)


def test_equal_records_make_equal_packages(tuned: Any, tmp_path: Path) -> None:
    """What was compiled before says nothing of speed: the model picks the same again."""
    result, out, store = tuned
    again = tune(result.model, tmp_path / out.name, target="sm_90", shapes=SHAPES, store=store,
                 probe=lambda: None)  # fmt: skip
    assert again.digest == result.digest and again.reused == sum(
        sum(t.failures.values()) for t in result.tasks)  # fmt: skip


def fake(name: str) -> GpuJobs:
    return GpuJobs(build=f"gpu_tune_jobs:{name}", packages=("autosched", "gpu_tune_jobs"))


@pytest.fixture
def jobs_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the modules beside this file."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.usefixtures("jobs_of_tests")
def test_what_does_not_compile_costs_only_itself(tmp_path: Path) -> None:
    """The first pick fails: it is in the store with its status, and the next ones are tried."""
    store = tmp_path / "r.sqlite"
    result = tune(product(tmp_path), tmp_path / "out", target="sm_90", store=store,
                  probe=lambda: None, gpu_jobs=fake("first_fails"))  # fmt: skip
    (task,) = result.tasks
    assert task.failures == {"build_failed": 1} and task.tries >= 2
    with Store(store) as records:
        failed = [r for r in records.records() if r.status is Status.BUILD_FAILED]
        assert len(failed) == 1 and "no such register" in str(failed[0].error)


@pytest.mark.usefixtures("jobs_of_tests")
def test_a_task_that_never_compiles_is_named(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match=r"no kernel for gemm.* \(15 x build_failed"):
        tune(product(tmp_path), tmp_path / "out", target="sm_90", store=tmp_path / "r.sqlite",
             probe=lambda: None, gpu_jobs=fake("always_fails"))  # fmt: skip
    assert not (tmp_path / "out").exists()


# -- with a device -------------------------------------------------------------------------------


def test_with_a_device_candidates_are_measured(tmp_path: Path) -> None:
    """Triton's interpreter stands in for the device: checked against float64, timed, finals."""
    device = Device("a stand-in", "sm_90", "cpu")
    store = tmp_path / "r.sqlite"
    model = product(tmp_path)
    result = tune(model, tmp_path / "out", target="sm_90", store=store, trials=3,
                  probe=lambda: device)  # fmt: skip
    (task,) = result.tasks
    assert result.measured and result.device == "a stand-in" and result.trials == 3
    assert task.tuned_us and task.checked == CHECKED_REFERENCE and not task.failures
    (row,) = manifest(tmp_path / "out")["kernels"]
    assert row["latency_us"] == task.tuned_us and row["facts"]["registers"] > 0
    with Store(store) as records:
        assert {r.device for r in records.records()} == {"a stand-in"}
        good = [r for r in records.records() if r.ok and not r.extra.get("final")]
        assert len(good) == 3 and all(r.extra["rel_l2"] < 1e-5 for r in good)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"sm_90.*NVIDIA A100 \(sm_80\).*--target sm_80"):
        tune(product(tmp_path), tmp_path / "out", target="sm_90", store=tmp_path / "r.sqlite",
             probe=lambda: Device("NVIDIA A100", "sm_80"))  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_coarser_products_are_a_target_of_their_own(tmp_path: Path) -> None:
    """+tf32 may use them, and the package knows whose error bound then holds."""
    result = tune(product(tmp_path), tmp_path / "out", target="sm_90+tf32",
                  store=tmp_path / "r.sqlite", probe=lambda: None)  # fmt: skip
    (row,) = manifest(tmp_path / "out")["kernels"]
    source = (tmp_path / "out/out" / row["source"]).read_text()
    assert result.target == "sm_90+tf32" and "+tf32" in row["target"]
    code = source.split('"""', 2)[2]  # behind the header
    assert row["bound"] == ("float16" if 'tf32"' in code else None), code


# -- the command ---------------------------------------------------------------------------------


def test_the_screen_says_that_nothing_was_measured(tuned: Any) -> None:
    result, _, _ = tuned
    out = Console(width=120, record=True, file=io.StringIO())
    screens.tuning(result, out)
    text = out.export_text()
    assert "picked by the model, not measured here" in text and "predicted" in text
    assert "onnxruntime" not in text and "threads" not in text
    screens.tuning(replace(result, measured=True), out)
    assert "tuned µs" in out.export_text()


def test_help_names_the_targets() -> None:
    text = CliRunner().invoke(app, ["tune", "--help"]).output
    assert "sm_90" in text and "cpu:x86-64-v2" in text


def test_a_gpu_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="sm_90"):
        tune(product(tmp_path), tmp_path / "out", target="sm_12", probe=lambda: None)
