"""place: read an operand from a copy whose layout is the order in which the nest reads it.

    before:  forall n.o: forall m.o: ... reduce sum k { x[m,k] * w[k, n.o*48 + n.u*16 + n.l] }
    after:   the same with  wp[n.o, k, n.u, n.l],   and   pack wp = w[...]        (home packed)
             or a nest that makes the copy in scratch, under the loop `loop`      (home scratch)
    args:    nest; operand, the name of the input or buffer; home; loop, for scratch: the shared
             loop at whose start the copy is made.
    Illegal: NOT_READ, NOT_CONSTANT (packed once needs a weight), NO_LOOP, DATA_DEPENDENT (the
             operand is read at loaded positions), NOTHING_TO_GAIN (the copy has one element).

The copy holds each element as often as the order of reading asks (twice where blocks overlap).
"""

from __future__ import annotations

from dataclasses import replace

from autosched.ir.extent import as_node
from autosched.ir.loops import Loop, Nest, as_loop, build, nests
from autosched.ir.node import Node, Pack, Program, replace_nodes, walk
from autosched.ir.ops import buffer, iota, load, store
from autosched.ir.rules.action import Action, Illegal

# Packs are filled element by element from an index; more copies than this are a schedule's folly.
MAX_PACK_GROWTH = 4


def apply(program: Program, action: Action) -> Program | Illegal:
    name, operand, home = action["nest"], action["operand"], action["home"]
    found = [(o, n) for k in program.body for o, n in nests(k) if n.name == name]
    if not found:
        return Illegal("NOT_READ", f"no nest is named {name}")
    outer, nest = next((f for f in found if _loads_of(f[1], operand)), found[0])
    loads = _loads_of(nest, operand)
    if not loads:
        return Illegal("NOT_READ", f"{name} does not read {operand}")
    if any(n.op == "load" for x in loads for s in x.src[1:] for n in walk(s)):
        return Illegal("DATA_DEPENDENT", f"{name} reads {operand} at positions that it loads")
    order = reading_order(outer, nest)
    if home == "packed":
        return _pack(program, nest, loads, order)
    return _copy(program, outer, nest, loads, order, action.get("loop"))


def _loads_of(nest: Nest, operand: str) -> list[Node]:
    return [n for n in walk(nest.value) if n.op == "load" and str(n.src[0].attr[0]) == operand]


def reading_order(outer: tuple[Loop, ...], nest: Nest) -> list[str]:
    """Axes from the slowest to the fastest: serial loops, reduced axes, unrolled ones, the lane."""
    loops = [*outer, *nest.loops]
    slow = [x.axis for x in loops if x.bind not in ("unroll", "lane")]
    fast = [x.axis for b in ("unroll", "lane") for x in loops if x.bind == b]
    seen = {*slow, *fast}
    inner = [a for a in _bound_axes(nest.value) if a not in seen]
    return [*slow, *inner, *fast]


def _bound_axes(value: Node) -> list[str]:
    """Axes that the value's own folds and reduces run over, outer ones first."""
    out: list[str] = []
    for node in reversed(list(walk(value))):
        bound = (
            node.attr[1] if node.op == "reduce" else (node.attr[0],) if node.op == "fold" else ()
        )
        out.extend(a for a in bound if a not in out)
    return out


def _layout(load_: Node, order: list[str]) -> list[str]:
    return sorted(load_.names, key=lambda a: order.index(a) if a in order else len(order))


def _pack(program: Program, nest: Nest, loads: list[Node], order: list[str]) -> Program | Illegal:
    source = loads[0].src[0]
    if source.op != "input" or source.attr[3] != "weight":
        return Illegal("NOT_CONSTANT", f"{source.attr[0]} is no weight")
    packs, table = list(program.packs), {}
    for n, node in enumerate(loads):
        dims = _layout(node, order)
        if not dims:
            return Illegal("NOTHING_TO_GAIN", f"{source.attr[0]} is read at one place")
        name = f"{source.attr[0]}.{nest.name}{n or ''}.packed"
        made = buffer(name, [node.extent(a) for a in dims], node.dtype, "packed")
        packs.append(Pack(made, tuple(dims), node))
        table[node] = load(made, [iota(a, node.extent(a)) for a in dims])
    body = tuple(_replace_store(k, nest.store, table) for k in program.body)
    return replace(program, body=body, packs=tuple(packs))


def _replace_store(kernel: Node, old: Node, table: dict[Node, Node]) -> Node:
    value = replace_nodes(old.src[1], table)
    new = Node("store", (old.src[0], value, *old.src[2:]), old.attr)
    return replace_nodes(kernel, {old: new})


def _copy(
    program: Program,
    outer: tuple[Loop, ...],
    nest: Nest,
    loads: list[Node],
    order: list[str],
    loop: str | None,
) -> Program | Illegal:
    if loop not in [x.axis for x in outer]:
        return Illegal("NO_LOOP", f"{nest.name} is not under a shared loop over {loop}")
    above = [x.axis for x in outer]
    above = above[: above.index(loop) + 1]
    copies: list[Node] = []
    table: dict[Node, Node] = {}
    for n, node in enumerate(loads):
        dims = [a for a in _layout(node, order) if a not in above]
        if not dims:
            return Illegal("NOTHING_TO_GAIN", f"{node.src[0].attr[0]} is read at one place")
        if any(x.axis in dims for x in outer):
            return Illegal("NO_LOOP", f"the copy depends on a shared loop inside {loop}")
        name = f"{node.src[0].attr[0]}.{nest.name}{n or ''}"
        made = buffer(name, [node.extent(a) for a in dims], node.dtype, "scratch")
        at = [iota(a, node.extent(a)) for a in dims]
        loops = [Loop(a, as_node(0), as_node(node.extent(a)), "serial") for a in dims]
        copies.append(build(loops, [store(made, node, at)]))
        table[node] = load(made, at)
    body = tuple(_insert(_replace_store(k, nest.store, table), loop, copies) for k in program.body)
    return program.with_body(*body)


def _insert(stmt: Node, axis: str | None, copies: list[Node]) -> Node:
    """`stmt` with the copies at the start of the body of the shared loop over `axis`."""
    if stmt.op == "kernel":
        return Node("kernel", tuple(_insert(s, axis, copies) for s in stmt.src), stmt.attr)
    if stmt.op != "forall":
        return stmt
    loop, body = as_loop(stmt)
    if loop.axis == axis:
        return build([loop], [*copies, *body])
    return build([loop], [_insert(s, axis, copies) for s in body])
