"""A search run on known latencies instead of a device: how strategies are compared and tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autosched.search.space import Candidate
from autosched.search.strategy import Result, Score, State, ask

Latency = Callable[[Candidate], "float | None"]


def replay(
    state: State, latency: Latency, refit: Callable[[State], Score], batches: int, size: int
) -> State:
    """`batches` rounds of ask and tell; latency: µs of a candidate, None for a failure; refit:
    the scores of a model that knows the state's results."""
    for _ in range(batches):
        batch = ask(state, size, refit(state))
        if not batch:
            break
        told = tuple(Result(c, latency(c)) for c in batch)
        state = replace(state, results=(*state.results, *told))
    return state
