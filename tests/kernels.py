"""Small kernels, an artifact and a package made of them, for the tests of what a user gets."""

from __future__ import annotations

from functools import cache

import numpy as np

from autosched.codegen import tvm_api as t
from autosched.codegen.artifact import Artifact, CpuKernel, KernelArg, PackSpec, Plan, Step, Value
from autosched.ir.target import X86_LEVELS

M, N = 37, 50  # nothing divides anything
FEATURES = X86_LEVELS["x86-64-v2"]
PACK = PackSpec(
    "w", "float32", (N,), (5, 10),
    (("add", ("mul", ("axis", 0), ("const", 10)), ("axis", 1)),),
)  # fmt: skip


@cache
def library(symbol: str, kind: str, features: tuple[str, ...] = FEATURES) -> bytes:
    """symbol(x, w, y): y[m, n] = x[m, n] * 2 + w[n], its rows in a loop of `kind`."""
    x, w, y = (t.parameter(name, "float32") for name in "xwy")
    m, n = t.var("m"), t.var("n")
    at = t.add(t.mul(m, N), n)
    value = t.add(t.mul(t.load(x, at), 2.0), t.load(w, n))
    body = t.loop(m, M, t.loop(n, N, t.store(y, at, value)), kind)
    return t.build([t.function(symbol, [x, w, y], body)], t.target("x86_64", features))


def scale_add(kind: str = "parallel", **changes: object) -> CpuKernel:
    """y = 2 x + w, as a kernel whose w is packed."""
    args = (
        KernelArg("x", "input", "float32", (M, N)),
        KernelArg("w_packed", "packed", "float32", (5, 10), PACK),
        KernelArg("y", "output", "float32", (M, N)),
    )
    facts: dict[str, object] = {
        "key": f"key-of-{kind}", "public_name": f"scale_add_{kind}", "doc": "2 x + w, by rows.",
        "symbol": f"scale_add_{kind}", "library": library(f"scale_add_{kind}", kind),
        "source": "def scale_add(): ...", "definition": "y = 2*x + w", "schedule": {"rows": kind},
        "args": args, "cpu_features": FEATURES, "latency_us": 3.0, "peer_us": 6.0,
        "target": "cpu", "toolchain": "test",
    }  # fmt: skip
    return CpuKernel(**(facts | changes))  # type: ignore[arg-type]


def weight(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(N, dtype=np.float32)


WEIGHTS = {"w0": weight(0), "w1": weight(1), "w2": weight(0)}


def chain(islands: dict[str, bytes] | None = None) -> Artifact:
    """x -> 2x + w0 -> 2.. + w1 -> 2.. + w2 -> "out", and its reshaped copy "flat"."""
    values = tuple(Value(name, "float32", (M, N)) for name in ("a", "b", "out"))
    steps = [
        Step("key-of-parallel", None, ("x", "w0", "a")),
        Step("key-of-serial", None, ("a", "w1", "b")),
        Step("key-of-parallel", None, ("b", "w2", "out")),
    ]
    if islands:
        steps[1] = Step(None, "middle", ("a", "w1", "b"))
    plan = Plan(
        inputs=(Value("x", "float32", (M, N)),),
        outputs=(Value("out", "float32", (M, N)), Value("flat", "float32", (M * N,))),
        values=values, steps=tuple(steps), islands=islands or {},
        constants=tuple(Value(name, "float32", (N,)) for name in WEIGHTS),
        aliases={"flat": "out"},
    )  # fmt: skip
    kernels = (scale_add("parallel"), scale_add("serial"))
    return Artifact(kernels, plan, {**WEIGHTS, "w1": lambda: WEIGHTS["w1"]})


def chain_result(x: np.ndarray) -> np.ndarray:
    for name in ("w0", "w1", "w2"):
        x = x * np.float32(2) + WEIGHTS[name]
    return x
