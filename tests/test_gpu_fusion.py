"""What stands around a product comes out in its kernel: a table of definitions, run by Triton's
interpreter on odd sizes, and compiled for sm_90 at the sizes of models."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import triton

from autosched.codegen.check import REL_L2_BOUND
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import build
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.define import algebra
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    abs_,
    cast,
    const,
    erf,
    exp,
    input_,
    iota,
    map_,
    max_,
    maximum,
    minimum,
    reaxis,
    rsqrt,
    sigmoid,
    sum_,
    tanh,
    where,
)
from autosched.ir.scalar import round_to_grid
from autosched.ir.schedule import Schedule, Sketch, replay
from autosched.ir.sketch_gpu import repeats
from autosched.ir.sketches import sketches
from autosched.ir.target import parse_target
from autosched.tools.triton_interpreter import Interpreter

SM_90 = parse_target("sm_90")
BF16, F16, F32, E4M3, E5M2 = "bfloat16", "float16", "float32", "float8_e4m3", "float8_e5m2"
SMALL, LARGE = (37, 48, 70), (4096, 4096, 4096)  # m, n, k


def wide(name: str, dtype: str = BF16, kind: str = "arg", **axes: int) -> Node:
    made = input_(name, axes, dtype, kind)
    return made if dtype == F32 else cast(made, F32)


def times(m: int, n: int, k: int, order: str = "mk kn", dtype: str = BF16) -> Node:
    """The product; order: of the axes of both operands in memory."""
    size = {"m": m, "n": n, "k": k}
    left, right = order.split()
    x = wide("x", dtype, **{a: size[a] for a in left})
    return sum_("k", x * wide("w", dtype, "weight", **{a: size[a] for a in right}))


def bias(n: int) -> Node:
    return wide("bias", BF16, "weight", n=n)


def other(m: int, n: int) -> Node:
    return wide("r", m=m, n=n)


def stored(value: Node, dtype: str = BF16, dims: str = "m n") -> Program:
    return algebra(y=(dims, cast(value, dtype)))


def gelu(z: Node) -> Node:
    return 0.5 * z * (1.0 + erf(z * math.sqrt(0.5)))


def fast_gelu(z: Node) -> Node:
    return 0.5 * z * (1.0 + tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))


def silu(z: Node) -> Node:
    return z * sigmoid(z)


def halves(m: int, n: int, k: int, apart: int, step: int) -> Program:
    """silu(gate) * up of one weight: column n's pair is step * n and `apart` behind it."""
    z = sum_("k", wide("x", m=m, k=k) * wide("w", BF16, "weight", k=k, f=2 * n))
    gate, up = (reaxis(z, {"f": iota("n", n) * step + at}) for at in (0, apart))
    return stored(silu(gate) * up)


def gated(m: int, n: int, k: int) -> Program:
    x = wide("x", m=m, k=k)
    gate, up = (sum_("k", x * wide(w, BF16, "weight", k=k, n=n)) for w in ("wg", "wu"))
    return stored(silu(gate) * up)


def held(z: Node, most: float) -> Node:
    return minimum(maximum(z, -most), most)


def by_rows(m: int, n: int, k: int) -> Program:
    """8 bits, each row scaled by its largest."""
    z = times(m, n, k)
    scale = maximum(max_("n", abs_(z)) / 448.0, 1e-12)
    return algebra(y=("m n", cast(z / scale, E4M3)), scale=("m", scale))


def normalised(z: Node, axis: str) -> Node:
    return z * rsqrt(sum_(axis, z * z) / float(int(str(z.extent(axis)))) + 1e-6)


def norm_before(m: int, n: int, k: int, scale_behind: bool) -> Program:
    x, w = wide("x", m=m, k=k), wide("w", BF16, "weight", k=k, n=n)
    if scale_behind:
        return stored(sum_("k", x * w) * rsqrt(sum_("k", x * x) / float(k) + 1e-6))
    return stored(sum_("k", normalised(x, "k") * wide("gamma", BF16, "weight", k=k) * w))


