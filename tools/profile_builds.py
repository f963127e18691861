"""Schedules in, builds in a cache out: planned, lowered and compiled by processes on all cores.

One build serves every candidate whose source is the same, of whatever workload. A pack of builds
that were made ahead is unpacked first; a run that only builds fills one.
"""

from __future__ import annotations

import errno
import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import Failed, Job, Outcome, Stage
from autosched.codegen.workers import Ticket, WorkerPool
from autosched.ir.record import Status
from autosched.tools.gpu_lab import GpuLimits, reason
from autosched.tools.profile_board import Item, Line
from autosched.tools.profile_build import CODES, SCRATCH
from autosched.tools.profile_pack import CODE, FAULT, PLAN, Pack, ProfileError, pack_build

TICKETS = 4  # jobs in the hands of each builder at most, before new work is asked for
PACKED = 96  # builds of a block of a pack: more pack better, fewer are lost by a kill
# Faults that a build will have wherever it is tried again.
_LASTING = frozenset({Status.UNSUPPORTED, Status.BUILD_FAILED})
_FULL = (f"[Errno {errno.ENOSPC}]", f"[Errno {errno.EDQUOT}]", "No space left on device")


@dataclass(frozen=True)
class ProfileJobs:
    """The functions that workers run, as "module:function"."""

    plan: str = "autosched.tools.profile_build:plan"
    fit: str = "autosched.tools.profile_rank:fit"
    ranked_plan: str = "autosched.tools.profile_rank:plan"
    propose: str = "autosched.tools.profile_build:propose"
    lower: str = "autosched.tools.profile_build:lower"
    compile: str = "autosched.tools.profile_build:compile_code"
    unpack: str = "autosched.tools.profile_build:unpack"
    prepare: str = "autosched.tools.profile_jobs:prepare"
    measure: str = "autosched.tools.profile_jobs:measure_batch"
    warm_up: str = "autosched.codegen.gpu_jobs:warm_up"
    builder_modules: tuple[str, ...] = ("autosched.tools.profile_build",)
    measurer_modules: tuple[str, ...] = ("autosched.tools.profile_jobs",)
    packages: tuple[str, ...] = ("autosched",)


@dataclass(eq=False)
class _Code:
    """A build that is under way, or what became of it. waiting: who needs it."""

    waiting: list[tuple[Line, Item]] = field(default_factory=list)
    done: bool = False
    fault: tuple[Status, str] | None = None


@dataclass(frozen=True, eq=False)
class _Task:
    """A job in a builder's hands and what to do with its outcome."""

    ticket: Ticket
    then: Callable[[Outcome], None]


