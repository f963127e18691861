"""A whole model, tuned or as onnxruntime runs it, as a callable: what verify and bench compare.

Each side of a bench is made in a worker of its own by the functions here, at default settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from autosched.codegen.runtime.model import load
from autosched.codegen.runtime.seats import Seats, first_core
from autosched.ir.graph import ModelError
from autosched.tools.arrays import read_npz
from autosched.tools.models import Model


def tuned(kernels: str, inputs: str) -> Callable[[], object]:
    """One run of the tuned model in the folder `kernels` on the arrays of an .npz file."""
    model, arrays = load(kernels), read_npz(Path(inputs))
    return lambda: model.run(arrays)


def tuned_step(kernels: str, inputs: str, step: int) -> Callable[[], object]:
    """One step of the tuned model, on what the steps before it make of the arrays."""
    return load(kernels).bound_step(read_npz(Path(inputs)), step)


class PeerError(ModelError):
    """onnxruntime can't run a model, for a reason that it says."""


def profile(kernels: str, inputs: str) -> list[float]:
    """Median microseconds of each step of the tuned model."""
    return [step.median_us for step in load(kernels).profile(read_npz(Path(inputs)))]


def onnxruntime(model: str, inputs: str) -> Callable[[], object]:
    """One run of an ONNX file by onnxruntime on the arrays of an .npz file."""
    session, arrays = onnxruntime_session(Path(model)), read_npz(Path(inputs))
    return kept_apart(lambda: session.run(None, arrays))


def torch_eager(model: str, inputs: str) -> Callable[[], object]:
    """One run of a torch program's file on the arrays of an .npz file."""
    run: Callable[[], object] = torch_peer().eager(model, read_npz(Path(inputs)))
    return run


def torch_compiled(model: str, inputs: str) -> Callable[[], object]:
    """The same by torch.compile."""
    run: Callable[[], object] = torch_peer().compiled(model, read_npz(Path(inputs)))
    run()  # compiling belongs to nobody's time
    return run


def torch_peer() -> Any:
    """tools.torch_parts, which loads torch: nobody else needs it."""
    return import_module("autosched.tools.torch_parts")


def kept_apart(run: Callable[[], object]) -> Callable[[], object]:
    """`run`, called from the core that onnxruntime leaves free.

    It binds a worker to each core but the first, and nothing keeps its caller off theirs: where
    both end up on one core, an operator takes twice its time. Our own kernels take care of that
    (runtime.seats), so the peer is given the same.
    """
    seats = Seats(home=first_core())

    def call() -> object:
        seats.go_home()
        return run()

    return call


def run_onnxruntime(model: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What onnxruntime answers, by output name.

    Raises: PeerError where onnxruntime can't run the model, or not on these inputs.
    """
    session = onnxruntime_session(model)
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(inputs))))
    except Exception as error:  # its errors share no base class
        raise PeerError(f"onnxruntime can't run {model}: {error}") from error


def run_peer(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a model's own framework answers, by output name. Raises: PeerError."""
    if model.program is None:
        assert model.file is not None
        return run_onnxruntime(model.file, inputs)
    found: dict[str, np.ndarray] = torch_peer().run_eagerly(model.program, inputs)
    return found


def onnxruntime_session(model: Path) -> Any:
    """A session at onnxruntime's defaults on the CPU.

    Raises: PeerError where onnxruntime can't run the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base class, and every one is of the model
        raise PeerError(f"onnxruntime can't load {model}: {error}") from error
