"""Values of generated code in variables, each in the block of the loop that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autosched.codegen.torch_source_parts import (
    aligned_tail,
    axes_of,
    joint_axes,
    step_name,
    tuple_text,
)
from autosched.codegen.torch_source_text import KINDS, SATURATED, STORED
from autosched.ir.node import Node, Type


class NotInTorch(ValueError):
    """A program that torch's operators can't say; its kernels have nothing that stands in."""


@dataclass(frozen=True)
class Val:
    """A variable of the text: a tensor over `axes`, in order; narrow: held in its storage type."""

    text: str
    axes: tuple[str, ...]
    dtype: str
    narrow: bool = False
    scalar: bool = False  # a Python number


@dataclass(frozen=True)
class Loop:
    axis: str
    states: frozenset[str]


class Blocks:
    """Blocks of lines, one in the other as loops are, and the variables that stand in each."""

    def __init__(self) -> None:
        self.blocks: list[list[str]] = [[]]
        self.memos: list[dict[object, Val]] = [{}]
        self.loops: list[Loop] = []
        self.count = 0

    def level(self, node: Node) -> int:
        """Of the innermost loop whose states the node reads."""
        return max((n for n, loop in enumerate(self.loops, 1) if node.carries & loop.states),
                   default=0)  # fmt: skip

    def value(self, node: Node) -> Val:
        """The value of a node in the innermost block, at the current steps of its loops."""
        own, here = self.level(node), len(self.loops)
        found = self.memos[own].get(node)
        if found is None:
            inner = self.blocks[own + 1 :], self.memos[own + 1 :], self.loops[own:]
            del self.blocks[own + 1 :], self.memos[own + 1 :], self.loops[own:]
            found = self._emit(node)
            self.memos[own][node] = found
            self.blocks += inner[0]
            self.memos += inner[1]
            self.loops += inner[2]
        return self._at_steps(node, found, own, here)

    def _at_steps(self, node: Node, val: Val, own: int, here: int) -> Val:
        for level in range(own + 1, here + 1):
            axis = self.loops[level - 1].axis
            if axis in val.axes:
                key = (node, "at", level)
                if key not in self.memos[level]:
                    dim = val.axes.index(axis)
                    rest = tuple(a for a in val.axes if a != axis)
                    name = self._name()
                    at = f"{val.text}.select({dim}, {step_name(level)})"
                    self.blocks[level].append(f"{name} = {at}")
                    self.memos[level][key] = replace(val, text=name, axes=rest)
                val = self.memos[level][key]
        return val

    def _name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def _let(self, text: str, axes: Sequence[str], dtype: str, narrow: bool = False) -> Val:
        name = self._name()
        self.blocks[-1].append(f"{name} = {text}")
        return Val(name, tuple(axes), dtype, narrow)

    def _emit(self, node: Node) -> Val:
        """Writes a node at its own level."""
        raise NotImplementedError

    def _wide(self, val: Val) -> Val:
        """The value in the type that it is computed in."""
        if not val.narrow:
            return val
        key = (val.text, "wide")
        for memo in self.memos:
            if key in memo:
                return memo[key]
        made = self._let(f"{val.text}.to({KINDS[val.dtype]})", val.axes, val.dtype)
        self.memos[-1][key] = made
        return made

    def _tensor(self, val: Val) -> Val:
        """The value as a tensor, where it is a number."""
        if not val.scalar:
            return val
        return self._let(f"torch.full((), {val.text}, dtype={KINDS[val.dtype]}, device=device)",
                         (), val.dtype)  # fmt: skip

    def _stored(self, val: Val, dtype: str) -> str:
        """Its text rounded to a storage type."""
        if val.narrow and val.dtype == dtype:
            return val.text
        wide = self._wide(val).text
        return f"{SATURATED.get(dtype, '{}').format(wide)}.to({STORED[dtype]})"

    def _here(self, kind: Type) -> Type:
        """A type without the axes of the loops that are being written: those are at a step."""
        bound = {loop.axis for loop in self.loops}
        return Type(kind.dtype, tuple(p for p in kind.axes if p[0] not in bound))

    def _full(self, val: Val, kind: Type) -> Val:
        """A value over exactly the axes of a type, in order, in a variable of its own."""
        val = self._tensor(self._wide(val))
        text = val.text + aligned_tail(val.axes, kind.names)
        if set(val.axes) != set(kind.names):
            text += f".expand({tuple_text(e for _, e in kind.axes)})"
        return self._let(text, kind.names, val.dtype)

    def _spread(self, node: Node, last: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
        """The operands of a node over all their axes, the `last` ones behind."""
        vals = [self._tensor(self._wide(self.value(s))) for s in node.src]
        joined = joint_axes(v.axes for v in vals)
        axes = (*(a for a in joined if a not in last), *last)
        sizes = dict(axes_of(node.src))
        return [
            v.text + aligned_tail(v.axes, axes)
            + ("" if set(v.axes) == set(axes) else f".expand({tuple_text(sizes[a] for a in axes)})")
            for v in vals
        ], axes  # fmt: skip
