"""The monoid table: identity, combine and tie rule of every reduction.

`combine(a, b)` is written once over any operands with arithmetic (IR nodes, NumPy arrays), so
that the interpreter and the emitters share it. `a` comes before `b` along the axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# fn(name, *operands) applies a scalar function; every combine is a formula over it.
Apply = Callable[..., Any]


@dataclass(frozen=True)
class Monoid:
    """arity components; `identity[n]` is a float or a key of `dtype_limit`; tie rule in words."""

    arity: int
    identity: tuple[float | str, ...]
    combine: Callable[[Apply, tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]
    idempotent: bool
    tie: str
    numpy: Callable[..., Any] | None = None  # fast path of the interpreter, one component


def _one(fn: str) -> Callable[[Apply, tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]:
    return lambda f, a, b: (f(fn, a[0], b[0]),)


def _arg(better: str) -> Callable[[Apply, tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]:
    def combine(f: Apply, a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
        # A NaN wins over every number, the first of two NaNs too, as in numpy.argmax.
        nan_b = f("and", f("ne", b[0], b[0]), f("eq", a[0], a[0]))
        swap = f("or", f(better, b[0], a[0]), nan_b)
        same = f("or", f("eq", a[0], b[0]),
                 f("and", f("ne", a[0], a[0]), f("ne", b[0], b[0])))  # fmt: skip
        swap = f("or", swap, f("and", same, f("lt", b[1], a[1])))
        return f("where", swap, b[0], a[0]), f("where", swap, b[1], a[1])

    return combine


def _logsumexp(f: Apply, a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """(m, s) stands for m + log(s); with m = -inf on both sides the sum stays 0, not NaN."""
    m = f("max", a[0], b[0])

    def scaled(x: tuple[Any, ...]) -> Any:
        return f("mul", x[1], f("where", f("eq", x[0], m), f("exp", f("sub", x[1], x[1])),
                                f("exp", f("sub", x[0], m))))  # fmt: skip

    return m, f("add", scaled(a), scaled(b))


def _moments(f: Apply, a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """(n, mean, M2) of two samples (Chan, Golub and LeVeque 1979); n = 0 is the identity."""
    n = f("add", a[0], b[0])
    safe = f("max", n, f("exp", f("sub", n, n)))  # 1 where both are empty
    share = f("div", b[0], safe)
    delta = f("sub", b[1], a[1])
    mean = f("add", a[1], f("mul", delta, share))
    spread = f("mul", f("mul", delta, delta), f("mul", a[0], share))
    return n, mean, f("add", f("add", a[2], b[2]), spread)


MONOIDS: dict[str, Monoid] = {
    "sum": Monoid(1, (0.0,), _one("add"), False, "none", np.sum),
    "prod": Monoid(1, (1.0,), _one("mul"), False, "none", np.prod),
    "max": Monoid(1, ("lowest",), _one("max"), True, "NaN wins", np.max),
    "min": Monoid(1, ("highest",), _one("min"), True, "NaN wins", np.min),
    "any": Monoid(1, (0.0,), _one("or"), True, "none", np.any),
    "all": Monoid(1, (1.0,), _one("and"), True, "none", np.all),
    "argmax": Monoid(2, ("lowest", "last"), _arg("gt"), True, "first index; NaN wins"),
    "argmin": Monoid(2, ("highest", "last"), _arg("lt"), True, "first index; NaN wins"),
    "logsumexp": Monoid(2, ("lowest", 0.0), _logsumexp, False, "none"),
    "moments": Monoid(3, (0.0, 0.0, 0.0), _moments, False, "none"),
}


def dtype_limit(which: float | str, dtype: str) -> float | int | bool:
    """The identity `which` as a value of `dtype`; floats use infinities."""
    if not isinstance(which, str):
        return which
    if dtype == "bool":
        return which == "highest" or which == "last"
    if dtype.startswith(("float", "bfloat")):
        return -math.inf if which == "lowest" else math.inf
    info = np.iinfo(dtype)
    return int(info.min if which == "lowest" else info.max)
