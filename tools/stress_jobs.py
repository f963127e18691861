"""A job of the stress workers: programs in, what kernels of theirs are wrong and how out.

A program is checked as it stands, as the tasks that it is cut into, and each of these with its
chains over an axis merged into one pass. Each of these forms is compiled by some of its legal
schedules and held against the float64 meaning of what it stands for.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from autosched.codegen.check import PEAK_FACTOR, compare
from autosched.codegen.reference import reference
from autosched.codegen.runtime.arrays import from_bfloat16
from autosched.codegen.task_files import TaskData
from autosched.ir.graph import Coverage, GraphValue, ModelGraph, WeightRef
from autosched.ir.interp import InterpError, evaluate
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import cast, iota
from autosched.ir.partition import partition
from autosched.ir.products import NARROW
from autosched.ir.rules import cascade
from autosched.ir.rules.action import act
from autosched.ir.schedule import Schedule, Sketch
from autosched.ir.sketches import sketches
from autosched.ir.target import Target
from autosched.ir.text import parse, to_text
from autosched.tools.backends import Backend, Broken, Refused, Result, Trial, backend
from autosched.tools.random_programs import random_program

BLOCKS = (3, 16)  # of single passes; most axes are no multiple of either
ROWS = 20_000  # of a sketch's table from which schedules are drawn
REDRAWS = 12  # of a schedule that was drawn before, or takes too long
# How rounding errors may exceed what a few draws of them show, and how many are drawn.
SAFETY, DRAWS = 8.0, 4
Space: TypeAlias = tuple[tuple[Sketch, Mapping[str, np.ndarray]], ...]
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass(frozen=True)
class Finding:
    """A kernel that is wrong: the seed of its inputs, the text of what it means, the form of that
    which was compiled, and its schedule."""

    seed: int
    program: str
    form: str
    schedule: str
    why: str


@dataclass(frozen=True)
class Tally:
    """trials: kernels compared; refused: schedules that turned out not to be legal."""

    trials: int
    refused: int
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return {"trials": self.trials, "refused": self.refused,
                "findings": [vars(f) for f in self.findings]}  # fmt: skip


def check_seeds(name: str, seeds: Sequence[int], schedules: int) -> dict[str, Any]:
    """A Tally as JSON of random programs; `schedules` of each form."""
    programs = [random_program(seed) for seed in seeds]
    return check(name, programs, schedules, seeds).to_json()


def check_text(name: str, text: str, schedules: int, seed: int) -> dict[str, Any]:
    """A Tally as JSON of one program."""
    return check(name, [parse(text)], schedules, [seed]).to_json()


def check(name: str, programs: Sequence[Program], schedules: int, seeds: Sequence[int]) -> Tally:
    """Random legal schedules of every form of the programs, on the backend of that name."""
    on = backend(name)
    trials: list[Trial] = []
    wanted: list[tuple[int, Form, TaskData]] = []
    findings: list[Finding] = []
    for program, seed in zip(programs, seeds, strict=True):
        rng = np.random.default_rng([seed, 1])
        for form in forms(program, on.target):
            try:
                data = reference(form.meaning, seed)
            except InterpError:
                continue  # it reads out of range whatever it is given
            try:
                space = tables(form.program, on.target)
                chosen = [*drawn(form.program, space, on, schedules, rng)]
            except Exception as error:  # a finding like any other
                findings.append(_finding(seed, form, None, _raised(error)))
                continue
            if not space:
                findings.append(_finding(seed, form, None, "no legal schedule"))
            trials += [Trial(form.program, s, data.inputs) for s in chosen]
            wanted += [(seed, form, data)] * len(chosen)
    results = on.run(trials)
    for trial, result, (seed, form, data) in zip(trials, results, wanted, strict=True):
        why = problem(form.meaning, data, result, on.narrow)
        if why:
            findings.append(_finding(seed, form, trial.schedule, why))
    refused = sum(isinstance(r, Refused) for r in results)
    return Tally(len(trials) - refused, refused, tuple(findings))


def _finding(seed: int, form: Form, schedule: Schedule | None, why: str) -> Finding:
    return Finding(seed, to_text(form.meaning), form.name, schedule.text if schedule else "", why)


def _raised(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {last.name} of {Path(last.filename).name}: {error}"


# ---- forms of a program ------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """`program` is compiled, and means what `meaning` says."""

    name: str
    meaning: Program
    program: Program


def forms(program: Program, target: Target) -> Iterator[Form]:
    """The program, its tasks, and their single passes."""
    part = partition(graph_of(program), target)
    tasks = [t.program for t in part.tasks]
    for number, meaning in enumerate(dict.fromkeys([program, *tasks])):
        name = f"task {number}" if number else "whole"
        yield Form(name, meaning, meaning)
        for axis in sorted({r.attr[1][0] for r in walk(*meaning.body) if r.op == "reduce"}):
            for block in BLOCKS:
                merged = cascade.apply(meaning, act("cascade", axis=axis, block=block))
                if isinstance(merged, Program):
                    yield Form(f"{name}, {axis} in blocks of {block}", meaning, merged)


def graph_of(program: Program) -> ModelGraph:
    """A model that is this program."""
    weights = {
        str(n.attr[0]): WeightRef(
            str(n.attr[0]), n.dtype, tuple(int(e) for _, e in n.attr[1]), str(n.attr[0]), None
        )
        for n in program.inputs if n.attr[3] == "weight"
    }  # fmt: skip
    values = []
    for out, node in zip(program.outputs, program.body):
        extents = tuple(int(str(e)) for e in out.extents)
        values.append(GraphValue(out.name, node, out.dims, extents, extents))
    inputs = tuple(n for n in program.inputs if n.attr[3] == "arg")
    return ModelGraph(inputs, tuple(values), (), weights, Coverage(0, 0))


def tables(program: Program, target: Target) -> Space:
    """The sketches that have legal schedules, each with its table."""
    found = [(s, s.table(limit=ROWS)) for s in sketches(program, target)]
    return tuple((s, t) for s, t in found if len(next(iter(t.values()))))


def drawn(
    program: Program, space: Space, on: Backend, count: int, rng: np.random.Generator
) -> Iterator[Schedule]:
    """Up to `count` different schedules that are quick to run, of all sketches in turn."""
    seen: set[str] = set()
    order = [int(n) for n in rng.permutation(len(space))]
    for n in range(count if space else 0):
        for _ in range(REDRAWS):
            schedule = _row(*space[order[n % len(order)]], rng)
            if schedule.text not in seen and on.quick(program, schedule):
                seen.add(schedule.text)
                yield schedule
                break


def _row(sketch: Sketch, table: Mapping[str, np.ndarray], rng: np.random.Generator) -> Schedule:
    row = int(rng.integers(len(next(iter(table.values())))))
    return sketch.schedule({k: int(v[row]) for k, v in table.items() if k})


# ---- comparing ---------------------------------------------------------------------------------


def problem(meaning: Program, data: TaskData, result: Result, narrow: bool = False) -> str:
    """What is wrong with a result; "" where nothing is, or nothing was run. narrow: operands of
    sums of products may have been rounded to the type of what is stored."""
    if isinstance(result, Refused):
        return ""
    if isinstance(result, Broken):
        return result.why
    for out in meaning.outputs:
        got = result[out.name]
        got = from_bfloat16(got) if out.dtype == "bfloat16" else got
        want = np.asarray(data.outputs[out.name]).reshape(got.shape)
        bound = data.bounds.get(out.name)
        found = compare(got, want, bound)
        if found.ok:
            continue
        unit = _narrow_unit(meaning) if narrow else 0.0
        if not _explained(meaning, data, out.name, got, want, found.bound, unit):
            return f"{out.name}: {found.reason}"
    return ""


def _narrow_unit(program: Program) -> float:
    """The unit of the coarsest type that an operand of a product may be rounded to."""
    stored = {n.dtype for n in program.inputs} & set(NARROW)
    return max((UNIT[d] for d in stored if d in UNIT), default=0.0)


def _explained(
    meaning: Program, data: TaskData, name: str, got: np.ndarray, want: np.ndarray, bound: float,
    unit: float,
) -> bool:  # fmt: skip
    """Whether rounding of the values on the way explains how far a result is off.

    The definition is evaluated again with every value off by a unit of its type, a few times; a
    result may be off by some of what that makes of it, besides the bound of its type. unit: of
    what is summed, where that is rounded to less than its type.
    """
    if bound == 0.0 or not np.array_equal(np.isnan(got), np.isnan(want)):
        return False
    spread = np.zeros(want.shape)
    for draw in range(DRAWS):
        moved = perturbed(meaning, np.random.default_rng(draw), unit)
        with np.errstate(all="ignore"):
            other = np.asarray(evaluate(moved, _numbers(meaning, data))[name]).reshape(want.shape)
            spread = np.fmax(spread, np.abs(other - want))
    finite = np.isfinite(want) & np.isfinite(spread)
    rms = math.sqrt(float(np.mean(np.square(want[finite])))) if finite.any() else 0.0
    with np.errstate(invalid="ignore"):
        near = np.abs(got.astype(np.float64) - want) <= (
            SAFETY * spread + bound * PEAK_FACTOR * (np.abs(want) + rms)
        )
    whole = float(np.linalg.norm((got.astype(np.float64) - want)[finite]))
    allowed = bound * float(np.linalg.norm(want[finite])) + SAFETY * float(
        np.linalg.norm(spread[finite])
    )
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return bool((near | same | ~np.isfinite(spread)).all()) and whole <= allowed


def perturbed(program: Program, rng: np.random.Generator, unit: float = 0.0) -> Program:
    """The program with every value that is computed off by a unit of its type, up or down; what
    is summed by the root of its number, or by `unit`, each element another way."""
    memo: dict[Node, Node] = {}
    for node in walk(*program.body):
        src = tuple(memo[s] for s in node.src)
        if node.op in ("reduce", "scan"):
            axes = node.attr[1] if node.op == "reduce" else (node.attr[1],)
            src = tuple(_off(s, axes, rng, unit) for s in src)
        new = node if src == node.src else Node(node.op, src, node.attr)
        memo[node] = _off(new, (), rng) if node.op in ("map", "reduce", "scan") else new
    return replace(program, body=tuple(memo[b] for b in program.body))


def _off(value: Node, axes: Sequence[str], rng: np.random.Generator, unit: float = 0.0) -> Node:
    """A value off by a unit, or by more along axes: by a pattern of some period."""
    if len(value.types) != 1 or value.dtype not in UNIT:
        return value
    sizes = {a: int(str(e)) for a, e in value.axes if a in axes}
    off = max(UNIT[value.dtype] * math.sqrt(max(math.prod(sizes.values()), 1)), unit)
    shape: Node | float = float(rng.choice([-1, 1]))
    for axis, extent in sizes.items():
        at = iota(axis, extent) * int(rng.integers(1, 7)) + int(rng.integers(7))
        shape = (cast(at % 7, value.dtype) - 3.0) * (shape * 0.33)
    return value * (1.0 + shape * off)


def _numbers(program: Program, data: TaskData) -> dict[str, np.ndarray]:
    halves = {n.attr[0] for n in program.inputs if n.dtype == "bfloat16"}
    return {n: from_bfloat16(a) if n in halves else a for n, a in data.inputs.items()}
