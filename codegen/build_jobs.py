"""Jobs of the build workers: references of tasks, and libraries of candidates, by files.

Arguments and results are plain JSON. These processes import TVM; those that measure never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autosched.codegen import tvm_api
from autosched.codegen.build import BuiltKernel, Request, compile_kernels
from autosched.codegen.reference import read_program, reference
from autosched.codegen.runtime.spec import arg_to_json
from autosched.codegen.task_files import write_data
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule
from autosched.ir.target import host_target, parse_target


def warm_up() -> None:
    """Loads TVM, which takes seconds."""
    host = host_target()
    tvm_api.target(host.arch, host.features)


def prepare(folder: str, seed: int) -> None:
    """Writes the inputs and the float64 reference of the task in `folder`."""
    write_data(Path(folder), reference(read_program(Path(folder)), seed))


def build(
    folder: str, schedules: Sequence[Mapping[str, Any]], symbols: Sequence[str], target: str,
    library: str, sources: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Compiles candidates of the task in `folder` into the file `library`.

    Returns for each {"symbol", "args", "source"}, or {"illegal": code, "why"}.
    """
    program = read_program(Path(folder))
    requests = [
        Request(program, Schedule.from_json(schedule), symbol)
        for schedule, symbol in zip(schedules, symbols, strict=True)
    ]
    built = compile_kernels(requests, parse_target(target), sources)
    made = [k for k in built if isinstance(k, BuiltKernel)]
    if made:
        Path(library).write_bytes(made[0].library)
    return [_row(k) for k in built]


def _row(kernel: BuiltKernel | Illegal) -> dict[str, Any]:
    if isinstance(kernel, Illegal):
        return {"illegal": kernel.code, "why": kernel.why}
    args = [arg_to_json(a) for a in kernel.args]
    return {"symbol": kernel.symbol, "args": args, "source": kernel.source}
