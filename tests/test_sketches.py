"""Every sketch means what its definition means: random schedules, interpreted and compiled.

The tile program in float64 against the algebra (1e-12), the kernel against both (1e-5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import algebra, attention, causal, gemm, layernorm, rmsnorm, rotary, softmax, swiglu
from tile_programs import delta_algebra

from autosched.codegen.build import BuiltKernel, Lowered, Request, compile_kernels, lower
from autosched.codegen.measure_jobs import bind, run_guarded
from autosched.codegen.task_files import TaskData
from autosched.ir.access import extents_of
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    carry,
    cast,
    const,
    exp,
    fold,
    get,
    input_,
    iota,
    log,
    map_,
    max_,
    maximum,
    reaxis,
    reduce_,
    scan,
    sum_,
    take,
    where,
)
from autosched.ir.rules import cascade
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule, Sketch, replay
from autosched.ir.sketches import sketches
from autosched.ir.target import host_target

TARGET = host_target()
NUMPY = {"float32": "f4", "int32": "i4", "int64": "i8", "bool": "?"}


def x_of(name: str = "x", m: int = 13, k: int = 37, dtype: str = "float32") -> Node:
    return input_(name, {"m": m, "k": k}, dtype)


def window(i: Node, j: Node) -> Node:
    return (i >= j) & (i - j < 5)


def nothing_after(i: Node, j: Node) -> Node:
    """Rows from 12 on keep no entry at all."""
    return (i >= j) & (i < 12)


def projections() -> Program:
    x = x_of()
    weights = {n: input_(f"w{n}", {"k": 37, "n": 40}, kind="weight") for n in "qkv"}
    values = {n: sum_("k", x * w) for n, w in weights.items()}
    return algebra(dict.fromkeys("qkv", ("m", "n")), **values)


def residual() -> Program:
    y = x_of() + x_of("r")
    mean = sum_("k", y) / 37.0
    centred = y - mean
    spread = sum_("k", centred * centred) / 37.0
    return algebra({"y": ("m", "k"), "o": ("m", "k")}, y=y, o=centred / (spread + 1e-5))


def logsumexp(whole: bool) -> Program:
    x = x_of()
    top = max_("k", x)
    total = top + log(sum_("k", exp(x - top)))
    return algebra({"y": ("m", "k")}, y=x - total) if whole else algebra({"y": ("m",)}, y=total)


def guarded() -> Program:
    """Attention as exporters write it: capped, biased, masked, NaN rows made 0."""
    q, k = input_("q", {"i": 9, "d": 4}), input_("k", {"j": 11, "d": 4})
    s = 5.0 * map_("tanh", sum_("d", q * k) / 5.0) + input_("bias", {"i": 9, "j": 11})
    s = where(iota("i", 9) - iota("j", 11) > 2, s, -math.inf)
    e = exp(s - max_("j", s))
    p = e / sum_("j", e)
    p = where(map_("isnan", p), 0.0, p)
    return algebra({"o": ("i", "e")}, o=sum_("j", p * input_("v", {"j": 11, "e": 5})))


def argmax() -> Program:
    best = reduce_("argmax", "k", x_of(), iota("k", 37))
    return algebra({"v": ("m",), "at": ("m",)}, v=get(best, 0), at=get(best, 1))


def recurrence() -> Program:
    state = carry("S", "float32", {"m": 13})
    step = state * 0.5 + x_of()
    loop = fold("k", [(0, 37)], {"S": (const(1.0, "float32"), step)}, [maximum(step, 0.0)])
    return algebra({"y": ("m", "k"), "last": ("m",)}, y=get(loop, 1), last=get(loop, 0))


def swapping() -> Program:
    """Two states that read each other, one of them at the next coordinate."""
    a, b = (carry(n, "float32", {"m": 13}) for n in "AB")
    turned = reaxis(b, {"m": (iota("m", 13) + 1) % 13})
    states = {"A": (const(1.0, "float32"), turned * 0.5 + x_of()),
              "B": (const(0.5, "float32"), a * 0.5 - x_of())}  # fmt: skip
    loop = fold("k", [(1, 20), (25, 37)], states)
    return algebra({"a": ("m",), "b": ("m",)}, a=get(loop, 0), b=get(loop, 1))


def scanned(monoid: str, axis: str, **how: bool) -> Program:
    return algebra({"y": ("m", "k")}, y=scan(monoid, axis, x_of(), **how) * 2.0)


def doubly_normal() -> Program:
    e = exp(x_of())
    e = e / sum_("m", e)
    return algebra({"y": ("m", "k")}, y=e / sum_("k", e))


def whole(monoid: str) -> Program:
    return algebra({"y": ()}, y=reduce_(monoid, ("m", "k"), x_of()))


def gathered() -> Program:
    rows = input_("at", {"m": 13}, "int64")
    return algebra({"y": ("m", "k")}, y=take(input_("t", {"v": 5, "k": 37}), "v", rows))


def twisted() -> Program:
    at = {"k": (iota("p", 6) * 3 + iota("q", 4)) % 37, "m": iota("p", 6) // 2}
    return algebra({"y": ("p", "q")}, y=reaxis(x_of(), at))


def booleans() -> Program:
    x = x_of()
    return algebra({"any": ("m",), "all": ("k",), "count": ()},
                   any=reduce_("any", "k", x > 1.5), all=reduce_("all", "m", x < 1.5),
                   count=sum_(("m", "k"), cast(x > 0.0, "int32")))  # fmt: skip


def shifted_integers() -> Program:
    n = x_of("n", dtype="int32")
    return algebra({"a": ("m",), "b": ("m", "k")}, a=sum_("k", n), b=n * 2 - 1)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "gemm": lambda: gemm(37, 50, 33),
    "gemm_one_row": lambda: gemm(1, 50, 33),
    "attention": lambda: attention(1, 2, 19, 8, mask=causal),
    "attention_groups": lambda: attention(2, 4, 7, 8, j=21, groups=2, mask=None),
    "attention_window": lambda: attention(1, 1, 17, 4, mask=window),
    "attention_dead_rows": lambda: attention(1, 2, 19, 8, mask=nothing_after),
    "attention_guarded": guarded,
    "layernorm": lambda: layernorm(9, 37),
    "residual": residual,
    "rmsnorm": lambda: rmsnorm(9, 37),
    "softmax": lambda: softmax(9, 37),
    "swiglu": lambda: swiglu(9, 24, 40),
    "projections": projections,
    "rotary": lambda: rotary(1, 2, 5, 8),
    "logsumexp": lambda: logsumexp(False),
    "log_softmax": lambda: logsumexp(True),
    "argmax": argmax,
    "recurrence": recurrence,
    "swapping": swapping,
    "delta_rule": lambda: delta_algebra(1, 2, 5, 8, 16),
    "cumsum": lambda: scanned("sum", "k"),
    "cumsum_reverse": lambda: scanned("sum", "k", exclusive=True, reverse=True),
    "cummax": lambda: scanned("max", "m"),
    "doubly_normal": doubly_normal,
    "whole_sum": lambda: whole("sum"),
    "whole_max": lambda: whole("max"),
    "product": lambda: algebra({"y": ("m",)}, y=reduce_("prod", "k", x_of())),
    "least": lambda: algebra({"y": ("k",)}, y=reduce_("min", "m", x_of())),
    "gathered": gathered,
    "twisted": twisted,
    "bools": booleans,
    "integers": shifted_integers,
    "empty": lambda: algebra({"y": ("m", "k")}, y=exp(x_of(m=0))),
    "empty_sum": lambda: algebra({"y": ("k",)}, y=sum_("m", x_of(m=0))),
    "one": lambda: algebra({"y": ("m",)}, y=sum_("k", exp(x_of(m=1, k=1)))),
    "scalar": lambda: algebra({"y": ()}, y=exp(input_("x", {}))),
}  # fmt: skip


# ---- random programs ---------------------------------------------------------------------------


def random_program(seed: int) -> Program:
    """Some maps and reduces on top of each other over up to three axes, one or two outputs."""
    rng = np.random.default_rng(seed)
    sizes = {a: int(rng.choice([1, 2, 5, 8, 17, 33])) for a in "mnk"}
    values = [
        input_(f"x{n}", {a: sizes[a] for a in axes}, kind=str(rng.choice(["arg", "weight"])))
        for n, axes in enumerate(("mk", "kn", "n", "mnk"))
    ]
    for _ in range(int(rng.integers(3, 8))):
        picked = [values[i] for i in rng.integers(0, len(values), 2)]
        values.append(_grown(rng, *picked))
    wide = [v for v in values[4:] if v.axes]
    outs = wide[-int(rng.integers(1, 3)) :]
    dims = {f"y{n}": tuple(rng.permutation(v.names)) for n, v in enumerate(outs)}
    return algebra({n: tuple(map(str, d)) for n, d in dims.items()},
                   **{f"y{n}": v for n, v in enumerate(outs)})  # fmt: skip


def _grown(rng: np.random.Generator, a: Node, b: Node) -> Node:
    fn = str(rng.choice(["add", "mul", "max", "sub", "exp", "sum", "max_", "softmax", "where"]))
    axis = str(rng.choice(a.names)) if a.axes else ""
    if fn == "exp":
        return exp(a * 0.25)
    if fn == "where":
        return where(a > b, a, b * 0.5)
    if fn in ("sum", "max_", "softmax"):
        if not axis:
            return a * 0.5
        if fn == "softmax":
            e = exp(a - max_(axis, a))
            return e / sum_(axis, e)
        return sum_(axis, a) * 0.1 if fn == "sum" else max_(axis, a)
    return map_(fn, a, b)


# ---- running -----------------------------------------------------------------------------------


def drawn(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for node in program.inputs:
        shape, kind = extents_of(node), np.dtype(NUMPY[node.dtype])
        whole = kind.kind != "f"
        data = rng.integers(0, 5, shape) if whole else rng.standard_normal(shape)
        out[str(node.attr[0])] = np.asarray(data).astype(kind)
    return out


def schedules(sketch: Sketch, count: int, seed: int) -> Iterator[Schedule]:
    table = sketch.table(limit=20_000)
    rows = len(next(iter(table.values())))
    assert rows, f"{sketch.name} has no candidate"
    for row in np.random.default_rng(seed).integers(0, rows, count):
        yield sketch.schedule({k: int(v[row]) for k, v in table.items() if k})


def agree(got: Any, want: Any, bound: float) -> bool:
    got, want = np.asarray(got), np.asarray(want)
    if want.dtype.kind != "f":
        return np.array_equal(got, want)
    finite = np.isfinite(want)
    odd = np.array_equal(got[~finite].astype("f8"), want[~finite], equal_nan=True)
    distance = float(np.linalg.norm(got[finite] - want[finite]))
    return odd and distance <= bound * max(float(np.linalg.norm(want[finite])), 1e-30)


def exact(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v.astype("f8") if v.dtype.kind == "f" else v for k, v in arrays.items()}


def check(program: Program, folder: Path, draws: int = 1, only: str = "") -> int:
    """Draws schedules of every sketch and checks both levels; the number of kernels run."""
    arrays = drawn(program)
    want = evaluate(program, exact(arrays))
    made = [s for s in sketches(program, TARGET) if only in s.name]
    assert made, "a program without a sketch"
    requests: list[Request] = []
    for number, sketch in enumerate(made):
        drawn_here = 0
        for schedule in schedules(sketch, 6 * draws, number):
            tile = replay(program, schedule)
            assert not isinstance(tile, Illegal), f"{sketch.name}: {tile}"
            request = Request(program, schedule, f"kernel{len(requests)}")
            if _packs_too_much(lower(request, TARGET)):
                continue
            got = evaluate(tile, exact(arrays))
            for name in want:
                assert agree(got[name], want[name], 1e-12), f"{schedule.text}: {name}"
            requests.append(request)
            drawn_here += 1
            if drawn_here == draws:
                break
    _run(requests, arrays, want, folder)
    return len(requests)


def _packs_too_much(lowered: Lowered | Illegal) -> bool:
    """Whether blocks that overlap hold a small weight too often: a refusal of the build."""
    return isinstance(lowered, Illegal) and lowered.code == "PACK"


def _run(
    requests: Sequence[Request],
    arrays: dict[str, np.ndarray],
    want: dict[str, np.ndarray],
    folder: Path,
) -> None:
    data = TaskData(arrays, want)
    built = compile_kernels(requests, TARGET)
    library = folder / "kernels.so"
    first = built[0]
    assert isinstance(first, BuiltKernel), first
    library.write_bytes(first.library)
    for request, kernel in zip(requests, built):
        assert isinstance(kernel, BuiltKernel), kernel
        bound = bind(data, library, kernel.symbol, kernel.args, threads=2)
        run_guarded(bound)
        for name in want:
            assert agree(bound.outputs[name], want[name], 1e-5), f"{request.schedule.text}: {name}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_sketches_mean_the_definition(name: str, tmp_path: Path) -> None:
    check(PROGRAMS[name](), tmp_path)


@pytest.mark.parametrize("seed", range(30))
def test_random_programs(seed: int, tmp_path: Path) -> None:
    check(random_program(seed), tmp_path)


@pytest.mark.parametrize("name", ["attention", "attention_groups", "attention_window",
                                  "attention_dead_rows", "attention_guarded", "softmax",
                                  "layernorm"])  # fmt: skip
def test_one_pass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "LONG", 2)
    monkeypatch.setattr(cascade, "BLOCKS", (4,))
    assert check(PROGRAMS[name](), tmp_path, only="onepass")


def test_projections_share_one_parallel_region() -> None:
    for sketch in sketches(projections(), TARGET):
        tile = replay(projections(), next(schedules(sketch, 1, 0)))
        assert isinstance(tile, Program)
        (kernel,) = tile.body
        assert len(kernel.src) == 1, sketch.name
        assert kernel.src[0].attr[1] == "grid", sketch.name
