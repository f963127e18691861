"""The op table of both levels, the builders that make nodes, and what each op means.

algebra: input const iota map take reaxis reduce scan fold get
tile:    the same, and  buffer load store forall kernel place slice dot trisolve carry knob

`OPS[op].infer(src, attr)` returns (result types, free axes, unbound carries) or raises IRError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autosched.ir.monoid import MONOIDS
from autosched.ir.node import Axes, Extent, IRError, Node, Operand, Type, walk
from autosched.ir.scalar import DTYPES, FLOATS, ITEMSIZE, SCALARS, split_name

# A loop bound to "arrive" stands inside of a grid, with statements behind it: its iterations are
# programs of the grid, of which the one that ends last goes on with these statements; one bound to
# "share" the same, but that these programs are dealt out to fewer (see `rules.share`).
BINDS = ("grid", "persistent", "serial", "unroll", "lane", "arrive", "share")
HOMES = ("register", "shared", "scratch", "packed", "output")
# How a kernel is launched and its loops run; what each means, and where it is of use, stands in
# `gpu_facts`.
KERNEL_FACTS = ("warps", "stages", "descriptors", "persistent", "group", "snake", "flatten",
                "specialise", "registers", "epilogue", "swap", "inner", "promote",
                "programs", "shared", "pieces")  # fmt: skip
PRECISIONS = ("tf32", "tf32x3")  # of a dot's float32 products: 10 bits of mantissa, three such
Inferred = tuple[tuple[Type, ...], Axes, frozenset[str]]


@dataclass(frozen=True)
class OpSpec:
    level: str  # "both" | "tile"
    infer: Callable[[tuple[Node, ...], tuple[Any, ...]], Inferred]
    doc: str


def join_axes(*groups: Iterable[tuple[str, Extent]]) -> Axes:
    """The union of axes by name; one name with two extents is an error."""
    out: dict[str, Extent] = {}
    for group in groups:
        for name, extent in group:
            if out.setdefault(name, extent) is not extent and out[name] != extent:
                raise IRError(f"axis {name!r} has extent {out[name]} and {extent}")
    return tuple(sorted(out.items(), key=lambda item: item[0]))


def drop(axes: Axes, names: Iterable[str]) -> Axes:
    gone = set(names)
    return tuple(item for item in axes if item[0] not in gone)


def _free(nodes: Iterable[Node]) -> Axes:
    return join_axes(*(n.free for n in nodes))


def _carries(nodes: Iterable[Node]) -> frozenset[str]:
    return frozenset().union(*(n.carries for n in nodes))


def _value(dtype: str, axes: Axes, src: tuple[Node, ...]) -> Inferred:
    return (Type(dtype, axes),), axes, _carries(src)


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise IRError(message)


# ---- leaves -----------------------------------------------------------------------------------


def _infer_input(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    name, dims, dtype, kind = attr
    _check(dtype in DTYPES, f"input {name!r}: unknown dtype {dtype!r}")
    _check(kind in ("arg", "weight"), f"input {name!r}: kind {kind!r}")
    _check(len({a for a, _ in dims}) == len(dims), f"input {name!r} repeats an axis")
    return _value(dtype, join_axes(dims), src)


def _infer_const(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    return _value(attr[1], (), src)


def _infer_iota(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    axis, extent, dtype = attr
    return _value(dtype, ((axis, extent),), src)


def _infer_knob(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    return _value("int32", (), src)


def _infer_carry(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    name, dtype, axes = attr
    return (Type(dtype, join_axes(axes)),), join_axes(axes), frozenset((name,))


def _infer_buffer(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    name, _extents, dtype, home = attr
    _check(home in HOMES, f"buffer {name!r}: home {home!r}")
    return (Type(dtype),), (), frozenset()


# ---- values -----------------------------------------------------------------------------------


def _infer_map(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    fn, param = split_name(attr[0])
    _check(fn in SCALARS, f"unknown scalar function {fn!r}")
    spec = SCALARS[fn]
    _check(len(src) == spec.arity, f"{fn} takes {spec.arity} operands, got {len(src)}")
    dtypes = [s.dtype for s in src]
    if fn == "where":
        _check(dtypes[0] == "bool", f"where: condition is {dtypes[0]}, wants bool")
        dtypes = dtypes[1:]
    _check(len(set(dtypes)) == 1, f"{fn}: operand types differ: {dtypes}")
    result = {"same": dtypes[0], "second": dtypes[0], "bool": "bool"}.get(spec.result, param)
    _check(result in DTYPES, f"{fn}: unknown dtype {result!r}")
    _check(spec.result != "bits" or ITEMSIZE[result] == ITEMSIZE[dtypes[0]],
           f"{fn}: {dtypes[0]} and {result} differ in width")  # fmt: skip
    return _value(result, join_axes(*(s.axes for s in src)), src)


def _infer_take(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    value, index = src
    (axis,) = attr
    _check(axis in value.names, f"take: no axis {axis!r} in {value.names}")
    _check(index.dtype in ("int32", "int64"), f"take: index is {index.dtype}")
    return _value(value.dtype, join_axes(drop(value.axes, (axis,)), index.axes), src)


def _infer_reaxis(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    value, *exprs = src
    (axes,) = attr
    _check(len(axes) == len(exprs), "reaxis: one expression per axis")
    for axis, expr in zip(axes, exprs):
        _check(axis in value.names, f"reaxis: no axis {axis!r} in {value.names}")
        _check(expr.dtype == "int32", f"reaxis: {axis} := {expr.dtype}, wants int32")
    return _value(value.dtype, join_axes(drop(value.axes, axes), *(e.axes for e in exprs)), src)


def _infer_reduce(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    monoid, axes = attr
    _check(monoid in MONOIDS, f"unknown monoid {monoid!r}")
    spec = MONOIDS[monoid]
    _check(len(src) == spec.arity, f"{monoid} has {spec.arity} components, got {len(src)}")
    joined = join_axes(*(s.axes for s in src))
    for axis in axes:
        _check(axis in dict(joined), f"reduce {monoid}: no axis {axis!r} in {joined}")
    kept = drop(joined, axes)
    return tuple(Type(s.dtype, kept) for s in src), kept, _carries(src)


def _infer_scan(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    monoid, axis, _exclusive, _reverse = attr
    _check(monoid in MONOIDS, f"unknown monoid {monoid!r}")
    _check(len(src) == MONOIDS[monoid].arity, f"scan {monoid}: wrong number of components")
    joined = join_axes(*(s.axes for s in src))
    _check(axis in dict(joined), f"scan: no axis {axis!r}")
    return tuple(Type(s.dtype, joined) for s in src), joined, _carries(src)


def _infer_fold(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    axis, names, n_intervals, n_outs = attr
    n = len(names)
    bounds, rest = src[: 2 * n_intervals], src[2 * n_intervals :]
    inits, yields, outs = rest[:n], rest[n : 2 * n], rest[2 * n :]
    _check(len(outs) == n_outs and len(rest) == 2 * n + n_outs, "fold: wrong operand count")
    types = []
    for name, init, step in zip(names, inits, yields):
        _check(init.dtype == step.dtype, f"fold state {name}: {init.dtype} becomes {step.dtype}")
        kept = join_axes(init.axes, drop(step.axes, (axis,)), *(b.axes for b in bounds))
        types.append(Type(init.dtype, kept))
    body = (*yields, *outs)
    for out in outs:
        stacked = join_axes(out.axes, _step_axis(axis, body, bounds), *(b.axes for b in bounds))
        types.append(Type(out.dtype, stacked))
    free = join_axes(_free(bounds), _free(inits), drop(_free(yields), (axis,)),
                     *(t.axes for t in types[n:]))  # fmt: skip
    return tuple(types), free, (_carries(body) - set(names)) | _carries((*bounds, *inits))


def _step_axis(axis: str, body: tuple[Node, ...], bounds: tuple[Node, ...]) -> Axes:
    """The fold's axis as an axis of its stacked outputs, also where only carries vary along it."""
    for node in body:
        if axis in node.names:
            return ((axis, node.extent(axis)),)
    last = bounds[-1]
    open_ = not last.free and all(n.op in ("map", "const", "knob") for n in walk(last))
    _check(open_, f"fold: nothing tells the extent of the stacked axis {axis!r}")
    return ((axis, last.attr[0] if last.op == "const" else last),)


