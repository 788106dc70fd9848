from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.cells import Cell
from balancer.config.schema import Config
from balancer.verification.verdict import (
    BLANK_DEVIATION,
    Criteria,
    DomainLimits,
    Flaw,
    ImageFlags,
    Measurement,
    Nearest,
    criteria_for,
    judge,
)

CELL = Cell("burnt", (("lighting", "dim"),))
probability = st.floats(0, 1)


def measured(
    *,
    burnt: float = 0.9,
    dim: float = 0.8,
    brightness: float = 0.5,
    deviation: float = 0.2,
    nonfinite: int = 0,
    unsafe: float | None = None,
    second: dict[str, float] | None = None,
    typicality: float | None = None,
    domain_score: float | None = None,
) -> Measurement:
    return Measurement(
        probabilities={
            "class": {"basic": 1 - burnt, "burnt": burnt},
            "lighting": {"harsh": 1 - dim, "dim": dim},
            "burn_level": {"slight": 1.0},
        },
        brightness=brightness,
        deviation=deviation,
        flags=ImageFlags(nonfinite),
        phash="0" * 16,
        embedding=b"",
        second_scores=second or {},
        unsafe=unsafe,
        typicality=typicality,
        domain_score=domain_score,
    )


def held_to(threshold: float = 0.6, **limits: Any) -> Criteria:
    return Criteria(threshold, **limits)


def copy_of(distance: int = 0, similarity: float = 1.0, same_pixels: bool = False) -> Nearest:
    return Nearest("real/burnt/7.png", distance, similarity, same_pixels)


# ---- what it shows ---------------------------------------------------------------------------


def test_every_property_at_the_threshold_is_accepted():
    verdict = judge(measured(burnt=0.6, dim=0.6), CELL, held_to(0.6))
    assert (verdict.accepted, verdict.reason) == (True, None)


@pytest.mark.parametrize(("burnt", "dim", "reason"), [(0.5, 0.9, "class"), (0.9, 0.5, "lighting")])
def test_one_property_below_the_threshold_rejects_and_is_the_reason(burnt: float, dim: float, reason: str):
    verdict = judge(measured(burnt=burnt, dim=dim), CELL, held_to(0.6))
    assert (verdict.accepted, verdict.reason) == (False, reason)


def test_of_two_properties_below_the_threshold_the_weaker_is_the_reason():
    assert judge(measured(burnt=0.4, dim=0.3), CELL, held_to(0.6)).reason == "lighting"


def test_only_the_properties_of_the_cell_are_scored():
    assert set(judge(measured(), CELL, held_to()).scores) == {"class", "lighting"}


@given(burnt=probability, dim=probability, threshold=probability)
def test_the_score_is_the_smallest_and_decides(burnt: float, dim: float, threshold: float):
    verdict = judge(measured(burnt=burnt, dim=dim), CELL, held_to(threshold))
    assert verdict.score == min(burnt, dim)
    assert verdict.accepted == (verdict.score >= threshold)


@given(burnt=probability, dim=probability, low=probability, high=probability)
def test_a_lower_threshold_never_rejects_more(burnt: float, dim: float, low: float, high: float):
    low, high = sorted((low, high))
    measurement = measured(burnt=burnt, dim=dim)
    at_low, at_high = (judge(measurement, CELL, held_to(threshold)) for threshold in (low, high))
    assert at_low.accepted >= at_high.accepted


@pytest.mark.parametrize(("burnt", "dim"), [(math.nan, 0.9), (0.9, math.nan), (math.nan, math.nan)])
@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_a_score_that_is_no_number_is_rejected(burnt: float, dim: float, threshold: float):
    assert not judge(measured(burnt=burnt, dim=dim), CELL, held_to(threshold)).accepted


def test_a_rejected_candidate_keeps_its_scores():
    verdict = judge(measured(burnt=0.25, dim=0.75), CELL, held_to(0.6))
    assert verdict.scores == {"class": 0.25, "lighting": 0.75}


def test_a_property_that_is_not_judged_is_scored_and_does_not_decide():
    verdict = judge(measured(dim=0.1), CELL, held_to(0.6, unjudged=frozenset({"lighting"})))
    assert (verdict.accepted, verdict.score) == (True, 0.9)
    assert verdict.scores == {"class": 0.9, "lighting": 0.1}


def test_an_image_of_which_nothing_is_judged_has_no_score():
    nothing = frozenset({"class", "lighting"})
    verdict = judge(measured(burnt=0.1, dim=0.1), CELL, held_to(0.6, unjudged=nothing))
    assert (verdict.accepted, verdict.score) == (True, None)


# ---- two judges ------------------------------------------------------------------------------


@given(first=probability, second=probability)
def test_the_lower_of_two_judges_counts(first: float, second: float):
    verdict = judge(measured(burnt=first, dim=1.0, second={"class": second}), CELL, held_to(0.0))
    assert verdict.scores["class"] == min(first, second)


