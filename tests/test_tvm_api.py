"""TIR layer: what its nodes compute, and what the compiled inner loops look like."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from asm_loops import counts, innermost_loops
from scipy import special

from autosched.codegen import tvm_api as t
from autosched.codegen import vecmath
from autosched.codegen.tvm_math import TirOps
from autosched.codegen.tvm_transpose import transpose
from autosched.ir.target import X86_LEVELS, host_target

HOST = host_target()
L = HOST.lanes


class Env(ctypes.Structure):
    _fields_ = (("sync", ctypes.c_void_p), ("tasks", ctypes.c_int32))


TASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Env), ctypes.c_void_p)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, TASK, ctypes.c_void_p, ctypes.c_int)


@LAUNCH
def launch_three(task, data, _count):
    """What the TVM runtime's launch does, with three tasks one after another."""
    return max(task(i, ctypes.byref(Env(None, 3)), data) for i in range(3))


@contextmanager
def loaded(tmp_path: Path, functions: list[object]) -> Iterator[ctypes.CDLL]:
    path = tmp_path / "k.so"
    path.write_bytes(t.build(functions, t.target(HOST.arch, HOST.features)))
    library = ctypes.CDLL(str(path))
    if hasattr(library, t.LAUNCH_SLOT):
        slot = ctypes.c_void_p.in_dll(library, t.LAUNCH_SLOT)
        slot.value = ctypes.cast(launch_three, ctypes.c_void_p).value
    yield library


def run(function: Callable[..., int], *args: object) -> None:
    given = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in args]
    assert function(*given) == 0


def vector_map(
    name: str, formula: Callable[[t.Block, t.Expr], t.Expr], dtype: str = "float32", out: str = ""
) -> object:
    """int name(a, y, n): y[i] = formula(a[i]) over n whole vectors."""
    a, y = t.parameter("a", dtype), t.parameter("y", out or dtype)
    n, i = t.var("n"), t.var("i")
    body = t.Block()
    x = body.let(t.load(a, t.mul(i, L), L))
    body.add(t.store(y, t.mul(i, L), formula(body, x)))
    return t.function(name, [a, y, n], t.loop(i, n, body.stmt()))


def unaligned(values: np.ndarray) -> np.ndarray:
    """A copy that starts one element past a 64-byte boundary."""
    size = values.itemsize
    raw = np.zeros(values.nbytes + 64 + size, np.uint8)
    start = (-raw.ctypes.data) % 64 + size
    out = raw[start : start + values.nbytes].view(values.dtype)
    out[:] = values
    return out


EDGES = np.array([0.0, -0.0, 1.5, -2.5, np.inf, -np.inf, np.nan, 1e-40] * 4, np.float32)


