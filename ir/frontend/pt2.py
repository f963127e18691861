"""A file of torch.export.save in, the same without whatever would run code when it is loaded out.

torch.export.load unpickles example inputs and some weights, compiles guards from their text and
looks up what it calls by name. So the archive is written anew from what is plain: raw weights, and
a graph of ATen operators whose facts are numbers, names and shapes.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from autosched.ir.graph import ModelError

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_WEIGHT = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_KEPT = ("archive_format", "archive_version", ".data/version", "byteorder")
_TARGET = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.getitem"
                     r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)")
# Kinds of arguments, all of them plain; "as_expr" would be evaluated.
_ARGUMENTS = re.compile(
    r"as_(none|tensors?|optional_tensors?|nested_tensors|ints?|floats?|bools?|strings?|complex|"
    r"scalar_type|memory_format|layout|device|graph|int_lists|float_lists|"
    r"sym_(int|float|bool)s?|name)"
)  # fmt: skip
_FACTS = ("graph_module", "opset_version", "range_constraints", "schema_version", "verifiers",
          "torch_version")  # fmt: skip
_NOTES = ("stack_trace", "nn_module_stack")  # of a node's metadata: text for people


def write_plain(path: Path, out: IO[bytes]) -> None:
    """Writes the plain parts of the archive `path` as one that torch.export.load reads.

    Raises: ModelError for what is no such archive, or would run code.
    """
    try:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
            for name, data in _members(source, path):
                with target.open(f"model/{name}", "w", force_zip64=True) as file:
                    file.write(data)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}; name the .pt2 file") from None
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is no program of torch.export.save, or only a part of one ({error}); save it "
            "again"
        ) from None


def _members(source: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, bytes]]:
    entries = {info.filename.partition("/")[2]: info for info in source.infolist()}
    for name, info in entries.items():
        if name in CONFIGS:
            yield name, json.dumps(_weights(json.loads(source.read(info)), name, path)).encode()
        elif name == MODEL:
            yield name, json.dumps(_model(json.loads(source.read(info)), path)).encode()
        elif name in _KEPT or _WEIGHT.fullmatch(name):
            yield name, source.read(info)
    missing = sorted({*CONFIGS, MODEL, *_KEPT[:2]} - entries.keys())
    if missing:
        raise ValueError(f"it lacks {missing[0]}; torch 2.9 or newer writes what is known here")
    yield SAMPLES, b""


def _weights(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """The table of weights, all of which must be raw bytes."""
    folder = name.rpartition("/")[0]
    for label, facts in config["config"].items():
        if facts["use_pickle"] or not _WEIGHT.fullmatch(f"{folder}/{facts['path_name']}"):
            raise _refused(path, f"{label!r} is pickled, and loading that can run any code")
    return {"config": config["config"]}


def _model(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """The graph without guards, which torch compiles, and notes that are looked up by name."""
    if data["range_constraints"]:
        raise ModelError(
            f"{path} has dimensions without a size, and kernels are tuned for sizes: export it "
            "without dynamic_shapes"
        )
    _check(data["graph_module"], path)
    for part in _parts(data["graph_module"]):
        for node in part.get("nodes", ()):
            if not _TARGET.fullmatch(node["target"]):
                raise _refused(path, f"it calls {node['target'][:80]}, which is none of ATen's")
            node["metadata"] = {k: v for k, v in node["metadata"].items() if k in _NOTES}
    return {**{key: data[key] for key in _FACTS if key in data}, "guards_code": []}


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in nested JSON."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner)


def _check(data: Any, path: Path) -> None:
    for part in _parts(data):
        for key, value in part.items():
            if key.startswith("as_") and not _ARGUMENTS.fullmatch(key):
                raise _refused(path, f"an argument of it is of the kind {key[3:]!r}")
            if key in ("in_spec", "out_spec") and "__enum__" in str(value):
                raise _refused(path, "its arguments are of classes that would be imported")


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} is not loaded: {why}. If you trust it, load it yourself and tune what comes out: "
        "autosched.tune(torch.export.load(FILE), example_inputs)"
    )
