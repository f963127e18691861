"""split: turn one loop into an outer and an inner one.

    before:  forall n in [0, N):                      store y[n] = f(n)
    after:   forall n.o in [0, cdiv(N, size)): forall n.i in [0, size):
                 store y[s + n.i] = f(s + n.i)        s = min(n.o*size, N - size)
    args:    axis; size, elements (a number or a knob); nest, one nest or all that have the axis;
             tail "overlap" (above: the last block starts early and repeats pure work, so that
             every block is full and nothing is masked) or "exact" (size divides);
             into, the two new names.
    Illegal: NOT_AN_AXIS, TOO_BIG (size beyond the extent), NOT_EXACT, BOUNDED (an interval),
             IN_PLACE (a nest that updates what it reads may do no element twice).

Scratch that all nests address by the axis itself is split with it, so that the outer loop can be
shared afterwards and the scratch shrinks to one block.
"""

from __future__ import annotations

from dataclasses import replace

from autosched.ir.extent import (
    as_extent,
    as_node,
    ext_cdiv,
    ext_floordiv,
    ext_mul,
    ext_sub,
)
from autosched.ir.loops import (
    Loop,
    Nest,
    at_coordinate,
    buffers_read,
    edit_nests,
    iota_axis,
    load_starts,
    nests,
    updates_itself,
)
from autosched.ir.node import Extent, Node, Program, rewrite, walk
from autosched.ir.ops import buffer, iota, load, minimum, store
from autosched.ir.rules.action import Action, Illegal


def apply(program: Program, action: Action) -> Program | Illegal:
    axis, size, only = action["axis"], action.size("size"), action.get("nest")
    outer, inner = action.get("into") or (f"{axis}.o", f"{axis}.i")
    tail = action.get("tail", "overlap")
    found = [
        nest
        for k in program.body
        for _, nest in nests(k)
        if nest.loop(axis) and only in (None, nest.name)
    ]
    if not found:
        return Illegal("NOT_AN_AXIS", f"no nest {only or ''} has a loop over {axis}")
    loop = found[0].loop(axis)
    assert loop is not None
    extent = as_extent(loop.hi)
    if as_extent(loop.lo) != 0:
        return Illegal("BOUNDED", f"{axis} runs over an interval")
    exact = tail == "exact"
    if isinstance(extent, int) and isinstance(size, int):
        if size > extent:
            return Illegal("TOO_BIG", f"{axis} has {extent} elements, a block {size}")
        if exact and extent % size:
            return Illegal("NOT_EXACT", f"{size} does not divide {axis} = {extent}")
        exact = extent % size == 0
    start = block_start(iota(outer, ext_cdiv(extent, size)), extent, size, exact)
    at = start + iota(inner, size)
    shared = _scratch_dims(program, axis) if only is None else {}
    twice = [n.name for n in found if updates_itself(n) and n.handle not in shared]
    if twice and not exact:
        return Illegal("IN_PLACE", f"{twice[0]} updates in place, and {size} may not divide {axis}")
    loops = (
        Loop(outer, as_node(0), as_node(ext_cdiv(extent, size)), loop.bind),
        Loop(inner, as_node(0), as_node(size), loop.bind),
    )

    def edit(nest: Nest) -> list[Node]:
        if not nest.loop(axis) or only not in (None, nest.name):
            return [nest.build()]
        nest = _split_scratch(nest, axis, shared, outer, inner, size)
        new = tuple(y for x in nest.loops for y in (loops if x.axis == axis else (x,)))
        return [Nest(new, at_coordinate(nest.store, axis, at)).build()]

    return program.with_body(*(edit_nests(k, edit) for k in program.body))


def block_start(block: Node, extent: Extent, size: Extent, exact: bool) -> Node:
    """Where block number `block` begins: the last one early enough to be full."""
    start = block * as_node(size)
    return start if exact else minimum(start, as_node(ext_sub(extent, size)))


def _scratch_dims(program: Program, axis: str) -> dict[Node, int]:
    """{scratch buffer: dimension} that every access indexes by the bare coordinate of `axis`."""
    dims: dict[Node, int | None] = {}
    for root in program.body:
        for node in walk(root):
            if node.op not in ("load", "store") or node.src[0].op != "buffer":
                continue
            handle = node.src[0]
            if handle.attr[3] != "scratch":
                continue
            first = 1 if node.op == "load" else 2
            starts = node.src[first : first + len(node.attr[0])]
            at = next((n for n, s in enumerate(starts) if iota_axis(s) == axis), None)
            if handle in dims and dims[handle] != at:
                at = None
            dims[handle] = at
    # A nest in a fold over the axis has its coordinate, but no loop that could be split.
    apart = {
        h
        for k in program.body
        for _, nest in nests(k)
        if nest.loop(axis) is None
        for h in (nest.handle, *buffers_read(nest.value))
    }
    return {h: n for h, n in dims.items() if n is not None and h not in apart}


def _split_scratch(
    nest: Nest, axis: str, dims: dict[Node, int], outer: str, inner: str, size: Extent
) -> Nest:
    """Accesses to the buffers in `dims` with that dimension taken apart into (outer, inner)."""

    def parts(handle: Node, starts: tuple[Node, ...]) -> tuple[Node, list[Node]]:
        at = dims[handle]
        name, extents, dtype, home = handle.attr
        blocks = ext_cdiv(extents[at], size)
        new = buffer(name, [*extents[:at], blocks, size, *extents[at + 1 :]], dtype, home)
        pair = [iota(outer, blocks), iota(inner, size)]
        return new, [*starts[:at], *pair, *starts[at + 1 :]]

    def fix(node: Node) -> Node:
        if node.op == "load" and node.src[0] in dims:
            return load(*parts(node.src[0], load_starts(node)))
        return node

    nest = nest.with_value(rewrite(nest.value, fix))
    if nest.handle in dims:
        handle, starts = parts(nest.handle, nest.starts)
        nest = replace(nest, store=store(handle, nest.value, starts))
    return nest


def divides(extent: Extent, size: Extent) -> bool:
    """Whether `size` is known to divide `extent`."""
    if isinstance(extent, int) and isinstance(size, int):
        return extent % size == 0
    return as_extent(as_node(ext_mul(ext_floordiv(extent, size), size))) == extent
