"""Target in, its `Rates` out: cycles and bytes a cycle of one core, with where each comes from.

A Target says what the device is; these are the further numbers that an analytic model needs and
that hardly differ between cores of one class. Learned models correct what they miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autosched.ir.node import IRError
from autosched.ir.target import Target

# Cycles from operand to result along a chain. Source: Zen 4 and Golden Cove optimisation guides.
LATENCY: Mapping[str, float] = {"fma": 4.0, "arith": 4.0, "int": 1.0, "move": 3.0}
# A polynomial of `cost` operations is a chain of about three quarters of them.
SPECIAL_LATENCY = 3.0

SOURCES: Mapping[str, str] = {
    "load_per_cycle": "a core that splits 512-bit multiply-adds splits 512-bit loads too",
    "scalar_load_per_cycle": "two load ports at least, on every core since 2013",
    "store_per_cycle": "one store port of 256 bits on cores that split 512-bit operations",
    "vector_per_cycle": "additions have pipes of their own beside the multiply-adds; measured",
    "gather_per_cycle": "a strided or gathered lane is a scalar load and an insertion",
    "scatter_per_cycle": "an extraction, a store, and a line of its own; measured",
    "scalar_per_cycle": "two scalar floating-point pipes at least",
    "issue_width": "six micro-operations a cycle, five sustained",
    "window_uops": "what a reorder buffer of 320 to 512 entries overlaps of the next loop",
    "l2_bytes_per_cycle": "64 stated by vendors; measured in register tiles of 1 and 2 rows",
    "l3_bytes_per_cycle": "measured in products of one row and in elementwise streams",
    "loop_exit_cycles": "the branch that leaves a long loop is mispredicted: 12 to 20 cycles",
    "task_cycles": "index arithmetic and prologue of one parallel task",
    "call_us": "ctypes call of a kernel with ready arguments, measured",
    "launch_us": "launch of a hot pool of two threads, measured",
}


@dataclass(frozen=True)
class Rates:
    """What one core does in a cycle; times of launches in µs."""

    threads: int
    registers: int
    vector_bytes: int
    fma_per_cycle: float
    vector_per_cycle: float
    load_per_cycle: float
    scalar_load_per_cycle: float
    store_per_cycle: float
    gather_per_cycle: float
    scatter_per_cycle: float
    scalar_per_cycle: float
    issue_width: float
    window_uops: float
    l1_bytes: float
    l1_ways: float
    l2_bytes: float
    l3_bytes: float
    line_bytes: float
    l2_bytes_per_cycle: float
    l3_bytes_per_cycle: float
    dram_bytes_per_cycle: float
    loop_exit_cycles: float
    task_cycles: float
    clock_mhz: float
    call_us: float
    launch_us: float


# A cache serves as much as this before conflicts and other data push lines out.
_USABLE = 0.85


def rates(target: Target) -> Rates:
    """The rates of a CPU target. Raises IRError for other kinds: their models are others."""
    if target.kind != "cpu":
        raise IRError(f"no rates for a {target.kind} target")
    wide = target.lanes * 4 > 32 and target.fma < 2
    threads = max(1, min(target.threads, target.cores))
    cycles_per_s = target.clock_ghz * 1e9
    return Rates(
        threads=threads,
        registers=target.registers,
        vector_bytes=target.lanes * 4,
        fma_per_cycle=float(target.fma),
        vector_per_cycle=1.7 if wide else 1.25 * target.fma,
        load_per_cycle=1.0 if wide else 2.0,
        scalar_load_per_cycle=2.0,
        store_per_cycle=0.5 if wide else 1.0,
        gather_per_cycle=1.5,
        scatter_per_cycle=0.35,
        scalar_per_cycle=2.0,
        issue_width=5.0,
        window_uops=256.0,
        l1_bytes=_USABLE * target.l1_bytes,
        l1_ways=max(4.0, target.l1_bytes / 4096.0),
        l2_bytes=_USABLE * target.l2_bytes,
        l3_bytes=_USABLE * target.l3_bytes,
        line_bytes=float(target.line_bytes),
        l2_bytes_per_cycle=48.0,
        l3_bytes_per_cycle=26.0,
        dram_bytes_per_cycle=target.dram_gbs * 1e9 / threads / cycles_per_s,
        loop_exit_cycles=12.0,
        task_cycles=40.0,
        clock_mhz=target.clock_ghz * 1e3,
        call_us=0.4,
        launch_us=0.8,
    )
