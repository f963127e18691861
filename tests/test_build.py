"""Definition and schedule to machine code: right at odd shapes, or refused with a reason."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import programs
import pytest

from autosched.codegen.build import BuiltKernel, Request, compile_kernel, compile_kernels, lower
from autosched.codegen.draw import draw_inputs, ranges_of
from autosched.codegen.jobs import JobFailure
from autosched.codegen.measure_jobs import bind, verify
from autosched.codegen.runtime.arrays import STORAGE, from_bfloat16
from autosched.codegen.runtime.pack import pack
from autosched.codegen.runtime.spec import arg_from_json, arg_to_json
from autosched.codegen.task_files import TaskData
from autosched.ir.extent import evaluate_extent
from autosched.ir.interp import evaluate
from autosched.ir.node import Output, Program, walk
from autosched.ir.ops import cast, const, eq, input_, iota, reduce_, sum_, take, where
from autosched.ir.record import Status
from autosched.ir.rules import inline
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.schedule import Schedule
from autosched.ir.target import host_target, parse_target

THREADS = 2
L = 16


def gemm_schedule(rows: int, vectors: int, lanes: int = L, outer: str = "grid") -> Schedule:
    """A register tile of rows x vectors*lanes, panels of w packed; sizes are knobs."""
    return Schedule("gemm", (
        act("inline", keep=[]),
        act("split", axis="n", size="$cols", nest="y"),
        act("split", axis="n.i", size=lanes, nest="y", into=["n.u", "n.l"]),
        act("split", axis="m", size="$rows", nest="y", into=["m.o", "m.u"]),
        act("bind", nest="y",
            loops=[f"n.o:{outer}", "m.o:serial", "m.u:unroll", "n.u:unroll", "n.l:lane"]),
        act("place", nest="y", operand="w", home="packed"),
    ), {"rows": rows, "cols": vectors * lanes})  # fmt: skip


def of_actions(*actions: Action) -> Schedule:
    return Schedule("by hand", actions)


def task_data(program: Program, seed: int = 0) -> TaskData:
    inputs = draw_inputs(program, seed)
    wide = {
        str(n.attr[0]): from_bfloat16(inputs[n.attr[0]]) if n.dtype == "bfloat16"
        else inputs[n.attr[0]]
        for n in program.inputs
    }  # fmt: skip
    return TaskData(inputs, evaluate(program, wide))


def check(program: Program, schedule: Schedule, folder: Path, target: str = "cpu") -> float:
    """Compiles, runs and compares with the interpreter; the relative error."""
    built = compile_kernel(program, schedule, parse_target(target), "kernel")
    assert isinstance(built, BuiltKernel), built
    library = folder / f"{abs(hash((id(program), schedule)))}.so"
    library.write_bytes(built.library)
    data = task_data(program)
    return verify(bind(data, library, built.symbol, built.args, THREADS), data)


# -- kernels against the interpreter ---------------------------------------------------------


@pytest.mark.parametrize("shape", [(37, 50, 33), (8, 48, 1), (1, 100, 17), (64, 96, 130)])
@pytest.mark.parametrize("tile", [(8, 3), (5, 2), (1, 1)])
def test_gemm(shape: tuple[int, int, int], tile: tuple[int, int], tmp_path: Path) -> None:
    m, n, k = shape
    schedule = gemm_schedule(min(tile[0], m), tile[1])
    assert check(programs.gemm(m, n, k), schedule, tmp_path) < 3e-6


@pytest.mark.parametrize("level", ["cpu:x86-64-v2", "cpu:x86-64-v3"])
def test_gemm_for_lesser_cpus(level: str, tmp_path: Path) -> None:
    lanes = parse_target(level).lanes
    schedule = gemm_schedule(4, 2, lanes)
    assert check(programs.gemm(21, 34, 19), schedule, tmp_path, level) < 3e-6


@pytest.mark.parametrize("mask", [None, programs.causal])
@pytest.mark.parametrize("i", [37, 8])
def test_attention_keeps_scores_in_scratch(
    mask: programs.Mask | None, i: int, tmp_path: Path
) -> None:
    program = programs.attention(2, 4, i, 16, groups=2, mask=mask)
    share = [act("split", axis="i", size=8),
             act("bind", loops=["b:grid", "h:grid", "i.o:serial"])]  # fmt: skip
    schedule = of_actions(inline.propose(program)[0], *share)
    assert check(program, schedule, tmp_path) < 3e-6


@pytest.mark.parametrize("width", [50, 16, 200])
def test_layernorm(width: int, tmp_path: Path) -> None:
    program = programs.layernorm(11, width)
    schedule = of_actions(inline.propose(program)[0], act("bind", loops=["t:grid"]))
    assert check(program, schedule, tmp_path) < 3e-6


def elementwise(dtype: str) -> Program:
    """where(flag, a * b + row, a) over 13 x 45, the row broadcast."""
    a, b = (input_(name, {"i": 13, "j": 45}, dtype) for name in "ab")
    row = input_("row", {"j": 45}, dtype, "weight")
    flag = input_("flag", {"i": 13, "j": 45}, "bool")
    return programs.algebra({"y": ("i", "j")}, y=where(flag, a * b + row, a))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int32", "int64"])
def test_elementwise(dtype: str, tmp_path: Path) -> None:
    schedule = of_actions(
        act("inline", keep=[]),
        act("split", axis="j", size=8, nest="y", into=["j.o", "j.l"]),
        act("bind", nest="y", loops=["i:grid", "j.o:serial", "j.l:lane"]),
    )
    error = check(elementwise(dtype), schedule, tmp_path)
    assert error < {"float16": 2e-3, "bfloat16": 1.6e-2}.get(dtype, 1e-6)


def test_two_outputs_and_a_bool_one(tmp_path: Path) -> None:
    x = input_("x", {"i": 7, "j": 33})
    program = programs.algebra(
        {"big": ("i", "j"), "top": ("i",)}, big=x > 0.0, top=reduce_("max", "j", x)
    )
    schedule = of_actions(act("inline", keep=[]))
    assert check(program, schedule, tmp_path) == 0


# -- many at once, and refusals -----------------------------------------------------------------


def test_a_library_of_many_kernels(tmp_path: Path) -> None:
    program, data = programs.gemm(37, 50, 33), None
    requests = [
        Request(program, gemm_schedule(r, v), f"k_{r}_{v}") for r in (1, 4, 40) for v in (1, 2)
    ]
    built = compile_kernels(requests, host_target())
    assert [isinstance(k, Illegal) for k in built] == [False] * 4 + [True] * 2  # 40 rows of 37
    legal = [k for k in built if isinstance(k, BuiltKernel)]
    assert len({id(k.library) for k in legal}) == 1
    library = tmp_path / "all.so"
    library.write_bytes(legal[0].library)
    data = task_data(program)
    assert all(verify(bind(data, library, k.symbol, k.args, THREADS), data) < 3e-6 for k in legal)


def test_sources_are_readable() -> None:
    built = compile_kernel(programs.gemm(8, 16, 4), gemm_schedule(4, 1), host_target(), "fused")
    assert isinstance(built, BuiltKernel)
    assert "def fused(" in built.source and "T.parallel" not in built.source  # one task only
    assert built == compile_kernel(
        programs.gemm(8, 16, 4), gemm_schedule(4, 1), host_target(), "fused"
    )


def test_a_library_is_the_same_each_time() -> None:
    request = Request(programs.gemm(37, 50, 33), gemm_schedule(5, 2), "k")
    first, second = (compile_kernels([request], host_target())[0] for _ in range(2))
    assert isinstance(first, BuiltKernel) and isinstance(second, BuiltKernel)
    assert first.library == second.library


def test_illegal_schedules_say_why() -> None:
    program = programs.gemm(37, 50, 33)
    unbound = Schedule("gemm", gemm_schedule(4, 1).actions, {"rows": 4})
    for schedule in (of_actions(act("inline", keep=[7])), of_actions(act("fly")), unbound):
        found = compile_kernel(program, schedule, host_target(), "k")
        assert isinstance(found, Illegal) and found.code and found.why


# -- packs ---------------------------------------------------------------------------------------


def test_pack_is_what_the_tile_program_says(tmp_path: Path) -> None:
    """The spec fills the buffer as the interpreter fills the pack, overlapping blocks too."""
    program = programs.gemm(8, 50, 33)
    lowered = lower(Request(program, gemm_schedule(4, 2), "k"), host_target())
    assert not isinstance(lowered, Illegal)
    (arg,) = [a for a in lowered.args if a.pack is not None]
    assert arg == arg_from_json(arg_to_json(arg)) and arg.pack is not None
    w = draw_inputs(program, 3)["w"]
    packed = pack(w, arg.pack, arg.dtype)
    (made,) = lowered.tile.packs
    read = made.value
    for at in np.ndindex(*arg.shape):
        env = dict(zip(made.dims, at))
        where_ = tuple(int(evaluate_extent(s, env)) for s in read.src[1:])
        assert packed[at] == w[where_]
        if at > (0, 2):
            break
    assert packed[-1, -1, -1, -1] == w[-1, -1]  # the last block ends where the weight does


# -- what the check catches ----------------------------------------------------------------------


@cache
def scaled(factor: float, rows: int) -> BuiltKernel:
    """x * factor over the first `rows` rows of five."""
    x = input_("x", {"i": rows, "j": 32})
    program = Program(
        "algebra", (x,), (Output("y", ("i", "j"), "float32", (rows, 32)),), (x * factor,)
    )
    built = compile_kernel(program, of_actions(act("inline", keep=[])), host_target(), "scaled")
    assert isinstance(built, BuiltKernel)
    return built


@pytest.mark.parametrize(
    "factor, rows, status, words",
    [
        (2.0, 5, None, ""),
        (2.0001, 5, Status.WRONG_RESULT, "relative error"),
        (math.inf, 5, Status.NAN_RESULT, "infinite"),
        (2.0, 4, Status.WRONG_RESULT, "never written"),
        (2.0, 6, Status.WRONG_RESULT, "beside y"),
    ],
)
def test_check(
    factor: float, rows: int, status: Status | None, words: str, tmp_path: Path
) -> None:
    """A kernel that computes something else than five rows of 2x is found out."""
    x = input_("x", {"i": 5, "j": 32})
    data = task_data(programs.algebra({"y": ("i", "j")}, y=x * 2.0))
    wide = np.concatenate([data.inputs["x"], data.inputs["x"]])  # the sixth row may be read
    kernel = scaled(factor, rows)
    library = tmp_path / "k.so"
    library.write_bytes(kernel.library)
    args = [arg_from_json({**arg_to_json(a), "shape": [5, 32]}) for a in kernel.args]
    bound = bind(TaskData({"x": wide}, data.outputs), library, "scaled", args, THREADS)
    if status is None:
        assert verify(bound, data) == 0
        return
    with pytest.raises(JobFailure, match=words) as failure:
        verify(bound, data)
    assert failure.value.status is status


# -- inputs ------------------------------------------------------------------------------------


def lookup(rows: int, tokens: int) -> Program:
    """Rows of a table, negative indices from its end, masked, then a root."""
    table = input_("table", {"v": rows, "c": 6}, kind="weight")
    ids = input_("ids", {"t": tokens}, "int64")
    mask = input_("mask", {"t": tokens}, "int64")
    spread = input_("spread", {"c": 6})
    at = where(ids < 0, ids + rows, ids)
    picked = take(table, "v", at) * cast(mask, "float32")
    return programs.algebra({"y": ("t", "c")}, y=picked * (1.0 / (spread + 0.1)))


def test_inputs_stay_in_their_ranges() -> None:
    program = lookup(5, 400)
    ranges = {str(n.attr[0]): limit for n, limit in ranges_of(program).below.items()}
    assert ranges == {"ids": 5}
    inputs = draw_inputs(program, 0)
    assert set(inputs["ids"]) == {0, 1, 2, 3, 4}
    assert set(inputs["mask"]) == {0, 1}
    assert all(inputs[n.attr[0]].dtype == STORAGE[n.dtype] for n in program.inputs)


def test_inputs_depend_on_the_seed_alone() -> None:
    program = lookup(5, 40)
    first, again, other = (draw_inputs(program, seed) for seed in (0, 0, 1))
    assert all((first[n] == again[n]).all() for n in first)
    assert all((first[n] != other[n]).any() for n in first)


def test_inputs_of_roots_are_in_their_domain() -> None:
    x = input_("x", {"i": 100})
    var = input_("var", {"i": 100}, kind="weight")
    y = x * programs.rsqrt(var + 1e-5)
    inputs = draw_inputs(programs.algebra({"y": ("i",)}, y=y), 0)
    assert (inputs["var"] > 0).all() and (inputs["x"] < 0).any()


def test_weights_are_scaled_by_their_contraction() -> None:
    x, w = input_("x", {"m": 4, "k": 400}), input_("w", {"k": 400, "n": 50}, kind="weight")
    inputs = draw_inputs(programs.algebra({"y": ("m", "n")}, y=sum_("k", x * w)), 0)
    assert 0.04 < inputs["w"].std() < 0.06 and 0.9 < inputs["x"].std() < 1.1


def test_a_lookup_compiles(tmp_path: Path) -> None:
    program = lookup(50, 9)
    assert check(program, of_actions(act("inline", keep=[])), tmp_path) < 1e-6
    same = eq(iota("t", 9), const(3, "int32"))
    assert any(n.op == "take" for n in walk(*program.body)) and same.dtype == "bool"
