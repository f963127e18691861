"""All sketches of a task on a target: the structures of the schedule space."""

from __future__ import annotations

from autosched.ir.node import Program
from autosched.ir.schedule import Sketch
from autosched.ir.sketch_cpu import cpu_sketches
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.sketch_split import split_sketches
from autosched.ir.sketch_stream import stream_sketches
from autosched.ir.target import Target

GENERATORS = {"cpu": (cpu_sketches,), "gpu": (gpu_sketches, split_sketches, stream_sketches)}


def sketches(program: Program, target: Target) -> tuple[Sketch, ...]:
    """The sketches of an algebra program; none where no rule fits (a bug worth a report)."""
    return tuple(s for generate in GENERATORS[target.kind] for s in generate(program, target))