class Builds:
    """Builders, their cache and pack. `built` and `failed` are called for each candidate once."""

    def __init__(
        self, cache: Path, pack: Path | None, builders: int, *, filling: bool, jobs: ProfileJobs,
        limits: GpuLimits, open_sizes: bool = False, built: Callable[[Line, Item], None],
        failed: Callable[[Line, Item, Status, str], None],
    ) -> None:  # fmt: skip
        """filling: builds go into the pack, and nowhere else. open_sizes: as `lower` has it."""
        self.cache, self.filling = cache, filling
        self.pack = Pack(pack) if pack is not None else None
        self.builders, self.jobs, self.limits = builders, jobs, limits
        self.built, self.failed, self.open_sizes = built, failed, open_sizes
        self.counts: Counter[str] = Counter()
        self.compile_s = 0.0
        self.plans: dict[str, bytes] = {}
        self._codes: dict[str, _Code] = {}
        self._tasks: list[_Task] = []
        self._to_pack: dict[str, bytes] = {}
        # A builder never sees a GPU.
        env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._pool = WorkerPool(
            builders, limits.build_s, env=env, preload=jobs.builder_modules,
            packages=jobs.packages, recycle_after=2000, start_timeout_s=limits.start_s,
        )  # fmt: skip

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    @property
    def hungry(self) -> bool:
        """Whether builders will soon have nothing to do."""
        return len(self._tasks) < TICKETS * self.builders

    @property
    def pack_bytes(self) -> int:
        return 0 if self.pack is None else self.pack.end

    def close(self) -> None:
        """Ends the builders; what is built is in the pack, or stays in the cache."""
        self._pool.close()
        self._write_pack(last=True)
        shutil.rmtree(self.cache / SCRATCH, ignore_errors=True)

    def submit(self, function: str, kwargs: Mapping[str, Any],
               then: Callable[[Outcome], None], limit_s: float | None = None) -> None:  # fmt: skip
        """Has a builder do a job; `then` gets its outcome from `collect`."""
        ticket = self._pool.submit(Job(function, kwargs, Stage.BUILD, limit_s))
        self._tasks.append(_Task(ticket, then))

    def collect(self) -> bool:
        """Deals with what builders have done; whether there was anything. Raises: ProfileError."""
        done = [t for t in self._tasks if t.ticket.done]
        if done:
            gone = set(map(id, done))
            self._tasks = [t for t in self._tasks if id(t) not in gone]
        for task in done:
            outcome = task.ticket.result()
            if isinstance(outcome, Failed):
                refuse_full_disk(outcome)
            task.then(outcome)
        return bool(done)

    def unpack(self) -> None:
        """Plans and faults of the pack, and the names of its builds, which are unpacked by all
        builders at once; and what the cache holds already."""
        folder = self.cache / CODES
        if folder.is_dir():
            for path in folder.iterdir():
                if not path.name.startswith("."):
                    self._codes[path.name] = _Code(done=True)
                    if self.filling:  # of a run that was killed
                        self._to_pack[CODE + path.name] = pack_build(path)
        if self.pack is None:
            return
        packed = []
        for number, block in enumerate(self.pack.blocks):
            names = [n.removeprefix(CODE) for n in block.sizes if n.startswith(CODE)]
            if names and not all(n in self._codes for n in names):
                packed.append((number, names))
            if len(names) < len(block.sizes):
                self._remember_blobs(dict(self.pack.read(block)))
        self.counts["packed"] = sum(len(names) for _, names in packed)
        if self.filling:  # they need not lie unpacked to be known
            for _, names in packed:
                self._codes |= {n: _Code(done=True) for n in names}
            return
        for number, names in packed:
            made = [self._codes.setdefault(n, _Code()) for n in names]
            kwargs = {"pack": str(self.pack.path), "blocks": [number], "cache": str(self.cache)}
            self.submit(self.jobs.unpack, kwargs, functools.partial(self._unpacked, made))

    def _remember_blobs(self, blobs: Mapping[str, bytes]) -> None:
        for name, blob in blobs.items():
            if name.startswith(PLAN):
                self.plans[name.removeprefix(PLAN)] = blob
            elif name.startswith(FAULT):
                status, _, why = blob.decode().partition("\n")
                code = _Code(done=True, fault=(Status(status), why))
                self._codes[name.removeprefix(FAULT)] = code

    def _unpacked(self, made: Sequence[_Code], outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            raise ProfileError(f"the pack of builds can't be unpacked: {reason(outcome)}")
        for code in made:
            self._settle(code)

    def keep_plan(self, name: str, plan: Mapping[str, Any]) -> None:
        """A plan goes into the pack, where one is filled."""
        if self.filling:
            self._to_pack[PLAN + name] = json.dumps(plan).encode()

    # -- from schedules to builds ----------------------------------------------------------

    def lower(self, line: Line, items: Sequence[Item]) -> None:
        """Has candidates of one workload built."""
        line.inflight += len(items)
        kwargs = {"folder": str(line.folder), "target": line.target, "cache": str(self.cache),
                  "schedules": [i.schedule for i in items],
                  **({"open_sizes": True} if self.open_sizes else {})}  # fmt: skip
        then = functools.partial(self._lowered, line, items)
        self.submit(self.jobs.lower, kwargs, then, self.limits.plan_s)

    def _lowered(self, line: Line, items: Sequence[Item], outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            line.inflight -= len(items)
            if len(items) == 1:
                self.failed(line, items[0], outcome.status, reason(outcome))
            for item in items if len(items) > 1 else ():
                self.lower(line, [item])  # which of them it was
            return
        for item, made in zip(items, outcome.value, strict=True):
            if "illegal" in made:
                line.inflight -= 1
                status = Status.UNSUPPORTED if made["illegal"] == "BACKEND" else Status.ILLEGAL
                self.failed(line, item, status, f"{made['illegal']}: {made['why']}")
                continue
            entry = str(self.cache / CODES / made["code"])
            self._need(made["code"], line, _built(item, entry, made))

    def _need(self, key: str, line: Line, item: Item) -> None:
        """Has the code of a candidate built, unless it is or will be."""
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = _Code()
            kwargs = {"key": key, "target": line.target, "cache": str(self.cache)}
            self.submit(self.jobs.compile, kwargs, functools.partial(self._compiled, key))
        else:
            self.counts["shared"] += 1
        code.waiting.append((line, item))
        if code.done:
            self._settle(code)

    def _compiled(self, key: str, outcome: Outcome) -> None:
        code = self._codes[key]
        if isinstance(outcome, Failed):
            if outcome.status is Status.CANCELLED:
                return
            code.fault = outcome.status, reason(outcome)
            if self.filling and outcome.status in _LASTING:
                told = f"{code.fault[0].value}\n{code.fault[1]}"
                self._to_pack[FAULT + key] = told.encode()
        else:
            self.counts["compiled"] += 1
            self.compile_s += outcome.value["seconds"]
            if self.filling:
                self._to_pack[CODE + key] = pack_build(self.cache / CODES / key)
        self._write_pack()
        self._settle(code)

    def _settle(self, code: _Code) -> None:
        """Passes on what waited for a build."""
        code.done = True
        waiting, code.waiting = code.waiting, []
        for line, item in waiting:
            if code.fault is not None:
                line.inflight -= 1
                self.failed(line, item, *code.fault)
            else:
                self.built(line, item)

    def _write_pack(self, last: bool = False) -> None:
        if self.pack is None or not (len(self._to_pack) >= PACKED or (last and self._to_pack)):
            return
        self.pack.append(self._to_pack)
        for name in self._to_pack:
            if name.startswith(CODE):
                shutil.rmtree(self.cache / CODES / name.removeprefix(CODE), ignore_errors=True)
        self._to_pack = {}


def _built(item: Item, entry: str, made: Mapping[str, Any]) -> Item:
    return replace(item, entry=entry, module=made["module"], bound=made["bound"],
                   open_sizes=made.get("open", 0))  # fmt: skip


def refuse_full_disk(outcome: Failed) -> None:
    """A full disk is no fault of a candidate. Raises: ProfileError."""
    if any(mark in outcome.reason for mark in _FULL):
        raise ProfileError("the disk is full. What was measured is stored; free some space, and "
                           "the same command goes on")  # fmt: skip
