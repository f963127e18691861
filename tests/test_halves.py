"""Models in 16 bits, from file to verified package: fp16, and bf16, which onnxruntime lacks."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autosched.tools.bench import bench
from autosched.tools.sides import PeerError
from autosched.tools.tune import tune
from autosched.tools.verify import verify

DTYPES = {"fp16": (TensorProto.FLOAT16, np.float16),
          "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}  # fmt: skip


def model(path: Path, name: str) -> Path:
    """y = softmax(x @ w + b) @ v, all of it in one 16-bit type."""
    code, dtype = DTYPES[name]
    rng = np.random.default_rng(0)

    def weight(key: str, *shape: int) -> onnx.TensorProto:
        raw = rng.standard_normal(shape).astype(dtype).tobytes()
        return helper.make_tensor(key, code, shape, raw, raw=True)

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]), helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, name, [helper.make_tensor_value_info("x", code, [37, 64])],
        [helper.make_tensor_value_info("y", code, [37, 9])],
        [weight("w", 64, 33), weight("b", 33), weight("v", 33, 9)],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("name", DTYPES)
def test_sixteen_bits_end_to_end(name: str, tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", name)
    tune(file, tmp_path / "out", trials=0, store=tmp_path / "records.sqlite")
    found = verify(file, tmp_path / "out")
    assert found.ok, found
    against = {check.reference for check in found.outputs}
    assert against == ({"float64", "onnxruntime"} if name == "fp16" else {"float64"})
    if name == "bf16":
        with pytest.raises(PeerError, match=r"onnxruntime can't load .*NOT_IMPLEMENTED"):
            bench(file, tmp_path / "out", rounds=1)
