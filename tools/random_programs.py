"""A seed in, a random algebra program out: the same for the same seed.

Values stay near one and well conditioned, so that a kernel and float64 agree to rounding; axes
have odd extents; operators share operands, chain reductions, mask, move, index and window. What
steps (a floor, an argmax) is applied to inputs alone: rounding decides it elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autosched.ir.node import Node, Output, Program, walk
from autosched.ir.ops import (
    abs_,
    carry,
    cast,
    const,
    eq,
    exp,
    fold,
    get,
    iota,
    log,
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
from autosched.tools.random_values import EXTENTS, LIMIT, Values, size_of, volume

MOST_STEPS = 12


def random_program(seed: int) -> Program:
    """A program of one to four outputs."""
    made = _Random(seed)
    return made.program(int(made.rng.integers(2, MOST_STEPS)))


def program_of(values: Sequence[tuple[Node, Sequence[str]]]) -> Program:
    """A program of values, each with the order of its axes; what no value reads is no input."""
    body = tuple(node for node, _ in values)
    outputs = tuple(
        Output(f"y{n}", tuple(dims), node.dtype, tuple(node.extent(a) for a in dims))
        for n, (node, dims) in enumerate(values)
    )
    inputs = tuple(n for n in walk(*body) if n.op == "input")
    return Program("algebra", inputs, outputs, body)


class _Random(Values):
    """One method a kind of step: a new value of old ones, or None where it does not apply."""

    def unary(self) -> Node:
        x = self.old()
        made = (tanh, sigmoid, abs_, lambda v: v * 0.7 + 0.1, lambda v: -v,
                lambda v: exp(-abs_(v)), lambda v: rsqrt(v * v + 0.5),
                lambda v: map_("erf", v))  # fmt: skip
        fn: Callable[[Node], Node] = self.pick(made)
        return fn(x)

    def stepped(self) -> Node | None:
        """What rounds or chooses, of an input."""
        found = [x for x in self.leaves if x.names]
        if not found:
            return None
        x = self.pick(found)
        kind = self.pick(["floor", "narrow", "argmax", "any"])
        if kind == "floor":
            return map_("floor", x * 2.0)
        if kind == "narrow":
            return cast(cast(x, "float16"), self.compute)
        axis = self.pick(x.names)
        if kind == "any":
            return cast(reduce_("any", axis, x > 1.0), self.compute)
        at = iota(axis, size_of(x, axis))
        best = get(reduce_(self.pick(["argmax", "argmin"]), axis, x, at), 1)
        return cast(best, self.compute) * (1 / size_of(x, axis))

    def binary(self) -> Node | None:
        x, y = self.old(), self.old()
        if volume(x, y) > LIMIT:
            return None
        kind = self.pick(["add", "sub", "mul", "max", "min"])
        return {"add": (x + y) * 0.6, "sub": (x - y) * 0.6, "mul": x * y,
                "max": maximum(x, y), "min": minimum(x, y)}[kind]  # fmt: skip

    def contraction(self) -> Node | None:
        x, y = self.old(), self.old()
        common = [a for a in x.names if a in y.names]
        work = volume(x, y)
        if not common or work > 40 * LIMIT:
            return None
        axis = self.pick(common)
        return sum_(axis, x * y) * (1 / math.sqrt(size_of(x, axis)))

    def reduction(self) -> Node | None:
        x = self.with_axes()
        if x is None:
            return None
        names = list(x.names)
        self.rng.shuffle(names)
        some = names[: 1 + (self.rng.random() < 0.3)]
        n = math.prod(size_of(x, a) for a in some)
        kind = self.pick(["sum", "max", "min", "mean", "logsum"])
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
        axis = self.pick(x.names)
        n = float(size_of(x, axis))
        kind = self.pick(["softmax", "masked", "layer", "rms"])
        if kind == "layer":
            x = x - sum_(axis, x) / n
        if kind in ("layer", "rms"):
            return x * rsqrt(sum_(axis, x * x) / n + 0.01)
        if kind == "masked" and len(x.names) > 1:
            other = self.pick([a for a in x.names if a != axis])
            seen = iota(axis, int(n)) <= iota(other, size_of(x, other))
            x = where(seen, x, self.number(-math.inf))
        p = exp(x - max_(axis, x))
        return p / sum_(axis, p)

    def chained(self) -> Node | None:
        """Reduces over one axis that read each other, and a value."""
        s, v = self.with_axes(), self.with_axes()
        common = [a for a in s.names if a in v.names] if s is not None and v is not None else []
        if s is None or v is None or not common:
            return None
        if volume(s, v) > 10 * LIMIT:
            return None
        axis = self.pick(common)
        n, m = float(size_of(s, axis)), max_(axis, s)
        p = exp(s - m)
        kind = self.pick(["mean", "lse", "sink", "unit", "entropy", "spread", "signed", "pair",
                          "moments"])  # fmt: skip
        if kind == "lse":
            return sum_(axis, exp(s - (m + log(sum_(axis, p)))) * v)
        if kind == "sink":
            top = maximum(m, 0.0)
            p = exp((s - top) * 0.5)
            return sum_(axis, p * v) / (sum_(axis, p) + exp(-top))
        if kind == "unit":
            return sum_(axis, s * rsqrt(sum_(axis, s * s) + 0.1) * v)
        if kind == "entropy":
            return sum_(axis, p * (s - m)) / sum_(axis, p)
        if kind == "signed":
            top = get(reduce_("argmax", axis, abs_(s), s), 1)
            return sum_(axis, s * v) / (n * (abs_(top) + 0.5))
        if kind == "moments":
            return sum_(axis, (s - sum_(axis, s) / n) * v) / n
        mean = sum_(axis, p * v) / sum_(axis, p)
        if kind == "mean":
            return mean
        if kind == "pair":
            return mean - 0.5 * (sum_(axis, maximum(s, 0.0) * v) / n)
        return sum_(axis, p * v * v) / sum_(axis, p) - mean * mean * 0.5

    def gated(self) -> Node | None:
        """Two contractions that share an operand, under different functions."""
        x = self.with_axes()
        if x is None:
            return None
        axis = self.pick(x.names)
        n, new = size_of(x, axis), self.axis("f")
        width = int(self.rng.choice(EXTENTS))
        if volume(x) * width > 20 * LIMIT:
            return None
        self.axes[new] = width
        a, b = (
            sum_(axis, x * cast(self.input({axis: n, new: width}, self.dtype, "weight"),
                                self.compute))
            for _ in range(2)
        )  # fmt: skip
        return tanh(a) * sigmoid(b)

    def windowed(self) -> Node | None:
        """Overlapping windows, reduced."""
        x = self.with_axes()
        if x is None:
            return None
        axis = self.pick(x.names)
        size, step = int(self.rng.integers(1, 5)), int(self.rng.integers(1, 4))
        count = (size_of(x, axis) - size) // step + 1
        if count < 1:
            return None
        outer, inner = self.axis("o"), self.axis("w")
        self.axes[outer] = count
        some = reaxis(x, {axis: iota(outer, count) * step + iota(inner, size)})
        if self.rng.random() < 0.3:
            return max_(inner, some)
        taps = cast(self.input({inner: size}, self.dtype, "weight"), self.compute)
        return sum_(inner, some * taps)

    def masked(self) -> Node | None:
        x = self.with_axes()
        if x is None:
            return None
        a, b = (self.pick(x.names) for _ in range(2))
        at = iota(a, size_of(x, a)) - iota(b, int(x.extent(b))) * int(self.rng.integers(1, 3))
        keep = self.pick([at >= 0, at < 3, eq(at % 3, const(1, "int32"))])
        return where(keep, x, self.number(0.25))

    def moved(self) -> Node | None:
        """Reversed, shifted, repeated, split or merged."""
        x = self.with_axes()
        if x is None:
            return None
        axis = self.pick(x.names)
        n = size_of(x, axis)
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
        other = self.pick(x.names)
        if other == axis:
            return None
        m, whole = size_of(x, other), self.axis("m")
        self.axes[whole] = n * m
        both = iota(whole, n * m)
        return reaxis(x, {axis: both // m, other: both % m})

    def taken(self) -> Node | None:
        x = self.with_axes()
        if x is None:
            return None
        axis = self.pick(x.names)
        fresh = {a: e for a, e in self.axes.items() if a not in x.names}
        if not fresh:
            return None
        new = self.pick([*fresh])
        if volume(x) * fresh[new] > LIMIT:
            return None
        return take(x, axis, self.input({new: fresh[new]}, self.pick(["int64", "int32"])))

    def scanned(self) -> Node | None:
        x = self.with_axes()
        if x is None:
            return None
        axis = self.pick(x.names)
        monoid = self.pick(["sum", "max"])
        flags = {"exclusive": self.rng.random() < 0.3, "reverse": self.rng.random() < 0.3}
        if monoid == "max":
            flags["exclusive"] = False
        y = scan(monoid, axis, x, **flags)
        return y * (1 / math.sqrt(size_of(x, axis))) if monoid == "sum" else y

    def recurred(self) -> Node | None:
        """A state that decays along an axis, its last value or all of them."""
        x = self.with_axes()
        if x is None:
            return None
        axis = self.pick(x.names)
        rest = {a: e for a, e in x.axes if a != axis}
        state = carry("S", self.compute, rest)
        kind = self.pick(["decay", "gate", "most"])
        new = {"decay": state * 0.5 + x, "gate": state * sigmoid(x) + x * 0.5,
               "most": maximum(state * 0.9, x)}[kind]  # fmt: skip
        n = size_of(x, axis)
        first = int(self.rng.integers(n)) if self.rng.random() < 0.2 else 0
        start = const(0.5, self.compute)
        if first or self.rng.random() < 0.5:
            return get(fold(axis, [(first, n)], {"S": (start, new)}))
        return get(fold(axis, [(0, n)], {"S": (start, new)}, [new - x * 0.5]), 1)

    def found(self) -> Node | None:
        """A row of a value, where another input has its largest or smallest element."""
        x, leaf = self.with_axes(), self.pick(self.leaves) if self.leaves else None
        if x is None or leaf is None or not set(leaf.names) - set(x.names):
            return None
        axis, along = self.pick(x.names), self.pick([a for a in leaf.names if a not in x.names])
        if volume(x, leaf) > LIMIT:
            return None
        n, m = size_of(x, axis), size_of(leaf, along)
        best = get(reduce_(self.pick(["argmax", "argmin"]), along, leaf, iota(along, m)), 1)
        if axis in best.names:
            return None
        return take(x, axis, best % n)

    def whole(self) -> Node | None:
        """Something that is no float, of an input."""
        if not self.leaves or not (x := self.pick(self.leaves)).names:
            return None
        axis = self.pick(x.names)
        at = iota(axis, size_of(x, axis))
        kind = self.pick(["index", "test", "count", "any", "cast"])
        return {
            "index": get(reduce_("argmin", axis, x, at), 1),
            "test": x > 0.5,
            "count": sum_(axis, cast(x > 0.0, "int32")),
            "any": reduce_("all", axis, x < 1.5),
            "cast": cast(map_("round", x * 3.0), "int8"),
        }[kind]

    def step(self) -> Node | None:
        kinds: list[Callable[[], Node | None]] = (
            [self.unary] * 3 + [self.binary] * 5 + [self.contraction] * 4 + [self.reduction] * 3
            + [self.normalised] * 3 + [self.masked] * 2 + [self.moved] * 2 + [self.taken]
            + [self.stepped] * 2 + [self.scanned] + [self.chained] * 3 + [self.gated]
            + [self.windowed] + [self.recurred] + [self.found]
        )  # fmt: skip
        made = self.pick(kinds)()
        if made is None or volume(made) > LIMIT:
            return None
        return made

    def program(self, steps: int) -> Program:
        self.pool += [self.leaf() for _ in range(int(self.rng.integers(2, 5)))]
        while steps:
            made = self.step()
            if made is not None:
                self.pool.append(made)
                steps -= 1
        chosen = [self.pool[-1]] + [self.old() for _ in range(2) if self.rng.random() < 0.3]
        values = [cast(node, self.dtype) for node in dict.fromkeys(chosen)]
        if self.rng.random() < 0.15 and (other := self.whole()) is not None:
            values.append(other)
        return program_of([(v, [str(a) for a in self.rng.permutation(v.names)]) for v in values])
