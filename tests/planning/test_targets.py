"""Targets: one for all classes, of single classes, and by published rules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.schema import Config, TargetConfig
from balancer.planning.plan import make_plan
from balancer.planning.targets import compute_targets, effective_target, square_root_target

COUNTS = {"a": 30, "b": 4, "c": 0}

betas = st.sampled_from([0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.999999])
many = st.integers(1, 100_000)


def targets(counts: Mapping[str, int] = COUNTS, **target: Any) -> dict[str, int]:
    return compute_targets(TargetConfig.model_validate(target), counts)


def test_a_class_of_its_own_target_leaves_the_common_one_to_the_others():
    assert targets(per_class=10, classes={"b": 25}) == {"a": 10, "b": 25, "c": 10}


def test_a_class_that_is_kept_has_its_real_images_for_a_target():
    assert targets(per_class=40, classes={"b": "keep", "c": "keep"}) == {"a": 40, "b": 4, "c": 0}


def test_no_common_target_is_needed_if_each_class_has_its_own():
    assert targets(classes={"c": 7, "a": 31, "b": "keep"}) == {"a": 31, "b": 4, "c": 7}


def test_a_fraction_is_of_the_largest_class_even_if_that_is_kept():
    assert targets(ratio_to_largest=0.5, classes={"a": "keep"}) == {"a": 30, "b": 15, "c": 15}


def test_own_targets_are_part_of_a_total():
    assert targets(total=60, classes={"b": 10}) == {"a": 30, "b": 10, "c": 20}
    assert targets(total=60, classes={"a": 5}) == {"a": 5, "b": 15, "c": 15}  # 30 real ones there
    assert targets(total=20, classes={"b": 10}) == {"a": 30, "b": 10, "c": 0}


def test_nothing_is_generated_for_a_class_that_is_kept():
    config = Config.model_validate(
        {
            "classes": {name: {"prompts": [name]} for name in COUNTS},
            "target": {"per_class": 40, "classes": {"b": "keep"}},
        }
    )
    plan = make_plan(config, COUNTS)
    assert {wanted.cell.class_name: wanted.quota for wanted in plan.cells} == {"a": 10, "c": 40}


@given(many, many, betas)
def test_rules_keep_the_largest_class_and_raise_the_others_up_to_it(one: int, other: int, beta: float):
    count, largest = sorted((one, other))
    for target in (square_root_target(count, largest), effective_target(count, largest, beta)):
        assert count <= target <= largest
    assert square_root_target(largest, largest) == effective_target(largest, largest, beta) == largest


@given(many, many, many, betas)
def test_a_larger_class_never_has_a_lower_target(one: int, other: int, another: int, beta: float):
    small, middle, largest = sorted((one, other, another))
    assert square_root_target(small, largest) <= square_root_target(middle, largest)
    assert effective_target(small, largest, beta) <= effective_target(middle, largest, beta)


@given(many, many)
def test_a_higher_beta_never_lowers_a_target(one: int, other: int):
    count, largest = sorted((one, other))
    rising = [effective_target(count, largest, beta) for beta in (0, 0.5, 0.9, 0.99, 0.999, 0.9999)]
    assert rising == sorted(rising)


@pytest.mark.parametrize("count", [1, 7, 120, 500])
def test_without_balancing_a_class_stays_and_with_all_of_it_reaches_the_largest(count: int):
    assert effective_target(count, 500, 0) == count
    assert effective_target(count, 500, 1 - 1e-12) == 500


def test_a_class_without_images_counts_as_having_one():
    assert targets(rule="sqrt") == {"a": 30, "b": 11, "c": 6}
    assert targets(rule="effective_number", beta=0.9)["c"] == effective_target(1, 30, 0.9)


def test_rules_generate_nothing_for_a_dataset_without_images():
    empty = dict.fromkeys(COUNTS, 0)
    assert targets(empty, rule="sqrt") == targets(empty, rule="effective_number", beta=0.9) == empty


def test_the_table_in_the_documentation_is_right():
    rows = [
        [int(number) for number in re.findall(r"\d+", line)]
        for line in inspect.getdoc(TargetConfig).splitlines()
        if re.match(r"\| \d", line)
    ]
    assert len(rows) == 7
    for count, by_root, *by_effective in rows:
        assert square_root_target(count, 500) == by_root
        assert [effective_target(count, 500, beta) for beta in (0.9, 0.99, 0.999, 0.9999)] == by_effective
