"""Faults of Triton's compiler: seen where they are, and sources that keep clear of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_stagger import attention

from autosched.codegen import triton_loops, triton_reduce
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import MiscompiledError, build
from autosched.codegen.triton_faults import fault_of
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.node import Program
from autosched.ir.schedule import replay
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.target import parse_target

TARGET = parse_target("sm_90")
ONCE = """
    %sum:2 = scf.for %j = %c0 to %n step %c1 iter_args(%a = %b) -> (tensor<64x64xf32, #mma>) {
      %d = ttng.warp_group_dot_wait %p {pendings = 0 : i32} : tensor<64x128xf32, #mma>
    } loc(#loc1)
    %x = ttng.warp_group_dot_wait %sum#1 {pendings = 0 : i32} : tensor<64x64xf32, #mma>
    %d = ttng.warp_group_dot_wait %p {pendings = 0 : i32} : tensor<64x128xf32, #mma>
"""
TWICE = f"{ONCE}    %y = ttng.warp_group_dot_wait %sum#1 {{pendings = 0 : i32}} : tensor<64x64xf32>"


def test_a_second_wait_in_a_region_is_a_fault() -> None:
    assert fault_of(ONCE) is None
    assert "waits twice for the product %sum#1" in str(fault_of(TWICE))


def module(name: str = "onepass128.0", rows: int = 64) -> TritonModule:
    """Causal attention whose last block is one step behind a loop; dots of 128 and of 16 columns
    want their rows in two layouts."""
    program = attention(1024, "causal", "bfloat16")
    sketch = next(s for s in gpu_sketches(program, TARGET) if s.name == name)
    table = sketch.table()
    row = {k.name: int(table[k.name][0]) for k in sketch.knobs} | {"k0.i": rows, "k0.warps": 4}
    tile = replay(program, sketch.schedule(row))
    assert isinstance(tile, Program), tile
    made = emit(tile, Header("causal"))
    assert isinstance(made, TritonModule), made
    return made


def test_products_that_go_on_do_so_in_a_loop(tmp_path: Path) -> None:
    made = module()
    assert made.source.count("in tl.range(") == 2
    assert build(made, TARGET, tmp_path).kernels[0].spill_bytes == 0


def test_a_miscompiled_kernel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_loops, "_goes_on", lambda fold: False)
    # Rows that are reduced in parts have a third layout, and hide the fault here.
    monkeypatch.setattr(triton_reduce, "LONG_ROW", 1024)
    with pytest.raises(MiscompiledError, match="waits twice"):
        build(module(), TARGET, tmp_path)


@pytest.mark.parametrize("name", ["onepass64.0", "onepass64.0.stagger"])
def test_products_do_not_wait_for_each_other(name: str, tmp_path: Path) -> None:
    """Whole blocks and cut ones in two loops; the accumulators have one origin in both."""
    made = module(name, 128)
    assert made.source.count("in tl.range(") == 2
    assert not build(made, TARGET, tmp_path / "apart").kernels[0].serialised


def test_accumulators_of_two_origins_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_loops, "_goes_on", lambda fold: False)
    assert build(module("onepass64.0", 128), TARGET, tmp_path).kernels[0].serialised
