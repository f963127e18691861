"""A model and its tuned kernels in, how far each is from the truth out.

The whole model is compared with onnxruntime, where that can run it, or with eager torch, and, where
no part of it is left to onnxruntime, with float64; every kernel, on the inputs that it meets in the
model, with its definition in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autosched.codegen.check import REL_L2_BOUND, bound_dtype, compare
from autosched.codegen.package_weights import raw_name
from autosched.codegen.runtime.model import TunedModel
from autosched.codegen.runtime.spec import KernelArg
from autosched.ir.graph import ModelGraph
from autosched.ir.interp import evaluate
from autosched.ir.node import Output, Program, walk
from autosched.ir.partition import partition
from autosched.ir.target import parse_target
from autosched.ir.text import parse
from autosched.tools.arrays import draw_model_inputs, read_npz
from autosched.tools.models import Model
from autosched.tools.packages import open_both
from autosched.tools.plan import RawConstant, constants_of, numbers
from autosched.tools.sides import PeerError, run_peer

# Rounding errors of a deep model grow with its depth, for everybody: a model that is further off
# than a kernel may be is judged by what onnxruntime reaches on the same inputs.
PEER_FACTOR = 4.0


@dataclass(frozen=True)
class OutputCheck:
    """An output of the model against a reference. rel_l2: |a - b| / |b| in L2 norms; max_rel:
    max |a - b| / max |b|; peer_rel_l2: the peer's own distance from a float64 reference."""

    name: str
    reference: str  # "onnxruntime", "torch" or "float64"
    rel_l2: float
    max_rel: float
    bound: float
    peer_rel_l2: float | None = None

    @property
    def ok(self) -> bool:
        return self.rel_l2 <= self.bound


@dataclass(frozen=True)
class KernelCheck:
    """A kernel against float64: the worst of its `runs` in the model."""

    name: str
    key: str
    runs: int
    rel_l2: float
    bound: float
    reason: str | None  # None where every run is right

    @property
    def ok(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class Verification:
    """digest: of the package that was verified."""

    outputs: tuple[OutputCheck, ...]
    kernels: tuple[KernelCheck, ...]
    digest: str

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.outputs) and all(c.ok for c in self.kernels)

    def to_json(self) -> dict[str, Any]:
        rows = {
            "outputs": [asdict(c) | {"ok": c.ok} for c in self.outputs],
            "kernels": [asdict(c) | {"ok": c.ok} for c in self.kernels],
        }
        return {"ok": self.ok, "digest": self.digest, **rows}


def verify(model: Any, kernels: Path | str, *, inputs: Path | str | None = None, seed: int = 0,
           example_inputs: Any = None, example_kwargs: Mapping[str, Any] | None = None,
           ) -> Verification:
    """Runs the model both ways and compares.

    Args: model, example_inputs, example_kwargs: as `tune` takes them; kernels: folder of the
        package; inputs: an .npz file, else random ones by `seed`.
    Raises: ModelError, PackageError.
    """
    opened, package = open_both(model, kernels, example_inputs, example_kwargs)
    tuned, graph = package.model, opened.graph
    arrays = draw_model_inputs(graph, seed) if inputs is None else read_npz(Path(inputs))
    coarse = _coarser(*(k.data.get("bound") for k in tuned.kernels.values()))
    outputs = tuple(_outputs(tuned, opened, arrays, coarse))
    constants = constants_of(graph, partition(graph, parse_target(package.target)))
    return Verification(outputs, _kernels(tuned, arrays, constants), tuned.digest)


# ---- the whole model ---------------------------------------------------------------------------


def _outputs(tuned: TunedModel, model: Model, arrays: Mapping[str, np.ndarray],
             coarse: str | None = None) -> Iterator[OutputCheck]:
    """coarse: a dtype as coarse as the arithmetic of some kernel."""
    ours = {name: _wide(a) for name, a in tuned.run(arrays).items()}
    graph = model.graph
    exact = _float64(graph, arrays)
    peer = _peer(model, arrays, needed=exact is None)
    dtypes = {v.name: _bound(bound_dtype(v.node), coarse) for v in graph.outputs}
    bounds = {name: REL_L2_BOUND[d] if d is not None else 0.0 for name, d in dtypes.items()}
    for name, mine in ours.items():
        allowed, theirs = bounds[name], None
        if exact is not None and peer is not None:
            theirs = _distance(peer[name], exact[name])[0]
            allowed = max(allowed, PEER_FACTOR * theirs)
        if exact is not None:
            yield OutputCheck(name, "float64", *_distance(mine, exact[name]), allowed, theirs)
        if peer is not None:  # both may err, each to its own side
            yield OutputCheck(name, model.peer, *_distance(mine, peer[name]), 2 * allowed)


def _peer(model: Model, arrays: Mapping[str, np.ndarray],
          needed: bool) -> dict[str, np.ndarray] | None:
    """What onnxruntime or torch answers; None where the former can't run the model (bfloat16, say)
    and need not."""
    try:
        return {name: _wide(a) for name, a in run_peer(model, arrays).items()}
    except PeerError:
        if needed:
            raise
        return None


