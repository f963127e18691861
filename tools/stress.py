"""Random programs through random legal schedules: `python -m autosched.tools.stress`.

Runs for `--seconds` from `--seed` on. A program that comes out wrong, or that kills its worker, is
shrunk and kept as a text in `--keep`, which the tests replay forever:

    # backend: tvm
    # seed: 17            of its inputs and schedules
    # schedules: 4        of each of its forms
    # why: y0: relative error 2.1e-01 is above 1e-05 for float32
    program algebra
    ...
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autosched.codegen.jobs import Failed, Job, Stage
from autosched.codegen.workers import WorkerPool
from autosched.ir.node import Program
from autosched.ir.text import parse, to_text
from autosched.tools.backends import BACKENDS
from autosched.tools.random_programs import random_program
from autosched.tools.shrink import shrunk

CHUNK = 8  # programs a job: their kernels share a library
SEED_S, SCHEDULE_S = 30.0, 10.0  # a job may take so long for each of its seeds
SHRINK_TRIES = 80
_JOBS = "autosched.tools.stress_jobs"


@dataclass(frozen=True)
class Case:
    """A program to check: its inputs and schedules come from `seed`, `schedules` for each form."""

    backend: str
    seed: int
    schedules: int
    why: str
    program: Program

    @property
    def text(self) -> str:
        facts = {"backend": self.backend, "seed": self.seed, "schedules": self.schedules,
                 "why": " ".join(self.why.split())}  # fmt: skip
        return "".join(f"# {k}: {v}\n" for k, v in facts.items()) + to_text(self.program)

    @property
    def file(self) -> str:
        """A name that is the same for the same program."""
        return hashlib.sha256(to_text(self.program).encode()).hexdigest()[:12] + ".txt"


def read_case(path: Path) -> Case:
    """The case that a file holds."""
    lines = path.read_text("utf-8").splitlines(keepends=True)
    head = [line[1:].partition(":") for line in lines if line.startswith("#")]
    facts = {key.strip(): value.strip() for key, _, value in head}
    program = parse("".join(line for line in lines if not line.startswith("#")))
    return Case(
        facts["backend"], int(facts["seed"]), int(facts["schedules"]), facts["why"], program
    )


class Stress:
    """Checks in worker processes: one that dies costs only its own programs."""

    def __init__(self, backend: str, schedules: int, pool: WorkerPool) -> None:
        self.backend, self.schedules, self.pool = backend, schedules, pool
        self.trials = self.refused = 0

    def seeds(self, seeds: Sequence[int]) -> Iterator[Case]:
        """A case for each seed whose kernels are not all right."""
        chunks = [seeds[n : n + CHUNK] for n in range(0, len(seeds), CHUNK)]
        for chunk, outcome in zip(chunks, self.pool.map([self._job(c) for c in chunks])):
            if isinstance(outcome, Failed) and len(chunk) > 1:
                for seed in chunk:
                    yield from self.seeds([seed])
            elif isinstance(outcome, Failed):
                program = random_program(chunk[0])
                why = f"{outcome.status.value}: {outcome.reason}"
                yield Case(self.backend, chunk[0], self.schedules, why, program)
            else:
                yield from self._counted(outcome.value, chunk)

    def _counted(self, tally: Mapping[str, Any], chunk: Sequence[int]) -> Iterator[Case]:
        self.trials += tally["trials"]
        self.refused += tally["refused"]
        seen: set[str] = set()
        for found in tally["findings"]:
            if found["program"] in seen:
                continue
            seen.add(found["program"])
            why = f"{found['form']}: {found['why']}"
            yield Case(self.backend, found["seed"], self.schedules, why, parse(found["program"]))

    def _job(self, seeds: Sequence[int]) -> Job:
        kwargs = {"name": self.backend, "seeds": [*seeds], "schedules": self.schedules}
        limit = len(seeds) * (SEED_S + SCHEDULE_S * self.schedules)
        return Job(f"{_JOBS}:check_seeds", kwargs, Stage.RUN, limit)

    def why(self, program: Program, seed: int) -> str:
        """What is wrong with a program; "" where nothing is."""
        kwargs = {"name": self.backend, "text": to_text(program), "seed": seed,
                  "schedules": self.schedules}  # fmt: skip
        limit = SEED_S + SCHEDULE_S * self.schedules
        job = Job(f"{_JOBS}:check_text", kwargs, Stage.RUN, limit)
        (outcome,) = self.pool.map([job])
        if isinstance(outcome, Failed):
            return f"{outcome.status.value}: {outcome.reason}"
        found = outcome.value["findings"]
        return f"{found[0]['form']}: {found[0]['why']}" if found else ""

    def smallest(self, case: Case, tries: int = SHRINK_TRIES) -> Case:
        """The case made smaller as long as something is wrong with it."""
        program = shrunk(case.program, lambda p: bool(self.why(p, case.seed)), tries)
        why = self.why(program, case.seed) if program != case.program else case.why
        return Case(case.backend, case.seed, case.schedules, why, program)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 where everything is right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="tvm", choices=[*BACKENDS])
    parser.add_argument("--seconds", type=float, default=3600.0, help="when to stop")
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--programs", type=int, help="how many at most")
    parser.add_argument("--schedules", type=int, default=4, help="of each form of a program")
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    parser.add_argument("--keep", type=Path, help="folder for what fails")
    options = parser.parse_args(arguments)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    seed, last = options.seed, options.seed + (options.programs or sys.maxsize)
    wrong = 0
    env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with WorkerPool(options.workers, env=env, preload=(_JOBS,)) as pool:
        stress = Stress(options.backend, options.schedules, pool)
        while seed < last and time.monotonic() < end:
            some = range(seed, min(seed + CHUNK * options.workers, last))
            for case in stress.seeds(some):
                wrong += 1
                print(f"seed {case.seed}: {case.why}", flush=True)
                if options.keep is not None:
                    small = stress.smallest(case)
                    (options.keep / small.file).write_text(small.text, "utf-8")
                    print(f"  kept as {options.keep / small.file}", flush=True)
            seed = some.stop
            print(f"{seed - options.seed} programs, {stress.trials} kernels, {stress.refused} "
                  f"refused, {wrong} wrong", flush=True)  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
