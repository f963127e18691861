"""Split reductions as Triton kernels: against float64 on odd sizes, both ways of merging, counters
that are 0 again, machine code for sm_90 and the counters that a launcher hands out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import programs as P
import pytest
import split_programs as S
import torch

from autosched.codegen.runtime.counters import ROLE, Counters
from autosched.codegen.runtime.launch import Buffer, Launcher, Plan
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import build
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.rules import skip
from autosched.ir.schedule import replay, run_actions
from autosched.ir.sketch_split import split_sketches
from autosched.ir.target import parse_target
from autosched.tools.triton_interpreter import Interpreter

SM90 = parse_target("sm_90")
BOUND = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.2e-2}
ROWS = [["h", 1], ["i", 16], ["e", 0]]
WHOLE = [["j.in", 0], ["d", 0]]


def module(program: Program, actions: Sequence[Any]) -> TritonModule:
    """The module of a split program, its loops shortened where masks allow it."""
    *before, last = actions
    merged = [last] if last.rule == "arrive" else []
    made = run_actions(program, before if merged else actions)
    assert isinstance(made, Program), made
    made = run_actions(made, [*skip.propose(made), *merged])
    assert isinstance(made, Program), made
    got = emit(made, Header("parts"))
    assert isinstance(got, TritonModule), got
    return got


def draw(program: Program, seed: int, scale: float = 0.5) -> dict[str, np.ndarray]:
    """Numbers that the types of the inputs hold exactly."""
    rng = np.random.default_rng(seed)
    out = {}
    for node in program.inputs:
        name, dims, dtype, _ = node.attr
        x = torch.from_numpy(rng.standard_normal([e for _, e in dims]) * scale)
        out[name] = x.to(getattr(torch, dtype)).double().numpy()
    return out


def check(interpreter: Interpreter, program: Program, made: TritonModule, seed: int = 0) -> None:
    """The interpreter runs a module with counters twice, and sees that they are 0 afterwards."""
    inputs = draw(program, seed)
    want = evaluate(program, inputs)
    got = interpreter(made, inputs)
    for out in program.outputs:
        gap = np.linalg.norm(got[out.name] - want[out.name])
        assert gap <= BOUND[out.dtype] * np.linalg.norm(want[out.name]), made.source


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("dtype", list(BOUND))
def test_products_with_an_epilogue(interpreter: Interpreter, dtype: str, merged: bool) -> None:
    program = S.gemm(7, 90, 300, dtype)
    facts = [["warps", 4], ["stages", 3], ["descriptors", 1]]
    axes = [["m", 16], ["n", 32]]
    made = module(program, S.by_hand(program, "k", 32, 3, axes, (), merged, facts))
    roles = {t.role for t in made.tensors}
    assert (ROLE in roles) == merged and "scratch" in roles
    assert len(made.launches) == (1 if merged else 2)
    check(interpreter, program, made)


MASKS = {"none": None, "causal": P.causal, "window": S.window(150)}


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_decoding_with_grouped_heads(interpreter: Interpreter, mask: str, merged: bool) -> None:
    program = S.decode(4, 2, 3, 333, 16, "bfloat16", MASKS[mask])
    made = module(program, S.by_hand(program, "j", 32, 4, ROWS, WHOLE, merged))
    check(interpreter, program, made)


def test_causal_blocks_of_many_queries(interpreter: Interpreter) -> None:
    program = P.attention(1, 2, 50, 16)
    made = module(program, S.by_hand(program, "j", 16, 3, [["b", 1], *ROWS], WHOLE))
    check(interpreter, program, made)


@pytest.mark.parametrize("name", ["softmax", "layernorm"])
def test_rows_over_a_long_axis(interpreter: Interpreter, name: str) -> None:
    program = {"softmax": P.softmax(3, 9000), "layernorm": P.layernorm(3, 9000)}[name]
    sketches = [s for s in split_sketches(program, SM90) if ".apart." in s.name]
    assert sketches
    schedule = sketches[0].schedule({k.name: k.domain[-1] for k in sketches[0].knobs})
    tile = replay(program, schedule)
    assert isinstance(tile, Program), tile
    made = emit(tile, Header(name))
    assert isinstance(made, TritonModule), made
    check(interpreter, program, made)


@pytest.mark.parametrize("program", [S.gemm(5, 70, 600), S.decode(4, 2, 2, 600, 16)])
def test_schedules_of_the_sketches(interpreter: Interpreter, program: Program) -> None:
    rng = np.random.default_rng(1)
    sketches = split_sketches(program, SM90)
    for number in rng.permutation(len(sketches))[:3]:
        table = sketches[number].table()
        row = int(rng.integers(len(next(iter(table.values())))))
        schedule = sketches[number].schedule({k: int(v[row]) for k, v in table.items()})
        tile = replay(program, schedule)
        assert isinstance(tile, Program), tile
        made = emit(tile, Header("drawn", schedule=schedule.to_json()))
        assert isinstance(made, TritonModule), (made, schedule.text)
        assert all(len(line) < 100 for line in made.source.splitlines())
        check(interpreter, program, made)


def test_the_same_bits_each_time(interpreter: Interpreter) -> None:
    program = S.gemm(7, 90, 300)
    made = module(program, S.by_hand(program, "k", 32, 5, [["m", 16], ["n", 32]]))
    inputs = draw(program, 3)
    first, second = (interpreter(made, inputs)["y"] for _ in range(2))
    assert np.array_equal(first, second)


# ---- machine code ------------------------------------------------------------------------------

BUILDS = {
    "products": (S.gemm(16, 4096, 4096), ("k", 128, 8, [["m", 16], ["n", 64]], [["k.in", 0]]), 64),
    "decoding": (S.decode(32, 8, 1, 32768, 128), ("j", 64, 16, ROWS, WHOLE), 96),
}


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", BUILDS)
def test_machine_code(name: str, merged: bool, tmp_path: Path) -> None:
    program, args, registers = BUILDS[name]
    facts = [["warps", 4], ["stages", 4]]
    made = build(module(program, S.by_hand(program, *args, merged, facts)), SM90, tmp_path)
    assert len(made.kernels) == (1 if merged else 2)
    for kernel in made.kernels:
        assert kernel.spill_bytes == 0 and kernel.registers <= registers
        assert kernel.shared_bytes <= SM90.l1_bytes // 2  # two programs of a multiprocessor


def test_what_a_program_stores_is_there_before_it_is_counted() -> None:
    """A barrier of the block, then a count that releases and acquires, by plain pointers."""
    program = S.gemm(16, 256, 512)
    facts = [["warps", 4], ["stages", 3], ["descriptors", 1]]
    made = module(program, S.by_hand(program, "k", 64, 4, [["m", 16], ["n", 64]], (), True, facts))
    lines = [line.strip() for line in made.source.splitlines()]
    at = next(n for n, line in enumerate(lines) if "atomic_add" in line)
    assert 'sem="acq_rel", scope="gpu"' in lines[at]
    assert lines[at - 1] == "tl.debug_barrier()"
    boxes = [line for line in lines if "make_tensor_descriptor" in line]
    assert [line.split("(")[1].split(",")[0] for line in boxes] == ["x", "w"]
    assert lines[-1] == "tl.store(y_kernel_arrivals + n_o, 0)"


# ---- counters ----------------------------------------------------------------------------------


def counters(*sizes: int) -> Counters:
    return Counters([Buffer(f"c{n}", "int32", (size,), ROLE) for n, size in enumerate(sizes)])


def test_counters_are_zeros_of_their_own_and_aligned() -> None:
    device = torch.device("cpu")
    first, second = counters(3, 5), counters(70_000)
    made = first.on(device)
    assert [tuple(x.shape) for x in made.values()] == [(3,), (5,)]
    assert all(x.data_ptr() % 16 == 0 and not x.any() for x in made.values())
    assert first.on(device)["c0"] is made["c0"]  # kept between calls
    made["c1"].fill_(7)
    assert not made["c0"].any() and not second.on(device)["c0"].any()
    assert counters().on(device) == {}


def test_a_recorded_call_has_counters_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from autosched.codegen.runtime import counters as owner

    recording = [False]

    class Stream:
        cuda_stream = 5

        def synchronize(self) -> None:
            assert not recording[0]

    class Fake:
        int32 = torch.int32

        class cuda:
            is_current_stream_capturing = staticmethod(lambda: recording[0])
            current_stream = staticmethod(lambda device: Stream())

        @staticmethod
        def zeros(count: int, dtype: torch.dtype, device: object) -> torch.Tensor:
            return torch.zeros(count, dtype=dtype)

    monkeypatch.setattr(owner, "torch_module", lambda: Fake)
    monkeypatch.setattr(owner, "_slabs", owner._Slabs())
    device, mine = torch.device("cuda", 0), counters(4)
    recording[0] = True
    early = mine.on(device)["c0"]  # nothing is there yet: zeros that the graph makes
    recording[0] = False
    eager = mine.on(device)["c0"]
    assert mine.on(device)["c0"] is eager
    recording[0] = True
    recorded = [mine.on(device)["c0"] for _ in range(2)]
    places = {x.data_ptr() for x in (early, eager, *recorded)}
    assert len(places) == 4


def test_plans_of_old_packages_are_read_as_before() -> None:
    rows = {"tensors": [{"name": "x", "dtype": "float32", "extents": [4], "role": "input"}],
            "launches": []}  # fmt: skip
    assert Launcher(Path("kernels.py"), Plan.from_json(rows)).plan.of_role(ROLE) == ()
