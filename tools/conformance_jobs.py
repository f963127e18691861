"""A job of the conformance workers: cases in folders in, what is wrong with each out.

Each case is imported, partitioned, scheduled, compiled by TVM and run through ctypes on its own
inputs, step by step, constant steps too; no interpreter and no other runtime takes part in its
answer. Kernels of all the cases of a job share one library.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autosched.codegen.check import compare
from autosched.codegen.jobs import JobFailure
from autosched.codegen.runtime.arrays import STORAGE, from_bfloat16
from autosched.ir.frontend.call import HALVES
from autosched.ir.graph import ModelError, ModelGraph
from autosched.ir.partition import Partition, partition
from autosched.ir.scalar import FLOATS
from autosched.ir.target import host_target
from autosched.tools.compiled import Arrays, Choice, Kernels, run_steps, storage
from autosched.tools.onnx_cases import Case, exact, import_case, read_case


@dataclass(frozen=True)
class Verdict:
    """What became of a case. problem: what is wrong, "" where all is right; outside: why it is
    not ours at all; kernels: how many distinct ones ran."""

    name: str
    family: str
    problem: str = ""
    outside: str = ""
    kernels: int = 0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class _Build:
    """A case on its way; each variant is a choice of a kernel for every task."""

    case: Case
    graph: ModelGraph | None = None
    steps: Partition | None = None
    variants: list[Choice] = field(default_factory=list)
    problem: str = ""
    outside: str = ""


def check(
    folders: Sequence[str], threads: int, more: int = 0, seed: int = 0
) -> list[dict[str, Any]]:
    """A Verdict as JSON for each case.

    Every task runs by the middle row of its first sketch, and by `more` rows of any sketch, drawn
    by `seed`.
    """
    with tempfile.TemporaryDirectory(prefix="autosched-") as folder:
        kernels = Kernels(host_target(), Path(folder), threads)
        builds = [_prepare(read_case(Path(f)), kernels, more, seed) for f in folders]
        kernels.compile()
        return [_verdict(b, kernels).to_json() for b in builds]


def _prepare(case: Case, kernels: Kernels, more: int, seed: int) -> _Build:
    try:
        graph = import_case(case)
    except ModelError as error:
        return _Build(case, outside=str(error))
    if graph.islands:
        return _Build(case, outside="; ".join(o.reason for o in graph.coverage.outside))
    build = _Build(case, graph, partition(graph, kernels.target))
    assert build.steps is not None
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    for n in range(1 + more):
        chosen = kernels.choose(build.steps, rng if n else None)
        if isinstance(chosen, str):
            build.problem = chosen
            break
        build.variants.append(chosen)
    return build


def _verdict(build: _Build, kernels: Kernels) -> Verdict:
    used = {symbol for chosen in build.variants for symbol in chosen.values()}
    problem = build.problem
    for chosen in build.variants:
        problem = problem or _wrong(build, chosen, kernels)
    return Verdict(build.case.name, build.case.family, problem, build.outside, len(used))


def _wrong(build: _Build, chosen: Choice, kernels: Kernels) -> str:
    """What is wrong with a case under one choice of kernels, or ""."""
    assert build.graph is not None and build.steps is not None
    values = {name: storage(w.load(), w.dtype) for name, w in build.graph.weights.items()}
    for node in build.graph.inputs:
        name, _, dtype, _ = node.attr
        values[name] = storage(build.case.feed[name], dtype)
    try:
        values = run_steps(build.steps, chosen, kernels, values)
    except JobFailure as failure:
        return failure.reason
    return "; ".join(_off(build, values))


def _off(build: _Build, values: Arrays) -> Iterator[str]:
    """What each wrong output has that it should not."""
    assert build.graph is not None
    for at, (value, want) in enumerate(
        zip(build.graph.outputs, build.case.expected, strict=True)
    ):
        dtype = value.node.dtype
        if want.dtype.name != dtype or want.shape != value.shape:
            yield f"{value.name}: {dtype}{value.shape}, wants {want.dtype}{want.shape}"
            continue
        got = values[value.name].reshape(value.shape)
        if dtype in FLOATS:
            reason = too_far(build.case, at, *(_widened(v, dtype) for v in (got, want)))
        else:
            reason = compare(got.view(want.dtype), want).reason
        if reason:
            yield f"{value.name}: {reason}"


def _widened(array: np.ndarray, dtype: str) -> np.ndarray:
    """Floats, stored any way, in float64."""
    stored = array.dtype == STORAGE[dtype] and dtype == "bfloat16"
    return (from_bfloat16(array) if stored else array).astype(np.float64)


def too_far(case: Case, at: int, got: np.ndarray, want: np.ndarray) -> str | None:
    """How output `at` is too far off, if it is: by ONNX's own test of each element, and by ours,
    which is tighter on the whole.

    The exact answer decides where the expected one is coarse itself: rounded at each step of half
    precision (an element may then lie on the other side of the truth), or typed with four digits.
    """
    dtype = case.expected[at].dtype.name
    rtol = max(case.rtol, 2.0**-6) if dtype == "bfloat16" else case.rtol  # as ONNX grants it
    apart = ~np.isclose(got, want, rtol=rtol, atol=case.atol, equal_nan=True)
    if apart.any() and dtype in HALVES:
        apart &= ~np.isclose(got, exact(case)[at], rtol=rtol, atol=case.atol, equal_nan=True)
    if apart.any():
        return f"{apart.sum()} of {want.size} elements are not as close as the case asks"
    if compare(got, want, dtype).ok:
        return None
    return compare(got, exact(case)[at], dtype).reason
