"""Sharing a budget: who is next, when to stop, and that the answer depends on nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_search import made, measured, scorer, truth

from autosched.search.budget import PATIENCE, Budget, Progress, Stop, choose, progress
from autosched.search.space import Candidate
from autosched.search.strategy import Result, State, ask

TASK = Progress(
    weight=1, best_us=100.0, start_us=150.0, gain_us=5.0, tries=8, since_best=0, left=100
)
NO_LIMIT = Budget()


def test_the_task_with_the_larger_weighted_gain_is_next() -> None:
    often = replace(TASK, weight=6)
    slow = replace(TASK, best_us=1000.0, gain_us=40.0)
    assert choose([TASK, often], NO_LIMIT) == 1
    assert choose([TASK, often, slow], NO_LIMIT) == 2
    assert choose([TASK, TASK], NO_LIMIT) == 0


def test_a_second_of_tuning_goes_where_it_gains_most() -> None:
    dear = replace(TASK, gain_us=8.0, cost_s=4.0)
    assert choose([dear, TASK], NO_LIMIT) == 1


def test_tasks_that_were_never_tried_come_first_the_heaviest_before() -> None:
    new = replace(TASK, best_us=None, tries=0, gain_us=150.0)
    heavier = replace(new, weight=2)
    assert choose([TASK, new, heavier], NO_LIMIT) == 2


def test_hope_fades_with_attempts_that_bring_nothing() -> None:
    tired = replace(TASK, since_best=PATIENCE)
    assert tired.worth_us == pytest.approx(TASK.worth_us / 2)
    assert choose([tired, replace(TASK, gain_us=3.0)], NO_LIMIT) == 1


def test_it_stops_for_a_reason() -> None:
    assert choose([TASK], Budget(trials=0)) is Stop.TRIALS
    assert choose([TASK], Budget(seconds=0.5)) is Stop.TIME
    assert choose([replace(TASK, left=0)], NO_LIMIT) is Stop.EXHAUSTED
    assert choose([replace(TASK, gain_us=0.1)], NO_LIMIT) is Stop.THRESHOLD
    assert choose([replace(TASK, gain_us=0.1)], NO_LIMIT, threshold=0.0) == 0
    assert choose([], NO_LIMIT) is Stop.EXHAUSTED


def test_a_task_that_no_longer_fits_the_time_leaves_it_to_others() -> None:
    dear = replace(TASK, gain_us=50.0, cost_s=10.0)
    assert choose([dear, TASK], Budget(seconds=30)) == 0
    assert choose([dear, TASK], Budget(seconds=5)) == 1


def test_the_threshold_is_of_the_whole_model() -> None:
    small = replace(TASK, best_us=1.0, gain_us=0.5)
    assert choose([small], NO_LIMIT) == 0
    assert choose([small, replace(TASK, gain_us=0.0, best_us=1000.0)], NO_LIMIT) is Stop.THRESHOLD


def test_a_task_all_of_whose_candidates_fail_gives_way() -> None:
    failing = replace(TASK, best_us=None, gain_us=150.0, tries=8, since_best=10 * PATIENCE)
    assert choose([failing, TASK], NO_LIMIT) == 1


# ---- progress ----------------------------------------------------------------------------------


def test_progress_of_a_fresh_and_of_a_tuned_task() -> None:
    state = State(made())
    fresh = progress(state, scorer(state.space), weight=3, start_us=200.0)
    assert fresh.best_us is None
    assert fresh.worth_us == 600.0
    assert fresh.left == sum(len(state.space.rows(n)) for n in range(3))
    tuned = measured(state, Candidate(0, (8, 48, 8)), Candidate(0, (1, 16, 1)))
    after = progress(tuned, scorer(state.space, truth, 0.05), weight=3, start_us=200.0)
    assert after.best_us == truth(Candidate(0, (8, 48, 8)))
    assert after.tries == 2
    assert after.left == fresh.left - 2
    assert 0 < after.worth_us < 0.1 * fresh.worth_us


def test_a_failure_only_task_is_still_worth_its_start_time() -> None:
    state = replace(State(made()), results=(Result(Candidate(2, ()), None),))
    failed = progress(state, scorer(state.space), weight=1, start_us=200.0)
    assert failed.best_us is None
    assert 0 < failed.worth_us < 200.0


def test_two_tasks_share_a_budget_the_same_way_every_time() -> None:
    def run() -> list[int | Stop]:
        states = [State(made(), seed=n) for n in range(3)]
        weights = (1.0, 10.0, 3.0)
        log: list[int | Stop] = []
        trials = 160
        while True:
            standing = [
                progress(s, scorer(s.space, truth, 0.15), w, 300.0) for s, w in zip(states, weights)
            ]
            pick = choose(standing, Budget(trials=trials))
            log.append(pick)
            if isinstance(pick, Stop):
                return log
            batch = ask(states[pick], 8, scorer(states[pick].space, truth, 0.15))
            told = tuple(Result(c, truth(c)) for c in batch)
            states[pick] = replace(states[pick], results=(*states[pick].results, *told))
            trials -= 8

    first = run()
    assert first == run()
    counts = np.bincount([n for n in first if not isinstance(n, Stop)], minlength=3)
    assert counts.min() >= 1
    assert counts[1] == counts.max()
    assert isinstance(first[-1], Stop)