def _wide(array: np.ndarray) -> np.ndarray:
    """Any number as float64; integers and flags too, which are exact in it far enough."""
    return np.asarray(array).astype(np.float64)


def _distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(relative L2 distance, max |a - b| / max |b|); infinite where the finite parts differ in
    place or the shapes do."""
    if a.shape != b.shape:
        return math.inf, math.inf
    finite = np.isfinite(a) & np.isfinite(b)
    same = finite | (a == b) | (np.isnan(a) & np.isnan(b))
    if not same.all():
        return math.inf, math.inf
    off, ref = (a - b)[finite], b[finite]
    norm, peak = float(np.linalg.norm(ref)), float(np.abs(ref).max(initial=0.0))
    worst = float(np.abs(off).max(initial=0.0))
    return float(np.linalg.norm(off)) / (norm or 1.0), worst / (peak or 1.0)


def _float64(graph: ModelGraph, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The outputs as the algebra defines them; None where islands take part."""
    if graph.islands:
        return None
    body = tuple(v.node for v in graph.outputs)
    read = tuple(n for n in walk(*body) if n.op == "input")
    outputs = tuple(Output(v.name, v.dims, v.node.dtype, v.extents) for v in graph.outputs)
    given = {}
    for node in read:
        name, dims = node.attr[0], node.attr[1]
        raw = graph.weights[name].load() if node.attr[3] == "weight" else arrays[name]
        given[name] = numbers(raw, node.dtype).reshape([extent for _, extent in dims])
    found = evaluate(Program("algebra", read, outputs, body), given)
    return {v.name: _wide(found[v.name]).reshape(v.shape) for v in graph.outputs}


# ---- kernel by kernel --------------------------------------------------------------------------


def _kernels(tuned: TunedModel, arrays: Mapping[str, np.ndarray],
             constants: Mapping[str, RawConstant]) -> tuple[KernelCheck, ...]:
    programs = {key: parse(kernel.data["definition"]) for key, kernel in tuned.kernels.items()}
    found: dict[str, list[tuple[float, float, str | None]]] = {key: [] for key in programs}
    for (plan, _), step in zip(tuned.steps, tuned.trace(arrays), strict=True):
        if step.kernel is not None:
            kernel = tuned.kernels[step.kernel]
            operands = _operands(kernel.args, plan.args, step.arrays, constants)
            coarse = kernel.data.get("bound")
            found[step.kernel].append(_step(programs[step.kernel], operands, coarse))
    return tuple(
        KernelCheck(
            tuned.kernels[key].data["public_name"], key, len(runs),
            max(r[0] for r in runs), max(r[1] for r in runs),
            next((reason for _, _, reason in runs if reason), None),
        )
        for key, runs in found.items() if runs
    )  # fmt: skip


@dataclass(frozen=True)
class _Operand:
    """An argument of a kernel in one run, as the definition names and shapes it."""

    name: str
    dtype: str
    made: bool  # by the kernel
    array: np.ndarray


def _operands(args: tuple[KernelArg, ...], names: Sequence[str], arrays: Sequence[np.ndarray],
              constants: Mapping[str, RawConstant]) -> Iterator[_Operand]:
    """A packed weight is taken from the model itself, so that its packing is checked too."""
    shipped = (arg for arg in args if arg.role != "workspace")
    for arg, name, array in zip(shipped, names, arrays, strict=True):
        known, dtype, shape = arg.name, arg.dtype, arg.shape
        if arg.pack is not None:
            known, dtype, shape = arg.pack.source, arg.pack.source_dtype, arg.pack.source_shape
            array = constants[raw_name(name)].load()
        array = numbers(array, dtype).reshape(shape)
        yield _Operand(known, dtype, arg.role == "output", array)


def _step(
    program: Program, operands: Iterable[_Operand], coarse: str | None = None
) -> tuple[float, float, str | None]:
    """(worst relative error, its bound, what is wrong or None) of one run of a kernel.

    coarse: a dtype as coarse as the kernel's arithmetic, where that was asked for.
    """
    every = tuple(operands)
    want = evaluate(program, {o.name: o.array for o in every if not o.made})
    dtypes = {o.name: bound_dtype(b) for o, b in zip(program.outputs, program.body, strict=True)}
    worst, bound, reason = 0.0, 0.0, None
    for out in (o for o in every if o.made):
        a, b = out.array, want[out.name]
        if a.dtype == np.bool_:
            a, b = a.astype(np.uint8), b.astype(np.uint8)
        result = compare(a, b, _bound(dtypes[out.name], coarse))
        if result.rel_l2 >= worst:
            worst, bound = result.rel_l2, result.bound
        reason = reason or (None if result.ok else f"{out.name}: {result.reason}")
    return worst, bound, reason


def _bound(dtype: str | None, coarse: str | None) -> str | None:
    """Whose error bound holds for an output; None for one that is exact whatever computes it."""
    return None if dtype is None else _coarser(dtype, coarse)


def _coarser(*dtypes: str | None) -> str | None:
    """The dtype with the widest bound; None where there is none."""
    known = [d for d in dtypes if d is not None]
    return max(known, key=lambda d: REL_L2_BOUND[d], default=None)
