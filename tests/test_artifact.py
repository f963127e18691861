"""Artifacts that contradict themselves are refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import kernels
import numpy as np
import pytest

from autosched.codegen.artifact import Artifact, ArtifactError, KernelArg, Plan, Step, Value, check

Change = Callable[[Artifact], Artifact]


def of_plan(**changes: object) -> Change:
    def change(artifact: Artifact) -> Artifact:
        assert artifact.plan is not None
        return replace(artifact, plan=replace(artifact.plan, **changes))  # type: ignore[arg-type]

    return change


def of_kernel(**changes: object) -> Change:
    def change(artifact: Artifact) -> Artifact:
        first, *rest = artifact.kernels
        made = replace(first, **changes)  # type: ignore[arg-type]
        return replace(artifact, kernels=(made, *rest))

    return change


def steps(*rows: Step) -> Change:
    return of_plan(steps=rows)


def plan() -> Plan:
    made = kernels.chain().plan
    assert made is not None
    return made


BIG = np.zeros((kernels.M, kernels.N), np.float32)
X = KernelArg("x", "input", "float32", (2,))
Y = KernelArg("y", "output", "float32", (2,))
WRONG: dict[str, tuple[Change, str]] = {
    "public name": (of_kernel(public_name="../x"), "can't be a public name"),
    "a keyword": (of_kernel(public_name="lambda"), "can't be a public name"),
    "its own load": (of_kernel(public_name="load"), "can't be a public name"),
    "symbol": (of_kernel(symbol="a b"), "can't be a symbol"),
    "same key": (of_kernel(key="key-of-serial"), "share a key"),
    "no output": (of_kernel(args=(X,)), "no output"),
    "argument twice": (of_kernel(args=(Y, Y)), "share a name"),
    "role": (of_kernel(args=(replace(X, role="knob"), Y)), "unknown role"),
    "dtype": (of_kernel(args=(replace(X, dtype="complex64"), Y)), "unknown role or dtype"),
    "packed without pack": (of_kernel(args=(replace(X, role="packed"), Y)), "without a pack"),
    "pack of another size": (
        of_kernel(args=(replace(X, role="packed", pack=kernels.PACK), Y)), "is packed as"
    ),
    "unknown kernel": (steps(Step("other", None, ())), "unknown kernel"),
    "unknown island": (steps(Step(None, "other", ())), "unknown island"),
    "neither": (steps(Step(None, None, ())), "neither a kernel nor an island"),
    "arity": (steps(Step("key-of-serial", None, ("x", "a"))), "2 arguments for 3"),
    "unknown value": (steps(Step("key-of-serial", None, ("x", "w0", "zz"))), "names zz"),
    "order": (steps(Step("key-of-serial", None, ("b", "w0", "a"))), "before it is written"),
    "another size": (steps(Step("key-of-serial", None, ("x", "x", "a"))), "as w_packed"),
    "packs a value": (
        of_plan(
            inputs=(*plan().inputs, Value("v", "float32", (kernels.N,))),
            steps=(Step("key-of-serial", None, ("x", "v", "a")),),
        ),
        "only weights can be packed",
    ),
    "writes a weight": (
        of_plan(
            constants=(*plan().constants, Value("big", "float32", (kernels.M, kernels.N))),
            steps=(Step("key-of-serial", None, ("x", "w0", "big")),),
        ),
        "writes the weight",
    ),
    "never written": (of_plan(steps=plan().steps[:2]), "output out is never written"),
    "alias": (of_plan(aliases={"flat": "zz"}), "alias flat"),
    "no data": (lambda a: replace(a, weights={}), "weight w0 has no data"),
    "both": (
        of_plan(values=(*plan().values, Value("w0", "float32", (50,)))), "both a value and a weight"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_contradictions_are_named(name: str) -> None:
    change, message = WRONG[name]
    artifact = kernels.chain()
    artifact = replace(artifact, weights={**artifact.weights, "big": lambda: BIG})
    with pytest.raises(ArtifactError, match=message):
        check(change(artifact))


def test_a_sound_artifact_passes() -> None:
    check(kernels.chain())
    check(kernels.chain({"middle": b"onnx"}))
