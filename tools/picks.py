"""Ranked tasks in, a schedule for each out that the model likes and the compiler takes.

For where nothing can be measured. What earlier runs measured on such a device comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from autosched.ir.schedule import Schedule
from autosched.search.strategy import ask
from autosched.tools.campaign import Book, Entry, TaskState, text_of
from autosched.tools.lab import Attempt
from autosched.tools.stopping import Stopper
from autosched.tools.triton_lab import TritonLab
from autosched.tools.tuning import Progress, RecordEvent, TuningError

# Candidates of a task that are compiled at once: one, then more and more unlike ones where that
# fails.
ROUNDS = (1, 2, 4, 8)


def pick_unmeasured(
    states: Sequence[TaskState], lab: TritonLab, book: Book, stopper: Stopper, report: Progress
) -> dict[str, Entry]:
    """The best-ranked schedule of each task that compiles and fits, by task key.

    Raises: TuningError where a task has none.
    """
    lab.prepare({s.key: s.task.program for s in states})
    chosen: dict[str, Entry] = {}
    known = [s for s in states if s.best is not None]
    _compile(known, [[_best(s).schedule] for s in known], chosen, lab, book, report)
    for size in ROUNDS:
        left = [s for s in states if s.key not in chosen]
        if left and stopper.asked:
            raise KeyboardInterrupt
        asked = [
            [s.search.space.schedule(c) for c in ask(s.search, size, s.score)] for s in left
        ]
        _compile(left, asked, chosen, lab, book, report)
    for state in states:
        if state.key not in chosen:
            failed = ", ".join(f"{n} x {status}" for status, n in state.failures.items())
            raise TuningError(
                f"no kernel for {state.task.public_name} could be compiled "
                f"({failed or 'no schedule applies'}): please report the model"
            )
    return chosen


def _compile(
    states: Sequence[TaskState], asked: Sequence[Sequence[Schedule]], chosen: dict[str, Entry],
    lab: TritonLab, book: Book, report: Progress,
) -> None:  # fmt: skip
    """Compiles what was asked of each task, and chooses the best of what could be."""
    made = lab.build_all([(s.key, c) for s, some in zip(states, asked) for c in some])
    for state, schedules in zip(states, asked):
        attempts = [next(made) for _ in schedules]
        for record in book.note(state, attempts):
            report(RecordEvent(
                state.key, state.task.public_name, record.status.value, None, record.error
            ))  # fmt: skip
        fit = [a for a in attempts if a.built is not None]
        if fit:
            best = min(fit, key=lambda a: _predicted(state, a))
            chosen[state.key] = state.entries[text_of(best.schedule)]
        report(state.event())


def _predicted(state: TaskState, attempt: Attempt) -> float:
    us = state.predicted_us(attempt.schedule)
    return float("inf") if us is None else us


def _best(state: TaskState) -> Entry:
    assert state.best is not None
    return state.best
