"""Bad model files and bad shapes: one message that names the cause, never a traceback."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import imported, load_model, parsed, run_graph, saved, with_weights

from autosched.ir.frontend.external import ExternalData
from autosched.ir.frontend.shapes import InputSpec, bind_shapes
from autosched.ir.graph import ModelError


def message(call: object, *args: object) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args)  # type: ignore[operator]
    text = str(caught.value)
    assert 20 < len(text) < 600 and "Traceback" not in text
    return text


def linear(weight: np.ndarray | None = None) -> onnx.ModelProto:
    model = parsed("agraph (float[2, 64] x) => (float[2, 64] y) {y = MatMul(x, w)}")
    return with_weights(model, w=np.eye(64, dtype=np.float32) if weight is None else weight)


# ---- the file ---------------------------------------------------------------------------------


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist" in message(load_model, tmp_path / "none.onnx")
    assert "is a folder" in message(load_model, tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello world\n", b"PK\x03\x04" + bytes(100), bytes(64)])
def test_something_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert "ONNX" in message(load_model, path)


def test_every_truncation_is_a_message(tmp_path: Path) -> None:
    data = linear(np.arange(64 * 64, dtype=np.float32).reshape(64, 64) ** 0.5).SerializeToString()
    path = tmp_path / "m.onnx"
    cuts = [*range(200), *range(200, len(data), 997), *range(len(data) - 100, len(data))]
    for cut in cuts:
        path.write_bytes(data[:cut])
        message(load_model, path)


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    data = bytearray(linear().SerializeToString())
    path, rng = tmp_path / "m.onnx", np.random.default_rng(0)
    tail = len(data) - 100
    places = [*range(60), *range(tail, len(data)), *rng.integers(0, len(data), 60).tolist()]
    survived = 0
    for at in places:
        broken = bytearray(data)
        broken[at] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        try:
            load_model(path)
            survived += 1
        except ModelError:
            pass
    assert survived < len(places)


def test_a_weight_with_too_few_bytes() -> None:
    model = linear()
    model.graph.initializer[0].raw_data = bytes(100)
    assert "needs 16384 bytes, the file holds 100" in message(imported, model)


def test_a_weight_of_unknown_type_or_shape() -> None:
    model = linear()
    model.graph.initializer[0].data_type = 99
    assert "unknown type number 99" in message(imported, model)
    model = linear()
    model.graph.initializer[0].dims[0] = -64
    assert "[-64, 64]" in message(imported, model)


def test_sparse_weights() -> None:
    model = linear()
    model.graph.sparse_initializer.add()
    assert "sparse" in message(imported, model)


def test_a_value_that_nothing_makes() -> None:
    model = linear()
    model.graph.node[0].input[1] = "ghost"
    assert "'ghost'" in message(imported, model)
    model = linear()
    model.graph.output[0].name = "ghost"
    assert "'ghost'" in message(imported, model)


# ---- operators and opsets ---------------------------------------------------------------------


@pytest.mark.parametrize("opset, word", [(12, "older"), (99, "newer")])
def test_opsets_out_of_range(opset: int, word: str) -> None:
    model = linear()
    model.opset_import[0].version = opset
    text = message(imported, model)
    assert word in text and str(opset) in text


def test_an_operator_that_onnx_does_not_have() -> None:
    model = linear()
    model.graph.node[0].op_type = "MatMull"
    assert "'MatMull'" in message(imported, model)


def test_an_operator_of_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A definition newer than the row runs in onnxruntime and the coverage line says so."""
    from autosched.ir.frontend import build

    row = build.TABLE["MatMul"]
    monkeypatch.setitem(build.TABLE, "MatMul", type(row)("MatMul", (1, 9), row.build))
    graph = imported(linear())
    assert "version 13 is unknown" in graph.coverage.line()
    x = np.ones((2, 64), np.float32)
    np.testing.assert_array_equal(run_graph(graph, {"x": x})["y"], x)


def test_inputs_that_are_no_tensors() -> None:
    model = parsed("agraph (seq(float[2]) x) => (float[2] y) {i = Constant<value_int=0>() "
                   "y = SequenceAt(x, i)}")  # fmt: skip
    assert "'x'" in message(imported, model)


# ---- shapes -----------------------------------------------------------------------------------


SPECS = (
    InputSpec("input_ids", "int64", ("batch", "sequence")),
    InputSpec("attention_mask", "int64", ("batch", "sequence")),
    InputSpec("scale", "float32", (4, "")),
)


def test_one_flag_gives_the_symbols_everywhere() -> None:
    specs = SPECS[:2]
    assert bind_shapes(specs, {"input_ids": (1, 128)})["attention_mask"] == (1, 128)


@pytest.mark.parametrize(
    "given, words",
    [
        ({}, ("'input_ids'", "'batch'", "--shape input_ids=1,128")),
        ({"input_ids": (2, 64)}, ("'scale'", "--shape scale=4,1")),
        ({"input_id": (1, 128)}, ("input_id", "no such input", "input_ids, attention_mask, scale")),
        ({"input_ids": (1, 128, 1)}, ("input_ids=1,128,1", "3 dimensions", "[batch, sequence]")),
        ({"scale": (5, 1)}, ("scale=5,1", "[4, ?]")),
        (
            {"input_ids": (1, 128), "attention_mask": (1, 64)},
            ("attention_mask=1,64", "128", "input_ids=1,128"),
        ),
        ({"input_ids": (-1, 128)}, ("negative",)),
    ],
)
def test_shapes_that_do_not_do(given: dict[str, tuple[int, ...]], words: tuple[str, ...]) -> None:
    text = message(bind_shapes, SPECS, given)
    for word in words:
        assert word in text


