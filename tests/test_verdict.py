from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.cells import Cell
from balancer.verdict import BLANK_DEVIATION, Flaw, ImageFlags, Measurement, judge

CELL = Cell("burnt", (("lighting", "dim"),))
probability = st.floats(0, 1)


def measured(
    *,
    burnt: float = 0.9,
    dim: float = 0.8,
    deviation: float = 0.2,
    finite: bool = True,
    flagged: bool | None = None,
) -> Measurement:
    return Measurement(
        probabilities={
            "class": {"basic": 1 - burnt, "burnt": burnt},
            "lighting": {"harsh": 1 - dim, "dim": dim},
            "burn_level": {"slight": 1.0},
        },
        brightness=0.5,
        deviation=deviation,
        flags=ImageFlags(finite, flagged),
        phash="0" * 16,
        embedding=b"",
    )


def test_every_property_at_the_threshold_is_accepted():
    verdict = judge(measured(burnt=0.6, dim=0.6), CELL, threshold=0.6)
    assert (verdict.accepted, verdict.reason) == (True, None)


@pytest.mark.parametrize(("burnt", "dim", "reason"), [(0.5, 0.9, "class"), (0.9, 0.5, "lighting")])
def test_one_property_below_the_threshold_rejects_and_is_the_reason(burnt: float, dim: float, reason: str):
    verdict = judge(measured(burnt=burnt, dim=dim), CELL, threshold=0.6)
    assert (verdict.accepted, verdict.reason) == (False, reason)


def test_of_two_properties_below_the_threshold_the_weaker_is_the_reason():
    assert judge(measured(burnt=0.4, dim=0.3), CELL, threshold=0.6).reason == "lighting"


def test_only_the_properties_of_the_cell_are_scored():
    assert set(judge(measured(), CELL, threshold=0.6).scores) == {"class", "lighting"}


@given(burnt=probability, dim=probability, threshold=probability)
def test_the_score_is_the_smallest_and_decides(burnt: float, dim: float, threshold: float):
    verdict = judge(measured(burnt=burnt, dim=dim), CELL, threshold)
    assert verdict.score == min(burnt, dim)
    assert verdict.accepted == (verdict.score >= threshold)


@given(burnt=probability, dim=probability, low=probability, high=probability)
def test_a_lower_threshold_never_rejects_more(burnt: float, dim: float, low: float, high: float):
    low, high = sorted((low, high))
    measurement = measured(burnt=burnt, dim=dim)
    assert judge(measurement, CELL, low).accepted >= judge(measurement, CELL, high).accepted


@pytest.mark.parametrize(("burnt", "dim"), [(math.nan, 0.9), (0.9, math.nan), (math.nan, math.nan)])
@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_a_score_that_is_no_number_is_rejected(burnt: float, dim: float, threshold: float):
    assert not judge(measured(burnt=burnt, dim=dim), CELL, threshold).accepted


@pytest.mark.parametrize(
    ("flaw", "measurement"),
    [
        (Flaw.NOT_FINITE, measured(finite=False)),
        (Flaw.FLAGGED, measured(flagged=True)),
        (Flaw.BLANK, measured(deviation=BLANK_DEVIATION / 2)),
    ],
)
def test_a_flaw_rejects_whatever_the_scores(flaw: Flaw, measurement: Measurement):
    verdict = judge(measurement, CELL, threshold=0.0)
    assert (verdict.accepted, verdict.reason) == (False, flaw)


def test_a_flaw_comes_before_a_weak_property():
    assert judge(measured(burnt=0.1, finite=False), CELL, threshold=0.6).reason == Flaw.NOT_FINITE


@pytest.mark.parametrize("flagged", [None, False])
def test_an_image_the_safety_checker_did_not_flag_is_judged_by_its_scores(flagged: bool | None):
    assert judge(measured(flagged=flagged), CELL, threshold=0.6).accepted


def test_a_rejected_candidate_keeps_its_scores():
    verdict = judge(measured(burnt=0.25, dim=0.75), CELL, threshold=0.6)
    assert verdict.scores == {"class": 0.25, "lighting": 0.75}
