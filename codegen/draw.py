"""An algebra program and a seed in, random inputs out on which its result means something.

Integers that index a table stay inside it, arguments of a square root or logarithm stay in its
domain, weights have the scale that keeps a contraction's result near one. bfloat16 is kept as
the uint16 of its bits, as everywhere in codegen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from autosched.codegen.runtime.arrays import STORAGE, to_bfloat16
from autosched.ir.node import Extent, Node, Program, walk
from autosched.ir.scalar import FLOATS, split_name

# Where a function's first operand may lie; others take everything.
_DOMAINS: Mapping[str, tuple[float, float]] = {
    "sqrt": (0.5, 1.5), "rsqrt": (0.5, 1.5), "log": (0.5, 1.5), "log2": (0.5, 1.5),
    "log1p": (-0.5, 1.5), "pow": (0.5, 1.5), "acosh": (1.1, 3.0), "atanh": (-0.9, 0.9),
    "asin": (-0.9, 0.9), "acos": (-0.9, 0.9),
}  # fmt: skip
_PREDICATES = frozenset(("eq", "ne", "lt", "le", "gt", "ge", "cast:bool"))
_WIDE = 100  # integers that only take part in arithmetic lie in [-_WIDE, _WIDE]


@dataclass(frozen=True)
class Ranges:
    """What the program asks of its inputs, each by the input's node.

    below: integers lie in [0, below); domain: floats lie in it; scale: their standard deviation;
    flags: integers that only say yes or no.
    """

    below: Mapping[Node, int]
    domain: Mapping[Node, tuple[float, float]]
    scale: Mapping[Node, float]
    flags: frozenset[Node]


def draw_inputs(program: Program, seed: int, shrink: int = 1) -> dict[str, np.ndarray]:
    """Inputs by name, dense, in storage types; the same for the same program and seed.

    shrink: divides the range of indices, for programs that do arithmetic on them.
    """
    ranges = ranges_of(program)
    return {str(n.attr[0]): _draw(n, ranges, seed, shrink) for n in program.inputs}


def ranges_of(program: Program) -> Ranges:
    """What is asked of the inputs, read off the definition."""
    below: dict[Node, int] = {}
    domain: dict[Node, tuple[float, float]] = {}
    scale: dict[Node, float] = {}
    flags: set[Node] = set()
    for node in walk(*program.body):
        if node.op == "take":
            extent = _int(node.src[0].extent(node.attr[0]))
            for source in _elementwise(node.src[1]):
                below[source] = min(below.get(source, extent), extent)
        elif node.op == "map":
            fn = node.attr[0]
            if fn in _PREDICATES or (fn == "cast:float32" and node.src[0].dtype not in FLOATS):
                flags.update(i for s in node.src for i in _elementwise(s))
            if split_name(fn)[0] in _DOMAINS and not _whole_power(node):
                for source in _elementwise(node.src[0]):
                    domain.setdefault(source, _DOMAINS[split_name(fn)[0]])
        elif node.op == "reduce" and node.attr[0] == "sum":
            terms = math.prod(_int(node.src[0].extent(a)) for a in node.attr[1])
            for source in _elementwise(node.src[0]):
                if source.attr[3] == "weight":
                    scale[source] = 1 / math.sqrt(max(terms, 1))
    return Ranges(below, domain, scale, frozenset(flags))


def _whole_power(node: Node) -> bool:
    exponent = node.src[-1]
    return node.attr[0] == "pow" and exponent.op == "const" and exponent.attr[0] % 1 == 0


def _elementwise(node: Node) -> Iterator[Node]:
    """Inputs that `node` is computed from without a loop or an index between."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        if n.op == "input":
            yield n
        elif n.op in ("map", "reaxis", "take"):
            stack.extend(n.src if n.op == "map" else n.src[:1])


def _int(extent: Extent) -> int:
    if isinstance(extent, Node):
        raise ValueError("inputs are drawn for programs with known extents")
    return extent


def _draw(node: Node, ranges: Ranges, seed: int, shrink: int) -> np.ndarray:
    name, dims, dtype, _ = node.attr
    shape = tuple(_int(extent) for _, extent in dims)
    rng = np.random.default_rng([seed, zlib.crc32(str(name).encode())])
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype in FLOATS:
        return _floats(rng, shape, dtype, node, ranges)
    low, high = (0, _WIDE) if dtype.startswith("u") else (-_WIDE, _WIDE)
    if node in ranges.below:
        low, high = 0, max(ranges.below[node] // shrink - 1, 0)
    elif node in ranges.flags:
        low, high = 0, 1
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


def _floats(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, node: Node, ranges: Ranges
) -> np.ndarray:
    if node in ranges.domain:
        low, high = ranges.domain[node]
        values = rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)
    else:
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(ranges.scale.get(node, 1.0))
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(STORAGE[dtype], copy=False)
