"""Rows of a suite in, how many blocks of keys their kernels visit for each that they must.

    python -m autosched.tools.mask_area [--suite dense] [--rows documents] [--block 128 64]

A block of rows and keys must be visited if its mask lets one pair through, and must be tested if
it lets not all of them through. The bounds of the loops are evaluated for every block of rows, on
the row's own documents; nothing is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autosched.datasets.suites import suite
from autosched.datasets.suites.definitions import attention
from autosched.datasets.workloads.masks import allows
from autosched.ir.interp import value_of
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import input_, iota, maximum
from autosched.ir.rules import cascade, skip, tile
from autosched.ir.rules.action import Illegal, act

ROWS, KEYS, LOOP = "i", "j", "j.blk.s"
_OWN = frozenset({"b", "h", "g", "i", "j", "d", "mask", "dtype"})  # sizes that no mask reads


@dataclass(frozen=True)
class Blocks:
    """Numbers of blocks, summed over the blocks of rows of one head."""

    all: int
    needed: int
    partial: int
    visited: int
    tested: int
    loops: int


def tiled(sizes: Mapping[str, Any], rows: int, keys: int, whole: bool) -> Program:
    """One pass over blocks of keys for blocks of rows, bounded by the mask."""
    made: Program | Illegal = attention(**sizes)
    plan = (((("b", 1), ("h", 1), (ROWS, rows), ("e", 0)), (), ()),)
    for action, rule in ((act("cascade", axis=KEYS, block=keys), cascade),
                         (act("tile", plans=plan), tile)):  # fmt: skip
        assert isinstance(made, Program), made
        made = rule.apply(made, action)
    assert isinstance(made, Program), made
    bounded = skip.apply(made, act("skip", axis=LOOP, whole=whole))
    return made if isinstance(bounded, Illegal) else bounded


def count(
    sizes: Mapping[str, Any], arrays: Mapping[str, np.ndarray], rows: int, keys: int, whole: bool
) -> Blocks:
    """What a schedule with these blocks visits; whole: see `skip`."""
    folds = [n for n in walk(*tiled(sizes, rows, keys, whole).body) if n.op == "fold"]
    outer, inner = -(-sizes["i"] // rows), -(-sizes["j"] // keys)
    visited = tested = 0
    for fold in folds:
        trips = maximum(fold.src[1] - fold.src[0], 0)
        each = value_of(trips, arrays, trips.names)
        steps = int(np.sum(each)) * (1 if trips.names else outer)
        visited += steps
        tested += steps * _tests_pairs(fold)
    seen = [_block_row(sizes, arrays, first, rows, keys) for first in range(0, sizes["i"], rows)]
    needed, full = (sum(int(s[n].sum()) for s in seen) for n in (0, 1))
    return Blocks(outer * inner, needed, needed - full, visited, tested, len(folds))


def _tests_pairs(fold: Node) -> bool:
    """Whether a choice compares positions of rows with those of keys."""
    steps = fold.src[2 + len(fold.attr[1]) :]
    found = [n.src[0] for n in walk(*steps) if n.op == "map" and n.attr[0] == "where"]
    tests = [n for n in walk(*found) if n.dtype == "bool" and n.op == "map"]
    return any(
        {f"{ROWS}.i", LOOP} <= {*n.names} and n.src[0].dtype == "int32" for n in tests
    )


def _block_row(
    sizes: Mapping[str, Any], arrays: Mapping[str, np.ndarray], first: int, rows: int, keys: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each block of keys, whether any pair, and whether all pairs pass."""
    i, j = sizes["i"], sizes["j"]
    here, blocks = min(rows, i - first), -(-j // keys)
    numbers = {k: n for k, n in sizes.items() if k not in _OWN}
    row = iota("i", here) + input_("first", {}, "int32") + (j - i)
    seen = allows(sizes["mask"], row, iota("j", j), j, **numbers)
    seen = seen & (row >= row) & (iota("j", j) >= 0)
    pairs = value_of(seen, {**arrays, "first": np.int32(first)}, ("i", "j"))
    some, every = np.zeros(blocks * keys, bool), np.ones(blocks * keys, bool)
    some[:j], every[:j] = pairs.any(0), pairs.all(0)
    return (np.asarray(some.reshape(blocks, keys).any(1)),
            np.asarray(every.reshape(blocks, keys).all(1)))  # fmt: skip


def table(name: str, wanted: str, rows: int, keys: int) -> Iterator[str]:
    yield f"{'row':58} {'loops':>5} {'visited':>8} {'needed':>8} {'ratio':>6} {'tested':>7} of all"
    for row in suite(name).rows:
        if not row.mask or wanted not in row.name or "i" not in row.sizes:
            continue
        for whole in (True, False):
            sizes = {"mask": "full", **row.sizes}
            got = count(sizes, row.arrays(), rows, keys, whole)
            yield (f"{row.name:58} {got.loops:5} {got.visited:8} {got.needed:8} "
                   f"{got.visited / got.needed:6.3f} {got.tested / got.needed:7.3f} "
                   f"{got.needed / got.all:6.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", default="dense")
    parser.add_argument("--rows", default="", help="part of a row's name")
    parser.add_argument("--block", type=int, nargs=2, default=(128, 64), metavar=("ROWS", "KEYS"))
    args = parser.parse_args()
    for line in table(args.suite, args.rows, *args.block):
        print(line, flush=True)


if __name__ == "__main__":
    main()
