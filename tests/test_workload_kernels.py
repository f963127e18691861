"""Definitions as tile programs without loops of their own: the same numbers, or a reason."""

from __future__ import annotations

import importlib

import pytest
from workload_check import distance, find

from autosched.datasets.workloads.define import collected
from autosched.ir.define import algebra
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program
from autosched.ir.ops import carry, const, fold, get, input_, iota, reaxis
from autosched.ir.rules import inline
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, replay

MODULES = ("recurrent", "recurrent_backward", "delta", "statespace", "kernelised", "structured",
           "dense", "grouped")  # fmt: skip
for module in MODULES:
    importlib.import_module(f"autosched.datasets.workloads.{module}")
NAMES = sorted(n for n, w in collected().items() if w.define.__module__.split(".")[-1] in MODULES)
# Loops whose bounds are data have no statement form yet.
RAGGED = {"grouped_gemm_by_segment", "kmeans_sorted_sums", "listed_memories"}


def plain(program: Program) -> Program | Illegal:
    """The tile program of the first plain schedule that is legal."""
    made = [replay(program, Schedule("plain", (a,))) for a in inline.propose(program)]
    return next((p for p in made if not isinstance(p, Illegal)), made[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_tile_program_has_the_meaning_of_the_definition(name: str) -> None:
    found = find(name)
    program, inputs = found.program(), found.inputs(0)
    tile = plain(program)
    if isinstance(tile, Illegal):
        assert name in RAGGED and tile.code == "VARYING_BOUNDS", tile
        return
    assert name not in RAGGED
    want, got = evaluate(program, inputs), evaluate(tile, inputs)
    assert all(distance(got[key], want[key]) <= 1e-12 for key in want)


def running(axis: str, x: Node) -> Node:
    """The sums so far along an axis, as a recurrence."""
    total = carry("total", "float32", {"m": x.extent("m")}) + x
    return get(fold(axis, [(0, x.extent(axis))], {"total": (const(0.0, "float32"), total)},
                    [total]), 1)  # fmt: skip


def test_a_fold_reads_another_over_the_same_axis_that_is_an_output_too() -> None:
    """It is whole before the second one starts: it does not belong into its loop."""
    x = input_("x", {"m": 3, "t": 5})
    first = running("t", x)
    turned = reaxis(first, {"t": 4 - iota("t", 5)})
    program = algebra(y=("m t", running("t", turned)), z=("m t", turned + 1.0))
    tile = plain(program)
    assert not isinstance(tile, Illegal), tile
    inputs = {"x": find("dense_gemm").inputs(0, m=3, k=5)["x"]}
    want, got = evaluate(program, inputs), evaluate(tile, inputs)
    assert all(distance(got[key], want[key]) <= 1e-12 for key in want)