def test_an_input_of_unknown_rank() -> None:
    spec = InputSpec("x", "float32", None)
    assert "--shape x=1,128" in message(bind_shapes, (spec,), {})
    assert bind_shapes((spec,), {"x": (3,)}) == {"x": (3,)}


def test_a_shape_that_contradicts_the_graph_names_the_operator() -> None:
    model = parsed("agraph (float[n, k] x) => (float[n, 64] y) {y = MatMul(x, w)}")
    with_weights(model, w=np.eye(64, dtype=np.float32))
    with pytest.raises(ModelError, match=r"MatMul.*\(2, 32\).*\(64, 64\)"):
        imported(model, x=(2, 32))


def test_a_reshape_that_does_not_fit() -> None:
    model = parsed("agraph (float[n] x) => (float[4, 3] y) <int64[2] s = {4, 3}> "
                   "{y = Reshape(x, s)}")  # fmt: skip
    with pytest.raises(ModelError, match=r"Reshape.*\(13,\).*\(4, 3\)"):
        imported(model, x=(13,))


# ---- external data ----------------------------------------------------------------------------


def outside(tmp_path: Path, **facts: str) -> Path:
    """A model whose weight lies in weights.bin, with some of its facts changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    model = linear()
    (folder / "weights.bin").write_bytes(model.graph.initializer[0].raw_data)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": "weights.bin"} | facts).items():
        tensor.external_data.add(key=key, value=value)
    return saved(model, folder / "m.onnx")


def test_external_data_is_mapped(tmp_path: Path) -> None:
    path = outside(tmp_path)
    np.random.default_rng(0).random((64, 64), np.float32).tofile(path.parent / "weights.bin")
    array = load_model(path).weights["w"].load()
    while not isinstance(array, np.memmap):
        assert isinstance(array, np.ndarray)
        array = array.base
    assert not array.flags.writeable


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret", "a/../../secret", "..\\secret", "C:\\secret", "", "sub/../../x"],
)
def test_external_data_outside_of_the_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16384))
    assert "outside of the model's folder" in message(
        load_model, outside(tmp_path, location=location)
    )


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    text = message(load_model, outside(tmp_path, location="gone.bin"))
    assert "'gone.bin'" in text and "missing" in text and str(tmp_path) in text


def test_external_data_behind_a_link(tmp_path: Path) -> None:
    path = outside(tmp_path)
    data, secret = path.parent / "weights.bin", tmp_path / "secret"
    data.rename(secret)
    data.symlink_to(secret)
    assert "is a link" in message(load_model, path)
    data.unlink()
    os.link(secret, data)
    assert "hard link" in message(load_model, path)


def test_external_data_in_a_linked_folder(tmp_path: Path) -> None:
    path = outside(tmp_path, location="sub/weights.bin")
    (tmp_path / "other").mkdir()
    (path.parent / "weights.bin").rename(tmp_path / "other" / "weights.bin")
    (path.parent / "sub").symlink_to(tmp_path / "other")
    assert "is a link" in message(load_model, path)


def test_external_data_that_is_no_file(tmp_path: Path) -> None:
    path = outside(tmp_path)
    (path.parent / "weights.bin").unlink()
    os.mkfifo(path.parent / "weights.bin")
    assert "no regular file" in message(load_model, path)
    (path.parent / "weights.bin").unlink()
    (path.parent / "weights.bin").mkdir()
    assert "weights.bin" in message(load_model, path)


@pytest.mark.parametrize(
    "facts", [{"offset": "4"}, {"offset": "-4"}, {"length": "99999"}, {"length": "-1"}]
)
def test_external_data_beyond_its_file(facts: dict[str, str], tmp_path: Path) -> None:
    assert "weights.bin" in message(load_model, outside(tmp_path, **facts))


def test_external_data_of_another_length(tmp_path: Path) -> None:
    assert "needs 16384 bytes" in message(load_model, outside(tmp_path, length="1024"))
    (tmp_path / "b").mkdir()
    assert "no numbers" in message(load_model, outside(tmp_path / "b", offset="four"))


def test_an_external_tensor_inside_a_node_is_checked_too(tmp_path: Path) -> None:
    model = parsed("agraph (float[2] x) => (float[2] y) {c = Constant<value_float=1.0>() "
                   "y = Add(x, c)}")  # fmt: skip
    tensor = onnx.TensorProto(data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("value", tensor))
    (tmp_path / "secret").write_bytes(bytes(8))
    assert "outside" in message(load_model, saved(model, tmp_path / "m.onnx"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a file with holes")
def test_a_model_above_two_gibibytes(tmp_path: Path) -> None:
    rows = 2**31 // 4096 + 100
    model = parsed(f"agraph (float[{rows}, 1024] t, int64[2] i) => (float[2, 1024] y) "
                   "{y = Gather(t, i)}")  # fmt: skip
    del model.graph.input[0]
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[rows, 1024])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="big.bin")
    model.graph.initializer.append(tensor)
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(rows * 4096)
        file.seek(rows * 4096 - 4)
        file.write(np.float32(7).tobytes())
    graph = load_model(saved(model, tmp_path / "m.onnx"))
    weight = graph.weights["t"].load()
    assert weight.nbytes > 2**31 and weight[-1, -1] == 7


def test_a_file_is_opened_and_mapped_once(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(range(100)))
    data = ExternalData(tmp_path)
    first, second = data.read("a", "w.bin", 0, 10), data.read("b", "w.bin", 10, 10)
    assert first.base is second.base and second[0] == 10
