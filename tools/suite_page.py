"""A suite's results in, the page that tells of them out: Markdown.

What it says is made of the rows alone, and of a few facts of their run; it can be made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autosched.codegen.check import PEAK_FACTOR, REL_L2_BOUND
from autosched.datasets.suites import BEST, Suite
from autosched.tools.gpu_peers_table import PEERS, Kind
from autosched.tools.suite_report import (
    BEYOND_CACHE,
    Json,
    Result,
    label,
    number,
    short_table,
    table,
)

WORST = 10
_BOUNDS_SHOWN = ("float32", "bfloat16")
_UNITS = {"copy": "TB/s", "read": "TB/s"}  # of ceilings; all others are TFLOP/s


def document(suite: Suite, results: Sequence[Result], facts: Json) -> str:
    """The whole report. facts: command, when, device, versions."""
    parts = [f"# {suite.title}", _preface(results, facts), short_table(suite, results)]
    parts += _section(f"The {WORST} rows where ours falls behind most", _worst(results))
    parts += _section("Tuning time", _tuning(results))
    for group in suite.groups.values():
        mine = [r for r in results if r.group == group.name]
        if mine:
            parts += [f"## {group.title}", _group_table(mine)]
    missing = [(label(r), n, w) for r in results for n, w in r.refused()]
    noted = [(label(r), str(r.data["note"])) for r in results if r.data.get("note")]
    for title, heads, rows in (
        ("Peers without a time, and why", ("row", "peer", "why"), missing),
        ("Rows with a note", ("row", "note"), noted),
    ):
        parts += _section(title, table(heads, rows) if rows else "")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _section(title: str, text: str) -> list[str]:
    """Nothing of what is empty."""
    return [f"## {title}", text] if text else []


def _preface(results: Sequence[Result], facts: Json) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in facts["versions"].items())
    bounds = ", ".join(f"{dtype} {REL_L2_BOUND[dtype]:g}" for dtype in _BOUNDS_SHOWN)
    return "\n".join([
        f"Made by `{facts['command']}` on {facts['when']}: {facts['device']}; {versions}.",
        *_ceilings(results), "",
        "Ours is the fastest, in a short race, of the schedules that the logs know best and of "
        "the cost model's pick (\"by\" says whose it was). Times are medians over the rounds of "
        "one race, in which ours and all peers take turns on the same tensors, as replays of CUDA "
        "graphs where nothing else is said; µs are warm (the same buffers again and again) and, "
        "in the second column, cold (other data, more than four times the second-level cache, "
        "are read before each run). Ratios are a peer's time over ours, the median of the rounds "
        "and its quartiles: above 1 ours is faster. A rate in TB/s counts every operand and "
        "result once, by the warm time where they are more than "
        f"{BEYOND_CACHE / 1e6:.0f} MB and else by the cold one, which the cell says; its ceiling "
        "is a copy of 4 GiB, read and written bytes together. Every answer was compared with "
        "float64 on random data of several scales, ours and the peers' (of one scale where the "
        "reference takes seconds, and in a sample of the rows where it would take more than a "
        "few): relative L2 error at most "
        f"{bounds}, and no element off by more than {PEAK_FACTOR:g} times that.",
    ])  # fmt: skip


def _ceilings(results: Sequence[Result]) -> Iterator[str]:
    """A line for each GPU of the run."""
    found = {int(r.data.get("gpu", 0)): r.data.get("ceilings", {}) for r in results}
    for gpu, ceilings in sorted(found.items()):
        told = ", ".join(f"{n} {v:.4g} {_UNITS.get(n, 'TFLOP/s')}" for n, v in ceilings.items())
        yield f"Ceilings of the same run{f', GPU {gpu}' if len(found) > 1 else ''}: {told}."


def _worst(results: Sequence[Result]) -> str:
    """The rows with the lowest ratios beside the fastest peer."""
    timed = [(x, r) for r in results if (x := r.ratio(BEST)) is not None]
    rows = [
        (r.data["row"]["group"], label(r), number(r.us(), ".1f"), _fastest(r),
         str((r.ours or {}).get("by", "")))
        for _, r in sorted(timed, key=lambda pair: pair[0].median)[:WORST]
    ]  # fmt: skip
    return table(("group", "row", "ours µs", "the fastest", "by"), rows) if rows else ""


def _fastest(r: Result) -> str:
    """The fastest peer of a row, and its time over ours."""
    found = r.ratio(BEST)
    return "" if found is None else f"{r.against(BEST)} {found}"


# ---- tuning ------------------------------------------------------------------------------------


def _tuning(results: Sequence[Result]) -> str:
    """Seconds of searches and what they found, for rows that were searched for live."""
    rows = [r for r in results if r.tuned is not None]
    if not rows:
        return ""
    names = [n for n in _tuned_peers(rows) if any(n in r.data["peer_s"] for r in rows)]
    heads = ("row", "ours s", "tried", "ours µs", "ours at its best µs",
             *(h for n in names for h in (f"{n} s", "our seconds / its", "its µs / ours")))
    return "\n".join([
        "Ours is searched for live: from the definition alone, by a cost model that has seen none "
        "of the suite's rows that are listed here, with builds of its own. Seconds are by the "
        "clock and count the space, the reference, builds, checks, measurements and the model's "
        "fits; not the start of the processes, nor the model's training on the package's logs. A "
        "peer's are those to its first answer, in a process that has compiled before, with empty "
        "caches. Ours at its best is the row of the tables below.", "",
        table(heads, [_tuning_cells(r, names) for r in rows]),
    ])  # fmt: skip


def _tuned_peers(results: Sequence[Result]) -> list[str]:
    return [n for n, p in PEERS.items() if p.kind is Kind.TUNED
            and any(n in r.data["row"]["peers"] for r in results)]  # fmt: skip


def _tuning_cells(r: Result, names: Sequence[str]) -> tuple[str, ...]:
    tuned = r.tuned or {}
    us = Result({**r.data, "ours": tuned}).us() if "warm_us" in tuned else None
    cells = [label(r), number(tuned["seconds"], ".1f"), str(tuned["tried"]), number(us, ".1f"),
             number(r.us(), ".1f")]  # fmt: skip
    for name in names:
        seconds = r.data["peer_s"].get(name)
        cells += [number(seconds, ".1f"),
                  "" if seconds is None else number(tuned["seconds"] / seconds),
                  str(r.tuned_ratio(name) or "")]  # fmt: skip
    return tuple(cells)


# ---- a group -----------------------------------------------------------------------------------


def _group_table(results: Sequence[Result]) -> str:
    names = [n for n in PEERS if any(n in r.data["row"]["peers"] for r in results)]
    tuned = _tuned_peers(results)
    heads = ("row", "ours µs", "cold µs", "rate", "of ceiling", "the fastest", *names, "error",
             "by", *(f"{n} s" for n in tuned))  # fmt: skip
    return table(heads, [_cells(r, names, tuned) for r in results])


def _cells(r: Result, names: Sequence[str], tuned: Sequence[str]) -> tuple[str, ...]:
    rate, ours = r.rate(), r.ours or {}
    return (
        label(r), number(r.us(), ".1f") + _how(ours), number(r.us("cold_us"), ".1f"), rate.text,
        number(rate.share, ".0%"), r.against(BEST) or "", *(_peer_cell(r, n) for n in names),
        number(ours.get("rel_l2"), ".1e"), str(ours.get("by", "")),
        *(number(r.data.get("peer_s", {}).get(n), ".1f") for n in tuned),
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
