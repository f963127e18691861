"""A log in, its best schedules and its wrong ones checked again and again on this machine's GPU.

    python -m autosched.tools.gpu_recheck datasets/logs/LOG.parquet --best 2 --times 40

A schedule that is right once may still race: every run here starts from poisoned outputs and is
compared with float64. First a kernel reads beyond its memory on purpose, which must cost a fresh
process and no more; how long that takes is printed. Ends with 1 where a best schedule fails once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autosched.codegen.jobs import Failed
from autosched.codegen.reference import write_program
from autosched.codegen.triton_spec import Launch, Tensor, TritonModule
from autosched.datasets.exchange import read_records
from autosched.datasets.place import StoreError
from autosched.ir.define import algebra
from autosched.ir.ops import input_
from autosched.ir.record import Record, Status
from autosched.ir.text import parse
from autosched.tools.gpu_lab import Candidate, GpuLab, Setup, reason

STRAY = '''"""Stores far beyond its output, on purpose."""

import triton
import triton.language as tl


@triton.jit
def stray(x, y):
    tl.store(y + (tl.program_id(0).to(tl.int64) + 1) * (1 << 38), tl.load(x))
'''


@dataclass(frozen=True)
class Chosen:
    """A schedule of the log: what it was then, and for which program."""

    workload: str
    program: str
    record: Record


def choose(records: Sequence[Record], best: int) -> Iterator[Chosen]:
    """The best few right schedules of each workload, and all that were wrong."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        if r.peer is None:
            groups[r.workload].append(r)
    for workload, found in sorted(groups.items()):
        timed = sorted((r for r in found if r.latency_us), key=lambda r: r.latency_us or 0.0)
        wrong = [r for r in found if r.status in (Status.WRONG_RESULT, Status.NAN_RESULT)]
        for r in (*timed[:best], *wrong):
            yield Chosen(workload, str(r.extra.get("program", workload[:12])), r)


def recheck(lab: GpuLab, chosen: Sequence[Chosen], times: int) -> Iterator[tuple[Chosen, str]]:
    """Each schedule with what came of it: "" where it was right every time."""
    # All are built at once, in the background, while the first are measured.
    tickets = [lab.submit_builds(f"task{n}", _target(c), [Candidate(json.loads(c.record.schedule))])
               for n, c in enumerate(chosen)]  # fmt: skip
    for number, item in enumerate(chosen):
        name = f"task{number}"
        (attempt,) = lab.built(tickets[number])
        if not attempt.ok:
            yield item, f"not built: {attempt.error}"
            continue
        failed = [a for a in (lab.measure(name, attempt) for _ in range(times)) if not a.ok]
        yield item, f"{len(failed)} of {times} runs: {failed[0].error}" if failed else ""


def _target(item: Chosen) -> str:
    return "sm_90+tf32" if "tf32" in item.record.target else "sm_90"


def recovery(lab: GpuLab) -> tuple[str, float]:
    """What a stray store ends with, and the seconds until the next job runs."""
    x = input_("x", {"n": 64})
    program = algebra(y=("n", x * 2.0))
    write_program(lab.place("stray"), program)
    tensors = (Tensor("x", "float32", (64,), "input"), Tensor("y", "float32", (64,), "output"))
    module = TritonModule(STRAY, tensors, (Launch("stray", ("x", "y"), 1, 1, 1),))
    attempt = lab.build_module(module, "sm_90")
    if not attempt.ok:
        return f"not built: {attempt.error}", 0.0
    ended = lab.measure("stray", attempt)
    lab.prepare("stray")  # the first job of the next process
    assert lab.measurer is not None
    return f"{ended.status.value}: {ended.error}", lab.measurer.recovery_s


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_recheck", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--best", type=int, default=1, help="right schedules of each program")
    parser.add_argument("--times", type=int, default=20, help="runs of each schedule")
    options = parser.parse_args(argv)
    try:
        records, texts = read_records(options.log)
    except StoreError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = list(choose(records, options.best))
    bad = 0
    with tempfile.TemporaryDirectory() as folder, GpuLab(Path(folder), Setup("sm_90")) as lab:
        assert lab.measurer is not None
        device = lab.measurer.device()
        if isinstance(device, Failed):
            print(f"no GPU can be used here: {reason(device).splitlines()[0]}", file=sys.stderr)
            return 2
        said, seconds = recovery(lab)
        print(f"stray store: {said.splitlines()[0][:120]}; next process after {seconds:.2f} s")
        for number, item in enumerate(chosen):
            write_program(lab.place(f"task{number}"), parse(texts[item.workload]))
        for item, failure in recheck(lab, chosen, options.times):
            was = item.record.status
            if failure or was is not Status.OK:
                print(f"{item.program}: was {was.value}, now {failure or 'right every time'}: "
                      f"{item.record.schedule}")  # fmt: skip
            bad += bool(failure) and was is Status.OK
    print(f"{len(chosen)} schedules, {options.times} times each; {bad} of the best failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
