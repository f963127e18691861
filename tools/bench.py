"""A model and its tuned kernels in, paired times against a peer out: end to end and per task.

Each side lives in a process of its own at its default settings, and the two take turns, A B B A,
while the other idles (codegen.pairing). A task is timed as the package runs it in the model, on
the values it meets there; the peer's side of it is the same part of the model on its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import Failed, Job, Ok
from autosched.codegen.pairing import Pairing, Side, paired
from autosched.codegen.runtime.errors import KernelFailedError
from autosched.codegen.workers import WorkerPool
from autosched.costmodel.roofline import roofline_time
from autosched.ir.graph import ModelError
from autosched.ir.target import Target, parse_target
from autosched.ir.text import parse
from autosched.tools.arrays import draw_model_inputs, read_npz, write_npz
from autosched.tools.models import ONNX, TORCH
from autosched.tools.packages import Package, open_both
from autosched.tools.sides import PeerError

# By the one who runs the model as it is: the peers of a race, each with its side; the first one is
# the default.
PEERS: Mapping[str, Mapping[str, str]] = {
    ONNX: {"onnxruntime": "onnxruntime"},
    TORCH: {"torch": "torch_eager", "torch.compile": "torch_compiled"},
}
VISIT_S, TASK_VISIT_S = 0.1, 0.03  # of timed running in each visit
TASK_ROUNDS = 6  # at most: there are many tasks
EXTRACT_S, SIDE_S = 180.0, 120.0  # until a job is given up
STRAY = 0.2  # CPU seconds per second of a side that was to idle, above which times are doubtful
Say = Callable[[str], None]


@dataclass(frozen=True)
class EndToEnd:
    """Medians in milliseconds; speedup: peer over ours, median over the rounds, with the 10th
    and 90th percentile."""

    ours_ms: float
    peer_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    rounds: int


@dataclass(frozen=True)
class TaskTime:
    """One task. share: of the peer's time for the whole model, as far as it is known; peer_us
    is None where the peer has no such part, and `why` says so."""

    key: str
    name: str
    count: int
    ours_us: float
    peer_us: float | None
    roofline_us: float
    speedup: float | None
    share: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """advice: what to know before the numbers are believed."""

    peer: str
    device: str
    threads: int
    digest: str
    end_to_end: EndToEnd
    tasks: tuple[TaskTime, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(model: Any, kernels: Path | str, *, against: str | None = None,
          inputs: Path | str | None = None, rounds: int = 12, seed: int = 0,
          progress: Say = lambda text: None, example_inputs: Any = None,
          example_kwargs: Mapping[str, Any] | None = None) -> Benchmark:
    """Times the package `kernels` against a peer.

    Args: model, example_inputs, example_kwargs: as `tune` takes them; against: "onnxruntime" for
        ONNX files, "torch" or "torch.compile" for torch programs; inputs: an .npz file, else
        random ones by `seed`; rounds: of A B B A, end to end.
    Raises: ModelError, PackageError.
    """
    everybody = [name for peers in PEERS.values() for name in peers]
    if against is not None and against not in everybody:
        raise ModelError(f"--against {against!r}: the peers are {', '.join(everybody)}")
    opened, package = open_both(model, kernels, example_inputs, example_kwargs)
    peers = PEERS[opened.peer]
    against = next(iter(peers)) if against is None else against
    if against not in peers:
        raise ModelError(f"--against {against!r}: the peers of {opened.name} are "
                         f"{', '.join(peers)}")  # fmt: skip
    shapes, target = package.shapes, parse_target(package.target)
    if target.kind != "cpu":
        raise ModelError(f"{kernels} holds kernels for {target.name}, and {against} runs on the "
                         "CPU: there is no fair race. `autosched tune` on such a GPU measures "
                         "them; the times are in manifest.json")  # fmt: skip
    graph = opened.graph
    arrays = draw_model_inputs(graph, seed) if inputs is None else read_npz(Path(inputs))
    package.model.run(arrays)  # a mistake in the inputs is said before anything is timed
    with _pool() as a, _pool() as b, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.npz"
        write_npz(file, arrays)
        source = opened.file_in(Path(folder)).absolute()
        timer = _Timer(a, b, str(Path(kernels).absolute()), str(source), str(file), peers[against])
        progress("the whole model")
        whole = timer.whole(rounds)
        progress("parts of the model for the peer")
        parts = timer.parts(shapes, target, seed, folder)
        tasks = tuple(_tasks(package, target, timer, parts, min(rounds, TASK_ROUNDS), progress))
    return Benchmark(
        against, target.device, package.model.threads, package.model.digest, _end_to_end(whole),
        _shares(tasks), tuple(_advice(timer.stray, target, package)),
    )  # fmt: skip


def _failure(found: Failed) -> Exception:
    """Why a side could not be timed; that the peer can't run the model needs no more words."""
    kind, _, message = found.reason.partition(": ")
    if kind == PeerError.__name__:
        return PeerError(message)
    return KernelFailedError(f"timing failed: {found.reason}\n{found.stderr_tail}".strip())


