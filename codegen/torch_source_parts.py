"""What a writer of torch code asks of nodes, axes and names; its answers are values or text."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterable, Sequence

from autosched.ir.interp import value_of
from autosched.ir.node import Node, Program, walk
from autosched.ir.scalar import split_name

NARROW = frozenset(("float16", "bfloat16", "float8_e4m3", "float8_e5m2"))
_STATIC = frozenset(("iota", "const", "map"))  # of which an index is known before any call
_FEW = 1 << 16  # indices that are evaluated here


def users_of(program: Program) -> dict[Node, set[str]]:
    """Of each node, the types that it is cast to by all who use it; "" for any other use."""
    found: dict[Node, set[str]] = {}
    for node in walk(*program.body):
        for source in node.src:
            name, target = split_name(node.attr[0]) if node.op == "map" else ("", "")
            found.setdefault(source, set()).add(target if name == "cast" else "")
    for node, out in zip(program.body, program.outputs):
        found.setdefault(node, set()).add(out.dtype)
    return found


def factors_of(node: Node) -> list[Node]:
    if node.op == "map" and node.attr[0] == "mul":
        return [f for s in node.src for f in factors_of(s)]
    return [node]


def unwidened(node: Node) -> Node:
    """What a value was before it was widened, which changed nothing of it."""
    if node.op == "map" and node.attr[0] == "cast:float32" and node.src[0].dtype in NARROW:
        return node.src[0]
    return node


def span_of(expr: Node, size: int) -> tuple[int, int, int] | None:
    """(first, step, count) of an index that is known, evenly spaced and inside; else None."""
    if any(n.op not in _STATIC for n in walk(expr)):
        return None
    count = 1
    for _, extent in expr.axes:
        count *= int(str(extent))
    if count > _FEW or not count:
        return None
    found = value_of(expr, {}, expr.names).reshape(-1)
    first, last = int(found[0]), int(found[-1])
    step = int(found[1]) - first if count > 1 else 1
    even = all(int(x) == first + n * step for n, x in enumerate(found))
    inside = min(first, last) >= 0 and max(first, last) < size
    return (first, step, count) if even and inside and step else None


def axes_of(nodes: Sequence[Node]) -> list[tuple[str, object]]:
    return [pair for node in nodes for pair in node.axes]


def joint_axes(axes: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(a for some in axes for a in some))


def aligned_tail(have: tuple[str, ...], want: tuple[str, ...]) -> str:
    """What follows a tensor over `have` so that it broadcasts to `want`."""
    if have == want or not have:
        return ""
    order = [have.index(a) for a in want if a in have]
    text = "" if order == sorted(order) else f".permute({', '.join(map(str, order))})"
    first = next(n for n, a in enumerate(want) if a in have)
    cuts = [":" if a in have else "None" for a in want[first:]]
    return text + (f"[{', '.join(cuts)}]" if "None" in cuts else "")


def tuple_text(items: Iterable[object]) -> str:
    found = [str(x) for x in items]
    return f"({', '.join(found)}{',' if len(found) == 1 else ''})"


def number_text(value: float | bool) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def step_name(level: int) -> str:
    return f"step{level}"


def identifier(name: str, number: int) -> str:
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    taken = re.fullmatch(r"v\d+|step\d+|torch|device|_.*", plain) or keyword.iskeyword(plain)
    return f"x{number}_{plain}" if taken or not plain[:1].isalpha() or plain != name else plain


def plain_text(title: str) -> str:
    text = " ".join(title.split()).replace("\\", "/").replace('"', "'")
    return f"{text} " if text else ""
