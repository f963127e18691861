"""Ask and tell on made-up latencies: pure, resumable, diverse, and quick to find the best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autosched.ir.ops import knob
from autosched.ir.record import Record, Status
from autosched.ir.rules.action import act
from autosched.ir.schedule import Knob, Sketch
from autosched.search.replay import replay
from autosched.search.space import Candidate, Space, space
from autosched.search.strategy import Result, State, ask, improvement, tell

ROWS = Knob("rows", (1, 2, 3, 4, 6, 8, 12, 16))
COLS = Knob("cols", (16, 32, 48, 64, 96))
DEPTH = Knob("depth", (1, 2, 4, 8, 16, 32))


def sketches() -> tuple[Sketch, ...]:
    fits = knob("rows") * (knob("cols") // 16) <= 32
    return (
        Sketch("a", (act("inline", keep=[]), act("split", axis="m", size="$rows")),
               (ROWS, COLS, DEPTH), (fits,)),
        Sketch("b", (act("inline", keep=[1]), act("split", axis="m", size="$rows")),
               (ROWS, COLS), (fits,)),
        Sketch("c", (act("inline", keep=[2]),), ()),
    )  # fmt: skip


def made() -> Space:
    return space(sketches(), [s.table() for s in sketches()])


def truth(c: Candidate) -> float:
    """Best at rows 8, cols 48, depth 8 of sketch a."""
    if c.sketch == 2:
        return 400.0
    rows, cols, *rest = c.knobs
    far = abs(np.log2(rows / 8)) + 1.2 * abs(np.log2(cols / 48))
    far += 0.4 * abs(np.log2(rest[0] / 8)) if rest else 1.0
    return float(100 * np.exp(0.25 * far))


def misled(c: Candidate) -> float:
    """A model that sees half of the truth, and likes sketch b better than it should."""
    rows = c.knobs[0] if c.knobs else 1
    return float(90 * np.exp(0.15 * abs(np.log2(rows / 8)))) * (0.9 if c.sketch == 1 else 1.0)


def scorer(state_space: Space, model=misled, spread: float = 0.3):
    def score(sketch: int, columns) -> tuple[np.ndarray, np.ndarray]:
        if columns is None:
            rows = state_space.rows(sketch)
        else:
            names = [k.name for k in state_space.sketches[sketch].knobs]
            rows = np.column_stack([columns[n] for n in names])
        latency = np.array([model(Candidate(sketch, tuple(map(int, r)))) for r in rows])
        return latency, np.full(len(latency), spread)

    return score


def all_candidates(state: State) -> list[Candidate]:
    rows = [(n, r) for n in range(3) for r in state.space.rows(n)]
    return [Candidate(n, tuple(map(int, r))) for n, r in rows]


def record(at: Space, c: Candidate, latency_us: float | None, status: Status = Status.OK) -> Record:
    return Record.of(
        workload="w", target="t", schedule=at.schedule(c).to_json(), toolchain="x", device="d",
        threads=2, status=status, latency_us=latency_us, error=None if latency_us else "why",
    )  # fmt: skip


@pytest.fixture
def state() -> State:
    return State(made(), seed=5)


def measured(state: State, *candidates: Candidate) -> State:
    return replace(state, results=tuple(Result(c, truth(c)) for c in candidates))


# ---- the space ---------------------------------------------------------------------------------


def test_schedules_and_candidates_are_each_other(state: State) -> None:
    for sketch in range(3):
        for row in state.space.rows(sketch)[::17]:
            c = Candidate(sketch, tuple(map(int, row)))
            assert state.space.locate(state.space.schedule(c)) == c
            assert state.space.contains(c)
    foreign = Sketch("z", (act("inline", keep=[9]),), ()).schedule({})
    assert state.space.locate(foreign) is None
    assert state.space.locate(sketches()[0].schedule({"rows": 4})) is None


def test_neighbours_differ_in_one_knob_and_are_legal(state: State) -> None:
    parent = Candidate(0, (8, 64, 4))  # at the limit: 8 x 4 = 32
    rows = state.space.neighbours(parent)
    assert all(sum(a != b for a, b in zip(r, parent.knobs)) == 1 for r in rows)
    assert all(r[0] * (r[1] // 16) <= 32 for r in rows)
    assert len(set(map(tuple, rows))) == len(rows)
    assert (8, 48, 4) in set(map(tuple, rows.tolist()))
    assert (12, 64, 4) not in set(map(tuple, rows.tolist()))
    assert len(state.space.neighbours(Candidate(2, ()))) == 0


def test_tables_and_sketches_must_fit() -> None:
    with pytest.raises(ValueError, match="2 tables"):
        space(sketches(), [s.table() for s in sketches()][:2])


# ---- ask ---------------------------------------------------------------------------------------


def test_ask_is_pure_and_its_batch_is_new_and_unique(state: State) -> None:
    score = scorer(state.space)
    for step in range(6):
        batch = ask(state, 8, score)
        assert batch == ask(state, 8, score)
        assert len(batch) == len(set(batch)) == 8
        assert not set(batch) & state.tried, step
        told = tuple(Result(c, truth(c)) for c in batch)
        state = replace(state, results=(*state.results, *told))


def test_the_first_batch_starts_with_the_best_and_is_diverse(state: State) -> None:
    score = scorer(state.space)
    batch = ask(state, 8, score)
    scores = {c: misled(c) for c in batch}
    best = min(float(score(n, None)[0].min()) for n in range(3))
    assert scores[batch[0]] == best
    assert len({c.sketch for c in batch}) >= 2
    for i, c in enumerate(batch):
        for other in batch[:i]:
            same = c.sketch == other.sketch
            assert not same or sum(a != b for a, b in zip(c.knobs, other.knobs)) >= 1
    # Without the wish for variety all would be of sketch b.
    best_eight = sorted((misled(c), c) for c in all_candidates(state))[:8]
    assert {c.sketch for _, c in best_eight} == {1}


def test_later_batches_look_beside_the_best(state: State) -> None:
    best = Candidate(0, (8, 48, 4))
    state = measured(state, best, Candidate(1, (1, 16)))
    batch = ask(state, 8, scorer(state.space))
    beside = [
        c for c in batch
        if c.sketch == 0 and sum(a != b for a, b in zip(c.knobs, best.knobs)) == 1
    ]  # fmt: skip
    assert len(beside) >= 3


def test_neighbours_beside_the_table_are_found(state: State) -> None:
    small = space(sketches()[:1], [{k: c[:3] for k, c in sketches()[0].table().items()}])
    state = measured(State(small, 1), Candidate(0, (8, 48, 4)))
    batch = ask(state, 4, scorer(small))
    assert any(not small.contains(c) for c in batch)


def test_exploration_prefers_what_may_beat_the_best() -> None:
    gains = improvement(
        100.0, np.array([90.0, 100.0, 150.0, 150.0]), np.array([0.1, 0.1, 0.1, 0.6])
    )
    assert gains[0] > gains[1] > gains[2]
    assert gains[3] > gains[2]
    assert improvement(100.0, np.array([50.0]), np.array([1e-9]))[0] == pytest.approx(50.0)
    assert improvement(100.0, np.array([200.0]), np.array([1e-9]))[0] == 0


def test_a_space_that_ends_gives_what_is_left(state: State) -> None:
    only = space(sketches()[2:], [sketches()[2].table()])
    end = State(only)
    batch = ask(end, 8, scorer(only))
    assert batch == (Candidate(0, ()),)
    assert ask(replace(end, results=(Result(batch[0], 1.0),)), 8, scorer(only)) == ()


# ---- tell --------------------------------------------------------------------------------------


def test_records_become_results_and_foreign_ones_do_not(state: State) -> None:
    c, d = Candidate(0, (8, 48, 4)), Candidate(1, (2, 16))
    foreign = Sketch("z", (act("inline", keep=[9]),), ()).schedule({})
    records = [
        record(state.space, c, 120.0),
        record(state.space, d, None, Status.BUILD_TIMEOUT),
        replace(record(state.space, c, 1.0), schedule='{"peer":"onnxruntime-1.31.1"}'),
        Record.of(workload="w", target="t", schedule=foreign.to_json(), toolchain="x", device="d",
                  threads=2, status=Status.OK, latency_us=1.0),
    ]  # fmt: skip
    told = tell(state, records)
    assert told.results == (Result(c, 120.0), Result(d, None))
    assert told.best == (120.0, c)
    assert state.results == ()


def test_a_failure_is_not_tried_again_but_a_cancelled_attempt_is(state: State) -> None:
    score = scorer(state.space)
    first, second = ask(state, 2, score)
    told = tell(state, [record(state.space, first, None, Status.RUN_CRASHED),
                        record(state.space, second, None, Status.CANCELLED)])  # fmt: skip
    again = ask(told, 8, score)
    assert first not in again
    assert second in again
    assert told.best is None


def test_a_candidate_counts_by_its_median_and_not_if_it_ever_failed(state: State) -> None:
    c, d = Candidate(0, (8, 48, 4)), Candidate(1, (2, 16))
    results = (Result(c, 90.0), Result(c, 130.0), Result(c, 110.0), Result(d, 50.0))
    assert replace(state, results=results).best == (50.0, d)
    assert replace(state, results=(*results, Result(d, None))).best == (110.0, c)


def test_attempts_since_the_best_improved(state: State) -> None:
    c = Candidate(0, (8, 48, 4))
    times = (100.0, 90.0, 89.9, None, 120.0)
    assert replace(state, results=tuple(Result(c, t) for t in times)).since_best == 3
    assert state.since_best == 0


# ---- whole searches ----------------------------------------------------------------------------


def learned(state: State):
    """A model that corrects `misled` by the mean error at equal knob values."""
    errors: dict[tuple[int, int, int], list[float]] = {}
    for r in state.results:
        if r.latency_us is not None:
            for n, v in enumerate(r.candidate.knobs):
                gap = np.log(r.latency_us / misled(r.candidate))
                errors.setdefault((r.candidate.sketch, n, v), []).append(gap)

    def model(c: Candidate) -> float:
        gaps = [np.mean(errors.get((c.sketch, n, v), [0.0])) for n, v in enumerate(c.knobs)]
        return misled(c) * float(np.exp(np.mean(gaps) if gaps else 0.0))

    return scorer(state.space, model, 0.2)


def test_a_search_replayed_without_a_device_finds_the_best(state: State) -> None:
    every = [truth(Candidate(n, tuple(map(int, r)))) for n in range(3) for r in state.space.rows(n)]
    done = replay(state, truth, learned, batches=6, size=8)
    assert done.best is not None
    assert done.best[0] <= 1.02 * min(every)
    assert len(done.results) == 48 < len(every) / 4


def test_a_search_survives_failures(state: State) -> None:
    def fragile(c: Candidate) -> float | None:
        return None if c.knobs and c.knobs[0] == 8 else truth(c)

    done = replay(state, fragile, learned, batches=6, size=8)
    assert done.best is not None
    assert done.best[1].knobs[0] != 8
    assert len(done.tried) == 48


def test_a_search_that_is_interrupted_goes_on_as_if_it_were_not(state: State) -> None:
    whole = replay(state, truth, learned, batches=5, size=8)
    half = replay(state, truth, learned, batches=2, size=8)
    records = [record(state.space, r.candidate, r.latency_us) for r in half.results]
    resumed = replay(tell(state, records), truth, learned, batches=3, size=8)
    assert resumed.results == whole.results
    other = replay(replace(state, seed=6), truth, learned, batches=5, size=8)
    assert other.results != whole.results
