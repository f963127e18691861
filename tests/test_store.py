"""The store under what goes wrong: crashes, two writers, full disks, foreign files, networks."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autosched.datasets import exchange, place
from autosched.datasets.store import SCHEMA_VERSION, Store, StoreError
from autosched.ir.record import Record, Status

WORKLOADS = {"w1": "gemm 1", "w2": "gemm 2"}


def made(n: int = 0, **changes: Any) -> Record:
    values = {"workload": "w1", "target": "cpu", "schedule": {"n": n}, "status": Status.OK,
              "latency_us": 10.0 + n, "spread_us": 0.5, "toolchain": "tvm-0.27", "device": "d",
              "threads": 2, "checked": "float64", "extra": {"cache": "warm"}}
    return Record.of(**{**values, **changes})


def failed(status: Status, n: int = 0, **changes: Any) -> Record:
    return made(n, status=status, latency_us=None, spread_us=None, error="why", **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "records.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path) as opened:
        opened.add_workloads(WORKLOADS)
        yield opened


def integrity(path: Path) -> str:
    with sqlite3.connect(path) as db:
        return db.execute("PRAGMA integrity_check").fetchone()[0]


# -- what is put in comes out --------------------------------------------------------------


def test_records_come_back_exactly_and_in_order(store: Store, path: Path) -> None:
    batch = [made(2), failed(Status.BUILD_TIMEOUT, 1), made(0, schedule={"peer": "ort"})]
    assert store.add(batch) == 3
    assert store.records() == batch
    store.close()
    with Store(path) as again:
        assert again.records() == batch
        assert again.workloads() == WORKLOADS
        assert again.workload("w2") == "gemm 2" and again.workload("w3") is None


def test_the_same_record_is_kept_once(store: Store) -> None:
    record = made()
    assert store.add([record, record]) == 1
    assert store.add([record]) == 0
    assert store.records() == [record]


def test_queries_match_every_given_field(store: Store) -> None:
    a, b = made(0), made(1, workload="w2")
    c, d = made(2, toolchain="tvm-1"), made(3, target="gpu", device="e")
    p, f = made(4, schedule={"peer": "ort"}), failed(Status.ILLEGAL, 5)
    store.add([a, b, c, d, p, f])
    assert store.records(workload="w2") == [b]
    assert store.records(toolchain="tvm-1", target="cpu") == [c]
    assert store.records(device="e") == [d]
    assert store.records(peers=True) == [p]
    assert store.records(peers=False, status=Status.OK, workload="w1") == [a, c, d]
    assert store.counts() == {Status.OK: 5, Status.ILLEGAL: 1}


def test_a_record_needs_its_workload(store: Store) -> None:
    with pytest.raises(StoreError, match="w9"):
        store.add([made(0), made(1, workload="w9")])
    assert store.records() == [], "a refused batch leaves nothing behind"
    assert store.add([made(1, workload="w9")], {"w9": "text"}) == 1


def test_a_workload_key_means_one_text(store: Store) -> None:
    with pytest.raises(StoreError, match="another text"):
        store.add([made()], {"w1": "something else"})
    assert store.records() == [] and store.workload("w1") == "gemm 1"


# -- best ----------------------------------------------------------------------------------


def test_best_is_the_fastest_of_ours(store: Store) -> None:
    store.add([made(3), made(1), made(2), failed(Status.RUN_CRASHED, 0),
               made(0, schedule={"peer": "ort"}, latency_us=0.1),
               made(0, workload="w2"), made(0, target="other")])
    assert store.best("w1", "cpu") == store.records(workload="w1", target="cpu")[1]
    assert store.best("w1", "cpu", toolchain="none such") is None
    assert store.best("w1", "cpu", threads=3) is None
    assert store.best("w1", "cpu", checked=("peer",)) is None


def test_one_lucky_run_does_not_make_a_best(store: Store) -> None:
    steady = made(1, latency_us=10.0)
    lucky = [made(2, latency_us=t, when=f"2026-01-01T00:00:0{i}+00:00")
             for i, t in enumerate((8.0, 12.0, 13.0))]
    store.add([steady, *lucky])
    assert store.best("w1", "cpu") == steady


@pytest.mark.parametrize("status", [Status.WRONG_RESULT, Status.NAN_RESULT])
def test_a_schedule_that_was_ever_wrong_is_out(store: Store, status: Status) -> None:
    store.add([made(0), made(1), failed(status, 0)])
    best = store.best("w1", "cpu")
    assert best is not None and best.schedule_json == {"n": 1}


def test_ties_do_not_depend_on_the_order_of_storing(tmp_path: Path) -> None:
    batch = [made(n, latency_us=5.0) for n in range(4)]
    picked = set()
    for name, order in (("a", batch), ("b", batch[::-1])):
        with Store(tmp_path / name) as store:
            store.add(order, WORKLOADS)
            best = store.best("w1", "cpu")
            assert best is not None
            picked.add(best.schedule)
    assert len(picked) == 1


def test_peers_gives_the_latest_of_each(store: Store) -> None:
    def peer(name: str, second: int) -> Record:
        return made(second, schedule={"peer": name}, when=f"2026-01-01T00:00:0{second}+00:00")
    store.add([peer("ort", 2), peer("ort", 1), peer("mkl", 3), made(0)])
    assert store.peers("w1", "cpu") == [peer("mkl", 3), peer("ort", 2)]


# -- faults --------------------------------------------------------------------------------

_WRITER = """
import sys
from autosched.datasets.store import Store
from autosched.ir.record import Record, Status
path, name, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store(path) as store:
    for i in range(batches):
        store.add([Record.of(
            workload="w", target="cpu", schedule={"writer": name, "batch": i, "row": j},
            status=Status.OK, latency_us=1.0, toolchain="t", device="d", threads=1)
            for j in range(7)], {"w": "text"})
        print(i, flush=True)
