"""Workers sit on other cores than their caller, whose own affinity stays as it was."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from autosched.codegen.runtime.cpu import usable_cores
from autosched.codegen.runtime.seats import Seats

pytestmark = pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")


def test_workers_never_sit_on_the_callers_core():
    seats = Seats()
    found: list[set[int]] = []

    def work() -> None:
        seats.seat_worker()
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [set(seats.others)] and seats.home not in found[0]


def test_the_caller_is_never_seated():
    allowed, seats = os.sched_getaffinity(0), Seats()
    seats.seat_worker()
    assert os.sched_getaffinity(0) == allowed


def test_a_caller_that_was_moved_goes_home():
    allowed, seats = os.sched_getaffinity(0), Seats()
    try:
        os.sched_setaffinity(0, seats.others)
        os.sched_setaffinity(0, allowed)
        seats.go_home()
        assert Seats().home == seats.home
        assert os.sched_getaffinity(0) == allowed
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_caller_that_may_not_go_home_stays():
    allowed, seats = os.sched_getaffinity(0), Seats()
    try:
        os.sched_setaffinity(0, seats.others)
        seats.go_home()
        assert os.sched_getaffinity(0) == set(seats.others)
    finally:
        os.sched_setaffinity(0, allowed)


def test_hyperthreads_of_one_core_are_one_seat(tmp_path: Path):
    for cpu in os.sched_getaffinity(0):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_id").write_text("0\n")
    assert Seats(tmp_path).others == frozenset()
