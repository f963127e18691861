"""ONNX's own node tests: cases of our operators out, each with its import and expected outputs.

A case is kept in a folder as ONNX keeps them (`model.onnx`, `test_data_set_0/input_0.pb`, ...),
so that any folder of such cases can be checked, and a worker process needs nothing but a path.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs

from autosched.ir.frontend.call import DTYPES_BY_NUMBER
from autosched.ir.frontend.onnx import import_model
from autosched.ir.frontend.table import OPSETS, TABLE
from autosched.ir.graph import ModelError, ModelGraph

MODEL, DATA = "model.onnx", "test_data_set_0"


@dataclass(frozen=True)
class Case:
    """One test: a model, its inputs by name, and what its outputs must be, in order."""

    name: str
    model: onnx.ModelProto
    feed: Mapping[str, np.ndarray]
    expected: tuple[np.ndarray, ...]

    @property
    def family(self) -> str:
        """The operator; for a case of several nodes what it writes out."""
        nodes = self.model.graph.node
        return nodes[0].op_type if len(nodes) == 1 else "written out: " + _family(self.name)


def _family(name: str) -> str:
    return re.sub(r"^test_|_expanded.*$", "", name).split("_")[0]


# ---- collecting --------------------------------------------------------------------------------


def cases() -> Iterator[Case]:
    """The node tests of the installed onnx whose operators are all in the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    for case in found:
        assert case.model is not None and case.data_sets is not None
        if not case.name.endswith("_old") and is_ours(case.model):
            given, expected = ([_array(v) for v in side] for side in case.data_sets[0])
            model = modern(case.model)
            feed = dict(zip((i.name for i in model.graph.input), given))
            yield Case(case.name, model, feed, tuple(expected))


def is_ours(model: onnx.ModelProto) -> bool:
    """Whether the table has all operators of a model, and the algebra its types."""
    ends = (*model.graph.input, *model.graph.output)
    return all(n.op_type in TABLE for n in model.graph.node) and all(
        i.type.HasField("tensor_type") and i.type.tensor_type.elem_type in DTYPES_BY_NUMBER
        for i in ends
    )


def _array(value: Any) -> np.ndarray:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model under an opset that we take, where its operators mean the same there."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for opset in model.opset_import:
        if (
            opset.domain == ""
            and opset.version < OPSETS[0]
            and all(_since(n, opset.version) == _since(n, OPSETS[0]) for n in model.graph.node)
        ):
            opset.version = OPSETS[0]
    return model


def _since(node: onnx.NodeProto, version: int) -> int:
    return int(onnx.defs.get_schema(node.op_type, version, node.domain).since_version)


# ---- folders -----------------------------------------------------------------------------------


def write_case(case: Case, folder: Path) -> None:
    """Writes a case the way ONNX does."""
    data = folder / DATA
    data.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(case.model.SerializeToString())
    for kind, arrays in (("input", case.feed.values()), ("output", case.expected)):
        for n, array in enumerate(arrays):
            tensor = onnx.numpy_helper.from_array(np.asarray(array))
            (data / f"{kind}_{n}.pb").write_bytes(tensor.SerializeToString())


def read_case(folder: Path) -> Case:
    """The case in a folder that `write_case`, or ONNX, wrote."""
    model = onnx.load_model(folder / MODEL)
    feed = dict(zip((i.name for i in model.graph.input), _arrays(folder, "input")))
    return Case(folder.name, model, feed, tuple(_arrays(folder, "output")))


def _arrays(folder: Path, kind: str) -> list[np.ndarray]:
    out: list[np.ndarray] = []
    while (path := folder / DATA / f"{kind}_{len(out)}.pb").is_file():
        out.append(onnx.numpy_helper.to_array(onnx.load_tensor(path)))
    return out


# ---- importing ---------------------------------------------------------------------------------


def import_case(case: Case) -> ModelGraph:
    """The model without islands if there is a way: as it is, or with its parameters constant.

    Raises: ModelError where it can't be imported at all.
    """
    last: ModelGraph | ModelError | None = None
    for constants in (None, False, True):
        model = onnx.ModelProto.FromString(case.model.SerializeToString())
        if constants is not None:
            _make_constant(model, case.feed, scalars=constants)
        try:
            last = import_model(model, Path(MODEL), {})
        except ModelError as error:
            last = error
            continue
        if not last.islands:
            return last
    if isinstance(last, ModelError):
        raise last
    assert last is not None
    return last


def _make_constant(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], *, scalars: bool
) -> None:
    """Makes shapes, axes and the like constants, as every export has them."""
    for at, info in enumerate(list(model.graph.input)):
        array = np.asarray(feed[info.name])
        whole = array.dtype.kind in "iub" and array.ndim <= 1 and (at > 0 or scalars)
        if whole or (scalars and array.ndim == 0):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
            model.graph.input.remove(info)
