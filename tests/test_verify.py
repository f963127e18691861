"""Every row of the specification has a program that it rejects; sound programs pass all rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from programs import algebra, attention, gemm, rotary, softmax
from tile_programs import attention_tile, delta_algebra, delta_tile, gemm_tile

from autosched.ir.extent import subst
from autosched.ir.node import Node, Output, Pack, Program
from autosched.ir.ops import (
    buffer,
    carry,
    cast,
    const,
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
    place,
    reduce_,
    store,
    sum_,
)
from autosched.ir.verify import ROWS, VerifyError, problems, verify

F32 = "float32"
X = input_("x", {"m": 4})
W = input_("w", {"m": 4}, kind="weight")
Y = buffer("y", [4], F32, "output")
SCRATCH = buffer("s", [4], F32, "scratch")
M, N = iota("m", 4), iota("n", 4)
OUT = Output("y", ("m",), F32, (4,))


def of(value: Node, *dims: str) -> Program:
    return algebra({"y": dims or value.names}, y=value)


def tile(*body: Node, **changes: object) -> Program:
    program = Program("tile", (X, W), (OUT,), (kernel("k", body),))
    return replace(program, **changes)  # type: ignore[arg-type]


def loop(
    body: Node | list[Node], axis: str = "m", hi: Node | int = 4, bind: str = "serial"
) -> Node:
    return forall(axis, 0, hi, bind, body if isinstance(body, list) else [body])


GOOD = loop(store(Y, load(X, [M]), [M]))
PANEL = buffer("p", [4], F32, "packed")


def _stray_carry() -> Program:
    return of(carry("s", F32, {"m": 4}) + 1.0)


def _wrong_carry() -> Program:
    state = carry("s", F32, {"m": 4, "q": 2})
    loose = fold("t", [(0, 3)], {"s": (const(0.0, F32), sum_("q", state))})
    return of(get(loose) + X)


def _inner_fold_of_the_same_axis() -> Node:
    outer, inner = carry("a", F32, {}), carry("b", F32, {})
    row = fold("m", [(0, 4)], {"b": (const(0.0, F32), inner + outer + load(X, [M]))})
    return get(fold("m", [(0, 4)], {"a": (const(0.0, F32), get(row) * 0.5)}))


REJECTED: list[tuple[str, Program]] = [
    ("LEVEL", replace(of(X), level="middle")),
    ("INPUT", Program("algebra", (), (OUT,), (X + 1.0,))),
    ("INPUT", Program("algebra", (X, X), (OUT,), (X + 1.0,))),
    ("INPUT", Program("algebra", (X, M), (OUT,), (X + 1.0,))),
    ("OUTPUT", Program("algebra", (X,), (OUT, OUT), (X + 1.0, X))),
    ("OUTPUT", Program("algebra", (X,), (replace(OUT, extents=(4, 4)),), (X,))),
    ("TYPE", of(iota("m", 4, "int33"))),
    ("SCALAR_TYPE", of(map_("exp", M))),
    ("SCALAR_TYPE", of(map_("and", M, M))),
    ("SCALAR_TYPE", of(map_("shl", X, X))),
    ("MONOID_TYPE", of(sum_("m", M < 3))),
    ("MONOID_TYPE", of(get(reduce_("argmax", "m", X, X), 1))),
    ("CARRY", _stray_carry()),
    ("CARRY", _wrong_carry()),
    ("EXTENT", of(iota("q", -1))),
    ("EXTENT", of(iota("q", M + 1))),
    ("NAME", of(sum_("a b", input_("z", {"a b": 3})))),
    ("INDEX_TYPE", tile(loop(store(Y, load(X, [cast(M, F32)]), [M])))),
    ("INDEX_TYPE", tile(loop(store(Y, load(X, [M], mask=M), [M])))),
    ("INDEX_TYPE", tile(loop(store(Y, load(X, [M], mask=M < 3, fill=M), [M])))),
    ("ALGEBRA_OP", of(place(X, "register"))),
    ("ALGEBRA_OP", of(X * cast(knob("K"), F32))),
    ("ALGEBRA_OUTPUT", Program("algebra", (X,), (OUT,), (X, X))),
    ("ALGEBRA_OUTPUT", Program("algebra", (X,), (OUT,), (cast(X, "float16"),))),
    ("ALGEBRA_OUTPUT", Program("algebra", (X,), (replace(OUT, dims=("n",)),), (X,))),
    ("TOP_LEVEL", tile(body=(GOOD,))),
    ("TOP_LEVEL", tile(kernel("inner", [GOOD]))),
    ("HANDLE", tile(loop(store(Y, load(X, [M]) + X, [M])))),
    ("BUFFER", tile(GOOD, loop(store(buffer("y", [5], F32, "output"), load(X, [M]), [M])))),
    ("BUFFER", tile(GOOD, outputs=(replace(OUT, extents=(5,)),))),
    ("BUFFER", tile(GOOD, loop(store(buffer("x", [4], F32, "scratch"), load(X, [M]), [M])))),
    ("STORED", tile()),
    ("STORED", tile(GOOD, loop(store(buffer("z", [4], F32, "output"), load(X, [M]), [M])))),
    ("STORED", tile(GOOD, loop(store(PANEL, load(X, [M]), [M])))),
    ("COVERED", tile(loop(store(Y, load(X, [iota("q", 3)]), [iota("q", 3)]), "q", 3))),
    ("COVERED", tile(loop(store(Y, load(X, [0]), [iota("q", 3) + 1]), "q", 3))),
    ("STORED_ONCE", tile(GOOD, loop(store(Y, load(X, [M]) * 2.0, [M])))),
    ("FRESH", tile(loop(store(Y, load(SCRATCH, [M]), [M])))),
    ("FRESH", tile(loop(store(Y, load(Y, [M]) + 1.0, [M])))),
    ("PACK", tile(loop(store(Y, load(PANEL, [M]), [M])))),
    ("PACK", tile(GOOD, packs=(Pack(PANEL, ("m",), X),))),
    ("PACK", tile(GOOD, packs=(Pack(SCRATCH, ("m",), W),))),
    ("PACK", tile(GOOD, packs=(Pack(PANEL, ("n",), W),))),
    ("LANE", tile(loop(loop(store(Y, load(X, [M]), [M])), "q", 4, "lane"))),
    ("LANE", tile(loop(store(Y, load(X, [iota("q", 3)]), [iota("q", 3)]), "q", 3, "lane"))),
    ("GRID", tile(loop(loop(store(Y, load(X, [M]), [M]), bind="grid"), "q"))),
    ("ARRIVE", tile(loop(GOOD, "n", 4, "arrive"))),
    ("SHARE", tile(loop(GOOD, "n", 4, "share"))),
    ("SHADOW", tile(loop(GOOD))),
    ("SHADOW", tile(loop(store(Y, _inner_fold_of_the_same_axis(), [N]), "n"))),
    ("BOUNDS", tile(loop(loop(store(Y, load(X, [M]), [M]), "m", N + 1), "n", 4, "lane"))),
    ("BOUNDS", tile(loop(store(Y, get(fold("m", [(0, N)], {"s": (
        const(0.0, F32), carry("s", F32, {}) + load(X, [M]))})), [N]), "n", 4, "lane"))),
    ("RACE", tile(loop(GOOD, "n", 4, "grid"))),
    ("RACE", tile(loop(store(SCRATCH, load(X, [N]), [0]), "n", 4, "lane"),
                  loop(store(Y, load(SCRATCH, [0]), [M])))),
    ("CARRIED", tile(loop([store(SCRATCH, load(X, [M]), [M]),
                           store(Y, load(SCRATCH, [M - 1], mask=M > 0), [M])]))),
]  # fmt: skip


@pytest.mark.parametrize(("code", "program"), REJECTED, ids=[c for c, _ in REJECTED])
def test_rows_reject(code: str, program: Program) -> None:
    found = problems(program)
    assert code in {p.code for p in found}, found
    with pytest.raises(VerifyError, match=code):
        verify(program)


def test_open_knobs_are_rejected_where_a_concrete_program_is_wanted() -> None:
    program = gemm_tile(5, 7, 3)
    assert not problems(program)
    assert {p.code for p in problems(program, concrete=True)} == {"KNOB"}
    assert not problems(subst(program, {"MR": 2, "NR": 4}), concrete=True)


def test_every_row_rejects_something() -> None:
    assert {r.code for r in ROWS} | {"LEVEL"} == {c for c, _ in REJECTED} | {"KNOB"}
    assert len({r.code for r in ROWS}) == len(ROWS)
    assert all(len(r.rule) < 70 for r in ROWS)


@pytest.mark.parametrize(
    "program",
    [
        tile(GOOD),
        gemm(5, 7, 3),
        attention(1, 4, 5, 3, groups=2),
        softmax(3, 4),
        rotary(1, 2, 3, 4),
        delta_algebra(1, 2, 5, 3, 4),
        attention_tile(1, 4, 8, 4, 2),
        delta_tile(1, 2, 5, 3, 4),
        subst(attention_tile(1, 4, 8, 4, 2), {"BM": 4, "BN": 2}),
        subst(delta_tile(1, 2, 5, 3, 4), {"C": 4}),
        tile(loop([store(SCRATCH, load(X, [M]), [0]), store(Y, load(SCRATCH, [0]), [M])],
                  bind="grid")),
        of(max_("m", X)),
    ],
)  # fmt: skip
def test_sound_programs_pass(program: Program) -> None:
    assert problems(program) == ()
    verify(program)


def test_problems_say_where() -> None:
    (problem,) = problems(tile(loop(store(Y, load(SCRATCH, [M]), [M]))))
    assert problem.where == "kernel k / forall m serial / store y"
    assert "'s'" in str(problem)
