"""The folder of a suite's run: rows as they are done in, results and reports out.

    rows.jsonl                          one line a row, as it is done
    records.sqlite, records.parquet     every attempt, ours and peers, as Records
    facts.json, table.md                device, versions and command of the last run; the report
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autosched.datasets.exchange import export_records
from autosched.datasets.store import Store
from autosched.datasets.suites import Suite
from autosched.tools.suite_options import SuiteBenchError
from autosched.tools.suite_page import document
from autosched.tools.suite_report import Result


class Folder:
    """Results that grow row by row; use as a context manager."""

    def __init__(self, place: Path, signature: Mapping[str, Any]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self._place, self._signature = place, dict(signature)
        self.store = Store(place / "records.sqlite")

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def results(self) -> list[Result]:
        """Rows that were done with these very options."""
        return [r for r in read_results(self._place) if r.data["options"] == self._signature]

    def add(self, data: Mapping[str, Any]) -> None:
        """Appends a row in one piece: other processes append to the same file."""
        path = self._place / "rows.jsonl"
        cut_short = path.exists() and not path.read_bytes().endswith(b"\n")
        line = json.dumps({**data, "options": self._signature}, separators=(",", ":"))
        with open(path, "ab", buffering=0) as file:
            file.write(("\n" * cut_short + line + "\n").encode())

    def note(self, facts: Mapping[str, Any]) -> None:
        """What the report says of the run as a whole."""
        (self._place / "facts.json").write_text(json.dumps(facts, indent=1), "utf-8")

    def finish(self) -> None:
        """Writes what is not written row by row."""
        export_records(self.store, self._place / "records.parquet")


def read_results(place: Path) -> list[Result]:
    """The last result of each row."""
    path = place / "rows.jsonl"
    found: dict[str, Result] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the line that a kill cut short
            result = Result(json.loads(line))
            found[result.name] = result
    return list(found.values())


def write_report(place: Path, suite: Suite, docs: Path | None) -> None:
    """The report of everything in the folder, at `docs` or else there.

    Raises: SuiteBenchError where nothing was measured there.
    """
    facts = place / "facts.json"
    if not facts.exists():
        raise SuiteBenchError(f"{place} holds no results of a suite: run the suite first")
    text = document(suite, read_results(place), json.loads(facts.read_text("utf-8")))
    path = docs or place / "table.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
