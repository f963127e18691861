"""What an axis or a state is bound to while a value is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from autosched.ir.arrays import Named
from autosched.ir.gather import Dim


@dataclass(frozen=True, slots=True)
class Bound:
    """A value with its identity and the depth of the frame it depends on.

    span: for a step of a loop, all its coordinates, of which this is number `position`;
    at: for the state of a fold, what its axes were bound to; `mixed` are those at which the body
    also reads it elsewhere: along them it has all its elements, whatever is evaluated.
    """

    named: Named
    uid: int
    level: int
    span: Bound | None = None
    position: int = 0
    at: Mapping[str, Bound] = field(default_factory=dict)
    mixed: frozenset[str] = frozenset()


Env = Mapping[str, Bound]


def sizes_of(bounds: Iterable[Bound]) -> dict[Dim, int]:
    """The length of every dimension among these."""
    return {d: n for b in bounds for d, n in zip(b.named.dims, b.named.data.shape)}
