"""What LLVM makes of a register tile: accumulators stay in registers through the inner loop."""

from __future__ import annotations

import re

import pytest

from autosched.codegen import tvm_api
from autosched.codegen.tvm import Emitted, emit
from autosched.ir.node import Output, Program
from autosched.ir.ops import erf, input_, sum_
from autosched.ir.schedule import replay
from autosched.ir.sketches import sketches
from autosched.ir.target import Target, parse_target

M, N, K = 64, 96, 128


def gemm() -> Program:
    x = input_("x", {"m": M, "k": K})
    w = input_("w", {"k": K, "n": N}, kind="weight")
    b = input_("b", {"n": N}, kind="weight")
    y = sum_("k", x * w) + b
    out = Output("y", ("m", "n"), "float32", (M, N))
    return Program("algebra", (x, w, b), (out,), (0.5 * y * (1.0 + erf(y * 0.70710678)),))


def loops_with_fma(assembly: str) -> list[list[str]]:
    """The innermost loops (label to the jump back to it) that multiply and add."""
    lines = [line.strip() for line in assembly.splitlines()]
    found = []
    for at, line in enumerate(lines):
        jump = re.match(r"j\w+\s+(\.LBB\w+)$", line)
        if not jump or f"{jump[1]}:" not in lines[:at]:
            continue
        body = lines[lines.index(f"{jump[1]}:") + 1 : at]
        inner = not any(b.startswith(".LBB") for b in body)
        if inner and any("vfmadd" in b for b in body):
            found.append(body)
    return found


@pytest.mark.parametrize(
    ("level", "register", "rows", "vectors"),
    [("x86-64-v4", "zmm", 8, 3), ("x86-64-v4", "zmm", 14, 1), ("x86-64-v3", "ymm", 4, 3)],
)
def test_accumulators_stay_in_registers(
    level: str, register: str, rows: int, vectors: int
) -> None:
    target: Target = parse_target(f"cpu:{level}")
    sketch = next(s for s in sketches(gemm(), target) if s.name.startswith("columns"))
    tile = replay(gemm(), sketch.schedule({"y.rows": rows, "y.cols": vectors * target.lanes}))
    assert isinstance(tile, Program)
    emitted = emit(tile, "k", target.features)
    assert isinstance(emitted, Emitted)
    where = tvm_api.target("x86_64", target.features)
    loops = loops_with_fma(tvm_api.codegen([emitted.function], where).inspect_source("asm"))
    hot = [b for b in loops if sum("vfmadd" in line for line in b) >= rows * vectors]
    assert len(hot) == 1, "one loop does all multiply-adds of the tile"
    (body,) = hot
    fma = [line for line in body if "vfmadd" in line]
    assert len(fma) % (rows * vectors) == 0
    assert all(f"%{register}" in line for line in fma)
    assert not any("rsp" in line for line in body), "nothing is spilled to the stack"
    assert not any(re.match(r"v?mov\w+\s+%[xyz]mm\d+, .*\(", line) for line in body), "no stores"
