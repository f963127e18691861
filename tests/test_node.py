"""Interning, inference, extents and content keys."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import algebra, attention, gemm
from tile_programs import attention_tile, delta_tile, gemm_tile

from autosched.ir.extent import (
    as_extent,
    as_node,
    evaluate_extent,
    ext_add,
    ext_cdiv,
    ext_floordiv,
    ext_min,
    ext_mul,
    ext_product,
    knobs_of,
    simplify,
    subst,
)
from autosched.ir.key import content_key
from autosched.ir.node import IRError, Node, Program, replace_nodes, rewrite, walk
from autosched.ir.ops import (
    buffer,
    carry,
    const,
    dot,
    exp,
    fold,
    forall,
    get,
    input_,
    iota,
    kernel,
    knob,
    load,
    map_,
    max_,
    reduce_,
    rename,
    store,
    sum_,
    take,
)
from autosched.ir.text import parse, to_text


def test_equal_nodes_are_the_same_object() -> None:
    x = input_("x", {"m": 3, "k": 4})
    assert sum_("k", x * 2.0) is sum_("k", x * 2.0)
    assert x + 1.0 is not 1.0 + x


def test_constants_of_different_kind_or_sign_stay_apart() -> None:
    made = [const(1, "int32"), const(1.0, "float32"), const(True, "bool"), const(1, "int64"),
            const(0.0, "float32"), const(-0.0, "float32")]  # fmt: skip
    assert len(set(made)) == len(made)
    assert const(float("nan"), "float32") is const(float("nan"), "float32")


def test_unused_nodes_are_forgotten() -> None:
    gc.collect()  # what other tests left behind must not vanish in between
    before = len(Node._table)
    made = [input_(f"unused{n}", {"m": 3}) for n in range(100)]
    assert len(Node._table) >= before + 100
    del made
    gc.collect()
    assert len(Node._table) <= before


def test_nodes_are_immutable() -> None:
    with pytest.raises(AttributeError):
        const(1, "int32").op = "iota"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x, y: x + rename(y, {"n": "m"}), "extent"),
        (lambda x, y: map_("nothing", x), "unknown scalar"),
        (lambda x, y: map_("where", x, y, y), "condition"),
        (lambda x, y: x + iota("m", 3), "types differ"),
        (lambda x, y: sum_("q", x), "no axis"),
        (lambda x, y: reduce_("argmax", "k", x), "components"),
        (lambda x, y: take(x, "k", y), "index"),
        (lambda x, y: dot(x, y, "k"), "not shared"),
        (lambda x, y: load(x, [0]), "another rank"),
        (lambda x, y: forall("m", 0, 3, "serial", [x]), "statements"),
        (lambda x, y: Node("get", (x,), (3,)), "get"),
    ],
)
def test_wrong_nodes_are_refused(build: object, message: str) -> None:
    x, y = input_("x", {"m": 3, "k": 4}), input_("y", {"n": 5})
    with pytest.raises(IRError, match=message):
        build(x, y)  # type: ignore[operator]


def test_stacked_outputs_have_the_step_axis() -> None:
    x = input_("x", {"t": 4, "d": 2})
    state = carry("s", "float32", {"d": 2})
    loop = fold("t", [(0, 4)], {"s": (const(0.0, "float32"), state + x)}, [state])
    assert get(loop, 1).names == ("d", "t")
    assert get(loop, 0).names == ("d",)


def test_rewrite_keeps_what_does_not_change() -> None:
    (value,) = gemm(3, 4, 5).body
    assert rewrite(value, lambda n: n) is value
    x = next(n for n in walk(value) if n.op == "input" and n.attr[0] == "x")
    changed = replace_nodes(value, {x: exp(x)})
    assert changed is not value
    assert replace_nodes(changed, {exp(x): x}) is value


# ---- extents ----------------------------------------------------------------------------------


def test_extents_fold_integers() -> None:
    bm = knob("BM")
    assert ext_cdiv(129, 64) == 3
    assert ext_product([2, 3, 4]) == 24
    assert ext_product([]) == 1
    assert ext_mul(1, bm) is bm
    assert ext_add(bm, 0) is bm
    assert ext_floordiv(ext_mul(bm, 8), bm) == 8
    assert ext_min(ext_mul(bm, 0), 3) == 0
    assert as_extent(as_node(7)) == 7


def test_extents_are_evaluated_over_columns() -> None:
    count = ext_cdiv(1000, knob("BM"))
    got = evaluate_extent(count, {"BM": np.array([1, 64, 999, 1000, 2000])})
    np.testing.assert_array_equal(got, [1000, 16, 2, 1, 1])
    assert evaluate_extent(count, {"BM": 3}) == 334
    with pytest.raises(IRError, match="BM"):
        evaluate_extent(count, {})


def test_division_by_a_symbolic_tile() -> None:
    bm = knob("BM")
    o, i = iota("m.o", ext_cdiv(100, bm)), iota("m.i", bm)
    assert simplify((o * bm + i) // bm) is o
    assert simplify((o * bm + i) % bm) is i


X, Y, Z = iota("x", 5), iota("y", 4), iota("z", 8)
LEAVES = st.one_of(st.sampled_from([X, Y, Z]), st.integers(-9, 9).map(lambda n: const(n, "int32")))


def _grow(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    sums = st.builds(map_, st.sampled_from(["add", "sub", "mul", "min", "max"]), children, children)
    divisor = st.integers(1, 12).map(lambda n: const(n, "int32"))
    divided = st.builds(map_, st.sampled_from(["floordiv", "mod"]), children, divisor)
    return st.one_of(sums, divided, st.builds(lambda a: -a, children))


INDEX = st.recursive(LEAVES, _grow, max_leaves=12)
COMPARED = st.builds(map_, st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), INDEX, INDEX)
MASK = st.builds(map_, st.sampled_from(["and", "or"]), COMPARED, COMPARED)


@settings(max_examples=300, deadline=None)
@given(st.one_of(INDEX, COMPARED, MASK))
def test_simplify_keeps_the_value(node: Node) -> None:
    grid = np.meshgrid(np.arange(5), np.arange(4), np.arange(8))
    env = dict(zip("xyz", (g.reshape(-1) for g in grid)))
    want, got = evaluate_extent(node, env), evaluate_extent(simplify(node), env)
    np.testing.assert_array_equal(np.broadcast_to(got, env["x"].shape),
                                  np.broadcast_to(want, env["x"].shape))  # fmt: skip
    assert simplify(simplify(node)) is simplify(node)


def test_subst_binds_knobs_everywhere() -> None:
    program = gemm_tile(7, 19, 5)
    assert knobs_of(program) == {"MR", "NR"}
    half = subst(program, {"MR": 2, "unknown": 3})
    assert knobs_of(half) == {"NR"}
    whole = subst(half, {"NR": 4})
    assert knobs_of(whole) == frozenset()
    assert whole == subst(program, {"MR": 2, "NR": 4})
    assert subst(whole, {"MR": 9}) == whole


# ---- keys -------------------------------------------------------------------------------------


def _softmax(names: dict[str, str], inner: str, x_name: str = "x") -> Program:
    """Softmax with names of axes exchanged; `inner` is the axis that the maximum runs over."""
    t, c = names["t"], names["c"]
    x = input_(x_name, {t: 3, c: 4})
    top = max_(inner, rename(x, {c: inner}))
    p = exp(x - top)
    return algebra({"y": (t, c)}, y=p / sum_(c, p))


def test_keys_do_not_depend_on_names() -> None:
    plain = _softmax({"t": "t", "c": "c"}, "c")
    swapped = _softmax({"t": "zz", "c": "a"}, "a", "other")
    assert plain.key == swapped.key
    assert len(plain.key) == 64


def test_keys_tell_bound_axes_by_scope() -> None:
    first = _softmax({"t": "t", "c": "c"}, "j")
    second = _softmax({"t": "t", "c": "c"}, "k")
    assert first.key == second.key


def test_keys_tell_contents_apart() -> None:
    base = _softmax({"t": "t", "c": "c"}, "c")
    x = input_("x", {"t": 3, "c": 4})
    turned = Program("algebra", base.inputs, (base.outputs[0],), base.body)
    assert turned.key == base.key
    out = base.outputs[0]
    swapped_memory = algebra({"y": ("c", "t")}, y=base.body[0])
    assert out.dims != swapped_memory.outputs[0].dims
    others = [
        swapped_memory,
        algebra({"y": ("t", "c")}, y=exp(x - max_("t", x))),
        gemm(3, 4, 5), gemm(3, 4, 6), attention(1, 2, 3, 4), attention(1, 2, 3, 4, mask=None),
        gemm_tile(3, 4, 5), attention_tile(1, 2, 3, 4), delta_tile(1, 2, 3, 4, 5),
    ]  # fmt: skip
    keys = [content_key(p) for p in (base, *others)]
    assert len(set(keys)) == len(keys)


def test_keys_tell_which_input_is_which() -> None:
    x, y = input_("x", {"m": 3}), input_("y", {"m": 3})
    one = algebra({"z": ("m",)}, z=x - y)
    other = Program("algebra", one.inputs[::-1], one.outputs, one.body)
    assert one.key != other.key
    renamed = algebra({"q": ("m",)}, q=input_("a", {"m": 3}) - input_("b", {"m": 3}))
    assert one.key == renamed.key


def test_keys_tell_which_inner_axis_is_the_lane() -> None:
    x = input_("x", {"a": 4, "b": 4})
    value = load(x, [iota("a", 4), iota("b", 4)])
    total = max_("a", sum_("b", value))
    put = store(buffer("y", [1], "float32", "output"), total, [0])
    made = [kernel("k", [put], binds) for binds in ({"a": "lane"}, {"b": "lane"}, None)]
    keys = {content_key(Program("tile", (x,), (), (k,))) for k in made}
    assert len(keys) == 3


def test_tile_keys_do_not_depend_on_names() -> None:
    program = gemm_tile(7, 19, 5)
    text = to_text(program)
    for old, new in (("m.o", "m.p"), ("n.l", "n.k"), ("acc", "total"), ("x.panels", "rows")):
        text = text.replace(old, new)
    assert parse(text) != program
    assert content_key(parse(text)) == content_key(program)


def test_threads_build_the_same_nodes() -> None:
    """Equal nodes are one object, whichever thread came first."""
    threads, chains = 4, 2000
    start = threading.Barrier(threads)
    before = sys.getswitchinterval()

    def build(_: int) -> list[Node]:
        start.wait()
        built = [const(1.0, "float32")]
        for n in range(chains):
            built.append(map_("add", built[-1], const(float(n), "float32")))
        return built

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            first, *others = pool.map(build, range(threads))
    finally:
        sys.setswitchinterval(before)
    assert all(a is b for other in others for a, b in zip(first, other))
