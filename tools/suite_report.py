"""Rows of a suite as they were raced in, ratios, means and a summary out.

A ratio is a peer's time over ours, round by round: above 1 ours is faster. Its spread is that of
the paired ratios of the rounds, never of two lists of times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from autosched.datasets.suites import BEST, Group, Suite

Json = Mapping[str, Any]
BEYOND_CACHE = 4 * 60e6  # bytes: a warm run of so many finds next to nothing in the cache


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


@dataclass(frozen=True)
class Rate:
    """TFLOP/s or TB/s in words, and the share of its run's ceiling; nothing without a time."""

    text: str = ""
    share: float | None = None


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

    @property
    def tuned(self) -> Json | None:
        """What a live search came to; with the times of its best, if that was right."""
        found: Json | None = self.data.get("tuned")
        return found

    def ratio(self, wanted: str) -> Ratio | None:
        """A peer's time over ours."""
        return self._ratio(wanted, self.ours)

    def tuned_ratio(self, wanted: str) -> Ratio | None:
        """A peer's time over that of what the live search found."""
        return self._ratio(wanted, self.tuned if "warm_us" in (self.tuned or {}) else None)

    def _ratio(self, wanted: str, ours: Json | None) -> Ratio | None:
        name = self.against(wanted)
        if name is None or ours is None or ours["how"] == "host":
            return None  # a host's clock says nothing of kernels
        return ratio(self.peers[name]["warm_us"], ours["warm_us"])

    def rate(self) -> Rate:
        """Whichever of the two ceilings of its run is the nearer one."""
        ceilings: Mapping[str, float] = self.data.get("ceilings", {})
        us, row = self.us(), self.data["row"]
        if us is None:
            return Rate()
        # What lies in the second-level cache is not read from memory.
        cold = None if self.data["bytes"] >= BEYOND_CACHE else self.us("cold_us")
        flops, moved = self.data["flops"] / us / 1e6, self.data["bytes"] / (cold or us) / 1e6
        most, copy = ceilings.get(row["dtype"]), ceilings.get("copy")
        shares = (flops / most if most else 0.0, moved / copy if copy else 0.0)
        if shares[0] >= shares[1]:
            return Rate(f"{flops:.0f} TFLOP/s", shares[0] or None)
        return Rate(f"{moved:.2f} TB/s" + (", cold" if cold else ""), shares[1])

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
            "the fastest" if self.peer == BEST else self.peer, number(self.mean),
            number(first), number(self.worst_ratio), number(second),
            "" if self.worst is None else label(self.worst),
        )  # fmt: skip


SUMMARY = ("group", "rows", "peer", "geometric mean", "target", "worst", "target", "worst row")


def summaries(suite: Suite, results: Sequence[Result]) -> list[Summary]:
    """Every group that is not hidden or has results, beside each peer that it has a target for
    and beside the fastest of all."""
    found = []
    for group in suite.groups.values():
        mine = [r for r in results if r.group == group.name]
        if mine or not group.hidden:
            targets = {**group.targets, BEST: group.targets.get(BEST, ())}
            found += [_summary(group, mine, *target) for target in targets.items()]
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


def number(value: float | None, form: str = ".2f") -> str:
    """A cell; empty for what is not known."""
    return "" if value is None else format(value, form)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(c.replace('|', '/') for c in cells)} |\n" for cells in lines)
