"""Random programs through random schedules and compiled kernels, against float64.

`python tests/random_programs.py FIRST LAST` goes on where this stops.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from random_programs import problem_of, random_graph, shrunk

SEEDS = 96
CHUNK = 8


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_kernels_equal_the_definition(first: int, tmp_path: Path) -> None:
    wrong = []
    for seed in range(first, first + CHUNK):
        folder = tmp_path / str(seed)
        folder.mkdir()
        if problem_of(seed, folder):
            steps, why = shrunk(seed, folder, more=1)
            wrong.append(f"seed {seed}, {steps} steps: {why}")
    assert not wrong, "\n".join(wrong)


def test_a_seed_yields_one_graph_and_its_prefixes() -> None:
    """Shrinking takes the first operators of the very graph that failed."""
    (whole, arrays), (again, _) = random_graph(5), random_graph(5)
    assert [v.node for v in whole.outputs] == [v.node for v in again.outputs]
    part, fewer = random_graph(5, steps=1)
    assert set(fewer) <= set(arrays) and len(part.outputs) >= 1
