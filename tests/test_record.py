"""Records: exact round trips, and every invariant refused when broken."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosched.ir.record import CONDEMNED, Record, Status, canonical_json, json_key

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False,
                                                                      allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8)


def ok_record(**changes: Any) -> Record:
    values = {"workload": "w1", "target": "cpu", "schedule": {"tile": [4, 16]},
              "status": Status.OK, "latency_us": 12.5, "spread_us": 0.25, "toolchain": "tvm-0.27",
              "device": "cpu0", "threads": 2, "checked": "float64"}
    return Record.of(**{**values, **changes})


@given(schedule=PLAIN, extra=st.dictionaries(st.text(), PLAIN, max_size=3),
       latency=st.floats(min_value=1e-6, max_value=1e12), device=st.text(min_size=1))
def test_round_trip_is_exact(schedule: Any, extra: Any, latency: float, device: str) -> None:
    record = ok_record(schedule=schedule, extra=extra, latency_us=latency, device=device)
    again = Record.from_text(record.to_text())
    assert again == record
    assert again.latency_us == latency
    assert again.to_text() == record.to_text()
    assert again.key == record.key
    assert again.schedule_json == schedule


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_every_failure_round_trips(status: Status) -> None:
    record = ok_record(status=status, latency_us=None, spread_us=None, error="because")
    assert Record.from_text(record.to_text()) == record
    assert not record.ok


def test_schedule_key_ignores_the_order_of_names_and_tuples() -> None:
    a = ok_record(schedule={"m": 1, "n": (2, 3)})
    b = ok_record(schedule={"n": [2, 3], "m": 1})
    assert a.schedule_key == b.schedule_key
    assert a.schedule_key != ok_record(schedule={"m": 1, "n": [3, 2]}).schedule_key
    assert json_key("x") == json_key("x") != json_key("y")


def test_any_changed_field_changes_the_key() -> None:
    record = ok_record()
    changes: dict[str, Any] = {
        "workload": "w2", "target": "t", "schedule": "[]", "latency_us": 13.0, "spread_us": 1.0,
        "toolchain": "x", "device": "x", "threads": 3, "checked": "none",
        "when": "2026-01-01T00:00:00+00:00", "extra": {"a": 1}}
    keys = {replace(record, **{name: value}).key for name, value in changes.items()}
    assert len(keys) == len(changes) and record.key not in keys


def test_peer_is_read_from_the_schedule() -> None:
    assert ok_record(schedule={"peer": "onnxruntime-1.31.1"}).peer == "onnxruntime-1.31.1"
    assert ok_record().peer is None
    assert ok_record(schedule=[1]).peer is None


@pytest.mark.parametrize(("changes", "said"), [
    ({"latency_us": None, "spread_us": None}, "latency"),
    ({"latency_us": 0.0}, "positive"),
    ({"latency_us": math.inf}, "finite"),
    ({"latency_us": math.nan}, "finite"),
    ({"spread_us": -1.0}, "spread_us"),
    ({"error": "but why"}, "error text"),
    ({"status": Status.RUN_CRASHED, "error": "x"}, "latency"),
    ({"status": Status.RUN_CRASHED, "latency_us": None, "spread_us": None}, "error text"),
    ({"threads": 0}, "threads"),
    ({"threads": 2.0}, "threads"),
    ({"workload": ""}, "workload"),
    ({"when": "yesterday"}, "ISO 8601"),
    ({"when": "2026-01-01T00:00:00"}, "UTC"),
    ({"when": "2026-01-01T00:00:00+02:00"}, "UTC"),
    ({"extra": {"x": {1: 2}}}, "strings"),
    ({"extra": {"x": math.nan}}, "JSON"),
    ({"schedule": {"x": object()}}, "JSON"),
])
def test_broken_invariants_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ok_record(**changes)


def test_a_schedule_text_out_of_form_is_refused() -> None:
    with pytest.raises(ValueError, match="canonical"):
        replace(ok_record(), schedule='{"a": 1}')
    with pytest.raises(ValueError, match="schedule"):
        replace(ok_record(), schedule="{")


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda v: v.pop("device"), "device"),
    (lambda v: v.update(color="red"), "color"),
    (lambda v: v.update(status="splendid"), "splendid"),
    (lambda v: v.update(extra=[]), "extra"),
    (lambda v: v.update(latency_us="fast"), "latency_us"),
])
def test_foreign_json_is_refused_by_name(spoil: Any, said: str) -> None:
    value = json.loads(ok_record().to_text())
    spoil(value)
    with pytest.raises(ValueError, match=said):
        Record.from_json(value)


def test_no_json_is_refused() -> None:
    for text in ("", "[]", "{", "null"):
        with pytest.raises(ValueError, match="Record"):
            Record.from_text(text)


def test_whole_numbers_of_other_writers_are_read_as_floats() -> None:
    value = {**json.loads(ok_record().to_text()), "latency_us": 5}
    assert Record.from_json(value).latency_us == 5.0


def test_canonical_json_coerces_nothing() -> None:
    with pytest.raises(ValueError, match="strings"):
        canonical_json({1: "a"})
    with pytest.raises(ValueError, match="bytes"):
        canonical_json(b"a")


def test_only_wrong_answers_condemn_a_schedule() -> None:
    assert {Status.WRONG_RESULT, Status.NAN_RESULT} == CONDEMNED
