"""What rules exchange: an Action (plain data), an Illegal (why an action does not apply).

`args` values are JSON: strings, ints, or lists of them. A string that starts with "$" names a
knob: in a sketch it stands for a size that the schedule fills in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from autosched.ir.node import Extent
from autosched.ir.ops import knob

Json: TypeAlias = "str | int | float | bool | tuple[Json, ...] | None"


@dataclass(frozen=True, eq=False)
class Action:
    """One step of a schedule: the rule's name and its arguments, whose order is for readers: JSON
    does not keep it, so equality does not look at it."""

    rule: str
    args: tuple[tuple[str, Json], ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Action):
            return NotImplemented
        return self.rule == other.rule and frozenset(self.args) == frozenset(other.args)

    def __hash__(self) -> int:
        return hash((self.rule, frozenset(self.args)))

    def __getitem__(self, name: str) -> Any:
        return dict(self.args)[name]

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.args).get(name, default)

    def size(self, name: str) -> Extent:
        """An argument that is a size: a number, or the knob that it names."""
        value = self[name]
        return knob(value[1:]) if isinstance(value, str) else int(value)

    def bind(self, knobs: dict[str, int]) -> Action:
        """The action with the knobs in `knobs` filled in."""
        return Action(self.rule, tuple((k, _bind(v, knobs)) for k, v in self.args))

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.rule, **{k: _plain(v) for k, v in self.args}}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Action:
        return act(**data)

    def __str__(self) -> str:
        return f"{self.rule}({', '.join(f'{k}={_plain(v)}' for k, v in self.args)})"


@dataclass(frozen=True)
class Illegal:
    """An action that does not apply: `code` names the rule's condition, `why` says it."""

    code: str
    why: str


def act(rule: str, **args: Any) -> Action:
    return Action(rule, tuple((k, _frozen(v)) for k, v in args.items()))


def _bind(value: Any, knobs: dict[str, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_bind(v, knobs) for v in value)
    if isinstance(value, str) and value.startswith("$"):
        return knobs.get(value[1:], value)
    return value


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
