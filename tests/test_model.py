"""A tuned model at run time: right answers, bad inputs, changed files, threads, forks, islands."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import kernels
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autosched.codegen import tvm_api as t
from autosched.codegen.artifact import Artifact, Kernel, KernelArg, Plan, Step, Value
from autosched.codegen.package import write_package
from autosched.codegen.runtime.errors import ChangedFileError, InputError, PackageError
from autosched.codegen.runtime.manifest import read
from autosched.codegen.runtime.model import Model, load
from autosched.codegen.runtime.threads import thread_count

SHAPE = (kernels.M, kernels.N)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("packages") / "tuned"
    return write_package(kernels.chain(), place, "chain").folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


def some(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


def right(model: Model, x: np.ndarray) -> bool:
    results = model.run({"x": x})
    want = kernels.chain_result(np.ascontiguousarray(x))
    return np.allclose(results["out"], want, 1e-6) and np.allclose(
        results["flat"], want.reshape(-1), 1e-6
    )


def test_outputs_are_right_and_the_callers_own(model: Model) -> None:
    x = some()
    first = model.run({"x": x})
    assert list(first) == ["out", "flat"]
    kept = first["out"].copy()
    first["flat"][...] = 0
    second = model.run({"x": some(1)})
    assert np.array_equal(first["out"], kept)
    assert not np.shares_memory(first["out"], second["out"])
    assert right(model, x)


def misaligned(x: np.ndarray, by: int) -> np.ndarray:
    raw = np.zeros(x.nbytes + by, np.uint8)
    raw[by:] = x.reshape(-1).view(np.uint8)
    return raw[by:].view(np.float32).reshape(x.shape)


def frozen(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "4 bytes off": lambda x: misaligned(x, 4),
    "1 byte off": lambda x: misaligned(x, 1),
    "transposed": lambda x: np.asfortranarray(x),
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "read-only": frozen,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_any_layout(model: Model, layout: str) -> None:
    assert right(model, LAYOUTS[layout](some()))


def test_torch_inputs(model: Model) -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(*SHAPE, requires_grad=True)
    for tensor in (x, x.detach().T.contiguous().T):
        out = model.run({"x": tensor})["out"]
        assert np.allclose(out, kernels.chain_result(x.detach().numpy()), 1e-6)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, r"missing: x. The model takes x float32\[37, 50\]"),
        ({"y": some()}, "missing: x; unknown: y"),
        ({"x": some(), "y": some()}, "unknown: y"),
        ({"x": some().astype(np.float64)}, r"x is float64\[37, 50\], but float32\[37, 50\]"),
        ({"x": some().astype(">f4").astype(">f8")}, "x is float64"),
        ({"x": some()[1:]}, r"x is float32\[36, 50\], but"),
        ({"x": [1.0, 2.0]}, r"x is float64\[2\], but"),
        ({"x": "text"}, "x is str"),
    ],
)
def test_wrong_inputs_are_named(model: Model, inputs: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.run(inputs)


def test_the_digest_names_the_package(folder: Path) -> None:
    digest = read(folder).digest
    for good in (digest, digest.upper(), f"sha256:{digest}", digest[:16]):
        assert load(folder, expect_digest=good).digest == digest
    for bad in ("0" * 64, digest[:8], ""):
        with pytest.raises(ChangedFileError, match="is expected"):
            load(folder, expect_digest=bad)


def tampered(folder: Path, pattern: str, change: Callable[[Path], object]) -> None:
    path = next((folder / "chain").glob(pattern))
    before = path.read_bytes()
    path.unlink()
    path.write_bytes(before)
    change(path)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "pattern, change, message",
    [
        ("kernels/*serial*.so", flip, "was changed"),
        ("weights.bin", flip, "was changed"),
        ("runtime/model.py", flip, "was changed"),
        ("kernels/*serial*.so", Path.unlink, "is missing"),
        ("manifest.json", flip, "was changed|can't be read|no manifest"),
        ("manifest.json", lambda p: p.write_text("{"), "can't be read"),
        ("manifest.json", lambda p: p.write_text('{"format": 99}'), "no manifest of format"),
        ("manifest.json", Path.unlink, "holds no kernel package"),
    ],
)
def test_changed_files_are_refused(
    folder: Path, tmp_path: Path, pattern: str, change: Callable[[Path], object], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tampered(copy, pattern, change)
    with pytest.raises(PackageError, match=message):
        load(copy)


def test_many_threads_at_once(folder: Path) -> None:
    for count in (None, 1):
        model = load(folder, threads=count)
        wrong: list[int] = []

        def work(seed: int, model: Model = model, wrong: list[int] = wrong) -> None:
            if not all(right(model, some(seed + n)) for n in range(50)):
                wrong.append(seed)

        crowd = [threading.Thread(target=work, args=(100 * n,)) for n in range(8)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(60)
        assert not any(thread.is_alive() for thread in crowd)
        assert not wrong
        assert right(model, some())


def settled_threads() -> int:
    """Threads of this process once those that have been joined are gone for the system too."""
    counts: list[int] = []
    while len(counts) < 20 or (len(set(counts[-20:])) > 1 and len(counts) < 1000):
        time.sleep(0.01)
        counts.append(len(os.listdir("/proc/self/task")))
    return counts[-1]


def test_callers_do_not_leave_pools_behind(model: Model) -> None:
    right(model, some())
    for _ in range(3):  # the runner starts with the first of them
        thread = threading.Thread(target=lambda: right(model, some()))
        thread.start()
        thread.join(60)
    counted = settled_threads()
    for _ in range(5):
        thread = threading.Thread(target=lambda: right(model, some()))
        thread.start()
        thread.join(60)
    assert settled_threads() <= counted


def wait(pid: int, seconds: float) -> int | None:
    """Exit status of a child, or None after killing one that hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("count", [None, 1])
