"""GPU target in, its `GpuRates` out: what one multiprocessor does in a cycle, and where from.

A Target says what the device is; these are the further numbers that an analytic model needs.
Learned models correct what they miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autosched.ir.count import scalar_cost
from autosched.ir.target import Target

# Cycles from operand to result inside one iteration. Source: published microbenchmarks of Hopper
# (arithmetic 4, special functions about 20, shuffles about 25 each); a reduce is some shuffles and
# a meeting of warps in shared memory, a contraction ends with a wait for the tensor core.
CHAIN_CYCLES: Mapping[str, float] = {
    "arith": 5.0, "int": 5.0, "move": 5.0, "special": 25.0, "reduce": 90.0, "scan": 250.0,
    "dot": 70.0, "trisolve": 2000.0,
}  # fmt: skip

# (evaluations of the special-function unit, other operations) of one scalar function.
_SPECIAL: Mapping[str, tuple[float, float]] = {
    "exp2": (1, 1), "exp": (1, 2), "log2": (1, 2), "log": (1, 3), "rsqrt": (1, 1), "sqrt": (1, 3),
    "div": (1, 8), "tanh": (2, 6), "erf": (1, 20), "sin": (0, 30), "cos": (0, 30), "pow": (2, 30),
}  # fmt: skip


def special_parts(fn: str) -> tuple[float, float]:
    """(special-function evaluations, simple operations) of one evaluation of `fn`."""
    return _SPECIAL.get(fn, (1.0, scalar_cost(fn)))


SOURCES: Mapping[str, str] = {
    "fp32_per_cycle": "CUDA programming guide, arithmetic throughput: 128 results a cycle",
    "int_per_cycle": "the same table: 64 for 32-bit integers and comparisons",
    "move_per_cycle": "the same table: 64 for conversions between types",
    "mufu_per_cycle": "the same table: 16",
    "issue_per_cycle": "four schedulers, a warp each: 128 lanes",
    "shared_bytes_per_cycle": "32 banks of 4 bytes",
    "memory_lanes_per_cycle": "one warp instruction a cycle to loads and stores",
    "l2_port_bytes_per_cycle": "64 between a multiprocessor and the second level",
    "l2_gbs": "calibrated: products of 4096 and 8192 cubed with blocks of 128 x 128",
    "dram_gbs": "measured: device copy, bytes read plus written",
    "tensor_sustained": "measured: dense products reach 0.82 of the data sheet under load",
    "mma_share": "published: synchronous tensor instructions reach about 0.62 of Hopper's peak",
    "cuda_dot_share": "calibrated: products on CUDA cores wait for operands in shared memory",
    "load_cycles": "published: about 270 cycles to the second level, 600 to memory",
    "block_cycles": "start of a program: launch, parameters, first addresses",
    "wait_cycles": "a step of a loop that fetches ahead: waits, barrier, addresses",
    "step_instructions": "of each warp in a step of a loop, beside its values: barriers, indices",
    "launch_us": "a kernel replayed in a graph",
    "clock_mhz": "clock under load: 0.9 of the boost clock",
    "descriptor_cycles": "a descriptor made by the program: a write, a fence, a fetch",
    "warm_share": "of the second level: what repeated calls surely find; twice this surely not",
    "shared_reserved": "CUDA programming guide: 1 KiB of shared memory a block",
    "block_slots": "CUDA programming guide: resident blocks of a multiprocessor",
    "warp_slots": "CUDA programming guide: resident warps of a multiprocessor",
}


@dataclass(frozen=True)
class GpuRates:
    """What one multiprocessor does in a cycle, sizes in bytes, the device's bandwidths in GB/s."""

    cores: int
    lanes: int
    registers: int
    shared_bytes: float
    l2_bytes: float
    clock_mhz: float
    fp32_per_cycle: float
    int_per_cycle: float
    move_per_cycle: float
    mufu_per_cycle: float
    issue_per_cycle: float
    shared_bytes_per_cycle: float
    memory_lanes_per_cycle: float
    l2_port_bytes_per_cycle: float
    l2_gbs: float
    dram_gbs: float
    tensor_sustained: float
    mma_share: float
    cuda_dot_share: float
    load_cycles: float
    block_cycles: float
    wait_cycles: float
    step_instructions: float
    launch_us: float
    descriptor_cycles: float
    warm_share: float
    shared_reserved: float
    block_slots: float
    warp_slots: float
    async_dots: bool

    @property
    def share_of_l2(self) -> float:
        """Bytes a cycle of the second level for each multiprocessor when all ask."""
        return self.l2_gbs * 1e3 / self.cores / self.clock_mhz


def gpu_rates(target: Target) -> GpuRates:
    """The rates of a GPU target."""
    clock = 0.9 * target.clock_ghz
    return GpuRates(
        cores=target.cores,
        lanes=target.lanes,
        registers=target.registers,
        shared_bytes=float(target.l1_bytes),
        l2_bytes=float(target.l2_bytes),
        clock_mhz=clock * 1e3,
        fp32_per_cycle=32.0 * target.fma,
        int_per_cycle=64.0,
        move_per_cycle=64.0,
        mufu_per_cycle=16.0,
        issue_per_cycle=128.0,
        shared_bytes_per_cycle=128.0,
        memory_lanes_per_cycle=32.0,
        l2_port_bytes_per_cycle=64.0,
        # The second level's bandwidth follows the number of multiprocessors and the clock.
        l2_gbs=0.62 * target.cores * 64.0 * clock,
        dram_gbs=0.9 * target.dram_gbs,
        tensor_sustained=0.82,
        mma_share=0.62 if "wgmma" in target.features else 0.9,
        cuda_dot_share=0.45,
        load_cycles=700.0,
        block_cycles=700.0,
        wait_cycles=60.0,
        step_instructions=60.0,
        launch_us=2.0,
        descriptor_cycles=1000.0,
        warm_share=0.35,
        shared_reserved=1024.0,
        block_slots=32.0,
        warp_slots=64.0,
        async_dots="wgmma" in target.features,
    )


# Types of a lower rate than their own row in the data sheet, as shares of another type's.
_TENSOR_RATE: Mapping[str, tuple[str, float]] = {
    "tf32": ("bfloat16", 0.5),
    "tf32x3": ("bfloat16", 0.5 / 3.0),
}
# What asynchronous tensor instructions take, and what tensor cores take at all.
ASYNC_TYPES = frozenset(
    ("bfloat16", "float16", "float8_e4m3", "float8_e5m2", "int8", "tf32", "tf32x3")
)
TENSOR_TYPES = ASYNC_TYPES | {"float64"}


def tensor_gflops(target: Target, kind: str) -> float:
    """Peak of the tensor cores for a type or a precision of float32 products."""
    base, share = _TENSOR_RATE.get(kind, (kind, 1.0))
    return target.peak(base) * share
