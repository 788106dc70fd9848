from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from balancer.review.estimates import (
    bound_without_errors,
    clopper_pearson,
    estimate,
    estimates_by,
    images_for_bound,
)


def answers(count, errors):
    return {str(number): number < errors for number in range(count)}


def test_nothing_is_known_before_anybody_looked():
    assert estimate({}, {}).rate is None
    assert (estimate({}, {}).low, estimate({}, {}).high) == (0, 1)


@pytest.mark.parametrize(("errors", "count"), [(3, 24), (0, 24), (24, 24), (1, 1), (7, 500)])
def test_equal_weights_give_the_interval_of_clopper_and_pearson(errors, count):
    found = estimate(answers(count, errors), dict.fromkeys(answers(count, errors), 9.5))
    exact = stats.binomtest(errors, count).proportion_ci(0.95, method="exact")
    assert found.rate == pytest.approx(errors / count)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_strata_are_weighted_back():
    # 10 of 1,000 images of one cell, all right; 10 of 10 of another, all wrong.
    weights = {f"large {number}": 100.0 for number in range(10)}
    weights |= {f"small {number}": 1.0 for number in range(10)}
    said = {name: name.startswith("small") for name in weights}
    found = estimate(said, weights)
    assert found.rate == pytest.approx(10 / 1010)
    assert found.errors == 10
    effective = 1010**2 / (10 * 100**2 + 10)
    low = stats.beta.ppf(0.025, found.rate * effective, effective - found.rate * effective + 1)
    high = stats.beta.ppf(0.975, found.rate * effective + 1, effective - found.rate * effective)
    assert (found.low, found.high) == pytest.approx((low, high))
    by = estimates_by(said, weights, lambda name: [name.split()[0]])
    assert {name: part.rate for name, part in by.items()} == {"large": 0.0, "small": 1.0}


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """In 2,000 simulated reviews of cells of unequal size and error, a few images of each."""
    random = np.random.default_rng(3)
    sizes = np.array([400, 200, 100, 100, 50, 50, 50, 50])
    rates = np.array([0.05, 0.02, 0.1, 0.0, 0.3, 0.0, 0.1, 0.02])
    truth = (sizes * rates).sum() / sizes.sum()
    sampled = np.maximum(3, sizes // 20)
    weights = np.repeat(sizes / sampled, sampled)
    effective = weights.sum() ** 2 / (weights**2).sum()
    held = 0
    for _ in range(2000):
        wrong = random.random(len(weights)) < np.repeat(rates, sampled)
        low, high = clopper_pearson(weights[wrong].sum() / weights.sum() * effective, effective)
        held += low <= truth <= high
    assert held >= 0.95 * 2000


def test_24_images_without_an_error_still_allow_14_percent():
    assert bound_without_errors(24) == pytest.approx(0.1425, abs=1e-4)
    assert bound_without_errors(0) == 1


@pytest.mark.parametrize("bound", [0.5, 0.1425, 0.05, 0.01])
def test_as_many_images_are_drawn_as_the_bound_takes(bound):
    count = images_for_bound(bound)
    assert bound_without_errors(count) <= bound
    assert count == 1 or bound_without_errors(count - 1) > bound
