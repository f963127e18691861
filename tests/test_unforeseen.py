"""Definitions that nobody wrote a rule for: one right kernel each, one pass where there is one.

Every definition is compiled by the schedule that the analytic model likes best and, where its
reduces have a single pass, by the best one-pass schedule; all of it in one library.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from graphs import value
from unforeseen import CROSSED, DEFINITIONS, STATISTIC, Definition

from autosched.codegen.build import BuiltKernel, Request, compile_kernels
from autosched.codegen.check import compare
from autosched.codegen.measure_jobs import bind, run_guarded
from autosched.codegen.task_files import TaskData
from autosched.costmodel.features import sketch_features
from autosched.costmodel.roofline import RooflineModel
from autosched.ir.fusion import Options
from autosched.ir.graph import Coverage, ModelGraph, WeightRef
from autosched.ir.interp import evaluate
from autosched.ir.node import Program, walk
from autosched.ir.partition import Partition, partition
from autosched.ir.rules import cascade
from autosched.ir.rules.action import Illegal, act
from autosched.ir.schedule import Schedule, replay
from autosched.ir.sketches import sketches
from autosched.ir.target import host_target, parse_target
from autosched.tools.backends import Trial, Triton

# A target that is the same wherever the tests run: what is cheaper depends on it.
CPU = replace(
    parse_target("cpu"), cores=2, l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=32 << 20,
    dram_gbs=24.0, peak_gflops=(("float32", 160.0),),
)  # fmt: skip
BLOCK = 16  # of a single pass: the axes here are short, and no multiple of it
EVERYTHING = Options(
    chains_of_weights=True, maps_into_consumers=True, rows_after_contraction=True,
    max_contractions=9,
)  # fmt: skip

each = pytest.mark.parametrize("name", DEFINITIONS)


@cache
def program(name: str) -> Program:
    return DEFINITIONS[name].build()


def drawn(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for node in program(name).inputs:
        shape = [int(str(e)) for _, e in node.attr[1]]
        whole = node.dtype == "int32"
        out[str(node.attr[0])] = (
            rng.integers(0, 100, shape, np.int32) if whole
            else np.asarray(rng.standard_normal(shape), "f4")
        )  # fmt: skip
    return out


def widened(name: str) -> dict[str, np.ndarray]:
    return {k: v.astype("f8") if v.dtype == "f4" else v for k, v in drawn(name).items()}


def wanted(name: str) -> dict[str, np.ndarray]:
    """What the definition says, in float64."""
    given = widened(name)
    return {k: np.asarray(v) for k, v in evaluate(program(name), given).items()}


def sums_over(tile: Program, axis: str) -> int:
    return sum(n.op == "reduce" and n.attr[1] == (axis,) for n in walk(*tile.body))


# ---- passes ------------------------------------------------------------------------------------


def one_pass(name: str) -> Program | Illegal:
    found = DEFINITIONS[name]
    return cascade.apply(program(name), act("cascade", axis=found.axis, block=BLOCK))


# One sum over the axis, or sums that share no more than an input: a loop by `join`, no chain.
ALONE = {
    "sigmoid_weights", "best_key_only", "product_over_its_own_rms", "best_column",
    "two_activations", "sums_along_either_axis", "nearest_of_two_codebooks",
}  # fmt: skip


@each
def test_one_pass_or_the_reason(name: str) -> None:
    found, made = DEFINITIONS[name], one_pass(name)
    if name in ALONE:
        assert isinstance(made, Illegal) and made.code == "NO_CHAIN"
    elif found.refused:
        assert isinstance(made, Illegal) and made.code == "NO_CORRECTION"
        assert found.refused in made.why
        print(f"{name}: {made.why}")
    else:
        assert isinstance(made, Program), made
        assert sums_over(made, found.axis) == 0
        given = widened(name)
        got = evaluate(made, given)
        for key, want in wanted(name).items():
            np.testing.assert_allclose(got[key], want, rtol=1e-9, atol=1e-11)


# ---- kernels -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """The schedules that the analytic model likes best: of all, and of those in one pass."""

    name: str
    schedules: tuple[Schedule, ...]


def best(name: str) -> Best:
    target = host_target()
    ranked: list[tuple[float, str, Schedule]] = []
    for sketch in sketches(program(name), target):
        made = sketch_features(program(name), sketch, target)
        assert not isinstance(made, Illegal), made
        table = sketch.table(limit=4096)
        if not len(next(iter(table.values()))):
            continue
        times = RooflineModel().predict(made.evaluate(table)).latency_us
        row = int(np.argmin(times))
        knobs = {k: int(v[row]) for k, v in table.items() if k}
        ranked.append((float(times[row]), sketch.name, sketch.schedule(knobs)))
    ranked.sort(key=lambda found: found[:2])
    passes = [s for _, label, s in ranked if label.startswith("onepass")][:1]
    return Best(name, tuple(dict.fromkeys([ranked[0][2], *passes])))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[BuiltKernel, Path]]]:
    """The kernels of every definition, of one library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "LONG", 2)
        patch.setattr(cascade, "BLOCKS", (BLOCK,))
        chosen = [best(name) for name in DEFINITIONS]
    requests = [
        (b.name, Request(program(b.name), schedule, f"{b.name}_{n}"))
        for b in chosen
        for n, schedule in enumerate(b.schedules)
    ]
    for name, request in requests:
        tile = replay(program(name), request.schedule)
        assert isinstance(tile, Program), tile
        assert len(tile.body) == 1, f"{name}: {len(tile.body)} kernels"
    built = compile_kernels([r for _, r in requests], host_target())
    merged = {name for name, r in requests if any(a.rule == "cascade" for a in r.schedule.actions)}
    assert merged == {n for n, d in DEFINITIONS.items() if not d.refused} - ALONE
    out: dict[str, list[tuple[BuiltKernel, Path]]] = {name: [] for name in DEFINITIONS}
    library = tmp_path_factory.mktemp("unforeseen") / "kernels.so"
    for (name, _), kernel in zip(requests, built, strict=True):
        assert isinstance(kernel, BuiltKernel), f"{name}: {kernel}"
        library.write_bytes(kernel.library)
        out[name].append((kernel, library))
    return out


