"""A workload's name and an independent reference in, an assertion that they agree out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from autosched.datasets.workloads import Workload, workloads
from autosched.datasets.workloads.define import collected
from autosched.ir.interp import evaluate
from autosched.ir.verify import verify

Array: TypeAlias = "np.ndarray[Any, Any]"
# (inputs by name, sizes as attributes, defaults of the definition included) to outputs by name.
Reference: TypeAlias = "Callable[[dict[str, Array], Any], Mapping[str, Array]]"


def check(
    name: str, reference: Reference, *, tolerance: float = 1e-12, seed: int = 0, **changes: Any
) -> dict[str, Array]:
    """The interpreter's outputs of workload `name`, each within `tolerance` of the reference.

    changes: to the small sizes. The distance is the relative L2 norm over finite elements; NaN
    and infinities must be in the same places. A test imports the module of its workload, so that
    this one needs no other.
    """
    found = find(name)
    program = found.program(**changes)
    verify(program)
    inputs = found.inputs(seed, **changes)
    got = evaluate(program, inputs)
    want = reference({k: np.array(v) for k, v in inputs.items()}, sizes_of(found, **changes))
    assert set(want) == set(got), f"{name}: outputs {sorted(got)}, reference {sorted(want)}"
    for key, value in got.items():
        error = distance(value, np.asarray(want[key]))
        assert error <= tolerance, f"{name}.{key} at {changes}: relative error {error:.3e}"
    return got


def find(name: str) -> Workload:
    return collected()[name] if name in collected() else workloads()[name]


def sizes_of(found: Workload, **changes: Any) -> SimpleNamespace:
    """The sizes at which the definition is tested, the defaults of its parameters included."""
    parameters = inspect.signature(found.define).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return SimpleNamespace(**{**defaults, **found.sizes(), **changes})


def distance(got: Array, want: Array) -> float:
    """Relative L2 distance of the finite elements; infinite where the others differ."""
    assert got.shape == want.shape, f"shape {got.shape}, reference {want.shape}"
    got, want = got.astype(np.float64), want.astype(np.float64)
    good = np.isfinite(want)
    if not np.array_equal(got[~good], want[~good], equal_nan=True):
        return np.inf
    got, want = got[good], want[good]
    gap, size = (float(np.linalg.norm(x)) for x in (got - want, want))
    return gap / max(size, 1e-300)
