"""Axes that share the rows of one box: which may, and that their kernels mean the definition."""

from __future__ import annotations

import re

import numpy as np
import pytest

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.datasets.suites import suite
from autosched.ir.block_axes import BlockAxes
from autosched.ir.define import algebra
from autosched.ir.extent import simplify
from autosched.ir.interp import evaluate
from autosched.ir.node import Program, replace_nodes
from autosched.ir.ops import const, input_, iota, reaxis, sum_
from autosched.ir.packing import grains, packable
from autosched.ir.schedule import Sketch, replay
from autosched.ir.sketch_split import cuts
from autosched.ir.sketches import sketches
from autosched.ir.target import parse_target
from autosched.tools.gpu_programs import attention
from autosched.tools.triton_interpreter import Interpreter

SM_90 = parse_target("sm_90")
F32 = "float32"


def convolution(n: int, h: int, w: int, c: int, f: int) -> Program:
    """3 x 3, without padding, over images x[n, h + 2, w + 2, c]."""
    x = input_("x", {"n": n, "y": h + 2, "z": w + 2, "c": c})
    k = input_("k", {"r": 3, "s": 3, "c": c, "f": f}, kind="weight")
    at = {"y": iota("h", h) + iota("r", 3), "z": iota("w", w) + iota("s", 3)}
    return algebra(y=("n h w f", sum_(("r", "s", "c"), reaxis(x, at) * k)))


