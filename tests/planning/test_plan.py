from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.schema import Config
from balancer.dataset.audit import Audit, RealImage, credited_facets
from balancer.planning.plan import Plan, Priority, held_back, make_plan
from balancer.planning.targets import values_to_add

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


# Targets


def one_facet(**sections: Any) -> Config:
    facets = {"light": {"values": {name: {"prompts": [name]} for name in ("day", "night")}}}
    return reference(facets=facets, **sections)


@pytest.mark.parametrize(
    ("target", "counts", "lacking"),
    [
        ({"per_class": 10}, {"basic": 4, "burnt": 12}, {"basic": 6, "combined": 10}),
        ({"ratio_to_largest": 0.5}, {"basic": 9, "burnt": 2}, {"burnt": 3, "combined": 5}),
        ({"ratio_to_largest": 1}, {"basic": 9, "burnt": 2}, {"burnt": 7, "combined": 9}),
        ({"ratio_to_largest": 0.3}, {}, {}),
        ({"total": 20}, {"basic": 4, "burnt": 2}, {"basic": 3, "burnt": 5, "combined": 6}),
        ({"total": 20}, {"basic": 15, "burnt": 2}, {"burnt": 1, "combined": 2}),
        ({"total": 10}, {"basic": 15, "burnt": 2}, {}),
    ],
)
def test_what_classes_lack_follows_from_the_target(
    target: dict[str, Any], counts: dict[str, int], lacking: dict[str, int]
):
    classes = {name: {"prompts": [name]} for name in ("basic", "burnt", "combined")}
    plan = make_plan(Config.model_validate({"classes": classes, "target": target}), counts)
    assert {wanted.cell.class_name: wanted.quota for wanted in plan.cells} == lacking


@given(st.integers(1, 400), st.dictionaries(st.sampled_from(CLASSES), st.integers(0, 60)))
def test_a_total_is_reached_exactly_and_levels_what_it_raises(total: int, counts: dict[str, int]):
    plan = make_plan(reference(facets={}, target={"total": total}), counts)
    there = sum(counts.values())
    assert there + plan.total == max(total, there)
    raised = {wanted.cell.class_name for wanted in plan.cells}
    after = [plan.targets[name] for name in raised]
    assert max(after, default=0) - min(after, default=0) <= 1
    assert all(plan.counts[name] >= max(after, default=0) - 1 for name in set(CLASSES) - raised)


def test_a_share_that_may_be_generated_holds_back_the_rest_and_names_it():
    limits = {"per_class": 50, "max_synthetic_share": 0.4}
    plan = make_plan(reference(target=limits), dict.fromkeys(CLASSES, 50) | {"burnt": 20, "mixed": 0})
    assert {wanted.cell.class_name for wanted in plan.cells} == {"burnt"}
    assert plan.total == 13  # of 33 images, 40 % are 13.2
    assert plan.held_back == {"burnt": 17, "mixed": 50}
    assert held_back(plan) == [
        "burnt reaches 33 of 50 images: target.max_synthetic_share allows no more generated ones",
        "mixed reaches 0 of 50 images: target.max_synthetic_share allows no more generated ones",
    ]


# Facet values that are there


def quotas_of(plan: Plan, class_name: str) -> dict[str, int]:
    found = {"day": 0, "night": 0}
    for wanted in plan.cells:
        if wanted.cell.class_name == class_name:
            found[str(wanted.cell.value("light"))] += wanted.quota
    return found


@pytest.mark.parametrize(
    ("there", "day", "night"),
    [
        ([], 20, 20),
        (["day"] * 10, 15, 25),
        (["day"] * 6 + ["night"] * 4, 19, 21),
        (["day"] * 30, 5, 35),
    ],
)
def test_values_that_are_there_count_towards_their_shares(there: list[str], day: int, night: int):
    full = dict.fromkeys(CLASSES, 50)
    known = {"basic": [{"light": value} for value in there]}
    plan = make_plan(one_facet(), full | {"basic": 10}, known)
    assert quotas_of(plan, "basic") == {"day": day, "night": night}


def test_a_value_of_which_there_are_too_many_gets_none_and_the_others_keep_their_proportions():
    shares = (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4))
    assert values_to_add(6, shares, (20, 0, 3)) == (0, Fraction(9, 2), Fraction(3, 2))


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), min_size=1, max_size=6),
)
def test_what_is_added_sums_up_and_brings_no_value_above_another_that_gets_images(
    deficit: int, values: list[tuple[int, int]]
):
    weights, present = zip(*values, strict=True)
    shares = tuple(Fraction(weight, sum(weights)) for weight in weights)
    added = values_to_add(deficit, shares, present)
    assert sum(added) == deficit
    assert min(added) >= 0
    levels = [(there + more) / share for there, more, share in zip(present, added, shares, strict=True)]
    raised = [level for level, more in zip(levels, added, strict=True) if more]
    assert len(set(raised)) == 1
    assert all(level >= raised[0] for level in levels)


def test_real_facets_do_not_count_unless_asked_for():
    assert credited_facets(audit_of([("basic/0.png", {"light": "day"})]), one_facet()) is None
    counted = one_facet(target={"per_class": 50, "count_real_facets": "known"})
    found = credited_facets(
        audit_of(
            [
                ("basic/0.png", {"light": "day"}),
                ("basic/1.png", {"light": "dusk"}),
                ("elsewhere/2.png", {"light": "day"}),
            ]
        ),
        counted,
    )
    assert found is not None
    assert found["basic"] == [{"light": "day"}, {}]
    assert set(found) == set(CLASSES)


def audit_of(images: Sequence[tuple[str, dict[str, str]]]) -> Audit:
    found = tuple(RealImage(name, name.partition("/")[0], facets, 8, 8, 1, "", "") for name, facets in images)
    return Audit(Path(), found, (), (), {}, (), (), (), (), (), 0)
