"""A suite row's mask in, its predicate as a function of torch tensors out, and how much it lets by.

The predicate is the definition's own: its expression becomes nested calls of torch operators,
which flex_attention compiles as if they had been written by hand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from autosched.datasets.workloads.masks import allows
from autosched.ir.node import Node
from autosched.ir.ops import input_

Tensor = torch.Tensor
Predicate = Callable[[Any, Any], Any]  # of the positions of a query and of a key
Facts = Mapping[str, Any]

_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "abs": torch.abs,
    "floordiv": operator.floordiv, "mod": operator.mod, "eq": operator.eq, "ne": operator.ne,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "and": operator.and_, "or": operator.or_, "not": torch.logical_not,
}  # fmt: skip
_CHUNK = 1 << 26  # pairs that are counted together
_SIZES = frozenset({"b", "h", "g", "i", "j", "d", "mask", "dtype"})


def predicate(t: Mapping[str, Tensor], facts: Facts) -> Predicate:
    """Whether a query's position sees a key's, both tensors (or what flex traces)."""
    sizes = facts["sizes"]
    numbers = {k: n for k, n in sizes.items() if k not in _SIZES}
    i, j = (input_(name, {}, "int32") for name in ("query at", "key at"))
    shift = sizes["j"] - sizes["i"]
    return _call(allows(facts["mask"], i + shift if shift else i, j, sizes["j"], **numbers), t)


def _call(node: Node, t: Mapping[str, Tensor]) -> Predicate:
    """A value of the two positions as a function of them."""
    if node.op == "input":
        return {"query at": lambda i, j: i, "key at": lambda i, j: j}[str(node.attr[0])]
    if node.op == "const":
        value = node.attr[0]
        return lambda i, j: value
    if node.op == "take" and node.src[0].op == "input":
        array, at = t[str(node.src[0].attr[0])], _call(node.src[1], t)
        return lambda i, j: array[at(i, j)]
    if node.op == "map" and node.attr[0] in _OPERATORS:
        return _applied(_OPERATORS[node.attr[0]], [_call(s, t) for s in node.src])
    raise ValueError(f"flex_attention is not given {node.op} {node.attr[:1]}")


def _applied(fn: Callable[..., Any], parts: list[Predicate]) -> Predicate:
    if len(parts) == 1:
        (one,) = parts
        return lambda i, j: fn(one(i, j))
    left, right = parts
    return lambda i, j: fn(left(i, j), right(i, j))


def area(t: Mapping[str, Tensor], facts: Facts) -> int:
    """The pairs of a query and a key that the mask lets through."""
    sizes, seen = facts["sizes"], predicate(t, facts)
    device = t["q"].device
    keys, rows = torch.arange(sizes["j"], device=device), max(1, _CHUNK // sizes["j"])
    total = 0
    for first in range(0, sizes["i"], rows):
        i = torch.arange(first, min(first + rows, sizes["i"]), device=device)[:, None]
        shape = (len(i), sizes["j"])
        # A constant predicate is no tensor.
        total += int(torch.broadcast_to(torch.as_tensor(seen(i, keys), device=device), shape).sum())
    return total
