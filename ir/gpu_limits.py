"""What the boxes of a kernel must obey: a kernel in, constraints over its knobs out."""

from __future__ import annotations

from collections.abc import Sequence

from autosched.ir.extent import (
    as_node,
    ext_add,
    ext_floordiv,
    ext_max,
    ext_mul,
    ext_product,
    ext_sub,
)
from autosched.ir.gpu_facts import DEFAULTS, fed_by, rules_of, stores_boxes
from autosched.ir.node import Extent, Node, walk
from autosched.ir.ops import kernel_facts
from autosched.ir.scalar import ITEMSIZE
from autosched.ir.target import Target

REGISTER_BYTES = 4 * 255  # of one thread
LEAST_ROW_BYTES, LEAST_STEP = 32, 16  # of what a dot contracts: bytes, and elements of a block
MAX_LIVE = 2 / 3  # share of the registers that boxes may take; the rest is for addresses
CAPPED_LIVE = 0.75  # the same where registers are capped: beyond it the assembler refuses


def resource_limits(kernel: Node, target: Target) -> list[Node]:
    """What a kernel's boxes must obey: registers of its threads, shared memory of its block."""
    facts = {**DEFAULTS, **kernel_facts(kernel)}
    # Where some warps load for others, as many again contract.
    threads = ext_mul(ext_mul(facts["warps"], ext_add(facts["specialise"], 1)), target.lanes)
    nodes = list(walk(*kernel.src))
    loops = _loop_axes(nodes)
    limits = rules_of(kernel)
    room = ext_mul(threads, int(REGISTER_BYTES * MAX_LIVE))
    for held in _register_bytes(nodes, loops):
        limits.append(as_node(held) <= as_node(room))
        if facts["registers"] != 0:
            most = ext_mul(ext_mul(threads, facts["registers"]), int(4 * CAPPED_LIVE))
            limits.append((as_node(facts["registers"]) < 1) | (as_node(held) <= as_node(most)))
    stages = facts["stages"]
    kept: Extent = 0
    for store in (n for n in nodes if n.op == "store"):
        # A store through a descriptor leaves from shared memory, one part after the other.
        part = ext_floordiv(_bytes(store.src[1], loops), facts["epilogue"])
        kept = ext_add(kept, ext_mul(part, stores_boxes(facts)))
    # The next block, or warps of their own, load already while a store leaves.
    beside = facts["persistent"] != 0 or facts["specialise"] != 0
    handed = _handed_on(nodes)
    for node in nodes:
        if node.op == "fold":
            staged = ext_mul(_staged_bytes(node, loops), stages)
            if staged == 0:  # without products, what is on its way is the next steps alone
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
    """States that products multiply as they are: they wait in shared memory, by their names."""
    return {
        str(s.attr[0]): s for n in nodes if n.op == "dot" for s in n.src if s.op == "carry"
    }


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
