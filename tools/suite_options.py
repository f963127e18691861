"""What the command line says of a suite's run in, the rows and peers that it means out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autosched.datasets.suites import Suite, SuiteRow, in_turn
from autosched.tools.gpu_peers_table import PEERS
from autosched.tools.suite_report import table


class SuiteBenchError(ValueError):
    """A user's mistake, or a machine that can't do it: one message with the way out."""


@dataclass(frozen=True)
class How:
    """What counts as ours. tune_s: to search for each row; model_only: no logs, no search."""

    tune_s: float = 0.0
    model_only: bool = False


@dataclass(frozen=True)
class Options:
    """One run. rows: parts of names; peers: names; both empty for all. command: for the report."""

    out: Path
    suite: str = "dense"
    minutes: float = 25.0
    rows: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    how: How = field(default_factory=How)
    store: Path | None = None
    write_docs: Path | None = None
    build_only: bool = False
    scratch: Path | None = None
    target: str = "sm_90"
    device: str = "cuda"
    seed: int = 0
    rounds: int = 15
    command: str = "autosched bench --suite dense"

    @property
    def signature(self) -> dict[str, Any]:
        """What a row's result depends on: one of another run that differs is not taken over."""
        return {"target": self.target, "device": self.device, "seed": self.seed,
                "tune_s": self.how.tune_s, "model_only": self.how.model_only,
                "build_only": self.build_only, "peers": list(self.peers)}  # fmt: skip


def select(chosen: Suite, options: Options) -> tuple[SuiteRow, ...]:
    """The rows that match one of the patterns, with the peers that are wanted.

    Raises: SuiteBenchError where a pattern matches nothing.
    """
    every = in_turn(g.rows for g in chosen.groups.values())
    for pattern in options.rows:
        if not any(pattern in r.name for r in every):
            raise SuiteBenchError(f"no row of the suite {chosen.name} is called {pattern!r}: "
                                  "--plan lists them")  # fmt: skip
    if unknown := [p for p in options.peers if p not in PEERS]:
        raise SuiteBenchError(f"no peer is called {unknown[0]!r}; there are: {', '.join(PEERS)}")
    rows = chosen.rows
    if options.rows:
        rows = tuple(r for r in every if any(p in r.name for p in options.rows))
    if options.peers:
        kept = set(options.peers)
        rows = tuple(replace(r, peers=tuple(p for p in r.peers if p in kept)) for r in rows)
    return rows


def plan_table(rows: Sequence[SuiteRow]) -> str:
    """The rows and their peers, and what these are."""
    cells = [(r.name, r.source, ", ".join(r.peers)) for r in rows]
    words = [(n, p.words, p.kind.value) for n, p in PEERS.items()
             if any(n in r.peers for r in rows)]  # fmt: skip
    return "\n".join((table(("row", "of", "peers"), cells), table(("peer", "is", "kind"), words)))
