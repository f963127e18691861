"""Workloads and their candidates on the way from a design to a GPU: who asks, who is ready.

A `Line` is one workload's. Threads that measure take batches from the board; everything else
belongs to one thread.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autosched.ir.record import canonical_json

BATCH = 24  # candidates that a measuring process gets at once: about half a second
ENOUGH = 8  # candidates for which a GPU turns to another workload

Place = tuple[int, tuple[int, ...]]  # number of a sketch, values of its knobs


@dataclass(frozen=True, eq=False)
class Item:
    """One candidate. place: in its line's plan; again_us: it repeats a measurement.
    open_sizes: how many extents its kernels get as arguments."""

    id: str
    place: Place
    schedule: Mapping[str, Any]
    by: str
    estimate_us: float | None = None
    entry: str = ""
    module: Mapping[str, Any] | None = None
    bound: str | None = None
    again_us: float | None = None
    open_sizes: int = 0

    def asked(self) -> dict[str, Any]:
        """What a measuring process is told of it."""
        return {"id": self.id, "entry": self.entry, "module": self.module, "bound": self.bound}


@dataclass(eq=False)
class Line:
    """A workload: its plan, what was asked for, what came of it.

    target: as it is named; target_key: as records know it.
    """

    number: int
    name: str
    group: str
    target: str
    key: str
    text: str
    folder: Path
    target_key: str
    plan: Mapping[str, Any] | None = None
    waiting: bool = False  # for a plan or for moves
    spent: bool = False  # nothing is left to ask for
    dry: int = -1  # how many results there were when nothing was left to ask for
    note: str = ""  # why it is not measured
    asked: dict[Place, None] = field(default_factory=dict)
    times: dict[Place, float] = field(default_factory=dict)
    inflight: int = 0
    ready: deque[Item] = field(default_factory=deque)
    owner: int | None = None
    busy: bool = False  # on a GPU just now
    faults: int = 0
    _left: dict[str, deque[list[Any]]] = field(default_factory=dict)

    @property
    def best_us(self) -> float | None:
        return min(self.times.values(), default=None)

    @property
    def open(self) -> bool:
        if self.waiting or self.spent or self.note:
            return False
        return self.dry != len(self.times) or not self.inflight

    def set_plan(self, plan: Mapping[str, Any]) -> None:
        """The plan has come."""
        self.plan = plan
        self._left = {kind: deque(plan[kind]) for kind in ("spread", "head")}

    def remember(self, tried: Sequence[tuple[str, float | None]]) -> None:
        """What an earlier run measured of the sketches of the plan: schedules' texts, times."""
        assert self.plan is not None
        numbers = {canonical_json(s["actions"]): (n, s["knobs"])
                   for n, s in enumerate(self.plan["sketches"])}  # fmt: skip
        for text, us in tried:
            data = json.loads(text)
            found = numbers.get(canonical_json(data["actions"]))
            if found is None or set(found[1]) != set(data["knobs"]):
                continue
            place = found[0], tuple(data["knobs"][k] for k in found[1])
            self.asked[place] = None
            if us is not None:
                self.times[place] = us

    def planned(self, spread: int, head: int) -> list[Item]:
        """The next of both lists that were never asked for; where one ends, of the other."""
        out: list[Item] = []
        for kind, count in (("head", head), ("spread", spread)):
            out += self._next(kind, count)
        missing = spread + head - len(out)
        return out + self._next("spread", missing) + self._next("head", missing)

    def _next(self, kind: str, count: int) -> list[Item]:
        out: list[Item] = []
        left = self._left[kind]
        while left and len(out) < count:
            number, values, *more = left.popleft()
            if (made := self.item((number, tuple(values)), kind, *more)) is not None:
                out.append(made)
        return out

    def item(self, place: Place, by: str, estimate_us: float | None = None) -> Item | None:
        """The candidate at a place; None where it was asked for before."""
        if place in self.asked:
            return None
        assert self.plan is not None
        self.asked[place] = None
        sketch = self.plan["sketches"][place[0]]
        schedule = {"sketch": sketch["sketch"], "actions": sketch["actions"],
                    "knobs": dict(sorted(zip(sketch["knobs"], place[1])))}  # fmt: skip
        return Item(f"{self.number}.{len(self.asked)}", place, schedule, by, estimate_us)


@dataclass(frozen=True)
class Batch:
    """Candidates of one line for one GPU."""

    number: int
    line: Line
    items: tuple[Item, ...]
    gpu: int


class Board:
    """Who has candidates that are built. Thread-safe."""

    def __init__(self, lines: Sequence[Line], first: int = 0) -> None:
        """first: number of the first batch."""
        self.lines = lines
        self.changed = threading.Condition()
        self._numbers = itertools.count(first)
        self.closed = False

    def put(self, line: Line, items: Sequence[Item]) -> None:
        with self.changed:
            line.ready.extend(items)
            self.changed.notify_all()

    @property
    def ready(self) -> int:
        """Candidates that wait for a GPU."""
        with self.changed:
            return sum(len(line.ready) for line in self.lines)

    def take(self, gpu: int, timeout_s: float) -> Batch | None:
        """A batch for a GPU: of a line whose reference it has, if there is one with enough."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self._best(gpu) is not None, timeout_s)
            line = None if self.closed else self._best(gpu)
            if line is None:
                return None
            line.owner, line.busy = gpu, True
            items = tuple(line.ready.popleft() for _ in range(min(BATCH, len(line.ready))))
            return Batch(next(self._numbers), line, items, gpu)

    def _best(self, gpu: int) -> Line | None:
        waiting = [x for x in self.lines if x.ready and not x.busy and not x.note]
        return max(waiting, default=None, key=lambda x: (
            len(x.ready) >= ENOUGH, x.owner == gpu, x.owner is None, len(x.ready), -x.number
        ))  # fmt: skip

    def release(self, line: Line) -> None:
        with self.changed:
            line.busy = False
            self.changed.notify_all()

    def drop(self, line: Line, why: str) -> None:
        """No batch of this line is given out any more."""
        with self.changed:
            line.note = why

    def close(self) -> None:
        """No batch is given out any more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
