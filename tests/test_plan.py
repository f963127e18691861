"""Plans of models with constants, islands and odd outputs: packages answer as the models do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import Arrays, onnxruntime_of, parsed, saved, with_weights

from autosched.codegen.runtime.model import Model, load
from autosched.ir.frontend.onnx import load_model
from autosched.ir.partition import KernelStep, partition
from autosched.ir.target import host_target
from autosched.tools.lab import LIMITS
from autosched.tools.plan import constants_of, run_time_tasks
from autosched.tools.tune import tune

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32) / np.float32(shape[0]) ** 0.5


def tuned(model: onnx.ModelProto, folder: Path) -> Model:
    """The package of a model as the tuner's first picks have it."""
    path = saved(model, folder / "model.onnx")
    tune(path, folder / "out", trials=0, store=folder / "records.sqlite", limits=LIMITS)
    return load(folder / "out")


def check(model: onnx.ModelProto, folder: Path, inputs: Arrays) -> Model:
    package = tuned(model, folder)
    ours, theirs = package.run(inputs), onnxruntime_of(folder / "model.onnx", inputs)
    assert set(ours) == set(theirs)
    for name, want in theirs.items():
        assert ours[name].dtype == want.dtype and ours[name].shape == want.shape, name
        assert np.allclose(ours[name], want, 1e-5, 1e-5), name
    return package


def test_an_island_between_kernels(tmp_path: Path) -> None:
    """Binarizer is nobody's row: onnxruntime runs it between two of our kernels."""
    model = with_weights(parsed("""agraph (float[1, 6, 40] x) => (float[1, 6, 24] y) {
        a = MatMul(x, w)
        b = Relu(a)
        c = ai.onnx.ml.Binarizer<threshold = 0.5>(b)
        d = MatMul(c, v)
        y = Tanh(d)
    }""", extra=', "ai.onnx.ml" : 3'), w=floats(40, 48), v=floats(48, 24))  # fmt: skip
    package = check(model, tmp_path, {"x": floats(1, 6, 40)})
    assert len(package.islands) == 1


def test_an_island_reads_an_input_and_a_big_weight(tmp_path: Path) -> None:
    """Det takes them as they are: a weight with dimensions of size 1 keeps its shape."""
    model = with_weights(parsed("""agraph (float[1, 3, 3] x, float[5, 20] z)
        => (float[1] d, float[5, 20] y) {
        s = Add(x, w)
        d = Det(s)
        y = Sigmoid(z)
    }"""), w=floats(1, 3, 3))  # fmt: skip
    check(model, tmp_path, {"x": floats(1, 3, 3), "z": floats(5, 20)})


def constant_chain() -> onnx.ModelProto:
    """y = x (w v): the product of the weights is the same at every call."""
    return with_weights(parsed("""agraph (float[7, 80] x) => (float[7, 90] y, float[7, 90] z) {
        p = MatMul(w, v)
        y = MatMul(x, p)
        z = Add(y, y)
    }"""), w=floats(80, 80), v=floats(80, 90))  # fmt: skip


def test_what_weights_alone_decide_never_runs(tmp_path: Path) -> None:
    path = saved(constant_chain(), tmp_path / "chain.onnx")
    graph = load_model(path)
    part = partition(graph, host_target())
    steps = [s for s in part.steps if isinstance(s, KernelStep) and s.constant]
    if not steps:
        pytest.skip("the importer has folded the product itself")
    assert {t.key for t in run_time_tasks(part)}.isdisjoint(s.task for s in steps)
    found = constants_of(graph, part)[steps[0].outputs[0]].load()
    weights = [graph.weights[n].load() for n in ("w", "v")]
    assert np.allclose(found.reshape(80, 90), weights[0] @ weights[1], 1e-5, 1e-5)


def test_a_constant_product_in_a_package(tmp_path: Path) -> None:
    package = check(constant_chain(), tmp_path, {"x": floats(7, 80)})
    assert not any("80x90x80" in str(k.data["public_name"]) for k in package.kernels.values())


def test_shared_weights_are_packed_once(tmp_path: Path) -> None:
    """One weight under two names, read by two products of one shape."""
    same = floats(64, 64)
    model = with_weights(parsed("""agraph (float[9, 64] x) => (float[9, 64] y) {
        a = MatMul(x, w)
        b = Tanh(a)
        c = MatMul(b, v)
        y = Tanh(c)
    }"""), w=same, v=same.copy())  # fmt: skip
    check(model, tmp_path, {"x": floats(9, 64)})
    bytes_ = (tmp_path / "out" / "out" / "weights.bin").stat().st_size
    assert bytes_ < 1.6 * same.nbytes


def test_outputs_that_are_inputs_weights_and_integers(tmp_path: Path) -> None:
    model = with_weights(parsed("""agraph (float[4, 5] x, int64[4] i)
        => (float[4, 5] same, float[5, 4] turned, bool[4] flag, int64[4] more) {
        same = Identity(x)
        turned = Transpose<perm = [1, 0]>(x)
        flag = Greater(i, zero)
        more = Add(i, one)
    }"""), zero=np.array(0, np.int64), one=np.array(1, np.int64))  # fmt: skip
    check(model, tmp_path, {"x": floats(4, 5), "i": np.array([-1, 0, 3, 9], np.int64)})
