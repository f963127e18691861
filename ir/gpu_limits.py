"""What the boxes of a kernel must obey: a kernel in, constraints over its knobs out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autosched.ir.extent import (
    as_node,
    ext_add,
    ext_floordiv,
    ext_max,
    ext_mul,
    ext_product,
    ext_sub,
)
from autosched.ir.gpu_facts import (
    DEFAULTS,
    GROUP_ROWS,
    fed_by,
    rules_of,
    stores_boxes,
    turned,
)
from autosched.ir.loops import grid_of
from autosched.ir.node import Extent, Node, walk
from autosched.ir.ops import kernel_facts
from autosched.ir.scalar import ITEMSIZE
from autosched.ir.target import Target

REGISTER_BYTES = 4 * 255  # of one thread
LEAST_ROW_BYTES, LEAST_STEP = 32, 16  # of what a dot contracts: bytes, and elements of a block
# Share of the registers that boxes may take: the rest is for addresses. Attention of 192 registers
# of boxes in each thread compiles to 213 to 255 on sm_90, and spills next to none.
MAX_LIVE = 0.77
CAPPED_LIVE = 0.75  # the same where registers are capped: beyond it the assembler refuses
GROUP_WARPS, WARP_ROWS = 4, 16  # that contract together, and the rows of one with all columns
ENOUGH = 2  # programs for each multiprocessor


def resource_limits(kernel: Node, target: Target) -> list[Node]:
    """What a kernel's boxes must obey: registers of its threads, shared memory of its block."""
    facts = {**DEFAULTS, **kernel_facts(kernel)}
    # Where some warps load for others, as many again contract.
    threads = ext_mul(ext_mul(facts["warps"], ext_add(facts["specialise"], 1)), target.lanes)
    nodes = list(walk(*kernel.src))
    loops = _loop_axes(nodes)
    limits = [*rules_of(kernel), *_whole_groups(kernel, facts, target)]
    room = ext_mul(threads, int(REGISTER_BYTES * MAX_LIVE))
    for held in _register_bytes(nodes, loops):
        limits.append(as_node(held) <= as_node(room))
        if facts["registers"] != 0:
            most = ext_mul(ext_mul(threads, facts["registers"]), int(4 * CAPPED_LIVE))
            limits.append((as_node(facts["registers"]) < 1) | (as_node(held) <= as_node(most)))
    stages = facts["stages"]
    kept: Extent = 0
    dealt = facts["programs"] != 0
    for store in (n for n in nodes if n.op == "store"):
        if dealt and store.src[0].attr[3] == "scratch":  # parts, which leave from registers
            continue
        # A store through a descriptor leaves from shared memory, one part after the other.
        part = ext_floordiv(_bytes(store.src[1], loops), facts["epilogue"])
        kept = ext_add(kept, ext_mul(part, stores_boxes(facts)))
    # The next block, or warps of their own, load already while a store leaves.
    beside = dealt or facts["persistent"] != 0 or facts["specialise"] != 0
    handed = _in_shared(kernel, _handed_on(nodes))
    for node in nodes:
        if node.op == "fold":
            staged = ext_mul(_staged_bytes(node, loops), stages)
            # Without products, what is on its way is the next steps alone, and none of a merge.
            if staged == 0 and not dealt:
                staged = ext_mul(_read_bytes(node, loops), ext_sub(stages, 1))
            for name, value in handed.items():
                staged = ext_add(staged, _bytes(value, loops) if name in node.attr[1] else 0)
            if staged != 0:
                staged = ext_add(staged, _still_bytes(node, loops))
                together = ext_add(staged, kept) if beside else ext_max(staged, kept)
                limits.append(as_node(together) <= target.l1_bytes)
    for node in nodes:
        if node.op == "dot":
            operands = [_bytes(s, loops) for s in node.src]
            limits.append(as_node(ext_add(*operands)) <= target.l1_bytes)
            limits += _deep_enough(node)
    return limits


def _deep_enough(dot: Node) -> list[Node]:
    """A tensor core takes rows of no fewer bytes: shorter steps would be sums of products."""
    size = min(max(ITEMSIZE[s.dtype], 1) for s in dot.src)
    depth = ext_product([dot.src[0].extent(a) for a in dot.attr[0]])
    short = isinstance(depth, Node) and size * LEAST_STEP < LEAST_ROW_BYTES
    return [as_node(ext_mul(depth, size)) >= LEAST_ROW_BYTES] if short else []


def _loop_axes(nodes: Sequence[Node]) -> set[str]:
    """Axes that are coordinates of loops, not of boxes."""
    return {n.attr[0] for n in nodes if n.op in ("forall", "fold")}


def _bytes(value: Node, loops: set[str]) -> Extent:
    sizes = ext_product([e for a, e in value.axes if a not in loops])
    return ext_mul(sizes, max(ITEMSIZE[value.dtype], 1))


def _handed_on(nodes: Sequence[Node]) -> dict[str, Node]:
    """States that products multiply as they are, by their names. Where they wait in registers,
    they do so while what they are made of is not there."""
    return {
        str(s.attr[0]): s for n in nodes if n.op == "dot" for s in n.src if s.op == "carry"
    }


