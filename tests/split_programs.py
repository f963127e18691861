"""Definitions with a long reduced axis, and how they are split by hand, for tests of parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import programs as P

from autosched.ir.define import algebra
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import cast, exp, input_, iota, max_, reaxis, sum_, where
from autosched.ir.rules import skip, split_reduce, tile
from autosched.ir.rules.action import Action, act
from autosched.ir.schedule import run_actions

FACTS = (("warps", 4), ("stages", 2))
Mask = Callable[[Node, Node], Node]


def wide(x: Node) -> Node:
    return cast(x, "float32")


def gemm(m: int, n: int, k: int, dtype: str = "bfloat16") -> Program:
    """gelu(x w' + bias), the weights row by row."""
    x, w = input_("x", {"m": m, "k": k}, dtype), input_("w", {"n": n, "k": k}, dtype, "weight")
    bias = input_("bias", {"n": n}, dtype, "weight")
    y = P.gelu(sum_("k", wide(x) * wide(w)) + wide(bias))
    return algebra(y=("m n", cast(y, dtype)))


def decode(
    h: int, g: int, i: int, j: int, d: int, dtype: str = "bfloat16", mask: Mask | None = None
) -> Program:
    """Attention of the last i of j positions, h heads of queries to g of keys."""
    q = input_("q", {"h": h, "i": i, "d": d}, dtype)
    k, v = (input_(n, {"g": g, "j": j, c: d}, dtype) for n, c in (("k", "d"), ("v", "e")))
    head = {"g": iota("h", h) // (h // g)}
    s = sum_("d", wide(q) * wide(reaxis(k, head))) / math.sqrt(d)
    if mask is not None:
        s = where(mask(iota("i", i) + (j - i), iota("j", j)), s, -math.inf)
    p = exp(s - max_("j", s))
    o = sum_("j", p * wide(reaxis(v, head))) / sum_("j", p)
    return algebra(o=("h i e", cast(o, dtype)))


def window(length: int) -> Mask:
    return lambda i, j: (j <= i) & (j > i - length)


def by_hand(
    program: Program, axis: str, block: int, parts: int, axes: Sequence[Any],
    reduces: Sequence[Any] = (), arrive: bool = True, facts: Sequence[Any] = FACTS,
) -> list[Action]:  # fmt: skip
    """The actions that split an axis and cut the kernels along `axes` alike, with the loops that
    masks shorten."""
    part = split_reduce.part_axis(axis)
    split = act("split_reduce", axis=axis, block=block, parts=parts)
    made = run_actions(program, [split])
    assert isinstance(made, Program), made
    states = set(split_reduce.partial_states(made, axis))
    keep = [n for n, value in enumerate(tile.candidates(made)) if value in states]
    plans = [[[*axes, [part, 1]], reduces, facts], [axes, [], facts]]
    tiled = act("tile", keep=keep, joined=True, plans=plans)
    return [split, tiled, *([act("arrive", axis=part)] if arrive else [])]


def dealt(
    program: Program, axis: str, block: int, axes: Sequence[Any], programs: int, waves: int = 0,
    reduces: Sequence[Any] = (), facts: Sequence[Any] = FACTS,
) -> list[Action]:  # fmt: skip
    """The actions that deal the tiles of a program out; facts may have a group."""
    part, group = split_reduce.part_axis(axis), dict(map(tuple, facts)).get("group", 0)
    boxes = [(a, size) for a, size, *_ in axes if size != 0]
    cut = act("stream", axis=axis, block=block, tiles=boxes, programs=programs, waves=waves,
              group=group)  # fmt: skip
    made = run_actions(program, [cut])
    assert isinstance(made, Program), made
    plans = [[[*axes, [part, 1]], reduces, facts], [axes, [], facts]]
    tiled = act("tile", parts=axis, joined=True, plans=plans)
    opened = run_actions(made, [tiled])
    assert isinstance(opened, Program), opened
    extent = next(dict(n.free)[axis] for n in walk(*program.body) if axis in dict(n.free))
    share = act("share", axis=part, blocks=-(-extent // block), programs=programs, waves=waves)
    return [cut, tiled, *skip.propose(opened), share]
