"""A definition in, what the compiler makes of it out: kernels, passes or why there is none, errors.

    python -m autosched.tools.study definition.txt --backend triton --source

The file holds a program as `autosched.ir.text.to_text` writes it. From Python:

    from autosched.ir.define import algebra
    from autosched.ir.ops import exp, input_, max_, sum_
    from autosched.tools.study import study

    q, k = (input_(n, {a: s, "d": 24}) for n, a, s in (("q", "i", 37), ("k", "j", 50)))
    s = sum_("d", q * k)
    p = exp(s - max_("j", s))
    print(study(algebra(p=("i j", p / sum_("j", p)))))
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autosched.codegen.build import Request, lower
from autosched.codegen.check import compare
from autosched.codegen.reference import reference
from autosched.codegen.runtime.arrays import from_bfloat16
from autosched.codegen.triton import Header, emit
from autosched.costmodel.features import sketch_features
from autosched.costmodel.roofline import RooflineModel
from autosched.ir.graph import Coverage, GraphValue, ModelGraph, WeightRef
from autosched.ir.node import Program, walk
from autosched.ir.partition import partition
from autosched.ir.rules import cascade
from autosched.ir.rules.action import Illegal, act
from autosched.ir.schedule import Schedule, replay
from autosched.ir.sketch_gpu import repeats
from autosched.ir.sketches import sketches
from autosched.ir.target import Target
from autosched.ir.text import ParseError, parse
from autosched.tools.backends import BACKENDS, Backend, Broken, Refused, Trial, backend

ROWS = 4096  # of a sketch's table that are ranked


@dataclass(frozen=True)
class Tried:
    """One schedule: its kernels, predicted time, and relative error (L2), or why it has none."""

    sketch: str
    knobs: Mapping[str, int]
    kernels: int
    predicted_us: float
    error: float | None
    why: str = ""

    @property
    def right(self) -> bool:
        return not self.why


@dataclass(frozen=True)
class Study:
    """passes: for each axis with several dependent reduces, "one pass" or why there is none;
    tasks: kernels that a model holding the definition gets by default; apart: for each axis along
    which one kernel on a GPU would repeat products, how; tried: the best schedule of the analytic
    model first, then one of each other sketch; source: of the best."""

    backend: str
    sketches: int
    passes: Mapping[str, str]
    tasks: int
    tried: tuple[Tried, ...]
    source: str = field(default="", repr=False)
    apart: Mapping[str, str] = field(default_factory=dict)

    @property
    def kernels(self) -> int:
        """Of the best schedule; 0 where there is none."""
        return self.tried[0].kernels if self.tried else 0

    @property
    def right(self) -> bool:
        return bool(self.tried) and all(t.right for t in self.tried)

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.sketches} sketches, {self.kernels} kernel"
                 f"{'' if self.kernels == 1 else 's'}; {self.tasks} in a model"]  # fmt: skip
        lines += [f"  over {axis}: {said}" for axis, said in self.passes.items()]
        lines += [f"  apart: {said}" for said in self.apart.values()]
        for t in self.tried:
            said = t.why or f"right, relative error {t.error:.1e}"
            knobs = ", ".join(f"{k}={v}" for k, v in t.knobs.items())
            lines.append(f"  {t.sketch}: {t.predicted_us:.1f} us predicted, {said} ({knobs})")
        return "\n".join(lines)


def study(program: Program, backend_name: str = "tvm", seed: int = 0) -> Study:
    """Compiles and checks a definition by one schedule of each sketch.

    backend_name: "tvm" (this CPU) or "triton" (sm_90, run by Triton's interpreter).
    """
    chosen = backend(backend_name)
    best = _ranked(program, chosen)
    data = reference(program, seed)
    results = chosen.run([Trial(program, schedule, data.inputs) for _, schedule in best])
    tried = []
    for (us, schedule), result in zip(best, results):
        kernels = _kernels(program, schedule)
        error, why = None, ""
        if isinstance(result, (Refused, Broken)):
            why = result.why
        else:
            found = [
                compare(_numbers(result[o.name], o.dtype), data.outputs[o.name],
                        data.bounds.get(o.name, o.dtype))
                for o in program.outputs
            ]  # fmt: skip
            why = "; ".join(f.reason for f in found if not f.ok)
            error = max(f.rel_l2 for f in found)
        tried.append(Tried(schedule.sketch, schedule.knobs, kernels, us, error, why))
    return Study(
        backend_name, len(best), passes(program), tasks(program, chosen.target), tuple(tried),
        SOURCES[backend_name](program, best[0][1], chosen.target) if best else "",
        repeats(program) if chosen.target.kind == "gpu" else {},
    )  # fmt: skip


def _numbers(array: np.ndarray, dtype: str) -> np.ndarray:
    return from_bfloat16(array) if dtype == "bfloat16" else array


def _tvm_source(program: Program, schedule: Schedule, target: Target) -> str:
    made = lower(Request(program, schedule, "kernel"), target)
    return f"{made.code}: {made.why}" if isinstance(made, Illegal) else made.source


def _triton_source(program: Program, schedule: Schedule, target: Target) -> str:
    tile = replay(program, schedule)
    made = tile if isinstance(tile, Illegal) else emit(tile, Header("The best schedule"))
    return f"{made.code}: {made.why}" if isinstance(made, Illegal) else made.source


SOURCES = {"tvm": _tvm_source, "triton": _triton_source}


def _ranked(program: Program, chosen: Backend) -> list[tuple[float, Schedule]]:
    """The best schedule of each sketch that can be run here, the best of all first."""
    out = []
    for sketch in sketches(program, chosen.target):
        made = sketch_features(program, sketch, chosen.target)
        table = sketch.table(limit=ROWS)
        if isinstance(made, Illegal) or not len(next(iter(table.values()))):
            continue
        times = RooflineModel().predict(made.evaluate(table)).latency_us
        for row in np.argsort(times):
            schedule = sketch.schedule({k: int(v[row]) for k, v in table.items() if k})
            if chosen.quick(program, schedule):
                out.append((float(times[row]), schedule))
                break
    return sorted(out, key=lambda found: found[0])


def _kernels(program: Program, schedule: Schedule) -> int:
    made = replay(program, schedule)
    return 0 if isinstance(made, Illegal) else len(made.body)


def passes(program: Program) -> dict[str, str]:
    """{axis: "one pass", or why its dependent reduces need several}."""
    out: dict[str, str] = {}
    for node in walk(*program.body):
        if node.op == "reduce" and len(node.attr[1]) == 1:
            (axis,) = node.attr[1]
            extent = next(e for s in node.src for a, e in s.free if a == axis)
            if axis in out or not isinstance(extent, int) or extent < 2:
                continue
            made = cascade.apply(program, act("cascade", axis=axis, block=min(16, extent - 1)))
            if not isinstance(made, Illegal):
                out[axis] = "one pass"
            elif made.code != "NO_CHAIN":
                out[axis] = f"several passes: {made.why}"
    return out


def tasks(program: Program, target: Target) -> int:
    """How many kernels a model gets that is just this definition."""
    weights = {
        str(n.attr[0]): WeightRef(str(n.attr[0]), n.dtype, tuple(int(str(e)) for _, e in n.attr[1]),
                                  str(n.attr[0]), None)
        for n in program.inputs if n.attr[3] == "weight"
    }  # fmt: skip
    outputs = tuple(
        GraphValue(o.name, body, o.dims, sizes, sizes)
        for o, body in zip(program.outputs, program.body)
        for sizes in [tuple(int(str(e)) for e in o.extents)]
    )
    args = tuple(n for n in program.inputs if n.attr[3] == "arg")
    graph = ModelGraph(args, outputs, (), weights, Coverage(0, 0))
    return len(partition(graph, target).steps)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="study", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("definition", type=Path, help="a program in text form")
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="tvm")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--source", action="store_true", help="print the best kernel's source")
    options = parser.parse_args(argv)
    try:
        program = parse(options.definition.read_text("utf-8"))
    except (OSError, ParseError) as error:
        print(f"{options.definition}: {error}", file=sys.stderr)
        return 2
    if program.level != "algebra":
        print(f"{options.definition} is a tile program; give the definition", file=sys.stderr)
        return 2
    found = study(program, options.backend, options.seed)
    if options.source:
        print(found.source)
    print(found)
    return 0 if found.right else 1


if __name__ == "__main__":
    sys.exit(main())
