"""Machine code in packages: what reaches the driver, what is refused, and how short the way is."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton_modules as modules
from fake_driver import Driver
from torch._subclasses.fake_tensor import FakeTensorMode

from autosched.codegen.artifact import Artifact, GpuKernel, Machine, gpu_args
from autosched.codegen.package import write_package
from autosched.codegen.runtime import cubin, gpu_calls
from autosched.codegen.runtime import driver as driver_module
from autosched.codegen.runtime.errors import (
    ChangedFileError,
    KernelFailedError,
    UnsupportedMachineError,
)
from autosched.codegen.runtime.function import Function
from autosched.codegen.runtime.gpu_kernel import GpuKernel as GpuKernelClass
from autosched.codegen.runtime.manifest import Manifest, read
from autosched.codegen.runtime.package import Package
from autosched.codegen.triton_build import build
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.target import parse_target

CPU = torch.device("cpu")
REFERENCE = '''"""y = x"""
def definition(x):
    return (x,)
'''


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()
    monkeypatch.setattr(driver_module, "library", lambda: made)
    driver_module.primary_context.cache_clear()
    yield made
    driver_module.primary_context.cache_clear()


def kernel(module: TritonModule, cache: Path, **changes: Any) -> GpuKernel:
    """A kernel as the tuner makes it, with machine code for sm_90."""
    made = build(module, parse_target("sm_90"), cache)
    machine = tuple(
        Machine((made.folder / k.file).read_bytes(), k.symbol, k.threads, k.shared_bytes,
                k.scratch_bytes, k.scratch_align)
        for k in made.kernels
    )  # fmt: skip
    facts: dict[str, Any] = {
        "key": "k", "public_name": "function", "doc": "By hand.", "source": module.source,
        "definition": "", "schedule": {}, "args": gpu_args(module), "latency_us": 2.5,
        "peer_us": None, "target": "gpu/sm_90/x/", "toolchain": "t", "module": module,
        "arch": "sm_90", "machine": machine,
    }  # fmt: skip
    return GpuKernel(**(facts | changes))


def packed(module: TritonModule, folder: Path, **changes: Any) -> Manifest:
    made = kernel(module, folder / "cache", **changes)
    return read(write_package(Artifact((made,)), folder / "out", "out").module)


def loaded(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Function:
    """Its function, as on a machine whose "CPU" has the architecture."""
    monkeypatch.setattr(gpu_calls, "why_not", lambda arch, device: None)
    return Function(manifest, "function")


def launches(driver: Driver) -> list[Any]:
    return [c for c in driver.calls if c[0] == "launch"]


def test_a_call_tells_the_driver_what_the_kernel_was_compiled_for(driver, tmp_path, monkeypatch):
    function = loaded(packed(modules.gemm(100, 100, 64), tmp_path), monkeypatch)
    x, w = torch.ones(100, 64), torch.ones(64, 100)
    y = function(x, w)
    assert y.shape == (100, 100) and y.dtype == torch.float32 and y.is_contiguous()
    names = [c[0] for c in driver.calls]
    assert names == ["device", "retain", "push", "capture", "load", "function", "capture", "pop",
                     "launch"]  # fmt: skip
    assert driver.contexts == [] and driver.capture_mode == 0  # as they were before
    _, handle, sizes, shared, stream, addresses, extra = driver.calls[-1]
    assert (handle, stream, extra) == (101, None, None) and shared > 0
    assert sizes == (16, 1, 1, 128, 1, 1)
    assert addresses == (x.data_ptr(), w.data_ptr(), y.data_ptr(), 0, 0)


def test_later_calls_only_launch(driver, tmp_path, monkeypatch):
    function = loaded(packed(modules.gemm(32, 32, 16), tmp_path), monkeypatch)
    x, w = torch.ones(32, 16), torch.nn.Parameter(torch.ones(16, 32))
    function(x, w)
    driver.calls.clear()
    monkeypatch.setattr(GpuKernelClass, "run", None)  # the long way is closed
    y = function(x + 1, w)
    assert [c[0] for c in driver.calls] == ["launch"] and not y.requires_grad
    assert launches(driver)[0][5][2] == y.data_ptr()


@pytest.mark.parametrize("change", [
    lambda x: x.t().contiguous().t(), lambda x: torch.ones(32 * 16 + 1)[1:].view(32, 16),
    lambda x: x.numpy(),
], ids=["strided", "misaligned", "array"])  # fmt: skip
def test_operands_the_code_was_not_compiled_for_are_copied(driver, tmp_path, monkeypatch, change):
    function = loaded(packed(modules.gemm(32, 32, 16), tmp_path), monkeypatch)
    x, w = torch.ones(32, 16), torch.ones(16, 32)
    function(x, w)
    given = change(x)
    function(given, w)
    seen = launches(driver)[-1][5]
    there = given.ctypes.data if not isinstance(given, torch.Tensor) else given.data_ptr()
    assert all(a % 16 == 0 for a in seen) and seen[1] == w.data_ptr()
    assert seen[0] != there or there % 16 == 0


def test_scratch_and_descriptors_share_one_workspace(driver, tmp_path, monkeypatch):
    function = loaded(packed(modules.shares(6, 20), tmp_path), monkeypatch)
    x = torch.ones(6, 20)
    y = function(x)
    (first, second) = (c[5] for c in launches(driver))
    assert first[0] == x.data_ptr() and first[1] == second[1] != 0 and second[2] == y.data_ptr()
    assert [c[1] for c in launches(driver)] == [101, 102]
    driver.calls.clear()
    copies = loaded(packed(modules.copy(64), tmp_path / "copy"), monkeypatch)
    copies(torch.ones(64, 32))
    (launch,) = launches(driver)
    assert launch[5][2] != 0 and launch[5][2] % 64 == 0 and launch[5][3] == 0


def test_counters_are_zeros_that_calls_share(driver, tmp_path, monkeypatch):
    """The scratch of two launches as a counter: where it lies among the addresses."""
    module = modules.shares(6, 20)
    counted = tuple(replace(t, role="counter") if t.name == "s" else t for t in module.tensors)
    function = loaded(packed(replace(module, tensors=counted), tmp_path), monkeypatch)
    function(torch.ones(6, 20))
    function(torch.ones(6, 20))
    seen = {c[5][1] for c in launches(driver)}
    assert len(seen) == 1 and 0 not in seen and len(launches(driver)) == 4


def test_much_shared_memory_is_asked_for_and_no_programs_are_not_launched(driver, tmp_path):
    module = modules.gemm(256, 256, 256, bm=128, bn=128, bk=64, dtype="float16", warps=8, stages=3)
    facts = packed(module, tmp_path).data["kernels"][0]
    plan = cubin.Plan.from_json(facts)
    (row,) = facts["binaries"]
    assert row["shared_bytes"] > 48 * 1024
    none = replace(plan, steps=tuple(replace(s, programs=0) for s in plan.steps))
    call = cubin.CubinCall(none, cubin.binaries_from_json([row]), lambda file: b"\x7fELF", CPU).run
    assert ("prefer", 1) in driver.calls and ("set", 8, -448) in driver.calls
    (made,) = call([torch.ones(256, 256).half()] * 2)
    assert not launches(driver) and made.shape == (256, 256)


def test_sizes_follow_the_tensors(driver, tmp_path):
    facts = packed(modules.softmax(4, 10), tmp_path).data["kernels"][0]
    plan = cubin.Plan.from_json(facts)
    told = replace(plan, steps=tuple(replace(s, sizes=(10, 4)) for s in plan.steps))
    rows = cubin.binaries_from_json(facts["binaries"])
    call = cubin.CubinCall(told, rows, lambda file: b"\x7fELF", CPU).run
    call([torch.ones(4, 10)])
    assert launches(driver)[0][5][2:] == (10, 4, 0, 0)


@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (4, 0), (2, 1, 3)])
def test_outputs_of_any_shape_are_dense(driver, shape):
    plan = cubin.Plan((cubin.Buffer("y", "bfloat16", shape, "output"),), ())
    (made,) = cubin.CubinCall(plan, (), lambda file: b"", CPU).run([])
    assert made.shape == shape and made.is_contiguous() and made.dtype == torch.bfloat16
    assert made.untyped_storage().nbytes() == made.numel() * 2


def test_a_thread_without_a_context_gets_the_devices(driver, tmp_path, monkeypatch):
    function = loaded(packed(modules.softmax(4, 10), tmp_path), monkeypatch)
    x = torch.ones(4, 10)
    function(x)
    driver.fails, driver.code = "launch", driver_module.INVALID_CONTEXT
    driver.calls.clear()
    function(x)
    assert [c[0] for c in driver.calls] == ["launch", "bind", "launch"]
    assert driver.calls[1] == ("bind", 1010)


def test_a_lost_device_is_an_error_with_the_drivers_words(driver, tmp_path, monkeypatch):
    function = loaded(packed(modules.softmax(4, 10), tmp_path), monkeypatch)
    driver.fails = "launch"
    with pytest.raises(KernelFailedError, match="CUDA error: launch of a kernel: an illegal"):
        function(torch.ones(4, 10))


def test_threads_have_arguments_of_their_own(driver, tmp_path, monkeypatch):
    """Two calls at the same time, one inside the other's launch, read their own addresses."""
    x, other = torch.ones(4, 10), torch.ones(4, 10)
    plain, inside = driver.cuLaunchKernelEx, threading.Event()

    def launch(*args: Any) -> int:
        if not inside.is_set():
            inside.set()
            thread = threading.Thread(target=function, args=(other,))
            thread.start()
            thread.join()
        return plain(*args)

    monkeypatch.setattr(driver, "cuLaunchKernelEx", launch)
    function = loaded(packed(modules.softmax(4, 10), tmp_path), monkeypatch)
    function(x)
    assert [c[5][0] for c in launches(driver)] == [other.data_ptr(), x.data_ptr()]


