"""The example models: valid, runnable at any batch and sequence, a function of their seed."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from autosched.examples import EXAMPLES, GRAPHS, draw, example_inputs, make_example

OUTPUTS = {"encoder": ["last_hidden_state", "pooled"], "decoder": ["logits"]}


def kind(name: str) -> str:
    return name.removeprefix("tiny_")


@pytest.fixture(scope="module", params=sorted(EXAMPLES))
def made(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, make_example(request.param, folder / "sub" / "model.onnx")


@pytest.fixture(scope="module")
def session(made) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(made[1])


def run(session, name, batch, sequence, **changes):
    inputs = example_inputs(name, batch, sequence) | changes
    return dict(zip(OUTPUTS[kind(name)], session.run(OUTPUTS[kind(name)], inputs)))


def test_valid_with_free_named_dimensions(made):
    name, path = made
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path).graph
    dims = {i.name: [d.dim_param for d in i.type.tensor_type.shape.dim] for i in graph.input}
    assert dims == {n: ["batch", "sequence"] for n in ("input_ids", "attention_mask")}
    assert [o.name for o in graph.output] == OUTPUTS[kind(name)]
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_attention_and_activations_are_written_out(made):
    name, path = made
    ops = {n.op_type for n in onnx.load(path).graph.node}
    assert {"MatMul", "Softmax"} <= ops
    assert not ops & {"Attention", "Gelu", "RMSNormalization", "RotaryEmbedding"}
    extra = {"encoder": {"Erf", "LayerNormalization"}, "decoder": {"IsNaN", "Where", "Sigmoid"}}
    assert extra[kind(name)] <= ops


def test_graphs_carry_no_weights_and_no_trace_of_their_maker():
    for file in GRAPHS.iterdir():
        assert file.stat().st_size < 100_000
    for name in EXAMPLES:
        model = onnx.load(GRAPHS / f"{name}.onnx")
        assert not model.metadata_props
        for item in (*model.graph.node, *model.graph.initializer, *model.graph.value_info):
            assert not item.metadata_props and not item.doc_string


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sequence", [37, 128])
def test_runs_finite_and_not_degenerate(made, session, batch, sequence):
    name, _ = made
    for value in run(session, name, batch, sequence).values():
        assert value.shape[0] == batch
        assert np.isfinite(value).all()
        assert 0.3 < value.std() < 3.0
        rows = value.reshape(-1, value.shape[-1])
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        if len(rows) > 1:  # different tokens must not collapse to one answer
            similar = rows @ rows.T
            assert np.abs(similar[~np.eye(len(rows), dtype=bool)]).mean() < 0.9


def test_masked_tokens_do_not_matter_and_others_do(made, session):
    name, _ = made
    inputs = example_inputs(name, 2, 37)
    first = run(session, name, 2, 37)
    lengths = inputs["attention_mask"].sum(1)
    assert (lengths < 37).any()
    row = int(np.argmin(lengths))
    kept = int(lengths[row])
    output = OUTPUTS[kind(name)][0]
    for changed, expect_same in ((kept, True), (kept // 2, False)):
        ids = inputs["input_ids"].copy()
        ids[row, changed] = (ids[row, changed] + 1) % EXAMPLES[name].vocabulary
        second = run(session, name, 2, 37, input_ids=ids)
        last = [out[output][row, kept - 1] for out in (first, second)]
        assert np.allclose(*last, atol=1e-5) == expect_same


@pytest.mark.parametrize("name", ["decoder", "tiny_decoder"])
def test_decoder_is_causal(name, tmp_path):
    session = onnxruntime.InferenceSession(make_example(name, tmp_path / "model.onnx"))
    long = example_inputs(name, 1, 37)
    full = run(session, name, 1, 37)["logits"]
    cut = {key: value[:, :11] for key, value in long.items()}
    np.testing.assert_allclose(run(session, name, 1, 37, **cut)["logits"], full[:, :11], atol=1e-4)


def test_same_seed_same_bytes_other_seed_other_weights(tmp_path):
    first, again, other = (
        make_example("tiny_encoder", tmp_path / f"{i}.onnx", seed).read_bytes()
        for i, seed in enumerate((7, 7, 8))
    )
    assert first == again
    assert first != other


def test_draw_is_pinned():
    values = draw(3, "layers.0.query.weight_t", (64, 33), 0.5, 2.0)
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    assert digest[:16] == "e02ace15a76ee7de"


def test_draw_has_its_moments():
    values = draw(0, "w", (1000, 100), 1.0, 0.1)
    assert values.dtype == np.float32
    assert abs(values.mean() - 1.0) < 2e-3
    assert abs(values.std() - 0.1) < 1e-3
    assert np.abs(values - 1.0).max() < 0.35
    assert not np.array_equal(values, draw(0, "v", (1000, 100), 1.0, 0.1))
    assert draw(0, "w", (), 0.0, 1.0).shape == ()


def test_external_data_is_the_same_model(tmp_path):
    inside = make_example("tiny_decoder", tmp_path / "a" / "model.onnx")
    outside = make_example("tiny_decoder", tmp_path / "b" / "model.onnx", external_data=True)
    assert sorted(p.name for p in outside.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert outside.stat().st_size < 50_000
    inputs = example_inputs("tiny_decoder")
    one, two = (onnxruntime.InferenceSession(p).run(None, inputs) for p in (inside, outside))
    np.testing.assert_array_equal(one[0], two[0])


def test_files_are_readable_as_any_new_file(tmp_path):
    mask = os.umask(0o022)
    try:
        path = make_example("tiny_encoder", tmp_path / "model.onnx", external_data=True)
    finally:
        os.umask(mask)
    for file in (path, path.with_name("model.onnx.data")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_inputs_are_a_function_of_the_seed():
    one, same, other = (example_inputs("encoder", 4, 37, seed) for seed in (1, 1, 2))
    for key, value in one.items():
        assert value.dtype == np.int64 and value.shape == (4, 37)
        np.testing.assert_array_equal(value, same[key])
    assert not np.array_equal(one["input_ids"], other["input_ids"])
    assert one["input_ids"].min() >= 0
    assert one["input_ids"].max() < EXAMPLES["encoder"].vocabulary
    assert example_inputs("encoder", 1, 1)["attention_mask"].tolist() == [[1]]


def test_errors_name_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"'bert'.*encoder, decoder"):
        make_example("bert", tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="at most 512 tokens, not 513"):
        example_inputs("encoder", sequence=513)
    with pytest.raises(ValueError, match="at least 1"):
        example_inputs("decoder", batch=0)
