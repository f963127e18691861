"""Statements of the tile level: loops, loads, stores and memory, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tile_programs import gemm_tile

from autosched.ir.interp import InterpError, evaluate
from autosched.ir.node import Node, Output, Program
from autosched.ir.ops import (
    buffer,
    const,
    forall,
    input_,
    iota,
    kernel,
    load,
    minimum,
    store,
    where,
)

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def draw(program: Program) -> dict[str, Array]:
    return {n.attr[0]: RNG.standard_normal([e for _, e in n.attr[1]]) for n in program.inputs}


def close(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_knobs_must_be_bound() -> None:
    program = gemm_tile(3, 4, 5)
    with pytest.raises(InterpError, match="subst"):
        evaluate(program, draw(program))


def tile(*body: Node, size: int = 4, inputs: tuple[Node, ...] = ()) -> Program:
    out = (Output("y", ("m",), "float32", (size,)),)
    return Program("tile", inputs, out, (kernel("k", body),))


Y = buffer("y", [4], "float32", "output")
M = iota("m", 4)
IN = input_("x", {"m": 4})
DATA = {"x": np.arange(4.0)}


def loop(body: Node | list[Node], lo: int = 0, hi: int = 4, bind: str = "serial") -> Node:
    return forall("m", lo, hi, bind, body if isinstance(body, list) else [body])


@pytest.mark.parametrize("bind", ["grid", "serial", "unroll", "lane"])
def test_loops_of_every_kind(bind: str) -> None:
    program = tile(loop(store(Y, load(IN, [3 - M]) * 2.0, [M]), bind=bind), inputs=(IN,))
    close(evaluate(program, DATA)["y"], DATA["x"][::-1] * 2)


def test_elements_that_are_never_stored() -> None:
    program = tile(loop(store(Y, load(IN, [M]), [M]), hi=3), inputs=(IN,))
    with pytest.raises(InterpError, match=r"1 elements .* \(3,\): never stored"):
        evaluate(program, DATA)
    with pytest.raises(InterpError, match="no kernel stores"):
        evaluate(tile(inputs=(IN,)), DATA)


def test_loads_out_of_range() -> None:
    past = load(IN, [M + 1])
    with pytest.raises(InterpError, match=r"load .*'x' dimension 0 of extent 4 is accessed at"):
        evaluate(tile(loop(store(Y, past, [M])), inputs=(IN,)), DATA)
    masked = load(IN, [M + 1], mask=M < 3, fill=const(-1.0, "float32"))
    got = evaluate(tile(loop(store(Y, masked, [M])), inputs=(IN,)), DATA)["y"]
    close(got, np.array([1.0, 2, 3, -1]))


def test_stores_out_of_range() -> None:
    with pytest.raises(InterpError, match="store"):
        evaluate(tile(loop(store(Y, load(IN, [M]), [M + 1])), inputs=(IN,)), DATA)
    five = iota("m", 5)
    masked = store(Y, load(IN, [minimum(five, 3)]), [five], mask=five < 4)
    close(evaluate(tile(loop(masked, hi=5), inputs=(IN,)), DATA)["y"], DATA["x"])


def test_stale_scratch() -> None:
    scratch = buffer("s", [4], "float32", "scratch")
    fill = loop(store(scratch, load(IN, [M]) * 2.0, [M]))
    read = loop(store(Y, load(scratch, [M]), [M]))
    close(evaluate(tile(fill, read, inputs=(IN,)), DATA)["y"], DATA["x"] * 2)
    with pytest.raises(InterpError, match="'y' gets a value"):
        evaluate(tile(read, fill, inputs=(IN,)), DATA)
    some = loop(store(scratch, load(IN, [M]) * 2.0, [M]), hi=3)
    with pytest.raises(InterpError, match="'y' gets a value"):
        evaluate(tile(some, read, inputs=(IN,)), DATA)
    masked = loop(store(Y, where(M < 3, load(scratch, [M]), 5.0), [M]))
    close(evaluate(tile(some, masked, inputs=(IN,)), DATA)["y"], np.array([0.0, 2, 4, 5]))


def test_iterations_do_not_see_each_other() -> None:
    cell = buffer("s", [1], "float32", "scratch")
    own = [store(cell, load(IN, [M]), [0]), store(Y, load(cell, [0]), [M])]
    close(evaluate(tile(loop(own), inputs=(IN,)), DATA)["y"], DATA["x"])
    with pytest.raises(InterpError, match="'y' gets a value"):
        evaluate(tile(loop(own[::-1]), inputs=(IN,)), DATA)


def test_addresses_tell_values_apart() -> None:
    with pytest.raises(InterpError, match="varies along"):
        evaluate(tile(loop(store(Y, load(IN, [M]), [0]), bind="lane"), inputs=(IN,)), DATA)


def test_boxes_with_strides() -> None:
    box = load(IN, [0], [("t", 2, 2)])
    put = store(Y, box, [1], [("t", 2, 2)])
    rest = store(Y, box * 10.0, [0], [("t", 2, 2)])
    got = evaluate(tile(put, rest, inputs=(IN,)), DATA)["y"]
    close(got, np.array([0.0, 0, 20, 2]))
