"""The record store: batches of Records in, Records by workload, target and toolchain out.

One SQLite file in write-ahead-log mode. A batch is one transaction, so that it is there whole or
not at all after a crash, two tuners may write at once, and a full disk leaves what was there.
The text of every workload is kept beside its records: a store explains itself.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from autosched.datasets.place import StoreError, checked_path
from autosched.datasets.store_errors import explain
from autosched.ir.record import CONDEMNED, Record, Status, canonical_json

__all__ = ["SCHEMA_VERSION", "Store", "StoreError"]

SCHEMA_VERSION = 1
APPLICATION_ID = 0x41534348  # "ASCH" in the file's header: an autosched store and nothing else
_BUSY_S = 30.0  # how long to wait for another tuner's batch
_RETRY_S = 0.01

_SCHEMA = """
CREATE TABLE workloads (key TEXT PRIMARY KEY NOT NULL, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    workload TEXT NOT NULL REFERENCES workloads(key),
    target TEXT NOT NULL, schedule_key TEXT NOT NULL, peer TEXT, schedule TEXT NOT NULL,
    status TEXT NOT NULL, latency_us REAL, spread_us REAL, error TEXT,
    toolchain TEXT NOT NULL, device TEXT NOT NULL, threads INTEGER NOT NULL,
    made TEXT NOT NULL, checked TEXT NOT NULL, extra TEXT NOT NULL
);
CREATE INDEX records_by_task ON records (workload, target, toolchain);
"""

_COLUMNS = ("workload", "target", "schedule", "status", "latency_us", "spread_us", "error",
            "toolchain", "device", "threads", "made", "checked", "extra")
_INSERT = (f"INSERT OR IGNORE INTO records (key, schedule_key, peer, {', '.join(_COLUMNS)}) "
           f"VALUES ({', '.join('?' * (3 + len(_COLUMNS)))})")
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM records"


class Store:
    """An open store. Use as a context manager; one object serves the threads of one process."""

    def __init__(self, path: Path | str | None = None) -> None:
        """Opens the store at `path`, made where absent; the platform's place for None.

        Raises: StoreError for network disks, foreign files, other schema versions, full disks.
        """
        self.path = checked_path(path)
        self._lock = threading.RLock()
        self._pid = os.getpid()
        with self._explained("open"):
            # Opened as a URI-less plain path; transactions are spelled out below.
            self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None,
                                       check_same_thread=False)
        try:
            with self._explained("open"):
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    # -- writing ---------------------------------------------------------------------------

    def add(self, records: Iterable[Record], workloads: Mapping[str, str] | None = None) -> int:
        """Stores a batch in one transaction, all or nothing; returns how many were new.

        workloads: text per workload key, needed once for each workload the records name.
        Raises: StoreError; the store is then as it was before the call.
        """
        rows = [_row(r) for r in records]
        texts = workloads or {}
        with self._explained("write to"), self._transaction() as db:
            self._add_workloads(db, texts)
            self._require_workloads(db, {row[3] for row in rows} - set(texts))
            before = db.total_changes
            db.executemany(_INSERT, rows)
            return db.total_changes - before

    def add_workloads(self, workloads: Mapping[str, str]) -> None:
        """Stores definitions of workloads; one that is there already must be the same text."""
        self.add((), workloads)

    # -- reading ---------------------------------------------------------------------------

    def records(self, *, workload: str | None = None, target: str | None = None,
                toolchain: str | None = None, device: str | None = None,
                status: Status | None = None, peers: bool | None = None) -> list[Record]:
        """Records that match every given field, in the order they were stored.

        peers: True for the baselines of other runtimes only, False for ours only.
        """
        wanted = {"workload": workload, "target": target, "toolchain": toolchain,
                  "device": device, "status": None if status is None else status.value}
        tests = [f"{name} = ?" for name, value in wanted.items() if value is not None]
        if peers is not None:
            tests.append(f"peer IS {'NOT ' if peers else ''}NULL")
        where = f" WHERE {' AND '.join(tests)}" if tests else ""
        values = [value for value in wanted.values() if value is not None]
        return [_record(row) for row in self._query(f"{_SELECT}{where} ORDER BY id", values)]

    def attempts(self, target: str, toolchain: str
                 ) -> list[tuple[str, str, Status, float | None]]:  # fmt: skip
        """Workload, schedule's text, status and latency_us of every record of ours, in the order
        they were stored: what a run that goes on must know, without making Records of it."""
        rows = self._query("SELECT workload, schedule, status, latency_us FROM records WHERE "
                           "target = ? AND toolchain = ? AND peer IS NULL ORDER BY id",
                           (target, toolchain))
        return [(workload, text, Status(status), us) for workload, text, status, us in rows]

    def best(self, workload: str, target: str, *, toolchain: str | None = None,
             device: str | None = None, threads: int | None = None,
             checked: Collection[str] | None = None) -> Record | None:
        """The fastest trustworthy Record of ours, or None.

        A schedule counts by the median of its own records, never by one lucky run; one that ever
        gave a wrong answer (CONDEMNED) is out. checked: accepted validation levels, all for None.
        Ties go to the smaller schedule key, so that equal stores choose alike.
        """
        tried: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for r in self.records(workload=workload, target=target, toolchain=toolchain,
                              device=device, peers=False):
            if threads is None or r.threads == threads:
                tried[r.schedule_key, r.toolchain].append(r)
        middles = [
            (middle, key) for key, group in tried.items()
            if not any(r.status in CONDEMNED for r in group)
            and (middle := _median(r for r in group
                                   if r.ok and (checked is None or r.checked in checked)))
        ]
        if not middles:
            return None
        return min(middles, key=lambda m: (m[0].latency_us, m[1]))[0]

    def peers(self, workload: str, target: str, *, device: str | None = None) -> list[Record]:
        """The latest successful baseline of each peer, by name."""
        found = self.records(workload=workload, target=target, device=device,
                             status=Status.OK, peers=True)
        latest = {r.peer or "": r for r in sorted(found, key=lambda r: r.when)}
        return [latest[name] for name in sorted(latest)]

    def workload(self, key: str) -> str | None:
        """The text of a workload, or None where the store has never seen it."""
        rows = self._query("SELECT text FROM workloads WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def workloads(self) -> dict[str, str]:
        """Every workload the store knows, key to text, sorted by key."""
        return dict(self._query("SELECT key, text FROM workloads ORDER BY key", ()))

    def counts(self) -> dict[Status, int]:
        """How many records ended in each status: what a report of failures shows."""
        rows = self._query("SELECT status, count(*) FROM records GROUP BY status", ())
        return {Status(name): count for name, count in sorted(rows)}

    # -- life ------------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    # -- inside ----------------------------------------------------------------------------

    def _query(self, sql: str, values: Iterable[object]) -> list[tuple]:
        with self._explained("read"), self._lock:
            return self._db.execute(sql, tuple(values)).fetchall()

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turns SQLite's errors into StoreErrors; refuses a connection carried over a fork."""
        if os.getpid() != self._pid:
            raise StoreError("the record store was opened before a fork; open it again in the "
                             "child, since SQLite connections do not survive one")
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(explain(verb, self.path, error)) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                # Still open here means that something failed, also Ctrl-C. SQLite rolls back by
                # itself on some errors (a full disk), hence the question.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _prepare(self) -> None:
        self._refuse_foreign()
        self._write_ahead()
        # NORMAL loses no commit to a killed process, and never integrity to a power cut.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        with self._transaction() as db:
            if self._header("application_id") == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._refuse_foreign()  # another tuner may have made it meanwhile

    def _write_ahead(self) -> None:
        """Turns the write-ahead log on. SQLite itself does not wait for others here."""
        end = time.monotonic() + _BUSY_S
        while True:
            try:
                mode = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() >= end:
                    raise
                time.sleep(_RETRY_S)
        if mode != "wal":
            raise StoreError(f"the place of the record store {self.path} cannot hold a write-ahead "
                             f"log (SQLite chose {mode}). Name a local disk (--store PATH)")

    def _header(self, name: str) -> int:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    def _refuse_foreign(self) -> None:
        """Raises StoreError for another program's database or another version of ours."""
        self._db.execute("BEGIN")  # the three from one moment: another tuner may be making it
        try:
            application, version = self._header("application_id"), self._header("user_version")
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        finally:
            self._db.execute("ROLLBACK")
        if application == 0 and tables == 0:
            return
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path} is a database of another program, not a record store. "
                             "Name another file (--store PATH)")
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"the record store {self.path} has schema version {version}; this autosched reads "
                f"version {SCHEMA_VERSION}. Export it with the autosched that wrote it and import "
                "that file here, or name another store (--store PATH)")

    def _add_workloads(self, db: sqlite3.Connection, texts: Mapping[str, str]) -> None:
        db.executemany("INSERT OR IGNORE INTO workloads (key, text) VALUES (?, ?)",
                       texts.items())
        for key, text in texts.items():
            row = db.execute("SELECT text FROM workloads WHERE key = ?", (key,)).fetchone()
            if row[0] != text:
                raise StoreError(f"workload {key} is in {self.path} with another text: the two "
                                 "come from versions whose keys mean different things. Use a "
                                 "store of its own for each (--store PATH)")

    def _require_workloads(self, db: sqlite3.Connection, keys: Iterable[str]) -> None:
        for key in sorted(keys):
            if not db.execute("SELECT 1 FROM workloads WHERE key = ?", (key,)).fetchone():
                raise StoreError(f"records of workload {key} came without its definition: pass "
                                 "its text in `workloads`")


def _median(group: Iterable[Record]) -> Record | None:
    """The record in the middle by latency (the lower of two), or None of none."""
    ranked = sorted(group, key=lambda r: (r.latency_us, r.when))
    return ranked[(len(ranked) - 1) // 2] if ranked else None


def _row(r: Record) -> tuple:
    return (r.key, r.schedule_key, r.peer, r.workload, r.target, r.schedule, r.status.value,
            r.latency_us, r.spread_us, r.error, r.toolchain, r.device, r.threads, r.when,
            r.checked, canonical_json(r.extra))


def _record(row: tuple) -> Record:
    values = dict(zip(_COLUMNS, row))
    values["when"] = values.pop("made")
    values["schedule"], values["extra"] = json.loads(values["schedule"]), json.loads(
        values["extra"])
    return Record.from_json(values)
