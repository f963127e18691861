"""The table of features: name, unit, group, meaning. `document` prints it as docs/features.md.

VERSION names both the columns and what they mean: change it with either, and old weights are
refused instead of misread.
"""

from __future__ import annotations

from dataclasses import dataclass

VERSION = "cpu-1"


@dataclass(frozen=True)
class Feature:
    name: str
    unit: str
    group: str  # "program" | "target" | "schedule"
    doc: str


def _rows(group: str, *rows: tuple[str, str, str]) -> tuple[Feature, ...]:
    return tuple(Feature(name, unit, group, doc) for name, unit, doc in rows)


FEATURES: tuple[Feature, ...] = (
    *_rows(
        "program",
        ("program_flops", "operations", "additions, multiplications and the like, each once"),
        ("program_contracted", "share", "part of them inside contractions"),
        ("program_special", "evaluations", "exp, erf, division, square root, ..."),
        ("program_weighted", "operations", "flops plus special functions by their cost"),
        ("program_read_bytes", "bytes", "inputs, each element that is needed once"),
        ("program_write_bytes", "bytes", "outputs"),
        ("program_intensity", "operations/byte", "weighted operations per byte read or written"),
        ("program_nests", "nests", "stores, each with its loops"),
        ("program_buffers", "buffers", "distinct buffers that are read or written"),
    ),
    *_rows(
        "target",
        ("target_threads", "threads", "that run a parallel region"),
        ("target_lanes", "lanes", "fp32 elements of a vector register"),
        ("target_registers", "registers", "vector registers of a core"),
        ("target_fma", "1/cycle", "vector multiply-adds of a core"),
        ("target_clock", "GHz", "clock of a core"),
        ("target_l1_bytes", "bytes", "first-level cache of a core"),
        ("target_l2_bytes", "bytes", "second-level cache of a core"),
        ("target_l3_bytes", "bytes", "last-level cache"),
        ("target_dram", "GB/s", "memory bandwidth of all threads"),
    ),
    *_rows(
        "schedule",
        ("analytic_us", "us", "the analytic model's time: `bound_cycles`, launches and the call"),
        ("bound_cycles", "cycles", "compute and memory joined, busiest thread, sum of regions"),
        ("compute_cycles", "cycles", "sum over loop bodies of their busiest unit"),
        ("memory_cycles", "cycles", "traffic of the busiest cache level at its bandwidth"),
        ("arithmetic_cycles", "cycles", "if only arithmetic counted"),
        ("load_cycles", "cycles", "if only loads counted"),
        ("store_cycles", "cycles", "if only stores counted"),
        ("issue_cycles", "cycles", "if only the number of instructions counted"),
        ("chain_cycles", "cycles", "if only chains of dependent operations counted"),
        ("overhead_cycles", "cycles", "leaving loops, starting tasks"),
        ("regions", "regions", "top-level statements: one after the other"),
        ("launches", "regions", "regions with more than one parallel task"),
        ("tasks", "tasks", "parallel tasks of all regions"),
        ("imbalance", "ratio", "busiest thread's share over the mean share, by compute"),
        ("fma_ops", "operations", "multiply-adds executed, all threads"),
        ("other_ops", "operations", "other arithmetic executed, all threads"),
        ("special_ops", "operations", "special functions executed, by their cost, all threads"),
        ("repeated", "ratio", "operations executed over those of the program"),
        ("vector_share", "share", "of executed operations that are in vectors"),
        ("lanes_used", "share", "of the lanes of vector operations that do work"),
        ("vector_loads", "instructions", "contiguous loads, busiest thread"),
        ("scalar_loads", "instructions", "scalar and broadcast loads, busiest thread"),
        ("gathered_loads", "elements", "lanes that are loaded one by one, busiest thread"),
        ("stores", "instructions", "stores, busiest thread"),
        ("scattered_stores", "elements", "lanes that are stored one by one, busiest thread"),
        ("loaded_bytes", "bytes", "into registers, busiest thread"),
        ("reread", "ratio", "bytes loaded, all threads, over the bytes of the buffers"),
        ("l2_traffic", "bytes", "between first and second level, busiest thread"),
        ("l3_traffic", "bytes", "between second and third level, busiest thread"),
        ("dram_traffic", "bytes", "beyond the last level, busiest thread"),
        ("working_bytes", "bytes", "touched by the busiest thread, largest region"),
        ("task_bytes", "bytes", "touched by one parallel task, largest region"),
        ("set_pressure", "lines", "of one access that want the same set of the first level"),
        ("scratch_bytes", "bytes", "scratch of one task, largest region"),
        ("packed_bytes", "bytes", "constants laid out anew"),
        ("loop_entries", "loops", "loops entered, busiest thread"),
        ("iterations", "iterations", "loop iterations, busiest thread"),
        ("lane_folds", "vectors", "halving steps of reductions across lanes, busiest thread"),
        ("code_uops", "instructions", "size of the code after unrolling"),
        ("spills", "registers", "accumulators and operands beyond the registers, worst loop"),
        ("hot_share", "share", "of compute_cycles in the hottest loop body"),
        ("hot_cycles", "cycles", "of one iteration of it"),
        ("hot_trips", "iterations", "each time that it is entered"),
        ("hot_entries", "loops", "times that it is entered, busiest thread"),
        ("hot_accumulators", "registers", "of the register tile"),
        ("hot_operands", "registers", "vectors and broadcasts held beside them"),
        ("hot_fma", "instructions", "vector multiply-adds in an iteration"),
        ("hot_loads_per_fma", "ratio", "vector loads per vector multiply-add"),
        ("hot_scalars_per_fma", "ratio", "broadcast and scalar loads per vector multiply-add"),
        ("hot_chain", "ratio", "latency of its chain over the cycles that its units need"),
        ("hot_uops", "instructions", "in an iteration"),
        ("hot_bytes", "bytes", "touched in one run of the hottest loop"),
    ),
)


def document() -> str:
    """The table as Markdown, the same bytes for the same code."""
    titles = {
        "program": "Of the program: the same for every schedule of a workload",
        "target": "Of the target: so that a model can move to another device",
        "schedule": "Of the schedule",
    }
    lines = [
        "# Features of the cost models",
        "",
        f"Version `{VERSION}`. Generated by `python -m autosched.costmodel.catalogue`; a test",
        'keeps it current. "Busiest thread" means: of the thread with the most tasks.',
    ]
    for group, title in titles.items():
        lines += ["", f"## {title}", "", "| name | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{f.name}` | {f.unit} | {f.doc} |" for f in FEATURES if f.group == group]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
