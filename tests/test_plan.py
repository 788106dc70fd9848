from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer import rounding
from balancer.cells import Cell, Facet, cells_of
from balancer.config import Config
from balancer.plan import Measured, Plan, Priority, estimate, expected_attempts, make_plan
from balancer.rounding import joint_quotas

Deficits = dict[str, int]

CLASSES = ("basic", "burnt", "combined", "mixed", "progression", "segment")
REFERENCE_COUNTS = {"basic": 30, "burnt": 26}


def reference(**sections: Any) -> Config:
    def values(**shares: float) -> dict[str, Any]:
        return {name: {"share": share, "prompts": [name]} for name, share in shares.items()}

    lighting = values(overhead_harsh=0.25, side_dramatic=0.25, dim_ambient=0.25, backlit_rim=0.25)
    burn_level = values(slightly_burnt=0.40, moderately_burnt=0.35, severely_burnt=0.25)
    content = {
        "classes": {name: {"prompts": [name]} for name in CLASSES},
        "facets": {
            "lighting": {"values": lighting},
            "burn_level": {"classes": ["burnt"], "values": burn_level},
        },
        "target": {"per_class": 50},
    }
    return Config.model_validate(content | sections)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(reference(), REFERENCE_COUNTS)


def totals(plan: Plan, facet: str) -> dict[str | None, int]:
    counted = Counter[str | None]()
    for wanted in plan.cells:
        counted[wanted.cell.value(facet)] += wanted.quota
    return dict(counted)


# The reference case


def test_the_reference_case_lacks_244_images_in_32_cells(plan: Plan):
    assert (plan.total, len(plan.cells)) == (244, 32)


def test_the_reference_case_has_61_images_of_each_lighting(plan: Plan):
    assert totals(plan, "lighting") == {
        "overhead_harsh": 61,
        "side_dramatic": 61,
        "dim_ambient": 61,
        "backlit_rim": 61,
    }


def test_the_reference_case_has_burn_levels_10_8_6(plan: Plan):
    burnt = totals(plan, "burn_level")
    assert (burnt["slightly_burnt"], burnt["moderately_burnt"], burnt["severely_burnt"]) == (10, 8, 6)


def test_the_priorities_of_the_reference_case(plan: Plan):
    sums = Counter[Priority]()
    for wanted in plan.cells:
        sums[wanted.priority] += wanted.quota
    assert sums == {Priority.CRITICAL: 200, Priority.HIGH: 24, Priority.MEDIUM: 20}


def test_critical_cells_come_first_then_the_order_of_the_config(plan: Plan):
    classes = list(dict.fromkeys(wanted.cell.class_name for wanted in plan.cells))
    assert classes == ["combined", "mixed", "progression", "segment", "burnt", "basic"]
    lightings = [wanted.cell.value("lighting") for wanted in plan.cells[:4]]
    assert lightings == ["overhead_harsh", "side_dramatic", "dim_ambient", "backlit_rim"]


# Priorities and what is left out


@pytest.mark.parametrize(
    ("count", "priority"), [(0, "critical"), (1, "high"), (29, "high"), (30, "medium"), (49, "medium")]
)
def test_the_priority_of_a_class_follows_from_its_count(count: int, priority: str):
    plan = make_plan(reference(), dict.fromkeys(CLASSES, 50) | {"mixed": count})
    assert {wanted.priority for wanted in plan.cells} == {priority}


@pytest.mark.parametrize("count", [50, 51, 1000])
def test_a_class_that_has_enough_gets_nothing(count: int):
    plan = make_plan(reference(), dict.fromkeys(CLASSES, count))
    assert (plan.total, plan.cells) == (0, ())


def test_a_class_of_the_config_without_images_gets_its_whole_target():
    assert make_plan(reference(facets={}), {}).cells[0].quota == 50


def test_cells_without_a_quota_are_left_out():
    plan = make_plan(reference(), dict.fromkeys(CLASSES, 49))
    assert [wanted.quota for wanted in plan.cells] == [1] * 6


# Controlled rounding


@st.composite
def problems(draw: st.DrawFn) -> tuple[Deficits, list[Facet]]:
    classes = [f"class{n}" for n in range(draw(st.integers(1, 4)))]
    facets = []
    for n in range(draw(st.integers(0, 3))):
        weights = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
        applies = draw(st.sets(st.sampled_from(classes), min_size=1))
        facets.append(
            Facet(
                f"facet{n}",
                tuple(f"value{v}" for v in range(len(weights))),
                tuple(Fraction(weight, sum(weights)) for weight in weights),
                frozenset(applies),
            )
        )
    return {name: draw(st.integers(0, 60)) for name in classes}, facets