"""


def writer(path: Path, name: str, batches: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _WRITER, str(path), name, str(batches)],
                            stdout=subprocess.PIPE, text=True)


def batches_of(store: Store, name: str) -> dict[int, int]:
    """Rows found of each batch of a writer."""
    found: dict[int, int] = {}
    for record in store.records():
        plan = record.schedule_json
        if plan["writer"] == name:
            found[plan["batch"]] = found.get(plan["batch"], 0) + 1
    return found


@pytest.mark.parametrize("acknowledged", [1, 40, 150])
def test_kill_9_of_a_writer_loses_no_batch_and_halves_none(path: Path, acknowledged: int) -> None:
    process = writer(path, "a", 1_000_000)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= acknowledged:
            break
    process.send_signal(signal.SIGKILL)
    last = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
    assert process.wait() == -signal.SIGKILL
    assert integrity(path) == "ok"
    with Store(path) as store:
        found = batches_of(store, "a")
        assert set(found.values()) == {7}
        assert set(range(last + 1)) <= set(found)
        assert store.add([made()], WORKLOADS) == 1


def test_two_tuners_write_at_once(path: Path) -> None:
    # Neither finds the store made: they also race for its creation.
    writers = [writer(path, name, 60) for name in "ab"]
    assert [w.communicate()[0].split()[-1] for w in writers] == ["59", "59"]
    assert [w.returncode for w in writers] == [0, 0]
    with Store(path) as store:
        for name in "ab":
            assert batches_of(store, name) == dict.fromkeys(range(60), 7)


@pytest.mark.parametrize("n", range(20))
def test_a_store_may_be_made_by_many_at_once(path: Path, n: int) -> None:
    start = threading.Barrier(4)

    def work(name: int) -> int:
        start.wait()
        with Store(path) as mine:
            return mine.add([made(name)], WORKLOADS)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [1] * 4
    with Store(path) as store:
        assert len(store.records()) == 4


def test_threads_of_one_process_share_a_store(store: Store) -> None:
    def work(name: int) -> None:
        for i in range(20):
            store.add([made(1000 * name + i)])
            store.records(workload="w1")
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(store.records()) == 80


def test_another_process_that_holds_the_store_is_named(store: Store, path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    store._db.execute("PRAGMA busy_timeout = 50")
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process"):
            store.add([made()])
        other.execute("ROLLBACK")
    assert store.add([made()]) == 1


def test_a_full_database_is_a_clear_error_and_keeps_what_was_there(store: Store,
                                                                   path: Path) -> None:
    store.add([made(1)])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    big = [made(n, extra={"log": "x" * 1000}) for n in range(500)]
    with pytest.raises(StoreError, match=r"the disk is full.*intact.*--store PATH"):
        store.add(big)
    assert store.records() == store.records(workload="w1") and len(store.records()) == 1
    store._db.execute(f"PRAGMA max_page_count = {pages + 10_000}")
    assert store.add(big) == 500
    assert integrity(path) == "ok"


def test_a_file_size_limit_is_a_clear_error_and_keeps_what_was_there(path: Path) -> None:
    """The write itself fails here, inside the system, as on a disk that fills up."""
    script = """