def _in_shared(kernel: Node, handed: Mapping[str, Node]) -> dict[str, Node]:
    """Those that wait in shared memory: all but rows of 16 bits (see `codegen.triton_dots`)."""
    rows = {dot.src[0] for dot, _, _ in turned(kernel)}
    columns = {dot.src[1] for dot, _, _ in turned(kernel)}
    return {
        name: state for name, state in handed.items()
        if state in columns or state not in rows or ITEMSIZE[state.dtype] != 2
    }  # fmt: skip


def _whole_groups(
    kernel: Node, facts: Mapping[str, Extent], target: Target
) -> Iterator[Node]:
    """Tensor cores that work on their own take 64 rows of four warps at once. Where products feed
    each other in a loop, each warp is to hold whole rows, so that what is made of them needs no
    other warp; smaller blocks are for grids that would be too small, and for short axes."""
    if "wgmma" not in target.features or facts["swap"] != 0:
        return
    trips = {n.attr[0]: n.src[1] for n in grid_of(kernel)[0]}
    programs = ext_product(trips.values())
    for rows in dict.fromkeys(_fed_rows(kernel)):
        if len(rows) != 1 or f"{(axis := rows[0][0]).removesuffix('.i')}.o" not in trips:
            continue
        size, blocks = as_node(rows[0][1]), trips[f"{axis.removesuffix('.i')}.o"]
        few = as_node(ext_mul(programs, size)) < GROUP_ROWS * ENOUGH * target.cores
        short = as_node(ext_mul(blocks, size)) < GROUP_ROWS
        groups = (size >= GROUP_ROWS) & (as_node(facts["warps"]) >= GROUP_WARPS)
        yield few | short | (groups & (size >= as_node(ext_mul(facts["warps"], WARP_ROWS))))


def _fed_rows(kernel: Node) -> Iterator[tuple[tuple[str, Extent], ...]]:
    """The rows of products on tensor cores, in loops, of which an operand is made of products."""
    for fold in (n for n in walk(*kernel.src) if n.op == "fold"):
        inside = set(walk(*fold.src[2 * fold.attr[2] :]))
        for dot, rows, _ in turned(kernel):
            wide = any(s.dtype in ("float32", "float64") for s in dot.src)
            fed = any(n.op in ("dot", "carry") for n in walk(dot.src[0]))
            if fed and inside & {dot, Node("dot", dot.src[::-1], dot.attr)} and not wide:
                yield tuple(rows.items())


def _register_bytes(nodes: Sequence[Node], loops: set[str]) -> list[Extent]:
    """The states of each fold together, and every box that a dot or a reduce makes or reads."""
    out: list[Extent] = []
    in_dots = {s for n in nodes if n.op == "dot" for s in n.src}
    handed = _handed_on(nodes)
    for node in nodes:
        if node.op == "fold":
            total: Extent = 0
            for name, kind in zip(node.attr[1], node.types):
                if name in handed:
                    continue
                boxes = [e for a, e in kind.axes if a not in loops]
                total = ext_add(total, ext_mul(ext_product(boxes), ITEMSIZE[kind.dtype]))
            dots = [n for n in walk(*node.src) if n.op == "dot" and n.carries == frozenset()]
            widest = [_bytes(d, loops) for d in dots if node.attr[0] in d.names]
            # A product that feeds another one, or that is the next state, is live beside them.
            inner = [w for d, w in zip(dots, widest)
                     if d in node.src or any(d in walk(s) for s in in_dots)]  # fmt: skip
            for w in inner[:1]:
                total = ext_add(total, w)
            out.append(total)
        elif node.op == "reduce":
            out += [_bytes(s, loops) for s in node.src]
        elif node.op == "dot":
            out.append(_bytes(node, loops))
        elif node.op == "store":
            out.append(_bytes(node.src[1], loops))
    return [o for o in out if isinstance(o, Node) or o > 0]


def _read_bytes(fold: Node, loops: set[str]) -> Extent:
    """Bytes of the boxes that a loop reads anew at each of its steps."""
    axis = fold.attr[0]
    total: Extent = 0
    for load in walk(*fold.src[2 * fold.attr[2] :]):
        if load.op == "load" and axis in load.names:
            total = ext_add(total, _bytes(load, loops))
    return total


def _staged_bytes(fold: Node, loops: set[str]) -> Extent:
    """Bytes of the boxes that dots of the loop read anew at each of its steps."""
    axis = fold.attr[0]
    total: Extent = 0
    seen: set[Node] = set()
    for node in walk(*fold.src[2 * fold.attr[2] :]):
        if node.op != "dot":
            continue
        for load in (n for s in node.src for n in walk(s) if n.op == "load"):
            if load not in seen and axis in load.names:
                seen.add(load)
                total = ext_add(total, _bytes(load, loops))
    return total


def _still_bytes(fold: Node, loops: set[str]) -> Extent:
    """Bytes of the boxes that dots of the loop read, the same ones at each step: queries."""
    axis = fold.attr[0]
    inner = {n.attr[0] for n in walk(*fold.src[2 * fold.attr[2] :]) if n.op == "fold"}
    total: Extent = 0
    seen: set[Node] = set()
    for dot in (n for n in walk(*fold.src[2 * fold.attr[2] :]) if n.op == "dot"):
        for load in (n for s in dot.src for n in fed_by(s)):
            if load not in seen and axis not in load.names and not inner & {*load.names}:
                seen.add(load)
                total = ext_add(total, _bytes(load, loops))
    return total
