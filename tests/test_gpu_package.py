"""Packages of Triton kernels in processes of their own, under Triton's interpreter: right by
float64, lazy, and clear where the machine is not what they need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import Arrays, parsed, run_graph, saved, with_weights

from autosched.codegen.artifact import Artifact, ArtifactError, GpuKernel, check, gpu_args
from autosched.codegen.package import write_package
from autosched.codegen.triton_spec import Launch, Tensor, TritonModule
from autosched.examples import example_inputs, make_example
from autosched.ir.frontend.onnx import load_model
from autosched.tools.tune import tune

RNG = np.random.default_rng(5)
# An island between kernels, a reshaped output, an input and a constant that come out again, in
# half precision too.
MIXED = """
agraph (float[6, 20] x, float16[6, 8] h) =>
    (float[6, 33] y, float[3, 66] flat, float16[6, 33] z, float[6, 20] same, float[33] bias)
{
    a = MatMul(x, w)
    b = Add(a, v)
    c = ai.onnx.ml.Binarizer(b)
    d = Mul(c, b)
    y = Tanh(d)
    s = Constant <value_ints: ints = [3, 66]> ()
    flat = Reshape(y, s)
    z = MatMul(h, u)
    same = Identity(x)
    bias = Identity(v)
}
"""


def mixed(folder: Path) -> Path:
    weights: dict[str, np.ndarray] = {
        "w": RNG.standard_normal((20, 33), np.float32), "v": RNG.standard_normal(33, np.float32),
        "u": RNG.standard_normal((8, 33)).astype(np.float16),
    }  # fmt: skip
    return saved(
        with_weights(parsed(MIXED, extra=', "ai.onnx.ml" : 3'), **weights), folder / "mixed.onnx"
    )


def exact(model: Path, inputs: Arrays) -> Arrays:
    """The outputs in float64."""
    shapes = {name: tuple(array.shape) for name, array in inputs.items()}
    return run_graph(load_model(model, shapes), inputs)


class Case:
    """A model tuned for sm_90 with inputs for it, as files."""

    def __init__(self, folder: Path, model: Path, inputs: Arrays) -> None:
        self.inputs, self.model = folder / "in.npz", model
        np.savez(self.inputs, **inputs)
        self.want = exact(model, inputs)
        self.package = folder / "tuned_gpu"
        shapes = {name: tuple(array.shape) for name, array in inputs.items()}
        tune(model, self.package, target="sm_90", shapes=shapes, store=folder / "r.sqlite",
             probe=lambda: None)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("encoder")
    model = make_example("tiny_encoder", folder / "model.onnx")
    return Case(folder, model, example_inputs("tiny_encoder", 1, 9))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("mixed")
    inputs = {
        "x": RNG.standard_normal((6, 20), np.float32),
        "h": RNG.standard_normal((6, 8)).astype(np.float16),
    }
    return Case(folder, mixed(folder), inputs)


HEAD = """
import json, sys
sys.modules["autosched"] = None  # whoever imports it fails
import numpy as np
def show(**facts): print(json.dumps(facts))
"""


def python(code: str, case: Case, interpret: bool = True, **env: str) -> dict[str, Any]:
    """What the code prints, as JSON; `inputs` are the case's."""
    given = {**os.environ, "PYTHONPATH": str(case.package), "OMP_NUM_THREADS": "1", **env}
    given.pop("TRITON_INTERPRET", None)
    if interpret:
        given["TRITON_INTERPRET"] = "1"
    head = f"{HEAD}\ninputs = dict(np.load({str(case.inputs)!r}))\n"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", head + code], env=given, capture_output=True,
        text=True, timeout=120, cwd=case.inputs.parent,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def check_outputs(file: Path, want: Arrays) -> None:
    with np.load(file) as got:
        assert set(got) == set(want)
        for name, b in want.items():
            bound = 1e-3 if got[name].dtype == np.float16 else 1e-5
            a = got[name].astype(np.float64)
            assert a.shape == b.shape, name
            assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b), name


# -- right ---------------------------------------------------------------------------------------


def test_a_whole_encoder_answers_as_float64(encoder: Case) -> None:
    python("""
import tuned_gpu
np.savez("out.npz", **tuned_gpu.load().run(inputs))
show()
""", encoder)  # fmt: skip
    check_outputs(encoder.inputs.parent / "out.npz", encoder.want)


