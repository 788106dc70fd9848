from __future__ import annotations

import numpy as np
import pytest

from balancer.evaluation.arms import ACCEPTED
from balancer.evaluation.decision import Comparison, decide, judge_classes, leave_out

CLASSES = ("apple", "pear", "quince")


def two_arms(gains, sizes=(60, 60, 60), seeds=6, margin=0.02, counted=None, random=0.1):
    """Two arms that differ by a gain in each class, and by chance."""
    draws = np.random.default_rng(1)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    hard = draws.random(len(labels))
    chance = np.asarray(gains)[labels]
    correct = {
        name: np.array([hard + draws.normal(0, random, len(labels)) < 0.5 + gain for _ in range(seeds)])
        for name, gain in {"real": 0.0, ACCEPTED: chance}.items()
    }
    counted = range(len(sizes)) if counted is None else counted
    return Comparison(correct, labels, CLASSES, tuple(counted), "real", "balanced_accuracy", margin)


@pytest.mark.parametrize(
    ("gain", "size", "decision"),
    [(0.3, 60, "add"), (-0.3, 60, "do_not_add"), (0.0, 15, "cannot_tell"), (0.03, 15, "cannot_tell")],
)
def test_a_large_gain_is_added_a_harm_is_not_and_nothing_is_claimed_of_little(gain, size, decision):
    assert decide(two_arms([gain] * 3, sizes=(size,) * 3)).decision == decision


def test_a_difference_that_is_certainly_smaller_than_the_margin_is_no_reason_to_add():
    assert decide(two_arms([0.0] * 3, margin=0.2)).decision == "do_not_add"
    sure = two_arms([0.05] * 3, sizes=(900, 900, 900), margin=0.2, random=0.01)
    found = decide(sure)
    assert found.difference.low > 0
    assert found.decision == "do_not_add"


def test_where_nobody_can_tell_it_says_what_would():
    found = decide(two_arms([0.03] * 3, sizes=(20, 20, 20)))
    assert found.decision == "cannot_tell"
    assert found.needed is not None
    assert found.needed.test_images is None or found.needed.test_images > 60
    assert found.needed.test_images or found.needed.seeds or found.needed.together


def test_a_class_is_helped_harmed_or_not_to_be_told():
    verdicts = judge_classes(two_arms([0.4, -0.4, 0.0]))
    assert [verdict.decision for verdict in verdicts.values()] == ["help", "harm", "cannot_tell"]
    more = verdicts["quince"].needed
    assert more.test_images is None or more.test_images > 60
    assert more.test_images or more.seeds or more.together
    assert verdicts["pear"].difference.high < 0


def test_a_class_is_equivalent_only_with_the_images_to_show_it():
    few, many = (
        judge_classes(two_arms([0, 0, 0], sizes=(size,) * 3, margin=0.1, random=0.01))["apple"].decision
        for size in (20, 400)
    )
    assert (few, many) == ("cannot_tell", "equivalent")


def test_where_more_images_alone_would_never_tell_of_a_class_more_seeds_are_asked_for_as_well():
    """Each seed moves all images of the class together."""
    correct = np.zeros((6, 40), bool)
    made = {"real": correct, ACCEPTED: correct.copy()}
    made[ACCEPTED][::2] = True
    made["real"][1::2, :38] = True
    tested = Comparison(made, np.zeros(40, int), ("apple",), (0,), "real", "balanced_accuracy", 0.02)
    verdict = judge_classes(tested)["apple"]
    assert verdict.decision == "cannot_tell"
    assert verdict.needed.test_images is None
    images, seeds = verdict.needed.together
    assert images > 40
    assert seeds > 6


def test_of_a_class_without_enough_test_images_nothing_is_said():
    found = two_arms([0.4, 0.4, 0.4], sizes=(60, 60, 4), counted=(0, 1))
    verdict = judge_classes(found)["quince"]
    assert (verdict.decision, verdict.test_images, verdict.difference) == ("cannot_tell", 4, None)
    assert verdict.needed.test_images > 100
    assert decide(found).difference.mean == pytest.approx(0.4, abs=0.1)


def test_what_harms_is_left_out_but_not_the_only_images_of_a_class():
    verdicts = judge_classes(two_arms([0.4, -0.4, -0.4]))
    real, generated = dict.fromkeys(CLASSES, 5), dict.fromkeys(CLASSES, 9)
    assert leave_out("add", verdicts, real, generated) == ["pear", "quince"]
    assert leave_out("cannot_tell", verdicts, real, generated) == ["pear", "quince"]
    assert leave_out("do_not_add", verdicts, real, generated) == list(CLASSES)
    assert leave_out("do_not_add", verdicts, real | {"quince": 0}, generated) == ["apple", "pear"]


def test_a_class_that_lost_to_one_that_no_baseline_knows_is_not_blamed_for_it():
    verdicts = judge_classes(two_arms([0.4, -0.4, 0.4]))
    real, generated = {"apple": 5, "pear": 5, "quince": 0}, dict.fromkeys(CLASSES, 9)
    assert leave_out("add", verdicts, real, generated) == []
