"""Tasks of a model in, what its peer (onnxruntime, or torch) takes for the same part of it out.

The parts are found by their values: the model is run once with every value kept, our steps are
evaluated in float64 on the same inputs, and equal contents tell which values of the model a step
reads and makes, whatever they are called, however they lie in memory and by whatever constant they
are scaled (rules move factors). Each part is then a model of its own, timed at the peer's defaults
in a process that does nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from autosched.codegen.jobs import Job, Ok
from autosched.codegen.measure import Timing, time_callable
from autosched.codegen.pairing import Pairing, Side, paired
from autosched.codegen.workers import Ticket, WorkerPool
from autosched.ir.graph import ModelGraph
from autosched.ir.interp import InterpError, evaluate
from autosched.ir.partition import KernelStep, Partition, partition
from autosched.ir.target import parse_target
from autosched.tools.arrays import draw_model_inputs
from autosched.tools.models import ONNX, TORCH, Model, open_model
from autosched.tools.parts import Part, Parts
from autosched.tools.plan import constants_of, numbers
from autosched.tools.sides import kept_apart, torch_peer
from autosched.tools.subgraph import OnnxModel

SAME = 2e-3  # relative difference of two runs of one model, fp32 against float64
EXTRACT_S, EVALUATE_S = 120.0, 15.0  # limits: of finding all parts, of float64 evaluation in it
TIME_S = 0.1  # of timed running of a part
VISIT_S = 0.03  # of a paired measurement
_EXTERNAL = "session.model_external_initializers_file_folder_path"


def peer_name(framework: str = ONNX) -> str:
    """Of the peer, as records have it."""
    return f"{framework}-{version(framework)}"


# ---- the tuner's side ----------------------------------------------------------------------------


class Peer:
    """Who runs a model as it is, in a process of its own, and the parts that tasks stand for.

    folder: scratch space. Use as a context manager. Where the peer fails, there is no time of it:
    a tuning goes on without.
    """

    def __init__(self, folder: Path, framework: str = ONNX) -> None:
        self.name = peer_name(framework)
        self._folder = folder
        self._pool = WorkerPool(1, EXTRACT_S, recycle_after=1 << 20,
                                preload=("autosched.tools.peers",))  # fmt: skip
        self._ticket: Ticket | None = None
        self._found: dict[str, Any] | None = None

    def close(self) -> None:
        """Ends the process."""
        self._pool.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def extract(self, model: Path, shapes: Mapping[str, Sequence[int]], target: str,
                seed: int) -> None:
        """Begins to look for the parts; whoever asks for one waits."""
        if self._ticket is not None:
            return
        self._ticket = self._pool.submit(Job(f"{__name__}:extract", {
            "model": str(model.absolute()), "shapes": {n: list(s) for n, s in shapes.items()},
            "target": target, "seed": seed, "folder": str(self._folder), "limit_s": EVALUATE_S,
        }, timeout_s=EXTRACT_S))  # fmt: skip

    @property
    def found(self) -> dict[str, Any]:
        """{"parts": ..., "missing": ...} of `extract`; without parts where that failed."""
        if self._found is None:
            assert self._ticket is not None, "extract comes first"
            outcome = self._ticket.result()
            self._found = outcome.value if isinstance(outcome, Ok) else {
                "parts": {}, "missing": {}, "failed": outcome.reason}  # fmt: skip
        return self._found

    def why_not(self, task: str) -> str | None:
        """Why there is no part for a task; None where there is one."""
        if task in self.found["parts"]:
            return None
        return str(self.found["missing"].get(task) or self.found.get("failed") or "no such task")

    def time(self, task: str) -> Timing | None:
        """The peer's time for a task; None where it has no such part, or fails."""
        part = self.found["parts"].get(task)
        if part is None:
            return None
        kwargs = {**part, "target_time_s": TIME_S}
        outcome = self._pool.run(Job(f"{__name__}:time_part", kwargs))
        return Timing.from_json(outcome.value) if isinstance(outcome, Ok) else None

    def against(self, ours: Side, task: str, rounds: int) -> Pairing | None:
        """Ours (a) and the peer (b) for a task, in turn; None where that can't be."""
        part = self.found["parts"].get(task)
        if part is None:
            return None
        theirs = Side(self._pool, f"{__name__}:part_side", dict(part))
        pairing = paired(ours, theirs, rounds=rounds, visit_s=VISIT_S)
        return pairing if isinstance(pairing, Pairing) else None


