"""An algebra program in, a Python file with the same computation by torch's operators out.

Packages carry it beside a kernel: it stands in where the kernel can't run. Floating values narrower
than float32 are widened for arithmetic and rounded by casts and outputs only, as in kernels; a
product of two tensors of one narrow type whose sum is rounded to that type stays in it, as
libraries compute it. The file imports torch and nothing else, and waits for no device.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from autosched.codegen.torch_source_blocks import Blocks, Loop, NotInTorch, Val
from autosched.codegen.torch_source_parts import (
    NARROW,
    aligned_tail,
    axes_of,
    factors_of,
    identifier,
    joint_axes,
    number_text,
    plain_text,
    span_of,
    step_name,
    tuple_text,
    unwidened,
    users_of,
)
from autosched.codegen.torch_source_text import (
    CLAMPS,
    HELPERS,
    KINDS,
    MASKS,
    MONOID_CALLS,
    NUMBERS,
    OPERATORS,
    SCAN_CALLS,
    SIGNED,
    STORED,
    combine_text,
)
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Node, Program, Type, walk
from autosched.ir.scalar import FLOATS, split_name

__all__ = ["NotInTorch", "torch_source"]

LIBRARY = frozenset(("float16", "bfloat16"))  # narrow types in which torch multiplies
_BITS = {"int8": 7, "uint8": 8, "int16": 15, "uint16": 16, "bool": 1}  # of magnitudes
_EXACT_BITS = 53  # integers of up to so many are exact in float64
_HELPER = re.compile(r"(?<!\w)_[a-z]+(?=\()")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OLD = "\0"  # before the name of an axis that is about to go

Sizes = Mapping[str, int]


def torch_source(program: Program, operands: Sequence[str], title: str = "") -> str:
    """The text of a file that defines `definition(*operands)`, which returns a list of tensors.

    Raises: NotInTorch.
    """
    return _Writer(program, operands).text(title)


class _Writer(Blocks):
    """Writes values as they are needed, each at the level of loops that its states belong to."""

    def __init__(self, program: Program, operands: Sequence[str]) -> None:
        self.program = program
        self.parameters = {name: identifier(name, n) for n, name in enumerate(operands)}
        super().__init__()
        self.helpers: set[str] = set()
        self.users = users_of(program)

    def text(self, title: str) -> str:
        if not self.parameters:
            raise NotInTorch("it has no operand, whose device would say where to compute")
        results = [
            self._output(self.value(node), out.dims, out.extents, out.dtype)
            for out, node in zip(self.program.outputs, self.program.body, strict=True)
        ]
        body = [f"device = {next(iter(self.parameters.values()))}.device", *self.blocks[0],
                f"return [{', '.join(results)}]"]  # fmt: skip
        helpers = [text for name, text in HELPERS.items() if name in self.helpers]
        helpers += [combine_text(n[1:]) for n in sorted(self.helpers) if n[0] == "+"]
        head = f'"""{plain_text(title)}The definition of a kernel by torch\'s operators."""'
        function = "\n".join([f"def definition({', '.join(self.parameters.values())}):",
                              *(f"    {line}" for line in body)])  # fmt: skip
        return "\n\n\n".join([f"{head}\n\nimport torch", *helpers, function]) + "\n"

    def _output(
        self, val: Val, dims: Sequence[str], extents: Sequence[object], dtype: str
    ) -> str:
        val = self._tensor(val)
        missing = [a for a in dims if a not in val.axes]
        text = self._stored(val, dtype) + aligned_tail(val.axes, tuple(dims))
        return f"{text}.expand({tuple_text(extents)}).contiguous()" if missing else (
            f"{text}.contiguous()"
        )

    def _emit(self, node: Node) -> Val:
        if node.op not in _EMIT:
            raise NotInTorch(f"it has {node.op}")
        if any(t.dtype not in KINDS for t in node.types):
            raise NotInTorch(f"it computes in {node.types[0].dtype}")
        return _EMIT[node.op](self, node)

    # -- leaves ----------------------------------------------------------------------------

    def _input(self, node: Node) -> Val:
        name, dims, dtype, _ = node.attr
        if name not in self.parameters:
            raise NotInTorch(f"{name} is no operand of its kernel")
        axes = tuple(a for a, _ in dims)
        text = self.parameters[name]
        if dtype in NARROW or KINDS[dtype] == STORED[dtype]:
            return Val(text, axes, dtype, narrow=dtype in NARROW)
        return self._let(f"{text}.to({KINDS[dtype]})", axes, dtype)

    def _const(self, node: Node) -> Val:
        value, dtype = node.attr
        return Val(number_text(value), (), dtype, scalar=True)

    def _iota(self, node: Node) -> Val:
        axis, extent, dtype = node.attr
        return self._let(f"torch.arange({extent}, dtype={KINDS[dtype]}, device=device)",
                         (axis,), dtype)  # fmt: skip

    def _carry(self, node: Node) -> Val:
        raise NotInTorch(f"state {node.attr[0]} stands outside its loop")

    # -- elementwise -----------------------------------------------------------------------

    def _map(self, node: Node) -> Val:
        name, target = split_name(node.attr[0])
        if name == "cast":
            return self._cast(self.value(node.src[0]), target)
        if name == "bitcast":
            return self._bitcast(self.value(node.src[0]), target)
        if name not in OPERATORS:
            raise NotInTorch(f"torch has no {name}")
        operands = [self._wide(self.value(s)) for s in node.src]
        form = OPERATORS[name]
        if name in CLAMPS and not operands[0].scalar and operands[1].scalar:
            form = CLAMPS[name] if node.dtype != "bool" else form
        if form not in NUMBERS or all(v.scalar for v in operands):
            operands = [self._tensor(v) for v in operands]
        operands[0] = self._tensor(operands[0]) if name == "where" else operands[0]
        if name == "where" and all(v.scalar for v in operands[1:]):
            operands[1] = self._tensor(operands[1])
        self.helpers.update(_HELPER.findall(form))
        axes = joint_axes(v.axes for v in operands)
        text = form.format(*(v.text + aligned_tail(v.axes, axes) for v in operands))
        if node.dtype in MASKS and name not in ("where", "max", "min"):
            text = f"({text}) & {MASKS[node.dtype]}"
        return self._let(text, axes, node.dtype)

    def _cast(self, val: Val, target: str) -> Val:
        val = self._tensor(val)
        if target in NARROW:
            return self._let(self._stored(val, target), val.axes, target, narrow=True)
        wide = self._wide(val)
        if target in FLOATS and KINDS[target] == KINDS[val.dtype]:
            return replace(wide, dtype=target)
        if target == "bool":
            return self._let(f"{wide.text} != 0", val.axes, target)
        text = wide.text
        if val.dtype in FLOATS and target not in FLOATS:
            text += ".to(torch.int64)"
        text += f".to({KINDS[target]})"
        text += f" & {MASKS[target]}" if target in MASKS else ""
        return self._let(text, val.axes, target)

    def _bitcast(self, val: Val, target: str) -> Val:
        val = self._tensor(val)
        if val.dtype in MASKS:
            text = f"{val.text}.to({SIGNED[val.dtype]})"
        else:
            text = self._stored(val, val.dtype)
        if target in MASKS:
            text = f"{text}.view({SIGNED[target]}).to({KINDS[target]}) & {MASKS[target]}"
        else:
            text = f"{text}.view({STORED[target]})"
        return self._let(text, val.axes, target, target in NARROW)

    # -- reading ---------------------------------------------------------------------------

    def _take(self, node: Node) -> Val:
        return self._read(self.value(node.src[0]), node.src[0], {node.attr[0]: node.src[1]})

    def _reaxis(self, node: Node) -> Val:
        value, *exprs = node.src
        return self._read(self.value(value), value, dict(zip(node.attr[0], exprs)))

    def _read(self, val: Val, value: Node, exprs: Mapping[str, Node]) -> Val:
        """`val` with axes read at index values: as views where they are evenly spaced."""
        exprs = {a: e for a, e in exprs.items() if a in val.axes}
        used = Counter(a for e in exprs.values() for a in e.names)
        used.update(a for a in val.axes if a not in exprs)
        sizes = {_OLD + a if a in exprs else a: int(str(e)) for a, e in value.axes}
        # New axes may have the names of old ones.
        val = replace(val, axes=tuple(_OLD + a if a in exprs else a for a in val.axes))
        gathered: dict[str, Node] = {}
        for axis, expr in exprs.items():
            span = span_of(expr, sizes[_OLD + axis]) if len(expr.names) <= 1 else None
            if span is None or any(used[a] > 1 for a in expr.names):
                gathered[_OLD + axis] = expr
            else:
                val = self._sliced(val, _OLD + axis, expr, span, sizes)
        return self._gathered(val, gathered, sizes) if gathered else val

    def _sliced(
        self, val: Val, axis: str, expr: Node, span: tuple[int, int, int], sizes: Sizes
    ) -> Val:
        first, step, count = span
        dim = val.axes.index(axis)
        if not expr.names:
            rest = tuple(a for a in val.axes if a != axis)
            return self._let(f"{val.text}.select({dim}, {first})", rest, val.dtype, val.narrow)
        axes = tuple(expr.names[0] if a == axis else a for a in val.axes)
        if (first, step, count) == (0, 1, sizes[axis]):
            return replace(val, axes=axes)
        low = min(first, first + step * (count - 1))
        text = f"{val.text}[{':, ' * dim}{low}:{low + abs(step) * (count - 1) + 1}:{abs(step)}]"
        text += f".flip({dim})" if step < 0 else ""
        return self._let(text, axes, val.dtype, val.narrow)

    def _gathered(self, val: Val, exprs: Mapping[str, Node], sizes: Sizes) -> Val:
        """By index tensors, kept inside: what lies outside is never used."""
        index = {a: self._tensor(self.value(e)) for a, e in exprs.items()}
        varying = {a for v in index.values() for a in v.axes}
        known = {**{a: e for x in exprs.values() for a, e in x.axes}, **sizes}
        for axis in val.axes:  # one that indices vary along is read where they are
            if axis in varying and axis not in index:
                index[axis] = self._let(f"torch.arange({known[axis]}, device=device)",
                                        (axis,), "int64")  # fmt: skip
        axes = joint_axes(v.axes for v in index.values())
        rest = tuple(a for a in val.axes if a not in index)
        places = ", ".join(
            f"{v.text}{aligned_tail(v.axes, axes)}.clamp(0, {sizes[a] - 1}).long()"
            for a, v in index.items()
        )
        text = f"{val.text}{aligned_tail(val.axes, (*index, *rest))}[{places}]"
        return self._let(text, (*axes, *rest), val.dtype, val.narrow)

    # -- reductions ------------------------------------------------------------------------

    def _reduce(self, node: Node) -> Val:
        monoid, gone = node.attr
        if monoid == "sum" and (made := self._contraction(node)):
            return made
        parts, axes = self._spread(node, gone)
        kept = tuple(a for a in axes if a not in gone)
        dims = tuple(range(len(kept), len(axes)))
        if len(parts) == 1:
            low = number_text(dtype_limit(MONOIDS[monoid].identity[0], node.dtype))
            text = MONOID_CALLS[monoid].format(x=parts[0], dims=tuple_text(dims), low=low)
            self.helpers.update(_HELPER.findall(MONOID_CALLS[monoid]))
            text += f".to({KINDS[node.dtype]})" if monoid in ("sum", "prod") else ""
            return self._let(text, kept, node.dtype)
        flat = [f"{p}.flatten({len(kept)})" if len(dims) > 1 else p for p in parts]
        self.helpers |= {"_tree", f"+{monoid}"}
        lows = [number_text(dtype_limit(i, t.dtype))
                for i, t in zip(MONOIDS[monoid].identity, node.types)]  # fmt: skip
        text = f"_tree(_{monoid}, [{', '.join(flat)}], ({', '.join(lows)},))"
        return self._let(text, kept, "results")

    def _contraction(self, node: Node) -> Val | None:
        """A sum of products as torch.einsum, so that no product is ever whole in memory."""
        gone = node.attr[1]
        factors = factors_of(node.src[0])
        if len(factors) < 2 or any(not f.names for f in factors):
            return None
        if not all(any(a in f.names for f in factors) for a in gone):
            return None
        if node.dtype not in FLOATS:
            return self._exact(node, factors)
        sources = [self.value(unwidened(f)) for f in factors]
        kind = sources[0].dtype
        library = (
            len(factors) == 2 and kind in LIBRARY and self.users.get(node) == {kind}
            and all(v.narrow and v.dtype == kind for v in sources)
        )  # fmt: skip
        # In a narrow type the sum is as good as rounded to it, which is all that becomes of it.
        vals = sources if library else [self._wide(self.value(f)) for f in factors]
        return self._product(vals, gone, kind if library else node.dtype, library)

    def _exact(self, node: Node, factors: Sequence[Node]) -> Val | None:
        """Integers through float64, where no sum can be too large for it."""
        sources = [f.src[0] if f.op == "map" and f.attr[0] == f"cast:{node.dtype}" else f
                   for f in factors]  # fmt: skip
        bits = sum(_BITS.get(s.dtype, math.inf) for s in sources)
        terms = math.prod(int(str(e)) for a, e in axes_of(node.src) if a in node.attr[1])
        if bits + math.log2(max(terms, 1)) >= _EXACT_BITS:
            return None
        vals = [self._tensor(self.value(s)) for s in sources]
        wide = [replace(v, text=f"{v.text}.to(torch.float64)") for v in vals]
        made = self._product(wide, node.attr[1], "float64", False)
        return self._let(f"{made.text}.to(torch.int64).to({KINDS[node.dtype]})", made.axes,
                         node.dtype)  # fmt: skip

    def _product(
        self, vals: Sequence[Val], gone: Sequence[str], dtype: str, narrow: bool
    ) -> Val:
        axes = joint_axes(v.axes for v in vals)
        if len(axes) > len(_LETTERS):
            raise NotInTorch(f"a product has {len(axes)} axes")
        letter = dict(zip(axes, _LETTERS))
        kept = tuple(a for a in axes if a not in gone)
        terms = ",".join("".join(letter[a] for a in v.axes) for v in vals)
        equation = f"{terms}->{''.join(letter[a] for a in kept)}"
        text = f'torch.einsum("{equation}", {", ".join(v.text for v in vals)})'
        return self._let(text, kept, dtype, narrow)

    def _scan(self, node: Node) -> Val:
        monoid, axis, exclusive, reverse = node.attr
        parts, axes = self._spread(node, (axis,))
        self.helpers.add("_scan")
        if len(parts) == 1:
            kind = KINDS[node.dtype]
            whole = SCAN_CALLS.get(monoid)
            if whole is None:
                raise NotInTorch(f"torch has no running {monoid}")
            low = number_text(dtype_limit(MONOIDS[monoid].identity[0], node.dtype))
            text = f"_scan({whole}, {parts[0]}, {exclusive}, {reverse}, {low}).to({kind})"
            return self._let(text, axes, node.dtype)
        raise NotInTorch(f"torch has no running {monoid}")

    # -- recurrences -----------------------------------------------------------------------

    def _fold(self, node: Node) -> Val:
        axis, names, intervals, outs = node.attr
        bounds, rest = node.src[: 2 * intervals], node.src[2 * intervals :]
        if any(b.op != "const" for b in bounds):
            raise NotInTorch("a recurrence has bounds that vary")
        edges = [b.attr[0] for b in bounds]
        n = len(names)
        inits, yields, stacked = rest[:n], rest[n : 2 * n], rest[2 * n :]
        if outs and edges != [0, node.types[n].extent(axis)]:
            raise NotInTorch("a recurrence stacks values of a part of its axis")
        kinds = [self._here(t) for t in node.types]
        states = [self._full(self.value(init), kind) for init, kind in zip(inits, kinds)]
        lists = [self._let("[]", (), "list") for _ in range(outs)]
        self.loops.append(Loop(axis, frozenset(names)))
        self.blocks.append([])
        self.memos.append({})
        for name, state in zip(names, states):
            self._bind(name, state, (*yields, *stacked))
        for kind, out, found in zip(kinds[n:], stacked, lists):
            one = Type(kind.dtype, tuple(p for p in kind.axes if p[0] != axis))
            self.blocks[-1].append(f"{found.text}.append({self._full(self.value(out), one).text})")
        news = [self._full(self.value(step), kind) for step, kind in zip(yields, kinds)]
        if names:
            targets = ", ".join(s.text for s in states)
            self.blocks[-1].append(f"{targets} = {', '.join(v.text for v in news)}")
        level = len(self.loops)
        body = self.blocks.pop()
        self.memos.pop()
        self.loops.pop()
        steps = " + ".join(f"[*range({lo}, {hi})]" for lo, hi in zip(edges[::2], edges[1::2]))
        head = f"for {step_name(level)} in {steps}:"
        self.blocks[-1] += [head, *(f"    {line}" for line in body)]
        results = [s.text for s in states]
        results += [f"torch.stack({found.text}, {kind.names.index(axis)})"
                    for kind, found in zip(kinds[n:], lists)]  # fmt: skip
        if len(node.types) == 1:
            return self._let(results[0], kinds[0].names, kinds[0].dtype)
        return self._let(f"[{', '.join(results)}]", (), "results")

    def _bind(self, name: str, state: Val, roots: Sequence[Node]) -> None:
        """Makes the carries of that name read the variable of the state."""
        for found in walk(*roots):
            if found.op == "carry" and found.attr[0] == name:
                self.memos[-1][found] = state

    def _get(self, node: Node) -> Val:
        (source,), (index,) = node.src, node.attr
        found = self.value(source)
        axes = found.axes if source.op == "reduce" else self._here(source.types[index]).names
        return Val(f"{found.text}[{index}]", axes, node.dtype)


_EMIT: Mapping[str, Callable[[_Writer, Node], Val]] = {
    "input": _Writer._input, "const": _Writer._const, "iota": _Writer._iota,
    "map": _Writer._map, "take": _Writer._take, "reaxis": _Writer._reaxis,
    "reduce": _Writer._reduce, "scan": _Writer._scan, "fold": _Writer._fold,
    "get": _Writer._get, "carry": _Writer._carry,
}  # fmt: skip
