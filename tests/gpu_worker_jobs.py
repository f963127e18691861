"""Jobs for tests of GPU building: compilers that hang, abort and print, through the real one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import triton

from autosched.codegen import triton_build, triton_jobs


def build_hanging(module: Mapping[str, Any], target: str, cache: str) -> dict[str, Any]:
    """As a pass that does not end."""

    def compile_(*args: Any, **kwargs: Any) -> None:
        time.sleep(3600)

    triton.compile = compile_
    return triton_jobs.build_module(module, target, cache)


def build_aborting(module: Mapping[str, Any], target: str, cache: str) -> dict[str, Any]:
    """As a pass that prints the whole module and ends the process."""

    def compile_(*args: Any, **kwargs: Any) -> None:
        sys.stderr.write("module {\n" + "  ttg.local_load\n" * 5000 + "}\nLLVM ERROR: no way\n")
        sys.stderr.flush()
        os.abort()

    triton.compile = compile_
    return triton_jobs.build_module(module, target, cache)


def recompiles(entry: str) -> list[bool]:
    """Whether the just-in-time compiler, asked for no line tables as builders do, finds each
    launch of a build in Triton's own cache."""
    from pathlib import Path

    import triton
    from triton.backends.driver import DriverBase
    from triton.runtime.jit import MockTensor

    from autosched.codegen.runtime.launch import load_kernels, torch_type
    from autosched.codegen.triton_entry import read_build
    from autosched.ir.target import parse_target

    triton.knobs.compilation.disable_line_info = True

    class NoDevice(DriverBase):
        """What the compiler asks a driver before any launch."""

        def __init__(self) -> None:
            pass

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise NotImplementedError

        def get_current_target(self) -> Any:
            return triton_build.gpu_target(parse_target("sm_90"))

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_active_torch_device(self) -> Any:
            raise NotImplementedError

        def get_benchmarker(self) -> Any:
            raise NotImplementedError

    triton.runtime.driver.set_active(NoDevice())
    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda **facts: hits.append(facts["cache_hit"])
    build = read_build(Path(entry))
    functions = load_kernels(build.file)
    dtypes = {t.name: t.dtype for t in build.module.tensors}
    for launch in build.module.launches:
        mocks = [MockTensor(torch_type(dtypes[name])) for name in launch.tensors]
        getattr(functions, launch.kernel).warmup(
            *mocks, grid=(1,), num_warps=launch.warps, num_stages=launch.stages
        )
    return hits