# ---- jobs of the peer's worker -----------------------------------------------------------------


def extract(
    model: str, shapes: Mapping[str, Sequence[int]], target: str, seed: int, folder: str,
    limit_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Writes the part of the model that each task stands for.

    limit_s: of evaluating steps in float64; tasks beyond it have no part.
    Returns {"parts": {task key: {"model": file, "inputs": file}}, "missing": {key: why}}.
    """
    opened = open_model(model, shapes)
    graph = opened.graph
    cut = partition(graph, parse_target(target))
    inputs = draw_model_inputs(graph, seed)
    whole, arrays = _OPENED[opened.peer](opened, Path(model), inputs)
    ours, why = _our_values(graph, cut, inputs, arrays, limit_s)
    table = _Contents(whole, arrays)
    parts: dict[str, dict[str, str]] = {}
    missing: dict[str, str] = {}
    for step in cut.steps:
        if not isinstance(step, KernelStep) or step.constant or step.task in parts:
            continue
        part = _part(step, ours, whole, arrays, table)
        if part is None:
            missing[step.task] = why or "its values are not those of a part of the model"
            continue
        missing.pop(step.task, None)
        parts[step.task] = _written(part, Path(folder) / f"peer-{step.task[:32]}")
    return {"parts": parts, "missing": missing}


def time_part(model: str, inputs: str, target_time_s: float) -> dict[str, Any]:
    """Timing of a part, as JSON."""
    run = part_side(model, inputs)
    return time_callable(run, min_runs=7, target_time_s=target_time_s, warmup_s=0.02).to_json()


def part_side(model: str, inputs: str) -> Callable[[], object]:
    """One run of a part at its peer's defaults, its inputs and outputs bound beforehand."""
    if Path(model).suffix != ".onnx":
        return torch_peer().part_side(Path(model), inputs)
    session = _session(Path(model).read_bytes(), Path(model).parent)
    binding = session.io_binding()
    with np.load(inputs, allow_pickle=False) as arrays:
        for name in arrays.files:
            binding.bind_cpu_input(name, arrays[name])
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    session.run_with_iobinding(binding)
    # The outputs of the first run are the memory of all further ones.
    for output, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(output.name, value)
    return kept_apart(lambda: session.run_with_iobinding(binding))


# ---- inside --------------------------------------------------------------------------------------


def _session(model: bytes, folder: Path, optimised: bool = True) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(_EXTERNAL, str(folder.absolute()))
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _every_value(
    model: OnnxModel, path: Path, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """All values of one run by name, inputs included."""
    session = _session(model.with_every_output(), path.parent, optimised=False)
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(names, dict(inputs)), strict=True))
    return {**inputs, **{n: a for n, a in found.items() if isinstance(a, np.ndarray)}}


def _onnx_parts(
    model: Model, path: Path, inputs: Mapping[str, np.ndarray]
) -> tuple[Parts, dict[str, np.ndarray]]:
    """A model to cut parts out of, and all values of one run."""
    found = OnnxModel(path)
    return found, _every_value(found, path, inputs)


def _torch_parts(
    model: Model, path: Path, inputs: Mapping[str, np.ndarray]
) -> tuple[Parts, dict[str, np.ndarray]]:
    found = torch_peer().TorchGraph(model.program, path)
    return found, found.every_value(inputs)


_OPENED = {ONNX: _onnx_parts, TORCH: _torch_parts}