def test_damaged_machine_code_is_not_loaded(driver, tmp_path, monkeypatch):
    manifest = packed(modules.softmax(4, 10), tmp_path)
    (file,) = manifest.root.glob("kernels/*.cubin")
    file.write_bytes(file.read_bytes()[:-1] + b"\0" * 2)
    function = loaded(manifest, monkeypatch)
    with pytest.raises(ChangedFileError, match="was changed after the package was written"):
        function(torch.ones(4, 10))
    assert not driver.calls


def test_equal_machine_code_is_written_once(tmp_path):
    made = kernel(modules.shares(6, 20), tmp_path / "cache")
    same = replace(made, machine=(made.machine[0], made.machine[0]))
    rows = read(write_package(Artifact((same,)), tmp_path / "out", "out").module)
    first, second = rows.data["kernels"][0]["binaries"]
    assert first == second and len(list(rows.root.glob("kernels/*.cubin"))) == 1


# -- where the kernel is not what runs -----------------------------------------------------------


def test_other_machines_compute_the_definition_and_are_told_once(driver, tmp_path):
    function = Function(packed(modules.copy(64), tmp_path, reference=REFERENCE), "function")
    x = torch.randn(64, 32)
    with pytest.warns(RuntimeWarning, match="out: these kernels are for GPUs .* AUTOSCHED_STRICT"):
        y = function(x)
    assert torch.equal(x, y) and y.data_ptr() != x.data_ptr() and not driver.calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(function(x), x)


