"""Runs the source of a Triton module on torch tensors, under Triton's interpreter: a process of
its own, because the interpreter is chosen when triton is imported. With AUTOSCHED_TEST_DEVICE=cuda
the same tests run compiled kernels on that device.

Requests are pickles of our own tests over a pipe: (source, launches, tensors, arrays); answers are
arrays of the outputs, or the text of the error.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np

DEVICE = "AUTOSCHED_TEST_DEVICE"
PROGRAMS = 3  # persistent kernels run with this many programs, fewer than tiles


def load_module(source: str, folder: str) -> Any:
    """The module of a source, imported from a file: Triton reads its functions from there."""
    path = Path(folder) / "kernels.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("kernels", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(request: dict[str, Any]) -> dict[str, Any]:
    """The outputs by name; every buffer that no input fills starts out poisoned."""
    import torch
    import triton

    device = os.environ.get(DEVICE, "cpu")
    triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=device))
    types = {"bool": torch.bool, "float8_e4m3": torch.float8_e4m3fn,
             "float8_e5m2": torch.float8_e5m2}  # fmt: skip
    tensors = {}
    for t in request["tensors"]:
        kind = types.get(t["dtype"]) or getattr(torch, t["dtype"])
        given = request["arrays"].get(t["name"])
        if given is None:
            poison = torch.full(t["extents"], float("nan"))
            tensors[t["name"]] = torch.nan_to_num(poison, 77.0).to(kind) if (
                not kind.is_floating_point) else poison.to(kind)  # fmt: skip
        else:
            tensors[t["name"]] = torch.from_numpy(np.array(given)).to(kind).contiguous()
    tensors = {name: t.to(device) for name, t in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        module = load_module(request["source"], folder)
        for launch in request["launches"]:
            programs = launch["programs"]
            grid = min(programs, PROGRAMS) if launch["persistent"] else programs
            args = [tensors[n] for n in launch["tensors"]]
            options = {"num_warps": launch["warps"], "num_stages": launch["stages"]}
            getattr(module, launch["kernel"])[(grid,)](*args, **options)
    out = {}
    for t in request["tensors"]:
        if t["role"] == "output":
            got = tensors[t["name"]].cpu()
            out[t["name"]] = (got.double() if got.is_floating_point() else got).numpy()
    return out


def mend_interpreter() -> None:
    """What Triton 3.6's interpreter gets wrong or does element by element.

    It loses that a comparison of scalars is a bool where that is broadcast.

    It holds bfloat16 as the bits of an integer, multiplies those in `tl.dot` and cuts off what does
    not fit into a narrow float where the hardware rounds to even; and it reduces and
    scans one element at a time, which costs seconds a tile: here whole slices, in the same order,
    by the kernel's own combining function.
    """
    import torch
    import triton.language as tl
    from triton.runtime import interpreter as it

    plain, splat = it.InterpreterBuilder.create_dot, it.InterpreterBuilder.create_splat

    narrow = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn,
              tl.float8e5: torch.float8_e5m2}  # fmt: skip

    def convert(data: Any, source: Any, target: Any, mode: Any) -> Any:
        """Bits of floats in another type, ties to even."""
        raw = torch.from_numpy(np.array(data))
        wide = raw.view(narrow[source]).float() if source in narrow else raw.float()
        if target not in narrow:
            return wide.numpy().astype(it._get_np_dtype(target)).view(
                f"uint{target.primitive_bitwidth}")  # fmt: skip
        bits = torch.uint16 if target == tl.bfloat16 else torch.uint8
        return wide.to(narrow[target]).view(bits).numpy()

    def create_splat(self: Any, kind: Any, arg: Any) -> Any:
        if arg.data.dtype == bool:
            return it.TensorHandle(np.full(kind.shape, arg.data.reshape(())), tl.int1)
        return splat(self, kind, arg)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x
                for x in (a, b)]  # fmt: skip
        return plain(self, *wide, *rest)

    def slices(self: Any, given: tuple[Any, ...]) -> list[list[Any]]:
        """Running combinations along the axis, one entry a position."""
        data = [x.handle.data for x in given]
        count = data[0].shape[self.axis]
        steps = [[np.take(d, i, axis=self.axis) for d in data] for i in range(count)]
        running = [steps[0]]
        for step in steps[1:]:
            args = [self.to_tensor(np.asarray(x), g.dtype)
                    for part in (running[-1], step) for x, g in zip(part, given)]  # fmt: skip
            got = self.combine_fn.fn(*args)
            got = got if isinstance(got, tuple) else (got,)
            running.append([np.reshape(x.handle.data, np.shape(step[0])) for x in got])
        return running

    def generic_reduce(self: Any, given: tuple[Any, ...]) -> list[Any]:
        last = slices(self, given)[-1]
        return [self.to_tensor(x if np.ndim(x) else x.item(), g.dtype) for x, g in zip(last, given)]

    def generic_scan(self: Any, given: tuple[Any, ...]) -> list[Any]:
        running = slices(self, given)
        return [self.to_tensor(np.stack([r[n] for r in running], axis=self.axis), g.dtype)
                for n, g in enumerate(given)]  # fmt: skip

    it.InterpreterBuilder.create_dot = dot
    it.InterpreterBuilder.create_splat = create_splat
    it._convert_float = convert
    it.ReduceOps.generic_reduce = generic_reduce
    it.ScanOps.generic_scan = generic_scan


def serve() -> None:
    """Answers requests on stdin until it closes."""
    if os.environ["TRITON_INTERPRET"] == "1":
        mend_interpreter()
    pipe, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what kernels print is no answer
    while True:
        try:
            request = pickle.load(pipe)
        except EOFError:
            return
        try:
            got: Any = run(request)
        except Exception:  # the test that asked shows it
            got = traceback.format_exc()
        pickle.dump(got, answers)
        answers.flush()


class Interpreter:
    """The process, started at the first use."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, module: Any, arrays: dict[str, Any]) -> dict[str, Any]:
        """Outputs of a TritonModule by name."""
        if self.process is None or self.process.poll() is not None:
            interpret = "0" if DEVICE in os.environ else "1"
            env = {**os.environ, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, env=env)  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {
            "source": module.source,
            "tensors": [vars(t) for t in module.tensors],
            "launches": [vars(x) for x in module.launches],
            "arrays": arrays,
        }
        pickle.dump(request, self.process.stdin)
        self.process.stdin.flush()
        got = pickle.load(self.process.stdout)
        if isinstance(got, str):
            raise AssertionError(f"{got}\n{module.source}")
        return got

    def close(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(10)


if __name__ == "__main__":
    serve()
