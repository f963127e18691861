"""GPU packages where there is a GPU: machine code without Triton, graphs, streams, threads.

    python tools/bootstrap.py pytest -p no:cacheprovider tests/test_gpu_package_device.py

Every result is checked against float64. Skipped without a CUDA device.
"""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from autosched.codegen import gpu_timing  # noqa: E402
from autosched.codegen.gpu_jobs import contained  # noqa: E402
from autosched.codegen.gpu_task import make_task  # noqa: E402
from autosched.codegen.jobs import JobFailure  # noqa: E402
from autosched.ir.record import Status  # noqa: E402
from autosched.tools import gpu_programs  # noqa: E402
from autosched.tools.gpu_package import packaged  # noqa: E402

M, N, K = 96, 80, 112
ROWS = (33, 300)
PROGRAMS = {
    "product": gpu_programs.product(M, N, K, "bfloat16"),
    "rows": gpu_programs.softmax(*ROWS, "float32"),
    "large": gpu_programs.product(512, 512, 512, "float16"),
}
pytestmark = pytest.mark.gpu


def arch() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(PROGRAMS, arch(), tmp_path_factory.mktemp("device"), "device_kernels")


@pytest.fixture(scope="module")
def package(module: Path) -> Iterator[Any]:
    sys.path.insert(0, str(module.parent))
    yield importlib.import_module(module.name)
    sys.path.remove(str(module.parent))


def operands(seed: int = 0, device: str = "cuda") -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(s, generator=generator) for s in ((M, K), (K, N)))
    return x.to(device, torch.bfloat16), w.to(device, torch.bfloat16)


def right(y: Any, x: Any, w: Any) -> bool:
    want = x.double() @ w.double()
    return bool((y.double() - want).norm() <= 1e-2 * want.norm())


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any wait of the host for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_first_call_needs_neither_triton_nor_a_compiler(module: Path) -> None:
    code = f"""
import sys
sys.modules["triton"] = sys.modules["autosched"] = None
import torch, {module.name} as k
x = torch.randn({M}, {K}, device="cuda").bfloat16()
w = torch.randn({K}, {N}, device="cuda").bfloat16()
y, want = k.product(x, w).double(), x.double() @ w.double()
assert (y - want).norm() <= 1e-2 * want.norm()
"""
    env = {**os.environ, "PYTHONPATH": str(module.parent), "PATH": "", "CC": "/nowhere"}
    env.pop("PYTHONSAFEPATH", None)
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_calls_are_right_and_wait_for_nothing(package: Any) -> None:
    x, w = operands()
    assert right(package.product(x, w), x, w)
    with no_waiting():
        ys = [package.product(x + n, w) for n in range(3)]
    assert all(right(y, x + n, w) for n, y in enumerate(ys))
    a = torch.randn(512, 512, device="cuda").half()
    assert right(package.large(a, a), a, a)