def rotated(x: Node, place: str) -> Node:
    """x[.., place, d] turned by angles of its place: one half of d with the other."""
    d, t = (int(str(x.extent(a))) for a in ("d", place))
    at = iota("d", d)
    turned = reaxis(x, {"d": where(at < d // 2, at + d // 2, at - d // 2)})
    cos, sin = (reaxis(wide(n, t=t, d=d), {"t": iota(place, t)}) for n in ("cos", "sin"))
    return x * cos + turned * where(at < d // 2, const(-1.0, F32), const(1.0, F32)) * sin


def rotary_projection(m: int, n: int, k: int) -> Program:
    d = 128 if n >= 128 else 16
    w = wide("w", BF16, "weight", k=k, h=n // d, d=d)
    return stored(rotated(sum_("k", wide("x", m=m, k=k) * w), "m"), BF16, "h m d")


def rotary_attention(b: int, h: int, t: int, d: int) -> Program:
    q, k = rotated(wide("q", b=b, h=h, i=t, d=d), "i"), rotated(wide("k", b=b, h=h, j=t, d=d), "j")
    s = sum_("d", q * k) * (1 / math.sqrt(d))
    p = exp(s - max_("j", s))
    o = sum_("j", p * wide("v", b=b, h=h, j=t, e=d)) / sum_("j", p)
    return stored(o, BF16, "b h i e")


def batched(m: int, n: int, k: int, shared: bool) -> Program:
    x = wide("x", b=3, m=m, k=k)
    return stored(sum_("k", x * wide("w", k=k, n=n, **({} if shared else {"b": 3}))), BF16, "b m n")


def scaled_bits(m: int, n: int, k: int, a: str, b: str, rows: bool) -> Program:
    """8 bits times 8 bits, scaled by tensor, or by row and column."""
    z = sum_("k", wide("x", a, m=m, k=k) * wide("w", b, "weight", n=n, k=k))
    return stored(z * wide("sx", F32, **({"m": m} if rows else {}))
                  * wide("sw", F32, **({"n": n} if rows else {})))  # fmt: skip


def scaled_integers(m: int, n: int, k: int) -> Program:
    x, w = input_("x", {"m": m, "k": k}, "int8"), input_("w", {"n": n, "k": k}, "int8", "weight")
    z = sum_("k", cast(x, "int32") * cast(w, "int32"))
    return stored(cast(z, F32) * wide("sx", F32, m=m) * wide("sw", F32, "weight", n=n))


@dataclass(frozen=True)
class Fused:
    """kernels: where a row fits a box; long: where it does not."""

    define: Callable[[int, int, int], Program]
    kernels: int = 1
    long: int = 1


def _product(of: Callable[[Node, int, int], Node], dtype: str = BF16) -> Fused:
    return Fused(lambda m, n, k: stored(of(times(m, n, k), m, n), dtype))


def _order(order: str, dims: str) -> Fused:
    return Fused(lambda m, n, k: stored(times(m, n, k, order), BF16, dims))


TABLE: dict[str, Fused] = {
    "bias": _product(lambda z, m, n: z + bias(n)),
    "gelu": _product(lambda z, m, n: gelu(z + bias(n))),
    "fast gelu": _product(lambda z, m, n: fast_gelu(z + bias(n))),
    "silu": _product(lambda z, m, n: silu(z + bias(n))),
    "relu squared": _product(lambda z, m, n: maximum(z, 0.0) * maximum(z, 0.0)),
    "residual": _product(lambda z, m, n: z + bias(n) + other(m, n)),
    "scaled residual": _product(lambda z, m, n: z * bias(n) + other(m, n)),
    "two scalars": _product(lambda z, m, n: z * wide("a", F32) + other(m, n) * wide("b", F32)),
    "float32 out": _product(lambda z, m, n: z, F32),
    "float16 out": _product(lambda z, m, n: z, F16),
    "fp8 out": _product(lambda z, m, n: held(silu(z) * wide("s", F32), 448.0), E4M3),
    "int8 out": _product(lambda z, m, n: held(map_("round", z * wide("s", F32)), 127.0), "int8"),
    "pair": Fused(gated),
    "pair of halves": Fused(lambda m, n, k: halves(m, n, k, n, 1)),
    "pair of neighbours": Fused(lambda m, n, k: halves(m, n, k, 1, 2)),
    "rows in 8 bits": Fused(by_rows, 1, 2),
    "norm behind": Fused(
        lambda m, n, k: stored(normalised(times(m, n, k), "n") * bias(n)), 1, 2
    ),
    "norm before": Fused(lambda m, n, k: norm_before(m, n, k, False)),
    "norm as row scale": Fused(lambda m, n, k: norm_before(m, n, k, True)),
    "rotary": Fused(rotary_projection),
    "batch": Fused(lambda m, n, k: batched(m, n, k, False)),
    "batch, one weight": Fused(lambda m, n, k: batched(m, n, k, True)),
    **{f"{o} to {d}": _order(o, d) for o in ("mk kn", "mk nk", "km kn", "km nk")
       for d in ("m n", "n m")},
    "e4m3 by tensor": Fused(lambda m, n, k: scaled_bits(m, n, k, E4M3, E4M3, False)),
    "e4m3 by row": Fused(lambda m, n, k: scaled_bits(m, n, k, E4M3, E4M3, True)),
    "e4m3 x e5m2": Fused(lambda m, n, k: scaled_bits(m, n, k, E4M3, E5M2, True)),
    "int8 by row": Fused(scaled_integers),
}  # fmt: skip


def plans(sketch: Sketch) -> int:
    (action,) = [a for a in sketch.actions if a.rule == "tile"]
    return len(action["plans"])


def draw(program: Program, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Numbers that the inputs' types hold."""
    out = {}
    for node in program.inputs:
        shape = [e for _, e in node.attr[1]]
        if node.dtype == "int8":
            out[node.attr[0]] = rng.integers(-9, 10, shape).astype(np.int8)
            continue
        values = rng.standard_normal(shape) / (4 if node.attr[3] == "weight" else 1)
        rounded = values if node.dtype == F32 else round_to_grid(values, node.dtype)
        out[node.attr[0]] = np.asarray(rounded, np.float32)
    return out


def runs(
    interpreter: Interpreter, program: Program, found: Sequence[Sketch], count: int, seed: int
) -> None:
    """Random schedules mean the definition."""
    rng = np.random.default_rng(seed)
    arrays = draw(program, rng)
    want = evaluate(program, arrays)
    for _ in range(count):
        sketch = found[int(rng.integers(len(found)))]
        table = sketch.table(limit=2000)
        row = int(rng.integers(len(next(iter(table.values())))))
        tile = replay(program, sketch.schedule({k: int(c[row]) for k, c in table.items() if k}))
        assert isinstance(tile, Program), tile
        module = emit(tile, Header("fused"))
        assert isinstance(module, TritonModule), module
        got = interpreter(module, arrays)
        for out in program.outputs:
            off = np.linalg.norm(np.asarray(got[out.name], float) - want[out.name])
            most = REL_L2_BOUND.get(out.dtype, 1e-2)  # a whole number may be rounded up or down
            assert off <= most * np.linalg.norm(want[out.name]), (out.name, module.source)


@pytest.mark.parametrize("name", list(TABLE))
def test_one_kernel_means_the_definition(interpreter: Interpreter, name: str) -> None:
    program = TABLE[name].define(*SMALL)
    found = sketches(program, SM_90)
    least = min(map(plans, found))
    assert least == TABLE[name].kernels
    runs(interpreter, program, [s for s in found if plans(s) == least], 2, 0)


@pytest.mark.parametrize("name", list(TABLE))
def test_kernels_at_the_sizes_of_models(name: str) -> None:
    """Every sketch that does no product twice; one that does is there for the model to reject."""
    found = sketches(TABLE[name].define(*LARGE), SM_90)
    apart = [s for s in found if s.name.startswith(("apart", "fewer"))]
    assert min(map(plans, apart or found)) == TABLE[name].long


def test_rotary_on_load_of_attention(interpreter: Interpreter) -> None:
    program = rotary_attention(1, 2, 37, 16)
    whole = [s for s in sketches(program, SM_90) if plans(s) == 1]
    runs(interpreter, program, whole, 3, 1)


# ---- machine code -------------------------------------------------------------------------------

WANTED = {"k0.m": 128, "k0.n": 128, "k0.d": 128, "k0.sum.k": 64, "k0.warps": 8, "k0.stages": 3}


def compiled(program: Program, sketch: Sketch, folder: Path, **wanted: int) -> tuple[str, int, int]:
    """(machine code, bytes that are spilled, bytes of shared memory) of the first kernel."""
    table = {k: c for k, c in sketch.table(limit=500_000).items() if k}
    keep = np.ones(len(next(iter(table.values()))), bool)
    for knob, value in wanted.items():
        if knob in table and (keep & (table[knob] == value)).any():
            keep &= table[knob] == value
    row = int(np.flatnonzero(keep)[0])
    schedule: Schedule = sketch.schedule({k: int(c[row]) for k, c in table.items()})
    tile = replay(program, schedule)
    assert isinstance(tile, Program)
    module = emit(tile, Header("fused"))
    assert isinstance(module, TritonModule), module
    made = build(module, SM_90, folder)
    kernel = made.kernels[0]
    tool = triton.knobs.nvidia.cuobjdump.path
    told = subprocess.run([tool, "-sass", str(made.folder / kernel.file)], text=True,
                          capture_output=True, check=True)  # fmt: skip
    return told.stdout, kernel.spill_bytes, kernel.shared_bytes


@pytest.mark.parametrize(
    "name", ["fast gelu", "residual", "pair of halves", "fp8 out", "norm as row scale", "rotary",
             "e4m3 x e5m2"])  # fmt: skip
@pytest.mark.parametrize("descriptors", [0, 1])
def test_loops_stay_pipelined(name: str, descriptors: int, tmp_path: Path) -> None:
    program = TABLE[name].define(*LARGE)
    sketch = next(s for s in sketches(program, SM_90) if plans(s) == 1)
    wanted = {**WANTED, "k0.descriptors": descriptors, "k0.promote": 0}
    code, spilled, shared = compiled(program, sketch, tmp_path, **wanted)
    assert not spilled
    assert "GMMA" in code
    assert ("UTMALDG" if descriptors else "LDGSTS") in code
    assert shared >= 2 * (128 + 128) * 64 * (1 if name.startswith("e4m3") else 2)


def test_why_a_row_has_a_kernel_of_its_own() -> None:
    assert not repeats(TABLE["norm behind"].define(*SMALL))
    why = repeats(TABLE["norm behind"].define(*LARGE))
    assert set(why) == {"n"} and "4096" in why["n"]
