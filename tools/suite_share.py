"""A suite's run in, its rows shared out to a process for each GPU out.

Each process sees one GPU, has a fair share of the processor's cores and folders and compilers'
caches of its own; results go to one folder. A process ends with the one that started it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autosched.datasets.place import StoreError
from autosched.datasets.suites import SuiteError
from autosched.ir.target import TargetError
from autosched.tools.suite_options import Options, SuiteBenchError, select_left
from autosched.tools.suite_work import Claims, Parts, Say, work

ERRORS = (SuiteBenchError, SuiteError, TargetError, StoreError)
MISTAKE = 2  # exit status of a process that says why it can't work


def share_out(
    options: Options, rows: Sequence[str], claims: Path, gpus: int, until: float, say: Say,
    parts: Parts,
) -> None:  # fmt: skip
    """Runs a process for each GPU until all are done. rows: names of those that are left.

    Raises: SuiteBenchError where no process could work.
    """
    shown = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
    processes = []
    for gpu in range(gpus):
        told = {"options": options.to_json(), "rows": list(rows), "claims": str(claims),
                "gpu": gpu, "of": gpus, "seconds": until - time.monotonic(),
                "parts": parts.to_json()}  # fmt: skip
        one = {} if options.device == "cpu" else {"CUDA_VISIBLE_DEVICES": shown[gpu]}
        processes.append(subprocess.Popen(
            [sys.executable, "-P", "-u", "-m", "autosched.tools.suite_share", json.dumps(told)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            encoding="utf-8", env={**os.environ, **one},
        ))  # fmt: skip
    last = [""] * gpus
    threads = [threading.Thread(target=_hear, args=(n, p, last, say), daemon=True)
               for n, p in enumerate(processes)]  # fmt: skip
    for thread in threads:
        thread.start()
    try:
        codes = [p.wait() for p in processes]
    except KeyboardInterrupt:  # theirs too, unless it was sent to this process alone
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        codes = [p.wait() for p in processes]
    for thread in threads:
        thread.join()
    if all(code == MISTAKE for code in codes):
        raise SuiteBenchError(last[0])
    for gpu, code in enumerate(codes):
        if code:
            say(f"GPU {gpu}: its process ended with {code}: {last[gpu]}")


def _hear(number: int, process: subprocess.Popen[str], last: list[str], say: Say) -> None:
    """Passes on what a process says; what it says last is kept."""
    assert process.stdout is not None
    for line in process.stdout:
        last[number] = line.rstrip("\n")
        say(f"GPU {number}  {last[number]}")


# ---- in the process ----------------------------------------------------------------------------


def main(text: str) -> int:
    told: dict[str, Any] = json.loads(text)
    until = time.monotonic() + told["seconds"]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _take_cores(told["gpu"], told["of"])
    options = Options.from_json(told["options"])
    rows = select_left(options, told["rows"])
    try:
        work(options, Claims(Path(told["claims"]), rows), told["gpu"], until, print,
             Parts.from_json(told["parts"]))  # fmt: skip
    except ERRORS as error:
        print(error)
        return MISTAKE
    return 0


def _end_with_parent() -> None:
    """Interrupts this process when the one that started it closes its end, or is gone."""
    while os.read(0, 4096):  # nothing is written there
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _take_cores(number: int, count: int) -> None:
    """Keeps this process, and all that it starts, to its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= count:
        some = slice(number * len(cores) // count, (number + 1) * len(cores) // count)
        os.sched_setaffinity(0, cores[some])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
