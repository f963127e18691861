"""What a call costs the caller, on a GPU: bare Triton launches, package calls, torch's own.

    python tools/bootstrap.py autosched.tools.gpu_overhead --out results

Kernels are so small that the device is never what one waits for: the time of a loop of calls, its
end awaited once, is that of Python and the driver. Sides take turns; medians of their rounds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from autosched.codegen.runtime.gpu import torch_module
from autosched.codegen.runtime.launch import (
    Plan,
    empty,
    load_kernels,
    processor_count,
    with_allocator,
)
from autosched.codegen.runtime.manifest import read
from autosched.tools import gpu_programs
from autosched.tools.gpu_package import packaged

CALLS, ROUNDS = 300, 40
SIZE = 64
Side = Callable[[], object]


def sides(module: Path, x: Any, w: Any) -> dict[str, Side]:
    """The calls to be compared, each of which multiplies x and w."""
    torch = torch_module()
    sys.path.insert(0, str(module.parent))
    package = importlib.import_module(module.name)
    call, operator = package.product, package.product.torch_op()
    out = torch.empty_like(call(x, w))
    bare, made = _bare(module, {"x": x, "w": w}, out), _graph(lambda: call(x, w))
    return {
        "bare Triton launch, outputs given": bare,
        "the same and torch.empty": lambda: (torch.empty_like(out), bare()),
        "package call": lambda: call(x, w),
        "package operator of torch": lambda: operator(x, w),
        "torch.mm": lambda: torch.mm(x, w),
        "torch.mm, outputs given": lambda: torch.mm(x, w, out=out),
        "replay of a CUDA graph of the package call": made,
    }


def _bare(module: Path, operands: Mapping[str, Any], out: Any) -> Side:
    """The launches of the package's kernel by Triton's own launcher, on the same tensors."""
    manifest = read(module)
    (row,) = manifest.data["kernels"]
    plan = Plan.from_json(row)
    functions = load_kernels(manifest.path(row["source"]))
    outputs = {b.name: out for b in plan.of_role("output")}
    scratch = {b.name: empty(b, out.device).zero_() for b in plan.of_role("scratch", "counter")}
    tensors = {**operands, **outputs, **scratch}
    launches = [
        (getattr(functions, s.kernel)[(s.grid(processor_count(out.device)),)],
         [tensors[n] for n in s.tensors], {"num_warps": s.warps, "num_stages": s.stages})
        for s in plan.steps
    ]  # fmt: skip
    if any(s.descriptors for s in plan.steps):
        with_allocator(lambda: None, out.device)  # it stays: this process does nothing else

    def run() -> None:
        for launch, args, options in launches:
            launch(*args, **options)

    return run


def _graph(call: Side) -> Side:
    torch = torch_module()
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Side = graph.replay
    return replay


def timed(found: Mapping[str, Side], seconds: float) -> dict[str, dict[str, float]]:
    """Microseconds of a call of each side: median and the 10th and 90th percentile of rounds."""
    torch = torch_module()
    for side in found.values():
        for _ in range(CALLS):
            side()
    rows: dict[str, list[float]] = {name: [] for name in found}
    begun = time.perf_counter()
    for done in range(ROUNDS):
        for name, side in found.items():
            torch.cuda.synchronize()
            start = time.perf_counter_ns()
            for _ in range(CALLS):
                side()
            spent = time.perf_counter_ns() - start  # before waiting: what the caller pays
            torch.cuda.synchronize()
            rows[name].append(spent / 1e3 / CALLS)
        if done >= 4 and time.perf_counter() - begun > seconds:
            break
    return {
        name: {"us": median(r), "p10": quantiles(r, n=10)[0], "p90": quantiles(r, n=10)[-1],
               "rounds": len(r)}
        for name, r in rows.items()
    }  # fmt: skip


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown; the last column is what a call costs above a bare launch."""
    base = next(iter(found.values()))["us"]
    return "\n".join([
        "| side | us a call | 10th to 90th percentile | above a bare launch |", "|---|---|---|---|",
        *(f"| {name} | {row['us']:.2f} | {row['p10']:.2f} to {row['p90']:.2f} | "
          f"{row['us'] - base:+.2f} |" for name, row in found.items()),
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, help="folder for overhead.md and overhead.json")
    made.add_argument("--seconds", type=float, default=60.0, help="of timing, at most")
    made.add_argument("--dtype", default="bfloat16", choices=("float16", "bfloat16", "float32"))
    args = made.parse_args(argv)
    torch = torch_module()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure", file=sys.stderr)
        return 1
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        program = gpu_programs.product(SIZE, SIZE, SIZE, args.dtype)
        module = packaged({"product": program}, f"sm_{major}{minor}", Path(folder))
        x, w = (torch.randn(SIZE, SIZE, device="cuda").to(getattr(torch, args.dtype))
                for _ in range(2))  # fmt: skip
        found = timed(sides(module, x, w), args.seconds)
    text = f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n\n{table(found)}\n"
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "overhead.md").write_text(text, "utf-8")
        (args.out / "overhead.json").write_text(json.dumps(found, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
