"""Kernels with open extents: one source for the shapes of a class, and what each computes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
from test_triton_schedules import draw
from tile_programs import delta_algebra

from autosched.codegen import triton_build, triton_jobs
from autosched.codegen.reference import write_program
from autosched.codegen.runtime.launch import Plan
from autosched.codegen.runtime.sizes import SizeError
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import build, build_key
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.extent import ext_cdiv, simplify, subst
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program, replace_nodes, walk
from autosched.ir.open_extents import (
    OpenTile,
    Sizes,
    class_key,
    generalise,
    open_replay,
    opened_for,
)
from autosched.ir.ops import const, get, iota, knob, minimum
from autosched.ir.record import Record, Status
from autosched.ir.rules.action import act
from autosched.ir.schedule import Schedule, replay
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.target import parse_target
from autosched.ir.verify import verify
from autosched.tools import gpu_programs
from autosched.tools.gpu_lab import Candidate, GpuLab, Setup
from autosched.tools.gpu_open import Row, compared, summary
from autosched.tools.gpu_recheck import Chosen
from autosched.tools.triton_interpreter import Interpreter

SM90 = parse_target("sm_90")
Shape = tuple[int, ...]

# Shapes of each definition that one source may serve, where blocks are not as long as an axis.
FAMILIES: dict[str, tuple[Callable[..., Program], Sequence[Shape]]] = {
    "gemm": (programs.gemm, [(37, 29, 45), (51, 43, 77), (35, 37, 69)]),
    "aligned": (programs.gemm, [(128, 256, 128), (256, 128, 384)]),
    "rows": (programs.layernorm, [(7, 50), (12, 50), (3, 50)]),
    "long": (programs.softmax, [(2, 17001), (3, 16501)]),
    "gated": (programs.swiglu, [(19, 133, 21), (35, 141, 37)]),
    "causal": (lambda *s: programs.attention(*s, 16), [(2, 2, 37), (3, 2, 53)]),
    "cross": (lambda b, i, j: programs.attention(b, 4, i, 16, j=j, groups=2, mask=None),
              [(2, 37, 141), (3, 19, 157)]),
    "recurrence": (lambda b, t: delta_algebra(b, 2, t, 16, 16), [(2, 9), (3, 13)]),
    "turned": (programs.rotary, [(2, 3, 11, 16), (3, 2, 7, 16)]),
}  # fmt: skip
DRAWS = {"aligned": 1, "causal": 2, "cross": 2, "recurrence": 2}  # schedules of each, else 3
WANTED = {"long": {"c": 4096}}  # of knobs, where a draw would take the interpreter long


def schedules(program: Program, count: int, seed: int = 0) -> list[Schedule]:
    rng = np.random.default_rng(seed)
    sketches = gpu_sketches(program, SM90)
    tables = [(s, t) for s in sketches if len(next(iter((t := s.table(5000)).values())))]
    out = {}
    for pick in rng.integers(len(tables), size=count):
        sketch, table = tables[pick]
        row = int(rng.integers(len(next(iter(table.values())))))
        made = sketch.schedule({k: int(v[row]) for k, v in table.items() if k})
        out[made.text] = made
    return list(out.values())


def chosen(program: Program, **wanted: int) -> Schedule:
    """The first schedule with these values of the knobs of a kernel."""
    for sketch in gpu_sketches(program, SM90):
        table = sketch.table()
        named = [(k.rpartition(".")[2], column) for k, column in table.items()]
        if set(wanted) <= {name for name, _ in named}:
            keep = np.all([c == wanted[name] for name, c in named if name in wanted], axis=0)
            if keep.any():
                row = int(np.flatnonzero(keep)[0])
                return sketch.schedule({k: int(v[row]) for k, v in table.items()})
    raise AssertionError(f"no schedule with {wanted}")


def opened(program: Program, schedule: Schedule) -> tuple[OpenTile, TritonModule]:
    found = open_replay(program, schedule)
    assert isinstance(found, OpenTile), found
    module = emit(found.tile, Header("one class"), found.sizes)
    assert isinstance(module, TritonModule), module
    return found, module


# ---- what a class is -----------------------------------------------------------------------------


def test_extents_of_blocks_and_points_open_and_boxes_stay():
    program = programs.attention(2, 4, 256, 64, j=512, groups=2)
    schedule = chosen(program, i=64, warps=4)
    sizes = opened_for(program, schedule).sizes
    units = {s.name: s.unit for s in sizes.open}
    assert units["i.by64"] == 64 and units["h.size"] == 1 and "b.size" in units
    assert not any(name.startswith(("d.", "e.")) for name in units)  # whole boxes
    assert all(s.tensor in "qkv" for s in sizes.open)


def test_a_class_is_plain_data_and_tells_definitions_and_units_apart():
    schedule = chosen(programs.gemm(256, 256, 512), m=64, n=64, k=64)
    key = class_key(programs.gemm(256, 256, 512), schedule)
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert key == class_key(programs.gemm(64 * 7, 64 * 9, 64 * 11), schedule)
    assert key != class_key(programs.gemm(256, 256, 520), schedule)  # a mask along k
    assert key != class_key(programs.gemm(256, 250, 512), schedule)  # other alignment
    assert key != class_key(programs.swiglu(256, 512, 256), schedule)
    assert key != class_key(programs.gemm(1 << 17, 1 << 17, 512), schedule)  # 64-bit offsets


def test_a_number_that_a_definition_makes_of_an_extent_is_part_of_its_class():
    one, two = programs.rmsnorm(8, 20000), programs.rmsnorm(8, 40000)
    schedule = chosen(one, t=4)
    assert class_key(one, schedule) != class_key(two, schedule)
    assert class_key(one, schedule) == class_key(programs.rmsnorm(24, 20000), schedule)


def test_an_axis_that_is_whole_or_has_length_one_is_closed():
    program = programs.gemm(1, 96, 512)
    names = {s.name for s in opened_for(program, chosen(program, n=32)).sizes.open}
    assert names and not any(n.startswith("m.") for n in names)


def test_a_loop_over_all_steps_opens_and_a_part_of_it_does_not():
    program = delta_algebra(2, 2, 9, 16, 16)
    schedule = schedules(program, 1)[0]
    assert "t.size" in {s.name for s in opened_for(program, schedule).sizes.open}
    (fold,) = [n for n in walk(*program.body) if n.op == "fold"]
    part = Node("fold", (fold.src[0], const(8, "int32"), *fold.src[2:]), fold.attr)
    table = {get(fold, n): get(part, n) for n in range(len(fold.types))}
    shorter = program.with_body(*(replace_nodes(b, table) for b in program.body))
    assert "t.size" not in {s.name for s in opened_for(shorter, schedule).sizes.open}


def test_rules_that_nobody_has_checked_leave_a_program_closed():
    program = programs.gemm(64, 64, 64)
    schedule = Schedule("", (act("inline", keep=()),))
    assert opened_for(program, schedule).sizes == Sizes()


def test_opened_programs_close_again_to_what_they_were():
    program = programs.gemm(256, 512, 128)
    made = generalise(program, {"m": 64, "n": 16})
    assert [s.name for s in made.sizes.open] == ["m.by64", "n.by16"]
    assert made.sizes.values == (4, 32) and made.program != program
    assert subst(made.program, made.sizes.knobs()) == program


def test_masks_go_where_units_prove_them():
    start = iota("o", ext_cdiv(knob("m") * 64, 32)) * 32 + iota("i", 32)
    end: Node = knob("m") * 64
    inside = simplify(start < end)
    assert inside.op == "const" and inside.attr[0]
    assert simplify(minimum(start, end - 1)) is simplify(start)
    ragged = iota("o", ext_cdiv(knob("m") * 16, 32)) * 32 + iota("i", 32)
    assert simplify(ragged < knob("m") * 16).op == "map"  # with m = 1 it is false at i = 16
    assert simplify(start < end - 1).op == "map"


# ---- one source, several shapes ------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FAMILIES))
def test_one_source_serves_the_shapes_of_a_class(interpreter: Interpreter, name: str) -> None:
    """Values of open kernels are the definition's, interpreted as tile programs and by Triton's
    interpreter; workloads with one key have one source."""
    define, shapes = FAMILIES[name]
    group = [define(*shape) for shape in shapes]
    shared = 0
    wanted = WANTED.get(name)
    drawn = [chosen(group[0], **wanted)] if wanted else schedules(group[0], 12)
    # Those under which the shapes are of few classes come first: with long blocks none may be.
    drawn.sort(key=lambda s: len({class_key(p, s) for p in group}))
    for schedule in drawn[: DRAWS.get(name, 3)]:
        sources: dict[str, list[Sizes]] = {}
        keys: dict[str, str] = {}
        for program in group:
            found, module = opened(program, schedule)
            arrays = draw(program, np.random.default_rng(1))
            want = evaluate(program, arrays)
            closed = subst(found.tile, found.sizes.knobs())
            assert not verify(closed, concrete=True)
            means, got = evaluate(closed, arrays), interpreter(module, arrays)
            for key, array in want.items():
                np.testing.assert_allclose(means[key], array, 1e-9, 1e-9)
                np.testing.assert_allclose(got[key], array, 1e-4, 1e-5, True, module.source)
            key = class_key(program, schedule)
            assert keys.setdefault(key, module.source) == module.source
            sources.setdefault(module.source, []).append(found.sizes)
        shared += max(len(set(sizes)) for sizes in sources.values()) > 1
    assert shared, "no schedule of this family serves two shapes"


@pytest.mark.parametrize("shape", [(0, 40, 64), (40, 0, 64), (40, 24, 0)])
def test_shapes_without_elements(interpreter: Interpreter, shape: Shape) -> None:
    """A kernel of a class runs where a dimension is 0: no launch, or a sum of nothing."""
    schedule = chosen(programs.gemm(128, 128, 128), m=32, n=32, k=32)
    _, module = opened(programs.gemm(37, 45, 61), schedule)
    m, n, k = shape
    arrays = {"x": np.ones((m, k)), "w": np.ones((k, n)), "bias": np.zeros(n)}
    assert np.array_equal(interpreter(module, arrays)["y"], np.zeros((m, n)))
    plan = Plan.from_json(module.to_json(), {n: a.shape for n, a in arrays.items()})
    assert (plan.steps[0].programs == 0) == (m * n == 0)


def test_a_module_with_sizes_is_plain_json_and_says_what_it_wants():
    schedule = chosen(programs.gemm(128, 128, 128), m=32, n=32, k=32)
    _, module = opened(programs.gemm(64, 96, 128), schedule)
    data = json.loads(json.dumps(module.to_json()))
    assert TritonModule.from_json(data) == module
    plan = Plan.from_json(data, {"x": (320, 64), "w": (64, 32), "bias": (32,)})
    assert {b.name: b.extents for b in plan.buffers} == {
        "x": (320, 64), "w": (64, 32), "bias": (32,), "y": (320, 32)}  # fmt: skip
    assert plan.steps[0].programs == 10
    values = {"m.by32": 10, "k.by32": 2, "n.by32": 1}
    assert plan.steps[0].sizes == tuple(values[name] for name in module.launches[0].sizes)
    with pytest.raises(SizeError, match=r"dimension 0 of x is 33; .* multiples of 32"):
        Plan.from_json(data, {"x": (33, 64), "w": (64, 32), "bias": (32,)})
    with pytest.raises(SizeError, match="x is missing"):
        Plan.from_json(data)


def test_closed_modules_of_old_packages_are_read():
    data = {
        "tensors": [{"name": "x", "dtype": "float32", "extents": [4], "role": "input"}],
        "launches": [{"kernel": "f", "tensors": ["x"], "programs": 3, "warps": 4, "stages": 1}],
    }
    (step,) = Plan.from_json(data).steps
    assert step.programs == 3 and step.sizes == ()
    assert TritonModule.from_json({"source": "", **data}).sizes == ()


def test_offsets_beyond_32_bits_are_computed_in_64():
    schedule = chosen(programs.gemm(128, 128, 128), m=128, n=128, k=32)
    _, wide = opened(gpu_programs.product(65536, 65536, 512, "bfloat16"), schedule)
    _, narrow = opened(gpu_programs.product(4096, 4096, 512, "bfloat16"), schedule)
    assert "int64" in wide.source and "int64" not in narrow.source


# ---- compiled ------------------------------------------------------------------------------------


def compiled(module: TritonModule, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the PTX of a module has of each kind of access and of tensor cores, and registers."""
    seen: list[Any] = []
    real = triton_build.triton.compile
    with monkeypatch.context() as patch:
        patch.setattr(triton_build.triton, "compile",
                      lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
        made = build(module, SM90, cache)
    ptx = "".join(c.asm["ptx"] for c in seen)
    counts = {
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "tma": len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
        **{f"async {w}": len(re.findall(rf"cp\.async\.c[ag]\.shared\.global[^;]*, {w},", ptx))
           for w in ("0x4", "0x8", "0x10")},
        **{f"{op} {w}": len(re.findall(rf"\b{op}\.global[.a-zA-Z0-9:]*\.{w}\.", ptx))
           for op in ("ld", "st") for w in ("v2", "v4")},
    }  # fmt: skip
    return {**counts, "registers": made.facts()["registers"], "spills": made.facts()["spill_bytes"]}


@pytest.mark.parametrize(("define", "descriptors"), [
    (lambda: gpu_programs.product(512, 768, 1024, "bfloat16"), 0),
    (lambda: gpu_programs.product(512, 768, 1024, "bfloat16"), 1),
    (lambda: gpu_programs.product(1000, 1000, 1000, "bfloat16", True), 0),
    (lambda: gpu_programs.attention(2, 4, 1024, 64, "bfloat16", causal=True), 1),
], ids=["gemm", "gemm boxes", "ragged", "causal boxes"])  # fmt: skip
def test_open_kernels_have_the_accesses_of_closed_ones(
    define: Callable[[], Program], descriptors: int, tmp_path: Path, monkeypatch: Any
) -> None:
    program = define()
    rows = {"i": 64} if "q" in {n.attr[0] for n in program.inputs} else {"m": 64, "n": 64, "k": 32}
    schedule = chosen(program, **rows, warps=4, stages=3, descriptors=descriptors)
    tile = replay(program, schedule)
    assert isinstance(tile, Program)
    closed = emit(tile, Header("closed"))
    assert isinstance(closed, TritonModule)
    found, module = opened(program, schedule)
    assert found.sizes.open and module.source != closed.source
    one, other = (compiled(m, tmp_path, monkeypatch) for m in (closed, module))
    extra = other.pop("registers") - one.pop("registers")
    assert one == other
    assert one["wgmma"] and one["tma" if descriptors else "async 0x10"]
    assert extra <= 48  # strides, and offsets that no longer share an address


def test_tasks_of_a_class_share_an_entry(tmp_path: Path) -> None:
    """What a builder makes of two tasks under one schedule is one folder, compiled once."""
    shapes = [(64, 64, 128), (192, 128, 64)]
    schedule = chosen(programs.gemm(*shapes[0]), m=32, n=32, k=32, warps=4, stages=2)
    rows = []
    for n, shape in enumerate(shapes):
        folder = tmp_path / f"task{n}"
        write_program(folder, programs.gemm(*shape))
        rows.append(triton_jobs.build_schedule(
            str(folder), schedule.to_json(), "sm_90", str(tmp_path / "builds"), f"task{n}", True
        ))  # fmt: skip
    assert rows[0]["entry"] == rows[1]["entry"]
    assert len(list((tmp_path / "builds").iterdir())) == 1
    modules = [opened(programs.gemm(*shape), schedule)[1] for shape in shapes]
    assert build_key(modules[0], SM90) == build_key(modules[1], SM90)


# ---- measured ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuLab]:
    setup = Setup("sm_90", device="cpu", launcher="jit", open_sizes=True)
    with GpuLab(tmp_path_factory.mktemp("lab"), setup, builders=1,
                measurer_env={"TRITON_INTERPRET": "1"}) as made:  # fmt: skip
        yield made


def test_one_build_is_measured_on_several_tasks(lab: GpuLab) -> None:
    """Checked against the definition of each; on a task of another class it says so."""
    shapes = [(64, 64, 128), (96, 32, 64), (64, 64, 72)]
    schedule = chosen(programs.gemm(*shapes[0]), m=32, n=32, k=32, warps=4, stages=2)
    for n, shape in enumerate(shapes):
        write_program(lab.place(f"task{n}"), programs.gemm(*shape))
    candidate = Candidate(schedule.to_json())
    (built,) = lab.built(lab.submit_builds("task0", "sm_90", [candidate]))
    first, second, other = (lab.measure(f"task{n}", built) for n in range(3))
    assert first.ok and second.ok, (first.error, second.error)
    assert other.status is Status.UNSUPPORTED and "multiples of 32" in str(other.error)
    made = Row(Chosen("w", "gemm", None), 2.0, 4.0, 2.0)  # type: ignore[arg-type]
    assert "closed / open 0.5000" in summary([made])


def test_both_kernels_of_a_schedule_are_compared(lab: GpuLab) -> None:
    program = programs.gemm(64, 64, 128)
    schedule = chosen(program, m=32, n=32, k=32, warps=4, stages=2)
    write_program(lab.place("task0"), program)
    record = Record.of(
        workload="w" * 64, target="gpu/sm_90/x/", status=Status.OK, latency_us=1.0,
        schedule=schedule.to_json(), spread_us=None, error=None, toolchain="t", device="d",
        threads=1, checked="none", extra={},
    )  # fmt: skip
    item = Chosen("w" * 64, "gemm", record)
    (row,) = compared(lab, [item], math.inf)
    assert not row.fault and row.closed_us > 0 and row.open_us > 0
    assert list(compared(lab, [item], -math.inf)) == []
