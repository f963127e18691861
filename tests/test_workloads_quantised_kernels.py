"""Quantised workloads through compiled CPU kernels: codes and bits as a machine has them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from workload_check import Array, distance

from autosched.codegen.build import BuiltKernel, compile_kernel
from autosched.codegen.measure_jobs import bind, run_guarded
from autosched.codegen.runtime.arrays import STORAGE
from autosched.codegen.task_files import TaskData
from autosched.datasets.workloads import quantised_attention, quantised_bits, quantised_gemm
from autosched.datasets.workloads.define import collected
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.rules.action import Illegal, act
from autosched.ir.schedule import Schedule
from autosched.ir.sketches import sketches
from autosched.ir.target import host_target

MODULES = {m.__name__ for m in (quantised_attention, quantised_bits, quantised_gemm)}
NAMES = [n for n, w in collected().items() if w.define.__module__ in MODULES]
FP8 = {"sage_attention2", "fireq_attention", "fireq_linear", "fp8_gemm"}
OTHERS = [("mr_gptq", {"kind": "nvfp4"}), ("minifloat_linear", {"codec": "e2m3"}),
         ("minifloat_linear", {"codec": "e5m2"}), ("flexq", {"form": "ints", "bits": 8}),
         ("itq3", {"rotate": "tokens"}), ("matgptq", {"r": 8})]  # fmt: skip
PLAIN = Schedule("plain", (act("inline", keep=[]),))


@pytest.mark.parametrize("name, changes", [*((n, {}) for n in NAMES), *OTHERS])
def test_kernels_decode_as_the_definition_does(
    name: str, changes: dict[str, object], tmp_path: Path
) -> None:
    found = collected()[name]
    program, given = found.program(**changes), found.inputs(3, **changes)
    built = compile_kernel(program, PLAIN, host_target(), "k")
    if name in FP8 or changes.get("kind") == "nvfp4":  # a CPU has no such numbers
        assert isinstance(built, Illegal)
        assert built.why.startswith("no CPU form of float8_e4m3")
        return
    run_and_compare(program, given, built, tmp_path)


def test_a_sum_inside_an_address_is_a_loop_of_its_own(tmp_path: Path) -> None:
    """The address is simplified, and the sum in it with it; both must be the same node."""
    found = collected()["think_select"]
    program, given = found.program(), found.inputs(0)
    for sketch in sketches(program, host_target()):
        table = sketch.table(limit=1000)
        plan = sketch.schedule({name: int(column[-1]) for name, column in table.items()})
        built = compile_kernel(program, plan, host_target(), "k")
        run_and_compare(program, given, built, tmp_path)


def run_and_compare(
    program: Program, given: dict[str, Array], built: BuiltKernel | Illegal, folder: Path
) -> None:
    assert isinstance(built, BuiltKernel), built
    with TemporaryDirectory(dir=folder) as own:
        library = Path(own) / "k.so"
        library.write_bytes(built.library)
        data = {n.attr[0]: np.ascontiguousarray(given[n.attr[0]].astype(STORAGE[n.attr[2]]))
                for n in program.inputs}  # fmt: skip
        bound = bind(TaskData(data, {}), library, "k", built.args, 2)
        run_guarded(bound)
        for out, want in evaluate(program, given).items():
            assert distance(bound.outputs[out], want) < 2e-6


CODED = ("marlin", "sparse_marlin", "matgptq", "bitlinear", "minifloat_linear", "flexq", "w8a8")


@pytest.mark.parametrize("name", CODED)
def test_coded_weights_have_candidates(name: str) -> None:
    """Words that hold many codes are no reason to pack them once a code: that fits nowhere."""
    found = collected()[name]
    for shape in (None, next(iter(found.shapes))):
        tables = [s.table(limit=1000) for s in sketches(found.program(shape), host_target())]
        assert sum(len(next(iter(table.values()))) for table in tables) > 0
