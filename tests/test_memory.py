"""The arena's plan: values alive together never overlap, values that are not share bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autosched.codegen.runtime.arrays import ALIGNMENT, aligned_up
from autosched.codegen.runtime.memory import Lifetime, lifetimes, plan

LIVES = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 30), st.integers(0, 10)), max_size=30
).map(lambda rows: [Lifetime(f"v{n}", s, f, f + d) for n, (s, f, d) in enumerate(rows)])


@given(LIVES)
def test_values_alive_together_are_apart(lives: list[Lifetime]) -> None:
    offsets, total = plan(lives)
    for a in lives:
        assert offsets[a.name] % ALIGNMENT == 0
        assert offsets[a.name] + a.size <= total
        for b in lives:
            if a is not b and a.size and b.size and a.first <= b.last and b.first <= a.last:
                low, high = sorted((a, b), key=lambda v: offsets[v.name])
                assert offsets[low.name] + low.size <= offsets[high.name]


def test_a_chain_needs_two_buffers() -> None:
    sizes = {f"v{n}": 1000 for n in range(10)}
    steps = [["x", "v0"], *([f"v{n}", f"v{n + 1}"] for n in range(9))]
    _, total = plan(lifetimes(sizes, steps))
    assert total == 2 * aligned_up(1000)


def test_lifetimes_reach_from_the_first_to_the_last_touch() -> None:
    steps = [["a"], ["b"], ["a", "b"], ["c"]]
    assert lifetimes({"a": 1, "b": 2, "unused": 3}, steps) == [
        Lifetime("a", 1, 0, 2), Lifetime("b", 2, 1, 2)
    ]  # fmt: skip
