"""Random algebra: a seed in, a model graph with inputs out; and whether its kernels are right.

Values stay near one and well conditioned, so that a kernel and float64 agree to rounding; axes
have odd extents; operators share operands, chain reductions, mask, move and index. What steps (a
floor, an argmax) is applied to inputs alone: rounding decides it elsewhere.

    python tests/random_programs.py 0 100000     checks these seeds, for as long as it takes
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from graphs import Arrays, run_graph, value

from autosched.codegen.jobs import JobFailure
from autosched.codegen.runtime.arrays import from_bfloat16
from autosched.ir.graph import Coverage, ModelGraph, WeightRef
from autosched.ir.node import Node
from autosched.ir.ops import (
    abs_,
    cast,
    const,
    eq,
    exp,
    get,
    input_,
    iota,
    map_,
    max_,
    maximum,
    minimum,
    reaxis,
    reduce_,
    rsqrt,
    scan,
    sigmoid,
    sum_,
    take,
    tanh,
    where,
)
from autosched.ir.partition import partition
from autosched.ir.target import host_target
from autosched.tools.compiled import Kernels, run_steps, storage

EXTENTS = (1, 2, 3, 5, 7, 8, 11, 16, 17, 24, 33, 40, 67, 96, 130)
LIMIT = 120_000  # elements of a value
DTYPES = ("float32",) * 6 + ("float16", "bfloat16", "float64")


@dataclass
class Random:
    """The state of the generator: the values made so far, over axes of known extents."""

    seed: int
    inputs: list[Node] = field(default_factory=list)
    leaves: list[Node] = field(default_factory=list)
    weights: dict[str, WeightRef] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    pool: list[Node] = field(default_factory=list)
    names: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, 2])
        self.dtype = str(self.rng.choice(DTYPES))
        self.compute = "float64" if self.dtype == "float64" else "float32"
        extents = [int(e) for e in self.rng.choice(EXTENTS, 4)]
        self.axes = dict(zip("abcd", extents))

    # ---- leaves -------------------------------------------------------------------------------

    def pick(self, items: list) -> object:
        return items[int(self.rng.integers(len(items)))]

    def axis(self, hint: str = "n") -> str:
        self.names += 1
        return f"{hint}{self.names}"

    def some_axes(self) -> dict[str, int]:
        names = [a for a in self.axes if self.rng.random() < 0.6] or [self.pick([*self.axes])]
        self.rng.shuffle(names)
        while math.prod(self.axes[a] for a in names) > LIMIT:
            names.pop()
        return {a: self.axes[a] for a in names}

    def leaf(self) -> Node:
        dims = self.some_axes()
        shape = tuple(dims.values())
        data = self.rng.uniform(-2, 2, shape).astype(np.float32)
        if self.dtype == "bfloat16":
            import ml_dtypes

            stored = data.astype(ml_dtypes.bfloat16)
        else:
            stored = data.astype(self.dtype)
        weight = self.rng.random() < 0.4
        name = f"w{len(self.weights)}" if weight else f"x{len(self.inputs)}"
        if weight:
            self.weights[name] = WeightRef(name, self.dtype, shape, name, stored)
        node = input_(name, dims, self.dtype, "weight" if weight else "arg")
        if not weight:
            self.inputs.append(node)
        self.arrays[name] = stored
        self.leaves.append(cast(node, self.compute))
        return self.leaves[-1]

    # ---- steps --------------------------------------------------------------------------------

    def old(self) -> Node:
        """A value made before; later ones more often."""
        at = int(len(self.pool) * math.sqrt(self.rng.random()))
        return self.pool[at]

    def with_axes(self) -> Node | None:
        found = [v for v in self.pool if v.axes]
        return found[int(len(found) * math.sqrt(self.rng.random()))] if found else None

    def number(self, value: float) -> Node:
        return const(value, self.compute)

    def unary(self) -> Node:
        x = self.old()
        made = (tanh, sigmoid, abs_, lambda v: v * 0.7 + 0.1, lambda v: -v,
                lambda v: exp(-abs_(v)), lambda v: rsqrt(v * v + 0.5),
                lambda v: map_("erf", v))  # fmt: skip
        fn: Callable[[Node], Node] = self.pick(list(made))  # type: ignore[assignment]
        return fn(x)

    def stepped(self) -> Node:
        """What rounds or chooses, of an input."""
        x = self.pick(self.leaves)
        assert isinstance(x, Node)
        kind = self.pick(["floor", "narrow", "argmax", "any"])
        if kind == "floor":
            return map_("floor", x * 2.0)
        if kind == "narrow":
            return cast(cast(x, "float16"), self.compute)
        axis = str(self.pick(list(x.names)))
        if kind == "any":
            return cast(reduce_("any", axis, x > 1.0), self.compute)
        at = iota(axis, int(x.extent(axis)))
        found = get(reduce_(str(self.pick(["argmax", "argmin"])), axis, x, at), 1)
        return cast(found, self.compute) * (1 / int(x.extent(axis)))

    def binary(self) -> Node | None:
        x, y = self.old(), self.old()
        if math.prod({**dict(x.axes), **dict(y.axes)}.values()) > LIMIT:
            return None
        kind = self.pick(["add", "sub", "mul", "max", "min"])
        return {"add": (x + y) * 0.6, "sub": (x - y) * 0.6, "mul": x * y,
                "max": maximum(x, y), "min": minimum(x, y)}[str(kind)]  # fmt: skip

    def contraction(self) -> Node | None:
        x, y = self.old(), self.old()
        common = [a for a in x.names if a in y.names]
        work = math.prod({**dict(x.axes), **dict(y.axes)}.values())
        if not common or work > 40 * LIMIT:
            return None
        axis = str(self.pick(common))
        return sum_(axis, x * y) * (1 / math.sqrt(int(x.extent(axis))))

    def reduction(self) -> Node | None:
        x = self.with_axes()
        if x is None:
            return None
        names = list(x.names)
        self.rng.shuffle(names)
        some = names[: 1 + (self.rng.random() < 0.3)]
        n = math.prod(int(x.extent(a)) for a in some)
        kind = str(self.pick(["sum", "max", "min", "mean", "logsum"]))
        if kind == "sum":
            return reduce_("sum", some, x) * (1 / math.sqrt(n))
        if kind == "mean":
            return reduce_("sum", some, x) / float(n)
        if kind == "logsum":
            m = max_(some[0], x)
            return map_("log", sum_(some[0], exp(x - m))) + m
        return reduce_(kind, some, x)

    def normalised(self) -> Node | None:
        x = self.with_axes()
        if x is None:
            return None
        axis = str(self.pick(list(x.names)))
        n = float(int(x.extent(axis)))
        kind = self.pick(["softmax", "masked", "layer", "rms"])
        if kind == "layer":
            x = x - sum_(axis, x) / n
        if kind in ("layer", "rms"):
            return x * rsqrt(sum_(axis, x * x) / n + 0.01)
        if kind == "masked" and len(x.names) > 1:
            other = str(self.pick([a for a in x.names if a != axis]))
            seen = iota(axis, int(n)) <= iota(other, int(x.extent(other)))
            x = where(seen, x, self.number(-math.inf))
        p = exp(x - max_(axis, x))
        return p / sum_(axis, p)

    def masked(self) -> Node | None:
        x = self.with_axes()
        if x is None:
            return None
        a, b = (str(self.pick(list(x.names))) for _ in range(2))
        at = iota(a, int(x.extent(a))) - iota(b, int(x.extent(b))) * int(self.rng.integers(1, 3))
        keep = self.pick([at >= 0, at < 3, eq(at % 3, const(1, "int32"))])
        assert isinstance(keep, Node)
        return where(keep, x, self.number(0.25))

    def moved(self) -> Node | None:
        """Reversed, shifted, repeated, split or merged."""
        x = self.with_axes()
        if x is None:
            return None
        axis = str(self.pick(list(x.names)))
        n = int(x.extent(axis))
        kind = self.pick(["reverse", "shift", "repeat", "split", "merge", "clip"])
        at = iota(axis, n)
        if kind == "reverse":
            return reaxis(x, {axis: n - 1 - at})
        if kind == "shift":
            return reaxis(x, {axis: (at + int(self.rng.integers(n))) % n})
        if kind == "clip":
            return reaxis(x, {axis: minimum(at + 2, const(n - 1, "int32"))})
        if kind == "repeat":
            return reaxis(x, {axis: at // 2})
        if kind == "split":
            size = int(self.rng.choice([s for s in range(1, n + 1) if n % s == 0]))
            outer, inner = self.axis("o"), self.axis("i")
            self.axes |= {outer: n // size, inner: size}
            return reaxis(x, {axis: iota(outer, n // size) * size + iota(inner, size)})
        other = str(self.pick(list(x.names)))
        if other == axis:
            return None
        m, whole = int(x.extent(other)), self.axis("m")
        self.axes[whole] = n * m
        both = iota(whole, n * m)
        return reaxis(x, {axis: both // m, other: both % m})

    def taken(self) -> Node | None:
        x = self.with_axes()
        if x is None:
            return None
        axis = str(self.pick(list(x.names)))
        fresh = {a: e for a, e in self.axes.items() if a not in x.names}
        if not fresh:
            return None
        new = str(self.pick(list(fresh)))
        if math.prod({**dict(x.axes), new: fresh[new]}.values()) > LIMIT:
            return None
        name = f"x{len(self.inputs)}"
        index = input_(name, {new: fresh[new]}, "int64")
        self.inputs.append(index)
        self.arrays[name] = self.rng.integers(0, int(x.extent(axis)), fresh[new])
        return take(x, axis, index)

    def scanned(self) -> Node | None:
        x = self.with_axes()
        if x is None:
            return None
        axis = str(self.pick(list(x.names)))
        monoid = str(self.pick(["sum", "max"]))
        flags = {"exclusive": self.rng.random() < 0.3, "reverse": self.rng.random() < 0.3}
        if monoid == "max":
            flags["exclusive"] = False
        y = scan(monoid, axis, x, **flags)
        return y * (1 / math.sqrt(int(x.extent(axis)))) if monoid == "sum" else y

    def step(self) -> Node | None:
        kinds = (
            [self.unary] * 3 + [self.binary] * 5 + [self.contraction] * 4 + [self.reduction] * 3
            + [self.normalised] * 3 + [self.masked] * 2 + [self.moved] * 2 + [self.taken]
            + [self.stepped] * 2 + [self.scanned]
        )  # fmt: skip
        made = self.pick(kinds)()  # type: ignore[operator]
        if made is None or math.prod(int(e) for _, e in made.axes) > LIMIT:
            return None
        return made

    def graph(self, steps: int) -> ModelGraph:
        self.pool += [self.leaf() for _ in range(int(self.rng.integers(2, 5)))]
        while steps:
            made = self.step()
            if made is not None:
                self.pool.append(made)
                steps -= 1
        outputs = [self.pool[-1]]
        if self.rng.random() < 0.4:
            outputs.append(self.old())
        values = []
        for n, node in enumerate(outputs):
            node = cast(node, self.dtype)
            dims = [str(a) for a in self.rng.permutation(list(node.names))]
            values.append(value(f"y{n}", node, dims))
        return ModelGraph(tuple(self.inputs), tuple(values), (), self.weights, Coverage(0, 0))


def random_graph(seed: int, steps: int | None = None) -> tuple[ModelGraph, Arrays]:
    """A graph and an array for each of its inputs and weights; the same for the same seed.

    steps: of that many operators, the first of those that the seed yields.
    """
    made = Random(seed)
    own = int(made.rng.integers(2, 12))
    return made.graph(own if steps is None else steps), made.arrays


# ---- kernels -----------------------------------------------------------------------------------

TOLERANCE = {"float64": 1e-8, "float32": 3e-4, "float16": 6e-3, "bfloat16": 4e-2}


def problem_of(seed: int, folder: Path, more: int = 1, steps: int | None = None) -> str:
    """What is wrong with the kernels of a random graph under the first and some more schedules."""
    graph, arrays = random_graph(seed, steps)
    narrow = {n: a.astype(np.float32) if a.dtype.name == "bfloat16" else a
              for n, a in arrays.items()}  # fmt: skip
    want = run_graph(graph, narrow)
    kernels = Kernels(host_target(), folder, threads=2)
    part = partition(graph, kernels.target)
    rng = np.random.default_rng(seed)
    choices = [kernels.choose(part, rng if n else None) for n in range(1 + more)]
    kernels.compile()
    dtypes = {str(n.attr[0]): n.dtype for n in graph.inputs}
    dtypes |= {n: w.dtype for n, w in graph.weights.items()}
    given = {n: storage(a, dtypes[n]) for n, a in arrays.items()}
    for choice in choices:
        if isinstance(choice, str):
            return choice
        try:
            got = run_steps(part, choice, kernels, given)
        except JobFailure as failure:
            return failure.reason
        for out in graph.outputs:
            off = _off(got[out.name], np.asarray(want[out.name]), out.node.dtype)
            if off:
                return f"{out.name}: {off}"
    return ""


def _off(got: np.ndarray, want: np.ndarray, dtype: str) -> str:
    """Which elements are off, by more than rounding on the way explains."""
    got = (from_bfloat16(got) if dtype == "bfloat16" else got).astype(np.float64).reshape(-1)
    want = want.astype(np.float64).reshape(-1)
    with np.errstate(invalid="ignore"):
        near = np.abs(got - want) <= TOLERANCE[dtype] * (1 + np.abs(want))
    bad = ~(near | (got == want) | (np.isnan(got) & np.isnan(want)))
    at = np.flatnonzero(bad)[:3]
    return f"{bad.sum()} of {bad.size} off: {got[at]}, not {want[at]}" if bad.any() else ""


def shrunk(seed: int, folder: Path, more: int) -> tuple[int, str]:
    """The fewest operators of a failing seed that still fail, and how."""
    for steps in range(1, 64):
        why = problem_of(seed, folder, more, steps)
        if why:
            return steps, why
    raise AssertionError(f"seed {seed} fails only as a whole")


def main() -> None:
    first, last = int(sys.argv[1]), int(sys.argv[2])
    for seed in range(first, last):
        with tempfile.TemporaryDirectory() as folder:
            try:
                why = problem_of(seed, Path(folder), more=2)
            except Exception as error:  # a finding like any other
                why = f"{type(error).__name__}: {error}"
            if why:
                print(f"seed {seed}: {why}", flush=True)
    print(f"{last - first} graphs checked")


if __name__ == "__main__":
    main()
