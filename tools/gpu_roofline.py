"""A sketch and its table in, a rough time of every row on a GPU out: what a first ranking needs.

The longest of four: contractions at the rate of the tensor cores, their operands from shared
memory, boxes from the second-level cache, inputs and outputs from memory; all on the busiest
multiprocessor. Masks and bounds that depend on data are not seen. It orders schedules and is not
meant to predict times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from autosched.ir.count import count
from autosched.ir.extent import evaluate_extent
from autosched.ir.node import Extent, Node, Program, walk
from autosched.ir.ops import kernel_facts
from autosched.ir.rules.action import Illegal
from autosched.ir.scalar import ITEMSIZE
from autosched.ir.schedule import Sketch, symbolic
from autosched.ir.target import Target

Columns = Mapping[str, np.ndarray]

SHARED_BYTES_PER_CYCLE = 128.0  # of a multiprocessor of compute capability 9.0
CACHE_GBS = 10_000.0  # second-level cache to multiprocessors: 64 bytes a cycle each, less a third
LAUNCH_US = 2.0  # of a kernel in a graph
MATRIX_ROWS, GROUP_WARPS = 64, 4  # a warpgroup's instruction has 64 rows; it takes 4 warps
NARROW_RATE = 0.6  # of the peak, by the instructions of single warps
STEP_CYCLES = 80.0  # of a loop's step beside its work: barriers, addresses, the branch
STALL = 0.5  # how much a loop without prefetching loses, less with each stage


def estimate_us(program: Program, sketch: Sketch, table: Columns, target: Target) -> np.ndarray:
    """µs of every row of the table; infinity where the sketch's actions do not apply."""
    rows = len(next(iter(table.values())))
    opened = symbolic(program, sketch)
    if isinstance(opened, Illegal):
        return np.full(rows, np.inf)
    total = np.zeros(rows)
    for kernel in opened.body:
        total = total + _kernel_us(kernel, table, target) + LAUNCH_US
    floor = count(program).bytes / (target.dram_gbs * 1e3)
    return np.maximum(total, floor)


def _kernel_us(kernel: Node, table: Columns, target: Target) -> np.ndarray:
    nodes = list(walk(*kernel.src))
    facts = {k: _number(v, table) for k, v in kernel_facts(kernel).items()}
    warps, stages = facts.get("warps", 4.0), facts.get("stages", 2.0)
    grid = {n.attr[0] for n in nodes if n.op == "forall" and n.attr[1] in ("grid", "persistent")}
    programs = _product((_trips(n, table) for n in nodes if n.op == "forall"
                         and n.attr[0] in grid), table)  # fmt: skip
    busiest = np.ceil(programs / target.cores)  # programs on one multiprocessor
    cycles = _zero(table)
    for node in nodes:
        if node.op == "dot":
            cycles = cycles + _dot_cycles(node, grid, table, target, warps)
        elif node.op == "fold":
            cycles = cycles + STEP_CYCLES * _trips(node, table)
    boxes = [n for n in nodes if n.op in ("load", "store")]
    bytes_ = sum((_box_bytes(n, grid, table) for n in boxes), _zero(table))
    cache_us = bytes_ * programs / (CACHE_GBS * 1e3)
    # A single program draws at most its multiprocessor's share of the cache's rate.
    alone_us = bytes_ * busiest / (CACHE_GBS * 1e3 / target.cores)
    math_us = busiest * cycles / (target.clock_ghz * 1e3)
    long, short = np.maximum(math_us, alone_us), np.minimum(math_us, alone_us)
    # Without enough stages loads and contractions take turns.
    exposed = STALL / np.maximum(stages - 1.0, 1.0)
    return np.maximum(long + exposed * short, cache_us)


def _dot_cycles(
    node: Node, grid: set[str], table: Columns, target: Target, warps: np.ndarray
) -> np.ndarray:
    """Cycles that one program spends in a contraction, all its steps together."""
    a, b = node.src
    boxes = [{x: e for x, e in s.axes if x not in grid} for s in (a, b)]
    left = [e for x, e in boxes[0].items() if x not in boxes[1]]
    right = [e for x, e in boxes[1].items() if x not in boxes[0]]
    tiles = [_product((_number(e, table) for e in side), table) for side in (left, right)]
    every = _product((_number(e, table) for e in {**boxes[0], **boxes[1]}.values()), table)
    kind = a.dtype if len(node.attr) < 3 else "float16"
    half = 0.5 if len(node.attr) > 2 else 1.0  # tf32 runs at half of float16's rate
    rate = target.peak(kind) * half * 1e9 / target.cores / (target.clock_ghz * 1e9)
    rows = np.maximum(tiles[0], tiles[1])
    wide = (rows >= MATRIX_ROWS) & (warps >= GROUP_WARPS)
    math = 2.0 * every / (rate * np.where(wide, 1.0, NARROW_RATE))
    steps = every / np.maximum(tiles[0] * tiles[1], 1.0)
    read = (tiles[0] + tiles[1]) * steps * ITEMSIZE[a.dtype] / SHARED_BYTES_PER_CYCLE
    return np.maximum(math, read)


def _box_bytes(node: Node, grid: set[str], table: Columns) -> np.ndarray:
    """Bytes that one program moves through a box, all steps of its loops together."""
    value = node if node.op == "load" else node.src[1]
    inside = [e for a, e in value.axes if a not in grid]
    return _product((_number(e, table) for e in inside), table) * ITEMSIZE[value.dtype]


def _trips(loop: Node, table: Columns) -> np.ndarray:
    """Steps of a loop: where its bounds vary, as many as its axis has."""
    if loop.op == "fold":
        own = {a: e for s in loop.src for a, e in s.axes}
        return _number(own.get(loop.attr[0], 1), table)
    low, high = (_number(b, table) for b in loop.src[:2])
    return high - low


def _number(extent: Extent, table: Columns) -> np.ndarray:
    return np.asarray(evaluate_extent(extent, table), np.float64) + _zero(table)


def _product(factors: Iterator[np.ndarray], table: Columns) -> np.ndarray:
    out = _zero(table) + 1.0
    for factor in factors:
        out = out * factor
    return out


def _zero(table: Columns) -> np.ndarray:
    return np.zeros(len(next(iter(table.values()))))
