"""Canonical programs: same meaning, views gone where memory allows, equal work equal; counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from autosched.ir.canonical import canonical
from autosched.ir.count import count, factors
from autosched.ir.index import digits, renaming, tidy
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Output, Program
from autosched.ir.ops import (
    carry,
    exp,
    fold,
    get,
    input_,
    iota,
    max_,
    reaxis,
    reduce_,
    rename,
    scan,
    sum_,
    take,
    tanh,
)  # fmt: skip
from autosched.ir.prepare import prepare
from autosched.ir.views import walk_values


def program(outputs: Mapping[str, tuple[Node, tuple[str, ...]]]) -> Program:
    body = tuple(node for node, _ in outputs.values())
    inputs = tuple(n for n in walk_values(*body) if n.op == "input")
    outs = tuple(
        Output(name, dims, node.dtype, tuple(dict(node.free)[d] for d in dims))
        for name, (node, dims) in outputs.items()
    )
    return Program("algebra", inputs, outs, body)


def same_meaning(p: Program) -> Program:
    """The canonical form, after it has given the same outputs for random inputs."""
    rng = np.random.default_rng(0)
    arrays = {}
    for node in p.inputs:
        name, dims, dtype, _ = node.attr
        shape = [e for _, e in dims]
        whole = rng.integers(0, 2, shape).astype(dtype)
        arrays[name] = rng.standard_normal(shape) if dtype.startswith("float") else whole
    form = canonical(p)
    assert sorted(set(form.order)) == sorted(n.attr[0] for n in p.inputs)
    given = {
        node.attr[0]: arrays[name].reshape([e for _, e in node.attr[1]])
        for node, name in zip(form.program.inputs, form.order)
    }
    want, got = evaluate(p, arrays), evaluate(form.program, given)
    for a, b in zip(want.values(), got.values()):
        assert np.allclose(a.reshape(-1), b.reshape(-1), 1e-12, 1e-12)
    return form.program


def ops(p: Program) -> set[str]:
    return {n.op for n in walk_values(*p.body)}


def test_split_and_merge_become_dimensions() -> None:
    x, w = input_("x", {"b": 2, "s": 5, "n": 12}), input_("w", {"k": 12, "o": 7}, kind="weight")
    heads = reaxis(x, {"n": iota("h", 3) * 4 + iota("d", 4)})
    o = sum_(("h", "d"), heads * reaxis(w, {"k": iota("h", 3) * 4 + iota("d", 4)}))
    p = same_meaning(program({"o": (o, ("b", "s", "o"))}))
    assert [n.attr[1] for n in p.inputs] == [(("m", 10), ("k", 12)), (("k", 12), ("n", 7))]
    o = input_("o", {"s": 5, "h": 3, "d": 4})
    merged = reaxis(o, {"h": iota("k", 12) // 4, "d": iota("k", 12) % 4})
    y = sum_("k", merged * w)
    q = same_meaning(program({"y": (y, ("s", "o"))}))
    assert ops(q) == {"input", "map", "reduce"} and q.inputs[0].attr[1] == (("m", 5), ("k", 12))


def test_names_do_not_matter_but_memory_does() -> None:
    def gemm(m: str, n: str, k: str, flip: bool = False) -> Program:
        x = input_(f"x{m}", {m: 4, k: 6})
        w = input_(f"w{n}", {k: 6, n: 4} if not flip else {n: 4, k: 6}, kind="weight")
        return canonical(program({f"y{k}": (tanh(sum_(k, x * w)), (m, n))})).program

    assert gemm("m", "n", "k") == gemm("z", "a", "q") == gemm("k", "m", "n")
    assert gemm("m", "n", "k").key == gemm("z", "a", "q").key
    assert gemm("m", "n", "k") != gemm("m", "n", "k", flip=True)


def test_axes_stay_apart_where_a_node_tells_them_apart() -> None:
    x = input_("x", {"b": 3, "s": 4, "c": 5})
    bias = input_("p", {"s": 4, "c": 5})
    p = same_meaning(program({"y": (x + bias, ("b", "s", "c"))}))
    assert p.outputs[0].extents == (3, 20)  # b alone, (s, c) one number
    p = same_meaning(program({"y": (x * 2.0, ("b", "s", "c"))}))
    assert p.outputs[0].extents == (60,)
    p = same_meaning(program({"y": (x * 2.0, ("b", "c", "s"))}))
    assert p.outputs[0].extents == (3, 5, 4)
    there = max_("s", x) + reaxis(x, {"s": iota("c", 5) * 0 + 2})
    same_meaning(program({"y": (there, ("b", "c"))}))


def test_gram_matrix_keeps_its_view() -> None:
    x = exp(input_("x", {"i": 4, "d": 3}))
    s = sum_("d", x * rename(x, {"i": "j"}))
    p = same_meaning(program({"s": (s, ("i", "j"))}))
    assert sum(n.op == "reaxis" for n in walk_values(*p.body)) == 1


def test_shifted_reads_inner_views_and_swaps() -> None:
    x = input_("x", {"i": 6, "j": 6})
    row = sum_("j", x)
    shifted = reaxis(row, {"i": (iota("i", 6) + 1) % 6})
    swapped = reaxis(x * 2.0, {"i": iota("j", 6), "j": iota("i", 6)})
    same_meaning(program({"y": (x + shifted + swapped, ("i", "j"))}))
    twice = reaxis(reaxis(row, {"i": iota("a", 2) * 3 + iota("c", 3)}),
                   {"a": iota("t", 6) // 3, "c": iota("t", 6) % 3})  # fmt: skip
    p = same_meaning(program({"y": (twice, ("t",))}))
    assert "reaxis" not in ops(p)


def test_gathers_scans_folds_and_values_with_indices() -> None:
    table, ids = input_("t", {"v": 2, "c": 3}), input_("i", {"b": 2, "s": 4}, "int64")
    rows = take(table, "v", ids)
    same_meaning(program({"y": (rename(rows, {"s": "v"}), ("b", "v", "c"))}))
    positions = take(input_("p", {"v": 6, "c": 3}), "v", iota("s", 4, "int64"))
    p = same_meaning(program({"y": (positions, ("s", "c"))}))
    assert "take" not in ops(p)
    x = input_("x", {"t": 5, "c": 4})
    same_meaning(program({"y": (rename(scan("sum", "t", x), {"t": "u"}), ("u", "c"))}))
    top = reduce_("argmax", "c", x, iota("c", 4, "int32"))
    same_meaning(program({"v": (get(top, 0), ("t",)), "n": (get(top, 1), ("t",))}))
    state = carry("s", "float32", {"c": 4})
    run = fold("t", [(0, 5)], {"s": (sum_("t", x), state * 0.5 + x)})
    same_meaning(program({"y": (get(run, 0), ("c",))}))


def test_outputs_alike_share_their_axes() -> None:
    x = input_("x", {"m": 8, "k": 6})
    outs = {f"y{i}": (sum_("k", x * input_(f"w{i}", {"k": 6, f"n{i}": 6}, kind="weight")),
                      ("m", f"n{i}")) for i in range(3)}  # fmt: skip
    p = same_meaning(program(outs))
    assert len({frozenset(n.free) for n in walk_values(*p.body) if n.op == "reduce"}) == 1


def test_prepare_moves_renamings_to_the_producer_and_constants_out_of_sums() -> None:
    x = input_("x", {"m": 4, "c": 6})
    w = input_("w", {"c": 6, "n": 6}, kind="weight")
    y = x + rename(sum_("c", x * w), {"n": "c"})
    (new,) = prepare((y,))
    assert not any(renaming(n) for n in walk_values(new) if n.src[:1] and n.src[0].op == "reduce")
    assert new.src[1].op == "reduce" and set(new.names) == {"m", "c"}
    q, k = input_("q", {"i": 3, "d": 4}), input_("k", {"j": 5, "d": 4})
    s = sum_("d", q * 0.5 * (k / 4.0))
    (new,) = prepare((s,))
    assert new.op == "map" and new.src[1].attr[0] == 0.125 and factors(new.src[0]) == (q, k)
    same = sum_("d", exp(q) * 0.5)  # part of a value that may be stored
    assert prepare((same,)) == (same,)


def test_indices() -> None:
    h, d, k = iota("h", 12), iota("d", 32), iota("k", 384)
    assert digits(h * 32 + d, 384) == (("h", 12), ("d", 32))
    assert digits(d * 12 + h, 384) == (("d", 32), ("h", 12))
    for wrong in (h * 32 + d + 1, h * 16 + d, h * 32, k // 2):
        assert digits(wrong, 384) is None
    assert tidy((k // 32) * 32 + k % 32) is k and tidy((h * 32 + d) // 32) is h
    assert tidy((k // 32) * 64 + k % 32 * 2) is tidy(k * 2)


@pytest.mark.parametrize(("m", "n", "k"), [(128, 1536, 384), (1, 8, 4)])
def test_work_of_a_contraction(m: int, n: int, k: int) -> None:
    x, w = input_("x", {"m": m, "k": k}), input_("w", {"k": k, "n": n}, kind="weight")
    work = count(program({"y": (tanh(sum_("k", x * w) + 1.0), ("m", "n"))}))
    assert work.contraction_flops == 2 * m * n * k and work.flops == (2 * k + 1) * m * n
    assert work.special == m * n and work.bytes == 4 * (m * k + k * n + m * n)


def test_work_of_gathers_and_recurrences() -> None:
    rows = take(input_("t", {"v": 1000, "c": 4}), "v", input_("i", {"s": 3}, "int64"))
    assert count(program({"y": (rows, ("s", "c"))})).read_bytes == 3 * 4 * 4 + 3 * 8
    x = input_("x", {"t": 7, "c": 4})
    state = carry("s", "float32", {"c": 4})
    run = get(fold("t", [(0, 7)], {"s": (sum_("t", x) * 0.0, state * 0.5 + x)}), 0)
    assert count(program({"y": (run, ("c",))})).flops == 28 + 4 + 28 + 28
