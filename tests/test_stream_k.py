"""stream and share: tiles dealt out to a fixed number of programs mean what the reduce means, as
formulas, in the interpreter of the IR, as Triton kernels, and as machine code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import programs as P
import pytest
import split_programs as S
import torch

from autosched.codegen.runtime.counters import ROLE
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import build
from autosched.codegen.triton_spec import TritonModule
from autosched.costmodel.features import sketch_features
from autosched.costmodel.roofline import RooflineModel
from autosched.ir.define import algebra
from autosched.ir.extent import evaluate_extent
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program
from autosched.ir.ops import input_, iota, kernel, kernel_facts, sigmoid, sum_
from autosched.ir.rules.action import Illegal, act
from autosched.ir.schedule import Sketch, replay, run_actions
from autosched.ir.shares import Shares, shared_tiles, tile_number
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.sketch_stream import stream_sketches
from autosched.ir.target import parse_target
from autosched.ir.text import parse, to_text
from autosched.ir.verify import VerifyError, verify
from autosched.tools.triton_interpreter import Interpreter

SM90 = parse_target("sm_90")
BOUND = {"float32": 2e-6, "bfloat16": 1.2e-2}


def silu(m: int, n: int, k: int, dtype: str = "float32") -> Program:
    """silu(x w + bias): doing it before the merge, or twice, shows."""
    x, w = input_("x", {"m": m, "k": k}, dtype), input_("w", {"k": k, "n": n}, dtype, "weight")
    y = sum_("k", S.wide(x) * S.wide(w)) + S.wide(input_("bias", {"n": n}, dtype, "weight"))
    return algebra(y=("m n", y * sigmoid(y)))


# ---- formulas ----------------------------------------------------------------------------------


def number(node: Node, **at: int) -> int:
    return int(evaluate_extent(node, at))


CASES = [  # tiles, steps of a tile, programs, whole waves to share
    (7, 10, 4, 0), (7, 10, 4, 1), (8, 3, 4, 0), (8, 3, 4, 9), (3, 5, 8, 0), (1, 1, 6, 0),
    (2, 1, 5, 0), (1, 40, 7, 0), (140, 4, 132, 0), (140, 4, 132, 1), (5, 7, 1, 0),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_dealt_out_once_and_evenly(case: tuple[int, ...]) -> None:
    tiles, blocks, programs, waves = case
    shared = shared_tiles(tiles, programs, waves)
    assert isinstance(shared, int) and (tiles - shared) % programs == 0
    shares = Shares(blocks, programs, shared)
    assert isinstance(shares.most, int) and isinstance(shares.slots, int)
    tile, part, by = iota("t", tiles), iota("j", shares.most), iota("q", programs)
    work = dict.fromkeys(range(programs), 0)
    wanted, slots = set(), []
    for t in range(tiles):
        count, end = number(shares.parts(tile), t=t), 0
        assert 1 <= count <= shares.most
        for j in range(count):
            lo, hi = (number(n, t=t, j=j) for n in shares.steps(tile, part))
            assert lo == end < hi  # no part is empty, and they follow each other
            end = hi
            slots += [number(shares.slot(tile, part), t=t, j=j)] if t < shared else []
            if t < shared:
                q = number(shares.first(tile), t=t) + j
                work[q] += hi - lo
                wanted.add((q, t))
        assert end == blocks
    done = {(q, t) for q in range(programs)
            for t in range(*(number(n, q=q) for n in shares.tiles(by)))}  # fmt: skip
    assert done == wanted
    assert len(set(slots)) == len(slots) and max(slots, default=-1) < shares.slots - 1
    busy = [n for n in work.values() if n]
    assert not busy or max(busy) - min(busy) <= 1
    assert len(busy) == min(programs, shared * blocks)


@pytest.mark.parametrize("group", [0, 2, 3, 7])
def test_tiles_have_a_number_each(group: int) -> None:
    places = [(iota(a, n), n) for a, n in (("b", 2), ("m", 7), ("n", 3))]
    tile = tile_number(places, group)
    found = {number(tile, b=b, m=m, n=n) for b in range(2) for m in range(7) for n in range(3)}
    assert found == set(range(42))


# ---- meaning -----------------------------------------------------------------------------------

BOXES = [["m", 16], ["n", 16]]
GROUPED = (*S.FACTS, ("group", 2))
ROWS, WHOLE = [["h", 1], ["i", 16], ["e", 0]], [["j.in", 0], ["d", 0]]
BOXED = (*S.FACTS, ("descriptors", 1), ("epilogue", 2), ("group", 2))


def batched(b: int, m: int, n: int, k: int) -> Program:
    x, w = input_("x", {"b": b, "m": m, "k": k}), input_("w", {"b": b, "k": k, "n": n})
    y = sum_("k", x * w)
    return algebra(y=("b m n", y * sigmoid(y)))


# Of each: program, axis, block, boxes, programs, waves, reduces, facts.
SHAPES: dict[str, tuple[Any, ...]] = {
    "tails": (silu(70, 20, 150), "k", 32, BOXES, 4, 0, (), GROUPED),
    "a wave more": (silu(40, 33, 150), "k", 32, BOXES, 4, 1, (), GROUPED),
    "all of them": (silu(70, 50, 300), "k", 32, BOXES, 6, 99, (), S.FACTS),
    "one block": (silu(40, 33, 32), "k", 32, BOXES, 4, 0, (), S.FACTS),
    "fewer tiles": (silu(16, 20, 200), "k", 16, BOXES, 9, 0, (), S.FACTS),
    "more programs": (silu(5, 7, 96), "k", 32, BOXES, 40, 0, (), S.FACTS),
    "one program": (silu(20, 20, 64), "k", 32, BOXES, 1, 1, (), S.FACTS),
    "attention": (S.decode(4, 2, 19, 170, 16, "float32"), "j", 32, ROWS, 5, 0, WHOLE, S.FACTS),
    "causal": (S.decode(4, 2, 20, 100, 16, "float32", P.causal), "j", 16, ROWS, 5, 9, WHOLE,
               S.FACTS),
    "descriptors": (silu(70, 64, 160), "k", 32, [["m", 16], ["n", 32]], 4, 0, (), BOXED),
    "batched": (batched(3, 30, 32, 64), "k", 16, [["b", 1], ["m", 16], ["n", 32]], 4, 0, (), BOXED),
    "two products": (P.swiglu(20, 150, 36), "c", 32, [["t", 16], ["f", 16]], 5, 0, (), S.FACTS),
}  # fmt: skip


def made(name: str) -> tuple[Program, Program]:
    program, *rest = SHAPES[name]
    got = run_actions(program, S.dealt(program, *rest))
    assert isinstance(got, Program), got
    return program, got


def draw(program: Program, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for node in program.inputs:
        name, dims, dtype, _ = node.attr
        x = torch.from_numpy(rng.standard_normal([e for _, e in dims]))
        out[name] = x.to(getattr(torch, dtype)).double().numpy()
    return out


@pytest.mark.parametrize("name", SHAPES)
def test_dealt_tiles_mean_the_reduce(name: str) -> None:
    program, tiled = made(name)
    assert len(tiled.body) == 1 and not verify(tiled) and parse(to_text(tiled)) == tiled
    inputs = draw(program, 1)
    for out, want in evaluate(program, inputs).items():
        np.testing.assert_allclose(evaluate(tiled, inputs)[out], want, rtol=1e-9, atol=1e-9)


def test_facts_that_tell_of_other_parts_are_rejected() -> None:
    _, tiled = made("tails")
    (root,) = tiled.body
    other = kernel(root.attr[0], root.src, {}, kernel_facts(root) | {"shared": 7})
    with pytest.raises(VerifyError, match="SHARE"):
        verify(tiled.with_body(other))
    plain = {n: e for n, e in kernel_facts(root).items() if n != "programs"}
    with pytest.raises(VerifyError, match="SHARE"):
        verify(tiled.with_body(kernel(root.attr[0], root.src, {}, plain)))


def test_refusals() -> None:
    program = silu(70, 50, 300)
    cut, tiled, *rest = S.dealt(program, "k", 32, BOXES, 7)

    def code(*actions: Any) -> str:
        got = run_actions(program, list(actions))
        assert isinstance(got, Illegal), got
        return got.code

    assert code(cut, tiled, *rest[:-1], act("share", **{**dict(rest[-1].args), "waves": 1})) == (
        "SHARES"
    )
    assert code(act("stream", **{**dict(cut.args), "tiles": [("q", 16)]})) == "NO_AXIS"
    assert code(act("stream", **{**dict(cut.args), "block": 512})) == "TOO_BIG"
    assert code(act("stream", **{**dict(cut.args), "programs": 10})) == "NONE_LEFT"
    far = {**dict(cut.args), "block": 1, "tiles": [("m", 1), ("n", 1)], "programs": 9000}
    assert code(act("stream", **far)) == "TOO_BIG"
    assert code(cut, tiled, cut) == "NOT_ALGEBRA"


# ---- kernels -----------------------------------------------------------------------------------


def module(tiled: Program) -> TritonModule:
    got = emit(tiled, Header("dealt"))
    assert isinstance(got, TritonModule), got
    return got


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "all of them"])
def test_kernels_of_dealt_tiles(interpreter: Interpreter, name: str) -> None:
    """The interpreter runs a module with counters twice, and sees that they are 0 afterwards."""
    program, tiled = made(name)
    got = module(tiled)
    (launch,) = got.launches
    assert launch.programs == SHAPES[name][4] and {t.role for t in got.tensors} >= {ROLE, "scratch"}
    inputs = draw(program, 2)
    want, run = evaluate(program, inputs), [interpreter(got, inputs) for _ in range(2)]
    for out in program.outputs:
        gap = np.linalg.norm(run[0][out.name] - want[out.name])
        assert gap <= BOUND[out.dtype] * np.linalg.norm(want[out.name]), got.source
        assert np.array_equal(*(r[out.name] for r in run))


def test_boxes_are_descriptors_that_are_made_once() -> None:
    lines = module(made("descriptors")[1]).source.splitlines()
    boxes = [line for line in lines if "make_tensor_descriptor" in line]
    assert [line.split("(")[1].split(",")[0] for line in boxes] == ["x", "w", "y"]
    loop = next(n for n, line in enumerate(lines) if line.lstrip().startswith("for step"))
    assert all(lines.index(line) < loop for line in boxes)
    assert sum(".store(" in line and "tl.store" not in line for line in lines) == 4  # two parts


def test_memory_is_wanted_for_shared_tiles_alone() -> None:
    got = module(made("all of them")[1])
    (scratch,) = (t for t in got.tensors if t.role == "scratch")
    (counter,) = (t for t in got.tensors if t.role == ROLE)
    assert scratch.extents == (20 + 6, 16, 16) and counter.extents == (20,)
    got = module(made("attention")[1])  # 8 tiles, of which a wave of 5 leaves 3 over
    assert {t.extents for t in got.tensors if t.role == "scratch"} == {(3 + 5, 16, 16), (3 + 5, 16)}


def gemm(m: int, n: int, k: int) -> Program:
    x = input_("x", {"m": m, "k": k}, "bfloat16")
    w = input_("w", {"k": k, "n": n}, "bfloat16", "weight")
    return algebra(y=("m n", S.cast(sum_("k", S.wide(x) * S.wide(w)), "bfloat16")))


@pytest.mark.parametrize("box", [(128, 256, 8, 3), (128, 128, 4, 4), (256, 128, 8, 3)])
def test_machine_code(box: Sequence[int], tmp_path: Path) -> None:
    rows, columns, warps, stages = box
    facts = [["warps", warps], ["stages", stages], ["descriptors", 1], ["group", 8],
             ["epilogue", 2]]  # fmt: skip
    axes = [["m", rows], ["n", columns]]
    program = gemm(2048, 4096, 4096)
    tiled = run_actions(program, S.dealt(program, "k", 64, axes, 132, 1, [["k.in", 0]], facts))
    assert isinstance(tiled, Program), tiled
    made = module(tiled)
    (kernel,) = build(made, SM90, tmp_path).kernels
    assert kernel.spill_bytes == 0 and not kernel.serialised
    # Operands that are fetched ahead, and half a box that leaves; no sums.
    assert kernel.shared_bytes <= stages * (rows + columns) * 128 + rows * columns + 1024
    assert len(re.findall(r"tl\.dot\(", made.source)) == 1


# ---- sketches and features ---------------------------------------------------------------------


def test_sketches_are_for_a_few_waves() -> None:
    def names(program: Program) -> set[str]:
        return {s.name.split(".")[0] for s in stream_sketches(program, SM90)}

    assert names(gemm(1536, 1536, 8192)) == {"stream"} == names(gemm(4096, 4096, 4096))
    assert names(S.decode(32, 8, 512, 4096, 128)) == {"stream"}
    assert names(gemm(16, 28672, 4096)) == names(gemm(32768, 8192, 4096)) == set()
    assert names(gemm(4096, 4096, 256)) == names(P.softmax(4096, 4096)) == set()


@pytest.mark.parametrize("program", [silu(300, 333, 600), S.decode(4, 2, 150, 700, 16)])
def test_every_schedule_means_the_program(program: Program) -> None:
    few = replace(SM90, cores=4)
    rng, inputs = np.random.default_rng(0), draw(program, 3)
    want = evaluate(program, inputs)
    sketches = stream_sketches(program, few)
    assert sketches
    for sketch in sketches:
        table = sketch.table()
        for row in rng.choice(len(table["waves"]), 2, replace=False):
            schedule = sketch.schedule({k: int(v[row]) for k, v in table.items()})
            tiled = replay(program, schedule)
            assert isinstance(tiled, Program), tiled
            assert not verify(tiled) and len(tiled.body) == 1, schedule.text
            for name, value in want.items():
                gap = np.linalg.norm(evaluate(tiled, inputs)[name] - value)
                assert gap <= 4e-3 * np.linalg.norm(value), schedule.text


def test_features_see_no_last_wave() -> None:
    """What is computed and stored stays the same, and the device is full to the end."""
    program = gemm(1536, 1536, 8192)  # 72 boxes of 256 x 128: half a wave
    sketch = stream_sketches(program, SM90)[0]
    made = sketch_features(program, sketch, SM90)
    assert not isinstance(made, Illegal), made
    table = sketch.table()
    rows = made.evaluate(table)
    np.testing.assert_allclose(rows.column("dot_flops"), 2 * 1536 * 1536 * 8192, rtol=1e-6)
    np.testing.assert_allclose(rows.column("stored_bytes"), 1536 * 1536 * 2, rtol=1e-6)
    assert not rows.column("hot_tail").any()
    large = (table["k0.m"] == 256) & (table["k0.n"] == 128) & (table["programs"] == 132)
    np.testing.assert_allclose(rows.column("programs")[large], 72 + 131)
    whole = (s for s in gpu_sketches(program, SM90) if len(next(iter(s.table().values()))))
    plain = min(fastest(program, s) for s in whole)
    assert fastest(program, sketch) < 0.8 * plain


def fastest(program: Program, sketch: Sketch) -> float:
    made = sketch_features(program, sketch, SM90)
    assert not isinstance(made, Illegal), made
    rows = made.evaluate(sketch.table(3000))
    return float(RooflineModel().predict(rows).latency_us.min())