def split_heads(b: int, g: int, r: int, i: int, d: int, j: int) -> Program:
    """Scores of heads that are stored as one axis and computed as groups of members."""
    q = input_("q", {"b": b, "g": g, "r": r, "i": i, "d": d})
    k = input_("k", {"b": b, "g": g, "j": j, "d": d})
    s = sum_("d", q * k)
    h = iota("h", g * r)
    return algebra(s=("b h i j", reaxis(s, {"g": h // r, "r": h % r})))


DEFINITIONS: dict[str, tuple[Program, tuple[dict[str, int], ...]]] = {
    "one query": (attention(2, 12, 1, 24, F32, j=70, groups=4), ({"h": 4}, {"e": 24})),
    "a few": (attention(1, 12, 3, 24, F32, j=70, groups=4), ({"h": 4, "i": 3}, {"e": 24})),
    "seven heads": (attention(1, 14, 2, 16, F32, j=40, groups=7),
                    ({"h": 7, "i": 2}, {"e": 16})),
    "one key head": (attention(2, 6, 5, 16, F32, j=33, groups=6, causal=True),
                     ({"h": 6, "i": 5}, {"e": 16})),
    "one query, one key head": (attention(3, 7, 1, 24, F32, j=600, groups=7),
                                ({"h": 7}, {"e": 24})),
    "one to one": (attention(2, 6, 5, 16, F32, j=33), ({"i": 5}, {"e": 16})),
    "views": (split_heads(2, 3, 4, 3, 24, 37), ({"h": 4, "i": 3}, {"j": 37})),
    "images": (convolution(2, 5, 6, 16, 24), ({"n": 2, "h": 5, "w": 6}, {"f": 24})),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DEFINITIONS))
def test_axes_that_may_share_rows(name: str) -> None:
    program, groups = DEFINITIONS[name]
    extents = {a: int(str(e)) for o in program.outputs for a, e in zip(o.dims, o.extents)}
    assert packable(program.body, set(), extents) == groups


def test_an_axis_that_some_product_has_twice_shares_nothing() -> None:
    x, w = input_("x", {"m": 8, "k": 16}), input_("w", {"k": 16, "n": 8})
    y, v = input_("y", {"m": 8, "k": 16, "l": 4}), input_("v", {"m": 8, "k": 16, "n": 8})
    extents = {"m": 8, "n": 8, "l": 4}
    assert packable((sum_("k", x * w),), set(), extents) == ({"m": 8}, {"n": 8})
    both = sum_("k", x * w) + sum_("k", y * v)
    assert packable((both,), set(), extents) == ({"n": 8}, {"l": 4})


def test_grains() -> None:
    h = iota("h", 24)
    x = input_("x", {"g": 6, "d": 5})
    view = reaxis(x, {"g": h // 4})
    assert grains(view) == {"h": 4, "d": 1}
    assert grains(view * reaxis(input_("z", {"u": 4}), {"u": h // 6})) == {"h": 2, "d": 1}
    assert grains(reaxis(view, {"h": iota("t", 8) * 3})) == {"t": 1, "d": 1}
    assert grains(reaxis(reaxis(x, {"g": iota("p", 12) // 2}), {"p": h // 2})) == {"h": 4, "d": 1}




def test_coordinates_of_a_box_of_several_axes() -> None:
    axes = BlockAxes()
    (h, _, at_h), (i, _, at_i) = axes.packed([("h", 12, 4), ("i", 3, 3)])
    (name,) = axes.tiles
    assert axes.tiles[name] == 16 and axes.filled[name] == 12
    assert axes.short(at_h // 4) is iota(h, 3)  # all rows are of one group
    for row in range(12):
        env = {iota(name, 16): const(row, "int32"), iota(h, 3): const(2, "int32"),
               iota(i, 1): const(0, "int32")}  # fmt: skip
        found = [simplify(replace_nodes(at, env)).attr[0] for at in (at_h, at_i)]
        assert found == [8 + row // 3, row % 3]


def packed(program: Program) -> list[Sketch]:
    made = [s for s in sketches(program, SM_90) if "packed" in str(s.actions)]
    return [s for s in made if "stagger" not in s.name]  # the loops are another rule's


@pytest.mark.parametrize("name", [
    "one query", "a few", "seven heads", "one key head", "one query, one key head", "views",
])  # fmt: skip
def test_kernels_of_packed_rows(interpreter: Interpreter, name: str) -> None:
    program, _ = DEFINITIONS[name]
    rng = np.random.default_rng(0)
    arrays = {n.attr[0]: rng.standard_normal([e for _, e in n.attr[1]]).astype(np.float32) / 2
              for n in program.inputs}  # fmt: skip
    (want,) = evaluate(program, arrays).values()
    found = packed(program)
    assert found
    for sketch in found:
        table = sketch.table()
        row = int(rng.integers(len(next(iter(table.values())))))
        tile = replay(program, sketch.schedule({k: int(c[row]) for k, c in table.items()}))
        assert isinstance(tile, Program)
        (meant,) = evaluate(tile, arrays).values()
        np.testing.assert_allclose(meant, want, 1e-12, 1e-13)
        module = emit(tile, Header(name))
        assert isinstance(module, TritonModule), module
        (got,) = interpreter(module, arrays).values()
        np.testing.assert_allclose(got, want, 1e-4, 1e-5, True, module.source)


def test_nothing_is_packed_where_one_axis_fills_a_box() -> None:
    assert not packed(attention(1, 8, 512, 64, F32, j=512, groups=4))
    assert not packed(attention(2, 6, 5, 16, F32, j=33))


def test_keys_and_values_are_read_once_for_a_group() -> None:
    program = attention(1, 32, 1, 128, "bfloat16", j=8192, groups=4)
    sketch = next(s for s in packed(program) if s.name.startswith("onepass64"))
    table = sketch.table()
    module = emit(
        replay_of(program, sketch, {k: int(c[0]) for k, c in table.items()}), Header("decode")
    )
    assert isinstance(module, TritonModule)
    (launch,) = module.launches
    assert launch.programs == 8  # of key heads
    assert len(re.findall(r"tl\.load\((k|v) \+", module.source)) == 2


def test_all_heads_of_one_key_head_are_rows_of_one_program() -> None:
    program = attention(4, 8, 1, 128, "bfloat16", j=65536, groups=8)
    found = {s.name: s for s in packed(program)}
    assert {"onepass128.1", "split.j64.arrive.1", "split.j128.apart.2"} <= set(found)
    sketch = found["split.j128.arrive.2"]
    knobs = {k: int(c[0]) for k, c in sketch.table().items()} | {"parts": 32}
    module = emit(replay_of(program, sketch, knobs), Header("decode"))
    assert isinstance(module, TritonModule)
    (launch,) = module.launches
    assert launch.programs == 4 * 32  # not once more for each of 8 heads
    assert "tl.dot(" in module.source


def test_long_queries_of_one_key_head_are_rows_without_heads() -> None:
    program = attention(1, 8, 512, 64, F32, j=512, groups=8, causal=True)
    found = list(sketches(program, SM_90))
    assert found and not packed(program)
    assert any(k.name == "k0.i" for s in found for k in s.knobs)


def replay_of(program: Program, sketch: Sketch, knobs: dict[str, int]) -> Program:
    made = replay(program, sketch.schedule(knobs))
    assert isinstance(made, Program)
    return made


@pytest.mark.parametrize(("batches", "heads", "room"), [(8, 64, True), (64, 32, False)])
def test_parts_are_for_the_programs_that_are_left(batches: int, heads: int, room: bool) -> None:
    """512 heads share 64 boxes, for which a device of 132 multiprocessors has room; 512 boxes of
    2,048 heads fill it."""
    name = f"decode.b{batches}h{heads}g8i1j{16384 if room else 8192}d128.bf16"
    row = next(r for r in suite("dense").rows if r.name == name)
    assert bool(list(cuts(row.program(), parse_target("sm_90")))) == room