def exact(cell: Cell, deficits: Mapping[str, int], facets: Sequence[Facet]) -> Fraction:
    value = Fraction(deficits[cell.class_name])
    for facet in facets:
        if (wanted := cell.value(facet.name)) is not None:
            value *= facet.shares[facet.values.index(wanted)]
    return value


def is_floor_or_ceiling(rounded: int, value: Fraction) -> bool:
    return rounded in (math.floor(value), math.ceil(value))


def margins_off(
    quotas: Mapping[Cell, int], deficits: Mapping[str, int], facets: Sequence[Facet]
) -> list[str]:
    """Sums that are neither floor nor ceiling of their exact values: each facet value, within each class
    and over all classes."""
    off = []
    for facet in facets:
        for value, share in zip(facet.values, facet.shares, strict=True):
            groups = [{name} for name in sorted(facet.classes)] + [set(facet.classes)]
            for group in groups:
                cells = [
                    cell for cell in quotas if cell.class_name in group and cell.value(facet.name) == value
                ]
                wanted = share * sum(deficits[name] for name in group)
                if not is_floor_or_ceiling(sum(quotas[cell] for cell in cells), wanted):
                    off.append(f"{value} in {group}")
    return off


@settings(max_examples=40)
@given(problems())
def test_every_class_gets_exactly_what_it_lacks(problem: tuple[Deficits, list[Facet]]):
    deficits, facets = problem
    quotas = joint_quotas(deficits, facets)
    got = {name: sum(q for cell, q in quotas.items() if cell.class_name == name) for name in deficits}
    assert got == deficits
    assert min(quotas.values()) >= 0


@settings(max_examples=40)
@given(problems())
def test_every_facet_value_is_rounded_as_if_alone(problem: tuple[Deficits, list[Facet]]):
    deficits, facets = problem
    assert margins_off(joint_quotas(deficits, facets), deficits, facets) == []


# The same examples always: that cells can be kept too is found, not proven.
@settings(max_examples=100, derandomize=True)
@given(problems())
def test_every_cell_is_rounded_as_if_alone(problem: tuple[Deficits, list[Facet]]):
    deficits, facets = problem
    quotas = joint_quotas(deficits, facets)
    assert all(is_floor_or_ceiling(quota, exact(cell, deficits, facets)) for cell, quota in quotas.items())


@settings(max_examples=20)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_classes_and_facets_does_not_matter(problem: tuple[Deficits, list[Facet]], random: Any):
    deficits, facets = problem
    names = random.sample(sorted(deficits), len(deficits))
    quotas = joint_quotas(deficits, facets)
    assert joint_quotas({name: deficits[name] for name in names}, facets) == quotas


@settings(max_examples=20)
@given(problems())
def test_margins_hold_where_cells_cannot(problem: tuple[Deficits, list[Facet]]):
    deficits, facets = problem
    cells = [cell for name in deficits for cell in cells_of(name, facets)]
    values = [exact(cell, deficits, facets) for cell in cells]
    groups = list(rounding._groups(cells))
    rounded = rounding._solve(values, groups, [0.0] * len(cells), strict=False)
    assert rounded is not None
    assert margins_off(dict(zip(cells, rounded, strict=True)), deficits, facets) == []


def test_a_quota_that_is_whole_is_kept():
    even = Facet("f", ("a", "b"), (Fraction(1, 2), Fraction(1, 2)), frozenset({"x"}))
    assert set(joint_quotas({"x": 10}, [even]).values()) == {5}


def test_of_two_roundings_the_nearer_is_taken():
    facet = Facet("f", ("a", "b", "c"), (Fraction(2, 5), Fraction(7, 20), Fraction(1, 4)), frozenset({"x"}))
    assert list(joint_quotas({"x": 24}, [facet]).values()) == [10, 8, 6]


# What it may cost


def test_expected_attempts_are_those_of_retrying_until_one_passes():
    assert expected_attempts(1.0, 3) == 1
    assert expected_attempts(0.5, 3) == pytest.approx(1 + 1 / 2 + 1 / 4)
    assert expected_attempts(0.0, 3) == 3


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


@pytest.mark.parametrize(("real_images", "extra"), [("copy", 5000), ("reference", 0)])
def test_real_images_take_disk_where_they_are_copied(plan: Plan, real_images: str, extra: int):
    config = reference(planning={"bytes_per_image": 1000}, output={"real_images": real_images})
    assert estimate(plan, config, real_bytes=5000).bytes == 244_000 + extra


def test_nothing_to_do_costs_nothing():
    plan = make_plan(reference(), dict.fromkeys(CLASSES, 50))
    cost = estimate(plan, reference(planning={"seconds_per_candidate": 1}))
    assert (cost.candidates, cost.hours, cost.bytes) == (0, 0, 0)
