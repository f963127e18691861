"""Definitions in narrow types: inputs and outputs are rounded, the arithmetic between is not."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from workload_check import distance, find

from autosched.datasets.workloads.define import collected
from autosched.ir.interp import evaluate
from autosched.ir.scalar import round_to_grid

MODULES = ("recurrent", "recurrent_backward", "delta", "statespace", "kernelised", "structured",
           "dense", "grouped")  # fmt: skip
for module in MODULES:
    importlib.import_module(f"autosched.datasets.workloads.{module}")
NAMES = sorted(n for n, w in collected().items() if w.define.__module__.split(".")[-1] in MODULES)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_only_inputs_and_outputs_are_narrow(name: str, dtype: str) -> None:
    """Narrow inputs through the float32 definition, rounded at the end: the same numbers."""
    found = find(name)
    inputs = found.inputs(0, dtype=dtype)
    narrow, wide = found.program(dtype=dtype), found.program(dtype="float32")
    assert dtype in {n.attr[2] for n in narrow.inputs} | {o.dtype for o in narrow.outputs}
    want = evaluate(wide, inputs)
    for output in narrow.outputs:
        value = want[output.name].astype(np.float64)
        value = round_to_grid(value, dtype) if output.dtype == dtype else value
        assert distance(evaluate(narrow, inputs)[output.name], value) <= 1e-12
