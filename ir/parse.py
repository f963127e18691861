"""Text back to a program: the reader of what `text` writes; every error names its line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autosched.ir.node import Axes, Extent, IRError, Node, Output, Pack, Program
from autosched.ir.ops import const, iota, kernel, knob, load, store
from autosched.ir.reader import Line, ParseError, Reader, Token, read_lines, tokens_of
from autosched.ir.syntax import COMPARISONS, LEVELS, long_dtype, name_text, type_text


def parse(text: str) -> Program:
    """The program that a text stands for. Raises: ParseError."""
    return _Parser(read_lines(text)).program()


class _Parser(Reader):
    def __init__(self, lines: list[Line]) -> None:
        super().__init__(lines)
        self.values: dict[str, Node] = {}
        self.extents: dict[str, Extent] = {}

    # ---- program --------------------------------------------------------------------------

    def program(self) -> Program:
        self.take("program")
        level = self.name()
        self.next_line()
        inputs: list[Node] = []
        outputs: list[Output] = []
        packs: list[Pack] = []
        body: list[Node] = []
        while self.row < len(self.lines):
            number = self.line.number
            if self.line.depth:
                raise self.fail("unexpected indentation")
            try:
                match self.peek().text:
                    case "axis":
                        self._axis()
                    case "in":
                        inputs.append(self._in())
                    case "out":
                        output, value = self._out()
                        outputs.append(output)
                        body += [value] if value is not None else []
                    case "pack":
                        packs.append(self._pack())
                    case _:
                        body += self._one()
            except IRError as error:
                raise ParseError(number, str(error)) from error
        return Program(level, tuple(inputs), tuple(outputs), tuple(body), tuple(packs))

    def _axis(self) -> None:
        self.take("axis")
        name = self.name()
        self.take("=")
        self.extents[name] = self.extent()
        self.next_line()

    def _in(self) -> Node:
        self.take("in")
        label = self._label()
        self.take("=")
        node = self._input()
        self._define(label, node)
        self.next_line()
        return node

    def _out(self) -> tuple[Output, Node | None]:
        self.take("out")
        name = self.name()
        self.take(":")
        dtype, dims = self._shape()
        value = self.operand() if self.accept("=") else None
        self.next_line()
        axes, extents = tuple(a for a, _ in dims), tuple(e for _, e in dims)
        return Output(name, axes, dtype, extents), value

    def _pack(self) -> Pack:
        self.take("pack")
        buffer = self._named_value()
        dims = self.names()
        self.take("=")
        value = self.operand()
        self.next_line()
        return Pack(buffer, dims, value)

    # ---- lines ----------------------------------------------------------------------------

    def _one(self) -> list[Node]:
        """One value line (no statement) or one statement."""
        number = self.line.number
        try:
            if self.peek().kind == "value":
                self._value_line()
                return []
            word = self.take("kernel", "forall", "store").text
            return [{"kernel": self._kernel, "forall": self._forall, "store": self._store}[word]()]
        except IRError as error:
            raise ParseError(number, str(error)) from error

    def _body(self, depth: int) -> list[Node]:
        """The statements of the lines that are indented deeper than `depth`."""
        out: list[Node] = []
        inner = self.line.depth if self.row < len(self.lines) else 0
        while self.row < len(self.lines) and self.line.depth > depth:
            if self.line.depth != inner:
                raise self.fail("unexpected indentation")
            if self.peek().text in ("yield", "stack"):
                break
            out += self._one()
        return out

    def _kernel(self) -> Node:
        name = self.name()
        binds = self.several(lambda: (self.name(), self.name())) if self.accept("with") else []
        facts = self.several(self._fact) if self.accept("on") else []
        return kernel(name, self._block(), dict(binds), dict(facts))

    def _fact(self) -> tuple[str, Extent]:
        fact = self.name()
        self.take("=")
        return fact, self.extent()

    def _forall(self) -> Node:
        axis = self.name()
        self.take("in")
        edges = self._interval()
        bind = self.name()
        return Node("forall", (*edges, *self._block()), (axis, bind))

    def _block(self) -> tuple[Node, ...]:
        depth = self.line.depth
        self.take(":")
        self.next_line()
        return tuple(self._body(depth))

    def _store(self) -> Node:
        handle = self._named_value()
        starts, dims = self._box()
        self.take("=")
        value = self.operand()
        mask = self.operand() if self.accept("mask") else None
        self.next_line()
        return store(handle, value, starts, dims, mask)

    def _label(self) -> str:
        token = self.take()
        if token.kind != "value":
            raise self.fail(f"expected a %name, found {token.text!r}")
        return token.text

    def _named_value(self) -> Node:
        label = self._label()
        if label not in self.values:
            raise self.fail(f"{label} has no value yet")
        return self.values[label]

    def _define(self, label: str, node: Node) -> None:
        if label in self.values:
            raise self.fail(f"{label} is defined twice")
        self.values[label] = node

    def _value_line(self) -> None:
        row = self.row
        label = self._label()
        said: tuple[Token, ...] | None = None
        if self.accept(":"):
            start = self.at
            self._types()
            said = self.line.tokens[start : self.at]
        self.take("=")
        node = self._form()
        if self.row == row:
            self.end()
        if said is not None:
            self._agree(row, said, node)
        if label in self.values:
            raise ParseError(self.lines[row].number, f"{label} is defined twice")
        self.values[label] = node
        if self.row == row:
            self.next_line()

    def _types(self) -> None:
        """Skips a type or a list of types in parentheses."""
        if self.accept("("):
            self.listed(self._type, ")")
        else:
            self._type()

    def _type(self) -> None:
        self.name()
        self.take("[")
        while not self.accept("]"):
            self.take()

    def _agree(self, row: int, said: tuple[Token, ...], node: Node) -> None:
        texts = ", ".join(map(type_text, node.types))
        text = f"({texts})" if len(node.types) != 1 else texts
        if tokens_of(text, 0) != said:
            raise ParseError(
                self.lines[row].number,
                f"the type is {text}, not {' '.join(t.text for t in said)}",
            )

    # ---- forms ----------------------------------------------------------------------------

    def _form(self) -> Node:
        word = self.peek()
        if word.kind == "name" and word.text in _FORMS and self.peek(1).text != "(":
            self.take()
            return _FORMS[word.text](self)
        return self.expression()

    def _input(self) -> Node:
        name = self.name()
        self.take(":")
        dtype, dims = self._shape()
        return Node("input", (), (name, dims, dtype, self.name()))

    def _shape(self) -> tuple[str, Axes]:
        """dtype[axis=extent, ...]"""
        dtype = long_dtype(self.name())
        self.take("[")
        return dtype, tuple(self.listed(self._sized, "]"))

    def _sized(self) -> tuple[str, Extent]:
        name = self.name()
        self.take("=")
        return name, self.extent()

    def _buffer(self) -> Node:
        name = self.name()
        self.take(":")
        dtype = long_dtype(self.name())
        self.take("[")
        extents = tuple(self.listed(self.extent, "]"))
        return Node("buffer", (), (name, extents, dtype, self.name()))

    def _carry(self) -> Node:
        name = self.name()
        self.take(":")
        return Node("carry", (), (name, *self._shape()))

    def _assignments(self) -> list[tuple[str, Node]]:
        def one() -> tuple[str, Node]:
            name = self.name()
            self.take(":=")
            return name, self.operand()

        self.take("at")
        return self.several(one)

    def _take(self) -> Node:
        value = self.factor()
        ((axis, index),) = self._assignments()
        return Node("take", (value, index), (axis,))

    def _reaxis(self) -> Node:
        value = self.factor()
        pairs = self._assignments()
        return Node("reaxis", (value, *(e for _, e in pairs)), (tuple(a for a, _ in pairs),))

    def _reduce(self) -> Node:
        monoid, axes = self.name(), self.names()
        return Node("reduce", tuple(self.several(self.operand)), (monoid, axes))

    def _scan(self) -> Node:
        monoid, axis = self.name(), self.name()
        exclusive, reverse = self.accept("exclusive"), self.accept("reverse")
        operands = tuple(self.several(self.operand))
        return Node("scan", operands, (monoid, axis, exclusive, reverse))

    def _get(self) -> Node:
        index = self.extent()
        return Node("get", (self.operand(),), (index,))

    def _load(self) -> Node:
        handle = self._named_value()
        starts, dims = self._box()
        mask = fill = None
        if self.accept("mask"):
            mask = self.operand()
            self.take("fill")
            fill = self.operand()
        return load(handle, starts, dims, mask, fill)

    def _box(self) -> tuple[list[Node], list[Any]]:
        def one() -> tuple[Node, Any]:
            start = self.operand()
            if not self.accept("::"):
                return start, None
            axis, size = self._sized()
            stride = self.extent() if self.accept("by") else 1
            return start, (axis, size, stride)

        self.take("[")
        pairs = self.listed(one, "]")
        return [s for s, _ in pairs], [d for _, d in pairs]

    def _place(self) -> Node:
        home, dims = self.name(), self.names()
        return Node("place", (self.operand(),), (home, dims))

    def _slice(self) -> Node:
        value, axis = self.factor(), self.name()
        self.take("from")
        start = self.factor()
        self.take("as")
        new, size = self._sized()
        return Node("slice", (value, start), (axis, new, size))

    def _dot(self) -> Node:
        acc = long_dtype(self.name())
        precision = () if self.peek().text == "[" else (self.name(),)
        axes = self.names()
        return Node("dot", tuple(self.several(self.operand)), (axes, acc, *precision))

    def _trisolve(self) -> Node:
        axes = self.names()
        return Node("trisolve", tuple(self.several(self.operand)), axes)

    def _interval(self) -> tuple[Node, Node]:
        lo = self.operand()
        self.take("..")
        return lo, self.operand()

    def _fold(self) -> Node:
        def start() -> tuple[str, Node]:
            name = self.name()
            self.take("=")
            return name, self.operand()

        depth = self.line.depth
        axis = self.name()
        self.take("in")
        bounds = [edge for pair in self.several(self._interval) for edge in pair]
        self.take("from")
        states = [] if self.peek().text == ":" else self.several(start)
        self.take(":")
        self.next_line()
        if self._body(depth):
            raise self.fail("a fold holds values, no statements")
        self.take("yield")
        yields = [] if self.peek().kind == "end" else self.several(self.operand)
        self.next_line()
        outs: list[Node] = []
        if self.row < len(self.lines) and self.line.depth > depth and self.accept("stack"):
            outs = self.several(self.operand)
            self.next_line()
        names = tuple(n for n, _ in states)
        src = (*bounds, *(init for _, init in states), *yields, *outs)
        return Node("fold", src, (axis, names, len(bounds) // 2, len(outs)))

    # ---- expressions ----------------------------------------------------------------------

    def extent(self) -> Extent:
        if self.peek().text == "node" and self.peek(1).text == "(":
            self.take()
            self.take("(")
            node = self._literal(self.accept("-"))
            self.take(")")
            return node
        node = self.expression()
        return node.attr[0] if node.op == "const" and node.dtype == "int32" else node

    def operand(self) -> Node:
        return self.expression()

    def factor(self) -> Node:
        return self.expression(len(LEVELS))

    def expression(self, level: int = 0) -> Node:
        if level == len(LEVELS):
            return self._atom()
        signs = LEVELS[level]
        left = self.expression(level + 1)
        while self.peek().kind == "sign" and self.peek().text in signs:
            sign = self.take().text
            left = Node("map", (left, self.expression(level + 1)), (signs[sign],))
            if level == COMPARISONS:
                break
        return left

    def _atom(self) -> Node:
        token = self.peek()
        if token.text == "(" and token.kind == "sign":
            self.take()
            inner = self.expression()
            self.take(")")
            return inner
        if token.text == "-" and token.kind == "sign":
            self.take()
            return self._literal(True)
        if token.kind == "number" or token.text in ("true", "false"):
            return self._literal(False)
        if token.kind == "value":
            return self._named_value()
        if token.text == "$":
            self.take()
            return knob(self.name())
        if token.kind == "name" and self.peek(1).text == "(":
            return self._call()
        return self._coordinate()

    def _literal(self, negative: bool) -> Node:
        token = self.take()
        if token.text in ("true", "false"):
            return const(token.text == "true", "bool")
        if token.kind != "number":
            raise self.fail(f"expected a number, found {token.text!r}")
        word, _, short = token.text.partition(":")
        whole = word.isdigit()
        dtype = long_dtype(short) if short else "int32" if whole else "float32"
        value: float = int(word) if whole else float(word)
        return const(-value if negative else value, dtype)

    def _call(self) -> Node:
        fn = self.name()
        self.take("(")
        if fn == "iota":
            axis = self.name()
            self.take(",")
            extent = self.extent()
            self.take(",")
            dtype = long_dtype(self.name())
            self.take(")")
            return iota(axis, extent, dtype)
        operands: Sequence[Node] = self.listed(self.expression, ")")
        head, _, param = fn.partition(".")
        return Node("map", tuple(operands), (f"{head}:{long_dtype(param)}" if param else head,))

    def _coordinate(self) -> Node:
        axis = self.name()
        if axis not in self.extents:
            raise self.fail(f"{name_text(axis)} is no axis with a declared extent")
        return iota(axis, self.extents[axis])


_FORMS: dict[str, Callable[[_Parser], Node]] = {
    "input": _Parser._input,
    "buffer": _Parser._buffer,
    "carry": _Parser._carry,
    "take": _Parser._take,
    "reaxis": _Parser._reaxis,
    "reduce": _Parser._reduce,
    "scan": _Parser._scan,
    "fold": _Parser._fold,
    "get": _Parser._get,
    "load": _Parser._load,
    "place": _Parser._place,
    "slice": _Parser._slice,
    "dot": _Parser._dot,
    "trisolve": _Parser._trisolve,
}
