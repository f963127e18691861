"""ONNX's own node tests: cases of our operators out, each with its import and expected outputs.

A case is kept in a folder as ONNX keeps them (`model.onnx`, `test_data_set_0/input_0.pb`, ...),
so that any folder of such cases can be checked, and a worker process needs nothing but a path.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.version_converter
from onnx.reference import ReferenceEvaluator

from autosched.ir.frontend.call import DTYPES_BY_NUMBER, HALVES
from autosched.ir.frontend.onnx import import_model, written_out
from autosched.ir.frontend.table import OPSETS, TABLE
from autosched.ir.graph import ModelError, ModelGraph

MODEL, DATA, BOUNDS = "model.onnx", "test_data_set_0", "data.json"


@dataclass(frozen=True)
class Case:
    """One test: a model, its inputs by name, and what its outputs must be, in order.

    rtol, atol: how far an element of a float output may be off, as numpy's allclose reads them.
    """

    name: str
    model: onnx.ModelProto
    feed: Mapping[str, np.ndarray]
    expected: tuple[np.ndarray, ...]
    rtol: float = 1e-3
    atol: float = 1e-7

    @property
    def family(self) -> str:
        """The operator; for a case of several nodes what it writes out."""
        nodes = self.model.graph.node
        return nodes[0].op_type if len(nodes) == 1 else "written out: " + _family(self.name)


def _family(name: str) -> str:
    return re.sub(r"^test_|_expanded.*$", "", name).split("_")[0]


# ---- collecting --------------------------------------------------------------------------------


@cache
def _collected() -> tuple[Any, ...]:
    """The node tests of the installed onnx whose operators are all in the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    assert all(len(c.data_sets or ()) == 1 for c in found)
    return tuple(c for c in found if c.model and _is_known(c.model))


def _is_known(model: onnx.ModelProto) -> bool:
    return all(n.op_type in TABLE for n in written_out(model).graph.node)


def cases() -> Iterator[Case]:
    """The node tests of the table's operators, on types that the algebra has."""
    for found in _collected():
        if not foreign_types(found.model):
            given, expected = ([_array(v) for v in side] for side in found.data_sets[0])
            feed = dict(zip((i.name for i in found.model.graph.input), given))
            case = Case(found.name, found.model, feed, tuple(expected), found.rtol, found.atol)
            yield replace(case, model=modern(case))


def refused() -> Iterator[tuple[Case, str]]:
    """The other node tests of the table's operators, without arrays; and why."""
    for found in _collected():
        if types := foreign_types(found.model):
            yield Case(found.name, found.model, {}, ()), "of type " + ", ".join(types)


def foreign_types(model: onnx.ModelProto) -> list[str]:
    """The types of a model's inputs and outputs that the algebra does not have."""
    found = set()
    for end in (*model.graph.input, *model.graph.output):
        kind, number = end.type.WhichOneof("value"), end.type.tensor_type.elem_type
        if kind != "tensor_type":
            found.add(kind.removesuffix("_type"))
        elif number not in DTYPES_BY_NUMBER:
            found.add(onnx.TensorProto.DataType.Name(number).lower())
    return sorted(found)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def modern(case: Case) -> onnx.ModelProto:
    """The model under an opset that we take: as it is, where its operators mean the same there,
    else converted as the importer advises, where that is still the same test."""
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    (default,) = (o for o in model.opset_import if o.domain == "")
    if default.version >= OPSETS[0]:
        return model
    known = [n for n in model.graph.node if not n.domain]
    if all(_since(n, default.version) == _since(n, OPSETS[0]) for n in known):
        default.version = OPSETS[0]
        return model
    converted = onnx.version_converter.convert_version(model, OPSETS[0])
    made = ReferenceEvaluator(converted).run(None, dict(case.feed))
    return converted if all(map(np.array_equal, made, case.expected)) else model


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
    (folder / BOUNDS).write_text(json.dumps({"rtol": case.rtol, "atol": case.atol}))


def read_case(folder: Path) -> Case:
    """The case in a folder that `write_case`, or ONNX, wrote."""
    model = onnx.load_model(folder / MODEL)
    feed = dict(zip((i.name for i in model.graph.input), _arrays(folder, "input")))
    bounds = folder / BOUNDS
    given = json.loads(bounds.read_text()) if bounds.is_file() else {}
    return Case(folder.name, model, feed, tuple(_arrays(folder, "output")), **given)


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
        counts = array.dtype.kind in "iub" and (at > 0 or scalars)
        factors = scalars and (at > 0 or array.ndim == 0)
        if array.ndim <= 1 and (counts or factors):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
            model.graph.input.remove(info)


# ---- the exact answer --------------------------------------------------------------------------


def exact(case: Case) -> tuple[np.ndarray, ...]:
    """What ONNX's reference says in float64: where a case expects half precision, its values were
    rounded at every step, and may lie two units in the last place from a kernel that is as near
    to the truth as they are."""
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    for end in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        end.type.tensor_type.elem_type = _doubled(end.type.tensor_type.elem_type)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "softmax_precision", "stash_type"):
                attribute.i = _doubled(attribute.i)
            elif _doubled(attribute.t.data_type) != attribute.t.data_type:
                array = onnx.numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(array))
    feed = {n: a.astype(np.float64) if a.dtype.name in NARROW else a for n, a in case.feed.items()}
    with np.errstate(all="ignore"):
        return tuple(map(np.asarray, ReferenceEvaluator(model).run(None, feed)))


NARROW = ("float32", *HALVES)


def _doubled(number: int) -> int:
    """The number of float64 for that of a narrower float."""
    narrow = DTYPES_BY_NUMBER.get(number) in NARROW
    return int(onnx.TensorProto.DOUBLE) if narrow else number
