"""Jobs of the processes that plan and build for a profiling run; no GPU is needed or touched.

Lowering and compiling are apart: schedules become modules in batches, and a module's code is
known by its source and nothing else of it, so that workloads which emit one source share one
build. What is compile-time alone goes into the code's key; extents and grids stay with the
module, whose text is left behind.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autosched.codegen.jobs import JobFailure
from autosched.codegen.reference import read_program
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import DoesNotFitError, build, build_key
from autosched.codegen.triton_jobs import bound_of
from autosched.codegen.triton_spec import TritonModule
from autosched.costmodel.features import sketch_features
from autosched.costmodel.model import CostModel
from autosched.costmodel.roofline import RooflineModel
from autosched.ir.node import Output, Program
from autosched.ir.open_extents import OpenTile, Sizes, open_replay
from autosched.ir.record import Status
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Knob, Schedule, Sketch, replay
from autosched.ir.sketches import sketches
from autosched.ir.target import parse_target
from autosched.ir.text import parse, to_text
from autosched.search.space import Candidate, Space, space
from autosched.tools import profile_design as design
from autosched.tools.profile_pack import CODE, Pack, unpack_build

TABLE_ROWS = 20_000  # of each sketch that are ranked
SOURCES, CODES, SCRATCH = "sources", "codes", "scratch"  # folders of a cache
PLAN_FILE = "plan.json"  # in the folder of a task
_NO_HEADER = Header("")  # a title would make equal code unequal


# ---- what to measure ---------------------------------------------------------------------------


def plan(folder: str, target: str, seed: int, spread: int, head: int) -> dict[str, Any]:
    """What is measured of the task in `folder` whatever comes out, the head by the analytic
    model. See `planned`."""
    return planned(folder, target, seed, spread, head, RooflineModel())


def planned(
    folder: str, target: str, seed: int, spread: int, head: int, model: CostModel
) -> dict[str, Any]:
    """spread, head: how many of each; model: what ranks.

    Returns {"sketches": [{"sketch", "actions", "knobs": names, "domains", "constraints"}],
    "spread": [[sketch's number, values]], "head": [[.., estimate_us]]}, plain JSON.
    """
    made = _space(folder, target)
    drawn = itertools.islice(design.spread(made, seed), spread)
    heads = design.head(_times(folder, target, model), made, head) if head else []
    return {
        "sketches": [_told(sketch) for sketch in made.sketches],
        "spread": [[c.sketch, list(c.knobs)] for c in drawn],
        "head": [[c.sketch, list(c.knobs), float(f"{us:.4g}")] for c, us in heads],
    }


def propose(
    folder: str, measured: Sequence[Sequence[Any]], known: Sequence[Sequence[Any]], count: int,
    seed: int,
) -> list[list[Any]]:  # fmt: skip
    """Moves from the fastest: [[sketch's number, values]], by the plan in the task's folder.

    measured: [[number, values, us]]; known: [[number, values]] of what was ever asked for.
    """
    made = _planned_space(folder)
    best = [(Candidate(n, tuple(values)), us) for n, values, us in measured]
    tried = frozenset(Candidate(n, tuple(values)) for n, values in known)
    return [[c.sketch, list(c.knobs)] for c in design.near(made, best, tried, count, seed)]


def _told(sketch: Sketch) -> dict[str, Any]:
    """A sketch as plain JSON. Its constraints are the outputs of a program, as text."""
    outputs = tuple(Output(f"c{n}", (), "bool", ()) for n in range(len(sketch.constraints)))
    return {
        "sketch": sketch.name, "actions": [a.to_json() for a in sketch.actions],
        "knobs": [k.name for k in sketch.knobs], "domains": [list(k.domain) for k in sketch.knobs],
        "constraints": to_text(Program("algebra", (), outputs, sketch.constraints)),
    }  # fmt: skip


@functools.lru_cache(maxsize=256)
def _planned_space(folder: str) -> Space:
    """The sketches of a plan without tables: reading them is a hundred times as fast as making
    them. Their actions are left out, as moves are of knobs alone."""
    told = json.loads((Path(folder) / PLAN_FILE).read_text("utf-8"))["sketches"]
    found = [
        Sketch(s["sketch"], (), tuple(map(Knob, s["knobs"], map(tuple, s["domains"]))),
               parse(s["constraints"]).body)
        for s in told
    ]  # fmt: skip
    return Space(tuple(found), ())


@functools.lru_cache(maxsize=16)
def _space(folder: str, target: str) -> Space:
    found = sketches(read_program(Path(folder)), parse_target(target))
    made = [(s, s.table(TABLE_ROWS, 0)) for s in found]
    kept = [(s, t) for s, t in made if len(next(iter(t.values())))]
    return space([s for s, _ in kept], [t for _, t in kept])


def _times(folder: str, target: str, model: CostModel) -> list[np.ndarray]:
    """Predicted times of every row of every table; of sketches without features, none."""
    program, chosen = read_program(Path(folder)), parse_target(target)
    made, out = _space(folder, target), []
    for sketch, table in zip(made.sketches, made.tables):
        found = sketch_features(program, sketch, chosen)
        none = isinstance(found, Illegal)
        out.append(np.zeros(0) if none else model.predict(found.evaluate(table)).latency_us)
    return out


# ---- from schedules to code --------------------------------------------------------------------


def lower(
    folder: str, target: str, schedules: Sequence[Mapping[str, Any]], cache: str,
    open_sizes: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Modules of some schedules of one task; their sources go to the cache, one file a code.

    open_sizes: kernels get extents as arguments, so that one code serves a class of workloads.
    Returns for each {"code": its key, "module": without its source, "bound": see bound_of,
    "open": how many sizes are}, or {"illegal": code, "why"}.
    """
    program, chosen = read_program(Path(folder)), parse_target(target)
    out: list[dict[str, Any]] = []
    for data in schedules:
        schedule = Schedule.from_json(data)
        found = open_replay(program, schedule) if open_sizes else _closed(program, schedule)
        module = (
            found if isinstance(found, Illegal) else emit(found.tile, _NO_HEADER, found.sizes)
        )
        if isinstance(found, Illegal) or isinstance(module, Illegal):
            assert isinstance(module, Illegal)
            out.append({"illegal": module.code, "why": module.why})
            continue
        code = canonical(module)
        key = build_key(code, chosen)
        _write_source(Path(cache) / SOURCES / f"{key}.json", code)
        out.append({"code": key, "module": {**module.to_json(), "source": ""},
                    "bound": bound_of(found.tile), "open": len(found.sizes.open)})  # fmt: skip
    return out


def _closed(program: Program, schedule: Schedule) -> OpenTile | Illegal:
    tile = replay(program, schedule)
    return tile if isinstance(tile, Illegal) else OpenTile(program, tile, Sizes())


def canonical(module: TritonModule) -> TritonModule:
    """The module as far as its machine code depends on it: no extents, no sizes of grids, and
    not where arguments come from."""
    return replace(
        module, sizes=(),
        tensors=tuple(replace(t, extents=()) for t in module.tensors),
        launches=tuple(replace(x, programs=1, persistent=0) for x in module.launches),
    )  # fmt: skip


def _write_source(path: Path, module: TritonModule) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    made.write_text(json.dumps(module.to_json()), "utf-8")
    os.replace(made, path)


def compile_code(key: str, target: str, cache: str) -> dict[str, Any]:
    """Compiles the source of a key. Returns {"seconds"}. Raises: JobFailure where it needs more
    than the target has, and what the compiler raises."""
    text = (Path(cache) / SOURCES / f"{key}.json").read_text("utf-8")
    module = TritonModule.from_json(json.loads(text))
    scratch = Path(cache) / SCRATCH
    scratch.mkdir(exist_ok=True)
    # What the compiler keeps of each stage is a hundred times as large as the machine code.
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            made = build(module, parse_target(target), Path(cache) / CODES)
        except DoesNotFitError as error:
            raise JobFailure(Status.UNSUPPORTED, str(error)) from error
    return {"seconds": made.seconds}


def unpack(pack: str, blocks: Sequence[int], cache: str) -> int:
    """Makes the builds of some blocks of a pack again, by their numbers; returns how many."""
    opened, count = Pack(Path(pack)), 0
    for number in blocks:
        for name, blob in opened.read(opened.blocks[number]):
            if name.startswith(CODE):
                # The last part alone: nothing is written beside the folder of builds.
                unpack_build(blob, Path(cache) / CODES / Path(name).name)
                count += 1
    return count
