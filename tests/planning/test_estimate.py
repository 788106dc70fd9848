from __future__ import annotations

from typing import Any

import pytest

from balancer.config.schema import Config, PlanningConfig
from balancer.planning.plan import Measured, Plan, estimate, expected_attempts, make_plan, per_image
from balancer.scheduling.adaptive import Tally


def reference(**sections: Any) -> Config:
    base = {"classes": {"basic": {"prompts": ["a pizza"]}}, "target": {"per_class": 250}}
    return Config.model_validate(base | sections)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """244 images to generate."""
    return make_plan(reference(), {"basic": 6})


def test_expected_attempts_are_those_of_retrying_until_one_passes():
    assert expected_attempts([1.0] * 3) == 1
    assert expected_attempts([0.5] * 3) == pytest.approx(1 + 1 / 2 + 1 / 4)
    assert expected_attempts([0.0] * 3) == 3
    assert expected_attempts([0.2, 0.9, 0.5]) == pytest.approx(1 + 0.8 + 0.08)


def test_each_assumption_is_named_with_its_key(plan: Plan):
    planning = {"acceptance": 0.5, "seconds_per_candidate": 2, "bytes_per_image": 10_000}
    cost = estimate(plan, reference(planning=planning, actors={"generators": 2}))
    assert cost.candidates == 427
    assert cost.candidates_basis == (
        "244 images, 50% of candidates pass (planning.acceptance), up to 3 attempts"
    )
    assert cost.hours == pytest.approx(427 * 2 / 2 / 3600)
    assert cost.hours_basis == (
        "427 candidates of 2 s each (planning.seconds_per_candidate), 2 generators (actors.generators)"
    )
    assert cost.bytes == 2_440_000
    assert cost.bytes_basis == "244 images of 10 kB (planning.bytes_per_image)"


def test_the_fallback_counts_as_an_attempt(plan: Plan):
    cost = estimate(plan, reference(attempts={"max": 3, "fallback": {}}))
    assert cost.candidates_basis.endswith("up to 4 attempts")


def test_what_was_measured_replaces_what_was_assumed(plan: Plan):
    measured = Measured("runs/a", acceptance=1.0, seconds_per_candidate=3.6, bytes_per_image=1000)
    cost = estimate(plan, reference(), measured)
    assert (cost.candidates, cost.bytes) == (244, 244_000)
    assert cost.hours == pytest.approx(0.244)
    assert all(
        "measured by runs/a" in basis for basis in (cost.candidates_basis, cost.hours_basis, cost.bytes_basis)
    )


def test_attempts_that_were_measured_to_differ_are_counted_each_by_itself(plan: Plan):
    """As many candidates a slot as in the run that was measured: 800 of 1000 were made a second time."""
    by_attempt = (Tally(200, 1000), Tally(720, 800))
    measured = Measured("runs/a", acceptance=920 / 1800, by_attempt=by_attempt)
    cost = estimate(plan, reference(attempts={"max": 2}), measured)
    assert cost.candidates == pytest.approx(244 * 1.8, abs=2)


def test_an_attempt_that_was_never_made_is_taken_to_pass_as_the_others_do(plan: Plan):
    measured = Measured("runs/a", acceptance=0.5, by_attempt=(Tally(50, 100), Tally(1, 2)))
    assert estimate(plan, reference(), measured).candidates == 427


def test_an_accepted_image_takes_its_rejected_candidates_too(plan: Plan):
    planning = {"acceptance": 0.5, "seconds_per_candidate": 9, "cost_per_generator_hour": 4}
    cost = estimate(plan, reference(planning=planning, actors={"generators": 2}))
    each = cost.per_image
    assert (each.candidates_per_image, each.seconds_per_image) == (2, 18)
    assert each.cost_per_image == pytest.approx(18 / 3600 * 4)
    assert each.candidates_per_image_basis == "50% of candidates pass (planning.acceptance)"
    assert each.seconds_per_image_basis == (
        "2 candidates of 9 s each (planning.seconds_per_candidate) on one generator"
    )
    assert each.cost_per_image_basis.endswith("at 4 an hour (planning.cost_per_generator_hour)")
    assert cost.cost == pytest.approx(427 * 9 / 3600 * 4)


def test_each_image_takes_as_long_as_was_measured():
    measured = Measured("runs/a", acceptance=0.25, seconds_per_candidate=3)
    each = per_image(PlanningConfig(cost_per_generator_hour=3600, seconds_per_candidate=100), measured)
    assert (each.candidates_per_image, each.seconds_per_image, each.cost_per_image) == (4, 12, 12)
    assert each.candidates_per_image_basis == "25% of candidates pass (measured by runs/a)"