def test_a_second_judge_who_doubts_a_property_rejects_for_it():
    verdict = judge(measured(burnt=0.9, dim=0.9, second={"class": 0.8, "lighting": 0.2}), CELL, held_to(0.6))
    assert (verdict.reason, verdict.score) == ("lighting", 0.2)


@pytest.mark.parametrize(("first", "second"), [(math.nan, 0.9), (0.9, math.nan)])
def test_a_judge_whose_answer_is_no_number_rejects(first: float, second: float):
    verdict = judge(measured(burnt=first, second={"class": second}), CELL, held_to(0.0))
    assert (verdict.accepted, verdict.reason) == (False, "class")


# ---- flaws, the gravest first ----------------------------------------------------------------

FLAWED: dict[Flaw, tuple[dict[str, Any], Nearest | None]] = {
    Flaw.NOT_FINITE: ({"nonfinite": 1}, None),
    Flaw.FLAGGED: ({"unsafe": 1.0}, None),
    Flaw.BLANK: ({"deviation": BLANK_DEVIATION / 2}, None),
    Flaw.UNDEREXPOSED: ({"brightness": 0.1}, None),
    Flaw.OVEREXPOSED: ({"brightness": 0.9}, None),
    Flaw.OFF_DOMAIN: ({"typicality": 0.01}, None),
    Flaw.DUPLICATE: ({}, copy_of(same_pixels=True)),
    Flaw.NEAR_COPY: ({}, copy_of(distance=2)),
    Flaw.NEAR_PARENT: ({}, copy_of(distance=2)),
}
EXPOSED = (0.2, 0.8)
DOMAIN = DomainLimits(typicality=0.02, domain_score=0.5)


LIMITS: dict[str, Any] = {"brightness": EXPOSED, "domain": DOMAIN}


def compared(flaw: Flaw) -> tuple[Nearest | None, Nearest | None]:
    """The images that it is compared with: the nearest one, and its parent."""
    _, other = FLAWED[flaw]
    return (None, other) if flaw is Flaw.NEAR_PARENT else (other, None)


def test_every_flaw_has_its_example():
    assert list(FLAWED) == list(Flaw)


@pytest.mark.parametrize("flaw", Flaw)
def test_a_flaw_rejects_whatever_the_scores(flaw: Flaw):
    values, _ = FLAWED[flaw]
    criteria = held_to(0.0, **LIMITS)
    verdict = judge(measured(burnt=1.0, dim=1.0, **values), CELL, criteria, *compared(flaw))
    assert (verdict.accepted, verdict.reason) == (False, flaw)


@pytest.mark.parametrize("flaw", Flaw)
def test_a_flaw_comes_before_a_weak_property(flaw: Flaw):
    values, _ = FLAWED[flaw]
    verdict = judge(measured(burnt=0.1, **values), CELL, held_to(0.6, **LIMITS), *compared(flaw))
    assert (verdict.reason, verdict.score) == (flaw, 0.1)


@pytest.mark.parametrize(
    ("distance", "similarity", "passes"), [(8, 0.9, False), (9, 0.9, True), (8, 0.89, True)]
)
def test_an_image_too_like_its_parent_is_rejected_by_limits_of_their_own(distance, similarity, passes):
    criteria = held_to(0.0, parent_max_distance=8, parent_min_similarity=0.9, max_distance=0)
    parent = Nearest("real/a.png", distance, similarity)
    verdict = judge(measured(), CELL, criteria, parent, parent)
    assert verdict.reason == (None if passes else Flaw.NEAR_PARENT)


def test_an_image_with_the_pixels_of_its_parent_is_too_like_it_whatever_the_limits():
    criteria = held_to(0.0, parent_min_similarity=1.0)
    assert judge(measured(), CELL, criteria, None, copy_of(same_pixels=True)).reason == Flaw.NEAR_PARENT


def test_the_flaws_of_an_image_that_is_black_all_over_begin_with_the_gravest():
    black = {"brightness": 0.0, "deviation": 0.0}
    criteria = held_to(brightness=EXPOSED)
    seen = [
        judge(measured(nonfinite=nonfinite, unsafe=unsafe, **black), CELL, criteria, copy_of()).reason
        for nonfinite, unsafe in [(5, 1.0), (0, 1.0), (0, 0.0)]
    ]
    assert seen == [Flaw.NOT_FINITE, Flaw.FLAGGED, Flaw.BLANK]


@pytest.mark.parametrize("unsafe", [None, 0.0, 0.5])
def test_an_image_no_safety_checker_objects_to_is_judged_by_its_scores(unsafe: float | None):
    assert judge(measured(unsafe=unsafe), CELL, held_to(max_unsafe=0.5)).accepted


def test_the_limit_of_the_safety_checker_is_the_configured_one():
    reasons = [judge(measured(unsafe=0.3), CELL, held_to(max_unsafe=limit)).reason for limit in (0.3, 0.2)]
    assert reasons == [None, Flaw.FLAGGED]


