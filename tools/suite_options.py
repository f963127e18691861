"""What the command line says of a suite's run in, the rows and peers that it means out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autosched.datasets.suites import Suite, SuiteRow, in_turn, suite
from autosched.tools.gpu_peers_table import PEERS
from autosched.tools.suite_report import table


class SuiteBenchError(ValueError):
    """A user's mistake, or a machine that can't do it: one message with the way out."""


@dataclass(frozen=True)
class How:
    """What counts as ours. model_only: the model's pick and no logs; tune_s: seconds to search
    live, from nothing, for each row that `tune_rows` names by a part of its name or by a peer
    (all rows where it is empty)."""

    tune_s: float = 0.0
    model_only: bool = False
    tune_rows: tuple[str, ...] = ()

    def tunes(self, row: SuiteRow) -> bool:
        """Whether a row is searched for live."""
        named = not self.tune_rows or any(n in row.name or n in row.peers for n in self.tune_rows)
        return self.tune_s > 0 and named


@dataclass(frozen=True)
class Options:
    """One run. rows: parts of names; peers: names; both empty for all. stores: files of records to
    choose from; gpus: to share rows out to, 0 for all there are; command: for the report."""

    out: Path
    suite: str = "dense"
    minutes: float = 25.0
    rows: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    how: How = field(default_factory=How)
    stores: tuple[Path, ...] = ()
    write_docs: Path | None = None
    build_only: bool = False
    scratch: Path | None = None
    target: str = "sm_90"
    device: str = "cuda"
    seed: int = 0
    rounds: int = 15
    gpus: int = 0
    command: str = "autosched bench --suite dense"

    @property
    def signature(self) -> dict[str, Any]:
        """What a row's result depends on: one of another run that differs is not taken over."""
        how = self.how
        return {"target": self.target, "device": self.device, "seed": self.seed,
                "tune_s": how.tune_s, "tune_rows": list(how.tune_rows),
                "model_only": how.model_only, "build_only": self.build_only,
                "peers": list(self.peers)}  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that `from_json` reads."""
        data = asdict(self)
        data |= {n: str(data[n].absolute()) for n in _PATHS if data[n] is not None}
        return {**data, "stores": [str(p.absolute()) for p in self.stores]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Options:
        """The options that `to_json` wrote."""
        how = data["how"]
        return cls(**{
            **data, **{n: Path(data[n]) for n in _PATHS if data[n] is not None},
            "stores": tuple(map(Path, data["stores"])), "rows": tuple(data["rows"]),
            "peers": tuple(data["peers"]), "how": How(**{**how, "tune_rows":
                                                         tuple(how["tune_rows"])}),
        })  # fmt: skip


_PATHS = ("out", "write_docs", "scratch")


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


def select_left(options: Options, names: Sequence[str]) -> tuple[SuiteRow, ...]:
    """The rows of these names, in the order of the suite."""
    wanted = set(names)
    return tuple(r for r in select(suite(options.suite), options) if r.name in wanted)


def plan_table(rows: Sequence[SuiteRow]) -> str:
    """The rows and their peers, and what these are."""
    cells = [(r.name, r.source, ", ".join(r.peers)) for r in rows]
    words = [(n, p.words, p.kind.value) for n, p in PEERS.items()
             if any(n in r.peers for r in rows)]  # fmt: skip
    return "\n".join((table(("row", "of", "peers"), cells), table(("peer", "is", "kind"), words)))