def _our_values(
    graph: ModelGraph, cut: Partition, inputs: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray], limit_s: float,
) -> tuple[dict[str, np.ndarray], str | None]:  # fmt: skip
    """The values between steps in float64, as far as the time goes; why it stopped."""
    begun = time.monotonic()
    constants = constants_of(graph, cut)
    values = dict(inputs)
    for step in cut.steps:
        if time.monotonic() - begun > limit_s:
            return values, f"evaluating the model in float64 takes more than {limit_s:g} s"
        if not isinstance(step, KernelStep):
            values |= {name: arrays[name] for name in step.outputs}
            continue
        program = cut.task(step.task).program
        given = {}
        for node, name in zip(program.inputs, step.inputs, strict=True):
            raw = values[name] if name in values else numbers(constants[name].load(), node.dtype)
            given[str(node.attr[0])] = raw.reshape([e for _, e in node.attr[1]])
        try:
            found = evaluate(program, given)
        except InterpError as error:
            return values, f"a step can't be evaluated: {error}"
        values |= {n: found[o.name] for n, o in zip(step.outputs, program.outputs, strict=True)}
    return values, None


@dataclass(frozen=True)
class _Print:
    """What two tensors share that are equal but for their layout and a constant factor."""

    odd: int  # elements that are infinite or NaN
    mean: float  # this and the others: of the finite elements, in units of their rms
    magnitude: float
    peak: float

    @staticmethod
    def of(array: np.ndarray) -> _Print:
        flat = _scaled(array)
        if not flat.size:
            return _Print(array.size, 0.0, 0.0, 0.0)
        size = np.abs(flat)
        odd = array.size - flat.size
        return _Print(odd, float(flat.mean()), float(size.mean()), float(size.max()))

    def near(self, other: _Print) -> bool:
        return (
            self.odd == other.odd
            and abs(self.mean - other.mean) <= SAME
            and abs(self.magnitude - other.magnitude) <= SAME
            and abs(self.peak - other.peak) <= SAME * max(self.peak, other.peak)
        )


def _scaled(array: np.ndarray) -> np.ndarray:
    """The finite elements in float64, divided by their root mean square."""
    flat = array.astype(np.float64).reshape(-1)
    flat = flat[np.isfinite(flat)]
    rms = float(np.sqrt(np.mean(np.square(flat)))) if flat.size else 0.0
    return flat / rms if rms else flat


class _Contents:
    """The values of a run of the model, found by content."""

    def __init__(self, model: Parts, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self._by_size: dict[int, list[tuple[str, _Print]]] = {}
        for name in sorted(arrays, key=lambda n: (model.order(n), n)):
            array = arrays[name]
            if array.size and array.dtype.kind in "fiub":
                self._by_size.setdefault(array.size, []).append((name, _Print.of(array)))

    def names(self, array: np.ndarray) -> list[str]:
        """The model's values that are `array`, as _Print says; the first made first."""
        mine = _Print.of(array)
        close = [n for n, theirs in self._by_size.get(array.size, ()) if mine.near(theirs)]
        return [n for n in close if _same_elements(array, self._arrays[n])]


def _same_elements(a: np.ndarray, b: np.ndarray) -> bool:
    first, second = (np.sort(_scaled(x)) for x in (a, b))
    return bool(np.linalg.norm(first - second) <= SAME * max(first.size, 1) ** 0.5)


def _part(
    step: KernelStep, ours: Mapping[str, np.ndarray], model: Parts,
    arrays: Mapping[str, np.ndarray], table: _Contents,
) -> Part | None:  # fmt: skip
    """The part of the model that makes a step's outputs from its inputs."""
    if not all(name in ours for name in step.outputs):
        return None
    given: set[str] = set()
    for name in step.inputs:
        if name in arrays:
            given.add(name)
        elif name in ours:
            given |= model.first(table.names(ours[name]))
    wanted: list[str] = []
    for name in step.outputs:
        found = table.names(ours[name])
        if not found:
            return None
        wanted.append(next(n for n in found if n in model.first(found)))
    if set(wanted) & given:
        return None
    return model.part(given, wanted, arrays)


def _written(part: Part, folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"part{part.suffix}"
    file.write_bytes(part.model)
    np.savez(folder / "inputs.npz", allow_pickle=False, **dict(part.feeds))
    (folder / "part.json").write_text(json.dumps({"nodes": part.nodes}))
    return {"model": str(file), "inputs": str(folder / "inputs.npz")}
