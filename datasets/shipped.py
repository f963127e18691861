"""A target in, the records of the logs that come with the package out: what models start from.

The logs lie in `datasets/logs`, a folder for each architecture and one Parquet file a campaign, and
say themselves on which device, when and with which versions each row was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autosched.datasets.exchange import read_records
from autosched.ir.record import Record

LOGS = Path(__file__).resolve().parent / "logs"


def shipped_logs(target: str) -> tuple[Path, ...]:
    """The files of the architecture in a target's key, in the order of their names."""
    _, arch, *_ = f"{target}/".split("/")
    return tuple(sorted((LOGS / arch).glob("*.parquet"))) if arch else ()


def shipped_records(target: str) -> tuple[list[Record], Mapping[str, str]]:
    """The records of a target's key, and the texts of their workloads by key.

    Raises: StoreError of a file that is damaged.
    """
    records: list[Record] = []
    texts: dict[str, str] = {}
    for path in shipped_logs(target):
        found, known = read_records(path)
        mine = [r for r in found if r.target == target]
        records += mine
        texts |= {r.workload: known[r.workload] for r in mine}
    return records, texts
