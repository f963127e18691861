"""The facts of GPU kernels: each computes the same values, and says what it was made for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import programs
import pytest
from test_triton_kernels import check
from test_triton_schedules import draw

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import build
from autosched.codegen.triton_order import Order
from autosched.codegen.triton_spec import TritonModule
from autosched.costmodel.features import features
from autosched.ir.count import count
from autosched.ir.define import algebra
from autosched.ir.gpu_facts import DEFAULTS, FACTS, described
from autosched.ir.interp import evaluate
from autosched.ir.node import Program
from autosched.ir.ops import KERNEL_FACTS, cast, input_, sigmoid, sum_
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.schedule import Schedule, replay, run_actions
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.target import parse_target
from autosched.tools.triton_interpreter import Interpreter

TARGET = parse_target("sm_90")


def linear(m: int, n: int, k: int, dtype: str = "float32") -> Program:
    """y = silu(x w + bias), w stored n x k"""
    x, w = input_("x", {"m": m, "k": k}, dtype), input_("w", {"n": n, "k": k}, dtype)
    z = sum_("k", cast(x, "float32") * cast(w, "float32"))
    z = z + cast(input_("bias", {"n": n}, dtype), "float32")
    return algebra(y=("m n", cast(z * sigmoid(z), dtype)))


def tiled(
    program: Program, sizes: Sequence[int], facts: dict[str, int], order: str = "mn"
) -> Program:
    """The product with blocks of rows x columns x depth."""
    rows, columns, depth = sizes
    axes = [[a, {"m": rows, "n": columns}[a]] for a in order]
    plan = [axes, [["k", depth]], [["warps", 4], ["stages", 3], *map(list, facts.items())]]
    made = run_actions(program, [act("tile", keep=(), plans=[plan], narrow=True, precision="")])
    assert isinstance(made, Program), made
    return made


def with_facts(schedule: Schedule, facts: dict[str, int]) -> Schedule:
    """The schedule with other facts in every kernel."""
    actions = tuple(_stated(a, facts) if a.rule == "tile" else a for a in schedule.actions)
    return Schedule(schedule.sketch, actions, schedule.knobs)


def _stated(action: Action, facts: dict[str, int]) -> Action:
    plans = [
        [axes, reduces, [*(f for f in old if f[0] not in facts), *map(list, facts.items())]]
        for axes, reduces, old in action["plans"]
    ]
    return act(action.rule, **{**dict(action.args), "plans": plans})


def source(program: Program) -> str:
    module = emit(program, Header("facts"))
    assert isinstance(module, TritonModule), module
    return module.source


def test_the_table_knows_every_fact_of_a_kernel() -> None:
    assert tuple(DEFAULTS) == tuple(f.name for f in FACTS)
    assert set(DEFAULTS) == set(KERNEL_FACTS)


# ---- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("group,snake", [*product((0, 1, 2, 3, 4, 7, 64), (False, True))])
def test_an_order_walks_the_whole_grid_once(group: int, snake: bool) -> None:
    trips = [("b", 2), ("one", 1), ("m", 7), ("n", 5), ("parts", 3)]
    places = [walked(Order(group, snake), trips, pid) for pid in range(2 * 7 * 5 * 3)]
    assert len(set(places)) == len(places)
    assert all(0 <= x < n for p in places for x, n in zip(p, (2, 7, 5, 3)))
    columns = [p[2] for p in places[:: 3 * 7 if group >= 7 else 3]]
    if group == 0:
        back = [*range(5), *reversed(range(5))] if snake else [*range(5), *range(5)]
        assert columns[:10] == back
    rows = {p[1] for p in places[: 3 * max(group, 1)]}
    assert len(rows) == min(max(group, 1), 7)


def walked(order: Order, trips: list[tuple[str, int]], pid: int) -> tuple[int, ...]:
    class tl:
        minimum, where = staticmethod(min), staticmethod(lambda c, a, b: a if c else b)

    known: dict[str, int] = {}
    for name, text in order.lines(trips, "pid", 1):
        said = re.sub(r"{([^}]+)}", lambda at: str(known[at[1]]), text)
        known[name] = eval(said, {"tl": tl, "pid": pid})  # text of our own making
    return tuple(known[a] for a, n in trips if n > 1)


@pytest.mark.parametrize("persistent", (0, 1))
@pytest.mark.parametrize("facts", (
    {"group": 2}, {"group": 3, "snake": 1}, {"snake": 1}, {"group": 8},
))  # fmt: skip
def test_orders_of_a_product(interpreter: Interpreter, facts: dict, persistent: int) -> None:
    facts = facts | ({"persistent": 1, "flatten": 1} if persistent else {})
    check(interpreter, tiled(linear(75, 70, 45), (16, 16, 16), facts))
    check(interpreter, tiled(linear(75, 70, 45), (16, 16, 16), facts, "nm"))


# ---- boxes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits,loads,stores", (
    (0, "", ""), (1, "xw", "y"), (2, "x", ""), (4, "w", ""), (6, "xw", ""), (8, "", "y"),
    (14, "xw", "y"),
))  # fmt: skip
def test_descriptors_of_some_operands(
    interpreter: Interpreter, bits: int, loads: str, stores: str
) -> None:
    made = tiled(linear(41, 40, 72), (16, 32, 32), {"descriptors": bits})
    text = check(interpreter, made).source
    assert [n for n in "xw" if f"{n}_box.load(" in text] == list(loads)
    assert [n for n in "y" if f"{n}_box.store(" in text] == list(stores)


def test_roles_of_what_is_read() -> None:
    (kernel,) = tiled(linear(41, 40, 72), (16, 32, 32), {}).body
    names = {bit: sorted(n.src[0].attr[0] for n in described(kernel, bit)) for bit in (2, 4, 8, 16)}
    assert names == {2: ["x"], 4: ["w"], 8: ["y"], 16: ["bias"]}
    every = described(kernel, 1)
    assert every == frozenset().union(*(described(kernel, bit) for bit in names))
    assert len(every) == 4 and not described(kernel, 0)


@pytest.mark.parametrize("parts", (2, 4))
def test_an_epilogue_in_parts(interpreter: Interpreter, parts: int) -> None:
    facts = {"descriptors": 1, "epilogue": parts}
    for dtype, extra in (("float32", {}), ("float16", {"persistent": 1, "flatten": 1})):
        text = check(interpreter, tiled(linear(41, 40, 72, dtype), (16, 32, 32), facts | extra))
        assert text.source.count("_box.store(") == parts
    # A part is never shorter than a descriptor's line may be.
    short = tiled(linear(41, 40, 72, "float16"), (16, 16, 32), facts)
    assert source(short).count("_box.store(") == 2


@pytest.mark.parametrize("bits", (0, 1, 6))
def test_operands_change_sides(interpreter: Interpreter, bits: int) -> None:
    made = tiled(linear(5, 72, 48), (16, 64, 16), {"swap": 1, "descriptors": bits, "epilogue": 2})
    text = check(interpreter, made).source
    assert "tl.zeros((64, 16)" in text and "tl.dot(w_tile, x_tile" in text


def attention(program: Program, facts: dict[str, int], sketch: str = "onepass32.0") -> Program:
    made = next(s for s in gpu_sketches(program, TARGET) if s.name == sketch)
    knobs = {k.name: k.domain[0] for k in made.knobs} | {"k0.i": 16}
    tile = replay(program, with_facts(made.schedule(knobs), facts))
    assert isinstance(tile, Program), tile
    return tile


@pytest.mark.parametrize("facts", (
    {"descriptors": 1}, {"descriptors": 4}, {"descriptors": 1, "persistent": 1},
    {"swap": 1}, {"descriptors": 1, "epilogue": 2, "specialise": 1}, {"inner": 4},
), ids=str)  # fmt: skip
@pytest.mark.parametrize("mask", (None, programs.causal), ids=("full", "causal"))
def test_facts_of_attention(
    interpreter: Interpreter, facts: dict, mask: programs.Mask | None
) -> None:
    program = programs.attention(2, 2, 53, 16, mask=mask)
    tile = attention(program, facts)
    arrays = draw(program, np.random.default_rng(1))
    module = check(interpreter, tile, arrays)
    for name, want in evaluate(program, arrays).items():
        np.testing.assert_allclose(interpreter(module, arrays)[name], want, 1e-4, 1e-5)


def test_boxes_have_no_point_where_none_is_tested() -> None:
    """Heads are part of the address, or of the rows where one descriptor serves all programs."""
    even = programs.attention(2, 3, 64, 16)
    text = source(attention(even, {"descriptors": 1}))
    assert text.count("make_tensor_descriptor(q + ") == 1
    assert "[64, 16]" in text and "[1, 1," not in text
    turns = source(attention(even, {"descriptors": 1, "persistent": 1}))
    assert "make_tensor_descriptor(q, [384, 16], [16, 1]" in turns
    odd = source(attention(programs.attention(2, 3, 53, 16), {"descriptors": 1, "persistent": 1}))
    assert re.search(r"make_tensor_descriptor\(\s*q,\s*\[6, 53, 16\]", odd)


def test_loops_say_what_the_compiler_is_told() -> None:
    text = source(tiled(linear(64, 64, 64), (16, 16, 16), {
        "specialise": 1, "persistent": 1, "flatten": 1, "descriptors": 1}))  # fmt: skip
    assert "tl.num_programs(0), flatten=True)" in text
    assert "num_stages=3, warp_specialize=True)" in text
    module = emit(tiled(linear(64, 64, 64), (16, 16, 16), {"registers": 128}), Header("facts"))
    assert isinstance(module, TritonModule) and module.launches[0].registers == 128
    assert TritonModule.from_json(module.to_json()) == module


# ---- what a cost model sees ----------------------------------------------------------------------


def features_of(facts: dict[str, int], size: int = 8192) -> dict[str, float]:
    tile = tiled(linear(size, size, size, "bfloat16"), (128, 256, 64), {"warps": 8} | facts)
    made = features(tile, TARGET, count(linear(size, size, size, "bfloat16")))
    table = made.evaluate({"": np.zeros(1, np.int64)})
    return dict(zip(table.names, map(float, table.matrix[0])))


def test_programs_of_a_group_share_what_they_read() -> None:
    row = 8192 * 2  # bytes of a row of either operand
    plain, grouped = features_of({}), features_of({"group": 16})
    assert grouped["fetched_bytes"] < 0.6 * plain["fetched_bytes"]
    # 132 programs: 16 blocks of rows beside 9 of columns, their bias and their results.
    read = 16 * 128 * row + 9 * 256 * row + 9 * 256 * 2
    stored = 16 * 128 * 9 * 256 * 2
    assert grouped["hot_wave_bytes"] == pytest.approx(read + stored, rel=1e-3)
    assert grouped["hot_group"] == 16 and plain["hot_group"] == 0


def test_shared_memory_of_a_store() -> None:
    staged, box = 3 * (128 + 256) * 64 * 2, 128 * 256 * 2
    assert features_of({"descriptors": 1})["hot_shared_bytes"] == staged
    walking = {"descriptors": 1, "persistent": 1}
    assert features_of(walking)["hot_shared_bytes"] == staged + box
    assert features_of(walking | {"epilogue": 4})["hot_shared_bytes"] == staged + box // 4
    assert features_of(walking | {"descriptors": 6})["hot_shared_bytes"] == staged


def test_warps_of_their_own_share_out_registers() -> None:
    plain, split = features_of({"warps": 4}), features_of({"warps": 4, "specialise": 1})
    assert split["hot_registers"] < plain["hot_registers"] and split["hot_spills"] == 0
    assert split["hot_occupancy"] == pytest.approx(4 / 64)
    capped = features_of({"registers": 128})
    assert capped["hot_registers"] == 128 and capped["hot_spills"] > 0


# ---- what the compiler makes of them -------------------------------------------------------------


@pytest.mark.parametrize("facts,threads,shared", (
    ({"descriptors": 1, "persistent": 1, "flatten": 1, "group": 8, "warps": 8}, 256, 213016),
    ({"descriptors": 1, "persistent": 1, "epilogue": 4, "warps": 8}, 256, 163864),
    # Two groups of warps contract what would not fit into the registers of one.
    ({"descriptors": 1, "specialise": 1}, 384, 213464),
    ({"descriptors": 6, "registers": 168, "warps": 8}, 256, 147480),
), ids=str)  # fmt: skip
def test_builds_for_hopper(tmp_path: Path, facts: dict, threads: int, shared: int) -> None:
    x = input_("x", {"m": 512, "k": 512}, "bfloat16")
    w = input_("w", {"k": 512, "n": 512}, "bfloat16")
    y = sum_("k", cast(x, "float32") * cast(w, "float32"))
    tile = tiled(algebra(y=("m n", cast(y, "bfloat16"))), (128, 256, 64), facts)
    module = emit(tile, Header("facts"))
    assert isinstance(module, TritonModule)
    (kernel,) = build(module, TARGET, tmp_path).kernels
    assert kernel.threads == threads and kernel.spill_bytes == 0
    assert kernel.registers <= 168 and abs(kernel.shared_bytes - shared) <= 512


def test_warps_that_load_want_boxes() -> None:
    """Pointers: the compiler would assert, and end its process."""
    tile = tiled(linear(512, 512, 512, "bfloat16"), (128, 128, 64), {"specialise": 1})
    refused = emit(tile, Header("facts"))
    assert isinstance(refused, Illegal) and "by pointers" in refused.why
    odd = tiled(linear(512, 512, 500, "bfloat16"), (128, 128, 64), {
        "specialise": 1, "descriptors": 1})  # fmt: skip
    assert isinstance(emit(odd, Header("facts")), Illegal)
