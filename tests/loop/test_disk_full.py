from __future__ import annotations

import pytest

from actors.loop.disk_full import DiskFullBackoff
from balancer.storage import DiskFullError

FULL = DiskFullError("cannot write x: no space left on device")


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def notes():
    return []


@pytest.fixture
def backoff(now, notes):
    return DiskFullBackoff(100.0, lambda: now[0], notes.append)


def test_tries_are_further_and_further_apart(backoff, now):
    tries = []
    while now[0] < 40:
        if not backoff.is_full:
            tries.append(now[0])
            backoff.disk_is_full(FULL)
        now[0] += 1
    assert tries == [0, 1, 3, 7, 15, 31]


def test_it_is_told_once_with_the_knob_and_once_when_it_is_over(backoff, notes):
    backoff.disk_is_full(FULL)
    backoff.disk_is_full(FULL)
    backoff.succeeded()
    backoff.succeeded()
    assert notes == [
        "cannot write x: no space left on device; waiting up to 100 s for space (output.disk_full_wait_s)",
        "there is space again",
    ]


def test_after_the_limit_the_error_is_raised(backoff, now):
    backoff.disk_is_full(FULL)
    now[0] = 99.0
    backoff.disk_is_full(FULL)
    now[0] = 100.0
    with pytest.raises(DiskFullError):
        backoff.disk_is_full(FULL)


def test_the_limit_counts_from_the_last_time_there_was_room(backoff, now):
    backoff.disk_is_full(FULL)
    backoff.succeeded()
    now[0] = 150.0
    backoff.disk_is_full(FULL)
    assert backoff.is_full
