"""A call of a model as its module takes it in, the arrays of its graph by name out, and back.

A tree is plain JSON: {"name": n} is a tensor, {"value": v} a plain value that was fixed when the
model was tuned, {"tuple": [...]}, {"list": [...]} and {"dict": [[key, tree], ...]} hold others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import is_torch, public
from .errors import InputError
from .spec import Value

Tree = Mapping[str, Any]
_GROUPS = {"tuple": tuple, "list": list}


class Face:
    """What makes a model callable: `model(x, mask=m)` where it was made of a torch module.

    tree: {"parameters", "args", "kwargs", "result"}: names of positional parameters, and trees;
    None for models of files, which have names only.
    """

    tree: Tree | None
    outputs: tuple[Value, ...]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returned, in the same structure.

        Tensors in give tensors out, NumPy arrays arrays. Raises InputError, and what `run` does.
        """
        if self.tree is None:
            raise InputError("this model was made of a file and has names for its inputs: "
                             "call model.run({name: array})")  # fmt: skip
        inputs = bind(self.tree, args, kwargs)
        found = self.run(inputs)
        if any(is_torch(x) for x in inputs.values()):
            found = {v.name: _tensor(found[v.name], v.dtype) for v in self.outputs}
        return build(self.tree["result"], found)


def bind(call: Tree, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a call by the names of inputs. Raises InputError."""
    known: list[str] = call["parameters"]
    trees: dict[str, Tree] = {
        (known[n] if n < len(known) and known[n] else f"argument {n}"): tree
        for n, tree in enumerate(call["args"])
    }
    places = [*trees, *(k for k in known[len(trees) :] if k)]
    trees |= call["kwargs"]
    if len(args) > len(places):
        raise InputError(f"{len(args)} positional arguments, but it takes {_expected(trees)}")
    given = dict(zip(places, args))
    if twice := sorted(given.keys() & kwargs.keys()):
        raise InputError(f"{twice[0]} is given twice")
    given |= kwargs
    for name, value in given.items():
        if name not in trees and value is not None:
            raise InputError(f"{name} was not given when the model was tuned, which then took "
                             f"{_expected(trees)}: leave it out, or tune with it")  # fmt: skip
    found: dict[str, Any] = {}
    for name, tree in trees.items():
        if name in given:
            found.update(_leaves(tree, given[name], name))
        elif _names(tree):
            raise InputError(f"{name} is missing; it takes {_expected(trees)}")
    return found


def _expected(trees: Mapping[str, Tree]) -> str:
    return f"({', '.join(trees)})"


def _names(tree: Tree) -> list[str]:
    """The tensors of a tree."""
    if "name" in tree:
        return [tree["name"]]
    if "dict" in tree:
        return [n for _, inner in tree["dict"] for n in _names(inner)]
    return [n for kind in _GROUPS for inner in tree.get(kind, ()) for n in _names(inner)]


def _leaves(tree: Tree, value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The tensors of a value by name; what is fixed must be as it was."""
    if "name" in tree:
        yield tree["name"], value
    elif "value" in tree:
        if value != tree["value"]:
            raise InputError(f"{where} was {tree['value']!r} when the model was tuned and is part "
                             "of its kernels: tune again for another value")  # fmt: skip
    elif "dict" in tree:
        keys = [key for key, _ in tree["dict"]]
        if not isinstance(value, Mapping) or set(value) != set(keys):
            raise InputError(f"{where} must be a dict with the keys {keys}")
        for key, inner in tree["dict"]:
            yield from _leaves(inner, value[key], f"{where}[{key!r}]")
    else:
        ((_, parts),) = tree.items()
        if not isinstance(value, (tuple, list)) or len(value) != len(parts):
            raise InputError(f"{where} must be a sequence of {len(parts)}")
        for n, (inner, part) in enumerate(zip(parts, value)):
            yield from _leaves(inner, part, f"{where}[{n}]")


def build(tree: Tree, found: Mapping[str, Any]) -> Any:
    """A tree with its tensors in place."""
    if "name" in tree:
        return found[tree["name"]]
    if "value" in tree:
        return tree["value"]
    if "dict" in tree:
        return {key: build(inner, found) for key, inner in tree["dict"]}
    ((kind, parts),) = tree.items()
    return _GROUPS[kind](build(part, found) for part in parts)


def _tensor(result: Any, dtype: str) -> Any:
    if is_torch(result):
        return result
    bits = result.view(np.uint16) if dtype == "bfloat16" else result
    return public(bits, dtype, torch=True)
