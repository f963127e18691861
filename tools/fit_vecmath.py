"""Prints the coefficient tables of codegen/vecmath.py: minimax fits by linear programming.

In: nothing. Out: Python source on stdout, one line a table, with the fit's largest weighted
error. A polynomial's coefficients are rounded to float32 one after another, each time refitting
the rest; a rational function is fitted by linear programs that carry the last denominator as
weight. Needs SciPy, takes about ten seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import erf

Array = NDArray[np.float64]


def chebyshev(low: float, high: float, count: int = 600) -> Array:
    """Sample points, dense at both ends."""
    angles = np.pi * (np.arange(count) + 0.5) / count
    return 0.5 * (low + high) + 0.5 * (high - low) * np.cos(angles)


def _minimax(columns: Array, values: Array) -> Array:
    """The c that minimises max |columns @ c - values|."""
    scale = np.abs(columns).max(axis=0)
    scaled, ones = columns / scale, np.ones((len(values), 1))
    count = columns.shape[1]
    solved = linprog(
        np.r_[np.zeros(count), 1.0],
        np.block([[scaled, -ones], [-scaled, -ones]]),
        np.r_[values, -values],
        bounds=[(None, None)] * count + [(0, None)],
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if solved.x is None:
        raise RuntimeError(f"the linear program failed: {solved.message}")
    return np.asarray(solved.x[:count] / scale)


def polynomial(
    x: Array, f: Array, weight: Array, degree: int, known: Sequence[float] = (), single: bool = True
) -> tuple[list[float], float]:
    """Coefficients, lowest first, that minimise max |p(x) - f| * weight, and that maximum.

    known: leading coefficients that are given. single: round the others to float32.
    """
    powers = np.vander(x, degree + 1, increasing=True)
    found = list(known)
    while len(found) <= degree:
        rest = f - powers[:, : len(found)] @ np.array(found)
        best = _minimax(powers[:, len(found) :] * weight[:, None], rest * weight)
        if not single:
            found += [float(c) for c in best]
            break
        found.append(float(np.float32(best[0])))
    return found, float(np.abs((powers @ np.array(found) - f) * weight).max())


def rational(
    x: Array, f: Array, weight: Array, top: int, bottom: int, rounds: int = 25
) -> tuple[list[float], list[float], float]:
    """P and Q, lowest first, Q(0) = 1, that nearly minimise max |P/Q - f| * weight."""
    size = np.abs(x).max()
    upper = np.vander(x / size, top + 1, increasing=True)
    lower = np.vander(x / size, bottom + 1, increasing=True)[:, 1:]
    denominator = np.ones_like(x)
    best: tuple[list[float], list[float], float] = ([], [], np.inf)
    for _ in range(rounds):
        scale = (weight / denominator)[:, None]
        columns = np.concatenate([upper * scale, -lower * f[:, None] * scale], axis=1)
        c = _minimax(columns, f * weight / denominator)
        denominator = 1 + lower @ c[top + 1 :]
        if (denominator <= 0).any():
            break
        p = c[: top + 1] / size ** np.arange(top + 1)
        q = c[top + 1 :] / size ** np.arange(1, bottom + 1)
        p32, q32 = np.float32(p).astype(float), np.r_[1.0, np.float32(q).astype(float)]
        value = np.polyval(p32[::-1], x) / np.polyval(q32[::-1], x)
        error = float(np.abs((value - f) * weight).max())
        if error < best[2]:
            best = (p32.tolist(), q32.tolist(), error)
    return best


def _digits(c: float) -> str:
    return f"{c:.9g}" if c == float(np.float32(c)) else f"{c:.17g}"


def show(name: str, table: Sequence[float], error: float) -> None:
    print(f"# largest weighted error {error:.1e}")
    print(f"{name} = ({', '.join(map(_digits, table))})")


def main() -> None:
    r = chebyshev(-0.3470, 0.3470)
    show("EXP", *polynomial(r, np.exp(r), np.exp(-r), 5, known=(1.0,)))
    r = chebyshev(-0.5, 0.5)
    show("EXP2", *polynomial(r, np.exp2(r), np.exp2(-r), 5, known=(1.0,)))
    f = chebyshev(np.sqrt(0.5) - 1, np.sqrt(2) - 1)
    tail = (np.log1p(f) - f + f * f / 2) / f**3
    show("LOG1P_TAIL", *polynomial(f, tail, np.abs(f**3 / np.log1p(f)), 6))
    t = chebyshev(0.0, (np.sqrt(2) - 1) / (np.sqrt(2) + 1))
    show("LOG2_ATANH", *polynomial(
        t * t, np.where(t < 1e-4, 1 + t * t / 3, np.arctanh(t) / t) * 2 / np.log(2),
        np.full_like(t, np.log(2) / 2), 5, single=False))  # fmt: skip
    x = chebyshev(0.0, 3.84)
    p, q, error = rational(x * x, erf(x) / x, x / erf(x), 6, 4)
    show("ERF_P", p, error)
    show("ERF_Q", q, error)
    x = chebyshev(0.0, 9.0)
    p, q, error = rational(x * x, np.tanh(x) / x, x / np.tanh(x), 6, 3)
    show("TANH_P", p, error)
    show("TANH_Q", q, error)
    r = chebyshev(1e-2, np.pi / 4)
    show("SIN_TAIL", *polynomial(r * r, (np.sin(r) - r) / r**3, r**3 / np.sin(r), 2))
    show("COS_TAIL", *polynomial(r * r, (np.cos(r) - 1 + r * r / 2) / r**4, r**4 / np.cos(r), 2))


if __name__ == "__main__":
    main()