def _infer_get(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    (index,) = attr
    _check(0 <= index < len(src[0].types), f"get({index}) of {len(src[0].types)} results")
    kind = src[0].types[index]
    return (kind,), kind.axes, src[0].carries


# ---- tile level -------------------------------------------------------------------------------


def _tile_axes(dims: tuple[Any, ...]) -> Axes:
    return join_axes((d[0], d[1]) for d in dims if d is not None)


def _infer_load(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    dims, masked = attr
    handle, *rest = src
    _check(handle.op in ("input", "buffer"), f"load of {handle.op}")
    _check(len(rest) == len(dims) + 2 * masked, "load: one start per dimension, mask and fill")
    _check(len(dims) == len(handle.attr[1]), f"load: {handle.attr[0]} has another rank")
    axes = join_axes(_tile_axes(dims), *(s.axes for s in rest))
    return (Type(handle.dtype, axes),), axes, _carries(rest)


def _infer_store(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    dims, masked = attr
    handle, value, *rest = src
    _check(handle.op == "buffer", f"store to {handle.op}")
    _check(len(rest) == len(dims) + masked, "store: one start per dimension, then the mask")
    _check(len(dims) == len(handle.attr[1]), f"store: {handle.attr[0]} has another rank")
    _check(value.dtype == handle.dtype, f"store of {value.dtype} into {handle.dtype}")
    tile = _tile_axes(dims)
    free = join_axes(value.free, *(s.free for s in rest))
    return (), drop(join_axes(free, tile), dict(tile)), _carries((value, *rest))


def _infer_forall(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    axis, bind = attr
    lo, hi, *body = src
    _check(bind in BINDS, f"forall {axis}: bind {bind!r}")
    _check(all(not s.types for s in body), "forall: the body holds statements")
    return (), join_axes(lo.free, hi.free, drop(_free(body), (axis,))), _carries(src)


def _infer_kernel(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    for axis, bind in attr[1] if len(attr) > 1 else ():
        _check(bind in BINDS, f"kernel {attr[0]}: {axis} is bound to {bind!r}")
    for fact, _ in attr[2] if len(attr) > 2 else ():
        _check(fact in KERNEL_FACTS, f"kernel {attr[0]}: unknown fact {fact!r}")
    _check(all(not s.types for s in src), "kernel: the body holds statements")
    _check(not _free(src), f"kernel {attr[0]}: unbound axes {_free(src)}")
    return (), (), frozenset()


def _infer_place(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    home, dims = attr
    _check(home in HOMES, f"place: home {home!r}")
    _check(set(dims) <= set(src[0].names), f"place: {dims} are not axes of {src[0].names}")
    return _value(src[0].dtype, src[0].axes, src)


def _infer_slice(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    axis, new, size = attr
    value, start = src
    _check(axis in value.names, f"slice: no axis {axis!r}")
    return _value(
        value.dtype, join_axes(drop(value.axes, (axis,)), ((new, size),), start.axes), src
    )


def _infer_dot(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    axes, acc, *precision = attr
    _check(len(src) == 2, f"dot takes two tiles, got {len(src)}")
    _check(set(precision) <= set(PRECISIONS), f"dot: precision {precision}")
    joined = join_axes(*(s.axes for s in src))
    for axis in axes:
        _check(all(axis in s.names for s in src), f"dot: {axis!r} is not shared")
    _check(acc in DTYPES, f"dot: accumulator {acc!r}")
    return _value(acc, drop(joined, axes), src)


def _infer_trisolve(src: tuple[Node, ...], attr: tuple[Any, ...]) -> Inferred:
    row, col = attr
    matrix, rhs = src
    _check({row, col} <= set(matrix.names), "trisolve: matrix needs the row and column axes")
    _check(row in rhs.names and col not in rhs.names, "trisolve: right side is over rows")
    return _value(rhs.dtype, join_axes(drop(matrix.axes, (row, col)), rhs.axes), src)


OPS: dict[str, OpSpec] = {
    "input": OpSpec("both", _infer_input, "a tensor argument (arg) or compile-time constant"),
    "const": OpSpec("both", _infer_const, "a scalar literal"),
    "iota": OpSpec("both", _infer_iota, "the coordinate along an axis"),
    "map": OpSpec("both", _infer_map, "a scalar function of values joined by axis name"),
    "take": OpSpec("both", _infer_take, "value read along an axis at an integer value"),
    "reaxis": OpSpec("both", _infer_reaxis, "value read at quasi-affine functions of new axes"),
    "reduce": OpSpec("both", _infer_reduce, "a monoid over axes"),
    "scan": OpSpec("both", _infer_scan, "prefix form of a reduce"),
    "fold": OpSpec("both", _infer_fold, "a recurrence over an axis or intervals of it"),
    "get": OpSpec("both", _infer_get, "one result of a node with several"),
    "carry": OpSpec("both", _infer_carry, "a fold's state inside its body"),
    "knob": OpSpec("tile", _infer_knob, "a named integer of the schedule"),
    "buffer": OpSpec("tile", _infer_buffer, "memory a kernel stores to: name, extents, home"),
    "load": OpSpec("tile", _infer_load, "a box of a buffer or input, with a mask and its fill"),
    "store": OpSpec("tile", _infer_store, "a value into a box of a buffer"),
    "forall": OpSpec("tile", _infer_forall, "independent iterations over an interval"),
    "kernel": OpSpec("tile", _infer_kernel, "one launch: a named sequence of statements"),
    "place": OpSpec("tile", _infer_place, "where a value lives, and the order of its axes there"),
    "slice": OpSpec("tile", _infer_slice, "a box of a placed value"),
    "dot": OpSpec("tile", _infer_dot, "contraction of two tiles with an accumulator type"),
    "trisolve": OpSpec("tile", _infer_trisolve, "x of (I + strict lower L) x = rhs"),
}


# ---- builders ---------------------------------------------------------------------------------


def input_(
    name: str, dims: Mapping[str, Extent], dtype: str = "float32", kind: str = "arg"
) -> Node:
    """A tensor in row-major order of `dims` (axis name to extent)."""
    return Node("input", (), (name, tuple(dims.items()), dtype, kind))


def const(value: float | bool, dtype: str) -> Node:
    kind = float if dtype in FLOATS else bool if dtype == "bool" else int
    return Node("const", (), (kind(value), dtype))


def iota(axis: str, extent: Extent, dtype: str = "int32") -> Node:
    return Node("iota", (), (axis, extent, dtype))


def knob(name: str) -> Node:
    return Node("knob", (), (name,))


def map_(fn: str, *operands: Operand) -> Node:
    """`fn` of the operands; Python scalars take the type of the first node among them."""
    typed = operands[1:] if split_name(fn)[0] == "where" else operands
    like = next((o.dtype for o in typed if isinstance(o, Node)), None)
    _check(like is not None, f"{fn}: no operand is a node")
    assert like is not None
    src = tuple(o if isinstance(o, Node) else const(o, like) for o in operands)
    return Node("map", src, (fn,))


def cast(value: Node, dtype: str) -> Node:
    return value if value.dtype == dtype else Node("map", (value,), (f"cast:{dtype}",))


def bitcast(value: Node, dtype: str) -> Node:
    """The bits of `value` read as a type of the same width."""
    return value if value.dtype == dtype else Node("map", (value,), (f"bitcast:{dtype}",))


def where(cond: Node, yes: Operand, no: Operand) -> Node:
    return map_("where", cond, yes, no)


def take(value: Node, axis: str, index: Node) -> Node:
    return Node("take", (value, index), (axis,))


def reaxis(value: Node, exprs: Mapping[str, Node]) -> Node:
    """`value` with each axis read at an int32 expression over iotas of the new axes."""
    return Node("reaxis", (value, *exprs.values()), (tuple(exprs),)) if exprs else value


def rename(value: Node, names: Mapping[str, str]) -> Node:
    """Axes renamed: `{old: new}`; names that stay or are absent are skipped."""
    todo = {a: n for a, n in names.items() if a in value.names and a != n}
    return reaxis(value, {a: iota(n, value.extent(a)) for a, n in todo.items()})


def reduce_(monoid: str, axes: str | Sequence[str], *values: Node) -> Node:
    names = (axes,) if isinstance(axes, str) else tuple(axes)
    return Node("reduce", values, (monoid, names))


def sum_(axes: str | Sequence[str], value: Node) -> Node:
    return reduce_("sum", axes, value)


def max_(axes: str | Sequence[str], value: Node) -> Node:
    return reduce_("max", axes, value)


def scan(
    monoid: str, axis: str, *values: Node, exclusive: bool = False, reverse: bool = False
) -> Node:
    return Node("scan", values, (monoid, axis, exclusive, reverse))


def carry(name: str, dtype: str, axes: Mapping[str, Extent]) -> Node:
    """The state `name` inside a fold's body; bind it with `fold(states={name: ...})`."""
    return Node("carry", (), (name, dtype, join_axes(axes.items())))


def fold(
    axis: str,
    bounds: Sequence[tuple[Node | int, Node | int]],
    states: Mapping[str, tuple[Node, Node]],
    outs: Sequence[Node] = (),
) -> Node:
    """States {name: (init, yield)} over the intervals of `axis`; results: states, then `outs`
    stacked along `axis`. Inside yields and outs, `axis` reads as the current step."""
    edges = tuple(const(b, "int32") if isinstance(b, int) else b for lohi in bounds for b in lohi)
    inits = tuple(init for init, _ in states.values())
    yields = tuple(step for _, step in states.values())
    attr = (axis, tuple(states), len(bounds), len(outs))
    return Node("fold", (*edges, *inits, *yields, *outs), attr)


def get(node: Node, index: int = 0) -> Node:
    return node if len(node.types) == 1 else Node("get", (node,), (index,))


def buffer(name: str, extents: Sequence[Extent], dtype: str, home: str) -> Node:
    return Node("buffer", (), (name, tuple(extents), dtype, home))


# A tile axis along one buffer dimension: name, size, stride; 0 where the start varies along it.
Dim = tuple[str, Extent, int]


def load(
    handle: Node,
    starts: Sequence[Node | int],
    dims: Sequence[Dim | None] | None = None,
    mask: Node | None = None,
    fill: Node | None = None,
) -> Node:
    """A box: dimension n covers `starts[n] + stride * iota(axis)` for `dims[n]`, or just
    `starts[n]` where it is None. Where `mask` is false the value is `fill` and nothing is read."""
    at = tuple(const(s, "int32") if isinstance(s, int) else s for s in starts)
    extra = () if mask is None else (mask, fill if fill is not None else const(0, handle.dtype))
    return Node("load", (handle, *at, *extra), (tuple(dims or (None,) * len(at)), mask is not None))


def store(
    handle: Node,
    value: Node,
    starts: Sequence[Node | int],
    dims: Sequence[Dim | None] | None = None,
    mask: Node | None = None,
) -> Node:
    at = tuple(const(s, "int32") if isinstance(s, int) else s for s in starts)
    extra = () if mask is None else (mask,)
    attr = (tuple(dims or (None,) * len(at)), mask is not None)
    return Node("store", (handle, value, *at, *extra), attr)


def forall(axis: str, lo: Node | int, hi: Node | int, bind: str, body: Sequence[Node]) -> Node:
    edges = tuple(const(b, "int32") if isinstance(b, int) else b for b in (lo, hi))
    return Node("forall", (*edges, *body), (axis, bind))


def kernel(
    name: str,
    body: Sequence[Node],
    binds: Mapping[str, str] | None = None,
    facts: Mapping[str, Extent] | None = None,
) -> Node:
    """One launch. `binds` says how reduces and folds inside traverse the axes that they bind,
    `facts` how it is launched (see KERNEL_FACTS)."""
    attr: tuple[Any, ...] = (name,)
    if binds or facts:
        attr += (tuple(sorted((binds or {}).items())),)
    if facts:
        attr += (tuple(sorted(facts.items())),)
    return Node("kernel", tuple(body), attr)


def kernel_facts(node: Node) -> dict[str, Extent]:
    """The facts of a kernel by name."""
    return dict(node.attr[2]) if len(node.attr) > 2 else {}


def place(value: Node, home: str, dims: Sequence[str] = ()) -> Node:
    return Node("place", (value,), (home, tuple(dims) or value.names))


def slice_(value: Node, axis: str, start: Node, new: str, size: Extent) -> Node:
    return Node("slice", (value, start), (axis, new, size))


def dot(
    a: Node, b: Node, axes: str | Sequence[str], acc: str = "float32", precision: str = ""
) -> Node:
    """A contraction; `precision` says how float32 operands are multiplied: exactly, where empty."""
    names = (axes,) if isinstance(axes, str) else tuple(axes)
    return Node("dot", (a, b), (names, acc, precision) if precision else (names, acc))


def trisolve(matrix: Node, rhs: Node, row: str, col: str) -> Node:
    return Node("trisolve", (matrix, rhs), (row, col))


def _unary(fn: str) -> Callable[[Node], Node]:
    def build(value: Node) -> Node:
        return map_(fn, value)

    return build


exp, exp2, log, sqrt, rsqrt, erf, tanh, isnan, abs_ = map(
    _unary, ("exp", "exp2", "log", "sqrt", "rsqrt", "erf", "tanh", "isnan", "abs")
)


def maximum(a: Operand, b: Operand) -> Node:
    return map_("max", a, b)


def minimum(a: Operand, b: Operand) -> Node:
    return map_("min", a, b)


def eq(a: Operand, b: Operand) -> Node:
    return map_("eq", a, b)


def sigmoid(value: Node) -> Node:
    return 1.0 / (1.0 + exp(-value))
