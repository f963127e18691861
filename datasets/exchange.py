"""A store in, a file that others can import out, and back: JSON lines or Parquet.

JSON lines carry everything: a header, each workload's text, each record. Parquet is the form for
analysis: a row a record, typed columns, the workload's text in each row (stored once, as a
dictionary). Both name their version; a file appears whole, by one rename.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autosched.datasets.place import StoreError
from autosched.datasets.store import Store
from autosched.ir.record import Record, canonical_json

FORMAT = "autosched-records"
VERSION = 1

_TEXT_COLUMN = "workload_text"
_FORMAT_KEY = b"autosched-records-version"
_FACTS_KEY = b"autosched-facts"
_LEVEL = 3  # of compression, for files that are written while something waits
# Parquet type of each column; nested values travel as their JSON text.
_PARQUET_TYPES: Mapping[str, str] = {
    "workload": "string", "target": "string", "schedule": "string", "status": "string",
    "latency_us": "float64", "spread_us": "float64", "error": "string", "toolchain": "string",
    "device": "string", "threads": "int64", "when": "string", "checked": "string",
    "extra": "string",
}
_NESTED = ("schedule", "extra")


def export_records(store: Store, path: Path | str) -> int:
    """Writes the store to `path` in the form that its suffix names; returns how many records."""
    target = Path(path)
    write = _form(target)[0]
    records, workloads = store.records(), store.workloads()
    with _published(target) as temporary:
        write(temporary, records, workloads)
    return len(records)


def import_records(store: Store, path: Path | str) -> int:
    """Adds the file's records and workloads, all or none; returns how many records were new.

    Raises: StoreError that names the file, the line and the fault.
    """
    records, workloads = read_records(path)
    return store.add(records, workloads)


def read_records(path: Path | str) -> tuple[list[Record], dict[str, str]]:
    """The records of a file, and the text of each workload by its key. Raises: StoreError."""
    source = Path(path)
    read = _form(source)[1]
    try:
        return read(source)
    except OSError as error:
        raise StoreError(f"cannot read {source}: {error.strerror or error}") from error


def write_records(
    path: Path | str, records: Iterable[Record], workloads: Mapping[str, str],
    facts: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """A Parquet file of records and the texts of their workloads.

    facts: what the file says of itself, plain JSON; `read_facts` reads it back.
    """
    with _published(Path(path)) as temporary:
        _write_parquet(temporary, records, workloads, facts)


def read_facts(path: Path | str) -> dict[str, Any]:
    """What a Parquet file of records says of itself; nothing where nothing was said."""
    arrow, parquet = _pyarrow()
    try:
        metadata = parquet.read_schema(path).metadata or {}
        return dict(json.loads(metadata.get(_FACTS_KEY, b"{}")))
    except (OSError, arrow.ArrowException, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error


def read_attempts(path: Path | str, target: str) -> list[tuple[str, str, float | None]]:
    """Workload, schedule's text and latency_us of a Parquet file's rows of a target's key, without
    making Records of them."""
    arrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
        _check_metadata(table)
        names = ("target", "workload", "schedule", "latency_us")
        columns = [table.column(name).to_pylist() for name in names]
    except (OSError, arrow.ArrowException, ValueError, KeyError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    return [(w, text, us) for found, w, text, us in zip(*columns) if found == target]


def merge_files(
    paths: Iterable[Path | str], target: Path | str, facts: Mapping[str, Any] | None = None,
    *, level: int = _LEVEL,
) -> int:  # fmt: skip
    """One Parquet file of the rows of several: each row once, like beside like, so that it packs
    well; returns how many. Records are not looked into. Raises: StoreError."""
    arrow, parquet = _pyarrow()
    names = (*_PARQUET_TYPES, _TEXT_COLUMN)
    rows: dict[tuple[Any, ...], None] = {}
    texts: dict[str, str] = {}
    for path in paths:
        try:
            table = parquet.read_table(path)
            _check_metadata(table)
            columns = [table.column(name).to_pylist() for name in names]
        except (OSError, arrow.ArrowException, ValueError, KeyError) as error:
            raise StoreError(f"{path}: {error}. Nothing was merged") from error
        rows |= dict.fromkeys(zip(*columns[:-1]))
        texts |= dict(zip(columns[0], columns[-1]))
    order = [list(_PARQUET_TYPES).index(name) for name in ("workload", "schedule", "when")]
    ranked = sorted(rows, key=lambda row: tuple(row[n] for n in order))
    made = {
        name: arrow.array([row[n] for row in ranked], getattr(arrow, kind)())
        for n, (name, kind) in enumerate(_PARQUET_TYPES.items())
    }
    made[_TEXT_COLUMN] = arrow.array([texts[row[0]] for row in ranked], arrow.string())
    with _published(Path(target)) as temporary:
        _write_table(temporary, made, facts, level)
    return len(ranked)


def _write_lines(path: Path, records: Iterable[Record], workloads: Mapping[str, str]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for value in _lines(records, workloads):
            file.write(canonical_json(value) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _lines(records: Iterable[Record], workloads: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    yield {"kind": "header", "format": FORMAT, "version": VERSION}
    for key, text in workloads.items():
        yield {"kind": "workload", "key": key, "text": text}
    for record in records:
        yield {"kind": "record", "record": record.to_json()}


def _read_lines(path: Path) -> tuple[list[Record], dict[str, str]]:
    records: list[Record] = []
    workloads: dict[str, str] = {}
    number = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
                if number == 1:
                    _check_header(value)
                elif value["kind"] == "workload":
                    workloads[value["key"]] = value["text"]
                elif value["kind"] == "record":
                    records.append(Record.from_json(value["record"]))
                else:
                    raise ValueError(f"unknown kind {value['kind']!r}")
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{path}, line {number}: {error}. Nothing was imported; export "
                                 "the records again, or delete that line") from error
    if not number:
        raise StoreError(f"{path} is empty. Export the records again")
    return records, workloads


def _check_header(value: Any) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"this is no {FORMAT} file")
    if value.get("version") != VERSION:
        raise ValueError(f"version {value.get('version')} of {FORMAT}; this autosched reads "
                         f"version {VERSION}")


def _write_parquet(
    path: Path, records: Iterable[Record], workloads: Mapping[str, str],
    facts: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    arrow, _ = _pyarrow()
    rows = [r.to_json() for r in records]
    columns = {
        name: arrow.array([canonical_json(row[name]) if name in _NESTED else row[name]
                           for row in rows], getattr(arrow, kind)())
        for name, kind in _PARQUET_TYPES.items()
    }
    texts = arrow.array([workloads[row["workload"]] for row in rows], arrow.string())
    _write_table(path, {**columns, _TEXT_COLUMN: texts}, facts, _LEVEL)


def _write_table(
    path: Path, columns: Mapping[str, Any], facts: Mapping[str, Any] | None, level: int
) -> None:
    """Texts of workloads are stored once; Parquet itself keeps dictionaries of the rest."""
    arrow, parquet = _pyarrow()
    table = arrow.table({**columns, _TEXT_COLUMN: columns[_TEXT_COLUMN].dictionary_encode()})
    told = {} if facts is None else {_FACTS_KEY: canonical_json(facts).encode()}
    table = table.replace_schema_metadata({_FORMAT_KEY: str(VERSION).encode(), **told})
    parquet.write_table(table, path, compression="zstd", compression_level=level)


def _check_metadata(table: Any) -> None:
    version = (table.schema.metadata or {}).get(_FORMAT_KEY, b"").decode()
    _check_header({"format": FORMAT if version else None,
                   "version": int(version) if version else None})


def _read_parquet(path: Path) -> tuple[list[Record], dict[str, str]]:
    arrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
        _check_metadata(table)
        rows = table.to_pylist()
        workloads = {row["workload"]: row.pop(_TEXT_COLUMN) for row in rows}
        records = [Record.from_json({**row, **{n: json.loads(row[n]) for n in _NESTED}})
                   for row in rows]
    except (arrow.ArrowException, ValueError, KeyError) as error:
        raise StoreError(f"{path}: {error}. Nothing was imported; export the records "
                         "again") from error
    return records, workloads


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StoreError("Parquet files need pyarrow, which is not installed: "
                         "pip install 'autosched[data]', or use a .jsonl file") from error
    return pyarrow, pyarrow.parquet


_Write = Callable[[Path, Iterable[Record], Mapping[str, str]], None]
_Read = Callable[[Path], tuple[list[Record], dict[str, str]]]
_FORMS: Mapping[str, tuple[_Write, _Read]] = {
    ".jsonl": (_write_lines, _read_lines),
    ".parquet": (_write_parquet, _read_parquet),
}


def _form(path: Path) -> tuple[_Write, _Read]:
    if path.suffix not in _FORMS:
        raise StoreError(f"{path}: the file's name must end in {' or '.join(_FORMS)}")
    return _FORMS[path.suffix]


@contextlib.contextmanager
def _published(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its place once it is whole."""
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}. Free some space or "
                         "name another place") from error
