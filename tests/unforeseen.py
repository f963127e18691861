"""Definitions that no rule was written for: algebra programs of a few lines, at odd sizes.

What is unusual stands in each docstring. A definition is a task as it stands: one kernel, by any
schedule. Where the algebra allows a single pass over the axis that its reduces share, `cascade`
finds it; where not, `refused` is the reason that the rule must print.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from programs import algebra

from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    abs_,
    const,
    erf,
    exp,
    get,
    input_,
    iota,
    log,
    map_,
    max_,
    maximum,
    minimum,
    reduce_,
    rsqrt,
    scan,
    sigmoid,
    sqrt,
    sum_,
    take,
    tanh,
    where,
)

I, J, D, E = 19, 43, 8, 12  # queries, keys, their size, the size of values: none divides another


@dataclass(frozen=True)
class Definition:
    """axis: the one that its reduces share; refused: why no single pass over it is right, as the
    rule says it ("" where one is); apart: why a model that holds it gets `tasks` kernels of it."""

    build: Callable[[], Program]
    axis: str
    refused: str = ""
    tasks: int = 1
    apart: str = ""


DEFINITIONS: dict[str, Definition] = {}
# Why a model gets parts of a definition as kernels of their own. The first are one kernel where
# the options of the partition ask for it; all of them are, given as a task.
WEIGHTS = "rows of a product with weights: the tile of the product is freer alone"
# Outputs over different axes, as no block of one makes a block of the other.
CROSSED = {"sums_along_either_axis"}
STATISTIC = "a statistic that all blocks of the other operand read again"


def unforeseen(
    axis: str, refused: str = "", tasks: int = 1, apart: str = ""
) -> Callable[[Callable[[], Program]], Callable[[], Program]]:
    def add(build: Callable[[], Program]) -> Callable[[], Program]:
        DEFINITIONS[build.__name__] = Definition(build, axis, refused, tasks, apart)
        return build

    return add


# ---- operands ----------------------------------------------------------------------------------


def queries(name: str = "q") -> Node:
    return input_(name, {"i": I, "d": D})


def keys(name: str = "k", axis: str = "j", length: int = J) -> Node:
    return input_(name, {axis: length, "d": D})


def values(name: str = "v", axis: str = "j", length: int = J) -> Node:
    return input_(name, {axis: length, "e": E})


def scores(tail: str = "") -> Node:
    return sum_("d", queries("q" + tail) * keys("k" + tail)) * D**-0.5


def rows(m: int = I, k: int = J) -> Node:
    return input_("x", {"m": m, "k": k})


def weight(name: str, k: int = J, n: int = 29) -> Node:
    return input_(name, {"k": k, "n": n}, kind="weight")


def out(**parts: tuple[str, Node]) -> Program:
    """Outputs by name, each with its axes in memory order."""
    dims = {name: tuple(axes.split()) for name, (axes, _) in parts.items()}
    return algebra(dims, **{name: node for name, (_, node) in parts.items()})


# ---- normalisers -------------------------------------------------------------------------------


@unforeseen("j")
def tempered_capped_sink() -> Program:
    """Softmax with a temperature for each row, a soft cap, and a sink that takes weight."""
    sharp = 1.0 / (abs_(input_("t", {"i": I})) + 0.5)
    s = 4.0 * tanh(scores() / 4.0) * sharp
    sink = input_("sink", {"i": I})
    top = maximum(max_("j", s), sink)
    p = exp(s - top)
    total = sum_("j", p) + exp(sink - top)
    return out(o=("i e", sum_("j", p * values()) / total))


@unforeseen("j")
def temperature_behind_the_maximum() -> Program:
    """The temperature of a row divides what is left after its maximum is taken off."""
    s = scores()
    p = exp((s - max_("j", s)) / (abs_(input_("t", {"i": I})) + 0.5))
    return out(o=("i e", sum_("j", p * values()) / sum_("j", p)))


@unforeseen("j")
def signed_maximum() -> Program:
    """Scores over the signed value of the one of largest magnitude."""
    s = scores()
    top = get(reduce_("argmax", "j", abs_(s), s), 1)
    return out(o=("i e", sum_("j", s / top * values())), top=("i", top))


@unforeseen("j")
def unit_scores() -> Program:
    """Scores over their length: s / sqrt(sum s^2)."""
    s = scores()
    return out(o=("i e", sum_("j", s * rsqrt(sum_("j", s * s) + 1e-6) * values())))


@unforeseen("j")
def softplus_over_sum() -> Program:
    """Softplus of the scores, over its row sum."""
    s = scores()
    p = maximum(s, 0.0) + map_("log1p", exp(-abs_(s)))
    return out(o=("i e", sum_("j", p * values()) / sum_("j", p)))


@unforeseen("j")
def through_logsumexp() -> Program:
    """Weights as exp(s - lse), the way of those who store the lse alone."""
    s = scores()
    top = max_("j", s)
    lse = top + log(sum_("j", exp(s - top)))
    return out(o=("i e", sum_("j", exp(s - lse) * values())), lse=("i", lse))


@unforeseen("j")
def plus_one_in_the_denominator() -> Program:
    """Softmax that may attend to nothing: 1 + sum of exponentials, shifted by max(m, 0)."""
    s = scores()
    top = maximum(max_("j", s), 0.0)
    p = exp(s - top)
    return out(o=("i e", sum_("j", p * values()) / (exp(-top) + sum_("j", p))))


@unforeseen("j", refused="product with an earlier result")
def temperature_of_the_row_itself() -> Program:
    """A temperature that is a statistic of the same row: no weight is known before the end."""
    s = scores()
    spread = sqrt(sum_("j", s * s) / float(J) + 1e-3)
    p = exp((s - max_("j", s)) / spread)
    return out(o=("i e", sum_("j", p * values()) / sum_("j", p)))


@unforeseen("j", refused="a test of a value that depends on an earlier result")
def above_the_mean() -> Program:
    """Only scores above the mean of their row count: which, is known at the end."""
    s = scores()
    mean = sum_("j", s) / float(J)
    p = where(s > mean, exp(s * 0.25), 0.0)
    return out(o=("i e", sum_("j", p * values()) / sum_("j", p)))


@unforeseen("j", refused="a max of values that depend on an earlier result")
def maximum_after_centring() -> Program:
    """The largest distance from the mean of a row, a maximum that reads a sum."""
    s = scores()
    far = abs_(s - sum_("j", s) / float(J))
    return out(o=("i e", sum_("j", far / max_("j", far) * values())))


# ---- what is summed ----------------------------------------------------------------------------


@unforeseen("j")
def weighted_variance() -> Program:
    """The mean and the variance of the values under softmax weights."""
    s = scores()
    p = exp(s - max_("j", s))
    total, v = sum_("j", p), values()
    mean = sum_("j", p * v) / total
    return out(mean=("i e", mean), var=("i e", sum_("j", p * v * v) / total - mean * mean))


@unforeseen("j", tasks=2, apart=STATISTIC)
def centred_values() -> Program:
    """Values less their mean over the keys, under softmax weights."""
    s, v = scores(), values()
    p = exp(s - max_("j", s))
    centred = v - sum_("j", v) / float(J)
    return out(o=("i e", sum_("j", p * centred) / sum_("j", p)))


@unforeseen("j")
def log_weights_and_entropy() -> Program:
    """The logarithm of the weights, and the entropy of each row."""
    s = scores()
    top = max_("j", s)
    lse = top + log(sum_("j", exp(s - top)))
    return out(y=("i j", s - lse), h=("i", -sum_("j", exp(s - lse) * (s - lse))))


@unforeseen("j")
def with_lse_and_maximum() -> Program:
    """Softmax attention that returns the lse and the maximum of each row, too."""
    s = scores()
    top = max_("j", s)
    p = exp(s - top)
    total = sum_("j", p)
    return out(o=("i e", sum_("j", p * values()) / total), lse=("i", top + log(total)),
               top=("i", top))  # fmt: skip


# ---- scores ------------------------------------------------------------------------------------


@unforeseen("j")
def product_of_two_scores() -> Program:
    """Softmax over the product of two score matrices."""
    s = scores("1") * scores("2")
    p = exp(s - max_("j", s))
    return out(o=("i e", sum_("j", p * values()) / sum_("j", p)))


@unforeseen("j")
def difference_of_two_softmaxes() -> Program:
    """Two softmaxes of the same keys' axis, one taken off the other with a learned share."""
    parts = []
    for tail in "12":
        s = scores(tail)
        p = exp(s - max_("j", s))
        parts.append(sum_("j", p * values()) / sum_("j", p))
    return out(o=("i e", parts[0] - input_("share", {"e": E}) * parts[1]))


