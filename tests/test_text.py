"""Text of programs: it parses back to the same object, and bad text is refused by its line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import (
    algebra,
    attention,
    gemm,
    layernorm,
    narrow,
    rmsnorm,
    rotary,
    softmax,
    swiglu,
)
from tile_programs import attention_tile, delta_algebra, delta_tile, gemm_tile

from autosched.ir.extent import subst
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    buffer,
    cast,
    const,
    forall,
    input_,
    iota,
    kernel,
    knob,
    load,
    map_,
    reduce_,
    scan,
    slice_,
    store,
    take,
    where,
)
from autosched.ir.text import ParseError, node_text, parse, to_text

PROGRAMS = {
    "gemm": gemm(5, 7, 3),
    "attention": attention(1, 4, 8, 4, groups=2),
    "layernorm": layernorm(3, 4),
    "rmsnorm": rmsnorm(3, 4),
    "softmax": softmax(3, 4),
    "swiglu": swiglu(3, 4, 5),
    "rotary": rotary(1, 2, 4, 6),
    "narrow": narrow(3, 4),
    "delta": delta_algebra(1, 2, 5, 3, 4),
    "gemm_tile": gemm_tile(5, 7, 3),
    "attention_tile": attention_tile(1, 4, 8, 4, 2),
    "delta_tile": delta_tile(1, 2, 5, 3, 4),
    "gemm_bound": subst(gemm_tile(5, 7, 3), {"MR": 2, "NR": 4}),
    "attention_bound": subst(attention_tile(1, 4, 8, 4, 2), {"BM": 4, "BN": 2}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_text_parses_back(name: str) -> None:
    program = PROGRAMS[name]
    text = to_text(program)
    assert parse(text) == program
    assert to_text(parse(text)) == text


def of(**values: Node) -> Program:
    return algebra({n: v.names for n, v in values.items()}, **values)


def test_odd_values_and_names() -> None:
    x = input_("odd name: /x.0", {"an axis": 3, "inf": 4, "load": 2})
    y = x * const(math.inf, "float32") + const(math.nan, "float32") - const(-math.inf, "float32")
    z = where(iota("inf", 4, "int64") > 2, y, -0.0)
    odd = take(z, "load", iota("load", 3) - iota("an axis", 3))
    program = of(y=cast(odd, "float8_e4m3"), w=map_("pow", cast(x, "float64"), 2.5))
    assert parse(to_text(program)) == program


def test_every_op_and_attribute() -> None:
    x = input_("x", {"a": 8, "b": 4}, "int8", "weight")
    n, wide = knob("N"), cast(x, "int32")
    best = reduce_("argmax", "a", wide, iota("a", 8))
    sums = scan("sum", "b", wide, exclusive=True, reverse=True)
    part = slice_(sums, "a", n * 2 + 1, "a.i", n)
    program = of(value=Node("get", (best,), (1,)), sums=sums, part=part, typed=cast(x, "uint8") + 3)
    assert parse(to_text(program)) == program
    out = buffer("out", (n + 1, 8), "int8", "output")
    box = load(x, [n, 0], [("i", 4, 2), None], iota("i", 4) < n, const(-1, "int8"))
    put = store(out, box, [iota("s", 2), 1], [("i", 4, 1), None], map_("ne", iota("i", 4), n))
    loop = forall("s", n // 2, n, "persistent", [put, put])
    tile = Program("tile", (x,), (), (kernel("one", [loop], {"q": "lane"}), kernel("two", [])))
    assert parse(to_text(tile)) == tile


def test_extents_that_are_constant_nodes_stay_nodes() -> None:
    x = iota("a", const(4, "int32"))
    assert parse(to_text(of(y=x))).body[0] is x
    assert iota("a", 4) is not x


def test_one_axis_with_two_extents() -> None:
    program = of(y=reduce_("sum", "a", iota("a", 4)) + reduce_("sum", "a", iota("a", 5)))
    assert parse(to_text(program)) == program


LEAVES = st.one_of(
    st.sampled_from([iota("x", 5), iota("y", 4), knob("K"), knob("odd knob")]),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: const(n, "int32")),
)
BINARY = ["add", "sub", "mul", "floordiv", "mod", "min", "max", "truncdiv", "shl", "bitand"]
INTS = st.recursive(
    LEAVES,
    lambda c: st.one_of(
        st.builds(map_, st.sampled_from(BINARY), c, c),
        st.builds(map_, st.just("neg"), c),
        st.builds(
            lambda a, b, fn: where(map_(fn, a, b), a, b),
            c, c, st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]),
        ),
    ),
    max_leaves=40,
)  # fmt: skip
FLOATS = st.floats(width=32).map(lambda v: const(v, "float32"))


@settings(max_examples=200, deadline=None)
@given(INTS, FLOATS, st.sampled_from(["and", "or", "xor"]))
def test_random_expressions_parse_back(node: Node, number: Node, fn: str) -> None:
    mask = map_(fn, node < 3, map_("not", node >= 7))
    x = input_("x", {"x": 5, "y": 4})
    program = of(y=where(mask, x * number, number - x) + x * 0.0, z=node + iota("x", 5))
    assert parse(to_text(program)) == program


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("program algebra", "progam algebra", 1, "expected 'program'"),
        ("f32[m=5, k=3]", "f99[m=5, k=3]", 2, "unknown type"),
        ("= %x * %w", "= %x * %nope", 5, "no value yet"),
        ("= %x * %w", "= %x *", 5, "expected a name"),
        ("= %x * %w", "= %x * %w %w", 5, "unexpected '%w'"),
        ("= %x * %w", "= %x $ %w", 5, "unexpected"),
        ("= %x * %w", "= %x ; %w", 5, "cannot read"),
        ("= %x * %w", "= %x < %w", 5, "the type is bool"),
        ("= %x * %w", "= q * %w", 5, "no axis"),
        ("reduce sum [k]", "reduce sum [q]", 6, "no axis 'q'"),
        ("reduce sum [k]", "reduce nothing [k]", 6, "unknown monoid"),
        ("%5: f32", "%4: f32", 7, "defined twice"),
        ("%5: f32", "  %5: f32", 7, "indentation"),
        ("\nout y", "\nstore y", 13, "expected a %name"),
    ],
)
def test_bad_text_names_its_line(before: str, after: str, line: int, message: str) -> None:
    text = to_text(gemm(5, 7, 3))
    assert before in text
    with pytest.raises(ParseError, match=message) as caught:
        parse(text.replace(before, after, 1))
    assert caught.value.line == line
    assert str(caught.value).startswith(f"line {line}:")


def test_text_that_ends_early() -> None:
    text = to_text(PROGRAMS["delta"])
    with pytest.raises(ParseError, match=r"ends too early|expected 'yield'"):
        parse(text[: text.index("  yield")])
    with pytest.raises(ParseError):
        parse("")


def test_bare_nodes_have_text() -> None:
    x = input_("x", {"m": 3})
    text = node_text(x * 2.0 + 1.0)
    assert "= %x * 2.0" in text
    assert "f32[m=3]" in text
