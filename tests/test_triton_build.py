"""Building Triton modules without a GPU: what comes out, what is kept, what a pool survives."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import triton_modules as modules

from autosched.codegen import triton_build
from autosched.codegen.triton_build import DoesNotFitError, build, build_key
from autosched.codegen.triton_entry import INDEX, read_build
from autosched.codegen.triton_spec import TritonModule
from autosched.codegen.workers import Failed, Job, Ok, Stage, WorkerPool
from autosched.ir.record import Status
from autosched.ir.target import parse_target

SM90 = parse_target("sm_90")
TESTS = str(Path(__file__).parent)
JOBS = "gpu_worker_jobs"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    own = tmp_path_factory.mktemp("triton")
    env = {"PYTHONPATH": TESTS, "TRITON_CACHE_DIR": str(own)}
    with WorkerPool(1, 60.0, env=env, packages=("autosched", JOBS)) as made:
        yield made


def job(function: str, module: TritonModule, cache: Path, timeout_s: float | None = None) -> Job:
    kwargs = {"module": module.to_json(), "target": "sm_90", "cache": str(cache)}
    return Job(function, kwargs, Stage.BUILD, timeout_s)


def good(module: TritonModule, cache: Path) -> Job:
    return job("autosched.codegen.triton_jobs:build_module", module, cache)


def test_a_module_is_plain_json():
    module = modules.shares(3, 5)
    assert TritonModule.from_json(json.loads(json.dumps(module.to_json()))) == module


def test_machine_code_and_its_resources(tmp_path):
    made = build(modules.gemm(256, 256, 256, bm=64, bn=64, bk=64, dtype="float16"), SM90, tmp_path)
    (kernel,) = made.kernels
    assert (made.folder / kernel.file).read_bytes().startswith(b"\x7fELF")
    assert kernel.symbol == "product" and kernel.threads == 128
    assert kernel.shared_bytes >= 2 * 64 * 64 * 2  # two stages of both operands
    assert 32 <= kernel.registers <= 255 and kernel.spill_bytes == 0
    assert kernel.ptx_bytes > 1000 and made.seconds > 0
    assert made.facts()["registers"] == kernel.registers
    assert read_build(made.folder) == made


def test_several_launches_and_memory_for_descriptors(tmp_path):
    two = build(modules.shares(8, 100), SM90, tmp_path)
    assert [k.symbol for k in two.kernels] == ["parts", "shares"]
    assert len({k.file for k in two.kernels}) == 2
    (copied,) = build(modules.copy(64), SM90, tmp_path).kernels
    assert copied.scratch_bytes == 256 and copied.scratch_align == 128


def test_pointers_are_compiled_for_alignment_and_two_hidden_ones_follow(tmp_path, monkeypatch):
    """What codegen.cubin passes: the tensors' addresses and two more, in blocks of `threads`."""
    seen = []
    real = triton_build.triton.compile
    monkeypatch.setattr(triton_build.triton, "compile",
                        lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    build(modules.softmax(4, 4096), SM90, tmp_path)
    ptx = seen[0].asm["ptx"]
    assert len(re.findall(r"\.param \.u64 .*weights_param_\d+", ptx)) == 2 + 2
    assert "ld.global.v4" in ptx or "v4.b32" in ptx
    assert ".reqntid 128" in ptx


def test_an_entry_is_found_again_and_depends_on_all_that_counts(tmp_path, monkeypatch):
    module = modules.softmax(4, 100)
    first = build(module, SM90, tmp_path)
    monkeypatch.setattr(triton_build.triton, "compile", None)  # it would fail
    assert build(module, SM90, tmp_path) == first
    (launch,) = module.launches
    other = dataclasses.replace(module, launches=(dataclasses.replace(launch, warps=8),))
    keys = {build_key(m, SM90) for m in (module, other, modules.softmax(4, 101))}
    assert len(keys) == 3 and first.key in keys


def test_nothing_is_left_of_a_failure_and_a_faster_process_wins(tmp_path, monkeypatch):
    with pytest.raises(Exception, match="no_such_thing"):
        build(modules.fault("unknown"), SM90, tmp_path)
    assert list(tmp_path.iterdir()) == []
    module = modules.softmax(4, 100)
    real = triton_build._fill

    def slower(folder: Path, *rest: object) -> None:
        real(folder, *rest)
        monkeypatch.setattr(triton_build, "_fill", real)
        build(module, SM90, tmp_path)

    monkeypatch.setattr(triton_build, "_fill", slower)
    made = build(module, SM90, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [made.key]
    assert (made.folder / INDEX).is_file()


def test_what_does_not_fit_is_refused(tmp_path):
    small = dataclasses.replace(SM90, l1_bytes=16384)
    module = modules.gemm(256, 256, 256, bm=64, bn=64, bk=64, dtype="float16")
    with pytest.raises(DoesNotFitError, match="bytes of shared memory"):
        build(module, small, tmp_path)


# ---- in the pool -------------------------------------------------------------------------------


def test_a_failing_compiler_is_a_status_with_a_reason(pool, tmp_path):
    outcome = pool.run(good(modules.fault("unknown"), tmp_path))
    assert isinstance(outcome, Failed) and outcome.status is Status.BUILD_FAILED
    assert "no_such_thing" in outcome.reason


def test_a_printing_and_aborting_compiler_costs_only_itself(pool, tmp_path):
    outcome = pool.run(job(f"{JOBS}:build_aborting", modules.softmax(2, 8), tmp_path))
    assert isinstance(outcome, Failed) and outcome.status is Status.BUILD_FAILED
    assert "SIGABRT" in outcome.reason
    assert "LLVM ERROR: no way" in outcome.stderr_tail and len(outcome.stderr_tail) <= 8192
    after = pool.run(good(modules.softmax(2, 8), tmp_path))
    assert isinstance(after, Ok) and Path(after.value["entry"]).is_dir()


def test_a_hanging_compiler_is_killed_in_time(pool, tmp_path):
    outcome = pool.run(job(f"{JOBS}:build_hanging", modules.softmax(2, 9), tmp_path, 1.0))
    assert isinstance(outcome, Failed) and outcome.status is Status.BUILD_TIMEOUT
    assert isinstance(pool.run(good(modules.softmax(2, 9), tmp_path)), Ok)


def test_the_launcher_of_packages_finds_what_builders_compiled(pool, tmp_path):
    """Same source, types, alignment and options: the same key in Triton's own cache."""
    built = pool.run(good(modules.shares(5, 33), tmp_path))
    assert isinstance(built, Ok)
    hits = pool.run(Job(f"{JOBS}:recompiles", {"entry": built.value["entry"]}))
    assert isinstance(hits, Ok) and hits.value == [True, True]
