"""Packages in processes of their own: what an import costs and loads, and life beside TVM."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kernels
import pytest

from autosched.codegen.package import write_package

RUN = """
import numpy
x = numpy.ones((37, 50), "float32")
total = float({0}.load().run({{"x": x}})["out"].sum())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("imports") / "tuned"
    return write_package(kernels.chain(), place, "chain").folder


def python(code: str, *paths: Path, bare: bool = False) -> Any:
    """What the code prints, as JSON; `bare` leaves out every installed package."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    flags = ["-S"] if bare else []
    run = subprocess.run([sys.executable, *flags, "-c", code], env=env, capture_output=True,
                         text=True, timeout=60)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_an_import_is_quick_and_loads_nothing(folder: Path) -> None:
    code = """
import sys, time, json
start = time.perf_counter()
import chain
took = time.perf_counter() - start
heavy = [m for m in ("numpy", "torch", "tvm", "tvm_ffi", "onnxruntime") if m in sys.modules]
loaded = "libtvm" in open("/proc/self/maps").read()
print(json.dumps([took, heavy, loaded, chain.scale_add_serial.__doc__[:7], dir(chain)]))
"""
    results = [python(code, folder) for _ in range(3)]
    assert min(result[0] for result in results) < 0.1
    _, heavy, loaded, doc, names = results[0]
    assert (heavy, loaded, doc) == ([], False, "2 x + w")
    assert {"load", "scale_add_parallel", "scale_add_serial"} <= set(names)


def test_a_run_imports_neither_tvm_nor_torch(folder: Path) -> None:
    code = "import chain, sys, json" + RUN.format("chain") + """
names = {m.partition(".")[0] for m in sys.modules}
print(json.dumps([total, sorted(names & {"tvm", "tvm_ffi", "torch", "autosched", "onnxruntime"})]))
"""
    total, imported = python(code, folder)
    assert total != 0
    assert imported == []


def test_it_runs_where_tvm_is_not_installed(folder: Path, tmp_path: Path) -> None:
    for name in ("numpy", "numpy.libs", "tvm_ffi"):
        spec = importlib.util.find_spec("numpy" if name == "numpy.libs" else name)
        assert spec is not None and spec.submodule_search_locations is not None
        place = Path(spec.submodule_search_locations[0]).with_name(name)
        if place.exists():
            (tmp_path / name).symlink_to(place)
    code = "import chain, json" + RUN.format("chain") + """
maps = open("/proc/self/maps").read().split()
print(json.dumps([total, sorted({m for m in maps if m.endswith("libtvm_runtime.so")})]))
"""
    total, libraries = python(code, folder, tmp_path, bare=True)
    assert total == python("import chain, json" + RUN.format("chain") + "print(total)", folder)
    assert libraries == [str(folder / "chain/lib/libtvm_runtime.so")]


@pytest.mark.parametrize("order", ["package first", "tvm first"])
def test_it_lives_beside_tvm(folder: Path, order: str) -> None:
    parts = ["import chain, json" + RUN.format("chain"), "import tvm\n"]
    code = "".join(parts if order == "package first" else reversed(parts))
    assert python(code + "print(json.dumps(total))", folder) != 0


def test_two_packages_in_one_process(folder: Path, tmp_path: Path) -> None:
    other = write_package(kernels.chain(), tmp_path / "other", "other").folder
    code = "import chain, other, json" + RUN.format("chain") + "first = total" + RUN.format("other")
    first, second = python(code + "print(json.dumps([first, total]))", folder, other)
    assert first == second


def test_a_process_ends_promptly_after_a_run(folder: Path) -> None:
    code = "import chain, json, time" + RUN.format("chain") + """
print(json.dumps(time.monotonic()))
"""
    ended = python(code, folder)
    assert time.monotonic() - ended < 0.4
