"""What is known of the tasks in, what to measure next out: a task, and a batch of its space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Schedule
from autosched.tools.campaign import TaskState, text_of

EXPLORE = 4  # one pick in so many is drawn from the better part of the space
BETTER_PART = 0.1
FADE = 0.5  # of the hope for a task with each batch that has not bettered it
LEAST_GAIN = 0.002  # of the model's time: less is not worth a batch


def next_task(states: Sequence[TaskState], done: frozenset[str]) -> TaskState | None:
    """The task with the highest expected gain of one more batch; None where all are hopeless.

    A task that has no time yet comes first, the longest of them.
    """
    open_ = [s for s in states if s.key not in done]
    fresh = [s for s in open_ if s.best_us is None]
    if fresh:
        return max(fresh, key=lambda s: (s.roofline_us * s.task.count, s.key))
    total = sum((s.best_us or 0.0) * s.task.count for s in states)
    hopes = [(_gain_us(s), s.key, s) for s in open_]
    best = max(hopes, default=None, key=lambda h: h[:2])
    return None if best is None or best[0] < LEAST_GAIN * total else best[2]


def _gain_us(state: TaskState) -> float:
    """Microseconds of the model that one more batch may win: headroom, fading with failure."""
    best = state.best_us or 0.0
    headroom = max(0.0, best - state.roofline_us)
    return float(state.task.count * headroom * 0.5 * FADE**state.idle_batches)


def next_batch(state: TaskState, size: int, rng: np.random.Generator) -> list[Schedule]:
    """Schedules that were never tried: the best by prediction, and a few from further down."""
    if isinstance(state.space, Illegal):
        return [s for s in state.plain_schedules() if text_of(s) not in state.entries][:size]
    order = np.argsort(state.predicted, kind="stable")
    out: dict[str, Schedule] = {}
    drawn = size // EXPLORE
    part = order[: max(size, int(len(order) * BETTER_PART))]
    for rows, upto in ((order, size - drawn), (rng.permutation(part), size), (order, size)):
        for row in rows:
            if len(out) >= upto:
                break
            schedule = state.space.schedule(int(row))
            text = text_of(schedule)
            if text not in state.entries and text not in out:
                out[text] = schedule
    return list(out.values())
