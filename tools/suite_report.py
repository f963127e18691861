"""Rows of a suite as they were raced in, ratios, means and Markdown tables out.

A ratio is a peer's time over ours, round by round: above 1 ours is faster. Its spread is that of
the paired ratios of the rounds, never of two lists of times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from autosched.codegen.check import PEAK_FACTOR, REL_L2_BOUND
from autosched.datasets.suites import BEST, Group, Suite
from autosched.tools.gpu_peers_table import PEERS, Kind

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of paired ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(peer_us: Sequence[float], ours_us: Sequence[float]) -> Ratio:
    """Of the rounds of two runners of one race."""
    paired = [p / o for p, o in zip(peer_us, ours_us, strict=True)]
    if len(paired) == 1:
        return Ratio(paired[0], paired[0], paired[0])
    low, middle, high = quantiles(paired, n=4, method="inclusive")
    return Ratio(middle, low, high)


def geometric_mean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


@dataclass(frozen=True, eq=False)
class Result:
    """A row of `rows.jsonl`: what `suite_bench` writes once the row is done."""

    data: Json

    @property
    def name(self) -> str:
        return str(self.data["row"]["name"])

    @property
    def group(self) -> str:
        return str(self.data["row"]["group"])

    @property
    def ours(self) -> Json | None:
        found: Json | None = self.data.get("ours")
        return found

    @property
    def peers(self) -> Json:
        found: Json = self.data.get("peers", {})
        return found

    def us(self, which: str = "warm_us") -> float | None:
        """Our median over the rounds."""
        return None if self.ours is None else _median(self.ours[which])

    def peer_us(self, name: str) -> float | None:
        return _median(self.peers[name]["warm_us"]) if name in self.peers else None

    def against(self, wanted: str) -> str | None:
        """The peer of that name, or the fastest for BEST; None where it gave no time."""
        if wanted != BEST:
            return wanted if wanted in self.peers else None
        return min(self.peers, key=lambda n: median(self.peers[n]["warm_us"]), default=None)

    def ratio(self, wanted: str) -> Ratio | None:
        name = self.against(wanted)
        if name is None or self.ours is None or self.ours["how"] == "host":
            return None  # a host's clock says nothing of kernels
        return ratio(self.peers[name]["warm_us"], self.ours["warm_us"])

    def rate(self) -> tuple[str, float | None]:
        """TFLOP/s or TB/s, whichever ceiling of its run is the nearer one, and the share of it
        that was reached; ("", None) without a time."""
        ceilings: Mapping[str, float] = self.data.get("ceilings", {})
        us, row = self.us(), self.data["row"]
        if us is None:
            return "", None
        flops, moved = self.data["flops"] / us / 1e6, self.data["bytes"] / us / 1e6
        most, copy = ceilings.get(row["dtype"]), ceilings.get("copy")
        shares = (flops / most if most else 0.0, moved / copy if copy else 0.0)
        by_flops = shares[0] >= shares[1]
        text = f"{flops:.0f} TFLOP/s" if by_flops else f"{moved:.2f} TB/s"
        return text, max(shares) or None

    def refused(self) -> Iterator[tuple[str, str]]:
        """Peers without a time, and why."""
        yield from self.data.get("refused", {}).items()


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


# ---- tables ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """A group beside one peer, in one line. done: rows with a ratio; targets: what the suite asks
    of the mean and of the worst row, as far as it says."""

    group: Group
    peer: str
    mean: float | None
    worst: Result | None
    done: int
    targets: tuple[float, ...]

    @property
    def worst_ratio(self) -> float | None:
        found = None if self.worst is None else self.worst.ratio(self.peer)
        return None if found is None else found.median

    def cells(self) -> tuple[str, ...]:
        first, second = (*self.targets, None, None)[:2]
        return (
            self.group.title, f"{self.done} of {len(self.group.rows)}",
            "the fastest" if self.peer == BEST else self.peer, _number(self.mean),
            _number(first), _number(self.worst_ratio), _number(second),
            "" if self.worst is None else label(self.worst),
        )  # fmt: skip


SUMMARY = ("group", "rows", "peer", "geometric mean", "target", "worst", "target", "worst row")


def summaries(suite: Suite, results: Sequence[Result]) -> list[Summary]:
    """Every group that is not hidden or has results, beside each peer that it has a target for."""
    found = []
    for group in suite.groups.values():
        mine = [r for r in results if r.group == group.name]
        if mine or not group.hidden:
            found += [_summary(group, mine, *target) for target in group.targets.items()]
    return found


def _summary(
    group: Group, results: Sequence[Result], peer: str, targets: tuple[float, ...]
) -> Summary:
    timed = [(x.median, r) for r in results if (x := r.ratio(peer)) is not None]
    worst = min(timed, key=lambda pair: pair[0], default=None)
    mean = geometric_mean([value for value, _ in timed])
    return Summary(group, peer, mean, worst[1] if worst else None, len(timed), targets)


def label(result: Result) -> str:
    """A row's source and sizes, for people."""
    row = result.data["row"]
    name = row["name"].removeprefix(f"{row['group']}.")
    return f"{row['source']}: {name}"


