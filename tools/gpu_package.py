"""Algebra programs in, a package of GPU kernels out, by the schedules that rank first.

Nothing is measured: this is for what does not depend on speed, such as what a call costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from autosched.codegen.artifact import Artifact, GpuKernel
from autosched.codegen.package import write_package
from autosched.codegen.reference import write_program
from autosched.codegen.triton_entry import read_build
from autosched.codegen.triton_jobs import build_schedule
from autosched.ir.key import content_key
from autosched.ir.node import Program
from autosched.ir.partition import Task
from autosched.ir.schedule import Schedule
from autosched.ir.target import parse_target
from autosched.tools.gpu_plan import plan
from autosched.tools.winners import Choice, gpu_kernel

TRIED = 8  # schedules of a program, until one compiles and fits


def packaged(
    programs: Mapping[str, Program], target: str, folder: Path, name: str = "kernels"
) -> Path:
    """Writes a package of one kernel for each program, by its public name; the module's folder.

    Args: folder: for builds and the package.
    Raises: ValueError where no schedule of a program compiles.
    """
    kernels = tuple(_kernel(n, p, target, folder / "work" / n) for n, p in programs.items())
    return write_package(Artifact(kernels), folder / name, name).module


def _kernel(name: str, program: Program, target: str, folder: Path) -> GpuKernel:
    write_program(folder, program)
    chosen = parse_target(target)
    failed = []
    for picked in plan(str(folder), target, TRIED, 0)["picked"]:
        made = build_schedule(str(folder), picked["schedule"], target, str(folder / "cache"))
        if "illegal" in made:
            failed.append(made["why"])
            continue
        build = read_build(Path(made["entry"]))
        task = Task(content_key(program), program, 1, 0, 0, name, f"{name}, not measured.")
        schedule = Schedule.from_json(picked["schedule"])
        choice = Choice(task, schedule, None, None, build.facts(), made["bound"])
        return gpu_kernel(choice, build, chosen, f"triton-{version('triton')}")
    raise ValueError(f"no schedule of {name} compiles: {'; '.join(failed)}")