def _pool() -> WorkerPool:
    return WorkerPool(1, SIDE_S, recycle_after=1 << 20)


@dataclass
class _Timer:
    """Two processes that take turns. side: the function that makes the peer's; stray: the most
    CPU an idle side was seen to use."""

    ours: WorkerPool
    peer: WorkerPool
    kernels: str
    model: str
    inputs: str
    side: str
    stray: float = 0.0

    def whole(self, rounds: int) -> Pairing:
        mine = {"kernels": self.kernels, "inputs": self.inputs}
        theirs = {"model": self.model, "inputs": self.inputs}
        return self._paired(
            Side(self.ours, "autosched.tools.sides:tuned", mine),
            Side(self.peer, f"autosched.tools.sides:{self.side}", theirs), rounds, VISIT_S,
        )  # fmt: skip

    def parts(self, shapes: Mapping[str, Sequence[int]], target: Target, seed: int,
              folder: str) -> dict[str, Any]:
        """The peer's part for each task, as tools.peers.extract has it."""
        facts = {"model": self.model, "shapes": {n: list(s) for n, s in shapes.items()},
                 "target": target.name, "seed": seed, "folder": folder,
                 "limit_s": EXTRACT_S / 2}  # fmt: skip
        outcome = self.peer.run(Job("autosched.tools.peers:extract", facts, timeout_s=EXTRACT_S))
        if not isinstance(outcome, Ok):
            return {"parts": {}, "missing": {}, "failed": outcome.reason}
        found: dict[str, Any] = outcome.value
        return found

    def task(self, step: int, part: Mapping[str, str], rounds: int) -> Pairing:
        mine = {"kernels": self.kernels, "inputs": self.inputs, "step": step}
        return self._paired(
            Side(self.ours, "autosched.tools.sides:tuned_step", mine),
            Side(self.peer, "autosched.tools.peers:part_side", dict(part)), rounds, TASK_VISIT_S,
        )  # fmt: skip

    def profile(self) -> list[float]:
        """Median µs of each step of our plan, in the run of the whole model."""
        facts = {"kernels": self.kernels, "inputs": self.inputs}
        outcome = self.ours.run(Job("autosched.tools.sides:profile", facts))
        if isinstance(outcome, Failed):
            raise _failure(outcome)
        times: list[float] = outcome.value
        return times

    def _paired(self, ours: Side, peer: Side, rounds: int, visit_s: float) -> Pairing:
        found = paired(ours, peer, rounds=rounds, visit_s=visit_s)
        if isinstance(found, Failed):
            raise _failure(found)
        self.stray = max(self.stray, found.stray_cpu)
        return found


def _end_to_end(whole: Pairing) -> EndToEnd:
    return EndToEnd(whole.a.median_us / 1e3, whole.b.median_us / 1e3, whole.speedup,
                    whole.speedup_low, whole.speedup_high, whole.rounds)  # fmt: skip


def _tasks(package: Package, target: Target, timer: _Timer, found: Mapping[str, Any], rounds: int,
           progress: Say) -> Iterator[TaskTime]:
    """Every kernel of the plan: paired where the peer has such a part, else on its own."""
    steps: dict[str, list[int]] = {}
    for number, (step, _) in enumerate(package.model.steps):
        if step.kernel is not None:
            steps.setdefault(step.kernel, []).append(number)
    alone = timer.profile()
    for key, numbers in steps.items():
        data = package.model.kernels[key].data
        program = parse(data["definition"])
        part = found["parts"].get(program.key)
        progress(f"{data['public_name']} ({len(numbers)} x)")
        facts = (key, data["public_name"], len(numbers))
        best = roofline_time(program, target)
        if part is None:
            why = found.get("failed") or found["missing"].get(program.key, "no part of the graph")
            yield TaskTime(*facts, alone[numbers[0]], None, best, None, None, why)
            continue
        pair = timer.task(numbers[0], part, rounds)
        yield TaskTime(*facts, pair.a.median_us, pair.b.median_us, best, pair.speedup)


def _shares(tasks: Sequence[TaskTime]) -> tuple[TaskTime, ...]:
    """The tasks with their share of the peer's time; ours stands in where the peer has none."""
    spent = [t.count * (t.peer_us or t.ours_us) for t in tasks]
    total = sum(spent) or 1.0
    return tuple(replace(t, share=us / total) for t, us in zip(tasks, spent))


def _advice(stray: float, target: Target, package: Package) -> Iterator[str]:
    if stray > STRAY:
        yield (f"the sides disturbed each other, or the machine is busy (an idle side used "
               f"{stray:.0%} of a core): end other programs, or take more --rounds")  # fmt: skip
    tuned = package.manifest.data["threads"]
    if tuned is not None and tuned != package.model.threads:
        yield (f"the kernels were tuned with {tuned} threads and run with "
               f"{package.model.threads}: tune again for this number")  # fmt: skip
    if package.model.islands:
        yield (f"{len(package.model.islands)} parts run in onnxruntime: autosched show lists "
               "the operators")  # fmt: skip
