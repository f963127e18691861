"""Open tasks in, measured ones out: the search, the pick of each task, and the finals."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from autosched.ir.record import Status
from autosched.ir.schedule import Schedule
from autosched.search.budget import Budget, Stop, choose, progress
from autosched.search.strategy import ask
from autosched.tools.campaign import Book, Entry, TaskState, plain_schedules
from autosched.tools.lab import AnyLab, Attempt, Built, Lab
from autosched.tools.learner import Learner
from autosched.tools.peers import Peer
from autosched.tools.stopping import Stopper
from autosched.tools.tuning import Progress, RecordEvent, TuningError

BATCH = 8
FINALISTS = 3
PICKS = 6  # schedules tried in turn where one that works is wanted
GIVE_UP = 3.0  # times the best: a candidate that is slower is timed by a few runs only


@dataclass(frozen=True, eq=False)
class Explorer:
    """The parts that work together on the tasks of one tuning."""

    states: Sequence[TaskState]
    lab: AnyLab
    book: Book
    learner: Learner
    stopper: Stopper
    report: Progress

    def search(self, reserve_s: float, trials: int | None, resume: bool) -> str:
        """Batch after batch until nothing is left to gain or spend; why it stopped.

        reserve_s: seconds of the budget to leave. trials: attempts in all; resume: those of
        earlier runs count.
        """
        while self.stopper.has(reserve_s):
            left = self.stopper.left_s
            room = None if trials is None else trials - self._spent(resume)
            budget = Budget(None if left is None else left - reserve_s, room)
            standing = [
                progress(s.search, s.score, s.task.count, s.peer_us or _guess_us(s), s.cost_s)
                for s in self.states
            ]
            which = choose(standing, budget)
            if isinstance(which, Stop):
                return which.value
            state = self.states[which]
            picked = ask(state.search, BATCH if room is None else min(BATCH, room), state.score)
            self.attempt(state, [state.search.space.schedule(c) for c in picked])
            self.learner.learn([state])
        return "stopped by the user" if self.stopper.asked else Stop.TIME.value

    def attempt(self, state: TaskState, batch: Sequence[Schedule]) -> None:
        """Builds and measures a batch; what is measured is stored, whatever cuts it short."""
        self.report(state.event(active=True, left_s=self.stopper.left_s))
        begun = time.monotonic()
        best = state.best_us
        attempts: list[Attempt] = []
        try:
            limit = None if best is None else GIVE_UP * best
            for attempt in self.lab.attempt(state.key, state.task.program, batch, limit):
                attempts.append(attempt)
                if self.stopper.asked:
                    break
        finally:
            for r in self.book.note(state, attempts):
                self.report(RecordEvent(
                    state.key, state.task.public_name, r.status.value, r.latency_us, r.error
                ))  # fmt: skip
        state.cost_s = 0.5 * (state.cost_s + time.monotonic() - begun)
        self.report(state.event(active=True, left_s=self.stopper.left_s))

    def pick(self, state: TaskState) -> Entry:
        """The best schedule known; where none is, the model's picks in turn until one is right.

        Raises: TuningError where none is, and not even the plainest loops are.
        """
        for _ in range(PICKS):
            if state.best is not None:
                return state.best
            for candidate in ask(state.search, 1, state.score):
                self.attempt(state, [state.search.space.schedule(candidate)])
        for schedule in plain_schedules(state.task, self.book.bench.target):
            if state.best is not None:
                return state.best
            self.attempt(state, [schedule])
        if state.best is not None:
            return state.best
        failed = ", ".join(f"{n} x {status}" for status, n in state.failures.items())
        raise TuningError(
            f"no kernel for {state.task.public_name} could be made that gives the right answer "
            f"({failed or 'no schedule applies'}): please report the model"
        )

    def finals(self, state: TaskState) -> Entry:
        """Times the best few against each other, interleaved; the fastest by all its times."""
        ranked = state.ranked()[:FINALISTS]
        self._build(state, ranked)
        ready = [e for e in ranked if e.built is not None]
        if len(ready) > 1:
            known = [Attempt(e.schedule, Status.OK, built=e.built) for e in ready]
            for entry, timing in zip(ready, self.lab.finals(state.key, known) or ()):
                self.book.note_final(state, entry, timing)
        best = state.best
        assert best is not None, "finals are for tasks with a time"
        return best

    def pair(self, state: TaskState, entry: Entry, peer: Peer) -> None:
        """Times a schedule against the peer, each in its own process, where both run on the CPU."""
        self._build(state, [entry])
        if not (isinstance(entry.built, Built) and isinstance(self.lab, Lab)):
            return
        ours = self.lab.side(state.key, entry.built)
        pairing = peer.against(ours, state.key, self.lab.limits.pair_rounds)
        if pairing is not None:
            self.book.note_pair(state, entry, peer.name, pairing)

    def _build(self, state: TaskState, entries: Sequence[Entry]) -> None:
        """Compiles what only earlier runs have compiled."""
        missing = [e for e in entries if e.built is None]
        for entry, made in zip(missing, self.lab.build(state.key, [e.schedule for e in missing])):
            entry.built, entry.facts = made.built, made.facts

    def _spent(self, resume: bool) -> int:
        """Attempts that count, and one for each task that has none yet: its pick."""
        made = sum(s.tried if resume else s.new_tries for s in self.states)
        return made + sum(s.best is None for s in self.states)


def _guess_us(state: TaskState) -> float:
    """What a task takes where nobody has measured it: the best prediction, or the roofline."""
    scores = [state.score(n, None)[0] for n in range(len(state.search.space.sketches))]
    return min((float(us.min()) for us in scores if len(us)), default=state.roofline_us)
