"""What the command line says of a suite in, its table out: `autosched bench --suite`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autosched import options
from autosched.tools.suite_bench import planned, run
from autosched.tools.suite_options import How, Options, SuiteBenchError


def race(
    name: str, out: Path | None, tune: str, tune_rows: tuple[str, ...], pick: str, plan: bool,
    say: Callable[[str], None], **given: Any,
) -> str:  # fmt: skip
    """The rows and peers of a suite (plan), or the short table of its race.

    tune: a time; given: fields of Options by name. Raises: OptionError, SuiteBenchError, ...
    """
    model_only = options.choice("--pick", pick, ("logs", "model")) == "model"
    if out is None and not plan:
        raise SuiteBenchError("name a folder for the suite's results: --out FOLDER")
    how = How(options.duration_s(tune), model_only, tune_rows)
    wanted = Options(out or Path(), name, how=how, **given)
    return planned(wanted) if plan else run(wanted, say)
