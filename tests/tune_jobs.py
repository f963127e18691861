"""Builds for tests of the tuner: some candidates become kernels that no tuner wants to meet."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autosched.codegen import build_jobs, tvm_api
from autosched.codegen.build import Lowered, Request, lower
from autosched.codegen.reference import read_program
from autosched.codegen.runtime.spec import KernelArg, arg_to_json
from autosched.ir.schedule import Schedule
from autosched.ir.target import parse_target

SPOILT = "AUTOSCHED_TEST_SPOILT"  # fault for each candidate in turn, "" for none; comma-separated
FAULTS = ("hang", "crash", "nan", "wrong", "unwritten", "refuse", "die")


def build(
    folder: str, schedules: Sequence[Mapping[str, Any]], symbols: Sequence[str], target: str,
    library: str, sources: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """As build_jobs.build, with the faults that the environment asks for."""
    faults = os.environ.get(SPOILT, "").split(",")
    wanted = [_fault(name, faults) for name in symbols]
    if "die" in wanted:
        os._exit(3)
    if "full" in wanted:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), library)
    if "refuse" in wanted:
        raise RuntimeError("LLVM ERROR: cannot select")
    if not any(wanted):
        return build_jobs.build(folder, schedules, symbols, target, library, sources)
    program, chosen = read_program(Path(folder)), parse_target(target)
    functions, rows = [], []
    for schedule, symbol, fault in zip(schedules, symbols, wanted, strict=True):
        made = lower(Request(program, Schedule.from_json(schedule), symbol), chosen)
        assert isinstance(made, Lowered)
        functions.append(_spoilt(made.args, symbol, fault) if fault else made.function)
        rows.append({
            "symbol": symbol, "args": [arg_to_json(a) for a in made.args], "source": "",
        })  # fmt: skip
    where = tvm_api.target(chosen.arch, chosen.features)
    Path(library).write_bytes(tvm_api.build(functions, where))
    return rows


def _fault(symbol: str, faults: Sequence[str]) -> str:
    number = symbol.removeprefix("candidate")
    return faults[int(number)] if number.isdecimal() and int(number) < len(faults) else ""


def _spoilt(args: Sequence[KernelArg], symbol: str, fault: str) -> Any:
    """A kernel of that signature that hangs, crashes or answers wrong."""
    buffers = [tvm_api.parameter(f"p{n}", a.dtype) for n, a in enumerate(args)]
    out = next(n for n, a in enumerate(args) if a.role == "output")
    count = 1
    for extent in args[out].shape:
        count *= extent
    at, again = tvm_api.var("i"), tvm_api.var("j", "int64")
    fill = tvm_api.loop(at, count - (fault == "unwritten"),
                        tvm_api.store(buffers[out], at, _VALUES.get(fault, 0.0)))  # fmt: skip
    # A recurrence in floating point has no closed form that a compiler would put in its place.
    step = tvm_api.add(tvm_api.mul(tvm_api.load(buffers[out], 0), 0.5), 1.0)
    body = {
        "hang": tvm_api.loop(again, tvm_api.const(1 << 60, "int64"),
                             tvm_api.store(buffers[out], 0, step)),
        "crash": tvm_api.store(buffers[out], tvm_api.const(1 << 44, "int64"), 1.0),
    }.get(fault, fill)
    return tvm_api.function(symbol, buffers, body)


_VALUES = {"nan": float("nan"), "wrong": 0.25}
