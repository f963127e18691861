"""The folder of a task on disk: its definition, random inputs and their float64 reference.

    folder/program.txt   text of the algebra program
    folder/task.json     arrays by name: {"inputs": {name: file}, "outputs": {name: file}}; and
                         "bounds": {output: dtype whose error bound holds for it}
    folder/*.npy         inputs in storage types, outputs in float64 or their exact type

It is made once a run; every candidate of the task is built from it and checked against it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PROGRAM, INDEX = "program.txt", "task.json"


@dataclass(frozen=True)
class TaskData:
    """Inputs and reference outputs by name; bounds: whose error bound holds for an output, where
    it is not that of its own dtype."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    bounds: Mapping[str, str] = field(default_factory=dict)


def write_data(folder: Path, data: TaskData) -> None:
    """Writes the arrays; `has_data` holds once they are all there."""
    index = {"inputs": {}, "outputs": {}, "bounds": dict(data.bounds)}
    for kind, arrays in (("inputs", data.inputs), ("outputs", data.outputs)):
        for number, (name, array) in enumerate(arrays.items()):
            file = f"{kind}{number}.npy"
            np.save(folder / file, np.asarray(array), allow_pickle=False)
            index[kind][name] = file
    made = folder / f"{INDEX}.new"
    made.write_text(json.dumps(index), "utf-8")
    os.replace(made, folder / INDEX)


def has_data(folder: Path) -> bool:
    """Whether `write_data` has finished in this folder."""
    return (folder / INDEX).is_file()


def read_data(folder: Path) -> TaskData:
    """The arrays that `write_data` wrote, mapped from disk."""
    index = json.loads((folder / INDEX).read_text("utf-8"))
    inputs, outputs = (
        {name: np.load(folder / file, mmap_mode="r", allow_pickle=False)
         for name, file in index[kind].items()}
        for kind in ("inputs", "outputs")
    )  # fmt: skip
    return TaskData(inputs, outputs, index["bounds"])