def test_a_graph_captures_calls_and_replays_them_on_new_inputs(package: Any) -> None:
    x, w = operands()
    package.product(x, w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = package.product(x, w)
        z = package.product(x * 2, w)
    for seed in (1, 2):
        new, _ = operands(seed)
        x.copy_(new)
        graph.replay()
        assert right(y, new, w) and right(z, new * 2, w)


def test_the_first_call_of_all_may_be_captured(tmp_path: Path) -> None:
    made = packaged({"product": PROGRAMS["product"]}, arch(), tmp_path, "captured_first")
    sys.path.insert(0, str(made.parent))
    try:
        fresh = importlib.import_module(made.name)
    finally:
        sys.path.remove(str(made.parent))
    x, w = operands()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fresh.product(x, w)
    graph.replay()
    assert right(y, x, w)


def test_streams_run_side_by_side(package: Any) -> None:
    x, w = operands()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    made = []
    for n, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            made += [(n, package.product(x + n, w)) for _ in range(8)]
    torch.cuda.synchronize()
    assert all(right(y, x + n, w) for n, y in made)


def test_threads_call_at_the_same_time(package: Any) -> None:
    """Each is new to CUDA: it has no context of its own yet."""
    x, w = operands()
    failed: list[object] = []

    def work(n: int) -> None:
        try:
            mine = x + n
            if not all(right(package.product(mine, w), mine, w) for _ in range(20)):
                failed.append(n)
        except Exception as error:  # the test reports it
            failed.append(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_devices_have_their_own_modules(package: Any) -> None:
    for index in (1, 0, 1):
        x, w = operands(index, f"cuda:{index}")
        y = package.product(x, w)  # whatever device is torch's current one
        assert y.device == x.device and right(y, x, w)
    assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="several devices"):
        package.product(operands(0, "cuda:0")[0], operands(0, "cuda:1")[1])


def test_strided_and_misaligned_operands_are_copied(package: Any) -> None:
    x, w = operands()
    strided = x.t().contiguous().t()
    misaligned = torch.empty(M * K + 1, dtype=x.dtype, device="cuda")[1:].view(M, K).copy_(x)
    assert misaligned.data_ptr() % 16
    for given in (strided, misaligned, x.cpu().cuda()):
        assert right(package.product(given, w), x, w)


def test_operands_that_do_not_fit_are_refused_by_name(package: Any) -> None:
    x, w = operands()
    with pytest.raises(ValueError, match=r"x is float32\[96, 112\], but bfloat16"):
        package.product(x.float(), w)
    with pytest.raises(ValueError, match=r"w is bfloat16\[80, 112\], but bfloat16\[112, 80\]"):
        package.product(x, w.t())


def test_nan_and_infinity_give_what_the_definition_gives(package: Any) -> None:
    x = torch.randn(ROWS, device="cuda")
    x[3, 5], x[4, 6], x[5, :] = math.nan, -math.inf, -math.inf
    assert torch.allclose(package.rows(x), torch.softmax(x, 1), equal_nan=True, atol=1e-6)


def test_a_call_without_room_says_so_and_the_next_one_works(package: Any) -> None:
    a = torch.randn(512, 512, device="cuda").half()
    assert right(package.large(a, a), a, a)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    taken = []
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            while True:
                taken.append(torch.empty_like(a))
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            package.large(a, a)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    taken.clear()
    assert right(package.large(a, a), a, a)


def test_a_candidate_costs_no_other() -> None:
    """What measures: a stray write is undone, and too little room is an outcome."""
    task = make_task(PROGRAMS["product"], 0, torch.device("cuda"))
    want = {n: x.clone() for n, x in {**task.inputs, **task.outputs}.items()}
    stray = pytest.raises(JobFailure, match="wrote outside its outputs: to input x")
    with stray as found, contained(task):
        task.inputs["x"][-1, -1] = math.nan
    assert found.value.status is Status.WRONG_RESULT
    full = pytest.raises(JobFailure, match=r"no room on the device: .*out of memory")
    with full as found, contained(task):
        torch.empty(1 << 45, device="cuda")
    assert found.value.status is Status.OUT_OF_MEMORY
    assert all(torch.equal(x, want[n]) for n, x in {**task.inputs, **task.outputs}.items())
    with contained(task):
        torch.ones(8, device="cuda")


def test_a_replay_keeps_what_it_writes_to() -> None:
    def captured() -> tuple[Any, Any]:
        x = torch.ones(1 << 20, device="cuda")
        out = torch.empty_like(x)
        return gpu_timing.capture(lambda: torch.add(x, 1, out=out)), weakref.ref(out)

    replay, out = captured()
    taken = [torch.zeros(1 << 20, device="cuda") for _ in range(8)]
    replay.sample()
    assert out() is not None and (out() == 2).all()
    assert not any(t.any() for t in taken)


def test_dimensions_without_elements(tmp_path: Path) -> None:
    name = "empty_rows"
    try:
        made = packaged({"rows": gpu_programs.softmax(0, 16, "float32")}, arch(), tmp_path, name)
    except ValueError as error:
        pytest.skip(f"no schedule has no programs: {error}")
    sys.path.insert(0, str(made.parent))
    y = importlib.import_module(name).rows(torch.empty(0, 16, device="cuda"))
    assert y.shape == (0, 16)


def test_torch_compile_keeps_calls_whole(package: Any) -> None:
    x, w = operands()

    @torch.compile(fullgraph=True)
    def model(x: Any, w: Any) -> Any:
        return package.product(x.relu(), w).float() + 1

    y = model(x, w)
    assert right(y - 1, x.relu(), w)
    torch.library.opcheck(package.product.torch_op(), (x, w))


def test_a_package_for_another_gpu_computes_the_definition(tmp_path: Path) -> None:
    other = "sm_80" if arch() != "sm_80" else "sm_90"
    made = packaged({"product": PROGRAMS["product"]}, other, tmp_path, "other_gpu")
    sys.path.insert(0, str(made.parent))
    package = importlib.import_module(made.name)
    x, w = operands()
    with pytest.warns(RuntimeWarning, match=f"tuned for {other}, and .* is {arch()}"):
        y = package.product(x, w)
    assert y.device.type == "cuda" and right(y, x, w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        package.product(x, w)
