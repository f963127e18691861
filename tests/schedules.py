"""Sketches written by hand, and a target that no machine decides: for models and search."""

from __future__ import annotations

from dataclasses import replace

from autosched.ir.ops import knob
from autosched.ir.rules.action import act
from autosched.ir.schedule import Knob, Sketch
from autosched.ir.target import FACTS, KIB, MIB, Target

# A core that splits 512-bit operations, at a clock and peak that were measured.
ZEN4 = Target(
    name="cpu", kind="cpu", arch="x86_64", device="EPYC of family 25", features=("avx512f",),
    cores=2, threads=2, lanes=16, registers=32, fma=1, clock_ghz=3.68, l1_bytes=32 * KIB,
    l2_bytes=MIB, l3_bytes=32 * MIB, line_bytes=64, dram_gbs=24.0,
    peak_gflops=(("float32", 235.5),), sources=tuple((f, "test") for f in FACTS),
)  # fmt: skip
AVX2 = replace(ZEN4, lanes=8, registers=16, fma=2)


def gemm_sketch(lanes: int = 16, name: str = "tiled") -> Sketch:
    """Rows x vectors of accumulators, w packed once, panels in parallel."""
    return Sketch(
        name,
        (
            act("inline", keep=[]),
            act("split", axis="n", size="$cols", nest="y"),
            act("split", axis="n.i", size=lanes, nest="y", tail="exact", into=["n.u", "n.l"]),
            act("split", axis="m", size="$rows", nest="y", into=["m.o", "m.u"]),
            act("bind", nest="y",
                loops=["n.o:grid", "m.o:serial", "m.u:unroll", "n.u:unroll", "n.l:lane"]),
            act("place", nest="y", operand="w", home="packed"),
        ),
        (
            Knob("cols", tuple(lanes * v for v in (1, 2, 3, 4, 6))),
            Knob("rows", (1, 2, 3, 4, 6, 8, 9, 12, 14)),
        ),
        (knob("rows") * (knob("cols") // lanes) <= 30,),
    )  # fmt: skip


def unpacked_sketch() -> Sketch:
    """The same loops, w read as it lies."""
    made = gemm_sketch(name="unpacked")
    return replace(made, actions=made.actions[:-1])


def softmax_sketch(keep: tuple[int, ...] = ()) -> Sketch:
    """Row blocks in parallel, lanes along the reduced axis; for softmax and layernorm of [t, c]."""
    return Sketch(
        "rows",
        (
            act("inline", keep=list(keep)),
            act("split", axis="t", size="$block"),
            act("bind", loops=["t.o:grid"]),
            act("rfactor", nest="t0", axis="c", lanes=16, unroll="$parts"),
            act("split", axis="c", size="$cols", nest="y", into=["c.o", "c.r"]),
            act("split", axis="c.r", size=16, nest="y", tail="exact", into=["c.u", "c.l"]),
            act("bind", nest="y",
                loops=["t.i:serial", "c.o:serial", "c.u:unroll", "c.l:lane"]),
        ),
        (Knob("block", (1, 2, 4, 8, 16)), Knob("parts", (1, 2, 4)), Knob("cols", (16, 32, 64))),
    )  # fmt: skip
