"""ONNX's node tests through compiled kernels: `python -m autosched.tools.conformance`.

Prints `N of M` cases that come out right, by family, the reason of each case that does not, and
what is not ours. With `--more`, other schedules too than the first of each task.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from autosched.codegen.jobs import Failed, Job, Stage
from autosched.codegen.workers import WorkerPool
from autosched.tools.conformance_jobs import Verdict
from autosched.tools.onnx_cases import Case, cases, read_case, refused, write_case

CHUNK = 16  # cases a job: their kernels share a library
JOB_S = 10.0  # a case by one schedule of each task
THREADS = 2


def conformance(
    folders: Sequence[Path], *, more: int = 0, seed: int = 0, workers: int = 2,
    chunk: int = CHUNK,
) -> Iterator[Verdict]:  # fmt: skip
    """A Verdict for the case in each folder; one that kills its worker costs only itself."""
    def job(some: Sequence[Path]) -> Job:
        kwargs = {"folders": [str(f) for f in some], "threads": THREADS, "more": more,
                  "seed": seed}  # fmt: skip
        function = "autosched.tools.conformance_jobs:check"
        return Job(function, kwargs, Stage.RUN, 30 + JOB_S * len(some) * (1 + more))

    chunks = [folders[n : n + chunk] for n in range(0, len(folders), chunk)]
    env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with WorkerPool(workers, env=env, preload=("autosched.tools.conformance_jobs",)) as pool:
        for some, outcome in zip(chunks, pool.map([job(c) for c in chunks])):
            singles = [[f] for f in some] if isinstance(outcome, Failed) else []
            if not isinstance(outcome, Failed):
                yield from (Verdict(**row) for row in outcome.value)
            for (folder,), alone in zip(singles, pool.map([job(s) for s in singles])):
                if isinstance(alone, Failed):
                    case = read_case(folder)
                    why = f"{alone.status.value}: {alone.reason}"
                    yield Verdict(case.name, case.family, why)
                else:
                    yield from (Verdict(**row) for row in alone.value)


def write_cases(found: Sequence[Case], folder: Path) -> list[Path]:
    """Each case in a folder of its own."""
    paths = [folder / case.name for case in found]
    for case, path in zip(found, paths):
        write_case(case, path)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 where every case that is ours is right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name or family contains this")
    parser.add_argument("--more", type=int, default=0, help="further schedules of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the further schedules")
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    parser.add_argument("--chunk", type=int, default=CHUNK, help="cases in one library")
    parser.add_argument("--verbose", action="store_true", help="a line for each case")
    options = parser.parse_args(arguments)
    chosen = [c for c in cases() if options.only in c.name or options.only in c.family]
    verdicts = [Verdict(c.name, c.family, outside=why) for c, why in refused()
                if options.only in c.name or options.only in c.family]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="autosched-") as folder:
        paths = write_cases(chosen, Path(folder))
        for v in conformance(paths, more=options.more, seed=options.seed,
                             workers=options.workers, chunk=options.chunk):  # fmt: skip
            verdicts.append(v)
            if options.verbose or v.problem:
                print(f"{v.name}: {v.problem or v.outside or 'right'}", flush=True)
    report(verdicts)
    return int(any(v.problem for v in verdicts))


def report(verdicts: Sequence[Verdict]) -> None:
    """The table by family, the reasons of what is outside, and `N of M` last."""
    right: Counter[str] = Counter()
    ours: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    for v in verdicts:
        if v.outside:
            outside[v.outside] += 1
            continue
        ours[v.family] += 1
        right[v.family] += not v.problem
    for family in sorted(ours):
        print(f"  {family:36} {right[family]:4} of {ours[family]:4}")
    for reason, times in sorted(outside.items()):
        print(f"  outside, {times}: {reason}")
    kernels = sum(v.kernels for v in verdicts)
    print(f"{right.total()} of {len(verdicts)} cases right, {outside.total()} not ours, "
          f"{kernels} kernels")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
