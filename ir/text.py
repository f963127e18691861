"""Programs as text: `to_text(program)`; `parse` reads it back to the same object.

One node a line, `%name: type = op ...`, and one statement a line, bodies indented. Index
expressions and masks stand inline; `axis m.o = 4` gives the extent of a coordinate that is written
`m.o`; `$BM` is a knob. Value lines stand before the first statement that uses them.

    program tile
    in %x = x: f32[m=7, k=3] arg
    out y: f32[m=7]
    axis k = 3
    axis m = 7
    %y = buffer y: f32[7] output
    kernel rows:
      forall m in 0 .. 7 grid:
        %0: f32[k=3, m=7] = load %x[m, k]
        %1: f32[m=7] = reduce sum k %0
        store %y[m] = %1
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autosched.ir.key import content_key
from autosched.ir.node import Extent, IRError, Node, Program, Type, walk
from autosched.ir.parse import ParseError, parse
from autosched.ir.syntax import ATOM, COMPARISONS, INFIX, SHORT, literal_text, name_text, type_text

__all__ = ["ParseError", "content_key", "node_text", "parse", "to_text"]

INLINE_NODES = 16  # a longer index expression gets a line of its own


def to_text(program: Program) -> str:
    """The text form of a program; `parse(to_text(p)) == p`."""
    printer = _Printer()
    printer.header(program)
    if program.level == "algebra":
        if len(program.body) != len(program.outputs):
            raise IRError("an algebra program has one value per output")
        printer.values(program.body)
        for out, value in zip(program.outputs, program.body):
            dims = printer.dims(zip(out.dims, out.extents))
            kind = f"{name_text(out.name)}: {SHORT[out.dtype]}[{dims}]"
            printer.line(f"out {kind} = {printer.operand(value)}")
    else:
        for statement in program.body:
            printer.statement(statement)
    return "\n".join(printer.lines) + "\n"


def node_text(*roots: Node) -> str:
    """The lines of bare nodes, for people to read."""
    printer = _Printer()
    printer.axis_table(roots)
    for root in roots:
        if root.types:
            printer.values([root])
        else:
            printer.statement(root)
    return "\n".join(printer.lines) + "\n"


class _Printer:
    """Collects lines; remembers which nodes have a name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[Node, str] = {}
        self.taken: set[str] = set()
        self.extents: dict[str, Extent] = {}
        self.depth = 0
        self.sizes: dict[Node, int] = {}

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    # ---- header ---------------------------------------------------------------------------

    def header(self, program: Program) -> None:
        self.line(f"program {program.level}")
        roots = [*program.body, *(n for p in program.packs for n in (p.buffer, p.value))]
        self.axis_table(roots)
        for node in program.inputs:
            self.line(f"in {self.named(node)} = {self._input(node)}")
        if program.level != "algebra":
            for out in program.outputs:
                dims = self.dims(zip(out.dims, out.extents))
                self.line(f"out {name_text(out.name)}: {SHORT[out.dtype]}[{dims}]")
            self.values(n for n in walk(*roots) if n.op == "buffer")
        for pack in program.packs:
            self.values([pack.value])
            dims = ", ".join(map(name_text, pack.dims))
            self.line(f"pack {self.names[pack.buffer]}[{dims}] = {self.operand(pack.value)}")

    def axis_table(self, roots: Iterable[Node]) -> None:
        """Declares the extent of every axis that an int32 coordinate is taken along."""
        for node in walk(*roots):
            if node.op == "iota" and node.attr[2] == "int32":
                self.extents.setdefault(node.attr[0], node.attr[1])
        for axis, extent in sorted(self.extents.items()):
            self.line(f"axis {name_text(axis)} = {self.extent(extent)}")

    # ---- values ---------------------------------------------------------------------------

    def values(self, roots: Iterable[Node]) -> None:
        """Lines for everything below the roots that has none yet and is not written inline."""
        stack = [(r, False) for r in reversed(list(roots))]
        while stack:
            node, ready = stack.pop()
            if node in self.names or self.inline(node):
                continue
            if ready:
                self._value(node)
            else:
                stack.append((node, True))
                stack.extend((s, False) for s in reversed(self._before(node)))

    def _before(self, node: Node) -> list[Node]:
        """What must have a line before the node: of a fold's body only what does not vary."""
        if node.op != "fold":
            return list(node.src)
        axis, names, n_intervals, _ = node.attr
        outer = 2 * n_intervals + len(names)
        steady = []
        todo = list(reversed(node.src[outer:]))
        seen: set[Node] = set()
        while todo:
            inner = todo.pop()
            if inner in seen or inner in self.names:
                continue
            seen.add(inner)
            varies = inner.carries & set(names) or axis in dict(inner.free)
            if varies:
                todo.extend(reversed(inner.src))
            else:
                steady.append(inner)
        return [*node.src[:outer], *steady]

    def _value(self, node: Node) -> None:
        if node.op == "fold":
            self._fold(node)
        elif node.op in _LEAVES:
            self.line(f"{self.named(node)} = {_LEAVES[node.op](self, node)}")
        else:
            text = _FORMS[node.op](self, node)
            self.line(f"{self.named(node)}: {self.types(node.types)} = {text}")

    def _fold(self, node: Node) -> None:
        axis, names, n_intervals, n_outs = node.attr
        src = [*node.src]
        bounds, rest = src[: 2 * n_intervals], src[2 * n_intervals :]
        inits, yields = rest[: len(names)], rest[len(names) : 2 * len(names)]
        spans = ", ".join(
            f"{self.operand(lo)} .. {self.operand(hi)}" for lo, hi in zip(bounds[::2], bounds[1::2])
        )
        start = ", ".join(f"{name_text(n)} = {self.operand(i)}" for n, i in zip(names, inits))
        own = self._fresh("")
        self.line(
            f"{own}: {self.types(node.types)} = fold {name_text(axis)} in {spans} from {start}:"
        )
        self.depth += 1
        self.values([*yields, *rest[2 * len(names) :]])
        self.line("yield " + ", ".join(map(self.operand, yields)))
        if n_outs:
            self.line("stack " + ", ".join(map(self.operand, rest[2 * len(names) :])))
        self.depth -= 1
        self.names[node] = own

    def named(self, node: Node) -> str:
        hint = node.attr[0] if node.op in ("input", "buffer", "carry") else ""
        self.names[node] = self._fresh(hint)
        return self.names[node]

    def _fresh(self, hint: str) -> str:
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "_" for c in hint)
        if plain[:1].isdigit():
            plain = "_" + plain
        name = plain or str(len(self.taken))
        n = 0
        while name in self.taken:
            n += 1
            name = f"{plain or 'v'}_{n}"
        self.taken.add(name)
        return "%" + name

    # ---- types and extents ----------------------------------------------------------------

    def extent(self, extent: Extent) -> str:
        if not isinstance(extent, Node):
            return str(extent)
        if extent.op == "const":
            return f"node({literal_text(*extent.attr)})"
        return self.expression(extent)[0]

    def dims(self, axes: Iterable[tuple[str, Extent]]) -> str:
        return ", ".join(f"{name_text(a)}={self.extent(e)}" for a, e in axes)

    def types(self, types: Sequence[Type]) -> str:
        texts = [type_text(t) for t in types]
        return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"

    # ---- expressions ----------------------------------------------------------------------

    def inline(self, node: Node) -> bool:
        """Leaves without a name of their own, and index expressions and masks of some length."""
        return self._size(node) <= INLINE_NODES

    def _size(self, node: Node) -> int:
        """Nodes of the expression as it would be written; large where it cannot be inline."""
        if node not in self.sizes:
            if node.op in ("const", "iota", "knob"):
                size = 1
            elif node.op == "map" and all(
                s.dtype == "bool" or s.dtype in ("int32", "int64") for s in (node, *node.src)
            ):
                size = 1 + sum(self._size(s) for s in node.src)
            else:
                size = INLINE_NODES + 1
            self.sizes[node] = min(size, INLINE_NODES + 1)
        return self.sizes[node]

    def operand(self, node: Node) -> str:
        """A node as an operand of a form: its name, or the expression."""
        return self.names[node] if node in self.names else self.expression(node)[0]

    def factor(self, node: Node) -> str:
        """An operand that other text follows without a separator."""
        text, level = (self.names[node], ATOM) if node in self.names else self.expression(node)
        return text if level == ATOM else f"({text})"

    def expression(self, node: Node) -> tuple[str, int]:
        """(text, level of its loosest operator) of a node that is written out."""
        if node in self.names:
            return self.names[node], ATOM
        if node.op == "const":
            return literal_text(*node.attr), ATOM
        if node.op == "knob":
            return "$" + name_text(node.attr[0]), ATOM
        if node.op == "iota":
            return self._iota(node), ATOM
        return self.map_text(node)

    def _iota(self, node: Node) -> str:
        axis, extent, dtype = node.attr
        if dtype == "int32" and axis in self.extents and self.extents[axis] == extent:
            return name_text(axis)
        return f"iota({name_text(axis)}, {self.extent(extent)}, {SHORT[dtype]})"

    def map_text(self, node: Node) -> tuple[str, int]:
        fn = node.attr[0]
        if fn not in INFIX:
            inner = ", ".join(self.expression(s)[0] for s in node.src)
            head, _, param = fn.partition(":")
            return f"{head}.{SHORT[param]}({inner})" if param else f"{head}({inner})", ATOM
        sign, level = INFIX[fn]
        parts = []
        for n, source in enumerate(node.src):
            text, inner_level = self.expression(source)
            tight = inner_level > level or (
                inner_level == level and n == 0 and level != COMPARISONS
            )
            parts.append(text if tight else f"({text})")
        return f" {sign} ".join(parts), level

    # ---- statements -----------------------------------------------------------------------

    def statement(self, node: Node) -> None:
        if node.op == "kernel":
            binds = node.attr[1] if len(node.attr) > 1 else ()
            inner = ", ".join(f"{name_text(axis)} {bind}" for axis, bind in binds)
            facts = node.attr[2] if len(node.attr) > 2 else ()
            sizes = ", ".join(f"{name_text(fact)}={self.extent(e)}" for fact, e in facts)
            tail = (f" with {inner}" if inner else "") + (f" on {sizes}" if sizes else "")
            self._block(f"kernel {name_text(node.attr[0])}{tail}:", node.src)
        elif node.op == "forall":
            self.values(node.src[:2])
            lo, hi = map(self.operand, node.src[:2])
            axis, bind = node.attr
            self._block(f"forall {name_text(axis)} in {lo} .. {hi} {bind}:", node.src[2:])
        else:
            self.values(node.src)
            handle, value, *rest = node.src
            dims, masked = node.attr
            box = self.box(dims, rest)
            mask = f" mask {self.operand(rest[-1])}" if masked else ""
            self.line(f"store {self.names[handle]}[{box}] = {self.operand(value)}{mask}")

    def _block(self, head: str, body: Iterable[Node]) -> None:
        self.line(head)
        self.depth += 1
        for statement in body:
            self.statement(statement)
        self.depth -= 1

    def box(self, dims: Sequence[Any], starts: Sequence[Node]) -> str:
        parts = []
        for dim, start in zip(dims, starts):
            tile = ""
            if dim is not None:
                axis, size, stride = dim
                tile = f" :: {name_text(axis)}={self.extent(size)}"
                tile += f" by {stride}" if stride != 1 else ""
            parts.append(self.operand(start) + tile)
        return ", ".join(parts)

    # ---- forms ----------------------------------------------------------------------------

    def _input(self, node: Node) -> str:
        name, dims, dtype, kind = node.attr
        return f"{name_text(name)}: {SHORT[dtype]}[{self.dims(dims)}] {kind}"

    def _buffer(self, node: Node) -> str:
        name, extents, dtype, home = node.attr
        sizes = ", ".join(map(self.extent, extents))
        return f"buffer {name_text(name)}: {SHORT[dtype]}[{sizes}] {home}"

    def _carry(self, node: Node) -> str:
        name, dtype, axes = node.attr
        return f"carry {name_text(name)}: {SHORT[dtype]}[{self.dims(axes)}]"

    def _reaxis(self, node: Node) -> str:
        value, *exprs = node.src
        at = ", ".join(f"{name_text(a)} := {self.operand(e)}" for a, e in zip(node.attr[0], exprs))
        return f"reaxis {self.factor(value)} at {at}"

    def _load(self, node: Node) -> str:
        dims, masked = node.attr
        handle, *rest = node.src
        tail = f" mask {self.operand(rest[-2])} fill {self.operand(rest[-1])}" if masked else ""
        return f"load {self.names[handle]}[{self.box(dims, rest)}]{tail}"

    def _scan(self, node: Node) -> str:
        monoid, axis, exclusive, reverse = node.attr
        flags = " exclusive" * exclusive + " reverse" * reverse
        return f"scan {monoid} {name_text(axis)}{flags} {self.factors(node.src)}"

    def factors(self, nodes: Iterable[Node]) -> str:
        return ", ".join(map(self.operand, nodes))

    def axes(self, names: Iterable[str]) -> str:
        return ", ".join(map(name_text, names))

    def _slice(self, node: Node) -> str:
        axis, new, size = node.attr
        value, start = map(self.factor, node.src)
        return (
            f"slice {value} {name_text(axis)} from {start} as {name_text(new)}={self.extent(size)}"
        )


