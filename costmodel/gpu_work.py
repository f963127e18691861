"""View of a kernel in, what one program of it computes and moves out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autosched.costmodel.columns import Column
from autosched.costmodel.gpu_machine import ASYNC_TYPES, TENSOR_TYPES, tensor_gflops
from autosched.costmodel.gpu_memory import Moved
from autosched.costmodel.gpu_structure import Dot
from autosched.costmodel.gpu_view import WARPGROUP, Facts, Times, View
from autosched.ir.scalar import ITEMSIZE

GROUP_ROWS = 64.0  # of one asynchronous tensor instruction


def phase(view: View, inside: bool, resident: Column) -> tuple[Facts, Facts, Facts]:
    """Contractions, operations and memory of a program, in its loops or around them."""

    def times(needs: Sequence[int]) -> Column:
        often, stepped = view.often(needs)
        return often * (stepped if inside else 1.0 - stepped)

    ops = _operations(view, times)
    if inside:
        ops["move"] = ops["move"] + _step_instructions(view)
    return _dots(view, times), ops, _memory(view, times, resident)


def _made_dots(view: View) -> list[tuple[Dot, Facts]]:
    root = view.kernel.root
    return [(d, _dot(view, d)) for d in view.structure.dots if d.needs[0] == root]


def _step_instructions(view: View) -> Column:
    """What the steps of loops take beside their values."""
    total: Column = 0.0
    for n in view.loops:
        if view.steps(n):
            steps = np.where(view.counts[n] != 1.0, view.iterations[n], 0.0)
            total = total + view.rates.step_instructions * view.threads * steps
    return total


def _dots(view: View, times: Times) -> Facts:
    """Cycles of the tensor cores and of the CUDA cores for contractions."""
    facts: Facts = dict.fromkeys(("tensor", "ideal", "cuda", "flops", "early"), 0.0)
    for dot, made in _made_dots(view):
        for name in facts:
            facts[name] = facts[name] + made[name] * times(dot.needs)
    return facts


def largest_dot(view: View) -> Facts:
    """Sizes of the contraction that does most."""
    most: Column = -1.0
    facts: Facts = dict.fromkeys(("rows", "columns", "depth", "async"), 0.0)
    for dot, made in _made_dots(view):
        done = made["flops"] * view.often(dot.needs)[0]
        larger = done > most
        most = np.where(larger, done, most)
        facts = {name: np.where(larger, made[name], old) for name, old in facts.items()}
    return facts


def _dot(view: View, dot: Dot) -> Facts:
    """One contraction: the slower of the unit's rate and of the operands' way to it."""
    r, value = view.rates, view.columns.product
    rows, columns, depth = value(dot.rows), value(dot.columns), value(dot.depth)
    turned = view.facts["swap"] > 0
    rows, columns = np.where(turned, columns, rows), np.where(turned, rows, columns)
    batch = value(dot.batch)
    kind = dot.precision or dot.dtype
    flops = 2.0 * rows * columns * depth * batch
    # A loop of one trip is none: what reads its states waits.
    early = np.where(view.counts[dot.needs[-1]] != 1.0, flops, 0.0) if dot.early else 0.0
    facts = {"flops": flops, "early": early, "rows": rows, "columns": columns, "depth": depth}
    if kind not in TENSOR_TYPES:
        cycles = flops / 2.0 / (r.fp32_per_cycle * r.cuda_dot_share)
        return {**facts, "tensor": 0.0, "ideal": 0.0, "cuda": cycles, "async": 0.0}
    item = float(ITEMSIZE[dot.dtype])
    step = 32.0 / item  # depth of one tensor instruction
    padded = 2.0 * np.maximum(rows, 16.0) * np.maximum(columns, 8.0) * batch
    padded = padded * np.maximum(depth, step)
    peak = tensor_gflops(view.target, kind) * 1e3 / r.cores / r.clock_mhz * r.tensor_sustained
    groups = view.computing / WARPGROUP
    asynchronous = (rows >= GROUP_ROWS) & (groups >= 1.0) & (not dot.batch)
    asynchronous = asynchronous & (r.async_dots and kind in ASYNC_TYPES)
    # Groups of warps lie along the rows; what is left of them along the columns.
    tall = np.clip(rows / GROUP_ROWS, 1.0, None)
    across = np.maximum(groups / tall, 1.0)
    wide_bytes = depth * item * (rows * across + columns * tall)
    if not dot.loaded[0]:
        wide_bytes = depth * item * columns * tall  # rows come from registers
    down = np.clip(np.sqrt(view.warps * rows / np.maximum(columns, 1.0)), 1.0, view.warps)
    narrow_bytes = depth * item * (rows * view.warps / down + columns * down)
    rate = np.where(asynchronous, peak, peak * r.mma_share)
    bytes_ = np.where(asynchronous, wide_bytes, narrow_bytes) * batch
    cycles = np.maximum(padded / rate, bytes_ / r.shared_bytes_per_cycle)
    return {
        **facts,
        "tensor": cycles,
        "ideal": flops / peak,
        "cuda": 0.0,
        "async": np.where(asynchronous, 1.0, 0.0),
    }


def _operations(view: View, times: Times) -> Facts:
    """Operations by kind; each thread does at least one of each value."""
    facts: Facts = dict.fromkeys(("arith", "int", "move", "mufu"), 0.0)
    for ops in view.structure.ops:
        if ops.needs[0] == view.kernel.root:
            lanes = np.maximum(view.columns.product(ops.box), view.threads)
            facts[ops.kind] = facts[ops.kind] + ops.count * lanes * times(ops.needs)
    return facts


def _memory(view: View, times: Times, resident: Column) -> Facts:
    """Bytes and memory operations."""
    names = ("loaded", "boxed", "useful", "lanes", "stored", "store_boxes", "access_bytes",
             "access_lanes", "pointers")  # fmt: skip
    facts: Facts = dict.fromkeys(names, 0.0)
    for number, box in view.boxes.items():
        access = view.structure.accesses[number]
        often = times(access.needs)
        facts["access_lanes"] = facts["access_lanes"] + box.lanes * often
        facts["pointers"] = facts["pointers"] + box.lanes * often * _by_pointer(view, number)
        facts["access_bytes"] = facts["access_bytes"] + box.sectors * often
        if access.stores:
            facts["stored"] = facts["stored"] + box.sectors * often
            facts["store_boxes"] = facts["store_boxes"] + (box.elements * access.itemsize * often)
            continue
        facts["boxed"] = facts["boxed"] + box.elements * access.itemsize * often
        facts["useful"] = facts["useful"] + box.useful * often
        facts["lanes"] = facts["lanes"] + box.lanes * often
        facts["loaded"] = facts["loaded"] + _through_l1(view, number, box, often, resident)
    return facts


def _by_pointer(view: View, number: int) -> Column:
    """1 where lanes make their addresses, 0 where a tensor descriptor does it."""
    access = view.structure.accesses[number]
    if not access.box or any(p.rest is not None for p in access.places):
        return 1.0
    role = "store" if access.stores else "operand" if access.shared else "other"
    return 1.0 - view.boxed(role)


def _through_l1(view: View, number: int, box: Moved, times: Column, resident: Column) -> Column:
    """Bytes that the first level does not hold: staged boxes pass it by, others are found
    there again where all steps of the program touch little."""
    access = view.structure.accesses[number]
    every = box.sectors * times
    if access.staged or access.shared:
        return every
    inner = {
        view.structure.loops[n].axis: view.counts[n]
        for n in view.structure.chain(access.loop)
        if view.structure.loops[n].kind in ("serial", "fold")
    }
    sizes = {a: view.columns.value(e) for a, e in access.box}
    once = np.minimum(view.reaches[number].bytes({**inner, **sizes}), every)
    return np.where(once * resident <= 0.25 * view.rates.shared_bytes, once, every)
