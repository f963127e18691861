"""Algebra program in, a name and a line that say what it computes out.

Names are for people: nothing is ever decided by one. They come from facts of the algebra:
contractions, monoids, scalar functions, and which operands the maps after a loop add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from autosched.ir.count import factors, volume
from autosched.ir.node import Axes, Node, Program
from autosched.ir.scalar import split_name
from autosched.ir.views import HEAVY, walk_values


@dataclass(frozen=True)
class _Facts:
    """What names are made from."""

    program: Program

    @cached_property
    def values(self) -> tuple[Node, ...]:
        return tuple(walk_values(*self.program.body))

    @cached_property
    def functions(self) -> frozenset[str]:
        return frozenset(split_name(n.attr[0])[0] for n in self.values if n.op == "map")

    @cached_property
    def contractions(self) -> tuple[Node, ...]:
        return tuple(n for n in self.values if factors(n) is not None)

    @cached_property
    def chained(self) -> bool:
        """Whether a contraction is made of another one."""
        return any(
            factors(below) is not None
            for node in self.contractions
            for below in walk_values(*node.src)
        )

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Monoids of the reduces that are no contraction."""
        return tuple(
            n.attr[0] for n in self.values if n.op == "reduce" and n not in self.contractions
        )

    @cached_property
    def after(self) -> frozenset[Node]:
        """The maps that read a contraction, a reduce or what is made of one."""
        found: set[Node] = set()
        for node in self.values:
            if node.op in ("map", "get") and any(s.op in HEAVY or s in found for s in node.src):
                found.add(node)
        return frozenset(found)

    @cached_property
    def gates(self) -> bool:
        """Whether an epilogue multiplies two contractions of one input."""
        return len(self.contractions) > len(self.program.body) and not self.chained

    def follows(self, fn: str) -> bool:
        return any(n.op == "map" and split_name(n.attr[0])[0] == fn for n in self.after)

    def applies(self, fn: str, kind: str) -> bool:
        """Whether a map after a contraction applies `fn` to an input of a kind; an argument
        only counts if it is as large as the result."""
        return any(
            n.op == "map" and n.attr[0] == fn and n in self.after
            and any(_kind(s) == kind and (kind == "weight" or s.free == n.free) for s in n.src)
            for n in self.values
        )  # fmt: skip


def _kind(node: Node) -> str:
    """The kind of an input, also one seen through a view; "" of anything else."""
    value = node.src[0] if node.op == "reaxis" else node
    return str(value.attr[3]) if value.op == "input" else ""


def _silu(f: _Facts) -> bool:
    """x / (1 + exp(-x)), however it is written."""
    return f.follows("neg") and f.follows("exp") and f.follows("div")


# First match names the kernel; then every match of the second table is appended.
_KINDS: tuple[tuple[str, Callable[[_Facts], bool]], ...] = (
    ("recurrence", lambda f: any(n.op in ("scan", "fold") for n in f.values)),
    ("attention", lambda f: f.chained and "max" in f.statistics and "exp" in f.functions),
    ("gemm_chain", lambda f: f.chained),
    ("gated_gemm", lambda f: f.gates),
    ("gemm", lambda f: bool(f.contractions)),
    ("softmax", lambda f: "max" in f.statistics and "exp" in f.functions),
    ("layernorm", lambda f: f.statistics.count("sum") == 2 and bool(
        {"sqrt", "rsqrt"} & f.functions)),
    ("rmsnorm", lambda f: f.statistics.count("sum") == 1 and bool(
        {"sqrt", "rsqrt"} & f.functions)),
    ("reduce", lambda f: bool(f.statistics)),
    ("map", lambda f: bool(f.functions)),
    ("copy", lambda f: True),
)  # fmt: skip
_EPILOGUES: tuple[tuple[str, Callable[[_Facts], bool]], ...] = (
    ("bias", lambda f: f.applies("add", "weight")),
    ("gelu", lambda f: f.follows("erf")),
    ("silu", _silu),
    ("tanh", lambda f: f.follows("tanh")),
    ("residual", lambda f: f.applies("add", "arg")),
    ("gate", lambda f: f.applies("mul", "arg")),
)
_PROLOGUES: tuple[tuple[str, Callable[[_Facts], bool]], ...] = (
    ("gather", lambda f: any(n.op == "take" for n in f.values)),
)
_WITH_EPILOGUE = ("gemm", "gated_gemm", "gemm_chain")


def _parts(program: Program) -> list[str]:
    facts = _Facts(program)
    kind = next(name for name, holds in _KINDS if holds(facts))
    out = [name for name, holds in _PROLOGUES if holds(facts)]
    out.append(kind)
    if kind in _WITH_EPILOGUE:
        out.extend(name for name, holds in _EPILOGUES if holds(facts))
    if kind == "map":
        maps = (n.attr[0] for n in facts.values if n.op == "map")
        out.extend(dict.fromkeys(split_name(fn)[0] for fn in maps))
        del out[5:]
    if kind == "reduce":
        out.extend(dict.fromkeys(facts.statistics))
    if len(program.outputs) > 1 and kind == "gemm":
        out.append(f"x{len(program.outputs)}")
    return out


def _sizes(program: Program) -> list[int]:
    """Rows x columns x depth of a contraction, with its batch before and, of a chain, the
    columns of the last one; else the extents of the greatest output."""
    facts = _Facts(program)
    if not facts.contractions:
        extents = max((o.extents for o in program.outputs), key=lambda e: volume(_axes(e)))
        return [int(str(e)) for e in extents]
    node = facts.contractions[0]
    a, b = factors(node) or (node, node)
    bound = set(node.attr[1])
    both, left = set(a.axes) & set(b.axes), set(a.axes) - set(b.axes)
    right = set(b.axes) - set(a.axes)
    groups = [[x for x in both if x[0] not in bound], left, right]
    sizes = [volume(tuple(g)) for g in groups] + [volume(tuple(x for x in both if x[0] in bound))]
    return [s for n, s in enumerate(sizes) if n or s > 1]


def _axes(extents: tuple[object, ...]) -> Axes:
    return tuple((str(n), int(str(e))) for n, e in enumerate(extents))


def public_name(program: Program) -> str:
    """A Python name such as gemm_bias_gelu_128x1536x384: kind, epilogue, sizes, and the type
    where it is not float32."""
    words = _parts(program)
    sizes = "x".join(map(str, _sizes(program)))
    dtype = program.outputs[0].dtype
    tail = [] if dtype == "float32" else [dtype]
    return "_".join([*words, *([sizes] if sizes else []), *tail])


def describe(program: Program) -> str:
    """One line: what it computes, from which tensors to which."""

    def tensor(dtype: str, extents: tuple[object, ...]) -> str:
        return f"{dtype}[{', '.join(map(str, extents))}]"

    words = " + ".join(_parts(program))
    inputs = [tensor(n.dtype, tuple(e for _, e in n.attr[1])) for n in program.inputs]
    outputs = [tensor(o.dtype, tuple(o.extents)) for o in program.outputs]
    return f"{words}: {', '.join(inputs) or 'nothing'} -> {', '.join(outputs)}"