_LEAVES: dict[str, Callable[[_Printer, Node], str]] = {
    "input": lambda p, n: "input " + p._input(n),
    "buffer": _Printer._buffer,
    "carry": _Printer._carry,
}
_FORMS: dict[str, Callable[[_Printer, Node], str]] = {
    "const": lambda p, n: literal_text(*n.attr),
    "map": lambda p, n: p.map_text(n)[0],
    "take": lambda p, n: (
        f"take {p.factor(n.src[0])} at {name_text(n.attr[0])} := " + p.operand(n.src[1])
    ),
    "reaxis": _Printer._reaxis,
    "reduce": lambda p, n: f"reduce {n.attr[0]} [{p.axes(n.attr[1])}] {p.factors(n.src)}",
    "scan": _Printer._scan,
    "get": lambda p, n: f"get {n.attr[0]} {p.operand(n.src[0])}",
    "load": _Printer._load,
    "place": lambda p, n: f"place {n.attr[0]} [{p.axes(n.attr[1])}] {p.operand(n.src[0])}",
    "slice": _Printer._slice,
    "dot": lambda p, n: (
        f"dot {' '.join((SHORT[n.attr[1]], *n.attr[2:]))} [{p.axes(n.attr[0])}] {p.factors(n.src)}"
    ),
    "trisolve": lambda p, n: f"trisolve [{p.axes(n.attr)}] {p.factors(n.src)}",
}