def short_table(suite: Suite, results: Sequence[Result]) -> str:
    """What is printed last."""
    return table(SUMMARY, [s.cells() for s in summaries(suite, results)])


def document(suite: Suite, results: Sequence[Result], facts: Json) -> str:
    """The whole report. facts: command, when, device, versions, ceilings, protocol."""
    parts = [f"# {suite.title}", _preface(facts), short_table(suite, results)]
    for group in suite.groups.values():
        mine = [r for r in results if r.group == group.name]
        if mine:
            parts += [f"## {group.title}", _group_table(mine)]
    missing = [(label(r), n, w) for r in results for n, w in r.refused()]
    if missing:
        parts += ["## Peers without a time, and why", table(("row", "peer", "why"), missing)]
    noted = [(label(r), str(r.data["note"])) for r in results if r.data.get("note")]
    if noted:
        parts += ["## Rows with a note", table(("row", "note"), noted)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _preface(facts: Json) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in facts["versions"].items())
    ceilings = ", ".join(
        f"{name} {value:.3g} {'TB/s' if name == 'copy' else 'TFLOP/s'}"
        for name, value in facts.get("ceilings", {}).items()
    )
    bounds = ", ".join(f"{dtype} {REL_L2_BOUND[dtype]:g}" for dtype in _BOUNDS_SHOWN)
    return "\n".join([
        f"Made by `{facts['command']}` on {facts['when']}: {facts['device']}; {versions}.",
        f"Ceilings of the same run: {ceilings or 'none'}.", "",
        "Times are medians over the rounds of one race, in which ours and all peers take turns on "
        "the same tensors, as replays of CUDA graphs where nothing else is said; µs are warm (the "
        "same buffers again and again) and, in the second column, cold (second-level cache "
        "written over). Ratios are a peer's time over ours, the median of the rounds and its "
        "quartiles: above 1 ours is faster. Every answer was compared with float64 on random "
        "data of several scales, ours and the peers': relative L2 error at most "
        f"{bounds}, and no element off by more than {PEAK_FACTOR:g} times that.",
    ])  # fmt: skip


_BOUNDS_SHOWN = ("float32", "bfloat16")


def _group_table(results: Sequence[Result]) -> str:
    names = [n for n in PEERS if any(n in r.data["row"]["peers"] for r in results)]
    tuned = [n for n in names if PEERS[n].kind is Kind.TUNED]
    heads = ("row", "ours µs", "cold µs", "rate", "of ceiling", *names, "error", "by",
             *(["search s"] if any(r.data.get("ours_s") for r in results) else []),
             *(f"{n} s" for n in tuned))  # fmt: skip
    searched = "search s" in heads
    return table(heads, [_cells(r, names, tuned, searched) for r in results])


def _cells(
    r: Result, names: Sequence[str], tuned: Sequence[str], searched: bool
) -> tuple[str, ...]:
    rate, share = r.rate()
    ours = r.ours or {}
    return (
        label(r), _number(r.us(), ".1f") + _how(ours), _number(r.us("cold_us"), ".1f"), rate,
        "" if share is None else f"{share:.0%}", *(_peer_cell(r, n) for n in names),
        _number(ours.get("rel_l2"), ".1e"), str(ours.get("by", "")),
        *([_number(r.data.get("ours_s"), ".1f")] if searched else []),
        *(_number(r.data.get("peer_s", {}).get(n), ".1f") for n in tuned),
    )  # fmt: skip


def _peer_cell(r: Result, name: str) -> str:
    if name not in r.data["row"]["peers"]:
        return ""
    if name not in r.peers:
        return "none"
    found, us = r.ratio(name), r.peer_us(name)
    return (f"{us:.1f} µs" if found is None else str(found)) + _how(r.peers[name])


def _how(runner: Json) -> str:
    return " (launched)" if runner.get("how") == "launches" else ""


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(c.replace('|', '/') for c in cells)} |\n" for cells in lines)
