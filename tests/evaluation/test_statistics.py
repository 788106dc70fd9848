from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from balancer.evaluation.statistics import (
    CONFIDENCE,
    compare,
    estimate,
    holm,
    images_of,
    images_to_detect,
    least_half_width,
    needed,
    sign_flip,
)


def differences(seeds, sizes, gains, spread=0.02, seed=0):
    """(seeds, images) and labels: two arms that differ in each class by its gain, with chance per seed."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    hard = random.random(len(labels))
    rows = []
    for _ in range(seeds):
        noise = random.normal(0, spread)
        before = hard + random.normal(0, 0.1, len(labels)) < 0.7
        after = hard + random.normal(0, 0.1, len(labels)) < 0.7 + np.asarray(gains)[labels] + noise
        rows.append(after.astype(float) - before)
    return np.array(rows), labels


def scipys_interval(values, labels, weights):
    """The same from scipy: seeds are one sample, and the images of each class another."""
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def statistic(seeds, *images):
        return sum(
            weight * values[np.ix_(seeds, places)].mean()
            for weight, places in zip(weights, images, strict=True)
        )

    found = stats.bootstrap(
        [np.arange(len(values)), *groups], statistic, vectorized=False, method="BCa", n_resamples=2500,
        confidence_level=CONFIDENCE, rng=np.random.default_rng(5),
    )  # fmt: skip
    return found.confidence_interval


@pytest.mark.parametrize("metric", ["balanced_accuracy", "accuracy"])
def test_intervals_are_those_of_scipy(metric):
    values, labels = differences(6, [30, 60, 15], [0.1, 0.0, -0.05])
    images = images_of(labels, metric)
    ours, theirs = compare(values, images, 0.02), scipys_interval(values, labels, images.weights)
    floor = least_half_width(images)
    assert ours.low == pytest.approx(min(theirs.low, ours.mean - floor), abs=0.006)
    assert ours.high == pytest.approx(max(theirs.high, ours.mean + floor), abs=0.006)


def test_balanced_accuracy_weighs_classes_and_accuracy_weighs_images():
    values = np.array([[1.0] * 2 + [0.0] * 8])
    labels = np.repeat([0, 1], [2, 8])
    assert compare(values, images_of(labels, "balanced_accuracy"), 0.02).mean == pytest.approx(0.5)
    assert compare(values, images_of(labels, "accuracy"), 0.02).mean == pytest.approx(0.2)


def test_few_images_that_all_agree_prove_little():
    """A bootstrap of zeros would say that there is no difference, whatever the number of images."""
    labels = np.zeros(20, int)
    found = compare(np.zeros((10, 20)), images_of(labels, "balanced_accuracy"), 0.02)
    assert found.low < -0.1
    assert found.high > 0.1
    assert found.p_margin == 1


def test_a_false_help_is_rare_and_a_large_one_is_found():
    claims = dict.fromkeys((0.0, 0.1), 0)
    for gain in claims:
        for trial in range(12):
            values, labels = differences(10, [40] * 4, [gain] * 4, seed=trial)
            found = compare(values, images_of(labels, "balanced_accuracy"), 0.02)
            claims[gain] += found.low > 0 and sign_flip(values.mean(1).tolist()) <= 0.05
    assert claims[0.0] <= 2
    assert claims[0.1] >= 10


def test_exchanging_the_arms_turns_the_interval_around():
    values, labels = differences(5, [40, 40], [0.1, 0.1])
    one, other = (compare(each, images_of(labels, "accuracy"), 0.02) for each in (values, -values))
    assert (one.mean, one.low) == pytest.approx((-other.mean, -other.high), abs=0.006)


@pytest.mark.parametrize("seeds", [5, 10])
def test_signs_that_all_agree_give_the_smallest_p_value(seeds):
    assert sign_flip([0.1] * seeds) == pytest.approx(0.5**seeds)
    assert sign_flip([-0.1] * seeds) == 1


def test_the_sign_flip_of_many_seeds_is_drawn_and_can_be_repeated():
    values = np.random.default_rng(0).normal(0.02, 0.05, 30).tolist()
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="greater", n_resamples=9999,
        rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert sign_flip(values) == sign_flip(values)
    assert sign_flip(values) == pytest.approx(expected, abs=0.01)


def test_holm_stops_at_the_first_that_fails():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.04]) == [True]
    assert holm([]) == []


def test_so_many_more_images_or_seeds_tell_as_are_said_to_be_needed():
    values, labels = differences(6, [20] * 4, [0.05] * 4, seed=3)
    images = images_of(labels, "balanced_accuracy")
    found = compare(values, images, 0.02)
    more = needed(values, images, abs(found.mean))
    assert found.low < 0 < found.high
    assert more.test_images is not None
    each = -(-more.test_images // 4)
    again, labels = differences(6, [each] * 4, [found.mean] * 4, seed=4)
    width = compare(again, images_of(labels, "balanced_accuracy"), 0.02)
    assert width.high - width.low == pytest.approx(2 * abs(found.mean), rel=0.6)


def test_what_never_suffices_is_not_promised():
    values = np.tile(np.array([[1.0], [-1.0]]), (3, 30))  # every image alike, seeds at random
    more = needed(values, images_of(np.zeros(30, int), "accuracy"), 0.1)
    assert more.test_images is None
    assert more.seeds is not None


def test_the_metric_of_an_arm_stays_within_0_and_1():
    found = estimate(np.ones((5, 12)), images_of(np.arange(12) % 3, "accuracy"))
    assert (found.mean, found.low, found.high) == (1, 1, 1)


def test_a_smaller_change_takes_more_images():
    assert images_to_detect(0.125) == pytest.approx(50, rel=0.3)
    assert images_to_detect(0.02) > 10 * images_to_detect(0.1)


@pytest.mark.parametrize(("classes", "size"), [(2, 10), (3, 7), (4, 5)])
def test_what_is_always_right_is_right_in_all_cases_and_no_more(classes, size):
    images = images_of(np.repeat(np.arange(classes), size), "balanced_accuracy")
    right = np.ones((5, classes * size))
    assert estimate(right, images).mean == 1
    assert (compare(right, images, 0.02).mean, compare(-right, images, 0.02).mean) == (1, -1)


def test_where_all_agree_so_many_images_tell_and_no_more_seeds_are_asked_for():
    images = images_of(np.repeat([0, 1], 20), "balanced_accuracy")
    more = needed(np.zeros((5, 40)), images, 0.02)
    assert more.seeds is None
    assert more.test_images is not None
    enough = images_of(np.repeat([0, 1], -(-more.test_images // 2)), "balanced_accuracy")
    too_few = images_of(np.repeat([0, 1], more.test_images // 2 - 1), "balanced_accuracy")
    assert least_half_width(enough) <= 0.02 < least_half_width(too_few)
