"""Vector formulas of elementary functions against float64, on NumPy float32."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from autosched.codegen import vecmath

INF, NAN = np.inf, np.nan
EDGES = np.array(
    [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38], np.float32
)


class NumpyOps:
    """`vecmath.Ops` on arrays."""

    def __init__(self, shifts: bool = False) -> None:
        self.shifts = shifts

    def const(self, value, dtype="float32"):
        return np.array(value, dtype)

    def add(self, a, b):
        return a + b

    def sub(self, a, b):
        return a - b

    def mul(self, a, b):
        return a * b

    def div(self, a, b):
        return a / b

    def fma(self, a, b, c):
        wide = np.longdouble if a.dtype == np.float64 else np.float64
        dtype = np.result_type(a, b, c)
        return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(dtype)

    def minimum(self, a, b):
        return np.where(a < b, a, b)

    def maximum(self, a, b):
        return np.where(a > b, a, b)

    def rint(self, x):
        return np.rint(x)

    def floor(self, x):
        return np.floor(x)

    def sqrt(self, x):
        return np.sqrt(x)

    def abs(self, x):
        return np.abs(x)

    def lt(self, a, b):
        return a < b

    def eq(self, a, b):
        return a == b

    def select(self, condition, a, b):
        return np.where(condition, a, b)

    def cast(self, x, dtype):
        return x.astype(dtype)

    def bitcast(self, x, dtype):
        return x.view(dtype)

    def bit_and(self, a, b):
        return a & b

    def bit_or(self, a, b):
        return a | b

    def shl(self, a, b):
        return a << b

    def shr(self, a, b):
        return a >> b

    def scale(self, x, n):
        if self.shifts:
            return vecmath.scale_by_shifts(self, x, n)
        return (x.astype(np.float64) * np.exp2(n.astype(np.float64))).astype(np.float32)


def call(name: str, *args: np.ndarray, shifts: bool = False) -> np.ndarray:
    with np.errstate(all="ignore"):
        out = vecmath.FUNCTIONS[name](NumpyOps(shifts), *args)
    assert out.dtype == np.float32
    return out


def both_signs(low: float, high: float) -> np.ndarray:
    size = np.geomspace(low, high, 200_001)
    return np.concatenate([size, -size, np.linspace(-high, high, 200_001)])


# name, samples, exact function, largest relative error
EXACT = {
    "exp": (both_signs(1e-30, 88.0), np.exp, 2.5e-7),
    "exp2": (both_signs(1e-30, 126.0), np.exp2, 2.5e-7),
    "log": (np.concatenate([np.geomspace(1e-44, 3e38, 400_001), np.linspace(0.5, 2, 400_000)]),
            np.log, 2.5e-7),
    "log2": (np.concatenate([np.geomspace(1e-44, 3e38, 400_001), np.linspace(0.5, 2, 400_000)]),
             np.log2, 3e-7),
    "erf": (both_signs(1e-30, 10.0), special.erf, 3.3e-7),
    "tanh": (both_signs(1e-30, 20.0), np.tanh, 3.3e-7),
    "sigmoid": (both_signs(1e-30, 86.0), lambda x: 1 / (1 + np.exp(-x)), 3.5e-7),
    "sqrt": (np.geomspace(1e-44, 3e38, 100_001), np.sqrt, 7e-8),
    "rsqrt": (np.geomspace(1e-38, 3e38, 100_001), lambda x: 1 / np.sqrt(x), 1.5e-7),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shifts", [False, True])
def test_relative_error(name: str, shifts: bool) -> None:
    samples, exact, bound = EXACT[name]
    x = samples.astype(np.float32)
    x = x[x != 0]
    want = exact(x.astype(np.float64))
    keep = (np.abs(want) >= 2.0**-126) & (want != 0)
    got = call(name, x, shifts=shifts).astype(np.float64)
    error = np.abs(got[keep] / want[keep] - 1)
    assert error.max() < bound, (x[keep][error.argmax()], error.max())
    assert np.abs(got[~keep] - want[~keep]).max(initial=0.0) < 2.0**-126


@pytest.mark.parametrize("name", ["sin", "cos"])
@pytest.mark.parametrize("span", [1.0, 100.0, 1e6])
def test_circle(name: str, span: float) -> None:
    x = both_signs(1e-30 if name == "sin" else 1e-3, span).astype(np.float32)
    want = getattr(np, name)(x.astype(np.float64))
    got = call(name, x).astype(np.float64)
    assert np.abs(got - want).max() < 1.2e-7
    clear = np.abs(want) > 1e-30
    assert np.abs(got[clear] / want[clear] - 1).max() < 3e-7


def same(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Equal in value, NaN and the sign of zero included."""
    signs = np.signbit(got) == np.signbit(want)
    return (np.isnan(got) & np.isnan(want)) | ((got == want) & signs)


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize("name", sorted(vecmath.FUNCTIONS.keys() - {"pow"}))
def test_edges(name: str, shifts: bool) -> None:
    exact = EXACT[name][1] if name in EXACT else getattr(np, name)
    with np.errstate(all="ignore"):
        want = exact(EDGES.astype(np.float64)).astype(np.float32)
    got = call(name, EDGES, shifts=shifts)
    if name in ("sin", "cos"):  # huge arguments have no accurate reduction
        known = ~(np.abs(EDGES) > 1e30) | np.isinf(EDGES)
        assert same(got, want)[known].all()
        return
    near = np.isclose(got, want, rtol=3e-7, atol=0) & np.isfinite(want) & (want != 0)
    assert (near | same(got, want)).all(), np.stack([EDGES, got, want])


def test_saturation_is_exact() -> None:
    x = np.array([3.84, 4, 6, 100], np.float32)
    assert (call("erf", x) == 1).all()
    assert (call("erf", -x) == -1).all()
    x = np.array([9.1, 20, 100], np.float32)
    assert (call("tanh", x) == 1).all()
    assert (call("exp", np.array([-105, -1e30], np.float32)) == 0).all()
    assert np.isinf(call("exp", np.array([88.8, 1e30], np.float32))).all()


def test_pow_values() -> None:
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-80, 80, 400_000)).astype(np.float32)
    y = rng.uniform(-20, 20, 400_000).astype(np.float32)
    with np.errstate(all="ignore"):
        want = x.astype(np.float64) ** y.astype(np.float64)
    keep = (want > 2.0**-126) & (want < 3.4e38)
    got = call("pow", x, y).astype(np.float64)
    assert np.abs(got[keep] / want[keep] - 1).max() < 2.5e-7
    small = np.arange(-9, 10).astype(np.float32)
    base, power = (a.ravel() for a in np.meshgrid(small[small != 0], small))
    want = base.astype(np.float64) ** power.astype(np.float64)
    assert np.abs(call("pow", base, power) / want - 1).max() < 2.5e-7


def test_pow_edges() -> None:
    specials = np.array([0.0, -0.0, 1, -1, INF, -INF, NAN, 0.5, -0.5, 2, -2, 3, -3, 1e-3], "f4")
    x, y = (a.ravel() for a in np.meshgrid(specials, specials))
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    got = call("pow", x, y)
    good = same(got, want) | (np.isfinite(want) & (want != 0) & np.isclose(got, want, rtol=3e-7))
    assert good.all(), np.stack([x, y, got, want])[:, ~good]
