"""Batches of builds in, what GPUs say of them out: a process and a thread for each GPU.

A batch's journal is written down before a process gets it, so that results outlive this process;
a candidate that ends the process it runs in costs itself, and the rest of its batch comes again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from autosched.codegen.jobs import Failed, Job, Outcome, Stage
from autosched.ir.record import Status
from autosched.tools.gpu_lab import GpuJobs, GpuLimits, Measurer, Setup, reason
from autosched.tools.profile_board import Batch, Board
from autosched.tools.profile_builds import ProfileJobs
from autosched.tools.profile_log import RunLog
from autosched.tools.profile_pack import ProfileError

TURN_S = 1.0  # that a GPU waits for a batch before it looks whether the run is over
EACH_S = 0.5  # of its limit that a batch has for each candidate
REFERENCE_S = 20.0  # that a reference may take: a GPU is not to wait longer for any workload


class Gpus:
    """The processes that measure. `results` yields what they have done since."""

    def __init__(self, count: int, board: Board, log: RunLog, setup: Setup, *,
                 jobs: ProfileJobs, limits: GpuLimits, env: Mapping[str, str]) -> None:  # fmt: skip
        """Starts `count` processes; `meet` waits for them. env: what they get beside ours."""
        self.board, self.log, self.setup = board, log, setup
        self.jobs, self.limits = jobs, limits
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.device = ""
        self._found: queue.SimpleQueue[tuple[Batch, Outcome] | Exception] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        known = GpuJobs(warm_up=jobs.warm_up, measurer_modules=jobs.measurer_modules,
                        packages=jobs.packages)  # fmt: skip
        self._measurers: list[Measurer] = []
        for gpu in range(count):
            own = {"CUDA_VISIBLE_DEVICES": str(gpu)} if setup.device != "cpu" else {}
            whole = {"OMP_NUM_THREADS": "4", **env, **own}
            self._measurers.append(Measurer(known, limits, setup, whole, spares=1))

    @property
    def count(self) -> int:
        """GPUs that are used."""
        return len(self._threads)

    @property
    def lost(self) -> int:
        """Processes that candidates ended."""
        return sum(m.lost for m in self._measurers)

    def meet(self, say: Callable[[str], None]) -> None:
        """Waits until the GPUs are ready, and has them work; one that is not is left out.

        Raises: ProfileError where there is none, or another one than the target's.
        """
        faults: list[str] = []
        for gpu, measurer in enumerate(self._measurers):
            told = measurer.device()
            if isinstance(told, Failed):
                faults.append(f"GPU {gpu} can't be used: {reason(told)}")
                continue
            arch = str(told.value.get("capability", ""))
            if arch and not self.setup.target.startswith(arch):
                raise ProfileError(f"GPU {gpu} is {arch}, the target is {self.setup.target}: name "
                                   "it by --target")  # fmt: skip
            self.device = str(told.value["device"])
            self._threads.append(
                threading.Thread(target=self._serve, args=(gpu, measurer), daemon=True)
            )
        if not self._threads:
            raise ProfileError(f"{faults[0]}. Build without a GPU by --build-only, or run in "
                               "Triton's interpreter by --device cpu")  # fmt: skip
        for fault in faults:
            say(fault)
        for thread in self._threads:
            thread.start()

    def results(self) -> Iterator[tuple[Batch, Outcome]]:
        """Batches that are done, without waiting. Raises what a thread could not deal with."""
        while not self._found.empty():
            found = self._found.get()
            if isinstance(found, Exception):
                raise found
            yield found

    def close(self, wait_s: float) -> None:
        """Waits for batches that are on GPUs, then ends the processes."""
        self.board.close()
        until = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for measurer in self._measurers:
            measurer.close()  # what is still there ends as cancelled
        for thread in self._threads:
            thread.join()

    def _serve(self, gpu: int, measurer: Measurer) -> None:
        """The thread of a GPU: batches from the board, outcomes to the loop."""
        try:
            while not self.board.closed:
                begun = time.monotonic()
                if (batch := self.board.take(gpu, TURN_S)) is None:
                    self.seconds[f"gpu {gpu} waiting"] += time.monotonic() - begun
                    continue
                taken = time.monotonic()
                self._found.put((batch, self._measured(measurer, batch)))
                self.board.release(batch.line)
                self.seconds[f"gpu {gpu} waiting"] += taken - begun
                self.seconds[f"gpu {gpu} busy"] += time.monotonic() - taken
        except Exception as error:  # handed to the loop, which raises it
            self._found.put(error)

    def _measured(self, measurer: Measurer, batch: Batch) -> Outcome:
        """What a batch came to. A workload whose reference takes too long is dropped at once: no
        other process is to try it."""
        job, limit_s = self._job(batch), min(self.limits.prepare_s, REFERENCE_S)
        asked = {"folder": str(batch.line.folder), "seed": self.setup.seed,
                 "device": self.setup.device}  # fmt: skip
        ready = measurer.run(Job(self.jobs.prepare, asked, Stage.RUN, limit_s))
        if isinstance(ready, Failed):
            if ready.status is Status.RUN_TIMEOUT:
                self.board.drop(batch.line, f"no reference within {limit_s:g} s")
            return ready
        outcome = measurer.run(job)
        if isinstance(outcome, Failed):
            return outcome
        seconds = ready.value["prepare_s"] + outcome.value["prepare_s"]
        return replace(outcome, value={**outcome.value, "prepare_s": seconds})

    def _job(self, batch: Batch) -> Job:
        """What the process is told; it is written down first."""
        line = batch.line
        items = [{**i.asked(), "schedule": i.schedule, "by": i.by, "estimate_us": i.estimate_us,
                  "again_us": i.again_us, "open_sizes": i.open_sizes}
                 for i in batch.items]  # fmt: skip
        asked = {"workload": line.key, "target": line.target_key, "items": items}
        journal = self.log.begin_batch(batch.number, asked)
        limit_s = self.limits.measure_s + EACH_S * len(batch.items)
        kwargs = {
            "folder": str(line.folder), "items": [i.asked() for i in batch.items],
            "journal": str(journal), "seed": self.setup.seed, "device": self.setup.device,
            "launcher": self.setup.launcher, "best_us": line.best_us,
        }  # fmt: skip
        return Job(self.jobs.measure, kwargs, Stage.RUN, limit_s)