@unforeseen("j")
def relative_positions() -> Program:
    """A bias for each distance, read from a table, and a mask by the same distance."""
    away = iota("i", I) - iota("j", J)
    at = maximum(minimum(away, const(7, "int32")), const(-7, "int32")) + 7
    s = scores() + take(input_("bias", {"r": 15}), "r", at)
    s = where(away > -20, s, -math.inf)
    p = exp(s - max_("j", s))
    return out(o=("i e", sum_("j", p * values()) / sum_("j", p)))


@unforeseen("j", tasks=3, apart=STATISTIC)
def cosine_scores() -> Program:
    """Queries and keys normalised inside, with a learned sharpness."""
    q, k = queries(), keys()
    unit_q = q * rsqrt(sum_("d", q * q) + 1e-6)
    unit_k = k * rsqrt(sum_("d", k * k) + 1e-6)
    s = sum_("d", unit_q * unit_k) * exp(input_("sharp", {}))
    p = exp(s - max_("j", s))
    return out(o=("i e", sum_("j", p * values()) / sum_("j", p)))


@unforeseen("j")
def sigmoid_weights() -> Program:
    """Sigmoid of scores and a bias: nothing is normalised, and so there is no chain."""
    p = sigmoid(scores() + input_("bias", {"j": J}) - math.log(J))
    return out(o=("i e", sum_("j", p * values())))


