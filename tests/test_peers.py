"""Parts of an ONNX model found by their values: the right nodes, the right answers, and a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_models import parsed, saved, with_weights

from autosched.examples import make_example
from autosched.ir.frontend.onnx import load_model
from autosched.ir.partition import KernelStep, partition
from autosched.ir.target import host_target
from autosched.tools.arrays import draw_model_inputs
from autosched.tools.peers import Peer, extract, part_side
from autosched.tools.subgraph import OnnxModel

SHAPES = {"input_ids": (1, 16), "attention_mask": (1, 16)}
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_example("tiny_encoder", tmp_path_factory.mktemp("model") / "tiny.onnx")


# -- cutting ---------------------------------------------------------------------------------------


def two_layers(folder: Path) -> tuple[OnnxModel, dict[str, np.ndarray]]:
    """Two products with a bias, a view before each, and a mask that both use."""
    model = with_weights(parsed("""agraph (float[2, 6] x, float[6] m) => (float[6, 2] y) {
        mask = Exp(m)
        v = Transpose<perm = [1, 0]>(w)
        a = MatMul(x, v)
        b = Mul(a, mask)
        c = Tanh(b)
        d = MatMul(c, v)
        e = Mul(d, mask)
        y = Transpose<perm = [1, 0]>(e)
    }"""), w=floats(6, 6))  # fmt: skip
    path = saved(model, folder / "two.onnx")
    cut = OnnxModel(path)
    inputs = {"x": floats(2, 6), "m": floats(6)}
    session = onnxruntime.InferenceSession(cut.with_every_output())
    names = [o.name for o in session.get_outputs()]
    return cut, {**inputs, **dict(zip(names, session.run(names, inputs)))}


def test_every_value_that_depends_on_inputs_is_there(tmp_path: Path) -> None:
    cut, arrays = two_layers(tmp_path)
    assert set(arrays) >= {"x", "m", "mask", "a", "b", "c", "d", "e", "y"}
    assert cut.constants == ("v",) and "v" not in arrays


def test_a_part_has_what_lies_between_and_nothing_shared(tmp_path: Path) -> None:
    cut, arrays = two_layers(tmp_path)
    part = cut.part({"c"}, ["e"], arrays)
    assert part is not None
    proto = onnx.load_from_string(part.model)
    assert [n.op_type for n in proto.graph.node] == ["Transpose", "MatMul", "Mul"]
    assert set(part.feeds) == {"c", "mask"}  # the mask is others' work, the view of w is ours
    session = onnxruntime.InferenceSession(part.model)
    assert np.array_equal(session.run(["e"], dict(part.feeds))[0], arrays["e"])


def test_of_equal_values_the_first_one_counts(tmp_path: Path) -> None:
    cut, _ = two_layers(tmp_path)
    assert cut.first(["e", "y"]) == {"e"} and cut.first(["x", "c"]) == {"x", "c"}
    assert cut.part({"e"}, ["e"], {}) is None


# -- a real model ------------------------------------------------------------------------------


def test_parts_of_an_encoder_cover_it_once(model: Path, tmp_path: Path) -> None:
    found = extract(str(model), SHAPES, "cpu", 0, str(tmp_path), 60.0)
    part_of = found["parts"]
    tasks = {t.key for t in partition(load_model(model, SHAPES), host_target()).tasks}
    assert set(part_of) | set(found["missing"]) == tasks and len(part_of) >= 0.8 * len(tasks)
    proto = onnx.load(model)
    fixed = {n.output[0] for n in proto.graph.node if n.op_type == "Constant"}
    nodes = [n.output[0] for p in part_of.values() for n in onnx.load(p["model"]).graph.node]
    varying = [n for n in nodes if n not in fixed]
    assert len(set(varying)) == len(varying)


def test_a_part_answers_as_the_task_defines(model: Path, tmp_path: Path) -> None:
    """The outputs of each part are those of its step, up to layout and a factor."""
    found = extract(str(model), SHAPES, "cpu", 0, str(tmp_path), 60.0)
    graph = load_model(model, SHAPES)
    cut = partition(graph, host_target())
    inputs = draw_model_inputs(graph, 0)
    assert set(inputs) == set(SHAPES)
    for step in cut.steps:
        if isinstance(step, KernelStep) and step.task in found["parts"]:
            part = found["parts"][step.task]
            outputs = onnx.load(part["model"]).graph.output
            assert len(outputs) == len(step.outputs)
            sizes = [int(np.prod(cut.values[n].shape)) for n in step.outputs]
            session = onnxruntime.InferenceSession(part["model"])
            with np.load(part["inputs"]) as feeds:
                got = session.run(None, dict(feeds))
            assert sorted(g.size for g in got) == sorted(sizes)


def test_timing_a_part(model: Path, tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        peer.extract(model, SHAPES, "cpu", 0)
        key = next(iter(peer.found["parts"]))
        timing = peer.time(key)
        assert timing is not None and timing.median_us > 0 and peer.why_not(key) is None
        assert peer.time("no such task") is None and peer.why_not("no such task")
    run = part_side(*(peer.found["parts"][key][f] for f in ("model", "inputs")))
    run()
    run()


def test_a_peer_that_fails_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with Peer(tmp_path) as peer:
        peer.extract(tmp_path / "broken.onnx", {}, "cpu", 0)
        assert peer.found["parts"] == {} and peer.time("x") is None
        assert "broken.onnx" in (peer.why_not("x") or "")