import resource, sys
from autosched.datasets.store import Store, StoreError
from autosched.ir.record import Record, Status
def batch(n, pad):
    return [Record.of(workload="w", target="cpu", schedule={"i": i, "n": n}, status=Status.OK,
            latency_us=1.0, toolchain="t", device="d", threads=1, extra={"pad": "x" * pad})
            for i in range(n)]
with Store(sys.argv[1]) as store:
    store.add(batch(10, 10), {"w": "text"})
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        store.add(batch(2000, 1000))
    except StoreError as error:
        print(error)
    print(len(store.records()), store.add(batch(1, 5)))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True,
                          text=True, check=True)
    message, counts = done.stdout.strip().splitlines()
    assert "cannot write to the record store" in message and "--store PATH" in message
    assert "intact" in message
    assert counts == "10 1"
    assert integrity(path) == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_full_disk_is_a_clear_error_and_keeps_what_was_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)],
                             capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        with Store(disk / "records.sqlite") as store:
            store.add([made(0)], WORKLOADS)
            with pytest.raises(StoreError, match=r"the disk is full.*MiB free.*intact"):
                store.add([made(n, extra={"log": "x" * 4000}) for n in range(1000)])
            assert len(store.records()) == 1
            assert store.add([made(1)]) == 1
            with suppress(OSError):  # the last free bytes
                (disk / "filler").write_bytes(b"x" * (1 << 20))
            with pytest.raises(StoreError, match=r"cannot write .*space"):
                exchange.export_records(store, disk / "out.jsonl")
            assert [p.name for p in disk.iterdir() if "out" in p.name] == []
            assert len(store.records()) == 2
        with pytest.raises(StoreError, match="the disk is full"):
            Store(disk / "second.sqlite")
        assert integrity(disk / "records.sqlite") == "ok"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_damaged_file_is_a_clear_error(path: Path) -> None:
    with Store(path) as store:
        store.add([made(n) for n in range(300)], WORKLOADS)
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\x5a" * (len(raw) - 4096)
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="damaged"), Store(path) as store:
        store.records()


