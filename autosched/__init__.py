"""autosched: tune attention and GEMM graphs into fast kernels.

    result = autosched.tune("model.onnx", "tuned/", target="auto", budget_s=120)
    model = autosched.load("tuned/")
    outputs = model.run({"input_ids": ids})

Importing this loads nothing; each name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autosched.codegen.runtime.model import Model, load
    from autosched.examples import example_inputs, make_example
    from autosched.tools.tune import tune
    from autosched.tools.tuning import TuningResult

__all__ = ["Model", "TuningResult", "example_inputs", "load", "make_example", "tune"]

_HOMES = {
    "Model": "autosched.codegen.runtime.model",
    "TuningResult": "autosched.tools.tuning",
    "example_inputs": "autosched.examples",
    "load": "autosched.codegen.runtime.model",
    "make_example": "autosched.examples",
    "tune": "autosched.tools.tune",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import, and rarely asked for

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
