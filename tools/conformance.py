"""ONNX's node tests through compiled kernels: `python -m autosched.tools.conformance`.

Prints `N of M` cases that come out right, by family, the reason of each case that does not, and
what is not ours. With `--more`, other schedules too than the first of each task.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
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
    def wanted(case: Case) -> bool:
        return options.only in case.name or options.only in case.family

    chosen = [c for c in cases() if wanted(c)]
    foreign = [(c, why) for c, why in refused() if wanted(c)]
    verdicts = [Verdict(c.name, c.family, outside=why) for c, why in foreign]
    uses = {c.name: {n.op_type for n in c.model.graph.node}
            for c in (*chosen, *(c for c, _ in foreign))}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="autosched-") as folder:
        paths = write_cases(chosen, Path(folder))
        for v in conformance(paths, more=options.more, seed=options.seed,
                             workers=options.workers, chunk=options.chunk):  # fmt: skip
            verdicts.append(v)
            if options.verbose or v.problem:
                print(f"{v.name}: {v.problem or v.outside or 'right'}", flush=True)
    report(verdicts, uses)
    return int(any(v.problem for v in verdicts))


def report(verdicts: Sequence[Verdict], uses: Mapping[str, Set[str]]) -> None:
    """How many cases are right, by family and by the operators in them (`uses`, by case), why
    some are not ours, and `N of M` last."""
    outside = Counter(v.outside for v in verdicts if v.outside)
    for family, (right, whole, away) in _tally((v, (v.family,)) for v in verdicts).items():
        print(f"  {family:36} {right:4} of {whole:4}" + (f", {away} not ours" if away else ""))
    print("  by the operators in them, whatever else is there:")
    found = _tally((v, uses[v.name]) for v in verdicts).items()
    several = ", ".join(f"{op} {right} of {whole}" for op, (right, whole, _) in found)
    print(textwrap.fill(several, 98, initial_indent="    ", subsequent_indent="    "))
    for reason, times in sorted(outside.items()):
        print(f"  not ours, {times}: {reason}")
    right = sum(not v.problem and not v.outside for v in verdicts)
    kernels = sum(v.kernels for v in verdicts)
    print(f"{right} of {len(verdicts)} cases right, {outside.total()} not ours, {kernels} kernels")


def _tally(
    labelled: Iterable[tuple[Verdict, Iterable[str]]],
) -> dict[str, tuple[int, int, int]]:
    """For each label: cases right, all cases, cases that are not ours."""
    right, whole, outside = Counter[str](), Counter[str](), Counter[str]()
    for verdict, labels in labelled:
        whole.update(labels)
        outside.update(labels if verdict.outside else ())
        right.update(() if verdict.problem or verdict.outside else labels)
    return {name: (right[name], whole[name], outside[name]) for name in sorted(whole)}


if __name__ == "__main__":
    sys.exit(main())