def test_what_an_image_takes_is_unknown_where_none_passed():
    each = per_image(PlanningConfig(seconds_per_candidate=1), Measured("runs/a", acceptance=0.0))
    assert (each.candidates_per_image, each.seconds_per_image, each.cost_per_image) == (None, None, None)
    assert each.cost_per_image_basis == "none passed (measured by runs/a)"


@pytest.mark.parametrize(
    ("planning", "missing"),
    [({}, "seconds_per_candidate"), ({"seconds_per_candidate": 1}, "cost_per_generator_hour")],
)
def test_a_cost_that_nothing_is_known_of_names_what_is_missing(
    plan: Plan, planning: dict[str, float], missing: str
):
    cost = estimate(plan, reference(planning=planning))
    assert (cost.cost, cost.per_image.cost_per_image) == (None, None)
    assert f"planning.{missing}" in cost.cost_basis
    assert f"planning.{missing}" in cost.per_image.cost_per_image_basis


@pytest.mark.parametrize(("generators", "hours"), [(2, 20), ("auto", 244)])
def test_the_cost_is_that_of_the_hours_that_a_budget_leaves(plan: Plan, generators: int | str, hours: int):
    planning = {"acceptance": 1, "seconds_per_candidate": 3600, "cost_per_generator_hour": 1}
    config = reference(planning=planning, budget={"max_hours": 10}, actors={"generators": generators})
    assert estimate(plan, config).cost == hours


def test_the_estimate_in_json_is_one_level_of_figures_and_their_bases(plan: Plan):
    figures = estimate(plan, reference()).as_dict()
    assert {name for name in figures if not name.endswith("_basis")} == {
        "candidates", "missing", "hours", "cost", "bytes",
        "candidates_per_image", "seconds_per_image", "cost_per_image",
    }  # fmt: skip
    assert all(isinstance(figures[f"{name}_basis"], str) for name in figures if not name.endswith("_basis"))


def test_a_time_that_nothing_is_known_of_is_not_made_up(plan: Plan):
    cost = estimate(plan, reference())
    assert cost.hours is None
    assert "planning.seconds_per_candidate" in cost.hours_basis


def test_the_budget_limits_what_is_expected(plan: Plan):
    planning = {"acceptance": 1, "seconds_per_candidate": 3600}
    cost = estimate(plan, reference(planning=planning, budget={"max_candidates": 100, "max_hours": 10}))
    assert (cost.candidates, cost.hours) == (100, 10)
    assert cost.candidates_basis.endswith("held at 100 by budget.max_candidates")
    assert cost.hours_basis.endswith("held at 10 h by budget.max_hours")


def test_slots_that_fail_every_attempt_are_expected_to_be_missing(plan: Plan):
    cost = estimate(plan, reference(planning={"acceptance": 0.5}))
    assert cost.missing == round(244 / 8)
    assert cost.missing_basis == (
        "12.5% of slots fail all 3 attempts, which pass at 50% (planning.acceptance), if all cells pass alike"
    )


def test_each_attempt_fails_as_often_as_was_measured(plan: Plan):
    measured = Measured("runs/a", acceptance=0.5, by_attempt=(Tally(200, 1000), Tally(720, 800)))
    cost = estimate(plan, reference(attempts={"max": 2}), measured)
    assert cost.missing == round(244 * 0.8 * 0.1)
    assert "pass at between 90% and 20% (measured by runs/a)" in cost.missing_basis


def test_images_beyond_the_budget_are_expected_to_be_missing(plan: Plan):
    cost = estimate(plan, reference(planning={"acceptance": 1}, budget={"max_candidates": 61}))
    assert cost.missing == 244 - 61
    assert cost.missing_basis.endswith(
        "; budget.max_candidates allows for 61 candidates: each class gets 25% of what it lacks"
    )
    planning = {"acceptance": 1, "seconds_per_candidate": 36}
    hours = reference(planning=planning, budget={"max_hours": 1}, actors={"generators": 2})
    assert estimate(plan, hours).missing == 244 - 200
    assert "budget.max_hours allows for 200 candidates" in estimate(plan, hours).missing_basis


@pytest.mark.parametrize(("real_images", "extra"), [("copy", 5000), ("reference", 0)])
def test_real_images_take_disk_where_they_are_copied(plan: Plan, real_images: str, extra: int):
    config = reference(planning={"bytes_per_image": 1000}, output={"real_images": real_images})
    assert estimate(plan, config, real_bytes=5000).bytes == 244_000 + extra


def test_nothing_to_do_costs_nothing():
    plan = make_plan(reference(), {"basic": 250})
    cost = estimate(plan, reference(planning={"seconds_per_candidate": 1}))
    assert (cost.candidates, cost.hours, cost.bytes) == (0, 0, 0)