def test_results_are_of_the_kind_of_the_inputs(several: Case) -> None:
    """Arrays for arrays, tensors for tensors, each in memory of its own; and right."""
    found = python("""
import torch, tuned_gpu
model = tuned_gpu.load()
arrays = model.run(inputs)
tensors = model.run({name: torch.from_numpy(a) for name, a in inputs.items()})
assert all(isinstance(a, np.ndarray) for a in arrays.values())
assert all(isinstance(t, torch.Tensor) for t in tensors.values())
assert all((arrays[n] == tensors[n].numpy()).all() for n in arrays)
np.savez("out.npz", **arrays)
places = {t.data_ptr() for t in tensors.values()}
show(distinct=len(places) == len(tensors))
""", several)  # fmt: skip
    assert found["distinct"]
    check_outputs(several.inputs.parent / "out.npz", several.want)


def test_steps_can_be_looked_at_and_timed(several: Case) -> None:
    found = python("""
import tuned_gpu
model = tuned_gpu.load()
traced = list(model.trace(inputs))
times = model.profile(inputs, repeats=2)
model.bound_step(inputs, len(traced) - 1)()
assert (traced[-1].arrays[-1] is not None) and all(t.median_us > 0 for t in times)
show(steps=[t.name for t in times], traced=[t.name for t in traced],
     islands=[t.kernel is None for t in times])
""", several)  # fmt: skip
    assert found["steps"] == found["traced"] and sum(found["islands"]) == 1


def test_public_functions_take_arrays_and_tensors(several: Case) -> None:
    """Raw and packed, by position and by name, and as an operator of torch."""
    found = python("""
import torch, tuned_gpu
name = next(n for n in tuned_gpu.__all__ if "6x33x8" in n)
function = getattr(tuned_gpu, name)
(kernel,) = function.kernels
h, u = inputs["h"], np.full((8, 33), 0.5, "float16")
plain = function(h, u)
packed = function(h, function.pack(u))
turned = function(torch.from_numpy(h.T.copy()).T, torch.from_numpy(u))
operator = function.torch_op(**{kernel.operands[1].name: torch.from_numpy(u)})
made = operator(torch.from_numpy(h))
assert (plain == packed).all() and (turned.numpy() == plain).all() and (made.numpy() == plain).all()
want = h.astype("float64").sum(1, keepdims=True) * 0.5
try: function(h[:3], u)
except ValueError as error: said = str(error)
show(off=float(abs(plain - want).max()), said=said)
""", several)  # fmt: skip
    assert found["off"] < 1e-2
    assert "float16[3, 8], but float16[6, 8] is expected" in found["said"]


# -- lazy ----------------------------------------------------------------------------------------


def test_an_import_loads_nothing_heavy(encoder: Case) -> None:
    found = python("""
heavy = lambda: sorted(set(sys.modules) & {"torch", "triton", "onnxruntime", "tvm_ffi", "tvm"})
before = heavy()
import tuned_gpu
imported = heavy()
model = tuned_gpu.load()
show(before=before, imported=imported, loaded=heavy())
""", encoder)  # fmt: skip
    assert found == {"before": [], "imported": [], "loaded": []}


def test_what_a_package_holds(encoder: Case) -> None:
    """Sources, machine code for its GPU and weights; nothing of a platform."""
    module = encoder.package / encoder.package.name
    data = json.loads((module / "manifest.json").read_text())
    assert data["arch"] == ["sm_90"] and data["platform"] == "any" and data["threads"] is None
    assert not (module / "lib").exists() and not list(module.rglob("*.so"))
    assert {row["code"] for row in data["kernels"]} == {"triton"}
    project = (encoder.package / "pyproject.toml").read_text()
    assert '"torch' in project and '"triton' in project and "tvm" not in project
    assert 'plat-name = "any"' in project
    for row in data["kernels"]:
        text = (module / row["source"]).read_text()
        assert "Definition:" in text and "@triton.jit" in text and row["key"] in text
        assert "def definition(" in (module / row["reference"]).read_text()
        assert len(row["binaries"]) == len(row["launches"]) and row["prefer"] == "kernel"
        for binary in row["binaries"]:
            code = (module / binary["file"]).read_bytes()
            assert code[:4] == b"\x7fELF" and str(Path.cwd()).encode() not in code


# -- machines that lack something ----------------------------------------------------------------


