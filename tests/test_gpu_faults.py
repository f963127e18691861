"""Inputs that go wrong on GPUs: NaN and infinities, rows masked whole, dimensions of no elements.

Every kernel gives what the definition gives in float64, by Triton's interpreter; with
AUTOSCHED_TEST_DEVICE=cuda the same kernels run there (`pytest -n 8 tests/test_gpu_faults.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_gpu_fusion import SMALL, TABLE, draw, plans
from test_stagger import MASKS

from autosched.codegen.check import REL_L2_BOUND
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.define import algebra
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.ops import cast, exp, input_, iota, isnan, max_, sum_, where
from autosched.ir.scalar import round_to_grid
from autosched.ir.schedule import Sketch, replay
from autosched.ir.sketches import sketches
from autosched.ir.target import parse_target
from autosched.tools.triton_interpreter import DEVICE, INTERPRET, Interpreter
from autosched.tools.tune import tune

Arrays = dict[str, np.ndarray]
SM_90 = parse_target("sm_90")
NAN, INF = float("nan"), float("inf")


def kernels(program: Program, sketch: Sketch, seed: int) -> TritonModule:
    """Of a schedule of the sketch, drawn at random."""
    table = sketch.table(limit=2000)
    row = int(np.random.default_rng(seed).integers(len(next(iter(table.values())))))
    tile = replay(program, sketch.schedule({k: int(c[row]) for k, c in table.items() if k}))
    assert isinstance(tile, Program), tile
    module = emit(tile, Header("extremes"))
    assert isinstance(module, TritonModule), module
    return module


def same(got: np.ndarray, want: np.ndarray, dtype: str, what: str) -> None:
    """NaN and each infinity where they are wanted, the rest within the bound of the type."""
    bound = REL_L2_BOUND[dtype]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), what)
    for inf in (INF, -INF):
        np.testing.assert_array_equal(got == inf, want == inf, what)
    rest = np.isfinite(want)
    assert np.linalg.norm(got[rest] - want[rest]) <= bound * np.linalg.norm(want[rest]), what


# ---- NaN and infinities ------------------------------------------------------------------------

EXTREMES = (NAN, INF, -INF)
FLOAT_OUT = [name for name in TABLE if name != "int8 out" and not name.startswith("int8")]


@pytest.mark.parametrize("name", FLOAT_OUT)
def test_extremes_go_through_products_and_what_stands_around_them(
    interpreter: Interpreter, name: str
) -> None:
    """One each in the first input, far apart: rows, columns or all, as the definition spreads
    them."""
    program = TABLE[name].define(*SMALL)
    arrays = draw(program, np.random.default_rng(3))
    first = program.inputs[0]
    flat = arrays[first.attr[0]].reshape(-1)
    for n, value in enumerate(EXTREMES):  # 8 bits hold not all of them
        flat[(2 * n + 1) * flat.size // 6] = round_to_grid(np.array(value), first.dtype)
    with np.errstate(all="ignore"):
        want = evaluate(program, arrays)
    assert any(np.isnan(w).any() for w in want.values())
    found = sketches(program, SM_90)
    least = min(map(plans, found))
    for seed, sketch in enumerate([s for s in found if plans(s) == least][:2]):
        module = kernels(program, sketch, seed)
        got = interpreter(module, arrays)
        for out in program.outputs:
            same(got[out.name], want[out.name], out.dtype, f"{out.name}\n{module.source}")


T, D = 40, 16
SEEN = 21  # the key with an extreme, which about half of the rows of a causal mask see


def attention(mask: str, dtype: str, batches: int, guarded: bool = False) -> Program:
    """guarded: rows that no key lets through are 0, as exporters write it."""
    q, k, v = (cast(input_(n, {"b": batches, a: T, d: D}, dtype), "float32")
               for n, a, d in (("q", "i", "d"), ("k", "j", "d"), ("v", "j", "e")))  # fmt: skip
    s = sum_("d", q * k) * 0.25
    rule = MASKS[mask]
    if rule is not None:
        s = where(rule(iota("i", T), iota("j", T)), s, -INF)
    e = exp(s - max_("j", s))
    if guarded:
        p = e / sum_("j", e)
        o = sum_("j", where(isnan(p), 0.0, p) * v)
    else:
        o = sum_("j", e * v) / sum_("j", e)
    return algebra(o=("b i e", cast(o, dtype)))


PLACES = [(name, value) for name in "qkv" for value in EXTREMES]


def seen(mask: str, key: int) -> np.ndarray:
    """Which rows the mask lets see a key."""
    i = np.arange(T)
    return {"full": i >= 0, "causal": i >= key, "window": (i >= key) & (i - key <= 20)}[mask]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("mask", ["full", "causal", "window"])
def test_extremes_in_attention(interpreter: Interpreter, mask: str, dtype: str) -> None:
    """One in each batch: of a query, a key or a value.

    A masked score is replaced whatever it is, so that extremes of masked keys reach no row. A
    masked value is multiplied by 0, and so are whole blocks of them or none: with an extreme
    there the row is NaN by the definition, and what it is without the value where a schedule
    skips the block. Nothing else is right.
    """
    program = attention(mask, dtype, len(PLACES))
    rng = np.random.default_rng(1)
    plain = {n: rng.standard_normal((len(PLACES), T, D)).astype(dtype) for n in "qkv"}
    arrays = {n: a.astype(np.float32) for n, a in plain.items()}
    for b, (name, value) in enumerate(PLACES):
        arrays[name][b, SEEN, 5] = value
    with np.errstate(all="ignore"):
        want = evaluate(program, arrays)["o"]
    without = {**arrays, "v": np.where(np.isfinite(arrays["v"]), arrays["v"], 0.0)}
    with np.errstate(all="ignore"):
        skipped = evaluate(program, without)["o"]
    hidden = np.zeros(want.shape, bool)  # where an extreme value is masked
    for b, (name, _) in enumerate(PLACES):
        if name == "v":
            hidden[b, ~seen(mask, SEEN), 5] = True
    assert np.isnan(want[hidden]).all() and np.isfinite(skipped[hidden]).all()
    for seed, sketch in enumerate(sketches(program, SM_90)):
        module = kernels(program, sketch, seed)
        got = interpreter(module, arrays)["o"]
        chosen = np.where(hidden & np.isfinite(got), skipped, want)
        same(got, chosen, dtype, f"{sketch.name}\n{module.source}")


# ---- rows masked whole -------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_masked_whole(interpreter: Interpreter, dtype: str, guarded: bool) -> None:
    """0 / 0 where the definition says so, 0 where it guards the row; no other row is touched."""
    program = attention("ahead", dtype, 1, guarded)
    rng = np.random.default_rng(2)
    arrays = {n: rng.standard_normal((1, T, D)).astype(dtype).astype(np.float32) for n in "qkv"}
    with np.errstate(all="ignore"):
        want = evaluate(program, arrays)["o"]
    empty = ~np.isfinite(want).all(axis=(0, 2)) if not guarded else (want == 0).all((0, 2))
    assert 0 < empty.sum() < T
    for seed, sketch in enumerate(sketches(program, SM_90)):
        module = kernels(program, sketch, seed)
        got = interpreter(module, arrays)["o"]
        same(got, want, dtype, f"{sketch.name}\n{module.source}")


# ---- dimensions of no elements -----------------------------------------------------------------


class Nothing(torch.nn.Module):
    """Products without rows, columns, terms and batches; attention without keys and queries."""

    def forward(
        self, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any, q: Any, k: Any, v: Any
    ) -> tuple[Any, ...]:
        attend, gelu = torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.gelu
        products = gelu(a @ b), gelu(c @ d), gelu(e @ f) + 1.0, torch.relu(g @ h)
        return (*products, attend(q, k, v), attend(k, q, q))


RUN = """
import sys, torch
import none_gpu
args = torch.load("args.pt")
torch.save([y.cpu() for y in none_gpu.load()(*(x.to(sys.argv[1]) for x in args))], "outs.pt")
"""


def test_dimensions_of_no_elements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuned, packaged and called: every shape and value as torch has it."""
    monkeypatch.setattr("autosched.tools.learner.shipped_rows", lambda *_: None)
    shapes = [(0, 16), (16, 8), (4, 16), (16, 0), (4, 0), (0, 8), (0, 4, 16), (0, 16, 8),
              (1, 2, 8, 16), (1, 2, 0, 16), (1, 2, 0, 16)]  # fmt: skip
    args = tuple(torch.randn(s) for s in shapes)
    result = tune(Nothing(), args, tmp_path / "none_gpu", target="sm_90",
                  store=tmp_path / "records.sqlite", probe=lambda: None)  # fmt: skip
    assert all("0" in task.name for task in result.tasks), "only what has elements is computed"
    torch.save(args, tmp_path / "args.pt")
    device = os.environ.get(DEVICE, "cpu")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "none_gpu"), *sys.path]),
           INTERPRET: "1" if device == "cpu" else "0"}  # fmt: skip
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", RUN, device], env=env,
                         cwd=tmp_path, capture_output=True, text=True, timeout=120)  # fmt: skip
    assert run.returncode == 0, run.stderr
    wants, gots = Nothing()(*args), torch.load(tmp_path / "outs.pt")
    assert [tuple(y.shape) for y in gots] == [tuple(y.shape) for y in wants]
    assert all(torch.equal(a, b) for a, b in zip(gots, wants))
    assert (gots[2] == 1.0).all() and (gots[4] == 0.0).all() and gots[4].numel()
