"""Evaluating a reduction in blocks along one dimension where an operand would be too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autosched.ir.arrays import Named
from autosched.ir.bound import Bound, Env, sizes_of
from autosched.ir.gather import Dim
from autosched.ir.node import Node

if TYPE_CHECKING:
    from autosched.ir.evaluator import Evaluator

BLOCK_ELEMENTS = 1 << 26  # operands above this size are cut (512 MiB)


def streamed(
    machine: Evaluator,
    whole: Callable[[Env], tuple[Named, ...]],
    operands: Sequence[Node],
    monoid: str,
    dtypes: Sequence[str],
    env: Env,
    gone: tuple[Dim, ...],
) -> tuple[Named, ...]:
    """`whole(env)`, the monoid over the dimensions `gone` of the operands, block by block.

    A block is forgotten before the next one; blocks along a dimension of the result are joined,
    those along a dimension in `gone` are combined.
    """
    dim, size, pieces = _blocks(operands, env)
    if pieces == 1:
        return whole(env)
    outs = []
    for n in range(pieces):
        lo, hi = size * n // pieces, size * (n + 1) // pieces
        with machine.frame() as level:
            part = _cut(machine, env, dim, (lo, hi), level)
            outs.append(streamed(machine, whole, operands, monoid, dtypes, part, gone))
    if dim not in gone:
        return tuple(machine.xp.concatenate(list(parts), dim) for parts in zip(*outs))
    total = outs[0]
    for more in outs[1:]:
        total = machine.xp.merge(monoid, dtypes, total, more)
    return total


def _blocks(operands: Sequence[Node], env: Env) -> tuple[Dim, int, int]:
    """The dimension to cut, its length and the number of pieces: one where everything fits."""
    worst: dict[Dim, int] = {}
    for node in operands:
        sizes = sizes_of(env[a] for a in node.names if a in env)
        if math.prod(sizes.values()) > math.prod(worst.values()):
            worst = sizes
    total = math.prod(worst.values())
    if not worst or total <= BLOCK_ELEMENTS:
        return ("", 0), 1, 1
    dim = max(worst, key=lambda d: worst[d])
    return dim, worst[dim], min(worst[dim], -(-total // BLOCK_ELEMENTS))


def _cut(machine: Evaluator, env: Env, dim: Dim, part: tuple[int, int], level: int) -> Env:
    """`env` with the part [lo, hi) of everything along a dimension."""
    done: dict[int, Bound] = {}

    def cut(x: Bound) -> Bound:
        if x.uid not in done:
            fixed = {d for a in x.mixed & set(x.at) for d in x.at[a].named.dims}
            touched = dim in x.named.dims and dim not in fixed
            at = {a: b if a in x.mixed else cut(b) for a, b in x.at.items()}
            named = machine.xp.cut(x.named, dim, *part) if touched else x.named
            moved = touched or any(at[a] is not b for a, b in x.at.items())
            done[x.uid] = machine.bound(named, level, at=at, mixed=x.mixed) if moved else x
        return done[x.uid]

    return {name: cut(x) for name, x in env.items()}
