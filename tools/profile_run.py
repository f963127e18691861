"""Workloads, builders and GPUs in, a filled log out: the loop of a profiling run.

Candidates are asked for in rounds, every workload's first before anyone's second, as long as
builders and GPUs have hands free; what comes back is stored at once. Nothing waits for anything
that it does not need: while one workload's moves are built, others are measured.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import Failed, Outcome
from autosched.codegen.measure import Timing
from autosched.ir.record import Status, json_key
from autosched.tools.gpu_lab import GpuLimits, Setup, reason
from autosched.tools.profile_board import Batch, Board, Item, Line
from autosched.tools.profile_build import PLAN_FILE
from autosched.tools.profile_builds import Builds, ProfileJobs, refuse_full_disk
from autosched.tools.profile_design import Shares
from autosched.tools.profile_gpus import Gpus
from autosched.tools.profile_log import Attempt, Origin, RunLog, noise
from autosched.tools.profile_rank import weights_name

AHEAD = 4000  # candidates that are on their way at most
AGAIN_S = 45.0  # after which a kernel may be timed again: another time, another neighbour
FIT_S = 300.0  # that the model of the shipped logs may take
ROW_S = 2e-4  # that writing the whole log takes for each of its rows
LEADERS = 8  # measured candidates that moves may start from


@dataclass(frozen=True)
class Options:
    """How a run goes. cache: folder of builds; pack: file of builds that were made ahead.

    rows: candidates of one workload at most; planned: of these, those that do not depend on what
    is measured; per_round: asked for at once; again: share that is timed twice; ranked: the heads
    by a model of the logs that come with the package, else by the analytic one; pack_bytes: of
    the pack, where it is filled; last_s: kept for what is on the GPUs, and for writing.
    """

    cache: Path
    pack: Path | None = None
    seconds: float = 600.0
    gpus: int = 1
    builders: int = 1
    rows: int = 1000
    planned: int = 400
    per_round: int = 24
    shares: Shares = field(default_factory=Shares)
    again: float = 0.02
    ranked: bool = True
    pack_bytes: int = 48 << 20
    last_s: float = 8.0


class Run:
    """One run; `run()` goes on until the time is up, everything is measured, or Ctrl-C."""

    def __init__(
        self, lines: Sequence[Line], setup: Setup, options: Options, log: RunLog | None,
        begun: float, *, jobs: ProfileJobs | None = None, limits: GpuLimits | None = None,
        env: Mapping[str, str] | None = None, toolchain: str = "",
        known: Iterable[tuple[str, str, float | None]] = (), say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        """begun: on the monotonic clock, when the run's seconds began to count.
        log: None for a run that only builds. env: of the processes that measure.
        known: workload, schedule's text and time of what need not be measured again."""
        self.lines, self.setup, self.options, self.log = lines, setup, options, log
        self.begun, self.say, self.toolchain = begun, say, toolchain
        left = [n for n, *_ in log.left_batches()] if log is not None else []
        self.board = Board(lines, max(left, default=-1) + 1)
        self.counts: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.watch: list[float] = []
        self.pairs: list[tuple[float, float]] = []
        self._again: list[tuple[float, int, Line, Item]] = []
        self._order = itertools.count()
        self._rng = random.Random(setup.seed)
        self._ranking: dict[str, str] | None = None if options.ranked else {}
        self._unranked: list[Line] = []
        self._tried: defaultdict[str, list[tuple[str, float | None]]] = defaultdict(list)
        for workload, text, us in known:
            self._tried[workload].append((text, us))
        functions, bounds = jobs or ProfileJobs(), limits or GpuLimits()
        # The processes of the GPUs take longest to start.
        self.gpus = None if log is None else Gpus(
            options.gpus, self.board, log, setup, jobs=functions, limits=bounds, env=dict(env or {})
        )  # fmt: skip
        self.builds = Builds(
            options.cache, options.pack, options.builders, filling=log is None, jobs=functions,
            limits=bounds, open_sizes=setup.open_sizes, built=self._built, failed=self._failed,
        )  # fmt: skip

    def run(self) -> None:
        """Raises: ProfileError, StoreError; what was measured is in the log then too."""
        try:
            self.builds.unpack()
            if self.gpus is not None:
                self.gpus.meet(self.say)
                self._recover()
            self.seconds["start"] = time.monotonic() - self.begun
            while self.left_s > self._last_s and not self._over():
                moved = self.builds.collect() | self._take_results()
                self._ask()
                self._repeat()
                if not moved:
                    time.sleep(0.003)
        except KeyboardInterrupt:
            self.say("interrupted: what was measured is stored; the same command goes on")
        finally:
            self._close()

    @property
    def left_s(self) -> float:
        return self.begun + self.options.seconds - time.monotonic()

    @property
    def _last_s(self) -> float:
        rows = self.counts["known"] + self.counts["measured"] + self.counts["not built"]
        return min(self.options.last_s, 0.15 * self.options.seconds) + ROW_S * rows

    def _over(self) -> bool:
        """Whether nothing is under way and nothing is left to ask for."""
        if self.builds.pack_bytes >= self.options.pack_bytes and self.log is None:
            self.say(f"the pack has its {self.options.pack_bytes >> 20} MiB")
            return True
        if self.builds.busy or self._again or not all(x.note or x.spent for x in self.lines):
            return False
        return not any((x.inflight or x.busy) and not x.note for x in self.lines)

    def _close(self) -> None:
        try:
            self.builds.close()
        finally:
            if self.gpus is not None:
                self.gpus.close(max(0.5, min(self.left_s - 0.5 * self._last_s, 10.0)))
                self._take_results()

    # -- asking ----------------------------------------------------------------------------

    def _ask(self) -> None:
        """Opens rounds while there are hands free."""
        size = self.options.per_round
        while self.builds.hungry and sum(x.inflight for x in self.lines) < AHEAD:
            free = [x for x in self.lines if x.open and x.inflight <= size // 2]
            line = min(free, default=None, key=lambda x: (len(x.asked), x.number))
            if line is None:
                return
            if line.plan is None:
                self._plan(line)
            elif len(line.asked) >= self.options.rows:
                line.spent = True
            else:
                self._round(line)

    def _plan(self, line: Line) -> None:
        name, options = self.plan_name(line), self.options
        if (known := self.builds.plans.get(name)) is not None:
            self._set_plan(line, json.loads(known))
            return
        if self._ranking is None:
            self._fit(line)
            return
        line.waiting = True
        heads = round(options.planned * options.shares.head)
        kwargs = {"folder": str(line.folder), "target": line.target, "seed": self.setup.seed,
                  "spread": options.planned - heads, "head": heads, **self._ranking}  # fmt: skip
        jobs = self.builds.jobs
        self.builds.submit(jobs.ranked_plan if self._ranking else jobs.plan, kwargs,
                           functools.partial(self._planned, line, name))  # fmt: skip

    def _fit(self, line: Line) -> None:
        """Has the model of the shipped logs made, unless a pack brings it; plans wait for it."""
        path, name = self.options.cache / "ranking.json", weights_name(line.target)
        if (known := self.builds.plans.get(name)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(known)
            self._ranking = {"model": str(path)}
            return
        if not self._unranked:
            then = functools.partial(self._fitted, path, name)
            kwargs = {"target": line.target, "path": str(path)}
            self.builds.submit(self.builds.jobs.fit, kwargs, then, FIT_S)
        line.waiting = True
        self._unranked.append(line)

    def _fitted(self, path: Path, name: str, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self.say("heads are ranked by the analytic model, since the logs' can't be made: "
                     f"{reason(outcome)[:200]}")  # fmt: skip
            self._ranking = {}
        else:
            self._ranking = {"model": str(path)}
            self.builds.keep_plan(name, json.loads(path.read_text("utf-8")))
        for line in self._unranked:
            line.waiting = False

    def plan_name(self, line: Line) -> str:
        """A plan's key: another version of the compiler, seed or share makes another plan."""
        options = self.options
        return json_key(repr((line.key, line.target, self.toolchain, self.setup.seed,
                              options.planned, options.shares.head, options.ranked)))

    def _planned(self, line: Line, name: str, outcome: Outcome) -> None:
        line.waiting = False
        if isinstance(outcome, Failed):
            line.note = f"no schedules: {reason(outcome)[:200]}"
            return
        self.builds.keep_plan(name, outcome.value)
        self._set_plan(line, outcome.value)

    def _set_plan(self, line: Line, plan: Mapping[str, Any]) -> None:
        (line.folder / PLAN_FILE).write_text(json.dumps(plan), "utf-8")  # for moves
        line.set_plan(plan)
        line.remember(self._tried.pop(line.key, ()))
        if not plan["sketches"]:
            line.note = "no schedules: no sketch fits this program"

    def _round(self, line: Line) -> None:
        size = min(self.options.per_round, self.options.rows - len(line.asked))
        spread, head, near = self.options.shares.counts(size, bool(line.times))
        if not (line.times and self.options.shares.near):
            self._lower(line, line.planned(spread, head), len(line.times))
            return
        line.waiting = True
        best = sorted(line.times.items(), key=lambda p: (p[1], p[0]))[:LEADERS]
        kwargs = {
            "folder": str(line.folder), "count": size, "seed": self.setup.seed + len(line.asked),
            "measured": [[n, list(values), us] for (n, values), us in best],
            "known": [[n, list(values)] for n, values in line.asked],
        }  # fmt: skip
        self.builds.submit(self.builds.jobs.propose, kwargs,
                           functools.partial(self._proposed, line, (spread, head, near),
                                             len(line.times)))  # fmt: skip

    def _proposed(
        self, line: Line, counts: tuple[int, int, int], known: int, outcome: Outcome
    ) -> None:
        """counts: of the round; known: results that there were when moves were asked for."""
        line.waiting = False
        if isinstance(outcome, Failed):
            line.note = f"no moves: {reason(outcome)[:200]}"
            return
        spread, head, near = counts
        moves = iter(outcome.value)
        items = _moved(line, moves, near)
        items += line.planned(spread + near - len(items), head)
        # Where the plan has come to its end, moves are all that is left.
        items += _moved(line, moves, sum(counts) - len(items))
        self._lower(line, items, known)

    def _lower(self, line: Line, items: Sequence[Item], known: int) -> None:
        """known: results that there were when these were asked for."""
        if items:
            self.builds.lower(line, items)
            return
        # Moves may come of what is still under way.
        line.dry = known
        line.spent = line.inflight == 0 and known == len(line.times)

    def _built(self, line: Line, item: Item) -> None:
        if self.log is None:
            line.inflight -= 1
            self.counts["built"] += 1
        else:
            self.board.put(line, [item])

    def _failed(self, line: Line, item: Item, status: Status, why: str) -> None:
        """Stores a candidate that never reached a GPU."""
        self.counts["not built"] += status is not Status.CANCELLED
        if self.log is not None and status is not Status.CANCELLED:
            attempt = Attempt(line.key, line.name, item.schedule, item.by, status, error=why,
                              estimate_us=item.estimate_us)  # fmt: skip
            self.log.add([attempt], {line.key: line.text}, self._origin(line))

    # -- results ---------------------------------------------------------------------------

    def _take_results(self) -> bool:
        moved = False
        for batch, outcome in self.gpus.results() if self.gpus is not None else ():
            self._ended(batch, outcome)
            moved = True
        return moved

    def _ended(self, batch: Batch, outcome: Outcome) -> None:
        """Stores what a batch told, and deals with what it did not come to."""
        assert self.log is not None
        line = batch.line
        told, culprit = self.log.told(batch.number)
        left = {item.id: item for item in batch.items}
        watch: Mapping[str, float] = {}
        if not isinstance(outcome, Failed):
            self.seconds["reference"] += outcome.value["prepare_s"]
            watch = outcome.value["watch"]
            self.counts["tensors mended"] += len(outcome.value["mended"])
            self.watch += [watch["us"]] if "us" in watch else []
        attempts = [self._attempt(line, left.pop(r["id"]), r, batch.gpu, watch) for r in told]
        if isinstance(outcome, Failed) and outcome.status is not Status.CANCELLED:
            refuse_full_disk(outcome)
            if culprit is not None:
                fault = {"status": outcome.status.value, "reason": reason(outcome)}
                attempts.append(self._attempt(line, left.pop(culprit), fault, batch.gpu, watch))
            elif not line.note:
                line.faults += 1
                if line.faults > 1:
                    line.note = f"no reference: {reason(outcome)[:200]}"
        if attempts:
            self.log.add(attempts, {line.key: line.text}, self._origin(line))
        self.log.end_batch(batch.number)
        line.inflight -= len(batch.items) - len(left)
        self.board.put(line, list(left.values()))

    def _attempt(
        self, line: Line, item: Item, told: Mapping[str, Any], gpu: int,
        watch: Mapping[str, float],
    ) -> Attempt:  # fmt: skip
        self.counts["measured"] += 1
        for name, seconds in told.get("seconds", {}).items():
            if name != "compile_s":
                self.seconds[name.removesuffix("_s")] += seconds
        made = _attempt(line, told, item.schedule, item.by, item.estimate_us, item.again_us)
        if made.timing is not None:
            us = made.timing.median_us
            if item.again_us is not None:
                self.pairs.append((item.again_us, us))
            else:
                line.times[item.place] = us
                self._maybe_again(line, item, us)
        return replace(made, gpu=gpu, watch=watch, open_sizes=item.open_sizes)

    def _origin(self, line: Line) -> Origin:
        assert self.gpus is not None
        return Origin(line.target_key, self.toolchain, self.gpus.device, self.setup.seed,
                      self.setup.launcher)  # fmt: skip

    # -- timing again, and going on --------------------------------------------------------

    def _maybe_again(self, line: Line, item: Item, us: float) -> None:
        if self._rng.random() < self.options.again:
            twice = replace(item, again_us=us, id=f"{item.id}a")
            heapq.heappush(self._again, (time.monotonic() + AGAIN_S, next(self._order), line,
                                         twice))  # fmt: skip

    def _repeat(self) -> None:
        """Puts back what is due, and all of it once nothing new will come or the time is short."""
        over = self.left_s < self._last_s + 5.0 or all(x.note or x.spent for x in self.lines)
        while self._again and (over or self._again[0][0] <= time.monotonic()):
            _, _, line, item = heapq.heappop(self._again)
            line.inflight += 1
            self.board.put(line, [item])

    def _recover(self) -> None:
        """Reads what earlier runs measured, and what the last one had on its GPUs when it was
        killed."""
        assert self.log is not None
        lines = {(line.key, line.target_key): line for line in self.lines}
        for number, asked, told in self.log.left_batches():
            line = lines.get((asked["workload"], asked["target"]))
            items = {i["id"]: i for i in asked["items"]}
            if line is not None and told:
                attempts = [
                    replace(_attempt(line, r, i["schedule"], i["by"], i["estimate_us"],
                                     i["again_us"]), open_sizes=i["open_sizes"])
                    for r in told if (i := items[r["id"]])
                ]  # fmt: skip
                self.log.add(attempts, {line.key: line.text}, self._origin(line))
                self.counts["recovered"] += len(attempts)
            self.log.end_batch(number)
        for target in sorted({line.target_key for line in self.lines}):
            for workload, text, _, us in self.log.store.attempts(target, self.toolchain):
                self._tried[workload].append((text, us))
                self.counts["known"] += 1

    def summary(self) -> dict[str, Any]:
        """Counts, rates, where the time went, how noisy it was; plain JSON."""
        spent = time.monotonic() - self.begun
        rows = self.counts["measured"] + self.counts["not built"]
        watch = sorted(self.watch)
        seconds = {**self.seconds, "compile": self.builds.compile_s,
                   **(self.gpus.seconds if self.gpus is not None else {})}  # fmt: skip
        return {
            "seconds": round(spent, 1), "rows": rows,
            "rows_per_minute": round(60 * rows / max(spent, 1e-9), 1),
            "counts": dict(sorted((self.counts + self.builds.counts).items())),
            "spent_s": {k: round(v, 1) for k, v in sorted(seconds.items())},
            "noise": noise(self.pairs), "workloads": sum(bool(x.times) for x in self.lines),
            "processes_lost": 0 if self.gpus is None else self.gpus.lost,
            "watch_us": [watch[int(q * (len(watch) - 1))] for q in (0.05, 0.5, 0.95)]
            if watch else [],
            "device": "none" if self.gpus is None else self.gpus.device,
            "toolchain": self.toolchain, "builders": self.options.builders,
            "gpus": 0 if self.gpus is None else self.gpus.count, "seed": self.setup.seed,
            "pack_bytes": self.builds.pack_bytes,
        }  # fmt: skip


def _moved(line: Line, moves: Iterator[Sequence[Any]], count: int) -> list[Item]:
    """Candidates of the next moves that were never asked for."""
    made = (line.item((n, tuple(values)), "near") for n, values in moves)
    return list(itertools.islice((item for item in made if item is not None), count))


def _attempt(
    line: Line, told: Mapping[str, Any], schedule: Mapping[str, Any], by: str,
    estimate_us: float | None, again_us: float | None,
) -> Attempt:  # fmt: skip
    """What a measuring process told of a candidate."""
    timing = Timing.from_json(told["timing"]) if "timing" in told else None
    return Attempt(
        line.key, line.name, schedule, by if again_us is None else "again",
        Status.OK if timing is not None else Status(told["status"]), timing, told.get("reason"),
        told.get("rel_l2"), estimate_us, told.get("facts"), told.get("seconds"),
        first_us=again_us,
    )  # fmt: skip