@each
def test_one_kernel_is_right(
    name: str, kernels: dict[str, list[tuple[BuiltKernel, Path]]]
) -> None:
    want = wanted(name)
    for kernel, library in kernels[name]:
        bound = bind(TaskData(drawn(name), want), library, kernel.symbol, kernel.args, threads=2)
        run_guarded(bound)
        for key, ref in want.items():
            found = compare(bound.outputs[key].reshape(ref.shape), ref)
            assert found.ok, f"{kernel.symbol} {key}: {found.reason}"


@each
def test_one_kernel_of_tiles_is_right(name: str) -> None:
    """On a GPU: the best sketch is one kernel, and a random schedule of each sketch is right."""
    on, rng, given = Triton(), np.random.default_rng(0), drawn(name)
    ranked: list[tuple[float, int]] = []
    trials = []
    for sketch in sketches(program(name), on.target):
        table = sketch.table(limit=4096)
        if not len(next(iter(table.values()))):
            continue
        made = sketch_features(program(name), sketch, on.target)
        assert not isinstance(made, Illegal), made
        times = RooflineModel().predict(made.evaluate(table)).latency_us
        row = int(rng.integers(len(times)))
        schedule = sketch.schedule({k: int(v[row]) for k, v in table.items() if k})
        tile = replay(program(name), schedule)
        assert isinstance(tile, Program), tile
        ranked.append((float(times.min()), len(tile.body)))
        trials.append(Trial(program(name), schedule, given))
    assert min(ranked)[1] == 1 + (name in CROSSED)
    for trial, got in zip(trials, on.run(trials), strict=True):
        assert isinstance(got, dict), f"{trial.schedule.text}: {got}"
        for key, ref in wanted(name).items():
            found = compare(got[key].reshape(ref.shape), ref)
            assert found.ok, f"{trial.schedule.text} {key}: {found.reason}"


# ---- in a model --------------------------------------------------------------------------------


def parted(name: str, options: Options) -> Partition:
    whole = program(name)
    weights = {
        str(n.attr[0]): WeightRef(str(n.attr[0]), n.dtype, tuple(int(e) for _, e in n.attr[1]),
                                  str(n.attr[0]), None)
        for n in whole.inputs if n.attr[3] == "weight"
    }  # fmt: skip
    outputs = tuple(value(o.name, b, o.dims) for o, b in zip(whole.outputs, whole.body))
    inputs = tuple(n for n in whole.inputs if n.attr[3] == "arg")
    return partition(ModelGraph(inputs, outputs, (), weights, Coverage(0, 0)), CPU, options)


@each
def test_tasks_of_a_model(name: str) -> None:
    found: Definition = DEFINITIONS[name]
    assert (found.tasks == 1) == (not found.apart)
    assert len(parted(name, Options()).steps) == found.tasks
    together = found.tasks if found.apart == STATISTIC else 1
    assert len(parted(name, EVERYTHING).steps) == together