@pytest.mark.parametrize("brightness", EXPOSED)
def test_an_image_at_the_limit_of_its_brightness_is_accepted(brightness: float):
    assert judge(measured(brightness=brightness), CELL, held_to(brightness=EXPOSED)).accepted


@pytest.mark.parametrize("field", ["brightness", "deviation", "unsafe"])
def test_a_statistic_that_is_no_number_rejects(field: str):
    broken: dict[str, Any] = {field: math.nan}
    assert not judge(measured(**broken), CELL, held_to(0.0)).accepted


@pytest.mark.parametrize(
    ("typicality", "domain_score", "passes"),
    [
        (0.03, 0.6, True),
        (0.02, 0.6, False),
        (0.03, 0.5, False),
        (math.nan, 0.6, False),
        (0.03, math.nan, False),
        (None, 0.6, True),
        (0.03, None, True),
    ],
)
def test_an_image_must_exceed_each_limit_that_it_was_measured_for(
    typicality: float | None, domain_score: float | None, passes: bool
):
    seen = measured(typicality=typicality, domain_score=domain_score)
    assert judge(seen, CELL, held_to(domain=DOMAIN)).reason == (None if passes else Flaw.OFF_DOMAIN)


def test_without_limits_no_image_is_off_domain():
    assert judge(measured(typicality=0.0, domain_score=0.0), CELL, held_to()).accepted


def test_a_run_does_not_ask_whether_an_image_is_of_the_domain_if_that_is_unjudged():
    assert criteria_for(CELL, 0.6, config(), DOMAIN).domain == DOMAIN
    assert criteria_for(CELL, 0.6, config(unjudged=["off_domain"]), DOMAIN).domain == DomainLimits()
    assert criteria_for(CELL, 0.6, config(unjudged=["off_domain=blobs"]), DOMAIN).domain == DOMAIN


@pytest.mark.parametrize(
    ("distance", "similarity", "is_copy"),
    [(6, 0.95, True), (7, 1.0, False), (0, 0.94, False), (0, 1.0, True), (0, math.nan, False)],
)
def test_a_near_copy_is_within_both_limits(distance: int, similarity: float, is_copy: bool):
    criteria = held_to(max_distance=6, min_similarity=0.95)
    verdict = judge(measured(), CELL, criteria, copy_of(distance, similarity))
    assert verdict.reason == (Flaw.NEAR_COPY if is_copy else None)


def test_the_same_pixels_are_a_duplicate_whatever_the_limits():
    criteria = held_to(max_distance=0, min_similarity=1.0)
    nearest = copy_of(distance=3, similarity=0.5, same_pixels=True)
    assert judge(measured(), CELL, criteria, nearest).reason == Flaw.DUPLICATE


# ---- what a cell allows ----------------------------------------------------------------------


def config(**verification: Any) -> Config:
    lighting = {
        "dim": {"prompts": ["dim"], "brightness": [0.05, 0.4]},
        "harsh": {"prompts": ["harsh"]},
    }
    burn = {"severe": {"prompts": ["severe"], "brightness": [0.0, 0.3]}}
    return Config.model_validate(
        {
            "classes": {"basic": {"prompts": ["basic"]}, "burnt": {"prompts": ["burnt"]}},
            "facets": {"lighting": {"values": lighting}, "burn_level": {"values": burn}},
            "target": {"per_class": 5},
            "verification": {"brightness": [0.02, 0.98], **verification},
        }
    )


@pytest.mark.parametrize(
    ("facets", "allowed"),
    [
        ((), (0.02, 0.98)),
        ((("lighting", "harsh"),), (0.02, 0.98)),
        ((("lighting", "dim"),), (0.05, 0.4)),
        ((("burn_level", "severe"),), (0.02, 0.3)),
        ((("lighting", "dim"), ("burn_level", "severe")), (0.05, 0.3)),
    ],
)
def test_the_strictest_brightness_of_the_facet_values_counts(
    facets: tuple[tuple[str, str], ...], allowed: tuple[float, float]
):
    assert criteria_for(Cell("burnt", facets), 0.6, config()).brightness == allowed


def test_an_image_too_bright_for_its_own_lighting_only_is_overexposed_there_only():
    bright = measured(brightness=0.5)
    reasons = {
        value: judge(bright, cell, criteria_for(cell, 0.1, config())).reason
        for value in ("dim", "harsh")
        for cell in [Cell("burnt", (("lighting", value),))]
    }
    assert reasons == {"dim": Flaw.OVEREXPOSED, "harsh": None}


def test_criteria_are_what_the_config_says():
    criteria = criteria_for(
        CELL,
        0.5,
        config(
            copies={"max_distance": 3, "min_similarity": 0.9},
            safety={"model": "org/checker", "max_unsafe": 0.2},
            unjudged=["lighting", "class=basic"],
        ),
    )
    assert (criteria.threshold, criteria.max_distance, criteria.min_similarity) == (0.5, 3, 0.9)
    assert criteria.max_unsafe == 0.2
    assert criteria.unjudged == {"lighting"}  # a value that is not proven is judged all the same
