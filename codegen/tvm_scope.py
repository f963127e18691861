"""Where the TVM emitter is: the code block, what each axis is bound to, and the values there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autosched.codegen import tvm_api as tir
from autosched.ir.node import Node

Expr = Any


@dataclass
class Scope:
    """Where code goes, what the axes are bound to here, and the values already there."""

    block: Any
    axes: dict[str, Expr]
    unrolled: dict[str, int] = field(default_factory=dict)
    lane: str | None = None
    lanes: int = 1
    memo: dict[Any, Expr] = field(default_factory=dict)
    states: dict[str, dict[Any, Any]] = field(default_factory=dict)
    done: set[Node] = field(default_factory=set)  # loops whose results are in the memo

    def inner(self, **changes: Any) -> Scope:
        values = {
            "block": tir.Block(),
            "axes": dict(self.axes),
            "unrolled": dict(self.unrolled),
            "lane": self.lane,
            "lanes": self.lanes,
            "memo": dict(self.memo),
            "states": dict(self.states),
            "done": set(self.done),
        }
        return Scope(**{**values, **changes})