def test_strict_machines_and_bare_packages_refuse(driver, tmp_path, monkeypatch):
    bare = Function(packed(modules.copy(64), tmp_path / "bare"), "function")
    with pytest.raises(UnsupportedMachineError, match="has no torch operators"):
        bare(torch.ones(64, 32))
    monkeypatch.setenv("AUTOSCHED_STRICT", "1")
    whole = packed(modules.copy(64), tmp_path / "whole", reference=REFERENCE)
    with pytest.raises(UnsupportedMachineError, match="AUTOSCHED_STRICT is set"):
        Function(whole, "function")(torch.ones(64, 32))


@pytest.mark.parametrize("reference_us, launched", [(2.0, 0), (3.0, 1), (None, 1)])
def test_what_was_measured_to_be_slower_is_not_launched(
    driver, tmp_path, monkeypatch, reference_us, launched
):
    made = packed(modules.copy(64), tmp_path, reference=REFERENCE, reference_us=reference_us)
    function = loaded(made, monkeypatch)
    function(torch.ones(64, 32))
    assert len(launches(driver)) == launched


# -- operators of torch --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_operators_of_gpu_packages_have_fakes_and_break_no_graph(tmp_path):
    reference = REFERENCE.replace("(x,)", "(x * 2,)")
    manifest = packed(modules.copy(64), tmp_path, reference=reference)
    public = Package(str(manifest.root)).kernel("function", "")
    x = torch.randn(64, 32)
    torch.library.opcheck(public.torch_op(), (x,))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def model(x: torch.Tensor) -> torch.Tensor:
        return public(x.relu()) + 1

    assert torch.equal(model(x), x.relu() * 2 + 1)
    with FakeTensorMode():
        fake = public.torch_op()(torch.empty(64, 32, device="cuda"))
    assert fake.device.type == "cuda" and fake.shape == (64, 32)


@pytest.mark.parametrize("dtype", ["float8_e4m3", "float8_e5m2"])
def test_eight_bit_floats_go_in_and_out(driver, tmp_path, monkeypatch, dtype):
    """As tensors, as arrays of ml_dtypes, and as bits."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    module = modules.copy(64)
    eight = replace(module, tensors=tuple(replace(t, dtype=dtype) for t in module.tensors))
    made = replace(kernel(module, tmp_path / "cache"), module=eight, args=gpu_args(eight),
                   reference=REFERENCE)  # fmt: skip
    written = write_package(Artifact((made,)), tmp_path / "out", "out").module
    monkeypatch.setattr(gpu_calls, "_warn", lambda root, text: None)
    function = Function(read(written), "function")
    name = "float8_e4m3fn" if dtype == "float8_e4m3" else dtype
    x = torch.randn(64, 32).to(getattr(torch, name))
    bits = x.view(torch.uint8)
    assert function(x).dtype == x.dtype and torch.equal(function(x).view(torch.uint8), bits)
    array = bits.numpy().view(getattr(ml_dtypes, name))
    for given in (array, bits.numpy()):
        assert function(given).dtype.name == name
        assert (function(given).view("uint8") == bits.numpy()).all()
    with pytest.raises(ValueError, match=f"x is float32.*{dtype}"):
        function(x.float())
    with pytest.raises(ValueError, match=f"x is float32.*{dtype}.* by ml_dtypes"):
        function(x.float().numpy())