@pytest.mark.parametrize("content", [b"not a database, just some words" * 40, b"\0" * 4096])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"not a record store|damaged"):
        Store(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE books (title)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_another_schema_version_is_refused(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreError, match=f"version {SCHEMA_VERSION + 1}.*version "
                                         f"{SCHEMA_VERSION}"):
        Store(path)


def test_a_store_does_not_survive_a_fork(store: Store) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.records()
        except StoreError as error:
            status = 0 if "fork" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


# -- places --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "lustre"])
def test_network_filesystems_are_refused_by_name(tmp_path: Path, kind: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    share = tmp_path / "share"
    monkeypatch.setattr(place, "_mounts", lambda: [("/", "ext4"), (str(share), kind)])
    with pytest.raises(StoreError, match=rf"network filesystem \({kind}\).*--store PATH"):
        Store(share / "team" / "records.sqlite")
    assert not share.exists(), "nothing is made on a refused place"
    link = tmp_path / "link"
    link.symlink_to(share)
    with pytest.raises(StoreError, match="network"):
        Store(link / "records.sqlite")
    Store(tmp_path / "records.sqlite").close()


def test_the_deepest_and_latest_mount_decides(tmp_path: Path) -> None:
    mounts = [("/", "nfs"), ("/a", "ext4"), ("/a/b", "cifs"), ("/a/b", "xfs"), ("/ab", "9p")]
    kinds = {p: place.filesystem_of(Path(p), mounts) for p in ("/x", "/a/x", "/a/b/x", "/ab/x")}
    assert kinds == {"/x": "nfs", "/a/x": "ext4", "/a/b/x": "xfs", "/ab/x": "9p"}
    assert place.filesystem_of(tmp_path)


def test_a_folder_or_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        Store(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot make the folder"):
        Store(tmp_path / "file" / "records.sqlite")


def test_the_default_place_is_the_platforms(tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with Store() as store:
        assert store.path == tmp_path / "autosched" / "records.sqlite"


# -- exchange ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_export_and_import_are_exact(store: Store, tmp_path: Path, suffix: str) -> None:
    batch = [made(0, extra={"a": [1, 2.5, None], "b": {"c": "ü"}}), made(1, workload="w2"),
             failed(Status.WRONG_RESULT, 2), made(3, schedule={"peer": "ort"}, spread_us=None)]
    store.add(batch)
    file = tmp_path / f"log{suffix}"
    assert exchange.export_records(store, file) == 4
    with Store(tmp_path / "other.sqlite") as other:
        other.add(batch[:1], WORKLOADS)
        assert exchange.import_records(other, file) == 3, "what is there is not added again"
        assert other.records() == batch
        assert other.workloads() == WORKLOADS
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_an_empty_store_can_be_exported(store: Store, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"log{suffix}"
    assert exchange.export_records(store, file) == 0
    assert exchange.import_records(store, file) == 0


@pytest.mark.parametrize(("line", "said"), [
    ("{", "line 3"), ('{"kind": "poem"}', "poem"), ('{"kind": "record", "record": {}}', "missing"),
    ("[]", "line 3"),
])
def test_a_bad_line_is_named_and_nothing_is_imported(store: Store, tmp_path: Path, line: str,
                                                     said: str) -> None:
    file = tmp_path / "log.jsonl"
    good = json.dumps({"kind": "record", "record": made().to_json()})
    head = json.dumps({"kind": "header", "format": exchange.FORMAT, "version": 1})
    file.write_text("\n".join([head, good, line, good]))
    with pytest.raises(StoreError, match=said):
        exchange.import_records(store, file)
    assert store.records() == []


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.jsonl", b"", "empty"),
    ("a.jsonl", b'{"kind": "header", "format": "autosched-records", "version": 9}', "version 9"),
    ("a.jsonl", b'{"kind": "record"}', "no autosched-records file"),
    ("a.jsonl", b"\xff\xfe\x00", "line 1"),
    ("a.parquet", b"PAR1 or not", "a.parquet"),
    ("a.csv", b"", ".jsonl or .parquet"),
])
def test_files_that_are_no_export_are_refused(store: Store, tmp_path: Path, name: str,
                                              content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=said):
        exchange.import_records(store, tmp_path / name)


def test_a_foreign_parquet_file_is_refused(store: Store, tmp_path: Path) -> None:
    arrow, parquet = exchange._pyarrow()
    parquet.write_table(arrow.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(StoreError, match="no autosched-records file"):
        exchange.import_records(store, tmp_path / "a.parquet")


def test_missing_files_and_places_are_clear_errors(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read"):
        exchange.import_records(store, tmp_path / "none.jsonl")
    with pytest.raises(StoreError, match="cannot write"):
        exchange.export_records(store, tmp_path / "none" / "a.jsonl")


def test_parquet_without_pyarrow_says_what_to_install(store: Store, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StoreError, match=r"autosched\[data\]"):
        exchange.export_records(store, tmp_path / "a.parquet")


def test_a_batch_is_quick(store: Store) -> None:
    """A batch of 1,000 must not delay a tuner: milliseconds a batch, not a record."""
    begun = time.perf_counter()
    store.add([made(n) for n in range(1000)])
    assert time.perf_counter() - begun < 2.0

