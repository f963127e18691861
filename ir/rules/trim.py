"""trim: loops and reduces over an axis run over the interval in which a mask lets values through.

    before:  forall i.o: { forall i.i: forall j:  store s[i.i, j] = where(i >= j, ..., -inf)
                           forall i.i:            store m[i.i] = reduce max j { s[i.i, j] } ... }
    after:   the same with  j in 0 .. (last i of the block) + 1  in every nest of the block
    args:    nest, the nest that stores the masked value; all sizes of its tile are set before.
    Illegal: NO_NEST, NO_MASK (no affine test bounds a dimension of what it stores), WHOLE (the
             nest is under no shared loop), NOT_NEUTRAL (a value left out is not the
             identity of a reduce that reads it), STORED (it would be missing in an output),
             NO_LOOP (no loop of a nest that must be trimmed has the axis).

What is left out is known: the fill of the mask, and what follows from it (exp(-inf - m) is 0, a
product with 0 is 0, for finite factors). At least one element of a row stays, so that a row that
is masked whole keeps what its definition yields. A finite fill counts as -inf only where every row
provably keeps its first entry.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from autosched.ir.extent import as_extent, as_node, ext_cdiv, simplify
from autosched.ir.follows import conjuncts, is_identity, what_follows
from autosched.ir.linear import from_poly, poly
from autosched.ir.loops import Loop, Nest, as_loop, as_nest, build, load_starts, nests
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Node, Program, replace_nodes, walk
from autosched.ir.ops import carry, const, fold, get, iota, map_, maximum, minimum
from autosched.ir.rules.action import Action, Illegal
from autosched.ir.scalar import FLOATS

JAMMED = ("unroll", "lane")
HUGE = -1e30  # what exporters write for -inf lies below, scores lie above


@dataclass(frozen=True)
class _Cut:
    """Dimension `dim` of a buffer holds `value` outside of the interval that is kept."""

    dim: int
    value: Node


@dataclass(frozen=True)
class _Span:
    """An interval of positions; None is an end that is not bounded."""

    lo: Node | None
    hi: Node | None

    def union(self, other: _Span | None) -> _Span:
        if other is None:
            return self
        lo = None if self.lo is None or other.lo is None else minimum(self.lo, other.lo)
        hi = None if self.hi is None or other.hi is None else maximum(self.hi, other.hi)
        return _Span(lo, hi)

    def steps(self, step: Node) -> _Span:
        """The numbers of the steps of that length that cover the interval."""
        lo = None if self.lo is None else map_("floordiv", self.lo, step)
        hi = None if self.hi is None else as_node(ext_cdiv(self.hi, step))
        return _Span(lo, hi)

    def times(self, step: Node) -> _Span:
        return _Span(
            None if self.lo is None else self.lo * step, None if self.hi is None else self.hi * step
        )

    def within(self, lo: Node, hi: Node) -> tuple[Node, Node]:
        return (
            lo if self.lo is None else simplify(maximum(lo, self.lo)),
            hi if self.hi is None else simplify(minimum(hi, self.hi)),
        )


class _Refused(Exception):
    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


def apply(program: Program, action: Action) -> Program | Illegal:
    name = action["nest"]
    if len(program.body) != 1:
        return Illegal("NO_NEST", "a program of several kernels")
    every = list(nests(program.body[0]))
    at = [n for n, (_, nest) in enumerate(every) if nest.name == name]
    if not at:
        return Illegal("NO_NEST", f"no nest is named {name}")
    outer, nest = every[at[0]]
    registers = dict(program.body[0].attr[1]) if len(program.body[0].attr) > 1 else {}
    refusal = Illegal("NO_MASK", f"no test of positions bounds what {name} stores")
    for cut, span in _masked(nest):
        try:
            bounded = _bounded(span, nest, cut.dim, outer)
            changed = _trimmed(every, at[0], cut, bounded, registers)
        except _Refused as reason:
            refusal = Illegal(reason.code, str(reason))
        else:
            return program.with_body(_rebuilt(program.body[0], changed))
    return refusal


# ---- the mask ----------------------------------------------------------------------------------


def _masked(nest: Nest) -> Iterator[tuple[_Cut, list[_Span]]]:
    """For each dimension that tests bound: what they leave out of it, and their limits."""
    tests = {
        t: None
        for n in walk(nest.value)
        if n.op == "map" and n.attr[0] == "where"
        for t in conjuncts(n.src[0])
    }
    for dim, start in enumerate(nest.starts):
        own = {x.axis for x in nest.loops} & set(start.names)
        groups: dict[Node, list[_Span]] = {}
        body = _deepened(nest.value, start)
        for test in tests if own else ():
            limit = _limits(test, start, nest, own)
            value = what_follows(body, {test: const(False, "bool")})
            if limit is not None and value.op == "const":
                groups.setdefault(value, []).append(limit)
        for value, limits in groups.items():
            yield _Cut(dim, value), limits


def _deepened(value: Node, start: Node) -> Node:
    """`value` with huge negative fills as -inf, where every row keeps an entry: the first one.
    Such a fill then is below every score, and its exponential is 0.

    The whole condition of each such fill must hold there: a row that loaded data may mask
    altogether is uniform by a finite fill, and stays so.
    """
    first = {start: const(0, "int32")}
    for node in walk(value):
        if node.op == "map" and node.attr[0] == "where" and any(map(_is_huge, node.src[1:])):
            test = simplify(_opaque_starts(replace_nodes(node.src[0], first)))
            if test.op != "const" or not test.attr[0]:
                return value
    fills = {n: const(-math.inf, n.dtype) for n in walk(value) if _is_huge(n)}
    return replace_nodes(value, dict(fills))


def _is_huge(node: Node) -> bool:
    return node.op == "const" and node.dtype in FLOATS and node.attr[0] <= HUGE


def _opaque_starts(test: Node) -> Node:
    """The starts of blocks, min(n * size, extent - size), as coordinates of an axis: that they
    are not negative does not show while the size is a knob."""
    table: dict[Node, Node] = {}
    for n in walk(test):
        if n.op != "map" or n.attr[0] != "min":
            continue
        last = n.src[1]
        if last.op == "map" and last.attr[0] == "sub":
            table[n] = iota(f"start {len(table)}", as_extent(last.src[0]))
    return replace_nodes(test, table)


_SIGNS: Mapping[str, tuple[int, int]] = {"ge": (1, 0), "gt": (1, -1), "le": (-1, 0), "lt": (-1, -1)}


def _limits(test: Node, start: Node, nest: Nest, own: set[str]) -> _Span | None:
    """The positions at which the test may hold, as one end of an interval."""
    if test.attr[0] not in _SIGNS or test.src[0].dtype != "int32":
        return None
    sign, offset = _SIGNS[test.attr[0]]
    a, b = test.src if sign > 0 else test.src[::-1]
    holds = simplify(a - b + offset)  # the test says: not negative
    rows = [x for x in nest.loops if x.axis not in own]
    upper = simplify(holds + start)
    if not own & set(upper.names):
        top = _extreme(upper, rows, 1)
        return None if top is None else _Span(None, top + 1)
    lower = simplify(start - holds)
    if not own & set(lower.names):
        bottom = _extreme(lower, rows, -1)
        return None if bottom is None else _Span(bottom, None)
    return None


_RISING = ("add", "min", "max", "mul", "floordiv")


def _extreme(node: Node, rows: Sequence[Loop], sign: int) -> Node | None:
    """The greatest (sign 1) or least value of an index over all rows, or None where unknown."""
    ends = {x.axis: (x.hi - 1, x.lo) for x in rows}
    out = None
    for atoms, factor in poly(node).items():
        term = from_poly({atoms: factor}, "int32")
        varying = [n for a in atoms for n in walk(a) if set(n.names) & set(ends)]
        if any(n.op != "iota" and n.attr[0] not in _RISING for n in varying):
            return None
        end = 0 if (factor > 0) == (sign > 0) else 1
        table = {n: ends[n.attr[0]][end] for n in walk(term)
                 if n.op == "iota" and n.attr[0] in ends}  # fmt: skip
        term = replace_nodes(term, table)
        out = term if out is None else out + term
    return const(0, "int32") if out is None else simplify(out)


def _bounded(spans: Sequence[_Span], nest: Nest, dim: int, outer: Sequence[Loop]) -> _Span:
    """All of the limits at once, within the axis, and with one position at least."""
    size = as_node(nest.handle.attr[1][dim])
    los = [s.lo for s in spans if s.lo is not None]
    his = [s.hi for s in spans if s.hi is not None]
    lo = const(0, "int32")
    for x in los:
        lo = maximum(lo, minimum(x, size - 1))
    hi = size
    for x in his:
        hi = minimum(hi, x)
    lo, hi = simplify(lo), simplify(maximum(hi, lo + 1))
    if not outer:
        raise _Refused("WHOLE", f"{nest.name} is under no loop along which its mask could vary")
    return _Span(lo if los else None, hi if his else None)


# ---- nests -------------------------------------------------------------------------------------


def _trimmed(
    every: Sequence[tuple[tuple[Loop, ...], Nest]],
    first: int,
    cut: _Cut,
    span: _Span,
    registers: Collection[str],
) -> dict[Node, Node]:
    """{statement of a nest: its trimmed form}, from what is stored at `first` on."""
    handle = every[first][1].handle
    if handle.attr[3] != "scratch":
        raise _Refused("STORED", f"{handle.attr[0]} would lack what is left out")
    cuts = {handle: cut}
    for _, nest in every[first + 1 :]:
        found = _passes_on(nest, cuts)
        if found is not None:
            if nest.handle.attr[3] != "scratch":
                raise _Refused("STORED", f"{nest.name} stores what is left out")
            cuts[nest.handle] = found
    wanted: dict[Node, _Span] = {}
    changed: dict[Node, Node] = {}
    needs = {a for e in (span.lo, span.hi) if e is not None for a in e.names}
    for outer, nest in reversed(every[first:]):
        reads = {n.src[0] for n in walk(nest.value) if n.op == "load"} & set(cuts)
        if not reads and nest.handle not in cuts:
            continue
        if not needs <= {x.axis for x in outer}:
            raise _Refused("NO_LOOP", f"{nest.name} stands outside of the loops of the mask")
        value, asked = _with_bounds(nest, cuts, span, registers)
        new = nest.with_value(value)
        if nest.handle in cuts:
            new, own = _shortened(new, cuts[nest.handle].dim, wanted.get(nest.handle, span))
            asked = dict.fromkeys(reads, own) | asked
        for handle, part in asked.items():
            wanted[handle] = part.union(wanted.get(handle))
        changed[nest.build()] = new.build()
    return changed


def _passes_on(nest: Nest, cuts: Mapping[Node, _Cut]) -> _Cut | None:
    """The cut of what the nest stores, where it reads cut values element by element."""
    for node in walk(nest.value):
        if node.op != "load" or node.src[0] not in cuts:
            continue
        at = load_starts(node)[cuts[node.src[0]].dim]
        if not {x.axis for x in nest.loops} & set(at.names):
            continue
        for dim, start in enumerate(nest.starts):
            if start is at:
                table = {n: cuts[n.src[0]].value for n in walk(nest.value)
                         if n.op == "load" and n.src[0] in cuts}  # fmt: skip
                value = what_follows(nest.value, table)
                if value.op != "const":
                    raise _Refused("NOT_NEUTRAL", f"{nest.name} is not constant where it is cut")
                return _Cut(dim, value)
        raise _Refused("NOT_NEUTRAL", f"{nest.name} reads cut values at other positions")
    return None


def _with_bounds(
    nest: Nest, cuts: Mapping[Node, _Cut], span: _Span, registers: Collection[str]
) -> tuple[Node, dict[Node, _Span]]:
    """The value with its folds and reduces bounded, and the positions that they read."""
    asked: dict[Node, _Span] = {}
    memo: dict[Node, Node] = {}
    loops = {x.axis for x in nest.loops}
    for node in walk(nest.value):
        src = tuple(memo[s] for s in node.src)
        memo[node] = node if src == node.src else Node(node.op, src, node.attr)
        if node.op not in ("reduce", "fold"):
            continue
        axes = node.attr[1] if node.op == "reduce" else (node.attr[0],)
        for load in [n for n in walk(*node.src) if n.op == "load" and n.src[0] in cuts]:
            at = load_starts(load)[cuts[load.src[0]].dim]
            mine = [a for a in axes if a in at.names]
            if not mine or loops & set(at.names):
                continue
            step = _step(at, mine[0])
            if mine[0] in registers:  # lanes and rows of a fold, which is bounded itself
                continue
            if len(mine) > 1 or step is None or len(axes) > 1:
                raise _Refused("NO_LOOP", f"{nest.name} reads cut values in an odd order")
            _check_neutral(nest, node, cuts)
            inner = span.steps(step)
            memo[node] = _bounded_loop(memo[node], inner)
            asked[load.src[0]] = inner.times(step).union(asked.get(load.src[0]))
            break
    return memo[nest.value], asked


def _check_neutral(nest: Nest, node: Node, cuts: Mapping[Node, _Cut]) -> None:
    table = {
        n: cuts[n.src[0]].value for n in walk(*node.src) if n.op == "load" and n.src[0] in cuts
    }
    why = f"what is left out changes a {node.op} of {nest.name}"
    if node.op == "reduce":
        if len(node.src) != 1 or not is_identity(node.attr[0], what_follows(node.src[0], table)):
            raise _Refused("NOT_NEUTRAL", why)
        return
    _, names, n_intervals, n_outs = node.attr
    first = 2 * n_intervals + len(names)
    for name, step in zip(names, node.src[first : first + len(names)]):
        left = what_follows(step, table)
        if n_outs or left.op != "carry" or left.attr[0] != name:
            raise _Refused("NOT_NEUTRAL", why)


def _bounded_loop(node: Node, span: _Span) -> Node:
    """A fold over the part of its intervals within the span; a reduce as such a fold."""
    if node.op == "fold":
        n = 2 * node.attr[2]
        edges = [b for k in range(0, n, 2) for b in span.within(node.src[k], node.src[k + 1])]
        return Node("fold", (*edges, *node.src[n:]), node.attr)
    monoid, (axis,) = node.attr
    (body,) = node.src
    extent = dict(body.free)[axis]
    spec = MONOIDS[monoid]
    state = carry("acc", node.dtype, {a: e for a, e in body.free if a != axis})
    (step,) = spec.combine(map_, (state,), (body,))
    start = const(dtype_limit(spec.identity[0], node.dtype), node.dtype)
    bounds = span.within(const(0, "int32"), as_node(extent))
    return get(fold(axis, [bounds], {"acc": (start, step)}))


def _step(at: Node, axis: str) -> Node | None:
    """Positions from one iteration of `axis` to the next; a block that starts early to be full
    counts as if it did not, for its elements belong to others."""
    total: Node | None = None
    for atoms, factor in poly(simplify(at)).items():
        inside = [a for a in atoms if axis in a.names]
        if not inside:
            continue
        rest = list(atoms)
        rest.remove(inside[0])
        (atom,) = inside
        part = from_poly({tuple(rest): factor}, "int32")
        if atom.op == "map" and atom.attr[0] == "min" and axis not in atom.src[1].names:
            inner = _step(atom.src[0], axis)
            if inner is None:
                return None
            part = part * inner
        elif atom.op != "iota":
            return None
        total = part if total is None else total + part
    return None if total is None else simplify(total)


def _shortened(nest: Nest, dim: int, span: _Span) -> tuple[Nest, _Span]:
    """The nest with its loop over the cut dimension bounded, and the positions that it does."""
    start = nest.starts[dim]
    found = [x for x in nest.loops if x.axis in start.names and x.bind not in JAMMED]
    if len(found) > 1 or (found and found[0].bind == "grid"):
        raise _Refused("NO_LOOP", f"{nest.name} has no one loop over what is cut")
    if not found:
        return nest, _Span(None, None)
    step = _step(start, found[0].axis)
    if step is None:
        raise _Refused("NO_LOOP", f"the blocks of {nest.name} are not regular")
    steps = span.steps(step)
    lo, hi = steps.within(found[0].lo, found[0].hi)
    loops = tuple(replace(x, lo=lo, hi=hi) if x is found[0] else x for x in nest.loops)
    return Nest(loops, nest.store), steps.times(step)


def _rebuilt(stmt: Node, changed: Mapping[Node, Node]) -> Node:
    if stmt in changed:
        return changed[stmt]
    if stmt.op == "kernel":
        return Node("kernel", tuple(_rebuilt(s, changed) for s in stmt.src), stmt.attr)
    if as_nest(stmt) is not None:
        return stmt
    loop, body = as_loop(stmt)
    return build([loop], [_rebuilt(s, changed) for s in body])
