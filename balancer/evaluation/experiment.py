"""The experiment: what is chosen on validation images, then the comparison on test images.

Choices are made by `tune`, which predicts validation images and has never seen a test image; only when they
are settled, `test` predicts test images. The two are different functions for that reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.evaluation.arms import (
    ACCEPTED,
    BASELINES,
    FIRST_TUNING_SEED,
    FRACTIONS,
    REAL_ALONE,
    TUNING_SEEDS,
    UNFILTERED,
    Arm,
    Job,
    Pool,
    can_be_thinned,
    thinned,
    thinned_name,
    with_generated,
)
from balancer.evaluation.statistics import images_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]

Predict = Callable[[Sequence[Job]], Mapping[Job, Sequence[int]]]
"""Trains each job and returns the labels that it predicts, of all validation or of all test images."""


@dataclass(frozen=True, slots=True)
class Design:
    """What is fixed before anything is trained. `counted` are the labels of the classes in the metric."""

    pool: Pool
    classes: tuple[str, ...]
    counted: tuple[int, ...]
    metric: str
    seeds: int
    rates: tuple[float, ...]
    real_shares: tuple[float, ...]
    unfiltered: bool

    def arms(self) -> list[str]:
        names = [arm.name for arm in BASELINES] + [ACCEPTED]
        names += [UNFILTERED] if self.unfiltered else []
        return names + [thinned_name(fraction) for fraction in self.fractions]

    @property
    def fractions(self) -> tuple[float, ...]:
        return FRACTIONS if can_be_thinned(self.pool) else ()


@dataclass(frozen=True, slots=True)
class Choice:
    """`scores` are the mean validation scores that decided, by what was tried."""

    learning_rate: float
    baseline: Arm
    real_share: float
    scores: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "baseline": self.baseline.name,
            "real_share": self.real_share,
            "validation": dict(self.scores),
        }


def score(predicted: Sequence[int], labels: Labels, counted: Sequence[int], metric: str) -> float:
    """The metric over the images of the counted classes."""
    places = np.flatnonzero(np.isin(labels, list(counted)))
    right = np.asarray(predicted)[places] == labels[places]
    return float(right @ images_of(labels[places], metric).each())


def choose(design: Design, validation: Labels, tune: Predict) -> Choice:
    """The learning rate for real images alone, then the baseline, then the part of real images in draws: each
    the best mean over TUNING_SEEDS, of equal ones the first."""
    scores: dict[str, float] = {}

    def best(tried: Mapping[str, tuple[Arm, float, float | None]]) -> str:
        jobs = {
            name: [
                Job("tune", arm, rate, FIRST_TUNING_SEED + number, share) for number in range(TUNING_SEEDS)
            ]
            for name, (arm, rate, share) in tried.items()
        }
        predicted = tune([job for each in jobs.values() for job in each])
        for name, each in jobs.items():
            scores[name] = float(
                np.mean([score(predicted[job], validation, design.counted, design.metric) for job in each])
            )
        return max(tried, key=scores.__getitem__)

    rates = {f"learning_rate {rate:g}": (REAL_ALONE, rate, None) for rate in design.rates}
    rate = rates[best(rates)][1]
    arms = {arm.name: (arm, rate, None) for arm in BASELINES}
    baseline = arms[best(arms)][0]
    arm = with_generated(baseline, ACCEPTED)
    shares = {f"real_share {share:g}": (arm, rate, share) for share in design.real_shares}
    return Choice(rate, baseline, shares[best(shares)][2] or 0.0, scores)


def final_jobs(design: Design, choice: Choice) -> dict[str, list[Job]]:
    """The trainings that are tested, by arm: the same seeds in each."""
    arms: dict[str, tuple[Arm, float | None]] = {arm.name: (arm, None) for arm in BASELINES}
    arms[ACCEPTED] = with_generated(choice.baseline, ACCEPTED), choice.real_share
    if design.unfiltered:
        arms[UNFILTERED] = with_generated(choice.baseline, UNFILTERED), choice.real_share
    for fraction in design.fractions:
        arms[thinned_name(fraction)] = thinned(choice.baseline, fraction), None
    return {
        name: [Job("test", arm, choice.learning_rate, seed, share) for seed in range(design.seeds)]
        for name, (arm, share) in arms.items()
    }


def run_test(
    jobs: Mapping[str, Sequence[Job]], labels: Labels, test: Predict
) -> dict[str, NDArray[np.bool_]]:
    """For each arm, which test images each seed gets right: (seeds, images)."""
    predicted = test([job for each in jobs.values() for job in each])
    return {
        name: np.stack([np.asarray(predicted[job]) == labels for job in each]) for name, each in jobs.items()
    }