@unforeseen("j")
def two_key_sets() -> Program:
    """One softmax over two sets of keys of different length."""
    q = queries()
    s = sum_("d", q * keys("k1")) * D**-0.5
    t = sum_("d", q * keys("k2", "l", 31)) * D**-0.5
    top = maximum(max_("j", s), max_("l", t))
    p, r = exp(s - top), exp(t - top)
    total = sum_("j", p) + sum_("l", r)
    o = sum_("j", p * values("v1")) + sum_("l", r * values("v2", "l", 31))
    return out(o=("i e", o / total))


@unforeseen("j")
def best_key_only() -> Program:
    """Hard attention: the value of the key with the best score, and that score."""
    s = scores()
    best = reduce_("argmax", "j", s, iota("j", J))
    o = take(values(), "j", get(best, 1))
    return out(o=("i e", o), top=("i", get(best, 0)))


# ---- products of matrices ----------------------------------------------------------------------


@unforeseen("n", tasks=2, apart=WEIGHTS)
def product_over_its_own_rms() -> Program:
    """A product whose rows are divided by their own root mean square."""
    y = sum_("k", rows() * weight("w"))
    return out(y=("m n", y * rsqrt(sum_("n", y * y) / 29.0 + 1e-6)))


@unforeseen("n", tasks=2, apart=WEIGHTS)
def product_to_logsumexp() -> Program:
    """The logsumexp over the columns of a product, which itself is never stored."""
    y = sum_("k", rows() * weight("w"))
    top = max_("n", y)
    return out(z=("m", top + log(sum_("n", exp(y - top)))))


@unforeseen("n", tasks=3, apart=WEIGHTS)
def best_column() -> Program:
    """The best column of a product and its value."""
    y = sum_("k", rows() * weight("w"))
    best = reduce_("argmax", "n", y, iota("n", 29))
    return out(at=("m", get(best, 1)), top=("m", get(best, 0)))


@unforeseen("k")
def two_activations() -> Program:
    """A gated pair: a cubic activation of one product times the sine of another."""
    x = rows()
    a, b = sum_("k", x * weight("w1")), sum_("k", x * weight("w2"))
    gate = 0.5 * a * (1.0 + erf(a * 0.7))
    return out(y=("m n", gate * map_("sin", b) + input_("r", {"m": I, "n": 29})))


@unforeseen("k", tasks=2, apart=STATISTIC)
def normalised_rows_gated() -> Program:
    """Rows over their root mean square, two products of them, gated."""
    x = rows()
    x = x * rsqrt(sum_("k", x * x) / float(J) + 1e-6) * input_("g", {"k": J}, kind="weight")
    a, b = sum_("k", x * weight("w1")), sum_("k", x * weight("w2"))
    return out(y=("m n", a * sigmoid(a) * b))


@unforeseen("k", tasks=2, apart=STATISTIC)
def centred_rows_product() -> Program:
    """A product of rows that are centred and scaled by their own moments."""
    x = rows()
    d = x - sum_("k", x) / float(J)
    scaled = d * rsqrt(sum_("k", d * d) / float(J) + 1e-5)
    return out(y=("m n", sum_("k", scaled * weight("w"))))


# ---- other corners -----------------------------------------------------------------------------


@unforeseen("j")
def sums_along_either_axis() -> Program:
    """The row sums and the column maxima of scores that are never stored."""
    s = tanh(scores())
    return out(rows=("i", sum_("j", s)), columns=("j", max_("i", s)))


@unforeseen("j")
def keys_by_index() -> Program:
    """Attention over keys and values that a list of places picks, some of them twice."""
    at = input_("at", {"j": J}, "int32") % 31
    k, v = take(keys("k", "l", 31), "l", at), take(values("v", "l", 31), "l", at)
    s = sum_("d", queries() * k) * D**-0.5
    p = exp(s - max_("j", s))
    return out(o=("i e", sum_("j", p * v) / sum_("j", p)))


@unforeseen("j", tasks=2, apart=STATISTIC)
def forgetting_scores() -> Program:
    """Each key loses what the gates behind it add up to: a running sum inside of the scores."""
    gate = scan("sum", "j", abs_(input_("gate", {"j": J})) * -0.1)
    s = scores() - gate
    p = exp(s - max_("j", s))
    return out(o=("i e", sum_("j", p * values()) / sum_("j", p)))


@unforeseen("j", tasks=3, apart=STATISTIC)
def nearest_of_two_codebooks() -> Program:
    """The nearest code of each row in either of two books, and its distance."""
    x = queries()
    best = []
    for name in ("c1", "c2"):
        gap = sum_("d", keys(name) * keys(name)) - 2.0 * sum_("d", x * keys(name))
        best.append(reduce_("argmin", "j", gap, iota("j", J)))
    first = get(best[0], 0) <= get(best[1], 0)
    return out(
        at=("i", where(first, get(best[0], 1), get(best[1], 1) + J)),
        gap=("i", minimum(get(best[0], 0), get(best[1], 0)) + sum_("d", x * x)),
    )
