"""Warps of their own for loads: what the compiler makes of the groups that contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_stagger import attention

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import MiscompiledError, build
from autosched.codegen.triton_memory import Memory
from autosched.codegen.triton_spec import TritonModule
from autosched.ir import gpu_facts
from autosched.ir.define import algebra
from autosched.ir.node import Node, Program
from autosched.ir.open_extents import OpenTile, open_replay
from autosched.ir.ops import cast, input_, sum_
from autosched.ir.schedule import Schedule, Sketch, replay
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.target import parse_target
from autosched.tools.gpu_programs import product, scaled_product

TARGET = parse_target("sm_90")
Knobs = dict[str, int]
SPECIALISED = "('specialise', 1)"  # as actions are spelled
Case = tuple[Callable[[], Program], str, Knobs]

# What used to be wrong on an H200: a tail of rows, masked rows' scales, a test of rows and columns.
CASES: dict[str, Case] = {
    "tail": (lambda: product(1500, 1280, 512, "bfloat16"), "",
             {"m": 128, "n": 128, "stages": 4, "descriptors": 6}),
    "scales": (lambda: scaled_product(1341, 1728, 640, True), "",
               {"m": 256, "n": 16, "stages": 2, "descriptors": 1}),
    "causal": (lambda: attention(1536, "causal", "bfloat16", d=64), ".tested",
               {"i": 128, "stages": 2, "descriptors": 6}),
    "causal tail": (lambda: attention(1500, "causal", "bfloat16", d=128), ".tested",
                    {"i": 128, "stages": 2, "descriptors": 6}),
}  # fmt: skip


def specialised(program: Program, ending: str = "") -> Sketch:
    """The first sketch whose warps load for others."""
    return next(
        s for s in gpu_sketches(program, TARGET)
        if SPECIALISED in str(s.actions) and s.name.endswith(ending)
    )  # fmt: skip


def chosen(program: Program, ending: str, knobs: Knobs) -> Schedule:
    """Its first schedule with these knobs."""
    sketch = specialised(program, ending)
    table = sketch.table()
    fit = np.logical_and.reduce([np.asarray(table[f"k0.{k}"]) == v for k, v in knobs.items()])
    at = int(np.flatnonzero(fit)[0])
    return sketch.schedule({k.name: int(table[k.name][at]) for k in sketch.knobs})


def shared(self: Memory, at: Node) -> object:
    """Coordinates as they were: the values that all else is made of."""
    return self.value(at)


def module(program: Program, ending: str, knobs: Knobs) -> TritonModule:
    tile = replay(program, chosen(program, ending, knobs))
    assert isinstance(tile, Program), tile
    made = emit(tile, Header("specialise"))
    assert isinstance(made, TritonModule), made
    assert "warp_specialize=True" in made.source
    return made


@pytest.mark.parametrize("name", CASES)
def test_groups_move_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group has the tests of its own rows; made of coordinates they would move twice, and such
    a build is refused."""
    define, ending, knobs = CASES[name]
    program = define()
    assert build(module(program, ending, knobs), TARGET, tmp_path).kernels[0].threads == 3 * 128

    monkeypatch.setattr(Memory, "apart", shared)
    with pytest.raises(MiscompiledError, match="moves a group of warps twice"):
        build(module(program, ending, knobs), TARGET, tmp_path)


def test_groups_move_once_where_extents_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pointers, too, are made of coordinates, times strides."""
    define, ending, knobs = CASES["tail"]
    schedule = chosen(define(), ending, knobs)

    def made() -> TritonModule:
        found = open_replay(define(), schedule)
        assert isinstance(found, OpenTile), found
        emitted = emit(found.tile, Header("open"), found.sizes)
        assert isinstance(emitted, TritonModule), emitted
        return emitted

    assert build(made(), TARGET, tmp_path).kernels[0].threads == 3 * 128
    monkeypatch.setattr(Memory, "apart", shared)
    with pytest.raises(MiscompiledError, match="moves a group of warps twice"):
        build(made(), TARGET, tmp_path)


@pytest.mark.parametrize("ending", [".tested", ".tested.longest"])
def test_a_single_block_of_rows_starts_at_a_number_of_its_own(ending: str, tmp_path: Path) -> None:
    """Its coordinate is 0, like that of the columns: moved as one, both would move."""
    program = attention(128, "causal", "bfloat16", d=64)
    made = module(program, ending, {"i": 128, "stages": 2, "descriptors": 6})
    assert "q_box.load([0, 0])" not in made.source
    assert build(made, TARGET, tmp_path).kernels[0].threads == 3 * 128


def depths(program: Program, ending: str = "") -> set[int]:
    return set(map(int, np.unique(specialised(program, ending).table()["k0.stages"])))


def test_only_loops_of_one_product_run_far_ahead() -> None:
    assert depths(product(1500, 1280, 512, "bfloat16")) == {2, 4}
    assert depths(attention(1536, "causal", "bfloat16", d=64), ".tested") == {2}
    assert depths(attention(1536, "full", "bfloat16", d=64)) == {2}


def test_programs_that_walk_over_batches_load_for_themselves() -> None:
    x = input_("x", {"b": 4, "m": 1448, "k": 144}, "bfloat16")
    w = input_("w", {"b": 4, "n": 128, "k": 144}, "bfloat16")
    batches = algebra(y=("b m n", sum_("k", cast(x, "float32") * cast(w, "float32"))))
    flat = product(1448, 128, 144, "bfloat16")

    def walking(program: Program) -> int:
        return sum(len(s.table()[s.knobs[0].name]) for s in gpu_sketches(program, TARGET)
                   if SPECIALISED in str(s.actions) and "('persistent', 1)" in str(s.actions))

    assert walking(batches) == 0 < walking(flat)


def test_products_that_run_far_ahead_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_facts, "CHAIN_STAGES", 4)
    program = attention(1536, "causal", "bfloat16", d=64)
    made = module(program, ".tested", {"i": 128, "stages": 3, "descriptors": 6})
    with pytest.raises(MiscompiledError, match="3 steps ahead"):
        build(made, TARGET, tmp_path)


@pytest.mark.parametrize(
    "mask, tokens, size, name",
    [("full", 4096, 128, "onepass128.1"), ("causal", 1500, 256, "onepass64.1.tested")],
)
def test_attention_is_left_with_its_best_launches(
    mask: str, tokens: int, size: int, name: str
) -> None:
    program = attention(tokens, mask, "bfloat16", d=size)
    sketch = next(s for s in gpu_sketches(program, TARGET) if s.name == name)
    assert SPECIALISED in str(sketch.actions)
    assert 128 in np.asarray(sketch.table()["k0.i"])