def test_a_forked_child_runs_the_model_too(folder: Path, count: int | None) -> None:
    model = load(folder, threads=count)
    x = some()
    assert right(model, x)  # the parent's pool exists
    pid = os.fork()
    if pid == 0:
        ok = right(model, x) and right(load(folder), x)
        os._exit(0 if ok else 1)
    assert wait(pid, 30) == 0
    assert right(model, x)


def _child(folder: Path, queue: multiprocessing.Queue[bool]) -> None:
    queue.put(right(load(folder), some()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_multiprocessing_by_fork(folder: Path, model: Model) -> None:
    assert right(model, some())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(folder, queue))
    process.start()
    assert queue.get(timeout=30)
    process.join(30)
    assert process.exitcode == 0


def add_island() -> bytes:
    """x, w -> 2 x + w, as onnxruntime does it."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("Add", ["twice", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "middle",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE),
         helper.make_tensor_value_info("w", TensorProto.FLOAT, (kernels.N,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return made.SerializeToString()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_islands_run_between_kernels(tmp_path: Path) -> None:
    artifact = kernels.chain({"middle": add_island()})
    model = load(write_package(artifact, tmp_path / "out", "chain").folder)
    for seed in range(3):
        assert right(model, some(seed))
    assert [step.name for step in model.profile({"x": some()}, 2)] == [
        "scale_add_parallel", "middle", "scale_add_parallel"
    ]  # fmt: skip
    pid = os.fork()
    if pid == 0:
        os._exit(0 if right(model, some()) else 1)
    assert wait(pid, 30) == 0


def test_islands_of_other_dtypes_and_ranks(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Less", ["x", "limit"], ["y"]),
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("ReduceMax", ["half"], ["z"], keepdims=0),
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
    ]
    graph = helper.make_graph(
        nodes, "types",
        [helper.make_tensor_value_info("x", TensorProto.INT64, (3,)),
         helper.make_tensor_value_info("limit", TensorProto.INT64, ())],
        [helper.make_tensor_value_info("y", TensorProto.BOOL, (3,)),
         helper.make_tensor_value_info("z", TensorProto.FLOAT16, ()),
         helper.make_tensor_value_info("b", TensorProto.BFLOAT16, (3,))],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    x, limit = Value("x", "int64", (3,)), Value("limit", "int64", ())
    values = (Value("y", "bool", (3,)), Value("z", "float16", ()), Value("b", "bfloat16", (3,)))
    plan = Plan((x,), values, values, (Step(None, "types", ("x", "limit", "y", "z", "b")),),
                {"types": made.SerializeToString()}, (limit,))  # fmt: skip
    artifact = Artifact((), plan, {"limit": np.array(2)})
    model = load(write_package(artifact, tmp_path / "out", "types").folder)
    results = model.run({"x": np.array([1, 2, 3])})
    assert results["y"].tolist() == [True, False, False]
    assert results["z"].shape == () and results["z"] == 3 and results["z"].dtype == np.float16
    assert results["b"].astype(np.float32).tolist() == [1, 2, 3]


def test_a_trace_shows_what_every_step_read_and_wrote(model: Model) -> None:
    x = some()
    before = x
    for number, step in enumerate(model.trace({"x": x})):
        read_, packed, wrote = step.arrays
        weight = kernels.WEIGHTS[f"w{number}"]
        assert np.array_equal(read_, before)
        assert np.array_equal(packed.reshape(-1), weight)
        assert np.allclose(wrote, before * 2 + weight, 1e-6)
        before = wrote


def counting() -> Kernel:
    """y[i] = x[i] + n through a workspace, n being an extent, for int64."""
    x, y, scratch = (t.parameter(name, "int64") for name in ("x", "y", "scratch"))
    n, i, j = t.var("n"), t.var("i"), t.var("j")
    body = t.seq(
        t.loop(i, 5, t.store(scratch, i, t.add(t.load(x, i), t.cast(n, "int64")))),
        t.loop(j, 5, t.store(y, j, t.load(scratch, j))),
    )
    built = t.build([t.function("count", [x, scratch, y, n], body)],
                    t.target("x86_64", kernels.FEATURES))  # fmt: skip
    args = (KernelArg("x", "input", "int64", (5,)), KernelArg("s", "workspace", "int64", (5,)),
            KernelArg("y", "output", "int64", (5,)))  # fmt: skip
    return kernels.scale_add("serial", public_name="count", symbol="count", library=built,
                             args=args, extents=(7,), key="count")  # fmt: skip


def test_workspaces_extents_and_outputs_that_are_inputs_or_weights(tmp_path: Path) -> None:
    five = {name: Value(name, "int64", (5,)) for name in "xabcw"}
    plan = Plan(
        inputs=(five["x"],), outputs=(five["b"], five["x"], five["w"], five["a"]),
        values=(five["a"], five["b"]), constants=(five["w"],),
        steps=(Step("count", None, ("x", "a")), Step("count", None, ("a", "b"))),
    )  # fmt: skip
    weights = {"w": np.arange(5)}
    artifact = Artifact((counting(),), plan, weights)
    model = load(write_package(artifact, tmp_path / "out", "counts").folder)
    x = np.arange(5) * 10
    results = model.run({"x": x})
    assert {k: v.tolist() for k, v in results.items()} == {
        "b": (x + 14).tolist(), "x": x.tolist(), "w": [0, 1, 2, 3, 4], "a": (x + 7).tolist()
    }  # fmt: skip
    results["x"][...] = results["w"][...] = 9  # copies: neither the input nor the mapped weight
    assert x[1] == 10 and model.run({"x": x})["w"].tolist() == [0, 1, 2, 3, 4]


def test_kernels_without_a_model(tmp_path: Path) -> None:
    artifact = Artifact((kernels.scale_add("serial"),))
    written = write_package(artifact, tmp_path / "out", "one")
    with pytest.raises(PackageError, match="holds kernels only"):
        load(written.folder)


def test_a_folder_without_a_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is no folder"):
        load(tmp_path / "none")
    with pytest.raises(PackageError, match="holds no kernel package"):
        load(tmp_path)


def test_a_package_for_another_platform_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(PackageError, match="holds kernels for linux-x86_64, and this is plan9"):
        load(folder)


def test_threads_are_asked_for_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOSCHED_NUM_THREADS", "TVM_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    cores = thread_count()
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert thread_count(1) == 1
    assert thread_count(1000) == cores
    monkeypatch.setenv("AUTOSCHED_NUM_THREADS", "1")
    assert thread_count() == 1
    monkeypatch.setenv("AUTOSCHED_NUM_THREADS", "many")
    with pytest.raises(InputError, match="AUTOSCHED_NUM_THREADS is 'many'"):
        thread_count()
    with pytest.raises(InputError, match="threads is 0"):
        thread_count(0)


def test_a_library_without_the_kernel_is_refused(tmp_path: Path) -> None:
    first, second = kernels.chain().kernels
    artifact = replace(kernels.chain(), kernels=(replace(first, symbol="no_such_symbol"), second))
    write_package(artifact, tmp_path / "out", "chain")
    with pytest.raises(PackageError, match="lacks no_such_symbol"):
        load(tmp_path / "out")