REFUSED = """
import tuned_gpu
try: tuned_gpu.load().run(inputs)
except Exception as error: show(kind=type(error).__name__, said=str(error))
"""


def test_who_wants_the_kernels_or_nothing_is_told_what_lacks(encoder: Case) -> None:
    strict = {"CUDA_VISIBLE_DEVICES": "", "AUTOSCHED_STRICT": "1"}
    found = python(REFUSED, encoder, interpret=False, **strict)
    assert found["kind"] == "UnsupportedMachineError"
    assert "sm_90" in found["said"] and "TRITON_INTERPRET=1" in found["said"]
    assert "AUTOSCHED_STRICT is set" in found["said"]


def test_without_a_gpu_torch_computes_the_definition(encoder: Case) -> None:
    """Told once for the package, without Triton, and right."""
    found = python("""
import warnings
sys.modules["triton"] = None
import tuned_gpu
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    np.savez("out.npz", **tuned_gpu.load().run(inputs))
    tuned_gpu.load().run(inputs)
show(said=[str(w.message) for w in said])
""", encoder, interpret=False, CUDA_VISIBLE_DEVICES="")  # fmt: skip
    check_outputs(encoder.inputs.parent / "out.npz", encoder.want)
    (text,) = found["said"]
    assert "tuned_gpu: these kernels are for GPUs of architecture sm_90" in text
    assert "torch's own operators compute the same on cpu, slower" in text


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_without_torch_or_triton_one_clear_message(encoder: Case, missing: str) -> None:
    """Triton is asked for by TRITON_INTERPRET."""
    found = python(f"sys.modules[{missing!r}] = None\n{REFUSED}", encoder)
    assert found["kind"] == "UnsupportedMachineError"
    assert f"{missing} is not installed" in found["said"].lower()


def test_another_gpu_is_refused_by_name(encoder: Case) -> None:
    found = python("""
import torch
from tuned_gpu.runtime.gpu import why_not
torch.cuda.get_device_capability = lambda device: (8, 0)
torch.cuda.get_device_name = lambda device: "NVIDIA A100"
show(said=why_not("sm_90", torch.device("cuda", 0)))
""", encoder, interpret=False)  # fmt: skip
    assert "tuned for sm_90, and NVIDIA A100 is sm_80" in found["said"]


# -- artifacts that contradict themselves --------------------------------------------------------


def gpu_kernel(**changes: Any) -> GpuKernel:
    module = TritonModule(
        "def f(x, y): ...\n",
        (Tensor("x", "float32", (4,), "input"), Tensor("s", "float32", (4,), "scratch"),
         Tensor("y", "float32", (4,), "output")),
        (Launch("f", ("x", "s", "y"), 1, 4, 1),),
    )  # fmt: skip
    facts: dict[str, Any] = {
        "key": "k", "public_name": "copy_4", "doc": "A copy.", "source": module.source,
        "definition": "y = x", "schedule": {}, "args": gpu_args(module), "latency_us": 2.5,
        "peer_us": None, "target": "gpu/sm_90/x/", "toolchain": "t", "module": module,
        "arch": "sm_90",
    }  # fmt: skip
    return GpuKernel(**(facts | changes))


def test_scratch_is_no_argument_and_a_time_is_told(tmp_path: Path) -> None:
    kernel = gpu_kernel()
    assert [a.name for a in kernel.args] == ["x", "y"]
    written = write_package(Artifact((kernel,)), tmp_path / "out", "out")
    (file,) = written.module.glob("kernels/*.py")
    assert "Measured: 2.5 us" in file.read_text()


def test_contradictions_are_found() -> None:
    with pytest.raises(ArtifactError, match="not the tensors of its module"):
        check(Artifact((gpu_kernel(args=gpu_kernel().args[:1]),)))
    module = gpu_kernel().module
    lost = TritonModule(module.source, module.tensors, (Launch("f", ("x", "q"), 1, 4, 1),))
    with pytest.raises(ArtifactError, match="passed q, which is no tensor"):
        check(Artifact((gpu_kernel(module=lost),)))


def test_the_model_is_one_that_islands_take_part_in(several: Case) -> None:
    """Else the tests above would not show what they are to show."""
    data = json.loads((several.package / "tuned_gpu/manifest.json").read_text())
    assert data["plan"]["islands"] and data["weights"]
