"""Jobs of the processes that build for GPUs: schedules in, compiled modules in a cache out.

Arguments and results are plain JSON. No GPU is needed, and none is touched. What the compiler
raises fails the job; what it prints stays in the worker's output; if it dies, so does the worker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autosched.codegen.check import REL_L2_BOUND
from autosched.codegen.jobs import JobFailure
from autosched.codegen.reference import read_program
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import DoesNotFitError, build, toolchain
from autosched.codegen.triton_entry import Build
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.node import Program, walk
from autosched.ir.open_extents import OpenTile, Sizes, open_replay
from autosched.ir.record import Status
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, replay
from autosched.ir.target import Target, parse_target
from autosched.ir.text import to_text

CLASS_TITLE = "Kernels for all shapes of a class"  # no task's name: the source is one for all
# float32 operands multiplied in fewer bits have the error of the type with as many.
_PRECISIONS: Mapping[str, str] = {"tf32": "float16", "bf16": "bfloat16"}


def build_schedule(
    folder: str, schedule: Mapping[str, Any], target: str, cache: str, title: str = "",
    open_sizes: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Replays, emits and compiles one schedule of the task in `folder`.

    open_sizes: kernels take their extents as arguments, so that one entry serves every task of a
    class (see `ir.open_extents`); who measures it reads them off the task's inputs.

    Returns {"entry": folder of the build, "bound": see `bound_of`, "facts": of its kernels,
    "compile_s", "lower_s"}, or {"illegal": code, "why"}.
    """
    begun = time.perf_counter()
    program, chosen = read_program(Path(folder)), Schedule.from_json(schedule)
    found = open_replay(program, chosen) if open_sizes else _closed(program, chosen)
    if isinstance(found, Illegal):
        return {"illegal": found.code, "why": found.why}
    module = _emitted(found, chosen, title)
    if isinstance(module, Illegal) and found.sizes.open:
        found = _closed(program, chosen)
        assert isinstance(found, OpenTile), "its open form is legal"
        module = _emitted(found, chosen, title)
    if isinstance(module, Illegal):
        return {"illegal": module.code, "why": module.why}
    lowered = time.perf_counter() - begun
    made = _built(module, parse_target(target), cache)
    return {**_row(made), "bound": bound_of(found.tile), "lower_s": round(lowered, 4)}


def _emitted(found: OpenTile, schedule: Schedule, title: str) -> TritonModule | Illegal:
    title = CLASS_TITLE if found.sizes.open else title
    header = Header(title, to_text(found.program), schedule.to_json(), toolchain())
    return emit(found.tile, header, found.sizes)


def _closed(program: Program, schedule: Schedule) -> OpenTile | Illegal:
    tile = replay(program, schedule)
    return tile if isinstance(tile, Illegal) else OpenTile(program, tile, Sizes())


def build_module(module: Mapping[str, Any], target: str, cache: str) -> dict[str, Any]:
    """Compiles a module that is there already (a TritonModule as JSON); the same row."""
    return _row(_built(TritonModule.from_json(module), parse_target(target), cache))


def _built(module: TritonModule, target: Target, cache: str) -> Build:
    try:
        return build(module, target, Path(cache))
    except DoesNotFitError as error:
        raise JobFailure(Status.UNSUPPORTED, str(error)) from error


def _row(made: Build) -> dict[str, Any]:
    return {
        "entry": str(made.folder), "bound": None, "facts": made.facts(),
        "compile_s": made.seconds, "lower_s": 0.0,
    }  # fmt: skip


def bound_of(tile: Program) -> str | None:
    """The type whose error bound a schedule's arithmetic asks for; None where it is exact."""
    asked = {n.attr[2] for n in walk(*tile.body) if n.op == "dot" and len(n.attr) > 2}
    coarse = [_PRECISIONS[p] for p in sorted(asked) if p in _PRECISIONS]
    return max(coarse, key=lambda name: REL_L2_BOUND[name], default=None)
