"""What a program must obey, as rows of a table: the rows of both levels and of the algebra.

A row has a code, a rule in a line and a check that yields (where, what is wrong there). A `View`
holds a program with the facts that several checks need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from autosched.ir.extent import attr_nodes
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import OPS
from autosched.ir.scalar import DTYPES, FLOATS, INTS, SCALARS, split_name
from autosched.ir.scope import scope_of, state_readers

INDEX = ("int32", "int64")


@dataclass(frozen=True)
class Statement:
    """A store with the loops around it, outermost first, in program order."""

    store: Node
    loops: tuple[Node, ...]
    path: str

    @property
    def handle(self) -> Node:
        return self.store.src[0]

    @property
    def starts(self) -> tuple[Node, ...]:
        return starts(self.store)


@dataclass(frozen=True)
class View:
    """A program and the facts that several rows need."""

    program: Program
    concrete: bool = False

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        packs = (n for p in self.program.packs for n in (p.buffer, p.value))
        return tuple(walk(*self.program.body, *packs))

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        return tuple(s for k in self.program.body for s in _statements(k, (), ""))

    @cached_property
    def loops(self) -> tuple[tuple[Node, tuple[Node, ...]], ...]:
        """Every forall with the foralls around it."""
        return tuple(x for k in self.program.body for x in _loops(k, ()))

    @cached_property
    def buffers(self) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes if n.op == "buffer")


Found = Iterator[tuple[object, str]]  # where (a node or words) and what


@dataclass(frozen=True)
class Row:
    code: str
    level: str  # algebra, tile or both
    rule: str
    check: Callable[[View], Found]


def where_text(where: object) -> str:
    if not isinstance(where, Node):
        return str(where)
    words = [str(a) for a in where.attr if isinstance(a, (str, int, float))]
    if where.op in ("load", "store"):
        words = [str(where.src[0].attr[0])]
    return " ".join([where.op, *words])


# ---- walking ----------------------------------------------------------------------------------


def starts(node: Node) -> tuple[Node, ...]:
    first = 2 if node.op == "store" else 1
    return node.src[first : first + len(node.attr[0])]


def _statements(node: Node, loops: tuple[Node, ...], path: str) -> Iterator[Statement]:
    path = f"{path}{where_text(node)}"
    if node.op == "store":
        yield Statement(node, loops, path)
    inner = (*loops, node) if node.op == "forall" else loops
    for source in node.src:
        if not source.types:
            yield from _statements(source, inner, path + " / ")


def _loops(node: Node, around: tuple[Node, ...]) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    if node.op == "forall":
        yield node, around
        around = (*around, node)
    for source in node.src:
        if not source.types:
            yield from _loops(source, around)


def loads(*roots: Node) -> Iterator[Node]:
    return (n for n in walk(*roots) if n.op == "load")


def intervals(node: Node) -> tuple[Node, ...]:
    """The operands of a fold or forall that bound its steps."""
    return node.src[: 2 * node.attr[2] if node.op == "fold" else 2]


# ---- rows of both levels ----------------------------------------------------------------------


def _inputs(view: View) -> Found:
    known = set(view.program.inputs)
    names = [n.attr[0] for n in view.program.inputs]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"input {name}", "is declared twice"
    for node in view.program.inputs:
        if node.op != "input":
            yield node, "stands among the inputs"
    for node in view.nodes:
        if node.op == "input" and node not in known:
            yield node, "is read and is no input of the program"


def _outputs(view: View) -> Found:
    names = [o.name for o in view.program.outputs]
    for out in view.program.outputs:
        where = f"output {out.name}"
        if names.count(out.name) > 1:
            yield where, "is declared twice"
        if len(out.dims) != len(out.extents) or len(set(out.dims)) != len(out.dims):
            yield where, f"has dimensions {out.dims} with extents {out.extents}"
        if out.dtype not in DTYPES:
            yield where, f"has the unknown type {out.dtype!r}"


def _types(view: View) -> Found:
    for node in view.nodes:
        for kind in node.types:
            if kind.dtype not in DTYPES:
                yield node, f"unknown type {kind.dtype!r}"


def _scalar_types(view: View) -> Found:
    for node in view.nodes:
        if node.op != "map":
            continue
        fn = split_name(node.attr[0])[0]
        wants = _OPERANDS.get(fn) or (FLOATS if SCALARS[fn].cost == "special" else DTYPES)
        given = node.src[-1].dtype
        if given not in wants:
            yield node, f"{fn} of {given}"


_OPERANDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("and", "or", "xor", "not"), ("bool",)),
    **dict.fromkeys(("bitand", "bitor", "bitxor", "bitnot", "shl", "shr", "popcount"),
                    INTS),
    "bitcast": (*FLOATS, *INTS),
    **dict.fromkeys(("isnan", "isinf", "div"), FLOATS),
    **dict.fromkeys(("add", "sub", "neg", "floordiv", "truncdiv", "mod", "fmod", "pow"),
                    (*FLOATS, *INTS)),
}  # fmt: skip


def _monoid_types(view: View) -> Found:
    for node in view.nodes:
        if node.op not in ("reduce", "scan"):
            continue
        name = node.attr[0]
        wants = _COMPONENTS.get(name)
        given = tuple(s.dtype for s in node.src)
        if wants and not all(d in w for d, w in zip(given, wants)):
            yield node, f"{name} of {', '.join(given)}"


_COMPONENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sum": ((*FLOATS, *INTS),),
    "prod": ((*FLOATS, *INTS),),
    "any": (("bool",),),
    "all": (("bool",),),
    "argmax": (DTYPES, INTS),
    "argmin": (DTYPES, INTS),
    "logsumexp": (FLOATS, FLOATS),
    "moments": (FLOATS, FLOATS, FLOATS),
}


def _carries(view: View) -> Found:
    for root in view.program.body:
        for name in sorted(root.carries):
            yield where_text(root), f"reads the state {name!r} outside its fold"
    for fold in (n for n in view.nodes if n.op == "fold"):
        _, names, n_intervals, n_outs = fold.attr
        if n_intervals < 1 or (not names and not n_outs):
            yield fold, "has no interval, or neither state nor output"
        kinds = dict(zip(names, fold.types))
        for node in state_readers(fold):
            if node.op != "carry":
                continue
            kind = kinds[node.attr[0]]
            if node.dtype != kind.dtype or set(node.axes) - set(kind.axes):
                yield node, f"is {node.type}, the state is {kind}"


def _extents(view: View) -> Found:
    for node in view.nodes:
        for extent in attr_nodes(node.attr):
            if extent.free or any(n.op not in ("map", "const", "knob") for n in walk(extent)):
                yield node, "an extent depends on more than knobs"
        for kind in node.types:
            for axis, size in kind.axes:
                if isinstance(size, int) and size < 0:
                    yield node, f"axis {axis} has extent {size}"


def _names(view: View) -> Found:
    for node in view.nodes:
        scope = scope_of(node)
        words = [a for a, _ in (*scope.binds, *scope.mentions)] + list(scope.states)
        for word in words:
            if not word or any(c.isspace() for c in word):
                yield node, f"{word!r} is no name of an axis or state"


def _index_types(view: View) -> Found:
    for node in view.nodes:
        edges: Iterable[Node] = ()
        if node.op in ("fold", "forall"):
            edges = intervals(node)
        elif node.op in ("load", "store"):
            edges = starts(node)
            if node.attr[1]:
                mask = node.src[-2] if node.op == "load" else node.src[-1]
                if mask.dtype != "bool":
                    yield node, f"the mask is {mask.dtype}"
                if node.op == "load" and node.src[-1].dtype != node.src[0].dtype:
                    yield node, f"the fill is {node.src[-1].dtype}"
        elif node.op == "slice":
            edges = node.src[1:]
        for edge in edges:
            if edge.dtype not in INDEX:
                yield node, f"a position or bound is {edge.dtype}"


# ---- rows of the algebra level ----------------------------------------------------------------


def _algebra_ops(view: View) -> Found:
    for node in view.nodes:
        if OPS[node.op].level == "tile":
            yield node, "belongs to the tile level"


def _algebra_outputs(view: View) -> Found:
    if len(view.program.outputs) != len(view.program.body):
        yield "program", f"{len(view.program.outputs)} outputs, {len(view.program.body)} values"
        return
    for out, value in zip(view.program.outputs, view.program.body):
        where = f"output {out.name}"
        if len(value.types) != 1:
            yield where, f"is a {value.op} with {len(value.types)} results"
        elif value.dtype != out.dtype:
            yield where, f"is {value.dtype}, declared {out.dtype}"
        elif set(value.axes) - set(zip(out.dims, out.extents)):
            yield where, f"has axes {value.axes}, declared {tuple(zip(out.dims, out.extents))}"
    if view.program.packs:
        yield "program", "packs belong to the tile level"


COMMON_ROWS: tuple[Row, ...] = (
    Row("INPUT", "both", "what is read as an input is declared, once", _inputs),
    Row("OUTPUT", "both", "outputs have distinct names, and an extent per dimension", _outputs),
    Row("TYPE", "both", "every type is one of scalar.DTYPES", _types),
    Row("SCALAR_TYPE", "both", "scalar functions get operands that they are for", _scalar_types),
    Row("MONOID_TYPE", "both", "monoids get components that they are for", _monoid_types),
    Row("CARRY", "both", "states are read inside their fold, as what they are", _carries),
    Row("EXTENT", "both", "extents are numbers from 0 on, or expressions over knobs", _extents),
    Row("NAME", "both", "axes and states have names without spaces", _names),
    Row("INDEX_TYPE", "both", "positions and bounds are integers, masks are bools", _index_types),
    Row("ALGEBRA_OP", "algebra", "the algebra level has no tile operators", _algebra_ops),
    Row("ALGEBRA_OUTPUT", "algebra", "each output has a value that fits it", _algebra_outputs),
)
