"""What the analytic model of GPUs makes of parts: programs, scratch, arrivals and launches."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import split_programs as S

from autosched.costmodel.features import FeatureTable, sketch_features
from autosched.costmodel.roofline import RooflineModel
from autosched.ir.node import Program
from autosched.ir.rules.action import Illegal
from autosched.ir.schedule import Sketch
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.sketch_split import split_sketches
from autosched.ir.target import parse_target

SM90 = parse_target("sm_90")
SMALL, DECODE = S.gemm(16, 4096, 4096), S.decode(32, 8, 1, 32768, 128)


def features(program: Program, sketch: Sketch, limit: int = 3000) -> tuple[FeatureTable, dict]:
    made = sketch_features(program, sketch, SM90)
    assert not isinstance(made, Illegal), made
    table = sketch.table(limit)
    return made.evaluate(table), table


@lru_cache
def fastest(program: Program, split: bool) -> tuple[float, str]:
    """(µs, sketch) of the untrained model's pick."""
    found = []
    for sketch in (split_sketches if split else gpu_sketches)(program, SM90):
        if len(next(iter(sketch.table(3000).values()))):
            rows, _ = features(program, sketch)
            found.append((float(RooflineModel().predict(rows).latency_us.min()), sketch.name))
    return min(found)


@pytest.mark.parametrize("program", [SMALL, DECODE], ids=["product", "decoding"])
def test_few_programs_are_split(program: Program) -> None:
    (parts_us, name), (whole_us, _) = fastest(program, True), fastest(program, False)
    assert parts_us < whole_us and "arrive" in name


def test_decoding_reads_every_key_and_value_once() -> None:
    moved = 2 * 8 * 32768 * 128 * 2
    bandwidth_us = moved / 4.3e6  # measured: 4.3 TB/s
    assert 0.9 * bandwidth_us < fastest(DECODE, True)[0] < 1.5 * bandwidth_us
    assert fastest(DECODE, False)[0] > 2 * bandwidth_us


def test_parts_are_programs_that_take_a_share_each() -> None:
    sketch = next(s for s in split_sketches(SMALL, SM90) if ".arrive." in s.name)
    rows, table = features(SMALL, sketch)
    tiles = -(-4096 // table["k0.n"])
    np.testing.assert_allclose(rows.column("programs"), tiles * table["parts"])
    # What is computed stays the same, whatever the parts; and one program merges.
    flops = rows.column("dot_flops") / np.maximum(16, table.get("k0.m", 16))
    assert flops.max() < 1.05 * flops.min()
    special = rows.column("special_ops")
    assert special.max() < 1.3 * special.min()


def test_a_merge_of_its_own_is_a_launch_and_writes_scratch() -> None:
    both = split_sketches(SMALL, SM90)
    arrive, apart = (next(s for s in both if f".{how}." in s.name) for how in ("arrive", "apart"))
    one, two = (features(SMALL, s)[0] for s in (arrive, apart))
    assert np.all(two.column("launch_us") == 2 * one.column("launch_us")[0])
    assert two.column("stored_bytes").min() > one.column("stored_bytes").max()
