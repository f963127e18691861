"""A definition of some ten lines in, a named workload of the collection out.

    @workload("A1", "C R M", small={"b": 2, "i": 37, ...}, shapes={"prefill 4k": {...}})
    def attention(*, b: int, i: int, ..., dtype: str = "bfloat16") -> Program:
        '''softmax(q k) v with grouped heads.'''
        ...
        return algebra(o=("b h i e", o))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autosched.ir.node import Program
from autosched.ir.scalar import FLOATS, round_to_grid

# What a definition needs of the IR and of the schedules, by letter.
FEATURES: Mapping[str, str] = {
    "C": "contractions: sums of products over any index map, with free prologues and epilogues",
    "R": "streamed reductions that are rescaled or carry an index: softmax, argmin, top-k",
    "Q": "codecs: packed, grouped and scaled numbers, decoded on load or encoded on store",
    "I": "indirect and ragged iteration: block lists, pages, packed sequences, expert offsets",
    "S": "recurrences over a sequence, by step or by chunk",
    "M": "masks from one predicate, which also bounds loops and classes of tiles",
    "P": "selection, sorted order, permutation and sums of segments",
    "T": "structured transforms: Hadamard, butterflies, Fourier, Toeplitz, constant tensors",
    "L": "solvers inside a tile: triangular inverse, Newton, conjugate gradients",
    "D": "collectives between devices",
}
Sizes = Mapping[str, Any]
# Draws one input: (generator, shape, the workload's sizes) to an array of float64 or integers.
Draw = Callable[[np.random.Generator, tuple[int, ...], Sizes], np.ndarray]


@dataclass(frozen=True)
class Workload:
    """A definition with the sizes that it is tested and measured at.

    systems: rows of published systems that it serves; features: what it needs of the IR, by the
    letters of `FEATURES`; small: odd sizes for tests; shapes: real sizes by name, as published;
    draws: how inputs are drawn that are not just normal, by input name.
    """

    name: str
    systems: tuple[str, ...]
    features: tuple[str, ...]
    define: Callable[..., Program] = field(repr=False)
    small: Sizes
    shapes: Mapping[str, Sizes] = field(default_factory=dict)
    draws: Mapping[str, Draw] = field(default_factory=dict, repr=False)

    def program(self, shape: str | None = None, **changes: Any) -> Program:
        """The algebra at a named shape, or at the small sizes; `changes` to single sizes."""
        return self.define(**{**self.sizes(shape), **changes})

    def sizes(self, shape: str | None = None) -> dict[str, Any]:
        return dict(self.small if shape is None else self.shapes[shape])

    @property
    def length(self) -> int:
        """Lines of the definition's body: neither signature, docstring nor blank lines."""
        text = inspect.getsource(self.define)
        body = text.split('"""')[-1] if '"""' in text else text.split(":\n", 1)[1]
        return sum(bool(line.strip()) for line in body.splitlines())

    def inputs(self, seed: int, shape: str | None = None, **changes: Any) -> dict[str, np.ndarray]:
        """Random inputs by name: float64 on the grid of the input's dtype, or integers."""
        program = self.program(shape, **changes)
        sizes = {**self.sizes(shape), **changes}
        rng = np.random.default_rng(seed)
        out: dict[str, np.ndarray] = {}
        for node in program.inputs:
            name, dims, dtype, _ = node.attr
            draw = self.draws.get(name, normal() if dtype in FLOATS else integers(0, 2))
            array = draw(rng, tuple(int(e) for _, e in dims), sizes)
            out[name] = on_grid(array, dtype)
        return out


def on_grid(array: np.ndarray, dtype: str) -> np.ndarray:
    """Floats as float64 rounded to `dtype`; integers and flags in their own type."""
    if dtype not in FLOATS:
        return array.astype("bool" if dtype == "bool" else dtype)
    return array.astype(np.float64) if dtype == "float64" else round_to_grid(
        array.astype(np.float64), dtype
    )  # fmt: skip


# ---- the collection ----------------------------------------------------------------------------

_FOUND: dict[str, Workload] = {}


def workload(
    systems: str,
    features: str,
    small: Sizes,
    shapes: Mapping[str, Sizes] | None = None,
    draws: Mapping[str, Draw] | None = None,
) -> Callable[[Callable[..., Program]], Callable[..., Program]]:
    """Adds a definition to the collection under its function's name, and returns it as it was."""

    def add(define: Callable[..., Program]) -> Callable[..., Program]:
        name = define.__name__
        if name in _FOUND:
            raise ValueError(f"two workloads are called {name!r}")
        unknown = sorted(set(features.split()) - set(FEATURES))
        if unknown:
            raise ValueError(f"workload {name!r} needs unknown features {unknown}")
        _FOUND[name] = Workload(
            name, tuple(systems.split()), tuple(features.split()), define, small, shapes or {},
            draws or {},
        )  # fmt: skip
        return define

    return add


def collected() -> Mapping[str, Workload]:
    """Every workload of the modules imported so far, by name."""
    return dict(_FOUND)


# ---- how inputs are drawn ----------------------------------------------------------------------


def normal(scale: float = 1.0, mean: float = 0.0) -> Draw:
    return lambda rng, shape, _: rng.standard_normal(shape) * scale + mean


def uniform(low: float, high: float) -> Draw:
    return lambda rng, shape, _: rng.uniform(low, high, shape)


def integers(low: int, high: int) -> Draw:
    """Integers in [low, high)."""
    return lambda rng, shape, _: rng.integers(low, high, shape)


def unit(axis: int = -1) -> Draw:
    """Rows of length one."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...], _: Sizes) -> np.ndarray:
        x = rng.standard_normal(shape)
        return np.asarray(x / np.linalg.norm(x, axis=axis, keepdims=True))

    return draw