def test_float_semantics_survive(tmp_path: Path) -> None:
    forms = {
        "times_zero": (lambda b, x: t.mul(x, 0.0), lambda x: x * np.float32(0)),
        "is_nan": (
            lambda b, x: t.select(t.binary("ne", x, x), t.const(1.0, t.dtype_of(x)), 2.0),
            lambda x: np.where(np.isnan(x), 1, 2),
        ),
        "plus_zero": (lambda b, x: t.add(x, 0.0), lambda x: x + np.float32(0)),
        "rint": (lambda b, x: t.unary("rint", x), np.rint),
        "max": (
            lambda b, x: t.binary("max", t.const(0.0, t.dtype_of(x)), x),
            lambda x: np.where(x < 0, 0, x),
        ),
    }
    x, y = unaligned(EDGES), unaligned(np.zeros_like(EDGES))
    with loaded(tmp_path, [vector_map(n, f) for n, (f, _) in forms.items()]) as library:
        for name, (_, exact) in forms.items():
            run(library[name], x, y, len(x) // L)
            with np.errstate(all="ignore"):
                np.testing.assert_array_equal(y, exact(x), err_msg=name)


def test_casts(tmp_path: Path) -> None:
    import ml_dtypes

    rng = np.random.default_rng(0)
    x = (rng.standard_normal(64) * 50).astype(np.float32)
    kinds = {
        "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int32": np.int32, "int8": np.int8,
        "float64": np.float64, "int64": np.int64,
    }  # fmt: skip
    functions = [
        vector_map(f"to_{k}", lambda b, v, k=k: t.cast(v, k), "float32", k) for k in kinds
    ] + [vector_map(f"of_{k}", lambda b, v: t.cast(v, "float32"), k, "float32") for k in kinds]
    with loaded(tmp_path, functions) as library:
        for k, dtype in kinds.items():
            y, back = np.zeros(64, dtype), np.zeros(64, np.float32)
            run(library[f"to_{k}"], x, y, 64 // L)
            run(library[f"of_{k}"], y, back, 64 // L)
            np.testing.assert_array_equal(y.astype(np.float64), x.astype(dtype).astype(np.float64))
            np.testing.assert_array_equal(back, x.astype(dtype).astype(np.float32))


def test_library_functions(tmp_path: Path) -> None:
    x = np.linspace(-2, 2, 64)
    made = [
        vector_map("wide", lambda b, v: t.libm("erf", v), "float64"),
        vector_map("single", lambda b, v: t.libm("atan", v)),
    ]
    with loaded(tmp_path, made) as library:
        out, small = np.zeros(64), np.zeros(64, np.float32)
        run(library.wide, x, out, 64 // L)
        run(library.single, x.astype(np.float32), small, 64 // L)
    np.testing.assert_allclose(out, special.erf(x), rtol=1e-15)
    np.testing.assert_allclose(small, np.arctan(x), rtol=3e-7)


def test_masks_touch_nothing_else(tmp_path: Path) -> None:
    a, y, n = t.parameter("a", "float32"), t.parameter("y", "float32"), t.var("n")
    mask = t.tail_mask(n, L)
    body = t.store(y, 1, t.add(t.load(a, 0, L, mask), 1.0), mask)
    with loaded(tmp_path, [t.function("tail", [a, y, n], body)]) as library:
        for count in range(L + 1):
            # The array ends where a page does: a read behind it would fault.
            x = np.arange(L, dtype=np.float32)[:count].copy()
            out = np.full(L + 2, -1, np.float32)
            run(library.tail, x, out, count)
            want = np.full(L + 2, -1, np.float32)
            want[1 : 1 + count] = x + 1
            np.testing.assert_array_equal(out, want)


def test_lane_reductions_and_shuffles(tmp_path: Path) -> None:
    a, y = t.parameter("a", "float32"), t.parameter("y", "float32")
    body = t.Block()
    x = body.let(t.load(a, 0, L))
    body.add(t.store(y, 0, t.reduce_lanes(body, t.add, x)))
    body.add(t.store(y, 1, t.reduce_lanes(body, lambda p, q: t.binary("max", p, q), x)))
    body.add(t.store(y, 2, t.shuffle([x, t.load(a, L, L)], range(2 * L - 1, L - 1, -1))))
    x = np.arange(2 * L, dtype=np.float32) - 3
    out = np.zeros(L + 2, np.float32)
    with loaded(tmp_path, [t.function("reduce", [a, y], body.stmt())]) as library:
        run(library.reduce, x, out)
    np.testing.assert_array_equal(out, np.r_[x[:L].sum(), x[:L].max(), x[: L - 1 : -1]])


@pytest.mark.parametrize("n", [2, 4, 8, 16])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_transpose(tmp_path: Path, n: int, dtype: str) -> None:
    a, y = t.parameter("a", dtype), t.parameter("y", dtype)
    body = t.Block()
    columns = transpose(body, [t.load(a, i * n, n) for i in range(n)])
    body.add(*(t.store(y, i * n, column) for i, column in enumerate(columns)))
    x = np.arange(n * n).reshape(n, n).astype(dtype)
    out = np.zeros_like(x)
    with loaded(tmp_path, [t.function("turn", [a, y], body.stmt())]) as library:
        run(library.turn, x, out)
    np.testing.assert_array_equal(out, x.T)


def test_transpose_wants_a_square() -> None:
    with pytest.raises(ValueError, match="n vectors of n lanes"):
        transpose(t.Block(), [t.const(0.0, "float32x8")] * 4)


def test_parallel_tasks_have_their_own_scratch(tmp_path: Path) -> None:
    a, y, n = t.parameter("a", "float32"), t.parameter("y", "float32"), t.var("n")
    p, i, j = t.var("p"), t.var("i"), t.var("j")
    rows = 1024
    body = t.Block()
    scratch = body.allocate(t.local("scratch", "float32", rows * L))
    at = t.mul(p, rows * L)
    body.add(t.loop(i, rows, t.store(scratch, t.mul(i, L), t.load(a, t.add(at, t.mul(i, L)), L))))
    mirrored = t.load(scratch, t.mul(t.sub(rows - 1, j), L), L)
    body.add(t.loop(j, rows, t.store(y, t.add(at, t.mul(j, L)), mirrored)))
    made = t.function("mirror", [a, y, n], t.loop(p, n, body.stmt(), "parallel"))
    x = np.random.default_rng(0).standard_normal((5, rows, L)).astype(np.float32)
    out = np.zeros_like(x)
    with loaded(tmp_path, [made]) as library:
        run(library.mirror, x, out, 5)
    np.testing.assert_array_equal(out, x[:, ::-1])


@pytest.mark.parametrize("name", sorted(vecmath.FUNCTIONS))
def test_formulas_match_their_numpy_form(tmp_path: Path, name: str) -> None:
    from test_vecmath import EDGES as edges
    from test_vecmath import call

    x = np.concatenate([np.resize(edges, 64), np.geomspace(1e-6, 50, 192, dtype=np.float32)])
    y = np.full_like(x, 1.75)
    a, b, c = (t.parameter(n, "float32") for n in "abc")
    i, body = t.var("i"), t.Block()
    at = body.let(t.mul(i, L))
    ops = TirOps(body, L, scalef="avx512f" in HOST.features)
    sources = (a, b) if name == "pow" else (a,)
    body.add(t.store(c, at, ops.call(name, *(body.let(t.load(s, at, L)) for s in sources))))
    made = t.function("apply", [a, b, c], t.loop(i, 256 // L, body.stmt()))
    out = np.zeros_like(x)
    with loaded(tmp_path, [made]) as library:
        run(library.apply, x, y, out)
    want = call(name, x, y) if name == "pow" else call(name, x)
    # LLVM may fuse what NumPy rounds twice.
    np.testing.assert_allclose(out, want, rtol=3e-7, atol=1e-44)


def gemm(rows: int, vectors: int, depth: int, lanes: int) -> object:
    """int tile(a, b, c): c = a @ b for one register tile, b packed."""
    a, b, c = (t.parameter(n, "float32") for n in "abc")
    k, body, step = t.var("k"), t.Block(), t.Block()
    acc = [
        [body.allocate(t.local(f"acc{r}_{v}", "float32", lanes)) for v in range(vectors)]
        for r in range(rows)
    ]
    zero = t.const(0.0, t.with_lanes("float32", lanes))
    body.add(*(t.store(x, 0, zero) for row in acc for x in row))
    width = vectors * lanes
    bs = [step.let(t.load(b, t.add(t.mul(k, width), v * lanes), lanes)) for v in range(vectors)]
    for r in range(rows):
        x = step.let(t.splat(t.load(a, t.add(k, r * depth)), lanes))
        for v in range(vectors):
            step.add(t.store(acc[r][v], 0, t.fma(x, bs[v], t.load(acc[r][v], 0, lanes))))
    body.add(t.loop(k, depth, step.stmt()))
    for r in range(rows):
        for v in range(vectors):
            body.add(t.store(c, r * width + v * lanes, t.load(acc[r][v], 0, lanes)))
    return t.function("tile", [a, b, c], body.stmt())


@pytest.mark.parametrize(
    "level, lanes, rows, vectors", [("x86-64-v4", 16, 8, 3), ("x86-64-v3", 8, 4, 3)]
)
def test_accumulators_stay_in_registers(level: str, lanes: int, rows: int, vectors: int) -> None:
    where = t.target("x86_64", X86_LEVELS[level])
    asm = t.codegen([gemm(rows, vectors, 384, lanes)], where).inspect_source("asm")
    loops = [counts(loop) for loop in innermost_loops(asm)]
    found = [c for c in loops if any(name.startswith("vfmadd") for name in c)]
    assert len(found) == 1, "one inner loop"
    fused = sum(n for name, n in found[0].items() if name.startswith("vfmadd"))
    copies = fused // (rows * vectors)
    assert fused == copies * rows * vectors and copies >= 1
    assert "store" not in found[0], "an accumulator is written to memory in the loop"
    assert found[0].get("vbroadcastss", 0) <= copies * rows
    assert found[0].get("vmovups", 0) == copies * vectors, "loads of the panel alone"


def test_tile_is_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 96)), rng.standard_normal((96, 2 * L))
    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    out = unaligned(np.zeros(4 * 2 * L, np.float32))
    with loaded(tmp_path, [gemm(4, 2, 96, L)]) as library:
        run(library.tile, unaligned(a32.ravel()), unaligned(b32.ravel()), out)
    np.testing.assert_allclose(out.reshape(4, -1), a32 @ b32, rtol=1e-4, atol=1e-4)


def test_long_formulas_build_in_linear_time() -> None:
    """TVM substitutes bound variables; `Block.let` keeps it from doing so."""
    import time

    def chain(b: t.Block, x: t.Expr) -> t.Expr:
        for _ in range(60):
            x = b.let(t.fma(x, x, x))
        return x

    start = time.perf_counter()
    t.codegen([vector_map("chain", chain)], t.target(HOST.arch, HOST.features))
    assert time.perf_counter() - start < 5


def test_target_comes_from_flags() -> None:
    v3 = t.target("x86_64", X86_LEVELS["x86-64-v3"])
    assert str(v3.attrs["mcpu"]) == "x86-64-v3" and "mattr" not in v3.attrs
    more = t.target("x86_64", (*X86_LEVELS["x86-64-v4"], "avx512bf16"))
    assert str(more.attrs["mcpu"]) == "x86-64-v4" and list(more.attrs["mattr"]) == ["+avx512bf16"]


def test_unknown_intrinsic() -> None:
    with pytest.raises(ValueError, match="no intrinsic"):
        t.llvm("llvm.no.such", "float32", t.const(1.0, "float32"))
