"""A partition and a kernel for each of its tasks in, the plan of the whole model out.

Steps that depend on weights alone are evaluated here, in float64, and become constants: they
never run. Weights stay on disk until the package is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autosched.codegen.artifact import Constant, Kernel, Plan, Step, Value, step_args
from autosched.codegen.runtime.arrays import STORAGE, from_bfloat16, to_bfloat16
from autosched.ir.graph import GraphValue, ModelGraph
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.partition import IslandStep, KernelStep, Partition, Task


@dataclass(frozen=True)
class Planned:
    """The plan, and the raw constants that it names."""

    plan: Plan
    weights: Mapping[str, Constant]


def run_time_tasks(partition: Partition) -> tuple[Task, ...]:
    """The tasks that run at each call: those with a step that reads more than constants."""
    used = {s.task for s in partition.steps if isinstance(s, KernelStep) and not s.constant}
    return tuple(t for t in partition.tasks if t.key in used)


def plan_model(
    graph: ModelGraph, partition: Partition, kernels: Mapping[str, Kernel]
) -> Planned:
    """The plan of a model. kernels: by task key, one for each of `run_time_tasks`."""
    constants = constants_of(graph, partition)
    steps: list[Step] = []
    aliases: dict[str, str] = {}
    shaped: list[Value] = []
    islands = {island.name: island for island in graph.islands}
    for step in partition.steps:
        if isinstance(step, IslandStep):
            names = []
            for asked, name in zip(islands[step.name].inputs, step.inputs, strict=True):
                names.append(_under_shape(asked, name, partition, graph, aliases, shaped))
            steps.append(Step(None, step.name, (*names, *step.outputs)))
        elif not step.constant:
            kernel = kernels[step.task]
            steps.append(Step(kernel.key, None, _args(partition.task(step.task), step, kernel)))
    inputs = tuple(_value(str(n.attr[0]), partition) for n in graph.inputs)
    outputs = tuple(Value(v.name, v.node.dtype, v.shape) for v in graph.outputs)
    taken = {v.name for v in (*inputs, *outputs)}
    values = [_value(n, partition) for n in partition.values if n not in taken | set(constants)]
    named = {n for s in steps for n in s.args} | set(aliases.values()) | {v.name for v in outputs}
    used = sorted(n for n in named if n in constants)
    plan = Plan(
        inputs, outputs, (*values, *shaped), tuple(steps),
        {name: island.model for name, island in islands.items()},
        tuple(constants[n].value for n in used), aliases,
    )  # fmt: skip
    return Planned(plan, {n: constants[n].load for n in used})


def _value(name: str, partition: Partition) -> Value:
    info = partition.values[name]
    return Value(name, info.dtype, info.shape)


def _args(task: Task, step: KernelStep, kernel: Kernel) -> tuple[str, ...]:
    """The names a step passes, in the order of the kernel's arguments."""
    names = dict(zip((str(n.attr[0]) for n in task.program.inputs), step.inputs, strict=True))
    names |= dict(zip((o.name for o in task.program.outputs), step.outputs, strict=True))
    return tuple(
        names[arg.name if arg.pack is None else arg.pack.source] for arg in step_args(kernel)
    )


def _under_shape(
    asked: GraphValue, name: str, partition: Partition, graph: ModelGraph,
    aliases: dict[str, str], shaped: list[Value],
) -> str:  # fmt: skip
    """The name under which an island reads a value in the shape that it asks for."""
    info = partition.values.get(name)
    shape = graph.weights[name].shape if info is None else info.shape
    if shape == asked.shape:
        return name
    alias = f"{name} as {'x'.join(map(str, asked.shape))}"
    if alias not in aliases:
        aliases[alias] = name
        shaped.append(Value(alias, asked.node.dtype, asked.shape))
    return alias


# ---- constants ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawConstant:
    """A constant by its facts; `load` reads or computes it."""

    value: Value
    load: Callable[[], np.ndarray]


def constants_of(graph: ModelGraph, partition: Partition) -> dict[str, RawConstant]:
    """The weights of a model and the values of its constant steps, by name."""
    out = {
        name: RawConstant(Value(name, w.dtype, w.shape), w.load)
        for name, w in graph.weights.items()
    }
    for step in partition.steps:
        if isinstance(step, KernelStep) and step.constant:
            program = partition.task(step.task).program
            operands = [out[name] for name in step.inputs]
            for n, name in enumerate(step.outputs):
                out[name] = RawConstant(_value(name, partition), _Computed(program, operands, n))
    return out


class _Computed:
    """One output of a constant step, computed when it is asked for."""

    def __init__(self, program: Program, operands: Sequence[RawConstant], output: int) -> None:
        self.program, self.operands, self.output = program, operands, output

    def __call__(self) -> np.ndarray:
        given = {
            str(n.attr[0]): numbers(c.load(), n.dtype).reshape([e for _, e in n.attr[1]])
            for n, c in zip(self.program.inputs, self.operands, strict=True)
        }
        out = self.program.outputs[self.output]
        return stored(evaluate(self.program, given)[out.name], out.dtype)


def numbers(array: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as numbers that NumPy computes with: bfloat16 as float32."""
    if dtype != "bfloat16":
        return array
    return from_bfloat16(array.view(np.uint16))


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers in the storage type of `dtype`, rounded once."""
    if dtype == "bfloat16":
        return to_bfloat16(np.asarray(values, np.float32))
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(STORAGE[dtype])
