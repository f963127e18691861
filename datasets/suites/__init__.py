"""A suite's name in, its rows out: programs at the sizes of real models, and their peers by name.

    for row in suite("dense").rows:
        row.name, row.group, row.family, row.source   # "gemm_models.m16n128256k4096.nk.bf16", ...
        row.program()                                 # the algebra; its .key is the workload's
        row.arrays()                                  # inputs that have values of their own
        row.peers                                     # names that tools.peer_table knows

A suite is a TOML file of this folder; the comment at its top says what it may hold. Rows come in
the order in which they are measured: groups take turns, so that a run cut short has seen all.
"""

from __future__ import annotations

import functools
import itertools
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from autosched.datasets.suites.definitions import DEFINITIONS as DENSE
from autosched.datasets.suites.definitions import FP8
from autosched.datasets.suites.rowwise import ROWWISE
from autosched.datasets.workloads.masks import DRAWS
from autosched.ir.node import Program

__all__ = ["BEST", "Group", "Suite", "SuiteError", "SuiteRow", "suite", "suites"]

FOLDER = Path(__file__).resolve().parent
SCHEMA = 1
DEFINITIONS = {**DENSE, **ROWWISE}
BEST = "best"  # of all peers: in `Group.targets`
_NO_SIZES = frozenset({"of", "peers", "define", "cut", "docs"})
_ORDER = ("m", "n", "k", "b", "h", "g", "t", "i", "j", "d")  # of sizes in a name
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", FP8: "fp8"}
_Facts = Mapping[str, Any]


class SuiteError(ValueError):
    """A suite that is not there, or a file that does not say what a suite is."""


@dataclass(frozen=True)
class SuiteRow:
    """One workload of a suite.

    family: the definition's name; source: whose layer it is; sizes: the definition's arguments;
    docs: documents that are packed, of random lengths; cut: or these very lengths.
    """

    name: str
    group: str
    family: str
    source: str
    sizes: _Facts
    peers: tuple[str, ...] = ()
    docs: int = 0
    cut: tuple[int, ...] = ()

    def program(self) -> Program:
        """The algebra of this row, with one output."""
        return DEFINITIONS[self.family](**self.sizes)

    def arrays(self) -> dict[str, np.ndarray]:
        """Inputs whose values are the row's own (its documents), by name."""
        drawn: dict[str, np.ndarray] = {}
        for node in self.program().inputs:
            name, dims, dtype, _ = node.attr
            if name in DRAWS:
                shape = tuple(int(extent) for _, extent in dims)
                drawn[name] = self._drawn(name, shape).astype(dtype)
        return drawn

    def _drawn(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if self.cut and name in ("start", "end"):
            edges = np.cumsum((0, *self.cut))
            return np.repeat(edges[:-1] if name == "start" else edges[1:], self.cut)
        sizes = {**self.sizes, **({"docs": self.docs} if self.docs else {})}
        return np.asarray(DRAWS[name](np.random.default_rng(42), shape, sizes))

    @property
    def mask(self) -> str:
        """Name of the mask; "" where the family has none."""
        return str(self.sizes.get("mask", "full")) if self.family == "attention" else ""

    @property
    def dtype(self) -> str:
        """What operands are stored in."""
        return FP8 if "scales" in self.sizes else str(self.sizes.get("dtype", "bfloat16"))

    def to_json(self) -> dict[str, Any]:
        """What peers and reports read of it, as plain JSON."""
        return {"name": self.name, "group": self.group, "family": self.family,
                "source": self.source, "sizes": dict(self.sizes), "dtype": self.dtype,
                "mask": self.mask, "cut": list(self.cut), "peers": list(self.peers)}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Rows that are summed up together. targets: by a peer's name or BEST, the geometric mean
    that its time over ours is to have, and the worst row's; hidden: only where asked for."""

    name: str
    title: str
    rows: tuple[SuiteRow, ...] = field(repr=False)
    targets: Mapping[str, tuple[float, ...]]
    hidden: bool = False


@dataclass(frozen=True)
class Suite:
    """A suite's groups by name."""

    name: str
    title: str
    groups: Mapping[str, Group]

    @property
    def rows(self) -> tuple[SuiteRow, ...]:
        """Every row but the hidden groups', the groups in turn."""
        return in_turn(g.rows for g in self.groups.values() if not g.hidden)


def in_turn(groups: Any) -> tuple[SuiteRow, ...]:
    """The first of each group, then the second of each, and so on."""
    layers = itertools.zip_longest(*groups)
    return tuple(row for layer in layers for row in layer if row is not None)


def suites() -> tuple[str, ...]:
    """Names of the suites."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.toml")))


@functools.cache
def suite(name: str) -> Suite:
    """The suite of that name. Raises: SuiteError with the way out."""
    if name not in suites():
        raise SuiteError(f"no suite is called {name!r}; there is: {', '.join(suites())}")
    data = tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))
    if data["schema"] != SCHEMA:
        raise SuiteError(f"suite {name} has schema {data['schema']}, this autosched reads {SCHEMA}")
    groups = {key: _group(key, facts) for key, facts in data["groups"].items()}
    names = Counter(row.name for g in groups.values() for row in g.rows)
    if twice := [n for n, count in names.items() if count > 1]:
        raise SuiteError(f"suite {name} has rows of one name: {', '.join(twice)}")
    return Suite(name, data["title"], MappingProxyType(groups))


def _group(name: str, facts: _Facts) -> Group:
    targets = {peer: tuple(some) for peer, some in facts.get("targets", {BEST: ()}).items()}
    return Group(
        name, facts["title"], tuple(_row(name, facts, row) for row in facts["rows"]),
        MappingProxyType(targets), facts.get("hidden", False),
    )  # fmt: skip


def _row(group: str, common: _Facts, row: _Facts) -> SuiteRow:
    given = {**common.get("sizes", {}), **row}
    family, cut = row.get("define", common["define"]), tuple(given.get("cut", ()))
    sizes = {k: v for k, v in given.items() if k not in _NO_SIZES}
    if cut and "t" in sizes:
        raise SuiteError(f"group {group}: a row has tokens and lengths of documents; give one")
    if tokens := (sizes.pop("t", 0) or sum(cut)):
        sizes |= {"i": tokens, "j": tokens}
    peers = (*common.get("peers", ()), *row.get("peers", ()))
    return SuiteRow(_name(group, sizes, cut), group, family, row["of"], MappingProxyType(sizes),
                    peers, given.get("docs", 0), cut)  # fmt: skip


def _name(group: str, sizes: _Facts, cut: Sequence[int]) -> str:
    """Numbers in one word, then whatever else tells rows of a group apart."""
    numbers = {k: v for k, v in sizes.items() if type(v) is int}
    if "i" in numbers and numbers["i"] == numbers["j"]:
        numbers["t"] = numbers.pop("i")
        del numbers["j"]
    numbers = {k: numbers[k] for k in sorted(numbers, key=_place)}
    words = [v.replace(" ", "_") for k, v in sizes.items() if isinstance(v, str) and k != "dtype"]
    flags = [k for k, v in sizes.items() if v is True]
    dtype = _SHORT[FP8 if "scales" in sizes else sizes.get("dtype", "bfloat16")]
    documents = [f"docs{len(cut)}"] if cut else []
    joined = "".join(f"{k}{v}" for k, v in numbers.items())
    return ".".join([group, joined, *words, *flags, *documents, dtype])


def _place(size: str) -> int:
    return _ORDER.index(size) if size in _ORDER else len(_ORDER)
