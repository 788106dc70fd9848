"""What a run tells of how fast it goes."""

from __future__ import annotations

import pytest

from balancer.scheduling.progress import RATE_WINDOW_S, RateMeter


@pytest.fixture
def now():
    return [1000.0]


def test_a_rate_is_of_the_last_minute_alone(now):
    meter = RateMeter(clock=lambda: now[0])
    meter.add(600)
    now[0] += RATE_WINDOW_S / 2
    meter.add(60)
    assert meter.per_second(since_s=0.0) == 660 / RATE_WINDOW_S
    now[0] += RATE_WINDOW_S / 2 + 1
    assert meter.per_second(since_s=0.0) == 60 / RATE_WINDOW_S
    now[0] += RATE_WINDOW_S
    assert meter.per_second(since_s=0.0) == 0


def test_a_young_run_has_a_short_window(now):
    meter = RateMeter(clock=lambda: now[0])
    assert meter.per_second(since_s=now[0]) == 0
    meter.add(10)
    now[0] += 5
    assert meter.per_second(since_s=now[0] - 5) == 2
