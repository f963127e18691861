"""What is said of exported programs, and the trees of their calls: everything about them that
needs no torch, which `ir.frontend.torch` alone imports."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from autosched.ir.frontend.build import Source
from autosched.ir.graph import ModelError

SHOWN = 8  # operators of a message


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """None of the pages that torch logs and prints where tracing fails: what
    matters of them is in the exception. What a module prints comes out if all went well."""
    said, warned, log = io.StringIO(), io.StringIO(), logging.getLogger("torch")
    before = log.level
    with (
        warnings.catch_warnings(), contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(warned),
    ):  # fmt: skip
        warnings.simplefilter("ignore", FutureWarning)
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(before)
    print(said.getvalue(), end="")
    print(warned.getvalue(), end="", file=sys.stderr)


# What the text of an export error tells about its cause, and the way out.
_CAUSES = (
    (r"GuardOnDataDependent|data-dependent|control flow|torch\.cond",
     "what it does depends on the values of tensors (an `if`, a loop, `.item()`, nonzero)",
     "write that with torch.where or masks, or tune the parts before and after it"),
    (r"missing (\d+|a) required|takes \d+ positional|too many positional|unexpected keyword|"
     "multiple values",
     "the example inputs are not what its forward takes",
     "pass them as a tuple in the order of forward's parameters, keywords as example_kwargs"),
)  # fmt: skip


def export_failure(name: str, error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    cause, way_out = "", "see that module(*example_inputs) runs in eager mode and exports"
    for pattern, meaning, way in _CAUSES:
        if re.search(pattern, text):
            cause, way_out = f": {meaning}", way
            break
    lines = [line.rstrip() for line in text.splitlines() if line.strip()][:4]
    said = "\n  ".join(line[:200] for line in lines)
    return f"{name} can't be exported by torch.export{cause}; {way_out}. torch says:\n  {said}"


# ---- what has no row ---------------------------------------------------------------------------


class Made(Protocol):
    """What torch notes of a node: where in the module and in the source it comes from."""

    target: Any
    meta: dict[str, Any]
    stack_trace: str | None


def op_name(target: Any) -> str:
    """"aten.add.Tensor" of an overload; the name of anything else."""
    return str(target) if hasattr(target, "_schema") else str(getattr(target, "__name__", target))


def place(node: Made) -> str:
    """" in layers.0.attn (model.py:12: `x.sort()`)", as far as torch noted it."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((p for p, _ in reversed(list(stack.values())) if p), "")
    trace = re.findall(r'File "([^"]*)", line (\d+), in .*\n\s*(.*)', node.stack_trace or "")
    at = ""
    if trace:
        file, line, code = trace[-1]
        at = f" ({file.rsplit('/', 1)[-1]}:{line}: `{code.strip()[:60]}`)"
    return (f" in {path}" if path else "") + at


def refusal(name: str, nodes: Sequence[tuple[Made, str]]) -> str:
    lines = dict.fromkeys(f"{op_name(n.target)}{place(n)}: {why}" for n, why in nodes)
    shown = list(lines)[:SHOWN]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return (
        f"{name} has operators that no kernel computes:\n  " + "\n  ".join([*shown, *more])
        + "\nWrite them with others, tune the parts of the module before and after them, or export "
        "it to ONNX (torch.onnx.export), whose operators onnxruntime can run between the kernels"
    )


# ---- how it is called --------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """The end of a branch: {"name": a tensor's} or {"value": a plain value}."""

    data: dict[str, Any]


def leaf(argument: Any, tensor: str | None, name: str) -> Leaf:
    """Of an argument of a program's signature; tensor: its name, None for a plain value."""
    if tensor is not None:
        return Leaf({"name": tensor})
    return Leaf({"value": plain(getattr(argument, "value", None), name)})


def plain(value: Any, name: str) -> Any:
    """A value that JSON has too."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ModelError(f"{name} takes or returns a {type(value).__name__}, which is neither a tensor "
                     "nor a plain value; leave it out")  # fmt: skip


def tree(value: Any, name: str) -> dict[str, Any]:
    """Nested tuples, lists and dicts of leaves as JSON."""
    if isinstance(value, Leaf):
        return value.data
    if value is None:
        return {"value": None}
    if isinstance(value, dict):
        return {"dict": [[plain(k, name), tree(v, name)] for k, v in value.items()]}
    if isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [tree(v, name) for v in value]}
    raise ModelError(
        f"{name} takes or returns a {type(value).__name__}; kernels know tensors in tuples, lists "
        "and dicts: wrap the module in one that takes and returns those"
    )


def result_names(paths: Sequence[Sequence[Any]], taken: set[str]) -> list[str]:
    """A name for each result, from its place in what the module returns."""
    names: list[str] = []
    for path in paths:
        words = [re.sub(r"\W+", "", str(_key(k))) for k in path]
        name = "_".join(words) or "output"
        name = name if name[0].isalpha() else f"output_{name}"
        while name in taken:
            name += "_out"
        taken.add(name)
        names.append(name)
    return names


def _key(key: Any) -> Any:
    return next((getattr(key, a) for a in ("key", "idx", "name") if hasattr(key, a)), key)


def digest(source: Source) -> str:
    """SHA-256 of what is computed: operators, types, weights."""
    whole = hashlib.sha256(repr((source.inputs, source.outputs)).encode())
    for node in source.nodes:
        facts = (node.op, node.inputs, node.outputs, node.attrs.get("args"),
                 node.attrs.get("out"))  # fmt: skip
        whole.update(repr(facts).encode())
    for name, array in sorted(source.constants.items()):
        whole.update(f"{name}:{array.dtype.name}{array.shape}".encode())
        whole.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return whole.hexdigest()
